"""Appendix H: norms of products."""

import itertools

import numpy as np

from relu_sgd.theory import hidden_layer
from sweeps.reproduction.statements.check import Check, Checks, Outcome, at_most, combined, equal

__all__ = ["CHECKS"]


def product_bound(factors: list[np.ndarray]) -> float:
    """(55): the least over j of ||A_j||_F times the operator norms of the others."""
    operator = np.array([np.linalg.norm(factor, 2) for factor in factors])
    frobenius = np.array([np.linalg.norm(factor) for factor in factors])
    return float(min(frobenius[j] * np.prod(np.delete(operator, j)) for j in range(len(factors))))


def lemma_h1(rng: np.random.Generator) -> Outcome:
    """Random factors; of rank one, where the bound is attained."""
    p, q, r, s = rng.integers(1, 6, 4)
    factors = [rng.normal(size=shape) for shape in ((p, q), (q, r), (r, s))]
    ends = [rng.normal(size=size) for size in (p, q, r, s)]
    lines = [np.outer(one, other) for one, other in itertools.pairwise(ends)]
    return combined(*(at_most(np.linalg.norm(a @ b @ c), product_bound([a, b, c])) for a, b, c in (factors, lines)))


def _h2_problem(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    p, N, d1 = rng.integers(1, 6, 3)
    return rng.normal(size=(p, N)), rng.normal(size=N), rng.normal(size=(N, d1))


def _khatri_rao_norm(A: np.ndarray, x: np.ndarray, B: np.ndarray) -> float:
    """||(A^T * B)^T x||_2, from the Khatri-Rao product itself."""
    product = np.einsum("pi,ij->ipj", A, B).reshape(len(x), -1)
    return float(np.linalg.norm(product.T @ x))


def lemma_h2(rng: np.random.Generator) -> Outcome:
    """With the rows of B; a single sample attains it."""
    A, x, B = _h2_problem(rng)
    outcomes = []
    for part in (slice(None), slice(0, 1)):
        left, right = hidden_layer.lemma_h2_bound(A[:, part], x[part], B[part])
        value = _khatri_rao_norm(A[:, part], x[part], B[part])
        outcomes += [at_most(value, right), equal(value, left)]
    return combined(*outcomes)


def lemma_h2_printed(rng: np.random.Generator) -> Outcome:
    """With the columns of B, as (56) is printed: one sample and several neurons."""
    d1 = int(rng.integers(4, 12))
    A, x, B = rng.normal(size=(2, 1)), rng.normal(size=1), 1 + rng.uniform(size=(1, d1))
    columns = np.linalg.norm(A, 2) * np.linalg.norm(x) * np.linalg.norm(B, axis=0).max()
    return at_most(_khatri_rao_norm(A, x, B), columns)


def _last_display(rng: np.random.Generator, power: int) -> Outcome:
    """||dg(x) B||_F^2 as a sum of powers of x_i times squared norms of the rows of B, x in (0, 1/2)."""
    _, x, B = _h2_problem(rng)
    x = rng.uniform(0.05, 0.5, size=x.shape)
    squares = np.linalg.norm(B, axis=1) ** 2
    return equal(np.linalg.norm(x[:, None] * B) ** 2, float(x**power @ squares))


CHECKS: Checks = {
    "lemma-h1": Check(lemma_h1),
    "lemma-h2": Check(lemma_h2_printed),
    "lemma-h2-repaired": Check(lemma_h2),
    "lemma-h2-last-display": Check(lambda rng: _last_display(rng, 1), is_arithmetic=True),
    "lemma-h2-last-display-repaired": Check(lambda rng: _last_display(rng, 2), is_arithmetic=True),
}
