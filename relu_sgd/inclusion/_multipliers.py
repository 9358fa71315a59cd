"""The slopes of a neuron's kinks, all at once: each depends on its own speed, and through X X^T on all others.

What `sliding` solves twice a step. Where the relation between slope and speed does not decrease and c_ij < 0 the
equations are monotone, with one speed as their solution; the slopes too are unique where the rows are independent.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

__all__ = ["Kinks", "compact", "solve_slopes"]

# So many Newton steps before the first Gauss-Seidel sweep.
_FIRST_NEWTON_STEPS, _MAX_ITERATIONS = 6, 60
# Kinks that need no more room than this are solved for in it: most are, in about a quarter of the time that twice the
# room takes.
_SMALL_ROOM = 16


class Kinks(NamedTuple):
    """Some preactivations of every neuron, compacted."""

    samples: Int[Array, "d1 K"]
    present: Bool[Array, "d1 K"]  # Whether there are so many.
    number: Int[Array, ""]  # The largest number of a neuron, which may exceed K.


def compact(wanted: Bool[Array, "N d1"], room: int) -> Kinks:
    """The samples that are wanted of every neuron, as far as there is room.

    By bisection in the running count: sorting takes many times as long on a CPU.
    """
    num_samples, d1 = wanted.shape
    rank = jnp.cumsum(wanted, axis=0, dtype=jnp.int32)
    which = jnp.arange(1, room + 1, dtype=jnp.int32)[None, :]
    neurons = jnp.arange(d1, dtype=jnp.int32)[:, None]
    bits = num_samples.bit_length()

    def halve(k: Array, before: Array) -> Array:
        further = before + jnp.left_shift(1, bits - 1 - k).astype(before.dtype)
        skip = (further <= num_samples) & (rank[jnp.minimum(further, num_samples) - 1, neurons] < which)
        return jnp.where(skip, further, before)

    before = jax.lax.fori_loop(0, bits, halve, jnp.zeros((d1, room), jnp.int32))
    return Kinks(jnp.minimum(before, num_samples - 1), before < num_samples, jnp.max(rank[-1]))


def _per_neuron(matrices: Float[Array, "d1 K K"], vectors: Float[Array, "d1 K"]) -> Float[Array, "d1 K"]:
    return jnp.einsum("jkl,jl->jk", matrices, vectors, precision=jax.lax.Precision.HIGHEST)


def solve_slopes(
    gram: Float[Array, "N N"],
    kinks: Kinks,
    base: Float[Array, "d1 K"],
    c: Float[Array, "d1 K"],
    start: Float[Array, "d1 K"],
    relation: Callable[..., Array],
    data: tuple[Array, ...] = (),
) -> tuple[Float[Array, "d1 K"], Bool[Array, ""]]:
    """Slopes r in [0, 1] that satisfy a relation between slope and speed at every kink.

    The speed of kink k of neuron j is base_jk + sum_l c_jl r_jl <x_k, x_l>. Newton's method from the slopes of the
    step before: the relation is piecewise smooth, and a neuron's equations come down to a positive definite system.
    Where that has not converged after a few steps, which happens where many rows depend on each other, Gauss-Seidel
    sweeps take turns with Newton steps that end at the first bound.

    Args:
      gram: X X^T.
      kinks: which; where absent, the slope is 0.
      base: their speeds with slope 0 at all of them.
      c: c_ij. Where c_ij > 0 the relation may not depend on the speed, or there need not be a solution.
      start: slopes to begin with.
      relation: a function of the speed with own slope 0, the jump c_ij ||x_i||^2 of the speed to slope 1, and `data`:
        the slope, elementwise. It may not decrease with the speed, nor grow faster than the speed over -jump.
      data: d1 x K each, what the relation depends on besides.

    Returns:
      The slopes, and whether the relation holds, to a thousandth of sqrt(eps).
    """
    eps = jnp.finfo(base.dtype).eps
    most_room = kinks.samples.shape[1]

    def in_room(room: int, start: Array, max_iterations: int, sweeps: bool) -> tuple[Array, Array]:
        arrays = (kinks.samples, kinks.present, base, jnp.where(kinks.present, c, 0), *data)
        samples, present, speed, jump_rate, *rest = (array[:, :room] for array in arrays)
        products = jnp.take(gram.ravel(), samples[:, :, None] * gram.shape[0] + samples[:, None, :], mode="clip")
        size = jnp.diagonal(products, axis1=1, axis2=2)
        others = jnp.where(jnp.eye(room, dtype=bool)[None], 0, products)
        jump = jump_rate * size
        attracts = present & (jump_rate < 0)

        def evaluate(slopes: Array) -> tuple[Array, Array]:
            """What the slopes miss of the relation, and its derivative times -jump: 1 where a kink sticks to 0."""
            now = speed + _per_neuron(others, jump_rate * slopes)
            wanted, derivative = jax.jvp(lambda now: relation(now, jump, *rest), (now,), (jnp.ones_like(now),))
            return jnp.where(present, wanted - slopes, 0), jnp.clip(jnp.where(attracts, -derivative * jump, 0), 0, 1)

        def newton(slopes: Array, missed: Array, share: Array, late: Array) -> Array:
            # Later on only what sticks moves, as far as the first bound: like a sweep, that cannot undo what was
            # reached.
            free = ~late | ((share > 1 - jnp.sqrt(eps)) & (slopes > 0) & (slopes < 1))
            missed, share = jnp.where(free, missed, 0), jnp.where(free, share, 0)
            ridge = jnp.where(late, jnp.sqrt(eps), 16 * eps)  # For dependent rows.
            root = jnp.sqrt(share / jnp.where(attracts, size, 1))
            matrix = others * root[:, :, None] * root[:, None, :] + (1 + ridge) * jnp.eye(room, dtype=base.dtype)[None]
            right = root * _per_neuron(others, -jump_rate * missed)
            factor = jax.lax.linalg.cholesky(matrix, symmetrize_input=False)
            pull = jax.lax.linalg.triangular_solve(factor, right[:, :, None], left_side=True, lower=True)
            pull = jax.lax.linalg.triangular_solve(factor, pull, left_side=True, lower=True, transpose_a=True)
            change = missed + root * pull[:, :, 0] / jnp.where(attracts, jump_rate, 1)
            change = jnp.where(jnp.isfinite(change), change, missed)
            left = jnp.where(change > 0, 1 - slopes, slopes) / jnp.where(change == 0, 1, jnp.abs(change))
            reach = jnp.min(jnp.where(change == 0, 1, left), axis=1, keepdims=True)
            return jnp.clip(slopes + jnp.where(late, jnp.minimum(reach, 1), 1) * change, 0, 1)

        def update(k: Array, slopes: Array) -> Array:
            column = lambda array: jax.lax.dynamic_slice_in_dim(array, k, 1, axis=1)
            now = column(speed) + jnp.sum(column(others)[:, 0] * jump_rate * slopes, axis=1, keepdims=True)
            slope = jnp.where(column(present), relation(now, column(jump), *map(column, rest)), 0)
            return jax.lax.dynamic_update_slice_in_dim(slopes, slope, k, axis=1)

        def iterate(carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
            slopes, _, iteration = carry
            missed, share = evaluate(slopes)
            solved = jnp.max(jnp.abs(missed)) <= 1e-3 * jnp.sqrt(eps)
            after = iteration - _FIRST_NEWTON_STEPS
            new = jax.lax.cond(solved, lambda slopes, *_: slopes, newton, slopes, missed, share, after >= 0)
            if sweeps:
                sweeping = (after >= 0) & (after % 2 == 0)
                count = jnp.where(sweeping & ~solved, jnp.minimum(kinks.number, room), 0)
                new = jax.lax.fori_loop(0, count, update, jnp.where(sweeping, slopes, new))
            return new, solved, iteration + 1

        unsolved = lambda carry: ~carry[1] & (carry[2] < max_iterations)
        begin = jnp.where(present, start[:, :room], 0)
        slopes, solved, _ = jax.lax.while_loop(unsolved, iterate, (begin, jnp.bool_(False), jnp.int32(0)))
        return slopes, solved

    if most_room <= _SMALL_ROOM:
        return in_room(most_room, start, _MAX_ITERATIONS, True)

    def small(start: Array) -> tuple[Array, Array]:
        slopes, solved = in_room(_SMALL_ROOM, start, _FIRST_NEWTON_STEPS + 1, False)
        return jnp.pad(slopes, ((0, 0), (0, most_room - _SMALL_ROOM))), solved

    def large(slopes: Array) -> tuple[Array, Array]:
        return in_room(most_room, slopes, _MAX_ITERATIONS, True)

    fits = kinks.number <= _SMALL_ROOM
    slopes, solved = jax.lax.cond(fits, small, lambda slopes: (slopes, jnp.bool_(False)), start)
    return jax.lax.cond(solved, lambda slopes: (slopes, jnp.bool_(True)), large, slopes)
