"""`nvgesture`: NVIDIA Dynamic Hand Gesture, 25 classes (README.md of this folder)."""
