"""`isogd`: ChaLearn IsoGD, 249 classes (README.md of this folder)."""
