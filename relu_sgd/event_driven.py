"""The differential inclusion (3) with every event located: a reference for `inclusion.solve`, for small and moderate problems.

Between two events the pattern is fixed: which preactivations are active, and which slide. There the flow is smooth: with V fixed
it is linear in the error and solved by exponentials of a symmetric matrix; with both layers moving it is integrated by
diffrax (Dormand and Prince's method of order 8) to Chebyshev's points of a window as long as its fastest time scale, and
interpolated there. An event is a preactivation that reaches 0, or a multiplier that reaches 0 or 1; its time is found to
rounding, and the pattern after it by the least norm (scipy's bounded least squares). The solution concept is that of
`relu_sgd.inclusion`; it stops where solutions branch. float64, on the host.
"""

import dataclasses
from collections.abc import Callable
from typing import Literal, NamedTuple, cast

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float
from scipy.optimize import brentq, lsq_linear

from relu_sgd.clarke import kink_sides
from relu_sgd.inclusion import Status
from relu_sgd.network import Params, TrainedLayers
from relu_sgd.problem import Problem

__all__ = ["Event", "EventDrivenSolution", "solve"]

Kind = Literal["crossing", "entry", "exit"]
_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(12)
# Chebyshev's points of [0, 1], and their weights in the barycentric formula.
_POINTS = 0.5 * (1 - np.cos(np.pi * np.arange(25) / 24))
_BARYCENTRIC = (-1.0) ** np.arange(25) * np.where((_POINTS == 0) | (_POINTS == 1), 0.5, 1)
# The first event is looked for in windows of this many of the fastest time scale, or more where the flow slows down.
_WINDOW = 1.0


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
      times, params, loss, sliding, slopes: as in `inclusion.Solution`.
      energy_residual: L(0) - L(t) - integral of ||theta'||^2, by Gauss's quadrature between events.
      events: all of them, in order.
      status: REACHED; STEP_LIMIT after `max_events`; BRANCHING.
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


@dataclasses.dataclass
class _Mode:
    """A fixed pattern: what is active, what slides, and the projections that hold the sliding ones."""

    X: np.ndarray
    Y: np.ndarray
    sides: np.ndarray  # N x d1
    both: bool

    def __post_init__(self) -> None:
        d0, d1 = self.X.shape[1], self.sides.shape[1]
        self.active = (self.sides > 0).astype(float)
        self.projections = np.broadcast_to(np.eye(d0), (d1, d0, d0)).copy()
        # Row (j, i): minus what sample i's r_ij c_ij takes from neuron j's free velocity.
        self.multipliers = np.zeros((d1, len(self.X), d0))
        for j in range(d1):
            held = np.flatnonzero(self.sides[:, j] == 0)
            if len(held):
                inverse = np.linalg.pinv(self.X[held].T)
                self.projections[j] -= self.X[held].T @ inverse
                self.multipliers[j, held] = inverse

    def free(self, W: np.ndarray, V: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Errors, c, and every neuron's velocity (d1 x d0) before the sliding preactivations hold it back."""
        hidden = self.active * (self.X @ W)
        errors = self.Y - hidden @ V
        C = errors @ V.T
        return errors, C, (self.active * C).T @ self.X

    def velocity(self, W: np.ndarray, V: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        errors, _, free = self.free(W, V)
        W_dot = np.einsum("jab,jb->aj", self.projections, free)
        V_dot = (self.active * (self.X @ W)).T @ errors if self.both else np.zeros_like(V)
        return W_dot, V_dot

    def slopes(self, W: np.ndarray, V: np.ndarray) -> np.ndarray:
        _, C, free = self.free(W, V)
        forces = -np.einsum("jia,ja->ij", self.multipliers, free)
        held = self.sides == 0
        return np.where(held, forces / np.where(held & (C != 0), C, 1), self.active)

    def margins(self, W: np.ndarray, V: np.ndarray) -> np.ndarray:
        """3 x N x d1, all positive inside the mode: distance from 0; at a sliding one, from multipliers 0 and 1, and -c_ij."""
        held = self.sides == 0
        slopes = self.slopes(W, V)
        # Where c_ij stays 0 nothing begins to repel: a neuron without output weight.
        repelling = np.where(held & V.any(axis=1), -self.free(W, V)[1], np.inf)
        return np.stack(
            [np.where(held, slopes, self.sides * (self.X @ W)), np.where(held, 1 - slopes, np.inf), repelling]
        )

    def loss(self, W: np.ndarray, V: np.ndarray) -> float:
        return 0.5 * float(np.sum(self.free(W, V)[0] ** 2))


Flow = Callable[[float], tuple[np.ndarray, np.ndarray]]


def _linear_flow(mode: _Mode, W: np.ndarray, V: np.ndarray) -> tuple[Flow, float]:
    """theta(t) in a mode with V fixed: E' = -K E, and the time scale of its fastest part."""
    num_samples, d2 = mode.Y.shape
    K = np.zeros((num_samples * d2, num_samples * d2))
    for j in range(W.shape[1]):
        rows = np.einsum("i,a->ia", mode.active[:, j], V[j]).reshape(-1)
        inputs = mode.X @ mode.projections[j] @ mode.X.T
        K += np.outer(rows, rows) * np.kron(inputs, np.ones((d2, d2)))
    rates, vectors = np.linalg.eigh(K)
    rates = np.maximum(rates, 0)
    start = vectors.T @ mode.free(W, V)[0].reshape(-1)

    def at(t: float) -> tuple[np.ndarray, np.ndarray]:
        # (1 - exp(-rate t)) / rate, also where the rate is 0.
        kept = np.where(rates > 0, -np.expm1(-rates * t) / np.where(rates > 0, rates, 1), t)
        integral = (vectors @ (kept * start)).reshape(num_samples, d2)
        forces = mode.active * (integral @ V.T)
        return W + np.einsum("jab,jb->aj", mode.projections, forces.T @ mode.X), V

    return at, 1 / max(rates[-1], 1e-300)


def _field(t, theta, mode):
    W, V = theta
    X, Y, active, projections = mode
    hidden = active * (X @ W)
    errors = Y - hidden @ V
    free = (active * (errors @ V.T)).T @ X
    return jnp.einsum("jab,jb->aj", projections, free), hidden.T @ errors


@jax.jit
def _integrate(theta, mode, times):
    """The flow of a mode at increasing times, the first of which is its start; compiled once for all modes of a problem."""
    return diffrax.diffeqsolve(
        diffrax.ODETerm(_field),
        diffrax.Dopri8(),
        t0=times[0],
        t1=times[-1],
        dt0=None,
        y0=theta,
        args=mode,
        stepsize_controller=diffrax.StepTo(times),
        saveat=diffrax.SaveAt(ts=times),
        max_steps=len(_POINTS),
    ).ys


def _smooth_flow(mode: _Mode, W: np.ndarray, V: np.ndarray) -> tuple[Flow, float]:
    """theta(t) in a mode with both layers moving, for one window, and the time scale of its fastest part."""
    hidden = mode.active * (mode.X @ W)
    largest = lambda matrix: float(np.linalg.norm(matrix, 2))
    scale = 1 / max(largest(mode.X) ** 2 * largest(V) ** 2 + largest(hidden) ** 2, 1e-300)
    window = _WINDOW * scale
    flows = _integrate((W, V), (mode.X, mode.Y, mode.active, mode.projections), window * _POINTS)
    values = np.concatenate([np.reshape(flow, (len(_POINTS), -1)) for flow in flows], axis=1)

    def at(t: float) -> tuple[np.ndarray, np.ndarray]:
        distances = t / window - _POINTS
        nearest = int(np.argmin(np.abs(distances)))
        if distances[nearest] == 0:
            there = values[nearest]
        else:
            terms = _BARYCENTRIC / distances
            there = terms @ values / terms.sum()
        return there[: W.size].reshape(W.shape), there[W.size :].reshape(V.shape)

    return at, scale


def _first_event(mode: _Mode, flow: Flow, window: float) -> float | None:
    """The first time in (0, window] at which a margin is 0, None if none; margins that begin at 0 must first grow."""
    start = mode.margins(*flow(0.0))
    fresh = start <= 1e-11 * (1 + np.abs(start[np.isfinite(start)]).max())
    grid = np.linspace(0, window, 5)
    values = [start, *(mode.margins(*flow(t)) for t in grid[1:])]
    for left, right, before, after in zip(grid, grid[1:], values, values[1:], strict=False):
        suspects = np.argwhere((after < 0) & ~(fresh & (left == 0)))
        # One that dips below 0 and returns within the interval shows in its slope.
        tiny = (right - left) * 1e-4
        with np.errstate(invalid="ignore"):  # Infinite where there is no second margin.
            down = (mode.margins(*flow(left + tiny)) - before) / tiny
            up = (after - mode.margins(*flow(right - tiny))) / tiny
            reach = np.minimum(before + down * (right - left) / 2, after - up * (right - left) / 2)
            dips = np.argwhere((down < 0) & (up > 0) & (after >= 0) & (reach < 0) & ~(fresh & (left == 0)))
        times = []
        for index in map(tuple, suspects):
            times.append(_root(mode, flow, index, left, right))
        for index in map(tuple, dips):
            inside = np.linspace(left, right, 33)
            depths = [mode.margins(*flow(t))[index] for t in inside]
            lowest = inside[int(np.argmin(depths))]
            if min(depths) < 0:
                times.append(_root(mode, flow, index, left, lowest))
        # One that begins at 0 and ends below it has turned round, or never left.
        for index in map(tuple, np.argwhere((after < 0) & fresh)) if left == 0 else ():
            fractions = right * 0.5 ** np.arange(1, 50)  # It may turn round at once.
            heights = [mode.margins(*flow(t))[index] for t in fractions]
            highest = int(np.argmax(heights))
            times.append(_root(mode, flow, index, fractions[highest], right) if heights[highest] > 0 else 0.0)
        if times:
            return max(min(times), 0.0)
    return None


def _root(mode: _Mode, flow: Flow, index: tuple[int, ...], left: float, right: float) -> float:
    margin = lambda t: float(mode.margins(*flow(t))[index])
    if margin(left) <= 0:
        return left
    return float(brentq(margin, left, right, xtol=1e-15, rtol=8.9e-16))


def _settle(
    X: np.ndarray, C: np.ndarray, sides: np.ndarray, neuron: int, arrived: dict[int, int]
) -> tuple[np.ndarray, bool]:
    """The sides of a neuron's samples right after some have arrived at 0, and whether the solution branches.

    Args:
      X, C: samples, and c_ij.
      sides: N, before: 0 for those that slide.
      neuron: j.
      arrived: sample to the side that it came from; 0 for one that begins at 0.
    """
    sides = sides.copy()
    c = C[:, neuron]
    kinks = np.union1d(np.flatnonzero(sides == 0), np.array(list(arrived), int))
    repelling = [i for i in kinks if c[i] > 0]
    for i in repelling:
        sides[i] = -arrived.get(i, 0)
    attracting = np.array([i for i in kinks if c[i] <= 0], int)
    branches = False
    for _ in range(2 if any(sides[i] == 0 for i in repelling) else 1):
        active = np.flatnonzero(sides > 0)
        active = active[~np.isin(active, attracting)]
        free = X[active].T @ c[active]
        if len(attracting):
            G = c[attracting][:, None] * X[attracting]
            r = lsq_linear(G.T, -free, bounds=(0, 1), method="bvls", tol=1e-15).x
            velocity = free + r @ G
        else:
            r, velocity = np.zeros(0), free
        for i in repelling:
            if sides[i] == 0:
                low = X[i] @ velocity
                branches |= bool(low <= 0 <= low + c[i] * X[i] @ X[i])
                sides[i] = 1 if low > 0 else -1
    speeds = X[attracting] @ velocity
    scale = 1e-9 * (1 + np.abs(speeds).max(initial=0))
    new = np.where((r <= 1e-12) & (speeds < -scale), -1, np.where((r >= 1 - 1e-12) & (speeds > scale), 1, 0))
    sides[attracting] = new
    return sides, branches


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
      max_events: where to stop.

    Raises:
      ValueError: shapes do not fit, or times are negative or do not increase.
      RuntimeError: JAX runs in 32 bits (both layers only).
    """
    start_sides = np.array(kink_sides(params, problem, kink_tolerance), int)
    W, V, X, Y = (np.array(array, float) for array in (*params, *problem))
    times = np.atleast_1d(np.asarray(times, float))
    if not len(times) or times[0] < 0 or (np.diff(times) <= 0).any() or not np.isfinite(times).all():
        raise ValueError(f"times must be finite, not negative and increase, got {times}")
    both = trained_layers == "both"
    if both and not jax.config.jax_enable_x64:  # type: ignore[attr-defined]
        raise RuntimeError("both layers are integrated with JAX, which must have jax_enable_x64 set")
    sides, branches = start_sides, False
    first = _Mode(X, Y, sides, both)
    C = first.free(W, V)[1]
    for j in range(W.shape[1]):
        zeros = {int(i): 0 for i in np.flatnonzero(start_sides[:, j] == 0)}
        if zeros:
            sides[:, j], split = _settle(X, C, sides[:, j], j, zeros)
            branches |= split
    energy, now = first.loss(W, V), 0.0
    initial = energy
    dissipated = 0.0
    events: list[Event] = []
    records: list[tuple] = []
    status = Status.BRANCHING if branches else Status.REACHED
    for until in times:
        while now < until and not branches:
            mode = _Mode(X, Y, sides, both)
            flow, scale = (_smooth_flow if both else _linear_flow)(mode, W, V)
            window = min(until - now, _WINDOW * scale)
            found = _first_event(mode, flow, window)
            # Without an event, look further ahead in steps that grow: the flow slows down.
            while found is None and not both and window < until - now:
                ahead = min(window * 0.5, until - now - window)
                offset = window
                later = lambda t, flow=flow, offset=offset: flow(offset + t)
                found = _first_event(mode, later, ahead)
                found = None if found is None else offset + found
                window = min(offset + ahead, until - now) if found is None else window
            duration = window if found is None else found
            for node, weight in zip(_NODES, _WEIGHTS, strict=True):
                W_dot, V_dot = mode.velocity(*flow(duration * (node + 1) / 2))
                dissipated += 0.5 * duration * weight * (np.sum(W_dot**2) + np.sum(V_dot**2))
            margins = mode.margins(*flow(duration)) if found is not None else None
            W, V = map(np.array, flow(duration) if duration > 0 else (W, V))
            now = until if duration == until - now else now + duration
            if margins is None:
                continue
            near = 1e-9 * (1 + np.abs(margins[np.isfinite(margins)]).max())
            sides, branches = _after_event(mode, W, V, margins, near, now, events)
            for i, j in np.argwhere(sides == 0):  # What rounding has left of Z.
                W[:, j] -= X[i] * (X[i] @ W[:, j]) / (X[i] @ X[i])
            C = _Mode(X, Y, sides, both).free(W, V)[1]
            at_origin = np.linalg.norm(W, axis=0) < 1e-9 * np.linalg.norm(W, axis=0).max()
            branches |= bool((at_origin & (C > 0).any(axis=0)).any())
            if branches:
                status = Status.BRANCHING
            if len(events) >= max_events:
                status, branches = Status.STEP_LIMIT, True
        if now < until:
            break
        mode = _Mode(X, Y, sides, both)
        energy = mode.loss(W, V)
        records.append((now, W, V, energy, sides == 0, mode.slopes(W, V), initial - energy - dissipated))
    columns = [np.array(column) for column in zip(*records, strict=True)] or [np.zeros(0)] * 7
    reached, W_there, V_there, losses, sliding, slopes, residual = columns
    return EventDrivenSolution(
        times=reached,
        params=Params(cast(Array, W_there), cast(Array, V_there)),
        loss=losses,
        sliding=sliding,
        slopes=slopes,
        energy_residual=residual,
        events=tuple(events),
        status=status,
        stopped_at=now,
    )


def _after_event(
    mode: _Mode, W: np.ndarray, V: np.ndarray, margins: np.ndarray, near: float, now: float, events: list[Event]
) -> tuple[np.ndarray, bool]:
    """The sides after the event at hand, which is added to the list; and whether the solution branches."""
    sides = mode.sides.copy()
    C = mode.free(W, V)[1]
    first = np.unravel_index(np.argmin(margins), margins.shape)
    # What moves to 0 at the same moment belongs to the same event.
    W_dot, _ = mode.velocity(W, V)
    towards = mode.sides * (mode.X @ W_dot) < 0
    hits = (margins[0] <= near) & (mode.sides != 0) & towards
    if mode.sides[first[1], first[2]] != 0:
        hits[first[1], first[2]] = True
    # A sliding preactivation whose c_ij changes its sign: when V_j does, no multiplier meets a bound before.
    branches = bool((margins[2] <= near * 1e-3).any()) and first[0] == 2
    released = (mode.sides == 0) & ((margins[0] <= near) | (margins[1] <= near))
    for i, j in np.argwhere(released):
        sides[i, j] = -1 if margins[0, i, j] <= near else 1
        events.append(Event(now, int(i), int(j), "exit"))
    for j in np.unique(np.argwhere(hits)[:, 1]):
        arrived = {int(i): int(mode.sides[i, j]) for i in np.flatnonzero(hits[:, j])}
        before = sides[:, j].copy()
        sides[:, j], split = _settle(mode.X, C, sides[:, j], int(j), arrived)
        branches |= split
        for i in np.flatnonzero((sides[:, j] != before) | hits[:, j]):
            if before[i] == 0:
                kind: Kind = "exit"
            elif sides[i, j] == 0:
                kind = "entry"
            else:
                kind = "crossing"
            events.append(Event(now, int(i), int(j), kind))
    return sides, branches
