"""Seeded small problems, half of them degenerate: rows on one line, zero rows, integer data, starts on kinks."""

from typing import NamedTuple

import numpy as np


class Case(NamedTuple):
    """A start, a training set, what is trained and for how long. All arrays are NumPy's, in float64.

    Attributes:
      W, V: d0 x d1 and d1 x d2, the start.
      X, Y: N x d0 and N x d2, the training set.
      trained_layers: "hidden" or "both".
      final_time: in units of the flow.
      degenerate: whether anything in it was made to coincide.
    """

    W: np.ndarray
    V: np.ndarray
    X: np.ndarray
    Y: np.ndarray
    trained_layers: str
    final_time: float
    degenerate: bool


def _generic_rows(rng, N, d0):
    X = rng.normal(size=(N, d0))
    return X / np.linalg.norm(X, axis=1, keepdims=True) if rng.random() < 0.5 else X


def _degenerate_rows(rng, N, d0):
    """Few directions, each of them taken by several rows, of either orientation and of any length; zero rows."""
    integer = rng.random() < 0.5
    num_directions = rng.integers(1, N + 1)
    directions = rng.integers(-2, 3, (num_directions, d0)).astype(float) if integer else rng.normal(size=(N, d0))
    X = directions[rng.integers(0, num_directions, N)]
    kind = rng.integers(0, 4)
    if kind == 1:  # Antiparallel.
        X *= rng.choice([-1.0, 1.0], (N, 1))
    elif kind == 2:  # Either orientation, other lengths; powers of two keep integers' products exact, others do not.
        X *= rng.choice([-2.0, -1.0, -0.5, 0.3, 1.0, 3.0], (N, 1))
    if rng.random() < 0.3:
        X[rng.random(N) < 0.3] = 0
    return X


def _onto_kinks(rng, W, V, X):
    """Some neurons start on kinks of theirs, at 0, or without an output weight."""
    W, V = W.copy(), V.copy()
    d0, d1 = W.shape
    for j in range(d1):
        kind = rng.integers(0, 6)
        if kind <= 1 and d0 > 1:
            rows = X[rng.choice(len(X), rng.integers(1, d0), replace=len(X) < d0)]
            rows = rows[np.linalg.norm(rows, axis=1) > 0]
            for _ in range(2):  # The second time takes what rounding left.
                W[:, j] -= np.linalg.pinv(rows) @ (rows @ W[:, j])
        elif kind == 2:
            W[:, j] = 0
        elif kind == 3:
            V[j] = 0
    return W, V


def case(seed: int, degenerate: bool | None = None) -> Case:
    """The problem of a seed: N <= 12, d0 <= 4, d1 <= 5, d2 <= 2. Seeds that are odd give degenerate ones
    unless told.
    """
    rng = np.random.default_rng([12, seed])
    degenerate = bool(seed % 2) if degenerate is None else degenerate
    N, d0, d1 = (int(rng.integers(1, most + 1)) for most in (12, 4, 5))
    d2 = 1 if rng.random() < 0.7 else 2
    X = _degenerate_rows(rng, N, d0) if degenerate else _generic_rows(rng, N, d0)
    Y = rng.integers(-3, 4, (N, d2)).astype(float) if rng.random() < 0.5 else 2 * rng.normal(size=(N, d2))
    integer_start = degenerate and rng.random() < 0.3
    W = rng.integers(-2, 3, (d0, d1)).astype(float) if integer_start else rng.normal(size=(d0, d1))
    trained_layers = "hidden" if rng.random() < 0.5 else "both"
    if integer_start or (trained_layers == "hidden" and rng.random() < 0.5):
        V = rng.choice([-1.0, 1.0], (d1, d2))
    else:
        V = rng.normal(size=(d1, d2))
    if degenerate and rng.random() < 0.6:
        W, V = _onto_kinks(rng, W, V, X)
    # The largest rates of all problems stay comparable: an explicit step of 1e-3 resolves them.
    X = X / max(1.0, np.linalg.norm(X, 2) / 3) if not degenerate else X * 0.5 ** max(0, np.ceil(np.log2(_size(X) / 3)))
    return Case(W, V, X, Y, trained_layers, float(rng.choice([2.0, 3.0])), degenerate)


def _size(X):
    return max(float(np.linalg.norm(X, 2)), 1e-9)


def cases(count: int, first: int = 0) -> list[Case]:
    """The problems of the seeds first, first + 1, ..."""
    return [case(seed) for seed in range(first, first + count)]
