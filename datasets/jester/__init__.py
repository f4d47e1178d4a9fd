"""`jester`: 20BN-Jester V1, 27 classes, RGB alone (README.md of this folder)."""
