"""`rgbd_demo`: short RGB-D clips of 12 hand motions, rendered from a seed (README.md of this folder)."""
