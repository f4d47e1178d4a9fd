"""`rgbd_folder`: a user's own clips (README.md of this folder)."""
