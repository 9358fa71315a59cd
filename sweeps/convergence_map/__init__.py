"""The probability of convergence over (d0, d1): Figure 2 of the paper."""
