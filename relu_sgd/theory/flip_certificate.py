"""Theorem D, the flip certificate: V = v fixed, d2 = 1, the hidden layer trained by the inclusion; only signs that
can flip are given up.

It may hold with fewer neurons than samples, and so it speaks about the end of a training run. The proof is in
docs/conditions.md.

K_0 = (X X^T) o (R_0 dg(v)^2 R_0^T), with R_0 the pattern of z = X W_0 (0 at a kink), and lambda_0 its least
eigenvalue. rho(t) is the integral of sigma ||E||. A neuron moves by at most |v_j| rho, so that only F(rho) = {(i, j):
|z_ij| <= ||x_i|| |v_j| rho} can get another sign than at the start.
"""

import bisect
import dataclasses
import functools
import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool

from relu_sgd.network import Params
from relu_sgd.problem import Problem
from relu_sgd.theory._start_arrays import start_arrays
from relu_sgd.theory.gram import operator_norm

__all__ = ["FlipCertificate", "flip_certificate"]


@dataclasses.dataclass(frozen=True)
class FlipCertificate:
    """What Theorem D finds at theta, and what it promises. Neurons are measured in units of |v_j|.

    Attributes:
      error_norm: ||E(0)||.
      lambda_0: lambda_min(K_0) less what rounding may have added, at least 0.
      reach: the largest error norm that is certified: (integral of lambda over [0, end]) / sigma(end), end where
        lambda gets to 0, or before it.
      radius: rho_e: neuron j moves by less than |v_j| rho_e. inf where nothing is promised.
      least_lambda: lambda up to rho_e; 0 where nothing is promised.
      flips: the signs that may change, N x d1; all where nothing is promised.
      output_norm: ||v||.
    """

    error_norm: float
    lambda_0: float
    reach: float
    radius: float
    least_lambda: float
    flips: Bool[np.ndarray, "N d1"]
    output_norm: float

    @property
    def left_side(self) -> float:
        """||E(0)|| / reach, at most 1 where Theorem D holds; inf where reach is 0, but for E(0) = 0."""
        if self.error_norm == 0:
            return 0.0
        return self.error_norm / self.reach if self.reach > 0 else math.inf

    @property
    def holds(self) -> bool:
        """Whether Theorem D promises convergence."""
        return math.isfinite(self.radius)

    @property
    def rate(self) -> float:
        """2 lambda(rho_e): L(t) <= L(0) exp(-rate t)."""
        return 2 * self.least_lambda

    @property
    def path(self) -> float:
        """The longest path of W: the smaller of ||v|| rho_e and ||E(0)|| / sqrt(lambda(rho_e)). inf where nothing is
        promised.
        """
        if self.error_norm == 0:
            return 0.0
        return (
            min(self.output_norm * self.radius, self.error_norm / math.sqrt(self.least_lambda))
            if self.holds
            else math.inf
        )


class _Flips:
    """lambda(rho) and sigma(rho) of one theta, for any set of signs that may flip."""

    def __init__(self, X: np.ndarray, z: np.ndarray, v: np.ndarray) -> None:
        self.X, self.active, self.v, self.squared = X, z > 0, v, v**2
        self.products = X @ X.T
        self.norm = operator_norm(X)
        lengths = np.sqrt(np.diag(self.products))
        with np.errstate(divide="ignore", invalid="ignore"):
            needed = np.abs(z) / (lengths[:, None] * np.abs(v))
        # A sample of zeros and a neuron without output never flip: x_i W_j stays, or the neuron does.
        # ||X_A||_F^2 is at most the rank of X_A times ||X_A||^2.
        seen = self.active[:, v != 0]
        self.least_sigma = math.sqrt(
            float((lengths**2 @ seen / np.maximum(np.minimum(seen.sum(axis=0), X.shape[1]), 1)).max(initial=0.0))
        )
        self.needed = np.where((lengths[:, None] > 0) & (v != 0), needed, np.inf)
        start = self._gram(self.active)
        self.rounding = sum(z.shape) * np.finfo(float).eps * float(np.trace(start))
        self.lambda_0 = max(float(np.linalg.eigvalsh(start)[0]) - self.rounding, 0.0)

    def _gram(self, pattern: np.ndarray) -> np.ndarray:
        """(X X^T) o (pattern dg(v)^2 pattern^T)."""
        weighted = pattern * np.abs(self.v)
        return self.products * (weighted @ weighted.T)

    def least_eigenvalue(self, flips: Bool[np.ndarray, "N d1"]) -> float:
        """lambda(rho) = max(lambda_0 - ||B||, (sqrt(lambda_0) - beta)_+^2), at least 0."""
        known = self.active & ~flips
        either = self.active | flips
        # max(F_i, F_k) m_i m_k is m_i m_k without the pairs in which neither sample can flip.
        B = np.abs(self._gram(either) - self._gram(known))
        by_entries = self.lambda_0 - (float(np.linalg.eigvalsh(B)[-1]) + self.rounding if flips.any() else 0.0)
        # ||X restricted to F_j||^2 is at most the largest row sum of |X X^T| restricted, and at most ||X||^2.
        rows = np.where(flips, np.abs(self.products) @ flips.astype(float), 0.0).max(axis=0)
        beta = math.sqrt(float((flips.astype(float) @ (self.squared * np.minimum(rows, self.norm**2))).max()))
        return max(by_entries, max(math.sqrt(self.lambda_0) - beta, 0.0) ** 2)

    def sigma(self, flips: Bool[np.ndarray, "N d1"], chunk: int = 256) -> float:
        """max_j ||X restricted to the samples that are active on neuron j, or may become so||, over neurons with an
        output.
        """
        samples = (self.active | flips)[:, self.squared > 0].T
        # Many neurons see the same samples where there are few of those.
        samples = np.unique(samples, axis=0)
        largest = 0.0
        for start in range(0, len(samples), chunk):
            part = samples[start : start + chunk].astype(float)
            if self.X.shape[1] <= len(self.X):
                grams = np.einsum("ni,ia,ib->nab", part, self.X, self.X, optimize=True)
            else:
                grams = part[:, :, None] * part[:, None, :] * self.products
            largest = max(largest, float(np.linalg.eigvalsh(grams)[:, -1].max(initial=0.0)))
        return math.sqrt(largest)


def flip_certificate(params: Params, problem: Problem, *, max_evaluations: int = 32) -> FlipCertificate:
    """Theorem D at theta. sigma is taken at the end of the interval over which lambda is integrated, which is never
    better than Theorem D allows.

    lambda is a step function of rho with a jump wherever a sign comes into reach. Its integral is exact where there
    are at most `max_evaluations` jumps, and otherwise a lower sum over so many pieces, once on all of it and once
    more on what was needed.

    Cost: an evaluation is three products of N x d1 and d1 x N and two eigenvalue problems N x N. Memory: some N x d1
    arrays.

    Args:
      params: theta, with d2 = 1.
      problem: the training set.
      max_evaluations: the most evaluations of lambda in each of the two passes.

    Raises:
      ValueError: the shapes do not fit, an array is empty, an entry is not finite, d2 is not 1, or max_evaluations is
        less than 1.
    """
    W, V, X, Y = start_arrays(params, problem)
    if V.shape[1] != 1:
        raise ValueError(f"Theorem D is for d2 = 1, got d2 = {V.shape[1]}")
    if max_evaluations < 1:
        raise ValueError(f"max_evaluations must be at least 1, got {max_evaluations}")
    v, z = V[:, 0], X @ W
    error = float(np.linalg.norm(Y[:, 0] - np.maximum(z, 0) @ v))
    at = _Flips(X, z, v)
    output_norm = float(np.linalg.norm(v))
    if error == 0:
        return FlipCertificate(0.0, at.lambda_0, math.inf, 0.0, at.lambda_0, np.zeros(z.shape, bool), output_norm)
    first = _pass(at, error, math.inf, max_evaluations)
    reach, radius = first.reach, first.radius
    if math.isfinite(radius):
        radius = min(radius, _pass(at, error, first.end, max_evaluations).radius)
    flips = at.needed < radius if math.isfinite(radius) else np.ones(z.shape, bool)
    least = at.least_eigenvalue(flips) if math.isfinite(radius) else 0.0
    return FlipCertificate(error, at.lambda_0, reach, radius, least, flips, output_norm)


class _Pass(NamedTuple):
    reach: float
    radius: float
    end: float


def _pass(at: _Flips, error: float, end: float, max_evaluations: int) -> _Pass:
    """The reach, rho_e and the end for which it was found, from a lower sum of lambda over [0, end] in at most so
    many pieces.
    """
    jumps = np.unique(at.needed[(at.needed > 0) & (at.needed <= end)])
    jumps = jumps[np.isfinite(jumps)]
    # lambda is constant up to the next jump, with all that is in reach before it.
    before = functools.cache(lambda index: at.least_eigenvalue(at.needed < jumps[index]))
    # How many of the pieces between jumps have a positive lambda, which falls from each to the next.
    num_positive = bisect.bisect_left(range(len(jumps)), True, key=lambda index: before(index) <= 0)
    if num_positive == 0:
        return _Pass(0.0, math.inf, math.inf)
    pieces = np.arange(num_positive)
    if num_positive > max_evaluations:
        pieces = np.unique(np.linspace(0, num_positive - 1, max_evaluations).round().astype(int))
    values = np.array([before(index) for index in pieces.tolist()])
    edges = np.concatenate([[0.0], jumps[pieces]])
    integral = np.concatenate([[0.0], np.cumsum(np.diff(edges) * values)])
    sigma = functools.cache(lambda index: at.sigma(at.needed < edges[index]))
    last = len(edges) - 1
    reach = float(integral[last]) / at.norm
    # sigma grows with rho and is costly: it is looked at only where the least that it can be leaves hope.
    for index in map(int, np.flatnonzero(integral >= at.least_sigma * error)):
        reach = max(reach, float(integral[index]) / sigma(index))
        if integral[index] >= sigma(index) * error:
            radius = float(np.interp(sigma(index) * error, integral[: index + 1], edges[: index + 1]))
            return _Pass(reach, radius, float(edges[index]))
    return _Pass(reach, math.inf, math.inf)
