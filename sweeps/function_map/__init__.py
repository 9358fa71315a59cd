"""A function of one's own as a map: `sweeps.sweep`."""
