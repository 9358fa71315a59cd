"""An outsider's function, or own `Dynamics`, as a map: see `sweeps.sweep`."""
