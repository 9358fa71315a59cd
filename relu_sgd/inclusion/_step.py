"""One step along the inclusion: implicit in the activation, so that preactivations slide without chatter.

The method of `inclusion`, whose docstring says what it computes; `inclusion.solve` chooses the steps.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Int8

from relu_sgd._algebra import matmul
from relu_sgd.inclusion._lines import Lines
from relu_sgd.inclusion._multipliers import Kinks, compact, solve_slopes
from relu_sgd.network import Params, TrainedLayers

__all__ = ["SlidingStep", "State", "Step", "Velocity", "squared_norm"]

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
    C: Float[Array, "N d1"]  # c_ij of every sample.
    jumps: Float[Array, "N d1"]  # Of the speed of a kink, from slope 0 to slope 1; 0 at samples that lead no line.
    held: Bool[Array, "N d1"]  # At 0, and staying there.
    resting: Int[Array, ""]
    loss: Float[Array, ""]
    branches: Bool[Array, ""]
    undecided: Bool[Array, ""]
    too_many: Bool[Array, ""]


class State(NamedTuple):
    """An integration between two steps."""

    started: Bool[Array, ""]  # Whether `velocity` is known.
    time: Float[Array, ""]
    step_size: Float[Array, ""]
    longest: Float[Array, ""]  # The longest step so far.
    params: Params
    sides: Int8[Array, "N d1"]
    velocity: Velocity
    dissipated: Float[Array, ""]  # The integral of ||theta'||^2.
    path: Float[Array, ""]  # The length of the path.
    squared_errors: Float[Array, ""]  # The sum over the steps.
    accumulated: Params  # With both layers, the errors of all steps, carried along the solution and added up.
    counts: Int[Array, "4"]  # Crossings, entries, exits, pattern changes.
    steps: Int[Array, ""]
    rejected: Int[Array, ""]
    branched_at: Float[Array, ""]

    @property
    def estimated_error(self) -> Float[Array, ""]:
        """The larger of two: the root of the sum of the squares of the steps' errors, and their sum, carried along."""
        return jnp.sqrt(jnp.maximum(self.squared_errors, squared_norm(self.accumulated)))


class Step(NamedTuple):
    """What a step comes to.

    Attributes:
      state: after it.
      error: an estimate of the norm of its error in theta.
      length: the norm of the change of theta.
      rounding: what of the error rounding alone may have made.
      fails: whether it is of no use: events found no room, or the equations no solution.
      event: the share of the step at which the neuron with the largest error has its first event, 1 if it has none.
    """

    state: State
    error: Float[Array, ""]
    length: Float[Array, ""]
    rounding: Float[Array, ""]
    fails: Bool[Array, ""]
    event: Float[Array, ""]


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


def _instantaneous_slope(speed: Array, jump: Array) -> Array:
    """The slope of a preactivation that is at 0; of those that it may have where it repels, the one that falls."""
    held = jnp.clip(speed / jnp.where(jump == 0, 1, -jump), 0, 1)
    return jnp.where(jump < 0, held, jnp.where(speed > 0, 1, 0))


def squared_norm(params: Params) -> Float[Array, ""]:
    """||W||_F^2 + ||V||_F^2."""
    return jnp.sum(params.W**2) + jnp.sum(params.V**2)


def _lengths(columns: Float[Array, "d d1"]) -> Float[Array, " d1"]:
    return jnp.linalg.norm(columns, axis=0)


def _put(array: Array, kinks: Kinks, values: Array) -> Array:
    """`array`, N x d1, with values at the kinks."""
    samples = jnp.where(kinks.present, kinks.samples, array.shape[0])
    return array.at[samples, jnp.arange(array.shape[1])[:, None]].set(values, mode="drop")


class SlidingStep:
    """The method for one problem.

    Args:
      lines: the training set, merged.
      trained_layers: "both", or "hidden" when V is fixed.
      max_kinks: room for the kinks of one neuron that are at 0 or reach it in one step.
      largest: max ||W_j|| at the start; a neuron that shrinks below sqrt(eps) of it is put at rest.
    """

    def __init__(self, lines: Lines, trained_layers: TrainedLayers, max_kinks: int, largest: Array) -> None:
        self.lines = lines
        self.X, self.Y = lines.problem
        self.both = trained_layers == "both"
        # Products with a transposed factor are slower, and XLA must not fold this one back into them.
        self.X_transposed = jax.lax.optimization_barrier(self.X.T)
        self.gram = matmul(self.X, self.X_transposed)
        self.size = jnp.linalg.norm(self.X, axis=1)[:, None]
        self.leads = lines.leads[:, None]
        self.follows = (~lines.leads & (lines.opposite < len(lines.opposite)))[:, None]
        self.max_kinks = max_kinks
        self.largest = largest
        self.smallest = jnp.sqrt(jnp.finfo(self.X.dtype).eps) * largest
        # On a single line W_j = 0 is a kink like any other.
        self.several_lines = jnp.sum(lines.leads) > 1

    def _along_rows(self, coefficients: Float[Array, "N d1"]) -> Float[Array, "N d1"]:
        """X X^T times the coefficients: the speeds of all preactivations."""
        return matmul(self.X, matmul(self.X_transposed, coefficients))

    def _at_origin(self, W: Array) -> Bool[Array, " d1"]:
        """The neurons with W_j = 0, where several lines meet."""
        return ~jnp.any(W != 0, axis=0) & self.several_lines

    def _rests(self, params: Params) -> Bool[Array, " d1"]:
        """Those whose velocity 0 is an element, with slope 0 everywhere: not so where one of two opposite rays is
        active.
        """
        silent = ~jnp.any(params.V != 0, axis=1)
        return self._at_origin(params.W) & (silent | ~jnp.any(self.follows))

    def _jumps(self, C: Float[Array, "N d1"]) -> Float[Array, "N d1"]:
        """Of the speed of every line's kink from slope 0 to slope 1: there one ray takes over from the opposite
        one.
        """
        both = C + self.lines.ratio[:, None] * jnp.take(C, self.lines.opposite, axis=0, mode="clip")
        return jnp.where(self.leads, both * self.size**2, 0)

    def _with_opposites(self, slopes: Float[Array, "N d1"], resting: Bool[Array, " d1"]) -> Float[Array, "N d1"]:
        """Slopes of every line's first ray, and 1 minus them on the opposite one; 0 where a neuron rests."""
        opposite = jnp.take(slopes, self.lines.opposite, axis=0, mode="clip")
        return jnp.where(self.follows & ~resting[None, :], 1 - opposite, slopes)

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
        jumps = self._jumps(C)
        resting = self._rests(params)
        zero = (sides == 0) & self.leads
        elsewhere = ~resting[None, :]
        at_kink = zero & (jumps != 0) & elsewhere
        at = (within.samples, jnp.arange(W.shape[1])[:, None])
        kinks = within._replace(present=within.present & at_kink[at])
        active = self._with_opposites(((sides > 0) & ~at_kink).astype(Z.dtype), resting)  # With slope 0 at the kinks.
        base = self._along_rows(active * C)
        solved, _ = solve_slopes(
            self.gram, kinks, base[at], jumps[at] / jnp.where(kinks.present, self.size[kinks.samples, 0] ** 2, 1),
            guess[at], _instantaneous_slope, (),
        )  # fmt: skip
        slopes = self._with_opposites(_put(active, kinks, solved), resting)
        W_dot = matmul(self.X_transposed, slopes * C)
        V_dot = matmul(hidden.T, errors) if self.both else jnp.zeros_like(V)
        Z_dot = matmul(self.X, W_dot)
        speed = Z_dot - jumps * slopes  # With slope 0.
        # A preactivation at 0 leaves when its multiplier has met a bound and the field there points away, rounding
        # apart.
        eps = jnp.finfo(Z.dtype).eps
        noise = jnp.sqrt(eps) * (jnp.abs(speed) + jnp.abs(jumps))
        rises, sinks = (slopes >= 1) & (speed + jumps > noise), (slopes <= 0) & (speed < -noise)
        # A kink that repels, or is about to, and has no speed of its own: it depends on others that are held, or it is
        # at the very border between falling and rising.
        largest = self.size**2 * jnp.linalg.norm(errors) * jnp.linalg.norm(V, axis=1)[None, :]
        vanishes = jnp.abs(jumps) <= 64 * eps * largest
        repels = (jumps > 0) & ~vanishes
        # At 0, where it may rise as well as fall; or stay, if the speed on one side vanishes.
        splits = repels & (speed <= 64 * eps * largest) & (speed + jumps >= -64 * eps * largest)
        still = jnp.abs(Z_dot) <= 1e3 * eps * self.size * _lengths(W_dot)[None, :]
        at_zero = zero & elsewhere
        near_zero = self.leads & (jnp.abs(Z) <= 64 * eps * self.size * _lengths(W)[None, :]) & elsewhere

        def begins_to_repel() -> Bool[Array, ""]:
            errors_dot = -matmul(slopes * Z_dot, V) - matmul(hidden, V_dot)
            C_dot = matmul(errors_dot, V.T) + matmul(errors, V_dot.T)
            jumps_dot = self._jumps(C_dot)
            low = self._along_rows(slopes * C_dot) - jumps_dot * slopes  # The acceleration with slope 0.
            return jnp.any(at_zero & vanishes & still & (jumps_dot > 0) & (low <= 0) & (low + jumps_dot >= 0))

        begins = jax.lax.cond(jnp.any(at_zero & vanishes & still), begins_to_repel, lambda: jnp.bool_(False))
        return Velocity(
            params=Params(W_dot, V_dot),
            slopes=slopes,
            Z=Z,
            Z_dot=Z_dot,
            errors=errors,
            hidden=hidden,
            C=C,
            jumps=jumps,
            held=(sides == 0) & ~rises & ~sinks & elsewhere,
            resting=jnp.sum(resting & jnp.any(V != 0, axis=1), dtype=jnp.int32),
            loss=0.5 * jnp.sum(errors**2),
            branches=jnp.any(at_zero & splits) | begins,
            undecided=jnp.any((at_zero | near_zero) & repels & still) | jnp.any(self._at_origin(W)[None, :] & repels),
            too_many=kinks.number > self.max_kinks,
        )

    def _ambiguous(self, params: Params, sides: Int8[Array, "N d1"]) -> Bool[Array, ""]:
        """Whether it may take more than the least norm of Lemma A.4's set to know the velocity at the start.

        That is so where several kinks of a neuron repel, and where kinks on dependent lines attract as well as repel:
        then the set may be larger than the Clarke subdifferential.
        """
        hidden = jnp.where(sides > 0, jnp.maximum(matmul(self.X, params.W), 0), 0)
        jumps = self._jumps(matmul(self.Y - matmul(hidden, params.V), params.V.T))
        at_kink = (sides == 0) & self.leads & (jumps != 0)
        kinks = compact(at_kink, self.max_kinks)
        rows = jnp.where(kinks.present[:, :, None], self.X[kinks.samples], 0)
        products = matmul(rows, jnp.swapaxes(rows, 1, 2))
        lengths = jnp.where(kinks.present, jnp.linalg.norm(rows, axis=2), 1)
        cosines = jnp.where(
            jnp.eye(self.max_kinks, dtype=bool)[None], 1, products / lengths[:, :, None] / lengths[:, None, :]
        )
        pivots = jnp.min(jnp.diagonal(jnp.linalg.cholesky(cosines), axis1=1, axis2=2), axis=1)
        independent = pivots > jnp.finfo(rows.dtype).eps ** 0.25  # NaN, where there is no such factor.
        repelling = jnp.sum(at_kink & (jumps > 0), axis=0)
        attracts = jnp.any(at_kink & (jumps < 0), axis=0)
        unclear = (repelling > 1) | ((repelling == 1) & attracts & ~independent)
        return jnp.any(unclear & jnp.any(params.W != 0, axis=0))

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
            longest=zero,
            params=params,
            sides=sides,
            velocity=Velocity(
                params=jax.tree.map(jnp.zeros_like, params),
                slopes=none,
                Z=Z,
                Z_dot=none,
                errors=jnp.zeros_like(self.Y),
                hidden=none,
                C=none,
                jumps=none,
                held=jnp.zeros(Z.shape, bool),
                resting=jnp.int32(0),
                loss=zero,
                branches=false,
                undecided=self._ambiguous(params, sides),
                too_many=false,
            ),
            dissipated=zero,
            path=zero,
            squared_errors=zero,
            accumulated=jax.tree.map(jnp.zeros_like, params),
            counts=jnp.zeros(4, jnp.int32),
            steps=jnp.int32(0),
            rejected=jnp.int32(0),
            branched_at=jnp.full((), jnp.inf, dtype),
        )

    def step(self, state: State, h: Array) -> Step:
        """A step of length h.

        The first step of a state that has not started finds its velocity, and moves nothing: so that is compiled once.
        """
        (W, V), now, sides = state.params, state.velocity, state.sides
        Z, Z_dot, size = now.Z, now.Z_dot, self.size
        eps = jnp.finfo(Z.dtype).eps
        # Half a step ahead.
        errors_dot = -matmul(now.slopes * Z_dot, V)
        if self.both:
            errors_dot -= matmul(now.hidden, now.params.V)
        errors = now.errors + 0.5 * h * errors_dot
        C = matmul(errors, (V + 0.5 * h * now.params.V).T)
        jumps = self._jumps(C)

        # The preactivations that are at 0 or may reach it.
        reach = jnp.abs(Z_dot) + _MARGIN * size * _lengths(now.params.W)[None, :]
        resting = self._rests(state.params)
        wanted = ((sides == 0) | (jnp.abs(Z) <= h * reach)) & self.leads & ~resting[None, :]
        kinks = compact(wanted, self.max_kinks)
        at = (kinks.samples, jnp.arange(W.shape[1])[:, None])
        active = self._with_opposites(((sides > 0) & ~wanted).astype(Z.dtype), resting)  # With slope 0 at all of them.
        base = self._along_rows(active * C)
        Z_there, sides_there, speed_there, slopes_there = Z[at], sides[at], Z_dot[at], now.slopes[at]
        jumps_there, size_there = jumps[at], size[kinks.samples, 0]

        # Where a kink repels there is no sliding, only crossing, and its time is taken from the speed at the start:
        # what is left is a monotone problem, with one solution.
        meets = Z_there * speed_there < 0
        reached = jnp.clip(jnp.abs(Z_there) / (h * jnp.where(meets, jnp.abs(speed_there), 1)), 0, 1)
        reached = jnp.where(meets, reached, 1)
        explicit = jnp.where(sides_there > 0, reached, jnp.where(sides_there < 0, 1 - reached, slopes_there))

        def relation(speed: Array, jump: Array, Z: Array, side: Array, explicit: Array) -> Array:
            return jnp.where(jump > 0, explicit, _averaged_slope(Z, side, speed, jump, h)[0])

        solved, converged = solve_slopes(
            self.gram, kinks, base[at], jumps_there / jnp.where(kinks.present, size_there**2, 1),
            slopes_there, relation, (Z_there, sides_there, explicit),
        )  # fmt: skip
        slopes = self._with_opposites(_put(active, kinks, solved), resting)
        flux = slopes * C
        mean_W = matmul(self.X_transposed, flux)
        new_W = W + h * mean_W
        # On the line that all but one of its dimensions leave it, a neuron moves straight to 0, and meets all its
        # kinks there.
        distance, speed = _lengths(W), _lengths(now.params.W)
        straight = -jnp.sum(W * now.params.W, axis=0) >= (1 - eps**0.75) * distance * speed
        vanishes = (_lengths(new_W) <= self.smallest) & (jnp.sum(W * mean_W, axis=0) < 0)
        arrives = (vanishes | (straight & (distance <= h * speed))) & (distance > 0) & self.several_lines
        # A balanced neuron shrinks in both layers, never to 0, and may grow again.
        arrives &= jnp.linalg.norm(V, axis=1) > 1e3 * self.smallest
        new_W = jnp.where(arrives[None, :], 0, new_W)
        new_Z = matmul(self.X, new_W)
        speeds = ((new_Z - Z) / h)[at] - solved * jumps_there
        ends = _averaged_slope(Z_there, sides_there, speeds, jumps_there, h)[1]
        # One that repels and is at 0 up to rounding is about to cross.
        scale = (self.smallest + _lengths(W) + h * _lengths(size * flux))[None, :]
        rounding = 16 * eps * size * scale
        new_there = new_Z[at]
        from_Z = jnp.sign(new_there).astype(sides.dtype)
        passed = jnp.where(jnp.abs(new_there) <= rounding[at], jnp.where(meets, -sides_there, sides_there), from_Z)
        ends = jnp.where(jumps_there > 0, passed, ends)
        new_sides = _put(sides, kinks, ends)
        new_sides = jnp.where(self.follows, -jnp.take(new_sides, self.lines.opposite, axis=0, mode="clip"), new_sides)
        resting_side = jnp.where(jnp.any(self.follows), 0, -1)
        new_sides = jnp.where(arrives[None, :], resting_side.astype(sides.dtype), new_sides)
        new_sides = jnp.where(resting[None, :], -1, new_sides)
        new_sides = jnp.where(state.started, new_sides, sides)
        # A step is of no use when a preactivation is not where its side says.
        beyond = jnp.where(new_sides == 0, jnp.abs(new_Z), -new_Z * new_sides.astype(Z.dtype))
        misplaced = beyond > jnp.sqrt(eps) * size * (scale + 1e-3 * self.largest)
        fails = (kinks.number > self.max_kinks) | ~converged | jnp.any(misplaced & ~arrives[None, :] & (size > 0))

        new_hidden = jnp.where(new_sides > 0, jnp.maximum(new_Z, 0), 0)
        mean_V = 0.5 * matmul((now.hidden + new_hidden).T, errors) if self.both else jnp.zeros_like(V)
        params = Params(new_W, V + h * mean_V)
        velocity = self.velocity(params, new_Z, new_sides, slopes, kinks)
        velocity = velocity._replace(undecided=velocity.undecided | now.undecided)
        branches = self._begins_to_repel(now, velocity)
        # What leaves before it would repel does not branch: a shorter step tells the two apart.
        fails |= branches & (h > 1e-3 * state.longest)
        velocity = velocity._replace(branches=velocity.branches | branches)
        dissipated = h * self._mean_square(now.params, Params(mean_W, mean_V), velocity.params)
        counts = jnp.stack(
            [
                sides * new_sides < 0,
                (sides != 0) & (new_sides == 0),
                (sides == 0) & (new_sides != 0),
                (sides > 0) != (new_sides > 0),
            ]
        )
        counts = jnp.sum(jnp.where(counts, self.lines.multiplicity[None, :, None], 0), axis=(1, 2))
        event, share, flux_of_phases = self._phases(state, velocity, new_sides, slopes, h)
        # Nor when one that repels crosses only because it has crossed, after another event of the neuron, which may
        # have held it back.
        alone = Z_there + h * (speeds + jumps_there * (sides_there > 0).astype(h.dtype))
        unsupported = (jumps_there > 0) & (ends * sides_there < 0) & (alone * sides_there.astype(h.dtype) > 0)
        follows_another = share > jnp.min(jnp.where(event, share, 1), axis=0)[None, :] + 1e-6
        fails |= jnp.any(kinks.present & unsupported & follows_another[at] & ~arrives[:, None])
        error_W = jnp.where(arrives[None, :], 0, h * matmul(self.X_transposed, flux_of_phases - flux))
        worst = jnp.argmax(jnp.sum(error_W**2, axis=0))
        first_event = jnp.min(jnp.where(event, share, 1)[:, worst])
        error_V = h * (0.5 * (now.params.V + velocity.params.V) - mean_V)
        made = Params(error_W, error_V)
        norm = lambda params: jnp.sqrt(squared_norm(params))
        error, length = norm(made), h * norm(Params(mean_W, mean_V))
        speed_scale = jnp.linalg.norm(self.X) * jnp.linalg.norm(V) * jnp.linalg.norm(self.Y)
        uncertain = velocity.branches | velocity.undecided
        moved = state._replace(
            time=state.time + h,
            params=params,
            sides=new_sides,
            velocity=velocity,
            longest=jnp.maximum(state.longest, h),
            dissipated=state.dissipated + dissipated,
            path=state.path + length,
            squared_errors=state.squared_errors + error**2,
            accumulated=self._accumulated(state, errors, slopes, new_sides, h, made),
            counts=state.counts + counts.astype(state.counts.dtype),
            steps=state.steps + 1,
            branched_at=jnp.where(uncertain, jnp.minimum(state.branched_at, state.time + h), state.branched_at),
        )
        begun = state._replace(
            started=jnp.bool_(True),
            velocity=velocity,
            branched_at=jnp.where(uncertain, state.time, jnp.inf).astype(h.dtype),
        )

        return Step(
            state=jax.tree.map(lambda a, b: jnp.where(state.started, a, b), moved, begun),
            error=error,
            length=length,
            rounding=16 * eps * (norm(params) + h * speed_scale),
            fails=fails & state.started,
            event=first_event,
        )

    def _accumulated(
        self,
        state: State,
        errors: Float[Array, "N d2"],
        slopes: Float[Array, "N d1"],
        new_sides: Int8[Array, "N d1"],
        h: Array,
        made: Params,
    ) -> Params:
        """The error of theta after a step: what the step makes of the error before, and its own.

        The former is its tangent, at fixed slopes and without what is held at 0. With V fixed L is convex within a
        pattern, an error does not grow, and 0 is returned. With both layers <error, L'' error> is
        ||J error||^2 less twice the sum of <r_ij X_i dW_j, E_i dV_j>, which alone lets it grow: to no more than that
        allows, since a stiff direction may overshoot in an explicit step.
        """
        error = state.accumulated
        if not self.both:
            return error  # 0, as it was.
        now, V = state.velocity, state.params.V
        slopes = jnp.where((state.sides == 0) | (new_sides == 0), 0, slopes)
        hidden_change = slopes * matmul(self.X, error.W)
        errors_change = -matmul(hidden_change, V) - matmul(now.hidden, error.V)
        backward = matmul(errors, error.V.T)
        W_change = matmul(self.X_transposed, slopes * (matmul(errors_change, V.T) + backward))
        V_change = matmul(hidden_change.T, errors) + matmul(now.hidden.T, errors_change)
        moved = Params(error.W + h * W_change, error.V + h * V_change)
        squared, new_squared = squared_norm(error), squared_norm(moved)
        divide = lambda a, b: a / jnp.where(b > 0, b, 1)
        growth = jnp.maximum(divide(2 * jnp.sum(hidden_change * backward), squared), 0)
        factor = jnp.sqrt(
            jnp.minimum(1, squared * jnp.exp(2 * h * growth) / jnp.where(new_squared > 0, new_squared, 1))
        )
        return jax.tree.map(lambda carried, new: factor * carried + new, moved, made)

    def _phases(
        self, state: State, after: Velocity, new_sides: Int8[Array, "N d1"], mean_slopes: Float[Array, "N d1"], h: Array
    ) -> tuple[Bool[Array, "N d1"], Float[Array, "N d1"], Float[Array, "N d1"]]:
        """Which preactivations arrive at 0 in a step, at which share of it, and the average of r_ij c_ij from both
        ends of the step.

        The step takes c_ij from its middle, and the average is what that is compared with: without an event the
        trapezoidal rule, with one the same before and after it. The time of a crossing follows from the speed at the
        start. The slopes of what is held at 0 jump when the neuron meets an event: when, follows from their average,
        which Z_ij = 0 determines.
        """
        now, sides = state.velocity, state.sides
        divide = lambda a, b: a / jnp.where(b == 0, 1, b)
        event = (sides != 0) & (sides != new_sides)
        meets = now.Z * now.Z_dot < 0
        crossing = jnp.where(meets, divide(jnp.abs(now.Z), h * jnp.abs(now.Z_dot)), 0.5)
        sticks = (sides == 0) | (new_sides == 0)
        of_mean = divide(mean_slopes - after.slopes, now.slopes - after.slopes)
        jumps = event | (sticks & jnp.any(event, axis=0)[None, :])
        share = jnp.where(jumps, jnp.clip(jnp.where(sticks, of_mean, crossing), 0, 1), 0.5)
        change = after.C - now.C
        first = jnp.where(jumps, now.C + 0.5 * share * change, now.C)
        second = jnp.where(jumps, after.C - 0.5 * (1 - share) * change, after.C)
        return event, share, share * now.slopes * first + (1 - share) * after.slopes * second

    def _begins_to_repel(self, now: Velocity, after: Velocity) -> Bool[Array, ""]:
        """Whether a sliding preactivation ceases to be attracted within a step, and so branches.

        If its speed with slope 0 is not near 0 at that moment, then its multiplier has reached a bound, and it has
        left, before.
        """
        slid = now.held & (now.jumps < 0) & (after.jumps >= 0)
        low, new_low = now.Z_dot - now.jumps * now.slopes, after.Z_dot - after.jumps * after.slopes
        span = after.jumps - now.jumps
        then = low - (new_low - low) * now.jumps / jnp.where(slid, span, 1)
        return jnp.any(slid & (jnp.abs(then) <= 0.02 * span))

    def _mean_square(self, before: Params, mean: Params, after: Params) -> Array:
        """The average of ||theta'||^2 over a step, from the velocities at its ends and their average over it.

        A neuron that meets an event moves with its first velocity for a while and with its last for the rest: how long
        follows from the average. Without an event the velocity is close to linear, and that comes to the trapezoidal
        rule.
        """

        def part(a: Array, b: Array, c: Array, axis: int) -> Array:
            change = a - c
            squared = jnp.sum(change**2, axis=axis)
            share = jnp.sum((b - c) * change, axis=axis) / jnp.where(squared > 0, squared, 1)
            share = jnp.where(squared > 0, jnp.clip(share, 0, 1), 0.5)
            return jnp.sum(share * jnp.sum(a**2, axis=axis) + (1 - share) * jnp.sum(c**2, axis=axis))

        return part(before.W, mean.W, after.W, 0) + part(before.V, mean.V, after.V, 1)
