"""The successor network, UMDR (Zhou et al., TPAMI 2023)."""
