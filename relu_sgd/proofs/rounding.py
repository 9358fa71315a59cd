"""Proved bounds on the rounding of float64, in a form that a referee can check.

u = 2^-53 and gamma_n = n u / (1 - n u), as in Higham, Accuracy and Stability of Numerical Algorithms, Section 3. What
is assumed of the machine: IEEE 754 doubles, rounding to nearest, and that a matrix product is a sum of the products of
the textbook, in any order, with or without fused multiply-add (true of every BLAS that does not use Strassen's
method). Nothing is assumed of factorizations, solvers and eigenvalues: they propose, and products check what they
proposed.

(R1) For vectors a, b of length n, |fl(a . b) - a . b| <= gamma_n |a| . |b| + n 2^-1075 in any order of summation.
(R2) An expression of nonnegative numbers built from +, *, /, sqrt, in which no path from an input to the result has
     more than k = 10^6 operations, is computed with a relative error of at most gamma_k / (1 - gamma_k) < 2^-32 (every
     rounding multiplies by 1 + d, |d| <= u, and nonnegative terms do not cancel). So `at_least` and `at_most`, which
     move a computed value by 2^-30 of itself, bound the exact one; they also absorb what underflow can do, see (R3).
(R3) Underflow adds at most 2^-1075 to a product. Numbers that enter are at most 2^100 in absolute value (`MAGNITUDE`,
     checked), so in expressions of at most 10^8 products of at most eight such factors its effect is below 2^-1075
     2^27 2^700 < 2^-340, which `at_most` adds (`TINY`).
A number that overflows or is not finite makes every comparison of a proof false, and nothing is proved.
"""

import numpy as np
import scipy.linalg
from jaxtyping import Float

__all__ = [
    "MAGNITUDE",
    "UNIT_ROUNDOFF",
    "at_least",
    "at_most",
    "eigenvalue_bound",
    "frobenius",
    "gamma",
    "singular_value_bound",
    "spectral_norm",
]

UNIT_ROUNDOFF = 2.0**-53
MAGNITUDE = 2.0**100
TINY = 2.0**-340
_SLACK = 2.0**-30


def gamma(n: int) -> float:
    """gamma_n = n u / (1 - n u), rounded up."""
    return n * UNIT_ROUNDOFF / (1 - n * UNIT_ROUNDOFF) * (1 + _SLACK)


def at_most(computed: Float[np.ndarray, "*shape"] | float) -> Float[np.ndarray, "*shape"]:
    """An upper bound of the exact value of an expression of nonnegative numbers, from its computed value: (R2),
    (R3).
    """
    return np.asarray(computed * (1 + _SLACK) + TINY)


def at_least(computed: Float[np.ndarray, "*shape"] | float) -> Float[np.ndarray, "*shape"]:
    """A lower bound of the exact value of an expression of nonnegative numbers, from its computed value: (R2),
    (R3).
    """
    return np.asarray(np.maximum(computed * (1 - _SLACK) - TINY, 0.0))


def frobenius(matrix: Float[np.ndarray, "*shape"]) -> float:
    """An upper bound of ||A||_F."""
    return float(at_most(np.sqrt(np.sum(matrix * matrix))))


def spectral_norm(matrix: Float[np.ndarray, "rows columns"]) -> float:
    """An upper bound of ||A||: ||A||^2 = ||A^T A|| <= ||A^T A||_F, and (R1) for the Gram matrix.

    At most rank(A)^(1/4) times too large, and rounding.
    """
    if matrix.size == 0:
        return 0.0
    small = matrix if matrix.shape[1] <= matrix.shape[0] else matrix.T
    rounding = gamma(len(small)) * frobenius(small) ** 2
    return float(at_most(np.sqrt(frobenius(small.T @ small) + rounding)))


def eigenvalue_bound(computed: Float[np.ndarray, "n n"], error: float) -> float:
    """A lower bound of the least eigenvalue of a symmetric matrix G with ||G - computed|| <= error (operator norm);
    -inf where none is found.

    With any c and any L, G = c I + L L^T + (G - computed) + (computed - c I - L L^T) and L L^T is positive
    semidefinite, so lambda_min(G) >= c - error - ||computed - c I - L L^T||_F. c is a little below a computed
    eigenvalue and L a computed Cholesky factor of computed - c I. The last norm is at most that of the computed matrix
    plus gamma_n ||L||_F^2 for the product, (R1) with || |L| |L|^T ||_F <= ||L||_F^2, plus 3 u (||computed||_F + c
    sqrt(n) + ||fl(L L^T)||_F) for the two subtractions. Symmetry of `computed` is not used: eigenvalues of G are those
    of its symmetric part.
    """
    n = len(computed)
    if n == 0:
        return np.inf
    if not np.all(np.isfinite(computed)):
        return -np.inf
    least = scipy.linalg.eigh(computed, eigvals_only=True, subset_by_index=[0, 0], check_finite=False)[0]
    if least <= 0:
        return -np.inf
    shift = float(least) * (1 - 2.0**-10)
    shifted = computed - shift * np.eye(n)
    try:
        factor = np.tril(scipy.linalg.cholesky(shifted, lower=True, check_finite=False))
    except np.linalg.LinAlgError:
        return -np.inf
    product = factor @ factor.T
    subtractions = 3 * UNIT_ROUNDOFF * (frobenius(computed) + shift * np.sqrt(n) + frobenius(product))
    products = gamma(n) * frobenius(factor) ** 2
    bound = shift - at_most(error + frobenius(shifted - product) + products + subtractions)
    return float(bound) * (1 - _SLACK) if bound > 0 else -np.inf


def singular_value_bound(factors: Float[np.ndarray, "rows d1"], rows: Float[np.ndarray, "rows d0"]) -> float:
    """A lower bound of the least singular value of the matrix whose rows are kron(f_r, x_r); 0 where none is found,
    inf without rows.

    Its Gram matrix is (F F^T) o (X X^T). Entry (r, s) is computed from two inner products and a product: error at most
    gamma_{d0 + d1 + 1} (|f_r| . |f_s|) (|x_r| . |x_s|) <= gamma_{d0 + d1 + 1} p_r p_s, p_r = ||f_r|| ||x_r||, and the
    matrix with entries p_r p_s has Frobenius norm sum of p_r^2.
    """
    if len(rows) == 0:
        return np.inf
    if len(rows) > factors.shape[1] * rows.shape[1]:
        return 0.0
    gram = (factors @ factors.T) * (rows @ rows.T)
    norms = np.sum(factors * factors, axis=1) * np.sum(rows * rows, axis=1)
    error = gamma(factors.shape[1] + rows.shape[1] + 1) * at_most(np.sum(norms))
    return float(at_least(np.sqrt(max(eigenvalue_bound(gram, float(at_most(error))), 0.0))))
