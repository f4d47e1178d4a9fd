"""Inference: loading a trained model, reading clips and streams, predictions, and drawings of the evidence for them."""
