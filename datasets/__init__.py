"""TFDS builders, one package a data set (not to be confused with the HuggingFace package of this name)."""
