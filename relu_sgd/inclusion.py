"""Solutions of the differential inclusion theta' in -dL(theta), (3) of the paper, with their sliding modes.

Which solutions. The right-hand side is the set of Lemma A.4. A solution moves, at almost every time, with the element of
least norm of that set (Lemma A.2), which is what is computed: where X_i W_j != 0 the slope r_ij of relu is 1 or 0, and where
X_i W_j = 0 it is the multiplier in [0, 1] that least norm asks for. A preactivation *slides* when it is held at 0 by a
multiplier strictly between 0 and 1: c_ij = <E_i, V_j> is then negative and both fields point at the surface. It leaves when its
multiplier reaches 0 or 1, and crosses where both fields point the same way.

Uniqueness. The velocity is unique, so the ambiguity of Filippov systems where surfaces meet does not arise. Solutions can
still branch: where c_ij > 0 and both fields point away from the surface, staying, rising and falling are all solutions. The
integrator stops there and says so (Status.BRANCHING), unless it is told to go on, falling. With both layers trained that
happens in ordinary runs: when the sign of V_j changes while neuron j has sliding preactivations, they all begin to repel.
Where Lemma A.4's set is larger than the Clarke subdifferential (`clarke.Subdifferential.is_exact`), the solutions computed are
those of the larger set.

A neuron whose weights W_j reach 0, all preactivations at once, rests there: slope 0 everywhere gives it velocity 0. That is a
solution, and the only one unless some c_ij > 0, when it counts as branching too. It is common when V is fixed.

The method. A step of length h is implicit in the activation and explicit in the error. With c from a half step, every
preactivation gets the average of its slope over the step: it moves with its present slope until it reaches 0, and from there
slides, or crosses. All of a neuron's preactivations are coupled through X X^T and solved for together, by Gauss-Seidel sweeps
with block solves in between; those with c_ij > 0 cannot slide, and are taken from the speed at the step's start. So a sliding
preactivation is held at 0 and does not chatter. Inside a pattern of activations the step is the explicit midpoint
rule, of second order; every event is located within its step to first order in h, which costs O(h^2). What is not claimed: the
order of events of one neuron within one step is not resolved, and errors grow where solutions branch. `event_driven` locates
every event, for small problems.
"""

import enum
from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Int8

from relu_sgd.clarke import kink_sides
from relu_sgd.network import Params, TrainedLayers, hidden_jacobian_gram, matmul, preactivations
from relu_sgd.problem import Problem

__all__ = ["Solution", "Status", "solve"]

_MAX_SWEEPS = 60
_SWEEPS_BETWEEN = 6
# How much of a neuron's whole speed its preactivations may gain on their own within a step.
_MARGIN = 0.25
# A step may change by these factors from one to the next.
_SHRINK, _GROW = 0.3, 1.5


class Status(enum.IntEnum):
    """How an integration ended."""

    REACHED = 1  # The final time, or the error that was asked for.
    STEP_LIMIT = 2
    BRANCHING = 3  # A kink with c_ij > 0 and both fields pointing away: the solution is not unique from here on.
    DIVERGED = 4
    KINK_LIMIT = 5  # A neuron has more kinks than max_kinks.


class Solution(NamedTuple):
    """A solution at the times that were asked for; after an early stop, the last state is repeated with its own time.

    Attributes:
      times: of the flow of L = 1/2 ||Y - Yhat||_F^2, which has the dimension of 1 / (||X||^2 ||V||^2).
      params: W: times x d0 x d1, V: times x d1 x d2.
      loss: L.
      sliding: times x N x d1, which preactivations are held at 0.
      slopes: times x N x d1, r_ij: 1 where active, 0 where not, the multiplier where sliding.
      velocity_norm: ||theta'|| = dist(0, set), from the right.
      resting: the number of neurons that rest at W_j = 0; their preactivations do not count as sliding.
      crossings, entries, exits: so far, preactivations that went through 0, began to slide, ceased to.
      pattern_changes: so far, changes of the activation pattern Z > 0.
      energy_residual: L(0) - L(t) - integral of ||theta'||^2, 0 for a solution (Lemma A.2, whose second display lacks the
        square).
      balance_residual: the largest change of ||W_j||^2 - ||V_j||^2 over the neurons, 0 for a solution; NaN when V is fixed.
      envelope_slack: L(0) exp(-2 integral of alpha_0^2) - L(t), not negative for a solution (Proposition 2.1), with alpha_0 =
        sigma_min(H^T), the integral by the trapezoidal rule over `times`. When V is fixed, alpha_0^2 is the least eigenvalue of
        the Gram matrix of the Jacobian with respect to W instead (Appendix G).
      status: a `Status`.
      steps, rejected: accepted and rejected steps.
      branched_at: the time of the first branching kink; infinite when none was met.
    """

    times: Float[Array, " times"]
    params: Params
    loss: Float[Array, " times"]
    sliding: Bool[Array, "times N d1"]
    slopes: Float[Array, "times N d1"]
    velocity_norm: Float[Array, " times"]
    resting: Int[Array, " times"]
    crossings: Int[Array, " times"]
    entries: Int[Array, " times"]
    exits: Int[Array, " times"]
    pattern_changes: Int[Array, " times"]
    energy_residual: Float[Array, " times"]
    balance_residual: Float[Array, " times"]
    envelope_slack: Float[Array, " times"]
    status: Int8[Array, ""]
    steps: Int[Array, ""]
    rejected: Int[Array, ""]
    branched_at: Float[Array, ""]


class _Velocity(NamedTuple):
    """theta' from the right, and what it comes from."""

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


class _State(NamedTuple):
    time: Float[Array, ""]
    step_size: Float[Array, ""]
    params: Params
    sides: Int8[Array, "N d1"]
    velocity: _Velocity
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


class _Integrator:
    """The method for one problem; `solve` drives it."""

    def __init__(self, problem: Problem, trained_layers: TrainedLayers, max_kinks: int, smallest: Array) -> None:
        self.X, self.Y = problem
        self.both = trained_layers == "both"
        self.gram = matmul(self.X, self.X.T)
        self.max_kinks = max_kinks
        self.smallest = smallest  # A neuron that shrinks below this norm is put at rest.

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

    def velocity(self, params: Params, Z: Array, sides: Array, guess: Array) -> _Velocity:
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
        return _Velocity(
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

    def step(self, state: _State, h: Array) -> tuple[_State, Array, Array]:
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


def _check_arguments(params: Params, problem: Problem, times, step_size, tolerance: float, max_steps: int) -> None:
    preactivations(params, problem)  # Shapes.
    for name, array in (*params._asdict().items(), *problem._asdict().items()):
        if not isinstance(array, jax.core.Tracer) and not np.isfinite(np.asarray(array)).all():
            raise ValueError(f"{name} of shape {array.shape} has entries that are not finite")
    if not isinstance(times, jax.core.Tracer):
        values = np.asarray(times, float)
        if values.ndim != 1 or not len(values) or not np.isfinite(values).all() or values[0] < 0:
            raise ValueError(f"times must be finite, not negative and at least one, got {times}")
        if (np.diff(values) <= 0).any():
            raise ValueError(f"times must increase, got {times}")
    if step_size is not None and not isinstance(step_size, jax.core.Tracer) and not 0 < float(step_size) < np.inf:
        raise ValueError(f"step_size must be positive and finite, got {step_size}")
    if not isinstance(tolerance, jax.core.Tracer):
        eps = float(jnp.finfo(params.W.dtype).eps)
        if not eps <= float(tolerance) < np.inf:
            raise ValueError(f"tolerance must be at least eps = {eps:.2g} of {params.W.dtype}, got {tolerance}")
    if max_steps < 1:
        raise ValueError(f"max_steps must be at least 1, got {max_steps}")


def solve(
    params: Params,
    problem: Problem,
    times: Float[Array, " times"] | float,
    *,
    trained_layers: TrainedLayers = "both",
    step_size: float | None = None,
    tolerance: float = 1e-3,
    relative_error: float = 0.0,
    max_steps: int = 100_000,
    max_kinks: int | None = None,
    kink_tolerance: float | None = None,
    stop_at_branching: bool = True,
) -> Solution:
    """The solution of theta' in -dL(theta) from theta(0) = params, L = 1/2 ||Y - Yhat||_F^2. See the module's docstring.

    Once ||Y - Yhat||_F is below a tenth of sqrt(eps) ||Y||_F the solution counts as at rest, and is the same at all later times.
    jit and vmap work. In float32 a sliding preactivation is held to about 1e-7; use float64 to count small things.

    Args:
      params: theta(0); its dtype is the precision of everything.
      problem: the training set.
      times: increasing, when to record; or one number, the final time, recorded alone.
      trained_layers: "both", or "hidden" when V is fixed.
      step_size: of every step; adapted when None.
      tolerance: for adapted steps, the share of the energy that a step sets free which it may fail to account for: all steps
        together then miss at most this share of L(0). It governs the accuracy of the solution too, without bounding it.
      relative_error: stop once ||Y - Yhat||_F / ||Y||_F is below it.
      max_steps: largest number of steps, rejected ones included.
      max_kinks: room for the preactivations of one neuron that are at 0 or reach it in one step; min(N, 32) when None. Adapted
        steps shrink when it is exceeded within a step.
      kink_tolerance: which preactivations of theta(0) are at 0, see `clarke.kink_sides`.
      stop_at_branching: whether to stop at a branching kink, or to go on with the solution in which it falls.

    Raises:
      ValueError: shapes do not fit, params or problem are not finite, times are negative or do not increase, a step size is not
        positive, the tolerance is below eps, or an option is not allowed.
    """
    times = jnp.atleast_1d(jnp.asarray(times, params.W.dtype))
    _check_arguments(params, problem, times, step_size, tolerance, max_steps)
    if trained_layers not in get_args(TrainedLayers):
        raise ValueError(f"trained_layers must be one of {get_args(TrainedLayers)}, got {trained_layers!r}")
    num_samples = problem.X.shape[0]
    room = min(num_samples, 32) if max_kinks is None else max_kinks
    if not 1 <= room <= num_samples:
        raise ValueError(f"max_kinks must lie in [1, N = {num_samples}], got {max_kinks}")
    dtype = params.W.dtype
    smallest_neuron = jnp.sqrt(jnp.finfo(dtype).eps) * jnp.max(jnp.linalg.norm(params.W, axis=0))
    integrator = _Integrator(problem, trained_layers, room, smallest_neuron)
    sides = kink_sides(params, problem, kink_tolerance)
    Z = preactivations(params, problem)
    velocity = integrator.velocity(params, Z, sides, jnp.zeros(sides.shape, dtype))
    final = times[-1]
    label_norm = jnp.linalg.norm(problem.Y)
    initial_loss = velocity.loss
    # At first an explicit step that changes the loss by a tenth.
    rate = jnp.sum(velocity.params.W**2) + jnp.sum(velocity.params.V**2)
    guess = 0.1 * initial_loss / jnp.where(rate > 0, rate, 1)
    first = jnp.where(rate > 0, jnp.minimum(guess, final), final) if step_size is None else step_size
    smallest = jnp.finfo(dtype).eps * 16 * jnp.maximum(final, jnp.finfo(dtype).tiny)
    state = _State(
        time=jnp.zeros((), dtype),
        step_size=jnp.asarray(first, dtype),
        params=params,
        sides=sides,
        velocity=velocity,
        dissipated=jnp.zeros((), dtype),
        counts=jnp.zeros(4, jnp.int32),
        steps=jnp.int32(0),
        rejected=jnp.int32(0),
        branched_at=jnp.where(velocity.branches, 0, jnp.inf).astype(dtype),
    )

    def stopped(state: _State) -> Array:
        now = state.velocity
        small = jnp.sqrt(2 * now.loss) < relative_error * label_norm
        split = now.branches & stop_at_branching
        return small | split | now.too_many | ~jnp.isfinite(now.loss) | (state.steps + state.rejected >= max_steps)

    def solved(state: _State) -> Array:
        """Errors are so small that rounding has taken half of their digits: to go on would let noise decide what slides."""
        return jnp.sqrt(2 * state.velocity.loss) <= 0.1 * jnp.sqrt(jnp.finfo(dtype).eps) * label_norm

    def give_up(state: _State, strays: Array, h: Array) -> _Velocity:
        """Events that find no room in however short a step come at the same time, or nearly so."""
        at_once = strays & (h < 1e-9 * final)
        return state.velocity._replace(too_many=state.velocity.too_many | at_once)

    def advance(state: _State, until: Array) -> _State:
        left = until - state.time
        # The last steps before a record are of equal length, rather than one full and one tiny.
        count = jnp.maximum(jnp.ceil(left / state.step_size * (1 - 1e-6)), 1)
        h = left / count
        new, missed, strays = integrator.step(state, h)
        new = new._replace(time=jnp.where(count == 1, until, new.time))
        if step_size is not None:
            # Events that found no room would be lost: the step is taken in two.
            retry = state._replace(rejected=state.rejected + 1, step_size=h / 2, velocity=give_up(state, strays, h))
            new = new._replace(step_size=jnp.asarray(step_size, dtype))
            return jax.tree.map(lambda a, b: jnp.where(strays, a, b), retry, new)
        budget = tolerance * jnp.maximum(state.velocity.loss - new.velocity.loss, 0)
        ratio = budget / jnp.maximum(missed, jnp.finfo(dtype).tiny)
        factor = jnp.where(jnp.isfinite(missed), jnp.clip(0.9 * jnp.sqrt(ratio), _SHRINK, _GROW), _SHRINK)
        factor = jnp.where(strays, jnp.minimum(factor, 0.5), factor)
        # What rounding alone leaves of the energy cannot be mended by a smaller step.
        loss = state.velocity.loss
        noise = 64 * jnp.finfo(dtype).eps * (loss + jnp.sqrt(2 * loss) * label_norm)
        good = ((missed <= budget) | (missed <= noise) | (h <= smallest)) & ~strays
        longest = jnp.where(good, jnp.maximum(state.step_size, h * factor), h * factor)
        new = new._replace(step_size=jnp.where(missed <= noise, h * _GROW, jnp.where(count == 1, longest, h * factor)))
        retry = state._replace(
            step_size=h * jnp.minimum(factor, 0.9), rejected=state.rejected + 1, velocity=give_up(state, strays, h)
        )
        return jax.tree.map(lambda a, b: jnp.where(good, a, b), new, retry)

    def record(state: _State, until: Array) -> tuple[_State, dict]:
        unfinished = lambda state: (state.time < until) & ~stopped(state) & ~solved(state)
        state = jax.lax.while_loop(unfinished, lambda state: advance(state, until), state)
        state = state._replace(time=jnp.where(solved(state) & ~stopped(state), until, state.time))
        now = state.velocity
        return state, {
            "times": state.time,
            "params": state.params,
            "loss": now.loss,
            "sliding": now.held,
            "slopes": now.slopes,
            "resting": now.resting,
            "velocity_norm": jnp.sqrt(jnp.sum(now.params.W**2) + jnp.sum(now.params.V**2)),
            "crossings": state.counts[0],
            "entries": state.counts[1],
            "exits": state.counts[2],
            "pattern_changes": state.counts[3],
            "energy_residual": initial_loss - now.loss - state.dissipated,
            "rate": _least_rate(now, state.params, problem, trained_layers),
        }

    initial_rate = _least_rate(velocity, params, problem, trained_layers)
    state, records = jax.lax.scan(record, state, times)
    rates = jnp.concatenate([initial_rate[None], records.pop("rate")])
    widths = jnp.diff(jnp.concatenate([jnp.zeros(1, dtype), records["times"]]))
    exponent = jnp.cumsum(widths * (rates[1:] + rates[:-1]) / 2)
    balance = lambda p: jnp.sum(p.W**2, axis=-2) - jnp.sum(p.V**2, axis=-1)
    drift = jnp.max(jnp.abs(balance(records["params"]) - balance(params)), axis=-1)
    now = state.velocity
    status = jnp.where(state.time >= final, Status.REACHED, Status.STEP_LIMIT)
    status = jnp.where(jnp.sqrt(2 * now.loss) < relative_error * label_norm, Status.REACHED, status)
    status = jnp.where(
        now.too_many, Status.KINK_LIMIT, jnp.where(now.branches & stop_at_branching, Status.BRANCHING, status)
    )
    return Solution(
        **records,
        balance_residual=drift if trained_layers == "both" else jnp.full_like(drift, jnp.nan),
        envelope_slack=initial_loss * jnp.exp(-2 * exponent) - records["loss"],
        status=jnp.where(jnp.isfinite(now.loss), status, Status.DIVERGED).astype(jnp.int8),
        steps=state.steps,
        rejected=state.rejected,
        branched_at=state.branched_at,
    )


def _least_rate(now: _Velocity, params: Params, problem: Problem, trained_layers: Literal["hidden", "both"]) -> Array:
    """alpha_0^2, or its counterpart when V is fixed: ||theta'||^2 is at least this times ||E||^2."""
    num_samples, d2 = problem.Y.shape
    d0, d1 = params.W.shape
    if trained_layers == "both":
        if d1 < num_samples:  # H has no full row rank.
            return jnp.zeros((), params.W.dtype)
        return jnp.maximum(jnp.linalg.eigvalsh(matmul(now.hidden, now.hidden.T))[0], 0)
    if d0 * d1 < num_samples * d2:
        return jnp.zeros((), params.W.dtype)
    return jnp.maximum(jnp.linalg.eigvalsh(hidden_jacobian_gram(now.slopes, params.V, problem.X))[0], 0)
