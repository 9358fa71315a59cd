"""Experiments on `relu_sgd`: what to run, where, and what is kept. Launchers are modules, `python -m sweeps.<name>`."""
