"""Asking a trained network: loading it, clips of users to batches, what it says, and where it looked."""
