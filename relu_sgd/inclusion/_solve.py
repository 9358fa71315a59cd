"""Solutions of the differential inclusion theta' in -dL(theta), (3) of the paper, with their sliding modes.

Which solutions. Those of the Clarke subdifferential. A solution moves, at almost every time, with its element of least
norm (Lemma A.2): where X_i W_j != 0 the slope r_ij of relu is 1 or 0, and where X_i W_j = 0 it is a multiplier in [0,
1]. A preactivation *slides* when it is held at 0 by a multiplier strictly between 0 and 1: c_ij = <E_i, V_j> is then
negative and both fields point at the surface. It leaves when its multiplier reaches 0 or 1, and crosses where both
fields point the same way. Samples on one line through 0 share their kinks and are merged (`lines`); then the least
norm over one multiplier per line is that of the Clarke subdifferential, unless kinks of a neuron on dependent lines
attract as well as repel (`clarke`).

Uniqueness. The velocity is unique, so the ambiguity of Filippov systems where surfaces meet does not arise. Solutions
can still branch: where c_ij > 0 and both fields point away from the surface, staying, rising and falling are all
solutions. The integrator stops there and says so (Status.BRANCHING), unless it is told to go on, falling. With both
layers trained that happens in ordinary runs: when the sign of V_j changes while neuron j has sliding preactivations,
they all begin to repel. It stops as well where kinks on dependent lines leave the velocity open (Status.UNDECIDED);
told to go on it takes that of Lemma A.4's set.

A neuron whose weights W_j reach 0, all preactivations at once, rests there: slope 0 everywhere gives it velocity 0.
While all its kinks attract that is the only solution; otherwise it is undecided. It is common when V is fixed.

The method. A step of length h is implicit in the activation and explicit in the error. With c from a half step, every
preactivation gets the average of its slope over the step: it moves with its present slope until it reaches 0, and from
there slides, or crosses. All of a neuron's preactivations are coupled through X X^T and solved for together
(`multipliers`); those that repel cannot slide, and are taken from the speed at the step's start. So a sliding
preactivation is held at 0 and does not chatter. Inside a pattern of activations the step is the explicit midpoint
rule, of second order; an event is located within its step to first order in h, which costs O(h^2).

The error of a step in theta is estimated from both its ends: c there, at each event's share of the step, in place of c
from the middle. Where one event of a neuron brings about another, which costs O(h), the estimate shows it, and the
step is taken again up to the event. The energy identity takes no part in that: it audits the result. `event_driven`
locates every event, for small problems.
"""

import functools
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Int8

from relu_sgd._algebra import hidden_jacobian_gram, matmul
from relu_sgd._checks import check_fields
from relu_sgd.clarke import kink_sides
from relu_sgd.dynamics import Status
from relu_sgd.inclusion._lines import merge
from relu_sgd.inclusion._step import SlidingStep, State, Velocity, squared_norm
from relu_sgd.network import Params, TrainedLayers, preactivations
from relu_sgd.problem import Problem

__all__ = ["Solution", "Status", "solve"]

# A step may change by these factors from one to the next, and aims at what leaves some room: a rejected step costs as
# much as one that counts.
_SHRINK, _GROW, _AIM = 0.3, 1.25, 0.7
# How much of the error that is left one step may make, and how much of its own length.
_SAVED, _LARGEST_ERROR = 0.1, 0.05


class Solution(NamedTuple):
    """A solution at the times that were asked for; after an early stop, the last state is repeated with its own time.

    Attributes:
      times: flow times of L = 1/2 ||Y - Yhat||_F^2, which has the dimension of 1 / (||X||^2 ||V||^2).
      params: W: times x d0 x d1, V: times x d1 x d2.
      loss: L.
      sliding: times x N x d1, which preactivations are held at 0 (none of a sample X_i = 0).
      slopes: times x N x d1, r_ij: 1 where active, 0 where not, the multiplier where sliding. Samples on opposite rays
        have multipliers that sum to 1.
      velocity_norm: ||theta'|| = dist(0, set), from the right.
      resting: the number of neurons that rest at W_j = 0; their preactivations do not count as sliding.
      crossings, entries, exits: so far, preactivations that went through 0, began to slide, ceased to.
      pattern_changes: so far, changes of the activation pattern Z > 0.
      path_length: the length of theta's path from 0 to t.
      estimated_error: theta's estimated error: the root of the sum of the squares of the steps' estimated errors; with
        both layers their sum, if that is larger, which follows how errors grow along the solution between its events.
        Growth at crossings with c_ij > 0 is not in it.
      energy_residual: L(0) - L(t) - integral of ||theta'||^2, 0 for a solution (Lemma A.2, whose second display lacks
        the square).
      balance_residual: the largest change of ||W_j||^2 - ||V_j||^2 over the neurons, 0 for a solution; NaN when V is
        fixed.
      envelope_slack: L(0) exp(-2 integral of alpha_0^2) - L(t), not negative for a solution (Proposition 2.1), with
        alpha_0 = sigma_min(H^T), the integral by the trapezoidal rule over `times`. When V is fixed, alpha_0^2 is the
        least eigenvalue of the Gram matrix of the Jacobian with respect to W instead (Appendix G).
      status: a `Status`.
      steps, rejected: accepted and rejected steps.
      branched_at: the time of the first branching or undecided kink, or when errors had grown too large; infinite when
        none was met.
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
    path_length: Float[Array, " times"]
    estimated_error: Float[Array, " times"]
    energy_residual: Float[Array, " times"]
    balance_residual: Float[Array, " times"]
    envelope_slack: Float[Array, " times"]
    status: Int8[Array, ""]
    steps: Int[Array, ""]
    rejected: Int[Array, ""]
    branched_at: Float[Array, ""]


def _check_arguments(
    params: Params, problem: Problem, times: Any, step_size: Any, tolerance: float, max_steps: int
) -> None:
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
    """The solution of theta' in -dL(theta) from theta(0) = params, L = 1/2 ||Y - Yhat||_F^2. See the module's
    docstring.

    Once ||Y - Yhat||_F is below a tenth of sqrt(eps) ||Y||_F the solution counts as at rest, and is the same at all
    later times. jit and vmap work; without jit too it is compiled once for arguments of the same shapes and the same
    options. In float32 a sliding preactivation is held to about 1e-7; use float64 to count
    small things.

    Args:
      params: theta(0); its dtype is the precision of everything.
      problem: the training set.
      times: increasing, when to record; or one number, the final time, recorded alone.
      trained_layers: "both", or "hidden" when V is fixed.
      step_size: the length of every step; adapted when None.
      tolerance: for adapted steps, the largest root of the sum of the squares of their errors relative to
        `path_length`, at every time. Where `estimated_error` has grown beyond the root of the tolerance, relative to
        the path, which solution it is counts as undecided.
      relative_error: stop once ||Y - Yhat||_F / ||Y||_F is below it.
      max_steps: largest number of steps, rejected ones included.
      max_kinks: room for the preactivations of one neuron that are at 0 or reach it in one step; min(N, 32) when None.
        Adapted steps shrink when it is exceeded within a step.
      kink_tolerance: which preactivations of theta(0) are at 0, see `clarke.kink_sides`.
      stop_at_branching: whether to stop where the solution branches or is undecided, or to go on; with the solution in
        which a kink falls.

    Raises:
      TypeError: params or problem are of another kind.
      ValueError: shapes do not fit, params or problem are not finite, times are negative or do not increase, a step
        size is not positive, the tolerance is below eps, or an option is not allowed.
    """
    check_fields("params", params, Params)
    check_fields("problem", problem, Problem)
    # NumPy's float64 becomes what JAX computes in, so that eps is that of the arithmetic.
    params, problem = jax.tree.map(jnp.asarray, (params, problem))
    times = jnp.atleast_1d(jnp.asarray(times, params.W.dtype))
    _check_arguments(params, problem, times, step_size, tolerance, max_steps)
    if trained_layers not in get_args(TrainedLayers):
        raise ValueError(f"trained_layers must be one of {get_args(TrainedLayers)}, got {trained_layers!r}")
    num_samples = problem.X.shape[0]
    room = min(num_samples, 32) if max_kinks is None else max_kinks
    if not 1 <= room <= num_samples:
        raise ValueError(f"max_kinks must lie in [1, N = {num_samples}], got {max_kinks}")
    numbers = {
        "step_size": step_size,
        "tolerance": tolerance,
        "relative_error": relative_error,
        "kink_tolerance": kink_tolerance,
    }
    # Numbers are constants of the program, arrays are its arguments.
    arrays = {name: value for name, value in numbers.items() if isinstance(value, jax.Array | np.ndarray)}
    constants = tuple((name, value) for name, value in numbers.items() if name not in arrays)
    return _solution(
        params, problem, times, arrays, constants, trained_layers, max_steps, room, bool(stop_at_branching)
    )


@functools.partial(
    jax.jit, static_argnames=("constants", "trained_layers", "max_steps", "room", "stop_at_branching"), inline=True
)
def _solution(
    params: Params,
    problem: Problem,
    times: Float[Array, " times"],
    arrays: dict[str, Array],
    constants: tuple[tuple[str, Any], ...],
    trained_layers: TrainedLayers,
    max_steps: int,
    room: int,
    stop_at_branching: bool,
) -> Solution:
    """`solve`, whose arguments have been checked; those with the names of numbers are in `arrays` or `constants`."""
    numbers = {**arrays, **dict(constants)}
    step_size, tolerance = numbers["step_size"], numbers["tolerance"]
    relative_error, kink_tolerance = numbers["relative_error"], numbers["kink_tolerance"]
    dtype = params.W.dtype
    lines = merge(problem)
    integrator = SlidingStep(lines, trained_layers, room, jnp.max(jnp.linalg.norm(params.W, axis=0)))
    sides = kink_sides(params, lines.problem, kink_tolerance)
    sides = sides.at[lines.opposite].set(-sides, mode="drop")
    final = times[-1]
    label_norm = jnp.linalg.norm(problem.Y)
    merged_label_norm = jnp.linalg.norm(lines.problem.Y)
    smallest = jnp.finfo(dtype).eps * 16 * jnp.maximum(final, jnp.finfo(dtype).tiny)

    choose = lambda which, a, b: jax.tree.map(lambda a, b: jnp.where(which, a, b), a, b)

    def stopped(state: State) -> Array:
        now = state.velocity
        small = jnp.sqrt(2 * (now.loss + lines.offset)) < relative_error * label_norm
        split = (now.branches | now.undecided) & stop_at_branching
        return small | split | now.too_many | ~jnp.isfinite(now.loss) | (state.steps + state.rejected >= max_steps)

    def solved(state: State) -> Array:
        """Errors are so small that rounding has taken half of their digits: to go on would let noise decide what
        slides.
        """
        return jnp.sqrt(2 * state.velocity.loss) <= 0.1 * jnp.sqrt(jnp.finfo(dtype).eps) * merged_label_norm

    def first_step_size(velocity: Velocity) -> Array:
        """Of an explicit step that changes the loss by a tenth."""
        rate = squared_norm(velocity.params)
        return jnp.where(rate > 0, jnp.minimum(0.1 * velocity.loss / jnp.where(rate > 0, rate, 1), final), final)

    def give_up(state: State, strays: Array, h: Array) -> Velocity:
        """Events that find no room in however short a step come at the same time, or nearly so."""
        at_once = strays & (h < 1e-9 * final)
        return state.velocity._replace(too_many=state.velocity.too_many | at_once)

    def advance(state: State, until: Array) -> State:
        left = until - state.time
        # The last steps before a record are of equal length, rather than one full and one tiny.
        count = jnp.maximum(jnp.ceil(left / state.step_size * (1 - 1e-6)), 1)
        h = jnp.where(state.started, left / count, 1)  # Where there is no velocity yet any length will do.
        step = integrator.step(state, h)
        new = step.state._replace(time=jnp.where(count == 1, until, step.state.time))
        if step_size is not None:
            # Events that found no room would be lost: the step is taken in two.
            retry = state._replace(rejected=state.rejected + 1, step_size=h / 2, velocity=give_up(state, step.fails, h))
            fixed_size = jnp.asarray(step_size, dtype)
            return choose(step.fails, retry, new._replace(step_size=fixed_size, longest=fixed_size))
        # Errors of different steps add up like their squares. What earlier steps have not used of their share is left
        # to later ones, but no step may be off by much of its own length.
        path = state.path + step.length
        unused = jnp.maximum((tolerance * path) ** 2 - state.squared_errors, 0)
        share = jnp.sqrt(2 * tolerance**2 * path * step.length + _SAVED * unused)
        budget = jnp.minimum(share, jnp.maximum(tolerance, _LARGEST_ERROR) * step.length)
        ratio = budget / jnp.maximum(step.error, jnp.finfo(dtype).tiny)
        factor = jnp.where(jnp.isfinite(step.error), jnp.clip(_AIM * jnp.sqrt(ratio), _SHRINK, _GROW), _SHRINK)
        factor = jnp.where(step.fails, jnp.minimum(factor, 0.5), factor)
        # What rounding alone makes cannot be mended by a smaller step.
        noisy = step.error <= step.rounding
        good = ((step.error <= budget) | noisy | (h <= smallest)) & ~step.fails
        longest = jnp.where(good, jnp.maximum(state.step_size, h * factor), h * factor)
        # Half of the digits that were asked for are lost to the growth of errors along the solution.
        lost = new.estimated_error > jnp.sqrt(tolerance) * path
        lost &= state.started & ~noisy
        new = new._replace(
            velocity=new.velocity._replace(undecided=new.velocity.undecided | lost),
            branched_at=jnp.where(lost, jnp.minimum(new.branched_at, new.time), new.branched_at),
        )
        new = new._replace(step_size=jnp.where(noisy, h * _GROW, jnp.where(count == 1, longest, h * factor)))
        first = first_step_size(new.velocity)
        new = new._replace(
            step_size=jnp.where(state.started, new.step_size, first),
            longest=jnp.where(state.started, new.longest, first),
        )
        # Where one event brings about another, the step has to end with it.
        at_event = (step.event > 0.02) & (step.event < 0.98) & ~step.fails
        shorter = jnp.where(at_event, step.event, jnp.minimum(factor, _AIM))
        retry = state._replace(
            step_size=h * shorter, rejected=state.rejected + 1, velocity=give_up(state, step.fails, h)
        )
        return choose(good | ~state.started, new, retry)

    def record(state: State, until: Array) -> tuple[State, dict[str, Any]]:
        unfinished = lambda state: ~state.started | ((state.time < until) & ~stopped(state) & ~solved(state))
        state = jax.lax.while_loop(unfinished, lambda state: advance(state, until), state)
        state = state._replace(time=jnp.where(solved(state) & ~stopped(state), until, state.time))
        now = state.velocity
        # Every sample has the slopes of its ray.
        slopes, held = now.slopes[lines.first], now.held[lines.first] & jnp.any(problem.X != 0, axis=1)[:, None]
        hidden = jnp.where(slopes > 0, jnp.maximum(matmul(problem.X, state.params.W), 0), 0)
        return state, {
            "times": state.time,
            "params": state.params,
            "loss": now.loss + lines.offset,
            "sliding": held,
            "slopes": slopes,
            "resting": now.resting,
            "velocity_norm": jnp.sqrt(squared_norm(now.params)),
            "crossings": state.counts[0],
            "entries": state.counts[1],
            "exits": state.counts[2],
            "pattern_changes": state.counts[3],
            "path_length": state.path,
            "estimated_error": state.estimated_error,
            "energy_residual": -now.loss - lines.offset - state.dissipated,
            "rate": _least_rate(slopes, hidden, state.params, problem, trained_layers),
        }

    # The first record is theta(0).
    state, records = jax.lax.scan(
        record, integrator.start(params, sides), jnp.concatenate([jnp.zeros(1, dtype), times])
    )
    initial_loss = records["loss"][0]
    rates = records.pop("rate")
    exponent = jnp.cumsum(jnp.diff(records["times"]) * (rates[1:] + rates[:-1]) / 2)
    records = jax.tree.map(lambda record: record[1:], records)
    records["energy_residual"] += initial_loss
    balance = lambda p: jnp.sum(p.W**2, axis=-2) - jnp.sum(p.V**2, axis=-1)
    drift = jnp.max(jnp.abs(balance(records["params"]) - balance(params)[None, :]), axis=-1)
    now = state.velocity
    status = jnp.where(state.time >= final, Status.REACHED, Status.MAX_STEPS_REACHED)
    met = jnp.sqrt(2 * (now.loss + lines.offset)) < relative_error * label_norm
    status = jnp.where(met, Status.REACHED, status)
    status = jnp.where(now.undecided & stop_at_branching, Status.UNDECIDED, status)
    status = jnp.where(now.branches & stop_at_branching, Status.BRANCHING, status)
    status = jnp.where(now.too_many, Status.KINK_LIMIT, status)
    return Solution(
        **records,
        balance_residual=drift if trained_layers == "both" else jnp.full_like(drift, jnp.nan),
        envelope_slack=initial_loss * jnp.exp(-2 * exponent) - records["loss"],
        status=jnp.where(jnp.isfinite(now.loss), status, Status.DIVERGED).astype(jnp.int8),
        steps=state.steps,
        rejected=state.rejected,
        branched_at=state.branched_at,
    )


def _least_rate(
    slopes: Array, hidden: Array, params: Params, problem: Problem, trained_layers: Literal["hidden", "both"]
) -> Array:
    """alpha_0^2, or its counterpart when V is fixed: ||theta'||^2 is at least this times ||E||^2."""
    num_samples, d2 = problem.Y.shape
    d0, d1 = params.W.shape
    if trained_layers == "both":
        if d1 < num_samples:  # H has no full row rank.
            return jnp.zeros((), params.W.dtype)
        return jnp.maximum(jnp.linalg.eigvalsh(matmul(hidden, hidden.T))[0], 0)
    if d0 * d1 < num_samples * d2:
        return jnp.zeros((), params.W.dtype)
    return jnp.maximum(jnp.linalg.eigvalsh(hidden_jacobian_gram(slopes, params.V, problem.X))[0], 0)
