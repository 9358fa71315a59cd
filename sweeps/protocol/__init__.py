"""What a run is: presets, laws, draws, training."""
