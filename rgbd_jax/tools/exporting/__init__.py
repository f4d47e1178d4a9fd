"""Trained networks as portable files, which are run without this package."""
