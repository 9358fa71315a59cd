"""The nearest point of a zonotope {b + sum_k r_k G_k : r in [0, 1]^K}: least squares in a box.

A primal-dual interior-point method (Mehrotra's predictor and corrector): its few dozen iterations do not depend on how
the generators are conditioned, dependent generators included, so that it can be mapped over many neurons. It ends
about sqrt(eps) away where a coefficient and its multiplier are both 0 (no strict complementarity). An active-set
method, which mostly takes one or two steps from there, goes on to the accuracy of the arithmetic.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

__all__ = ["NearestPoint", "nearest_point"]

_MAX_ITERATIONS = 60
_HIGHEST = jax.lax.Precision.HIGHEST
_dot = functools.partial(jnp.dot, precision=_HIGHEST)


class NearestPoint(NamedTuple):
    """The point of a zonotope that is nearest to the origin.

    Its error is rounding of the numbers at hand, times the condition of the generators whose coefficients lie inside
    (0, 1). Where these are nearly dependent, with a singular value below about eps^(1/4) / 10 of the largest, it may
    be more; `gap` bounds it in any case.

    Attributes:
      point: p = b + sum_k r_k G_k.
      coefficients: r, in [0, 1]; not unique where generators are dependent, while p is.
      gap: the duality gap max over q in the zonotope of <p, p - q>, not negative. It bounds the error: the true
        nearest point p* has ||p - p*||^2 <= gap and ||p*|| >= (||p||^2 - gap) / ||p||.
    """

    point: Float[Array, " d"]
    coefficients: Float[Array, " K"]
    gap: Float[Array, ""]


def _gap(gradient: Float[Array, " K"], r: Float[Array, " K"]) -> Float[Array, ""]:
    return jnp.sum(jnp.maximum(gradient, 0) * r + jnp.maximum(-gradient, 0) * (1 - r))


def nearest_point(base: Float[Array, " d"], generators: Float[Array, "K d"]) -> NearestPoint:
    """Minimises ||base + sum_k r_k generators_k|| over r in [0, 1]^K.

    Pure: jit and vmap work. The cost is a few dozen factorizations of a K x K matrix.

    Args:
      base: b.
      generators: G, one in every row; rows of zeros are allowed and have no effect.

    Raises:
      ValueError: the shapes do not fit each other.
    """
    if base.ndim != 1 or generators.ndim != 2 or generators.shape[1] != base.shape[0]:
        raise ValueError(f"need base: d and generators: K x d, got {base.shape} and {generators.shape}")
    dtype = jnp.result_type(base, generators, float)
    base, generators = base.astype(dtype), generators.astype(dtype)
    num_generators = generators.shape[0]
    if num_generators == 0:
        return NearestPoint(base, jnp.zeros(0, dtype), jnp.zeros((), dtype))
    eps = jnp.finfo(dtype).eps

    scale = jnp.maximum(jnp.linalg.norm(base), jnp.max(jnp.linalg.norm(generators, axis=1)))
    scale = jnp.where(scale > 0, scale, 1)
    b, G = base / scale, generators / scale
    Q = jnp.matmul(G, G.T, precision=_HIGHEST)
    idle = jnp.diag(Q) == 0

    def point(r: Array) -> Array:
        return b + jnp.matmul(r, G, precision=_HIGHEST)

    def gradient_at(r: Array) -> Array:
        return jnp.matmul(G, point(r), precision=_HIGHEST)

    def largest_step(value: Array, change: Array) -> Array:
        return jnp.minimum(1.0, jnp.min(jnp.where(change < 0, -value / jnp.where(change < 0, change, -1), jnp.inf)))

    def iterate(state: Any) -> Any:
        r, low, high, iterations, _ = state
        slack = 1 - r
        gradient = gradient_at(r)
        barrier = low / r + high / slack
        factor = jnp.linalg.cholesky(Q + jnp.diag(barrier))
        solve = lambda rhs: jax.scipy.linalg.cho_solve((factor, True), rhs)
        mean = (_dot(r, low) + _dot(slack, high)) / (2 * num_generators)

        def direction(low_target: Array, high_target: Array) -> tuple[Array, Array, Array]:
            dr = solve(-gradient + low_target / r - high_target / slack)
            return dr, low_target / r - low - low / r * dr, high_target / slack - high + high / slack * dr

        dr, dlow, dhigh = direction(jnp.zeros_like(r), jnp.zeros_like(r))
        step = jnp.minimum(
            jnp.minimum(largest_step(r, dr), largest_step(slack, -dr)),
            jnp.minimum(largest_step(low, dlow), largest_step(high, dhigh)),
        )
        reached = _dot(r + step * dr, low + step * dlow) + _dot(slack - step * dr, high + step * dhigh)
        centred = mean * (reached / (2 * num_generators * mean)) ** 3
        dr, dlow, dhigh = direction(centred - dr * dlow, centred + dr * dhigh)
        primal = 0.995 * jnp.minimum(largest_step(r, dr), largest_step(slack, -dr))
        dual = 0.995 * jnp.minimum(largest_step(low, dlow), largest_step(high, dhigh))
        step = jnp.minimum(primal, dual)
        new = (r + step * dr, low + step * dlow, high + step * dhigh)
        good = jnp.all(jnp.isfinite(new[0])) & jnp.all((new[0] > 0) & (new[0] < 1))
        kept = jax.tree.map(lambda a, b: jnp.where(good, a, b), new, (r, low, high))
        return *kept, iterations + 1, good

    def unfinished(state: Any) -> Array:
        r, low, high, iterations, good = state
        product = _dot(r, low) + _dot(1 - r, high)
        return (product > eps * 0.1) & (iterations < _MAX_ITERATIONS) & good

    half = jnp.full(num_generators, 0.5, dtype)
    start = jnp.maximum(1.0, jnp.abs(gradient_at(half)))
    r, low, high, _, _ = jax.lax.while_loop(unfinished, iterate, (half, start, start, 0, jnp.bool_(True)))

    # The coefficients that the multipliers hold at a bound go there, to begin with; the others, which are free, solve
    # their least-squares problem up to the first bound. When they have, the bound coefficient that the gradient pulls
    # at most is set free. A small multiple of the identity, applied several times, stands in for a pseudoinverse when
    # generators are dependent.
    at_low, at_high = low > r, high > 1 - r
    start = jnp.where(at_low | idle, 0.0, jnp.where(at_high, 1.0, r)).astype(dtype)
    # What a gradient is off by at most, as it is a product of sums of so many terms of size 1, and what it is off by
    # mostly.
    negligible, rounding = 4 * eps * (num_generators + b.shape[0]), 4 * eps
    identity = jnp.eye(num_generators, dtype=dtype)

    def pull(r: Array, free: Array) -> Array:
        """How much the gradient pulls a coefficient at a bound inwards, or moves a free one."""
        gradient = gradient_at(r)
        return jnp.where(idle, 0, jnp.where(free, jnp.abs(gradient), jnp.where(r < 0.5, -gradient, gradient)))

    def move(state: Any) -> Any:
        r, free, iterations, _ = state
        diagonal = jnp.where(free, jnp.sqrt(eps) * 1e-2, 1.0)[None, :] * identity
        system = jnp.where(free[:, None] & free[None, :], Q, 0) + diagonal
        factor = jnp.linalg.cholesky(system)
        refine = lambda _, change: (
            change - jax.scipy.linalg.cho_solve((factor, True), jnp.where(free, gradient_at(r + change), 0))
        )
        change = jax.lax.fori_loop(0, 3, refine, jnp.zeros_like(r))
        room = jnp.where(change < 0, -r, 1 - r) / jnp.where(change == 0, 1, change)
        room = jnp.where(free & (change != 0), room, jnp.inf)
        step = jnp.minimum(1.0, jnp.min(room))
        stopped = room <= step
        bound = jnp.where(change < 0, 0.0, 1.0)
        r = jnp.where(stopped, bound, jnp.clip(r + step * change, 0, 1))
        free = free & ~stopped
        wanted = jnp.where(free, -jnp.inf, pull(r, free))
        best = jnp.argmax(wanted)
        release = (step == 1) & (wanted[best] > rounding)
        return r, free.at[best].set(free[best] | release), iterations + 1, (step == 1) & ~release

    free = ~(at_low | at_high | idle)
    unsettled = lambda state: ~state[3] & (state[2] < 2 * num_generators + 8)
    settled, free, *_ = jax.lax.while_loop(unsettled, move, (start, free, 0, jnp.bool_(False)))
    # Two gaps of the order of rounding say nothing about which point is nearer.
    better = jnp.all(pull(settled, free) <= negligible) | (
        _gap(gradient_at(settled), settled) <= _gap(gradient_at(r), r)
    )
    r = jnp.where(idle, 0, jnp.where(better, settled, r))
    return NearestPoint(point(r) * scale, r, _gap(gradient_at(r), r) * scale**2)
