"""`thu_read`: THU-READ, 40 classes, four folds (README.md of this folder)."""
