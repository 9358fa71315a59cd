"""The chain rule, Appendix A and Appendix B: the subdifferential of the loss, and integral inequalities along
solutions.
"""

import math
from typing import NamedTuple

import numpy as np
from scipy.optimize import lsq_linear

from relu_sgd import clarke
from relu_sgd.network import Params
from relu_sgd.theory.certificate import drift_bounds
from sweeps.reproduction.statements.check import Check, Checks, Outcome, at_least, at_most, combined, equal
from sweeps.reproduction.statements.paths import Path, Start, chain, follow, random_start, scalar_start

__all__ = ["CHECKS", "SECTION_2"]

_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(8)
_HELD = 1e-11  # A preactivation that the inclusion holds at 0 is there up to rounding.


def _kinks(start: Start) -> np.ndarray:
    """Where a preactivation is at 0, up to rounding; N x d1."""
    lengths = np.linalg.norm(start.X, axis=1)[:, None] * np.linalg.norm(start.W, axis=0)
    return np.abs(start.X @ start.W) <= _HELD * lengths


def _element(start: Start, slopes: np.ndarray | float) -> tuple[np.ndarray, np.ndarray]:
    """The element of Lemma A.4's set with these slopes, N x d1 or one for all, at the kinks: for W and for V."""
    error = start.Y - start.hidden @ start.V
    pattern = np.where(_kinks(start), slopes, start.X @ start.W > 0)
    return -(start.X.T @ (error @ start.V.T * pattern)), -(start.hidden.T @ error)


def _least_element(start: Start) -> tuple[np.ndarray, np.ndarray]:
    """The element of least norm of Lemma A.4's set by SciPy's bounded least squares: for W and for V."""
    c, kink = (start.Y - start.hidden @ start.V) @ start.V.T, _kinks(start)
    gradient, output = _element(start, 0.0)
    for j in np.flatnonzero(kink.any(axis=0)):
        generators = -(start.X[kink[:, j]] * c[kink[:, j], j : j + 1]).T
        slopes = lsq_linear(generators, -gradient[:, j], (0, 1), method="bvls", tol=1e-15).x
        gradient[:, j] += generators @ slopes
    return gradient, output


def _sliding_start(rng: np.random.Generator) -> Start:
    """One neuron in the plane between samples on both sides that pull it to a kink, and one that goes on."""
    angle = rng.uniform(0.3, 1)
    x = np.array([1.0, 0.0])
    X = np.array([x, -x * rng.uniform(0.5, 1.5), [math.sin(angle), math.cos(angle)]])
    Y = np.array([[-rng.uniform(1, 2)], [-rng.uniform(1, 2)], [rng.uniform(1, 3)]])
    return Start(X, Y, np.array([[rng.uniform(0.2, 0.6)], [rng.uniform(0.5, 1)]]), np.array([[rng.uniform(0.8, 1.2)]]))


class _Pieces(NamedTuple):
    """A solution at the nodes of Gauss's quadrature between its events.

    Attributes:
      path: the solution.
      weights: of the nodes; the path's first time has none.
      norms: m, the least norms, at the nodes.
    """

    path: Path
    weights: np.ndarray
    norms: np.ndarray


def _pieces(start: Start, horizon: float) -> _Pieces:
    coarse = follow(start, horizon, 1)
    end = float(coarse.times[-1])
    marks = np.unique(np.concatenate([[0.0], np.array(coarse.event_times), np.linspace(0, horizon, 5), [horizon]]))
    marks = marks[marks <= end] if len(coarse.times) > 1 else marks[:1]
    halves = np.diff(marks) / 2
    keep = halves > 1e-9 * horizon
    middles, halves = ((marks[1:] + marks[:-1]) / 2)[keep], halves[keep]
    nodes = (middles[:, None] + halves[:, None] * _NODES).ravel()
    path = follow(start, times=np.concatenate([nodes, [horizon]]))
    found = [_least_element(path.at(index)) for index in range(1, len(nodes) + 1)]
    norms = np.array([math.sqrt(np.sum(w**2) + np.sum(v**2)) for w, v in found])
    return _Pieces(path, (halves[:, None] * _WEIGHTS).ravel(), norms)


def _both_kinds(rng: np.random.Generator) -> list[_Pieces]:
    """A start that comes to slide, and a random one."""
    found = [_pieces(_sliding_start(rng), 2.0), _pieces(random_start(rng), 0.3)]
    return [pieces for pieces in found if len(pieces.path.times) == len(pieces.weights) + 2]


def equation_2(rng: np.random.Generator) -> Outcome:
    """dL/dt = <v, theta'> for elements v of the set, sliding or not: both derivatives by differences in time."""
    outcomes = []
    for here, velocity, rate, _ in _rates(rng):
        for corner in (0.0, 1.0, rng.uniform(size=here.hidden.shape)):
            of_W, of_V = _element(here, corner)
            product = float(np.sum(of_W * velocity[0]) + np.sum(of_V * velocity[1]))
            outcomes.append(equal(product, rate, 1e-5, scale=1e-3))
    return combined(*outcomes)


def _energy(rng: np.random.Generator, power: int) -> Outcome:
    """L(0) - L(t) against the integral of a power of m."""
    outcomes = []
    for pieces in _both_kinds(rng):
        loss, integral = pieces.path.loss, float(pieces.weights @ pieces.norms**power)
        outcomes.append(equal(loss[0] - loss[-1], integral, 1e-7, scale=loss[0]))
    return combined(*outcomes)


def _difference(path: Path, index: int) -> tuple[tuple[np.ndarray, np.ndarray], float]:
    """W' and V', and dL/dt, at a time, by a difference of fourth order from there on."""
    here = path.at(index)
    step = 1e-3 / max(1.0, float(np.linalg.norm(here.X, 2) ** 2 * (1 + np.linalg.norm(here.V) ** 2)))
    ahead = follow(here, times=step * np.arange(1, 5))
    weights = np.array([-25 / 12, 4, -3, 4 / 3, -1 / 4]) / step
    velocity = np.tensordot(weights, ahead.W, (0, 0)), np.tensordot(weights, ahead.V, (0, 0))
    return velocity, float(weights @ ahead.loss)


def _rates(rng: np.random.Generator) -> list[tuple[Start, tuple[np.ndarray, np.ndarray], float, float]]:
    """At a node from the middle of each piece: theta, theta', dL/dt and m."""
    found = []
    for pieces in _both_kinds(rng):
        marks = np.array([0.0, *pieces.path.event_times])
        for index in range(3, len(pieces.norms), 24):
            later = marks[marks > pieces.path.times[index + 1]]
            if len(later) and later.min() - pieces.path.times[index + 1] < 5e-3:
                continue  # The difference would reach over an event.
            here = pieces.path.at(index + 1)
            found.append((here, *_difference(pieces.path, index + 1), float(pieces.norms[index])))
    return found


def lemma_a2_velocity(rng: np.random.Generator) -> Outcome:
    """The speed of the solution is the least norm."""
    speed = lambda velocity: math.hypot(*(float(np.linalg.norm(part)) for part in velocity))
    return combined(*(equal(speed(velocity), norm, 1e-5, scale=1e-3) for _, velocity, _, norm in _rates(rng)))


def equation_19(rng: np.random.Generator) -> Outcome:
    """dL/dt <= -min ||v||^2."""
    return combined(*(at_most(rate, -(norm**2), 1e-5) for _, _, rate, norm in _rates(rng)))


def _proof_of_a5(rng: np.random.Generator, power: int) -> Outcome:
    """dL/dt <= -2 alpha_0^power L, for one sample and neuron with V = 0 and alpha_0 below 1, where V alone moves."""
    start = scalar_start(rng.uniform(0.2, 0.8), 0.0, rng.uniform(0.5, 2))
    speed, output = _least_element(start)
    return at_most(-(np.sum(speed**2) + np.sum(output**2)), -2 * start.alpha**power * start.loss)


def _degenerate(rng: np.random.Generator, dependent: bool) -> Start:
    """Two samples at a kink of the only neuron in space, and two that are not. Dependent rows are antiparallel or
    parallel, with c of such signs that the kinks' circuit has both.
    """
    W, scale = np.array([[0.0], [0.0], [rng.uniform(0.5, 2)]]), rng.uniform(0.5, 2)
    x, c = np.array([*rng.normal(size=2), 0.0]), rng.uniform(0.2, 1, 2)
    if dependent:
        rows, c = np.array([x, rng.choice([-1.0, 1.0]) * scale * x]), c * [1, -1]
    else:
        rows, c = np.array([x, [x[1], -x[0] * scale, 0.0]]), c * rng.choice([-1.0, 1.0], 2)
    others = np.abs(rng.normal(size=(2, 3)))
    start = Start(np.concatenate([rows, others]), np.zeros((4, 1)), W, np.array([[rng.uniform(0.5, 2)]]))
    return start.with_error(np.concatenate([c, rng.normal(size=2)])[:, None] / start.V[0, 0])


def _limits(rng: np.random.Generator, start: Start) -> np.ndarray:
    """Gradients for the neuron's weights in the limit of points where the loss is differentiable, (20): E stays, and
    the pattern is that of the points.
    """
    error = start.Y - start.hidden @ start.V
    points = start.W.T + 1e-7 * rng.normal(size=(200, 3))
    patterns = points @ start.X.T > 0
    return -(patterns * (error @ start.V.T)[:, 0]) @ start.X


def _product_set(start: Start) -> clarke.Subdifferential:
    return clarke.subdifferential(start.params, start.problem)


def _support(found: clarke.Subdifferential, direction: np.ndarray) -> float:
    return float(found.support(Params(direction[:, None], np.zeros((1, 1)))))  # type: ignore[arg-type]


def _supports(rng: np.random.Generator, start: Start) -> tuple[np.ndarray, np.ndarray]:
    """Of the hull of the limits, and of the set of Lemma A.4, in some directions."""
    limits, found = _limits(rng, start), _product_set(start)
    directions = [*np.eye(3)[:2], *-np.eye(3)[:2], rng.normal(size=3)]
    return np.array([(limits @ d).max() for d in directions]), np.array([_support(found, d) for d in directions])


def lemma_a4_printed(rng: np.random.Generator) -> Outcome:
    """Equality (21), on dependent rows: the supports of both sets. Smaller ones of the limits violate it."""
    limits, claimed = _supports(rng, _degenerate(rng, dependent=True))
    return at_least(limits, claimed, 1e-6)


def lemma_a4(rng: np.random.Generator) -> Outcome:
    """The set of Lemma A.4 holds all limits; and is their hull where the rows are independent, as is decided."""
    outcomes = []
    for dependent in (True, False):
        start = _degenerate(rng, dependent)
        limits, claimed = _supports(rng, start)
        exact = int(_product_set(start).is_exact) == clarke.Exactness.EXACT
        outcomes.append(at_most(limits, claimed, 1e-6))
        outcomes.append(equal(float(exact), float(not dependent)))
        if exact:
            outcomes.append(at_least(limits, claimed, 1e-6))
    return combined(*outcomes)


def equation_20(rng: np.random.Generator) -> Outcome:
    """The hull that the project computes has the same support as the limits, dependent rows or not."""
    outcomes = []
    for dependent in (True, False):
        start = _degenerate(rng, dependent)
        limits = _limits(rng, start)
        hull = clarke.hull.clarke_hull(start.params, start.problem, 0)
        directions = [*np.eye(3)[:2], *-np.eye(3)[:2], rng.normal(size=3)]
        outcomes.append(equal([(limits @ d).max() for d in directions], [hull.support(d) for d in directions], 1e-6))
    return combined(*outcomes)


def equation_22(rng: np.random.Generator) -> Outcome:
    """-dL/dV = H^T E, and V of the set that the project computes, against differences of L."""
    step, random, kinked = 1e-6, random_start(rng), _degenerate(rng, dependent=False)
    outcomes = []
    for start, gradient in (
        (random, -random.hidden.T @ (random.Y - random.hidden @ random.V)),
        (kinked, np.asarray(_product_set(kinked).fixed.V)),  # Of one shape always, which is compiled once.
    ):
        direction = rng.normal(size=start.V.shape)
        ends = [start._replace(V=start.V + sign * step * direction).loss for sign in (1, -1)]
        slope = (ends[0] - ends[1]) / (2 * step)
        outcomes.append(equal(slope, float(np.sum(gradient * direction)), 1e-6, scale=1.0))
    return combined(*outcomes)


class _Integrals(NamedTuple):
    """What (23) to (28) are made of, along a path: norms, and integrals with root = sqrt(L)."""

    norm: float
    hidden: float
    output: float
    root: np.ndarray
    path: Path


def _integrals(path: Path) -> _Integrals:
    start = path.start
    norm = float(np.linalg.svd(start.X, compute_uv=False)[0])
    return _Integrals(norm, float(np.linalg.norm(start.W)), float(np.linalg.norm(start.V)), np.sqrt(path.loss), path)


def _along(rng: np.random.Generator, tight: Start) -> list[_Integrals]:
    return [_integrals(follow(random_start(rng))), _integrals(follow(tight, 1e-3, 8))]


def _mostly_output(rng: np.random.Generator) -> Start:
    return scalar_start(1e-3, rng.uniform(0.5, 2), rng.uniform(1, 2))


def _mostly_hidden(rng: np.random.Generator) -> Start:
    return scalar_start(rng.uniform(0.5, 2), 1e-3, rng.uniform(1, 2) + 2)


def equation_23(rng: np.random.Generator) -> Outcome:
    """||W(t) - W(0)||; attained to first order by one sample and neuron. Solved with (24), it is `hidden_sharp`."""
    outcomes = []
    for norm, _, output, root, path in _along(rng, _mostly_output(rng)):
        rest = chain(path.output_moved * root, path.times)
        bound = math.sqrt(2) * norm * (output * path.integral + rest)
        solved = drift_bounds(path.start.certificate, path.integral)["hidden_sharp"]
        outcomes += [at_most(path.hidden_moved[1:], one[1:], 1e-5) for one in (bound, solved)]
    return combined(*outcomes)


def equation_24(rng: np.random.Generator) -> Outcome:
    """||V(t) - V(0)||; attained to first order likewise."""
    outcomes = []
    for norm, hidden, _, root, path in _along(rng, _mostly_hidden(rng)):
        rest = chain(path.hidden_moved * root, path.times)
        bound = math.sqrt(2) * norm * (hidden * path.integral + rest)
        outcomes.append(at_most(path.output_moved[1:], bound[1:], 1e-5))
    return combined(*outcomes)


def equation_25(rng: np.random.Generator) -> Outcome:
    """(24) put into (23)."""
    outcomes = []
    for norm, hidden, output, root, path in _along(rng, _mostly_output(rng)):
        inner = chain(path.hidden_moved * root, path.times)
        bound = (
            math.sqrt(2) * norm * output * path.integral
            + 2 * norm**2 * hidden * chain(path.integral * root, path.times)
            + 2 * norm**2 * chain(root * inner, path.times)
        )
        outcomes.append(at_most(path.hidden_moved[1:], bound[1:], 1e-5))
    return combined(*outcomes)


def equation_26(rng: np.random.Generator) -> Outcome:
    """The integral of Lbar sqrt(L) is Lbar^2 / 2."""
    path = follow(random_start(rng), num_times=40)
    return equal(chain(path.integral * np.sqrt(path.loss), path.times)[-1], path.integral[-1] ** 2 / 2, 1e-4)


def equation_27(rng: np.random.Generator) -> Outcome:
    """The double integral against the product of two; for a drift that is there from the beginning it is near to half
    of the product, and for one at the very end near to the whole.
    """
    outcomes = []
    times = np.linspace(0, 1, 401)
    for root, drift in (
        (np.exp(-times), times),
        (np.exp(rng.uniform(-3, 3) * times), times ** rng.uniform(0.5, 3)),
        (np.exp(-((times - 0.9) ** 2) / 5e-3), np.exp(-((times - 0.2) ** 2) / 5e-3)),
        (1e-4 + (times > 0.5), 1e4 * (times < 0.4) + 1e-6),
    ):
        inner = chain(drift * root, times)
        outcomes.append(at_most(chain(root * inner, times)[-1], chain(root, times)[-1] * inner[-1], 1e-6))
    return combined(*outcomes)


def equation_28(rng: np.random.Generator) -> Outcome:
    """||W(t) - W(0)|| / Lbar(t); attained to first order. With (26) it is `hidden`."""
    outcomes = []
    for norm, hidden, output, root, path in _along(rng, _mostly_output(rng)):
        exponent = 2 * norm**2 * chain(path.integral * root, path.times)[1:]
        bound = (math.sqrt(2) * norm * output + norm**2 * hidden * path.integral[1:]) * np.exp(exponent)
        solved = drift_bounds(path.start.certificate, path.integral)["hidden"][1:] / path.integral[1:]
        outcomes += [at_most(path.hidden_moved[1:] / path.integral[1:], one, 1e-5) for one in (bound, solved)]
    return combined(*outcomes)


SECTION_2: Checks = {"equation-2": Check(equation_2)}

CHECKS: Checks = {
    "lemma-a2": Check(lambda rng: _energy(rng, 1)),
    "lemma-a2-repaired": Check(lambda rng: combined(_energy(rng, 2), lemma_a2_velocity(rng))),
    "proposition-a3": Check(equation_19),
    "equation-20": Check(equation_20),
    "lemma-a4": Check(lemma_a4_printed),
    "lemma-a4-repaired": Check(lemma_a4),
    "lemma-a4-equation-22": Check(equation_22),
    "proposition-a5-proof": Check(lambda rng: _proof_of_a5(rng, 1)),
    "proposition-a5-proof-repaired": Check(lambda rng: _proof_of_a5(rng, 2)),
    "equation-23": Check(equation_23),
    "equation-24": Check(equation_24),
    "equation-25": Check(equation_25),
    "equation-26": Check(equation_26, is_arithmetic=True),
    "equation-27": Check(equation_27),
    "equation-28": Check(equation_28),
}
