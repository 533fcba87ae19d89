"""A conformance test for caching hooks that other people wrote: does a cache keep what it promises on a pipeline?"""
