"""Appendix C: the Gram matrix G(X) of relu features of a random neuron, and what bounds its least eigenvalue
lambda(X).
"""

import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from scipy.special import eval_hermitenorm, gammaln

from relu_sgd._checks import finite_arrays, whole_number

__all__ = [
    "GramEstimate",
    "angles",
    "gershgorin_bound",
    "gram",
    "gram_by_sampling",
    "hermite_coefficient",
    "hermite_polynomial",
    "khatri_rao_bound",
    "khatri_rao_gram",
    "least_eigenvalue",
    "operator_norm",
    "truncated_gram",
    "truncation_level",
]

Matrix = Float[np.ndarray, "N d0"]


def _rows(X: Matrix) -> tuple[np.ndarray, np.ndarray]:
    """X in float64 and the norms of its rows.

    Raises:
      ValueError: X is no matrix, is empty, has a row of zeros or an entry that is not finite.
    """
    (X,) = finite_arrays(X=X)
    if X.ndim != 2 or not X.size:
        raise ValueError(f"X must be N x d0 with N, d0 >= 1, got {X.shape}")
    lengths = np.linalg.norm(X, axis=1)
    if not (lengths > 0).all():
        raise ValueError(f"row {int(np.argmin(lengths))} of X of shape {X.shape} is zero")
    return X, lengths


def _cosines(X: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Cosines and sines of the angles between rows."""
    units = X / lengths[:, None]
    cosine = np.clip(units @ units.T, -1, 1)
    np.fill_diagonal(cosine, 1)
    # (1 - c)(1 + c) loses less than 1 - c^2 near angles 0 and pi.
    return cosine, np.sqrt((1 - cosine) * (1 + cosine))


def angles(X: Matrix) -> Float[np.ndarray, "N N"]:
    """The angles between the rows of X, in [0, pi].

    Raises:
      ValueError: as `gram`.
    """
    cosine, sine = _cosines(*_rows(X))
    return np.arctan2(sine, cosine)


def gram(X: Matrix) -> Float[np.ndarray, "N N"]:
    """G(X) = E_w[relu(X w) relu(X w)^T] for w ~ N(0, I), by the arc-cosine kernel of degree 1 (Cho and Saul 2009).

    G_ij = ||x_i|| ||x_j|| (sin t + (pi - t) cos t) / (2 pi), t the angle between x_i and x_j.

    Raises:
      ValueError: X is no matrix, or has a row that is zero or not finite.
    """
    X, lengths = _rows(X)
    cosine, sine = _cosines(X, lengths)
    angle = np.arctan2(sine, cosine)
    return np.outer(lengths, lengths) * (sine + (np.pi - angle) * cosine) / (2 * np.pi)


def least_eigenvalue(symmetric: Float[np.ndarray, "N N"]) -> float:
    """lambda_min of a symmetric matrix. lambda(X) of the paper is that of `gram(X)`.

    Raises:
      ValueError: the matrix is not square, or an entry is not finite.
    """
    (symmetric,) = finite_arrays(symmetric=symmetric)
    if symmetric.ndim != 2 or symmetric.shape[0] != symmetric.shape[1]:
        raise ValueError(f"need a square matrix, got {symmetric.shape}")
    return float(np.linalg.eigvalsh(symmetric)[0])


def operator_norm(X: Matrix) -> float:
    """||X||, the largest singular value, from the smaller of X X^T and X^T X, which is several times faster than a
    decomposition.

    Raises:
      ValueError: an entry is not finite.
    """
    (X,) = finite_arrays(X=X)
    product = X.T @ X if X.shape[0] >= X.shape[1] else X @ X.T
    return math.sqrt(max(float(np.linalg.eigvalsh(product)[-1]), 0.0))


class GramEstimate(NamedTuple):
    """A Monte Carlo estimate of a Gram matrix.

    Attributes:
      mean: N x N.
      standard_error: N x N, of every entry.
    """

    mean: Float[np.ndarray, "N N"]
    standard_error: Float[np.ndarray, "N N"]


def _sampled(X: np.ndarray, num_draws: int, seed: int, level: float) -> GramEstimate:
    num_draws = whole_number("num_draws", num_draws, 2)
    generator = np.random.default_rng(seed)
    first = np.zeros((len(X), len(X)))
    second = np.zeros_like(first)
    for start in range(0, num_draws, 4096):
        size = min(4096, num_draws - start)
        features = np.maximum(X @ generator.standard_normal((X.shape[1], size)), 0)
        features = features[:, np.linalg.norm(features, axis=0) <= level]
        first += features @ features.T
        second += (features**2) @ (features**2).T
    mean = first / num_draws
    variance = np.maximum(second / num_draws - mean**2, 0)
    return GramEstimate(mean, np.sqrt(variance / (num_draws - 1)))


def gram_by_sampling(X: Matrix, num_draws: int, seed: int = 0) -> GramEstimate:
    """G(X) from `num_draws` random neurons, with the standard error of every entry.

    Raises:
      ValueError: as `gram`, or there are fewer than two draws.
    """
    return _sampled(_rows(X)[0], num_draws, seed, np.inf)


def truncation_level(X: Matrix, *, repaired: bool = True, lambda_X: float | None = None) -> float:
    """The level t of (41), at which truncation costs at most half of lambda(X).

    Erratum: (41), t^2 = 4 ||X||^2 max(1, log(12 ||X||^2 / lambda)), comes from the tail bound P(||relu(Xw)|| >= t) <=
    exp(-t^2 / 2 ||X||^2), which forgets the mean of the norm, about sqrt(N d0 / 2). Repaired: t^2 = max(2 ||X||_F^2,
    16 ||X||^2 log(48 ||X||^2 / lambda)).

    Args:
      X: the samples.
      repaired: False for (41) as printed.
      lambda_X: lambda(X), where it is known already.

    Raises:
      ValueError: as `gram`, or lambda(X) is not positive.
    """
    X, _ = _rows(X)
    smallest = least_eigenvalue(gram(X)) if lambda_X is None else lambda_X
    squared = operator_norm(X) ** 2
    if smallest <= 0:
        raise ValueError(f"lambda(X) must be positive, got {smallest:.3g}")
    if repaired:
        return math.sqrt(max(2 * float(np.sum(X**2)), 16 * squared * math.log(48 * squared / smallest)))
    return math.sqrt(4 * squared * max(1.0, math.log(12 * squared / smallest)))


def truncated_gram(X: Matrix, level: float, num_draws: int, seed: int = 0) -> GramEstimate:
    """G_t(X) = E_w[relu(Xw) relu(Xw)^T 1{||relu(Xw)|| <= t}] by Monte Carlo; lambda_t is its least eigenvalue, see
    (42).

    Raises:
      ValueError: as `gram_by_sampling`, or the level is not positive.
    """
    if not level > 0:
        raise ValueError(f"level must be positive, got {level}")
    return _sampled(_rows(X)[0], num_draws, seed, level)


def hermite_polynomial(k: int, z: Float[np.ndarray, "*shape"] | float) -> Float[np.ndarray, "*shape"]:
    """The probabilists' Hermite polynomial h_k of (30), h_{k+1} = z h_k - k h_{k-1}.

    Raises:
      ValueError: k is negative.
    """
    return np.asarray(eval_hermitenorm(whole_number("k", k, 0), np.asarray(z, float)))


def hermite_coefficient(k: int) -> float:
    """mu_k of relu, (31): its coefficient on h_k / sqrt(k!).

    mu_0 = 1 / sqrt(2 pi), mu_1 = 1/2, 0 for odd k >= 3, and (-1)^((k-2)/2) (k-3)!! / sqrt(2 pi k!) for even k >= 2.
    Erratum: (36) is wrong at k = 1. k^2.5 mu_k^2 tends to sqrt(2 / pi) / (2 pi) along even k (Lemma C.2).

    Raises:
      ValueError: k is negative.
    """
    k = whole_number("k", k, 0)
    if k == 0:
        return 1 / math.sqrt(2 * math.pi)
    if k % 2:
        return 0.5 if k == 1 else 0.0
    # (k-3)!! for odd k-3 is (k-2)! / (2^((k-2)/2) ((k-2)/2)!), and 1 at k = 2.
    half = (k - 2) // 2
    logarithm = gammaln(k - 1) - half * math.log(2) - gammaln(half + 1) - 0.5 * gammaln(k + 1)
    return (-1) ** half * math.exp(logarithm) / math.sqrt(2 * math.pi)


def khatri_rao_gram(X: Matrix, r: int) -> Float[np.ndarray, "N N"]:
    """(X^{*r})(X^{*r})^T, the entrywise r-th power of X X^T: the N x d0^r Khatri-Rao power is never formed.

    Raises:
      ValueError: as `gram`, or r is less than 1.
    """
    r = whole_number("r", r)
    X, _ = _rows(X)
    return (X @ X.T) ** r


def khatri_rao_bound(X: Matrix, r: int) -> float:
    """Lemma C.3's lower bound of lambda(X): mu_r^2 lambda_min((X^{*r})(X^{*r})^T) / max_i ||X_i||^(2 (r - 1)).

    Raises:
      ValueError: as `khatri_rao_gram`.
    """
    largest = float(_rows(X)[1].max())
    # Rows of norm at most 1 inside the power, or large r would overflow.
    return hermite_coefficient(r) ** 2 * least_eigenvalue(khatri_rao_gram(X / largest, r)) * largest**2


def gershgorin_bound(X: Matrix, r: int) -> float:
    """(39): lambda_min((X^{*r})(X^{*r})^T) >= min_i ||X_i||^(2r) - N max_{i != j} |<X_i, X_j>|^r.

    With it, Lemma C.3 and (40), the proof of Theorem 4.3 bounds lambda(X) for random rows.

    Raises:
      ValueError: as `khatri_rao_gram`.
    """
    products = np.abs(khatri_rao_gram(X, 1))
    lengths = np.sqrt(np.diag(products)).copy()
    np.fill_diagonal(products, 0)
    return float(lengths.min() ** (2 * r) - len(products) * products.max() ** r)
