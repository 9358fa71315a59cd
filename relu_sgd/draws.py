"""Random matrices that depend on their key and their true shape alone, however they are padded.

A sweep pads networks of different sizes to one shape, so that one compiled program trains them all. A network must
still be the one that its size and seed say. JAX's partitionable threefry makes flat draws prefix-stable:
`jax.random.normal(key, (M,))[:n]` equals `jax.random.normal(key, (n,))`. Drawing flat and reading entry i * columns + j
therefore puts `jax.random.normal(key, (rows, columns))` inside the padded array, with rows and columns traced.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key, ScalarLike

__all__ = ["balanced_signs", "normal", "sum_of_squares", "uniform"]

# A size is an int, or a traced integer when the padded size is given.
Shape = tuple[int | Array, int | Array]
PaddedShape = tuple[int | None, int | None]


def _resolve(shape: Shape, padded_shape: PaddedShape) -> tuple[int, int]:
    """The static shape of the result, after checking what is known when the function is traced."""
    resolved = []
    for size, padded in zip(shape, padded_shape, strict=True):
        if isinstance(size, jax.core.Tracer):
            if padded is None:
                raise ValueError("a traced size needs a padded size")
            resolved.append(padded)
            continue
        if size < 1 or (padded is not None and padded < size):
            raise ValueError(f"sizes must be positive and padding must not shrink them: got {shape} in {padded_shape}")
        resolved.append(int(size) if padded is None else padded)
    if not jax.config.jax_threefry_partitionable:  # type: ignore[attr-defined]
        raise ValueError("padded draws need jax_threefry_partitionable=True, which makes flat draws prefix-stable")
    return resolved[0], resolved[1]


def _inside(shape: Shape, padded: tuple[int, int]) -> Bool[Array, "padded_rows padded_columns"]:
    return (jnp.arange(padded[0]) < shape[0])[:, None] & (jnp.arange(padded[1]) < shape[1])


def _place(
    draw: Callable[[int], Float[Array, " entries"]], shape: Shape, padded_shape: PaddedShape
) -> Float[Array, "padded_rows padded_columns"]:
    padded = _resolve(shape, padded_shape)
    flat = draw(padded[0] * padded[1])
    index = jnp.arange(padded[0])[:, None] * shape[1] + jnp.arange(padded[1])
    return jnp.where(_inside(shape, padded), flat.at[index].get(mode="clip"), 0)


def normal(
    key: Key[Array, ""], shape: Shape, padded_shape: PaddedShape = (None, None)
) -> Float[Array, "padded_rows padded_columns"]:
    """`jax.random.normal(key, shape)`, in the leading block of an array of zeros of shape `padded_shape`.

    Raises:
      ValueError: a size is not positive, a padded size is less than the true one or is missing for a traced one, or
        flat draws are not prefix-stable because jax_threefry_partitionable is off.
    """
    return _place(lambda entries: jax.random.normal(key, (entries,)), shape, padded_shape)


def uniform(
    key: Key[Array, ""],
    shape: Shape,
    padded_shape: PaddedShape = (None, None),
    low: ScalarLike = 0.0,
    high: ScalarLike = 1.0,
) -> Float[Array, "padded_rows padded_columns"]:
    """`low + (high - low) jax.random.uniform(key, shape)`, padded with zeros as in `normal`; the same errors."""
    low, high = jnp.asarray(low), jnp.asarray(high)
    return _place(lambda entries: low + (high - low) * jax.random.uniform(key, (entries,)), shape, padded_shape)


def balanced_signs(
    key: Key[Array, ""], shape: Shape, padded_shape: PaddedShape = (None, None)
) -> Float[Array, "padded_rows padded_columns"]:
    """In every column a uniformly random half of the rows is +1 and the rest -1; padded with zeros as in `normal`.

    With an odd number of rows the extra one is -1. The same errors.
    """
    padded = _resolve(shape, padded_shape)
    inside = _inside(shape, padded)
    # Padding sorts last, so the ranks of the true rows are what they would be without it.
    order = jnp.where(inside, uniform(key, shape, padded_shape), jnp.inf)
    rank = jnp.argsort(jnp.argsort(order, axis=0), axis=0)
    return jnp.where(inside, jnp.where(rank < shape[0] // 2, 1.0, -1.0), 0.0)


def sum_of_squares(rows: Float[Array, "N padded_columns"]) -> Float[Array, " N"]:
    """The squared norm of every row, added column by column, so that zero columns at the end change no bit of it."""
    return jax.lax.fori_loop(
        0, rows.shape[1], lambda j, total: total + rows[:, j] ** 2, jnp.zeros(rows.shape[0], rows.dtype)
    )
