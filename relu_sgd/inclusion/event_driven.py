"""The differential inclusion (3) with every event located: a reference for `inclusion.solve`, for small and moderate
problems.

Between two events the pattern is fixed: which preactivations are active, and which are held at 0. There theta' is a
polynomial of theta, so Taylor's series of the solution follows from a recursion, and is summed as far as rounding lets
it. An event is a preactivation that reaches 0, or a held one that begins to let go; its time is found to rounding.

Solution concept: theta' in -dL(theta) with the Clarke subdifferential, the hull of the gradients nearby, also where
Lemma A.4's product set is larger. Samples whose rows are positive multiples of one row act as one sample, and those on
the other side of the same line through the origin share its kink: one multiplier holds them all. What a neuron does at
a kink, or where several meet, is decided by `kink_faces`; where speeds and multipliers vanish together, by the first
of their Taylor coefficients that does not. It stops where solutions branch, and where neither that nor the only
solution could be established. float64, on the host.
"""

import dataclasses
import itertools
import math
from typing import Any, Literal, NamedTuple, cast, get_args

import jax
import numpy as np
from jaxtyping import Array, Bool, Float
from scipy.optimize import brentq

from relu_sgd.inclusion._fixed_pattern import Mode, Series, TrainingLines, training_lines
from relu_sgd.inclusion._kink_faces import continuations, projection, slopes
from relu_sgd.inclusion._solve import Status
from relu_sgd.network import Params, TrainedLayers, preactivations
from relu_sgd.problem import Problem

__all__ = ["Event", "EventDrivenSolution", "solve"]

Kind = Literal["crossing", "entry", "exit"]
_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(24)
# Where margins are looked at within a window of Taylor's series, as a share of it.
_SHARES = np.linspace(0, 1, 129)
# What is below these counts as 0, relative to a neuron's own size: what may be rounding, what may belong to the same
# event, and speeds and multipliers whose sign the next order decides.
_ROUNDING, _SAME, _TIED = 1e-13, 1e-10, 1e-9
_MOST_MODES = 4096


class Event(NamedTuple):
    """A preactivation that crosses 0, begins to slide, or ceases to.

    Attributes:
      time: when.
      sample, neuron: (i, j).
      kind: what happens.
    """

    time: float
    sample: int
    neuron: int
    kind: Kind


@dataclasses.dataclass(frozen=True)
class EventDrivenSolution:
    """A solution at the times that were asked for (fewer when it stopped early).

    Attributes:
      times, params, loss: as in `inclusion.Solution`.
      sliding: times x N x d1, which preactivations are held at 0, those of neurons that rest at W_j = 0 included.
      slopes: times x N x d1, r_ij: 1 where active, 0 where not or X_i = 0, the multiplier where held. One choice of
        them where held lines are dependent. The slopes of X_i and of -X_i add up to 1.
      energy_residual: L(0) - L(t) - integral of ||theta'||^2, by Gauss's quadrature between events.
      events: all of them, in order, those of the time 0 apart; one for every sample whose preactivation takes part.
      status: REACHED; MAX_STEPS_REACHED after `max_events`; BRANCHING; UNDECIDED; DIVERGED where theta is not finite
        any more.
      stopped_at: the time reached.
    """

    times: Float[np.ndarray, " times"]
    params: Params
    loss: Float[np.ndarray, " times"]
    sliding: Bool[np.ndarray, "times N d1"]
    slopes: Float[np.ndarray, "times N d1"]
    energy_residual: Float[np.ndarray, " times"]
    events: tuple[Event, ...]
    status: Status
    stopped_at: float


def _first_event(margins: np.ndarray, floors: np.ndarray, share: float = 1.0) -> tuple[float, int] | None:
    """The first share of the window at which a polynomial falls below its floor, and which; None if none does."""
    heights = margins - np.eye(len(margins), 1) * floors
    values = (_SHARES[:, None] ** np.arange(len(margins))) @ heights
    falls: list[tuple[float, int]] = []
    for m in np.flatnonzero((values < 0).any(axis=0)):
        after = int(np.argmax(values[:, m] < 0))
        falls.append((_root(heights[:, m], _SHARES[max(after - 1, 0)], _SHARES[after]), int(m)))
    # One that dips and returns between two looks: the parabola through three of them is below.
    before, middle, after_ = values[:-2], values[1:-1], values[2:]
    bend = before - 2 * middle + after_
    lowest = middle - (after_ - before) ** 2 / np.where(bend > 0, 8 * bend, 1)
    dips = (middle <= before) & (middle <= after_) & (middle >= 0) & (bend > 0) & (lowest < 0.01 * bend)
    for k, m in np.argwhere(dips):
        looks = np.linspace(_SHARES[k], _SHARES[k + 2], 257)
        depths = (looks[:, None] ** np.arange(len(heights))) @ heights[:, m]
        if depths.min() < 0:
            first = int(np.argmax(depths < 0))
            falls.append((_root(heights[:, m], looks[first - 1], looks[first]), int(m)))
    return min(falls) if falls else None


def _root(polynomial: np.ndarray, left: float, right: float) -> float:
    value = lambda share: float(np.polynomial.polynomial.polyval(share, polynomial))
    return float(brentq(value, left, right, xtol=1e-16, rtol=8.9e-16)) if value(left) > 0 else float(left)


def _settle(mode: Mode, W: np.ndarray, V: np.ndarray, at_kink: np.ndarray) -> Mode | Status:
    """The mode right after a time at which some neurons are on kinks.

    Args:
      mode: the one before, of which the neurons without a kink keep their sides.
      W, V: d0 x d1 and d1 x d2, with W_j on the kinks to rounding.
      at_kink: L x d1, all lines that the neurons in question are on.
    """
    lines, both = mode.lines, mode.both
    X, line, orientation = lines.X, lines.line, lines.orientation
    neurons = np.flatnonzero(at_kink.any(axis=0))
    sides = np.where(at_kink, 0, mode.sides)
    hidden = (sides[line] * orientation[:, None] > 0) * (X @ W)
    E = lines.Y - hidden @ V
    sizes, _ = mode.sizes(W, V)
    resolution = sizes * np.linalg.norm(X, axis=1).sum() * np.abs(E).max(initial=0)
    if np.abs(E).max(initial=0) <= _ROUNDING * np.abs(lines.Y).max(initial=0):
        return Mode(lines, sides, both, mode)  # Solved: nothing moves.
    choices: list[list[tuple[np.ndarray, bool]]] = []
    is_convex = True
    for j in neurons:
        at = np.flatnonzero(at_kink[:, j])
        output, scale = V[j], 1.0
        if np.linalg.norm(output) <= _TIED * sizes[j]:
            # Without an output weight the velocity begins with its derivative.
            output = hidden[:, j] @ E if both else np.zeros_like(output)
            scale = float(np.linalg.norm(X) * np.linalg.norm(E))
            if np.linalg.norm(output) <= _TIED * sizes[j] * scale:
                if both and hidden[:, j].any():
                    return Status.UNDECIDED
                choices.append([(sides[:, j], True)])  # It rests.
                continue
        field = lines.field(E @ output, sides[:, j])
        size = np.abs(field.above).sum() + np.abs(field.below).sum() + np.linalg.norm(field.free)
        tolerance = _TIED * size + _SAME * scale * resolution[j]
        continued = continuations(field, tolerance)
        if isinstance(continued, Status):
            return continued
        own = []
        for continuation in continued:
            for option in continuation.options:
                new_sides = sides[:, j].copy()
                new_sides[at] = option
                own.append((new_sides, continuation.is_sure))
                is_convex &= continuation.is_sure or bool((field.above - field.below < -tolerance).all())
        is_convex &= len(continued) == 1
        choices.append(own)
    if math.prod(map(len, choices)) == 1:
        return _with_sides(mode, neurons, tuple(own[0] for own in choices))
    kept: list[tuple[Mode, Series]] = []
    for number, candidate in enumerate(itertools.product(*choices)):
        if number == _MOST_MODES:
            return Status.UNDECIDED
        new = _with_sides(mode, neurons, candidate)
        unsure = neurons[[not is_sure for _, is_sure in candidate]]
        series = new.series(W, V, order=8)
        if not _begins_inside(new, series, unsure, at_kink):
            continue
        if is_convex:
            return new
        if not any(_is_same(series, other) for _, other in kept):
            kept.append((new, series))
    if len(kept) > 1:
        return Status.BRANCHING
    return kept[0][0] if kept else Status.UNDECIDED


def _with_sides(mode: Mode, neurons: np.ndarray, candidate: tuple[tuple[np.ndarray, bool], ...]) -> Mode:
    sides = mode.sides.copy()
    for j, (new_sides, _) in zip(neurons, candidate, strict=True):
        sides[:, j] = new_sides
    return Mode(mode.lines, sides, mode.both, mode)


def _begins_inside(mode: Mode, series: Series, neurons: np.ndarray, at_kink: np.ndarray) -> bool:
    """Whether the first Taylor coefficient of every margin that rounding does not explain is positive."""
    of_neurons = np.isin(mode.margin_neurons, neurons)
    of_neurons[: len(mode.loose)] &= at_kink[tuple(mode.loose.T)]
    _, sizes = mode.sizes(series.W[0], series.V[0])
    coefficients = mode.margins(series)[:, of_neurons] / np.where(sizes > 0, sizes, 1)[of_neurons]
    significant = np.abs(coefficients) > _TIED
    first = np.take_along_axis(coefficients, np.argmax(significant, axis=0)[None], axis=0)
    return bool(((first > 0) | ~significant.any(axis=0)).all())


def _is_same(one: Series, other: Series) -> bool:
    scale = np.abs(one.W[0]).max() + np.abs(one.V[0]).max()
    return all(np.abs(a - b).max() <= 1e-8 * scale for a, b in ((one.W, other.W), (one.V, other.V)))


@np.errstate(over="ignore", invalid="ignore")  # What overflows ends as DIVERGED.
def solve(
    params: Params,
    problem: Problem,
    times: Float[np.ndarray, " times"],
    *,
    trained_layers: TrainedLayers = "both",
    max_events: int = 10_000,
    kink_tolerance: float | None = None,
) -> EventDrivenSolution:
    """The solution of theta' in -dL(theta), event by event.

    Args:
      params, problem, times, trained_layers, kink_tolerance: as for `inclusion.solve`.
      max_events: the number of events after which to stop.

    Raises:
      ValueError: shapes do not fit, something is not finite, times are negative or do not increase, or an option is
        not allowed.
    """
    jax.eval_shape(preactivations, params, problem)  # Shapes.
    W, V, X, Y = (np.array(array, float) for array in (*params, *problem))
    for name, array in (("W", W), ("V", V), ("X", X), ("Y", Y)):
        if not np.isfinite(array).all():
            raise ValueError(f"{name} of shape {array.shape} has entries that are not finite")
    times = np.atleast_1d(np.asarray(times, float))
    if not len(times) or times[0] < 0 or (np.diff(times) <= 0).any() or not np.isfinite(times).all():
        raise ValueError(f"times must be finite, not negative and increase, got {times}")
    if trained_layers not in get_args(TrainedLayers):
        raise ValueError(f"trained_layers must be one of {get_args(TrainedLayers)}, got {trained_layers!r}")
    if kink_tolerance is None:
        kink_tolerance = 8 * np.finfo(float).eps
    elif not kink_tolerance >= 0:
        raise ValueError(f"kink_tolerance must not be negative, got {kink_tolerance}")
    lines, both = training_lines(X, Y), trained_layers == "both"
    loss = lambda W, V: 0.5 * float(np.sum((Y - np.maximum(X @ W, 0) @ V) ** 2))

    Z = lines.units @ W
    sides = np.where(np.abs(Z) <= kink_tolerance * np.linalg.norm(W, axis=0), 0, np.sign(Z)).astype(int)
    at_kink = sides == 0
    W = _onto(lines, W, at_kink)
    mode = Mode(lines, sides, both)
    now, initial, dissipated, status = 0.0, loss(W, V), 0.0, Status.REACHED
    settled = _settle(mode, W, V, at_kink) if np.isfinite(initial) else Status.DIVERGED
    if isinstance(settled, Status):
        status = settled
    else:
        mode = settled
    events: list[Event] = []
    records: list[tuple[Any, ...]] = []
    standstill = 0
    for until in times:
        while now < until and status == Status.REACHED:
            if not mode.is_watched or standstill > 1000:
                status = Status.UNDECIDED
                break
            series = mode.series(W, V)
            margins = mode.margins(series)
            window = min(series.window(), 1e9 * series.unit, until - now)
            if not (np.isfinite(margins).all() and np.isfinite(series.W).all() and np.isfinite(series.V).all()):
                status = Status.DIVERGED
                break
            _, sizes = mode.sizes(W, V)
            # What begins a little below 0 by rounding must fall further.
            floors = 2 * np.minimum(margins[0], 0) - _ROUNDING * sizes
            shares = (window / series.unit) ** np.arange(len(margins))[:, None]
            event = _first_event(margins * shares, floors)
            duration = window if event is None else event[0] * window
            dissipated += duration / 2 * float(_WEIGHTS @ series.squared_speeds(duration / 2 * (_NODES + 1)))
            standstill = standstill + 1 if now + duration == now else 0
            now = until if duration == until - now else now + duration
            W, V = series.at(duration)
            if event is None:
                continue
            at_kink = _arrived(mode, series, margins, sizes, duration, event[1])
            W = _onto(lines, W, at_kink)
            settled = _settle(mode, W, V, at_kink)
            if isinstance(settled, Status):
                status = settled
                break
            events.extend(_events(lines, mode.sides, settled.sides, now))
            mode = settled
            if len(events) >= max_events:
                status = Status.MAX_STEPS_REACHED
        if now < until:
            break
        records.append((now, W, V, loss(W, V), *_pattern(lines, mode, W, V), initial - loss(W, V) - dissipated))
    columns = [np.array(column) for column in zip(*records, strict=True)] or [np.zeros(0)] * 7
    reached, W_there, V_there, losses, sliding, chosen, residual = columns
    return EventDrivenSolution(
        times=reached,
        params=Params(cast(Array, W_there), cast(Array, V_there)),
        loss=losses,
        sliding=sliding,
        slopes=chosen,
        energy_residual=residual,
        events=tuple(events),
        status=status,
        stopped_at=float(now),
    )


def _onto(lines: TrainingLines, W: np.ndarray, at_kink: np.ndarray) -> np.ndarray:
    """W with what rounding has left of the preactivations that are at 0 taken away."""
    W = W.copy()
    for j in np.flatnonzero(at_kink.any(axis=0)):
        for _ in range(2):
            W[:, j] = projection(lines.units[at_kink[:, j]]) @ W[:, j]
    return W


def _arrived(mode: Mode, series: Series, margins: np.ndarray, sizes: np.ndarray, t: float, first: int) -> np.ndarray:
    """L x d1, the lines that the neurons of the event are on: the one whose margin fell first, and those that arrive
    with it.
    """
    W, V = series.at(t)
    k = np.arange(len(margins))
    values, slopes_ = ((t / series.unit) ** k) @ margins, (k[1:] * (t / series.unit) ** k[:-1]) @ margins[1:]
    arriving = (values <= _SAME * sizes) & (slopes_ < 0)
    arriving[len(mode.loose) :] = False
    arriving[first] = True
    neurons, _ = mode.sizes(W, V)
    near = (np.abs(mode.lines.units @ W) <= _SAME * neurons) | (mode.sides == 0)
    if first < len(mode.loose):
        near[tuple(mode.loose[first])] = True
    return near & np.isin(np.arange(W.shape[1]), mode.margin_neurons[arriving])


def _events(lines: TrainingLines, before: np.ndarray, after: np.ndarray, now: float) -> list[Event]:
    events = []
    for line, j in np.argwhere(before != after):
        kind: Kind = "exit" if before[line, j] == 0 else "entry" if after[line, j] == 0 else "crossing"
        members = np.flatnonzero((lines.sample_line == line) & (lines.sample_orientation != 0))
        events += [Event(float(now), int(i), int(j), kind) for i in members]
    return events


def _pattern(lines: TrainingLines, mode: Mode, W: np.ndarray, V: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """N x d1, which preactivations of the samples are held, and their slopes."""
    along = (mode.sides > 0).astype(float)
    c = (lines.Y - mode.hidden(W) @ V) @ V.T
    for j in np.flatnonzero((mode.sides == 0).any(axis=0)):
        along[mode.sides[:, j] == 0, j] = slopes(lines.field(c[:, j], mode.sides[:, j]))
    orientation = lines.sample_orientation[:, None]
    along = along[lines.sample_line] if len(along) else np.zeros((len(orientation), along.shape[1]))
    held = (mode.sides[lines.sample_line] == 0) & (orientation != 0) if len(mode.sides) else np.zeros(along.shape, bool)
    return held, np.where(orientation > 0, along, np.where(orientation < 0, 1 - along, 0))
