"""The Clarke subdifferential itself, one neuron at a time, for small numbers of kinks.

-d/dW_j L is the convex hull of the gradients over the activation patterns that a small move of W_j can produce, that
is, over the cells of the arrangement of hyperplanes {u : X_i u = 0} (Rademacher's form of the definition (20)). Lemma
A.4's set allows every pattern. Here the patterns are enumerated, on the host, in NumPy and SciPy.
"""

import dataclasses
import itertools
import math

import numpy as np
from jaxtyping import Bool, Float
from scipy.optimize import nnls

from relu_sgd._normalization import loss_scale
from relu_sgd.clarke._product_set import kink_sides
from relu_sgd.network import Normalization, Params
from relu_sgd.problem import Problem

__all__ = ["ClarkeHull", "achievable_patterns", "clarke_hull", "rays"]

# Products of unit vectors up to this count as 0, and singular values of rows of them.
_PARALLEL = 1e-9
_MOST_RAYS = 20_000


def rays(units: Float[np.ndarray, "K d0"]) -> Float[np.ndarray, "rays d0"] | None:
    """Unit vectors on all one-dimensional faces of an arrangement within its span; None when they are too many."""
    _, sizes, basis = np.linalg.svd(units, full_matrices=False)
    rank = int(np.sum(sizes > _PARALLEL * sizes[0]))
    basis = basis[:rank]
    if math.comb(len(units), rank - 1) > _MOST_RAYS:
        return None
    if rank == 1:
        return np.concatenate([basis, -basis])
    subsets = np.array(list(itertools.combinations(range(len(units)), rank - 1)), int).reshape(-1, rank - 1)
    _, sizes, vectors = np.linalg.svd((units @ basis.T)[subsets])
    directions = vectors[np.all(sizes > _PARALLEL, axis=1), -1] @ basis
    return np.concatenate([directions, -directions])


def achievable_patterns(rows: Float[np.ndarray, "K d0"], max_kinks: int = 16) -> Bool[np.ndarray, "patterns K"]:
    """Which of the rows a vector u can have positive products with, when it has product 0 with none.

    Every such cell of the arrangement of the hyperplanes {u : X_i u = 0} has a ray on its boundary, and next to a ray
    there lie the cells of the rows that it has product 0 with.

    Args:
      rows: none of them 0.
      max_kinks: the number of patterns can grow like K^d0, up to 2^K: more rows than this are refused.

    Raises:
      ValueError: a row is 0, or there are more than `max_kinks`, or far too many cells.
    """
    rows = np.asarray(rows, float)
    if len(rows) > max_kinks:
        raise ValueError(f"{len(rows)} kinks are more than max_kinks = {max_kinks}")
    lengths = np.linalg.norm(rows, axis=1)
    if not np.all(lengths > 0):
        raise ValueError(f"row {int(np.argmin(lengths))} is 0 and has no kink")
    return _cells(rows / lengths[:, None]) > 0


def _cells(units: np.ndarray) -> np.ndarray:
    """The sign vectors of the arrangement's cells."""
    if np.linalg.matrix_rank(units, tol=_PARALLEL) == len(units):
        return np.array(list(itertools.product((-1, 1), repeat=len(units))), int)
    blocks = []
    directions = rays(units)
    if directions is None:
        raise ValueError(f"{len(units)} kinks have too many rays")
    for products in np.unique(
        np.sign(np.where(np.abs(directions @ units.T) <= _PARALLEL, 0, directions @ units.T)), axis=0
    ):
        at = products == 0
        near = _cells(units[at])
        cells = np.repeat(products[None], len(near), axis=0)
        cells[:, at] = near
        blocks.append(cells)
    return np.unique(np.concatenate(blocks), axis=0)


@dataclasses.dataclass(frozen=True)
class ClarkeHull:
    """d/dW_j L for one neuron: the convex hull of finitely many gradients.

    Attributes:
      vertices: patterns x d0, the gradient of every achievable pattern (their hull's vertices are among them).
      patterns: patterns x K, the slopes at the kinks.
      samples: K, which samples have the kinks.
    """

    vertices: Float[np.ndarray, "patterns d0"]
    patterns: Bool[np.ndarray, "patterns K"]
    samples: np.ndarray

    def weights(self, point: Float[np.ndarray, " d0"]) -> Float[np.ndarray, " patterns"]:
        """The vertices' weights, not negative and with sum 1, for the point of the hull that is nearest to a point."""
        # Convex weights by non-negative least squares, with their sum held at 1 by a heavy row.
        offsets = self.vertices - np.asarray(point, float)
        scale = max(np.abs(offsets).max(), np.finfo(float).tiny)
        heavy = 1e6
        system = np.vstack([offsets.T / scale, np.full(len(offsets), heavy)])
        weights, _ = nnls(system, np.append(np.zeros(offsets.shape[1]), heavy), maxiter=1000 * len(offsets))
        return weights / weights.sum()

    def nearest(self, point: Float[np.ndarray, " d0"]) -> Float[np.ndarray, " d0"]:
        """The point of the hull that is nearest to a point."""
        return self.weights(point) @ self.vertices

    def distance(self, point: Float[np.ndarray, " d0"]) -> float:
        """The distance from a point to the hull."""
        return float(np.linalg.norm(self.nearest(point) - point))

    def contains(self, point: Float[np.ndarray, " d0"], tolerance: float = 1e-9) -> bool:
        """Whether a point lies in the hull, up to a tolerance relative to the size of the vertices."""
        return self.distance(point) <= tolerance * max(1.0, float(np.abs(self.vertices).max()))

    def support(self, direction: Float[np.ndarray, " d0"]) -> float:
        """Max over g in the hull of <g, direction>: Clarke's directional derivative of L with respect to W_j."""
        return float((self.vertices @ direction).max())


def clarke_hull(
    params: Params,
    problem: Problem,
    neuron: int,
    *,
    normalization: Normalization = "half_sum",
    tolerance: float | None = None,
    max_kinks: int = 16,
) -> ClarkeHull:
    """The neuron's part of the Clarke subdifferential, whether or not Lemma A.4's product set is larger.

    Args:
      params, problem: as for `clarke.subdifferential`; d2 may be any.
      neuron: j, from 0.
      normalization, tolerance: as for `clarke.subdifferential`.
      max_kinks: see `achievable_patterns`.

    Raises:
      ValueError: the neuron does not exist, or has more kinks than `max_kinks`.
    """
    sides = np.asarray(kink_sides(params, problem, tolerance))
    W, V, X, Y = (np.asarray(array, float) for array in (*params, *problem))
    if not 0 <= neuron < W.shape[1]:
        raise ValueError(f"neuron {neuron} is not one of {W.shape[1]}")
    scale = loss_scale(Y.shape[0], Y.shape[1], normalization)
    c = (Y - np.maximum(X @ W, 0) @ V) @ V[neuron]
    side = sides[:, neuron]
    samples = np.flatnonzero(side == 0)
    patterns = achievable_patterns(X[samples], max_kinks)
    fixed = -scale * X[side > 0].T @ c[side > 0]
    vertices = fixed - scale * (patterns * c[samples]) @ X[samples]
    return ClarkeHull(vertices, patterns, samples)
