"""A small problem with a start, as NumPy arrays."""

import numpy as np


def draw(seed=0, num_samples=20, d0=5, d1=8, d2=1):
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(num_samples, d0))
    X /= np.linalg.norm(X, axis=1, keepdims=True)
    Y = rng.choice([-1.0, 1.0], size=(num_samples, d2))
    W = rng.normal(size=(d0, d1))
    V = rng.normal(size=(d1, d2)) / np.sqrt(d1)
    return W, V, X, Y
