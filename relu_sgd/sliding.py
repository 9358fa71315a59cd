"""One step along the inclusion: implicit in the activation, so that preactivations slide without chatter.

The method of `inclusion`, whose docstring says what it computes; `inclusion.solve` chooses the steps.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Int8

from relu_sgd.multipliers import Kinks, compact, solve_slopes
from relu_sgd.network import Params, TrainedLayers, matmul
from relu_sgd.problem import Problem

__all__ = ["SlidingStep", "State", "Velocity"]

# How much of a neuron's whole speed its preactivations may gain on their own within a step.
_MARGIN = 0.25


class Velocity(NamedTuple):
    """theta' from the right, and what it comes from; see `Solution` of `inclusion` for what the names mean."""

    params: Params  # The velocity itself.
    slopes: Float[Array, "N d1"]
    Z: Float[Array, "N d1"]
    Z_dot: Float[Array, "N d1"]
    errors: Float[Array, "N d2"]
    hidden: Float[Array, "N d1"]
    held: Bool[Array, "N d1"]  # At 0, and staying there.
    resting: Int[Array, ""]
    loss: Float[Array, ""]
    branches: Bool[Array, ""]
    too_many: Bool[Array, ""]


class State(NamedTuple):
    """An integration between two steps."""

    started: Bool[Array, ""]  # Whether `velocity` is known.
    time: Float[Array, ""]
    step_size: Float[Array, ""]
    params: Params
    sides: Int8[Array, "N d1"]
    velocity: Velocity
    dissipated: Float[Array, ""]  # The integral of ||theta'||^2.
    counts: Int[Array, "4"]  # Crossings, entries, exits, pattern changes.
    steps: Int[Array, ""]
    rejected: Int[Array, ""]
    branched_at: Float[Array, ""]


def _averaged_slope(Z: Array, side: Array, speed: Array, jump: Array, h: Array) -> tuple[Array, Array]:
    """The average slope of one preactivation over a step of length h, and the side that it ends on.

    Its speed is `speed` with slope 0 and speed + jump with slope 1; `jump` is c_ij ||x_i||^2, at most 0.
    """
    divide = lambda a, b: a / jnp.where(b == 0, 1, b)
    multiplier = jnp.clip(divide(speed, -jump), 0, 1)
    # From above: until it reaches 0 the slope is 1; then it slides if slope 0 would drive it back, or falls.
    falls = -(speed + jump)
    reached = jnp.clip(divide(jnp.maximum(Z, 0), h * falls), 0, 1)
    stays = (falls <= 0) | (h * falls <= jnp.maximum(Z, 0))
    slides = speed > 0
    above = jnp.where(stays, 1, reached + jnp.where(slides, (1 - reached) * multiplier, 0))
    above_side = jnp.where(stays, 1, jnp.where(slides, 0, -1))
    # From below: until it reaches 0 the slope is 0; then it slides if slope 1 would drive it back, or rises.
    depth = jnp.maximum(-Z, 0)
    reached = jnp.clip(divide(depth, h * speed), 0, 1)
    stays = (speed <= 0) | (h * speed <= depth)
    slides = speed + jump < 0
    below = jnp.where(stays, 0, (1 - reached) * jnp.where(slides, multiplier, 1))
    below_side = jnp.where(stays, -1, jnp.where(slides, 0, 1))
    # From 0: what rounding has left of Z is taken back.
    held = jnp.clip(divide(speed + Z / h, -jump), 0, 1)
    held_side = jnp.where(speed + jump > 0, 1, jnp.where(speed < 0, -1, 0))
    slope = jnp.where(side > 0, above, jnp.where(side < 0, below, held))
    new_side = jnp.where(side > 0, above_side, jnp.where(side < 0, below_side, held_side))
    return slope, new_side.astype(jnp.int8)


def _instantaneous_slope(speed: Array, jump: Array) -> tuple[Array, Array]:
    """The slope of a preactivation that is at 0, and whether the solution branches there."""
    held = jnp.clip(speed / jnp.where(jump == 0, 1, -jump), 0, 1)
    branches = (jump > 0) & (speed <= 0) & (speed + jump >= 0)
    return jnp.where(jump < 0, held, jnp.where(speed > 0, 1, 0)), branches


def _put(array: Array, kinks: Kinks, values: Array) -> Array:
    """`array`, N x d1, with values at the kinks."""
    samples = jnp.where(kinks.present, kinks.samples, array.shape[0])
    return array.at[samples, jnp.arange(array.shape[1])[:, None]].set(values, mode="drop")


class SlidingStep:
    """The method for one problem.

    Args:
      problem: the training set.
      trained_layers: "both", or "hidden" when V is fixed.
      max_kinks: room for the preactivations of one neuron that are at 0 or reach it in one step.
      smallest: a neuron that shrinks below this norm is put at rest.
    """

    def __init__(self, problem: Problem, trained_layers: TrainedLayers, max_kinks: int, smallest: Array) -> None:
        self.X, self.Y = problem
        self.both = trained_layers == "both"
        # Products with a transposed factor are slower, and XLA must not fold this one back into them.
        self.X_transposed = jax.lax.optimization_barrier(self.X.T)
        self.gram = matmul(self.X, self.X_transposed)
        self.max_kinks = max_kinks
        self.smallest = smallest

    def _along_rows(self, coefficients: Float[Array, "N d1"]) -> Float[Array, "N d1"]:
        """X X^T times the coefficients: the speeds of all preactivations."""
        return matmul(self.X, matmul(self.X_transposed, coefficients))

    def velocity(self, params: Params, Z: Array, sides: Array, guess: Array, within: Kinks) -> Velocity:
        """The velocity theta' from the right, at a point whose kinks are known.

        Args:
          params: theta.
          Z: N x d1, its preactivations.
          sides: N x d1, their signs; 0 at the kinks.
          guess: N x d1, slopes to begin the search with.
          within: all of these are among them.
        """
        W, V = params
        hidden = jnp.where(sides > 0, jnp.maximum(Z, 0), 0)
        errors = self.Y - matmul(hidden, V)
        C = matmul(errors, V.T)
        active = (sides > 0).astype(Z.dtype)
        base = self._along_rows(active * C)
        resting = ~jnp.any(W != 0, axis=0)
        at_kink = (sides == 0) & (C != 0) & ~resting
        at = (within.samples, jnp.arange(W.shape[1])[:, None])
        kinks = within._replace(present=within.present & at_kink[at])
        solved, _ = solve_slopes(
            self.gram, kinks, base[at], C[at], guess[at], lambda speed, jump: _instantaneous_slope(speed, jump)[0], ()
        )
        slopes = _put(active, kinks, solved)
        W_dot = matmul(self.X_transposed, slopes * C)
        V_dot = matmul(hidden.T, errors) if self.both else jnp.zeros_like(V)
        Z_dot = matmul(self.X, W_dot)
        own = C * jnp.diag(self.gram)[:, None]
        speed = Z_dot - own * slopes
        # A preactivation at 0 leaves when its multiplier has met a bound and the field there points away, rounding apart.
        noise = jnp.sqrt(jnp.finfo(Z.dtype).eps) * (jnp.abs(speed) + jnp.abs(own))
        rises, sinks = (slopes >= 1) & (speed + own > noise), (slopes <= 0) & (speed < -noise)
        return Velocity(
            params=Params(W_dot, V_dot),
            slopes=slopes,
            Z=Z,
            Z_dot=Z_dot,
            errors=errors,
            hidden=hidden,
            held=(sides == 0) & ~rises & ~sinks & ~resting,
            resting=jnp.sum(resting & jnp.any(V != 0, axis=1), dtype=jnp.int32),
            loss=0.5 * jnp.sum(errors**2),
            branches=jnp.any(at_kink & _instantaneous_slope(speed, own)[1]) | jnp.any(resting & (own > 0)),
            too_many=kinks.number > self.max_kinks,
        )

    def start(self, params: Params, sides: Int8[Array, "N d1"]) -> State:
        """The state at time 0; its velocity, still to be found, is 0."""
        dtype = params.W.dtype
        Z = matmul(self.X, params.W)
        none = jnp.zeros(Z.shape, dtype)
        zero, false = jnp.zeros((), dtype), jnp.bool_(False)
        return State(
            started=false,
            time=zero,
            step_size=jnp.ones((), dtype),
            params=params,
            sides=sides,
            velocity=Velocity(
                params=jax.tree.map(jnp.zeros_like, params),
                slopes=none,
                Z=Z,
                Z_dot=none,
                errors=jnp.zeros_like(self.Y),
                hidden=none,
                held=jnp.zeros(Z.shape, bool),
                resting=jnp.int32(0),
                loss=zero,
                branches=false,
                too_many=false,
            ),
            dissipated=zero,
            counts=jnp.zeros(4, jnp.int32),
            steps=jnp.int32(0),
            rejected=jnp.int32(0),
            branched_at=jnp.full((), jnp.inf, dtype),
        )

    def step(self, state: State, h: Array) -> tuple[State, Array, Array]:
        """A step of length h: the new state, the energy that it misses, and whether it had too many events at once.

        The first step of a state that has not started finds its velocity, and moves nothing: so that is compiled once.
        """
        (W, V), now, sides = state.params, state.velocity, state.sides
        Z, Z_dot = now.Z, now.Z_dot
        # Half a step ahead.
        errors_dot = -matmul(now.slopes * Z_dot, V)
        if self.both:
            errors_dot -= matmul(now.hidden, now.params.V)
        errors = now.errors + 0.5 * h * errors_dot
        C = matmul(errors, (V + 0.5 * h * now.params.V).T)

        # The preactivations that are at 0 or may reach it.
        size = jnp.linalg.norm(self.X, axis=1)[:, None]
        reach = jnp.abs(Z_dot) + _MARGIN * size * jnp.linalg.norm(now.params.W, axis=0)
        resting = ~jnp.any(W != 0, axis=0)
        kinks = compact(((sides == 0) | (jnp.abs(Z) <= h * reach)) & (size > 0) & ~resting, self.max_kinks)
        at = (kinks.samples, jnp.arange(W.shape[1])[:, None])
        unchosen = _put((sides > 0).astype(Z.dtype), kinks, jnp.zeros((), Z.dtype))  # Their slopes do not change.
        base = self._along_rows(unchosen * C)
        Z_there, sides_there, speed_there, slopes_there = Z[at], sides[at], Z_dot[at], now.slopes[at]

        # Where c_ij > 0 there is no sliding, only crossing, and its time is taken from the speed at the start: what is left
        # is a monotone problem, with one solution.
        meets = Z_there * speed_there < 0
        reached = jnp.clip(jnp.abs(Z_there) / (h * jnp.where(meets, jnp.abs(speed_there), 1)), 0, 1)
        reached = jnp.where(meets, reached, 1)
        explicit = jnp.where(sides_there > 0, reached, jnp.where(sides_there < 0, 1 - reached, slopes_there))

        def relation(speed, jump, Z, side, explicit):
            return jnp.where(jump > 0, explicit, _averaged_slope(Z, side, speed, jump, h)[0])

        solved, converged = solve_slopes(
            self.gram, kinks, base[at], C[at], slopes_there, relation, (Z_there, sides_there, explicit)
        )
        slopes = _put(unchosen, kinks, solved)
        mean_W = matmul(self.X_transposed, slopes * C)
        new_W = W + h * mean_W
        arrives = (jnp.linalg.norm(new_W, axis=0) <= self.smallest) & (jnp.sum(W * mean_W, axis=0) < 0)
        new_W = jnp.where(arrives, 0, new_W)
        jumps = (C * size**2)[at]
        new_Z = matmul(self.X, new_W)
        speeds = ((new_Z - Z) / h)[at] - solved * jumps
        ends = _averaged_slope(Z_there, sides_there, speeds, jumps, h)[1]
        ends = jnp.where(jumps > 0, jnp.where(new_Z[at] > 0, 1, -1), ends).astype(sides.dtype)
        new_sides = jnp.where(arrives, -1, _put(sides, kinks, ends)).astype(sides.dtype)
        new_sides = jnp.where(state.started, new_sides, sides)
        # A step is of no use when a preactivation is not where its side says.
        rounding = jnp.sqrt(jnp.finfo(Z.dtype).eps) * size * jnp.linalg.norm(new_W, axis=0)
        misplaced = jnp.where(new_sides == 0, jnp.abs(new_Z), -new_Z * new_sides) > rounding
        strays = (kinks.number > self.max_kinks) | ~converged | jnp.any(misplaced & ~arrives & (size > 0))
        strays &= state.started

        new_hidden = jnp.where(new_sides > 0, jnp.maximum(new_Z, 0), 0)
        mean_V = 0.5 * matmul((now.hidden + new_hidden).T, errors) if self.both else jnp.zeros_like(V)
        params = Params(new_W, V + h * mean_V)
        velocity = self.velocity(params, new_Z, new_sides, slopes, kinks)
        # What was sliding and begins to repel within the step may have left already.
        held = (sides == 0) & (now.slopes > 0) & (now.slopes < 1)
        began = held & (matmul(now.errors, V.T) < 0) & (matmul(velocity.errors, params.V.T) >= 0)
        velocity = velocity._replace(branches=velocity.branches | jnp.any(began))
        dissipated = h * self._mean_square(now.params, Params(mean_W, mean_V), velocity.params)
        missed = jnp.abs(now.loss - velocity.loss - dissipated)
        counts = jnp.stack(
            [
                jnp.sum(sides * new_sides < 0),
                jnp.sum((sides != 0) & (new_sides == 0)),
                jnp.sum((sides == 0) & (new_sides != 0)),
                jnp.sum((sides > 0) != (new_sides > 0)),
            ]
        )
        moved = state._replace(
            time=state.time + h,
            params=params,
            sides=new_sides,
            velocity=velocity,
            dissipated=state.dissipated + dissipated,
            counts=state.counts + counts.astype(state.counts.dtype),
            steps=state.steps + 1,
            branched_at=jnp.where(velocity.branches, jnp.minimum(state.branched_at, state.time + h), state.branched_at),
        )
        begun = state._replace(
            started=jnp.bool_(True),
            velocity=velocity,
            branched_at=jnp.where(velocity.branches, state.time, jnp.inf).astype(h.dtype),
        )
        return jax.tree.map(lambda a, b: jnp.where(state.started, a, b), moved, begun), missed, strays

    def _mean_square(self, before: Params, mean: Params, after: Params) -> Array:
        """The average of ||theta'||^2 over a step, from the velocities at its ends and their average over it.

        A neuron that meets an event moves with its first velocity for a while and with its last for the rest: how long follows
        from the average. Without an event the velocity is close to linear, and that comes to the trapezoidal rule.
        """

        def part(a: Array, b: Array, c: Array, axis: int) -> Array:
            change = a - c
            squared = jnp.sum(change**2, axis=axis)
            share = jnp.sum((b - c) * change, axis=axis) / jnp.where(squared > 0, squared, 1)
            share = jnp.where(squared > 0, jnp.clip(share, 0, 1), 0.5)
            return jnp.sum(share * jnp.sum(a**2, axis=axis) + (1 - share) * jnp.sum(c**2, axis=axis))

        return part(before.W, mean.W, after.W, 0) + part(before.V, mean.V, after.V, 1)
