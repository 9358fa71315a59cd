"""How a study runs: tiles, processes, devices, the store, and a session of it."""
