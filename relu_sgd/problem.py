"""Training sets, and the laws that they are drawn from (Section 6, Assumptions 4.1 and G.1)."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Key, ScalarLike

from relu_sgd import _draws as draws
from relu_sgd._checks import whole_number

__all__ = [
    "Problem",
    "balanced_labels",
    "cube_rows",
    "gaussian_labels",
    "random_sign_labels",
    "sphere_rows",
]


class Problem(NamedTuple):
    """A training set.

    Attributes:
      X: N x d0, an input in every row.
      Y: N x d2, a label in every row.
    """

    X: Float[Array, "N d0"]
    Y: Float[Array, "N d2"]


def _normalize_rows(rows: Float[Array, "N padded_d0"], radius: ScalarLike) -> Float[Array, "N padded_d0"]:
    # Compilers make an approximate rsqrt of 1 / sqrt(x), and not of sqrt(1 / x).
    return rows * jnp.sqrt(1 / draws.sum_of_squares(rows))[:, None] * jnp.asarray(radius, rows.dtype)


def sphere_rows(
    key: Key[Array, ""], num_samples: int, d0: int | Array, radius: ScalarLike = 1.0, *, padded_d0: int | None = None
) -> Float[Array, "N padded_d0"]:
    """Independent rows, uniform on the sphere of the given radius in R^d0.

    Radius 1 is the law of Section 6 and Assumption G.1; radius sqrt(d0) is one of those that Assumption 4.1 allows.

    Args:
      key: random key; the draw depends on it and on (N, d0) alone.
      num_samples: N.
      d0: input dimension; it may be traced when `padded_d0` is given.
      radius: Euclidean norm of every row.
      padded_d0: number of columns of the result; those from d0 on are zero.

    Raises:
      TypeError: the key is none.
      ValueError: a size is no whole number from 1 on, or `padded_d0` is less than d0.
    """
    return _normalize_rows(draws.normal(key, (num_samples, d0), (None, padded_d0)), radius)


def cube_rows(
    key: Key[Array, ""], num_samples: int, d0: int | Array, radius: ScalarLike = 1.0, *, padded_d0: int | None = None
) -> Float[Array, "N padded_d0"]:
    """Independent rows, uniform in the cube [-1, 1]^d0 and then scaled to the given norm.

    The law of the authors' released code. It is not invariant under rotations: it favours the cube's diagonals.
    Arguments, result and errors as for `sphere_rows`.
    """
    return _normalize_rows(draws.uniform(key, (num_samples, d0), (None, padded_d0)), radius)


def balanced_labels(key: Key[Array, ""], num_samples: int, d2: int = 1) -> Float[Array, "N d2"]:
    """In every column, a uniformly random half of the labels is +1 and the other half is -1 (Section 6).

    Raises:
      TypeError: the key is none.
      ValueError: N is odd, or a size is no whole number from 1 on.
    """
    if whole_number("num_samples", num_samples) % 2:
        raise ValueError(f"balanced labels need an even number of samples, got N = {num_samples}")
    return draws.balanced_signs(key, (num_samples, d2))


def random_sign_labels(key: Key[Array, ""], num_samples: int, d2: int = 1) -> Float[Array, "N d2"]:
    """Independent labels, +1 or -1 with probability 1/2 each (the authors' released code)."""
    return draws.signs(key, (num_samples, d2))


def gaussian_labels(key: Key[Array, ""], num_samples: int, d2: int = 1) -> Float[Array, "N d2"]:
    """Independent standard normal labels."""
    return draws.normal(key, (num_samples, d2))
