"""RGB-D motion recognition (gestures and actions from colour and depth video) in JAX and Flax."""

__version__ = "0.1.0"
