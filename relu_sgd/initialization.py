"""The laws that the initial weights W0 and V0 are drawn from (Section 6, Assumptions 4.1 and G.1).

Every law takes the key that it consumes, the true sizes and, by keyword, the padded ones; a draw depends on the key
and the true sizes alone, to the bit (see `relu_sgd._draws`). Sizes may be traced where the padded size is given. All
raise TypeError where the key is none, and ValueError where a size is no whole number from 1 on or does not fit its
padded one.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, ScalarLike

from relu_sgd import _draws as draws
from relu_sgd._checks import whole_number

__all__ = [
    "balanced_sign_output",
    "lecun_hidden",
    "lecun_output",
    "normal_hidden",
    "normal_output",
    "shuffled_sign_output",
    "uniform_output",
]

Size = int | Array


def _inverse_root(size: Size) -> Float[Array, ""]:
    """1 / sqrt(size), as sqrt(1 / size), of which compilers make no approximate rsqrt."""
    return jnp.sqrt(1 / jnp.asarray(size, jnp.result_type(float)))


def _magnitude(magnitude: ScalarLike | None, d1: Size) -> Float[Array, ""]:
    return _inverse_root(d1) if magnitude is None else jnp.asarray(magnitude)


def normal_hidden(
    key: Key[Array, ""],
    d0: Size,
    d1: Size,
    standard_deviation: ScalarLike = 1.0,
    *,
    padded_d0: int | None = None,
    padded_d1: int | None = None,
) -> Float[Array, "padded_d0 padded_d1"]:
    """W0 with independent N(0, standard_deviation^2) entries (Section 6 with 1; beta_w of Assumption 4.1)."""
    return jnp.asarray(standard_deviation) * draws.normal(key, (d0, d1), (padded_d0, padded_d1))


def lecun_hidden(
    key: Key[Array, ""], d0: Size, d1: Size, *, padded_d0: int | None = None, padded_d1: int | None = None
) -> Float[Array, "padded_d0 padded_d1"]:
    """W0 with independent N(0, 1/d0) entries (Remark 5.4)."""
    return draws.normal(key, (d0, d1), (padded_d0, padded_d1)) * _inverse_root(d0)


def normal_output(
    key: Key[Array, ""], d1: Size, d2: int, standard_deviation: ScalarLike, *, padded_d1: int | None = None
) -> Float[Array, "padded_d1 d2"]:
    """V0 with independent N(0, standard_deviation^2) entries (beta_v of Assumption 4.1)."""
    return jnp.asarray(standard_deviation) * draws.normal(key, (d1, d2), (padded_d1, None))


def lecun_output(
    key: Key[Array, ""], d1: Size, d2: int = 1, *, padded_d1: int | None = None
) -> Float[Array, "padded_d1 d2"]:
    """V0 with independent N(0, 1/d1) entries (Section 6, both layers trained; Remark 5.4)."""
    return draws.normal(key, (d1, d2), (padded_d1, None)) * _inverse_root(d1)


def uniform_output(
    key: Key[Array, ""], d1: Size, d2: int = 1, *, padded_d1: int | None = None
) -> Float[Array, "padded_d1 d2"]:
    """V0 with independent entries, uniform in (-1/sqrt(d1), 1/sqrt(d1)).

    The released code's law when both layers are trained. Its variance is 1/(3 d1), a third of Section 6's.
    """
    return draws.uniform(key, (d1, d2), (padded_d1, None)) * _inverse_root(d1)


def balanced_sign_output(
    d1: Size, d2: int = 1, *, magnitude: ScalarLike | None = None, padded_d1: int | None = None
) -> Float[Array, "padded_d1 d2"]:
    """V0 fixed: +magnitude in the first half of the rows and -magnitude in the second (Section 6, V not trained).

    Args:
      d1: width; an even number (with an odd one the middle row is -magnitude).
      d2: output dimension.
      magnitude: 1/sqrt(d1) when None, as in Section 6; Assumption G.1 takes ||y|| / sqrt(N d1).
      padded_d1: number of rows of the result; those from d1 on are zero.
    """
    d2 = whole_number("d2", d2)
    if not isinstance(d1, jax.core.Tracer):
        d1 = whole_number("d1", d1)
    index = jnp.arange(d1 if padded_d1 is None else padded_d1)[:, None]
    signs = jnp.where(index < d1 // 2, 1.0, jnp.where(index < d1, -1.0, 0.0))
    return _magnitude(magnitude, d1) * jnp.broadcast_to(signs, (index.size, d2))


def shuffled_sign_output(
    key: Key[Array, ""],
    d1: Size,
    d2: int = 1,
    *,
    magnitude: ScalarLike | None = None,
    padded_d1: int | None = None,
) -> Float[Array, "padded_d1 d2"]:
    """V0 with a uniformly random half of every column +magnitude and the rest -magnitude (the released code).

    As the neurons of W0 are exchangeable, the trained network has the same law as with `balanced_sign_output`.
    Arguments as there.
    """
    signs = draws.balanced_signs(key, (d1, d2), (padded_d1, None))
    return _magnitude(magnitude, d1) * signs
