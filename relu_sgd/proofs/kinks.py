"""Linear dependence of the rows of X that a neuron has on its kinks, decided exactly."""

import fractions

import numpy as np
import scipy.linalg
from jaxtyping import Bool, Float, Int

__all__ = ["basis", "leaders", "spans"]

_RANK_TOLERANCE = 1e-9


def basis(X: Float[np.ndarray, "N d0"], kinks: Bool[np.ndarray, "N d1"]) -> Bool[np.ndarray, "N d1"]:
    """Of every neuron's kinks, some with rows that look linearly independent and span the others (nothing is proved
    here).
    """
    in_basis = np.zeros_like(kinks)
    for j in np.flatnonzero(kinks.any(axis=0)):
        indices = np.flatnonzero(kinks[:, j])
        norms = np.linalg.norm(X[indices], axis=1)
        indices = indices[norms > 0]
        if len(indices) == 0:
            continue
        _, triangle, order = scipy.linalg.qr((X[indices] / norms[norms > 0, None]).T, mode="economic", pivoting=True)
        rank = int(np.sum(np.abs(np.diag(triangle)) > _RANK_TOLERANCE))
        in_basis[indices[order[:rank]], j] = True
    return in_basis


def _rank(rows: Float[np.ndarray, "rows d0"]) -> int:
    """The rank over the rationals."""
    left = [[fractions.Fraction(float(entry)) for entry in row] for row in rows]
    rank = 0
    for column in range(rows.shape[1]):
        pivot = next((k for k in range(rank, len(left)) if left[k][column]), None)
        if pivot is None:
            continue
        left[rank], left[pivot] = left[pivot], left[rank]
        for k in range(rank + 1, len(left)):
            if left[k][column]:
                ratio = left[k][column] / left[rank][column]
                left[k] = [a - ratio * b for a, b in zip(left[k], left[rank], strict=True)]
        rank += 1
    return rank


def spans(independent: Float[np.ndarray, "rows d0"], others: Float[np.ndarray, "more d0"]) -> bool:
    """Whether every other row is, exactly, a linear combination of rows that are linearly independent.

    Any d0 independent rows span all; rows that are equal or opposite need no elimination.
    """
    if len(independent) == independent.shape[1]:
        return True
    for row in others:
        if not row.any() or np.any(np.all(independent == row, axis=1) | np.all(independent == -row, axis=1)):
            continue
        if _rank(np.vstack([independent, row])) > len(independent):
            return False
    return True


def leaders(
    pattern: Bool[np.ndarray, "N d1"], V: Float[np.ndarray, "d1 d2"], among: Bool[np.ndarray, " d1"]
) -> Int[np.ndarray, " d1"]:
    """For every neuron the first one that has its pattern and an output row exactly parallel to its; -1 for those that
    are not `among` the ones asked about.
    """
    leader = np.full(len(among), -1)
    first: dict[bytes, list[tuple[int, list[fractions.Fraction]]]] = {}
    for j in np.flatnonzero(among):
        row = [fractions.Fraction(float(entry)) for entry in V[j]]
        known = first.setdefault(pattern[:, j].tobytes(), [])
        parallel = (
            k
            for k, other in known
            if all(row[a] * other[b] == row[b] * other[a] for a in range(len(row)) for b in range(a))
        )
        leader[j] = next(parallel, j)
        if leader[j] == j:
            known.append((int(j), row))
    return leader
