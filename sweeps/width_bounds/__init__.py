"""How wide a network must be for the theory, and how wide for training."""
