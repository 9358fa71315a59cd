"""One step along the inclusion: implicit in the activation, so that preactivations slide without chatter.

The method of `inclusion`, whose docstring says what it computes; `inclusion.solve` chooses the steps.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Int8

from relu_sgd.network import Params, TrainedLayers, matmul
from relu_sgd.problem import Problem

__all__ = ["SlidingStep", "State", "Velocity"]

_MAX_SWEEPS = 60
_SWEEPS_BETWEEN = 6
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
        self.gram = matmul(self.X, self.X.T)
        self.max_kinks = max_kinks
        self.smallest = smallest

    def _choose(self, wanted: Array) -> tuple[Array, Array]:
        """The samples that are wanted of every neuron, compacted: K x d1, N where there are no more; and their largest number.

        Sorting would do the same, but takes ten times as long on a CPU.
        """
        num_samples = wanted.shape[0]
        lower = jnp.tril(jnp.ones((num_samples, num_samples), jnp.float32))
        rank = jnp.matmul(lower, wanted.astype(jnp.float32))  # Up to and with this sample; exact in float32.
        chosen = jnp.sum(rank[None] <= jnp.arange(self.max_kinks)[:, None, None], axis=1)
        return chosen, jnp.max(rank[-1]).astype(jnp.int32)

    def _coupled(
        self, chosen: Array, number: Array, base: Array, C: Array, slopes: Array, drop: Array, relation
    ) -> tuple[Array, Array]:
        """Slopes of the chosen preactivations that satisfy a relation between slope and speed, all at once.

        Gauss-Seidel sweeps; where rows are close to dependent they are slow, and so, every few sweeps, the multipliers of the
        preactivations that stick to 0 are solved for together.

        Args:
          chosen: K x d1, the samples; N for none.
          number: of rows of `chosen` that hold any.
          base: K x d1, their speeds with slope 0 at all chosen ones.
          C: N x d1, c_ij.
          slopes: K x d1, where to begin; 0 for none.
          drop: K x d1, the speed that takes a preactivation to 0.
          relation: from k, the speed with own slope 0 and the jump of the k-th chosen preactivations to their slopes, and whether
            they stick.

        Returns:
          The slopes, and whether the iteration has converged.
        """
        rows = jnp.minimum(chosen, C.shape[0] - 1)
        present = chosen < C.shape[0]
        c = jnp.where(present, jnp.take_along_axis(C, rows, axis=0), 0)
        gram = self.gram[rows[:, None, :], rows[None, :, :]]
        coupling = gram * c  # k x l x d1: what slope l adds to speed k.
        own = jnp.diagonal(coupling, axis1=0, axis2=1).T  # K x d1
        eps = jnp.finfo(base.dtype).eps
        tolerance = 1e-3 * jnp.sqrt(eps)

        def update(k, carry):
            slopes, sticks = carry
            others = jnp.sum(coupling[k] * slopes, axis=0) - own[k] * slopes[k]
            slope, stick = relation(k, base[k] + others, own[k])
            return slopes.at[k].set(jnp.where(present[k], slope, 0)), sticks.at[k].set(stick & present[k])

        def together(carry):
            slopes, sticks = carry
            rest = base + jnp.sum(coupling * jnp.where(sticks, 0, slopes), axis=1)
            both = (sticks[:, None] & sticks).transpose(2, 0, 1)
            matrix = jnp.where(both, gram.transpose(2, 0, 1), 0)
            ridge = jnp.where(sticks, 16 * eps * jnp.diagonal(gram, axis1=0, axis2=1).T, 1).T
            factor = jnp.linalg.cholesky(matrix + jax.vmap(jnp.diag)(ridge))
            target = jnp.where(sticks, drop - rest, 0).T[:, :, None]
            pulls = jax.lax.linalg.triangular_solve(factor, target, left_side=True, lower=True)
            pulls = jax.lax.linalg.triangular_solve(factor, pulls, left_side=True, lower=True, transpose_a=True)
            solved = pulls[:, :, 0].T / jnp.where(c == 0, 1, c)
            return jnp.where(sticks & jnp.isfinite(solved), jnp.clip(solved, 0, 1), slopes)

        def sweep(carry):
            slopes, sticks, _, sweeps = carry
            stuck = (sweeps % _SWEEPS_BETWEEN == 0) & (sweeps > 0)
            slopes = jax.lax.cond(stuck, together, lambda carry: carry[0], (slopes, sticks))
            new, sticks = jax.lax.fori_loop(0, jnp.minimum(number, self.max_kinks), update, (slopes, sticks))
            return new, sticks, jnp.max(jnp.abs(new - slopes)), sweeps + 1

        unsolved = lambda carry: (carry[2] > tolerance) & (carry[3] < _MAX_SWEEPS)
        start = (slopes, jnp.zeros(slopes.shape, bool), jnp.array(jnp.inf, base.dtype), 0)
        slopes, _, change, _ = jax.lax.while_loop(unsolved, sweep, start)
        return slopes, change <= tolerance

    def velocity(self, params: Params, Z: Array, sides: Array, guess: Array) -> Velocity:
        """The velocity theta' from the right, at a point whose kinks are known."""
        W, V = params
        hidden = jnp.where(sides > 0, jnp.maximum(Z, 0), 0)
        errors = self.Y - matmul(hidden, V)
        C = matmul(errors, V.T)
        active = (sides > 0).astype(Z.dtype)
        base = matmul(self.X, matmul(self.X.T, active * C))
        resting = ~jnp.any(W != 0, axis=0)
        at_kink = (sides == 0) & (C != 0) & ~resting
        chosen, number = self._choose(at_kink)
        rows, neurons = jnp.minimum(chosen, len(Z) - 1), jnp.arange(W.shape[1])

        def relation(k, speed, jump):
            slope, _ = _instantaneous_slope(speed, jump)
            return slope, (slope > 0) & (slope < 1)

        start = jnp.where(chosen < len(Z), guess[rows, neurons], 0)
        solved, _ = self._coupled(chosen, number, base[rows, neurons], C, start, jnp.zeros_like(start), relation)
        slopes = active.at[chosen, neurons].set(solved, mode="drop")
        W_dot = matmul(self.X.T, slopes * C)
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
            too_many=number > self.max_kinks,
        )

    def step(self, state: State, h: Array) -> tuple[State, Array, Array]:
        """A step of length h: the new state, the energy that it misses, and whether it had too many events at once."""
        (W, V), now, sides = state.params, state.velocity, state.sides
        Z, Z_dot = now.Z, now.Z_dot
        # Half a step ahead.
        errors_dot = -matmul(now.slopes * Z_dot, V) - matmul(now.hidden, now.params.V)
        errors = now.errors + 0.5 * h * errors_dot
        C = matmul(errors, (V + 0.5 * h * now.params.V).T)

        # The preactivations that are at 0 or may reach it.
        size = jnp.linalg.norm(self.X, axis=1)[:, None]
        reach = jnp.abs(Z_dot) + _MARGIN * size * jnp.linalg.norm(now.params.W, axis=0)
        resting = ~jnp.any(W != 0, axis=0)
        chosen, number = self._choose(((sides == 0) | (jnp.abs(Z) <= h * reach)) & (size > 0) & ~resting)
        rows, neurons = jnp.minimum(chosen, len(Z) - 1), jnp.arange(W.shape[1])
        unchosen = (sides > 0).astype(Z.dtype).at[chosen, neurons].set(0, mode="drop")  # Their slopes do not change.
        base = matmul(self.X, matmul(self.X.T, unchosen * C))[rows, neurons]
        Z_chosen, sides_chosen = Z[rows, neurons], sides[rows, neurons]

        # Where c_ij > 0 there is no sliding, only crossing, and its time is taken from the speed at the start: what is left
        # is a monotone problem, with one solution.
        speed_chosen = Z_dot[rows, neurons]
        meets = Z_chosen * speed_chosen < 0
        reached = jnp.clip(jnp.abs(Z_chosen) / (h * jnp.where(meets, jnp.abs(speed_chosen), 1)), 0, 1)
        reached = jnp.where(meets, reached, 1)
        explicit = jnp.where(
            sides_chosen > 0, reached, jnp.where(sides_chosen < 0, 1 - reached, now.slopes[rows, neurons])
        )

        def relation(k, speed, jump):
            slope, side = _averaged_slope(Z_chosen[k], sides_chosen[k], speed, jump, h)
            slope = jnp.where(jump > 0, explicit[k], slope)
            return slope, (side == 0) & (slope > 0) & (slope < 1) & (jump <= 0)

        start = jnp.where(chosen < len(Z), now.slopes[rows, neurons], 0)
        solved, converged = self._coupled(chosen, number, base, C, start, -Z_chosen / h, relation)
        slopes = unchosen.at[chosen, neurons].set(solved, mode="drop")
        mean_W = matmul(self.X.T, slopes * C)
        new_W = W + h * mean_W
        arrives = (jnp.linalg.norm(new_W, axis=0) <= self.smallest) & (jnp.sum(W * mean_W, axis=0) < 0)
        new_W = jnp.where(arrives, 0, new_W)
        jumps = (C * size**2)[rows, neurons]
        new_Z = matmul(self.X, new_W)
        speeds = ((new_Z - Z) / h)[rows, neurons] - solved * jumps
        ends = _averaged_slope(Z_chosen, sides_chosen, speeds, jumps, h)[1]
        ends = jnp.where(jumps > 0, jnp.where(new_Z[rows, neurons] > 0, 1, -1), ends).astype(sides.dtype)
        new_sides = jnp.where(arrives, -1, sides.at[chosen, neurons].set(ends, mode="drop")).astype(sides.dtype)
        # A step is of no use when a preactivation is not where its side says.
        rounding = jnp.sqrt(jnp.finfo(Z.dtype).eps) * size * jnp.linalg.norm(new_W, axis=0)
        misplaced = jnp.where(new_sides == 0, jnp.abs(new_Z), -new_Z * new_sides) > rounding
        strays = (number > self.max_kinks) | ~converged | jnp.any(misplaced & ~arrives & (size > 0))

        new_hidden = jnp.where(new_sides > 0, jnp.maximum(new_Z, 0), 0)
        mean_V = 0.5 * matmul((now.hidden + new_hidden).T, errors) if self.both else jnp.zeros_like(V)
        params = Params(new_W, V + h * mean_V)
        velocity = self.velocity(params, new_Z, new_sides, slopes)
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
        new = state._replace(
            time=state.time + h,
            params=params,
            sides=new_sides,
            velocity=velocity,
            dissipated=state.dissipated + dissipated,
            counts=state.counts + counts.astype(state.counts.dtype),
            steps=state.steps + 1,
            branched_at=jnp.where(velocity.branches, jnp.minimum(state.branched_at, state.time + h), state.branched_at),
        )
        return new, missed, strays

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
