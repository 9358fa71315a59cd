"""Random matrices that depend on their key and their true shape alone, to the bit.

A sweep pads networks of different sizes to one shape, so that one compiled program trains them all. A network must
still be the one that its size and seed say, whatever is compiled around it, and on every instruction set. Compilers
evaluate logarithms and polynomials differently in the vectors and in the remainder of an array, and fuse a product and
a sum, or not. So:

- Entry (i, j) is made of the bits of `fold_in(key, i * columns + j)`, and of nothing else.
- Bits become values by integer arithmetic, of which there is one result. Then come a conversion to floating point and
  operations that IEEE 754 rounds correctly, never a rounded product before a sum, which might be fused.

With threefry keys the values are the same on every machine that follows IEEE 754. In float32 they are made of the first
32 of the 64 bits that make them in float64, so both precisions have the same network, up to rounding.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Key, UInt

from relu_sgd._checks import check_key, whole_number

__all__ = ["VERSION", "balanced_signs", "normal", "signs", "sum_of_squares", "uniform"]

# Another number whenever the values of draws change: results of different ones do not mix.
VERSION = 2

# A size is an int, or a traced integer when the padded size is given.
Shape = tuple[int | Array, int | Array]
PaddedShape = tuple[int | None, int | None]


def _resolve(key: Key[Array, ""], shape: Shape, padded_shape: PaddedShape) -> tuple[int, int]:
    """The static shape of the result, after checking what is known when the function is traced."""
    check_key(key)
    resolved = []
    for size, padded in zip(shape, padded_shape, strict=True):
        if isinstance(size, jax.core.Tracer):
            if padded is None:
                raise ValueError("a traced size needs a padded size")
            resolved.append(padded)
            continue
        size = whole_number("a size", size, 0)
        if size < 1 or (padded is not None and padded < size):
            raise ValueError(f"sizes must be positive and padding must not shrink them: got {shape} in {padded_shape}")
        resolved.append(size if padded is None else padded)
    return resolved[0], resolved[1]


def _inside(shape: Shape, padded: tuple[int, int]) -> Bool[Array, "padded_rows padded_columns"]:
    return (jnp.arange(padded[0]) < shape[0])[:, None] & (jnp.arange(padded[1]) < shape[1])[None, :]


@functools.partial(jax.jit, static_argnames=("padded", "num_bits"))
def _words(
    key: Key[Array, ""], columns: int | Array, padded: tuple[int, int], num_bits: int
) -> UInt[Array, "padded_rows padded_columns"]:
    """Random words of 32 or 64 bits; the former are the upper halves of the latter."""
    i, j = (jnp.arange(size, dtype=jnp.uint32) for size in padded)
    index = i[:, None] * jnp.asarray(columns, jnp.uint32) + j[None, :]
    pairs = jax.random.key_data(jax.vmap(jax.vmap(functools.partial(jax.random.fold_in, key)))(index))
    upper = pairs[..., 0]
    return upper if num_bits == 32 else upper.astype(jnp.uint64) << 32 | pairs[..., 1].astype(jnp.uint64)


def _num_bits() -> int:
    return 64 if jnp.result_type(float) == jnp.float64 else 32


def _to_float(integers: Array, num_binary_places: int) -> Float[Array, "padded_rows padded_columns"]:
    return integers.astype(jnp.result_type(float)) * 2.0**-num_binary_places


# The normal quantile is tabulated in cells: every octave of the tail probability has 32 of them.
CELL_BITS = 5
# -Phi^{-1}(2^-65).
DEEPEST = 9.155293772686072


@functools.cache
def _tail_quantiles(num_bits: int) -> np.ndarray:
    """Taylor coefficients of the tail's quantile x(p) = -Phi^{-1}(p), cell by cell, with alternating signs left out.

    In the cell [p, p + h], with g = h / phi(x), they are P_n(x) g^n / n!, where P_1 = 1 and P_{n+1} = P_n' + n x P_n.
    The cells are walked through from p = 2^-65 towards 1/2, which damps errors; at the start g is known from Mills'
    ratio, by its continued fraction. Nothing but +, -, *, / of Python's numbers is used (its `sum` and `**` depend on
    version and platform), so that all machines have the same table.

    Returns:
      Multiples of 2^-(num_bits - 4), (32 num_bits) x (num_bits / 8 + 1); row 32 k + j is for the cell that begins at
      p = (1 + j/32) 2^-(k+2).
    """
    order = 12
    polynomials = [[1.0]]
    for n in range(1, order):
        last = polynomials[-1]
        derivative = [*(k * last[k] for k in range(1, len(last))), 0.0, 0.0]
        polynomials.append([a + b for a, b in zip(derivative, [0.0, *(n * a for a in last)], strict=True)])
    mills_ratio = 0.0
    for n in range(80, 0, -1):
        mills_ratio = n / (DEEPEST + mills_ratio)
    x, g = DEEPEST, 1 / (DEEPEST + mills_ratio) / 2**CELL_BITS
    table = np.zeros((64, 2**CELL_BITS, num_bits // 8 + 1), np.uint64)
    for octave in reversed(range(64)):
        for cell in range(2**CELL_BITS):
            terms, scale = [x], 1.0
            for n, polynomial in enumerate(polynomials, 1):
                scale *= g / n
                value = 0.0
                for coefficient in reversed(polynomial):
                    value = value * x + coefficient
                terms.append(value * scale)
            table[octave, cell] = [round(term * 2 ** (num_bits - 4)) for term in terms[: table.shape[2]]]
            x = g = 0.0
            for n in reversed(range(1, order + 1)):
                x, g = terms[n] - x, n * terms[n] - g
            x = terms[0] - x
        g *= 2  # Cells are twice as long in the next octave.
    return table[:num_bits].reshape(num_bits * 2**CELL_BITS, -1).astype(f"uint{num_bits}")


def normal(
    key: Key[Array, ""], shape: Shape, padded_shape: PaddedShape = (None, None)
) -> Float[Array, "padded_rows padded_columns"]:
    """Independent N(0, 1) entries in the leading block of an array of zeros of shape `padded_shape`.

    One bit of a word is the sign, and the others are the tail probability, of which the quantile is taken: to 2^-25 in
    float32 and 2^-43 in float64, never 0, and at most 6.34 and 9.16.

    Raises:
      TypeError: the key is none.
      ValueError: a size is no whole number from 1 on, or a padded size is less than the true one or is missing for a
        traced one.
    """
    padded, num_bits = _resolve(key, shape, padded_shape), _num_bits()
    words = _words(key, shape[1], padded, num_bits)
    # The probability is m / 2^(num_bits + 1), m odd: the middle of one of 2^(num_bits - 1) equal parts of (0, 1/2).
    m = words << 1 | 1
    octave = jax.lax.clz(m)
    m <<= octave
    cell = octave << CELL_BITS | (m << 1) >> (num_bits - CELL_BITS)
    within = m << (1 + CELL_BITS)
    table = jnp.asarray(_tail_quantiles(num_bits))
    *coefficients, quantile = (
        table[:, n].at[cell].get(mode="promise_in_bounds") for n in reversed(range(table.shape[1]))
    )
    below = jax.lax.mulhi(within, functools.reduce(lambda total, a: a - jax.lax.mulhi(within, total), coefficients))
    # Next to 0, at p = 1/2, the table's error may be larger than the quantile.
    quantile -= jnp.minimum(below, quantile)
    magnitude = (quantile >> 1 | 1).astype(f"int{num_bits}")
    signed = jnp.where(words >> (num_bits - 1) == 0, magnitude, -magnitude)
    return jnp.where(_inside(shape, padded), _to_float(signed, num_bits - 5), 0)


def uniform(
    key: Key[Array, ""], shape: Shape, padded_shape: PaddedShape = (None, None)
) -> Float[Array, "padded_rows padded_columns"]:
    """Independent entries, uniform in (-1, 1), padded with zeros as in `normal`; the same errors.

    They are the odd multiples of 2^-24 in float32 and 2^-53 in float64, so neither 0 nor 1 in absolute value.
    """
    padded, num_bits = _resolve(key, shape, padded_shape), _num_bits()
    digits = jnp.finfo(jnp.result_type(float)).nmant + 1
    words = _words(key, shape[1], padded, num_bits) >> (num_bits - digits)
    odd = 2 * words.astype(f"int{num_bits}") + (1 - 2**digits)
    return jnp.where(_inside(shape, padded), _to_float(odd, digits), 0)


def signs(
    key: Key[Array, ""], shape: Shape, padded_shape: PaddedShape = (None, None)
) -> Float[Array, "padded_rows padded_columns"]:
    """Independent entries, +1 or -1 with probability 1/2 each, padded with zeros as in `normal`; the same errors."""
    padded = _resolve(key, shape, padded_shape)
    return jnp.where(_inside(shape, padded), jnp.where(_words(key, shape[1], padded, 32) >> 31 == 0, 1.0, -1.0), 0.0)


def balanced_signs(
    key: Key[Array, ""], shape: Shape, padded_shape: PaddedShape = (None, None)
) -> Float[Array, "padded_rows padded_columns"]:
    """In every column a uniformly random half of the rows is +1 and the rest -1; padded with zeros as in `normal`.

    With an odd number of rows the extra one is -1. The same errors.
    """
    padded = _resolve(key, shape, padded_shape)
    inside = _inside(shape, padded)
    # Padding sorts last (of equals the first row comes first), so true rows have the ranks that they have without it.
    order = jnp.where(inside, _words(key, shape[1], padded, 32), jnp.uint32(2**32 - 1))
    rank = jnp.argsort(jnp.argsort(order, axis=0), axis=0)
    return jnp.where(inside, jnp.where(rank < shape[0] // 2, 1.0, -1.0), 0.0)


def sum_of_squares(rows: Float[Array, "N padded_columns"]) -> Float[Array, " N"]:
    """The squared norm of every row, to the bit whatever its zero columns at the end and the compiler.

    It is added column by column. x^2 is taken as h^2 + 2 h (x - h), where h has the first half of x's digits: these
    products are exact, so that it does not matter whether they are fused with the sum, and what is left out is of the
    size of rounding.
    """
    info = jnp.finfo(rows.dtype)
    dropped = info.nmant // 2 + 1
    integer = f"uint{info.bits}"
    mask = np.array(2**info.bits - 2**dropped, integer)
    upper = jax.lax.bitcast_convert_type(jax.lax.bitcast_convert_type(rows, integer) & mask, rows.dtype)
    lower = 2 * (rows - upper)

    def add(j: Array, total: Float[Array, " N"]) -> Float[Array, " N"]:
        return (total + upper[:, j] * upper[:, j]) + upper[:, j] * lower[:, j]

    return jax.lax.fori_loop(0, rows.shape[1], add, jnp.zeros(rows.shape[0], rows.dtype))
