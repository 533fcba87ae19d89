"""The captioned miniature world and the training of the miniature pipelines that draw it."""
