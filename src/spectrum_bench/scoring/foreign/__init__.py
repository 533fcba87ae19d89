"""Samples that other code made: which file is whose, what was told of them, and how they come into tables."""
