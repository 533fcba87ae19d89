"""The referee for training-free acceleration of diffusion sampling."""
