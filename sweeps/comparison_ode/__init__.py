"""The scalar comparison problem (9): Figure 1."""
