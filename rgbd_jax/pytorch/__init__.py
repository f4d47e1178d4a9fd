"""Weights of the PyTorch reference to and from this package."""
