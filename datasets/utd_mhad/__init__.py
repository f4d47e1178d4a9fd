"""`utd_mhad`: UTD-MHAD, 27 actions, cross-subject (README.md of this folder)."""
