"""`ntu_rgbd`: NTU RGB+D, 60 or 120 classes (README.md of this folder)."""
