"""Appendix G: the hidden layer is trained alone. Values from Jacobians and patterns themselves."""

import math
from typing import NamedTuple

import numpy as np
from scipy.integrate import solve_ivp
from scipy.optimize import brentq
from scipy.special import bdtrc, ndtr

from relu_sgd.theory import hidden_layer, widths
from sweeps.reproduction.statements.check import (
    Check,
    Checks,
    Outcome,
    at_least,
    at_most,
    combined,
    decrease_at_least,
    equal,
    event,
)
from sweeps.reproduction.statements.descents import Flow, flow, gradient
from sweeps.reproduction.statements.paths import Start, chain, unit_rows

__all__ = ["CHECKS"]

_HIGH = 0.25  # What "with high probability" may fail with.
_PATTERNS = 2  # N of Corollary G.6's simulation, which may fail with 1 / N.


def _start(rng: np.random.Generator, N: int, d0: int, d1: int) -> Start:
    """Assumption G.1, with labels +1 and -1."""
    y = np.where(np.arange(N) % 2, -1.0, 1.0)
    v = hidden_layer.assumption_g1_output(y, d1)
    return Start(unit_rows(rng, N, d0), y[:, None], rng.normal(size=(d0, d1)), v[:, None])


def _beta(start: Start, pattern: np.ndarray | None = None) -> float:
    """sigma_min of the transposed Jacobian X * (R dg(v)), from the Jacobian."""
    pattern = start.X @ start.W > 0 if pattern is None else pattern
    jacobian = np.einsum("id,ij->idj", start.X, pattern * start.V[:, 0]).reshape(len(start.X), -1)
    if jacobian.shape[1] < len(jacobian):
        return 0.0
    return math.sqrt(max(float(np.linalg.eigvalsh(jacobian @ jacobian.T)[0]), 0.0))


def _certificate(start: Start) -> hidden_layer.HiddenCertificate:
    return hidden_layer.hidden_certificate(start.X, start.Y[:, 0], start.W, start.V[:, 0])


class _Run(NamedTuple):
    """A flow of W with beta_s and the patterns' distances from the first, at some of its steps."""

    start: Start
    flow: Flow
    beta: np.ndarray
    distance: np.ndarray


def _run(start: Start, horizon: float, num_steps: int) -> _Run:
    found = flow(start, horizon, num_steps, trains_output=False)
    first = start.X @ start.W > 0
    beta = np.array([_beta(state) for state in found.states])
    distance = [math.sqrt(int(np.max(np.sum((state.X @ state.W > 0) != first, axis=1)))) for state in found.states]
    return _Run(start, found, beta, np.array(distance))


def _random_run(rng: np.random.Generator) -> _Run:
    return _run(_start(rng, 6, 4, 40), 4.0, 200)


def equation_48(rng: np.random.Generator) -> Outcome:
    """The gradient that follows (48), X^T dg(yhat - y) R dg(v), against differences of L."""
    start = _start(rng, 5, 3, 8)
    direction, step = rng.normal(size=start.W.shape), 1e-6
    ends = [start._replace(W=start.W + sign * step * direction) for sign in (1, -1)]
    if np.any((ends[0].X @ ends[0].W > 0) != (ends[1].X @ ends[1].W > 0)):
        return combined()  # A kink lies between the two.
    R, error = start.X @ start.W > 0, (start.hidden @ start.V - start.Y)[:, 0]
    stated = start.X.T @ np.diag(error) @ R @ np.diag(start.V[:, 0])
    slope = (ends[0].loss - ends[1].loss) / (2 * step)
    return equal(slope, float(np.sum(stated * direction)), 1e-6, scale=1.0)


def theorem_g2(rng: np.random.Generator) -> Outcome:
    """(49) with C = 8 and d0 = N: the rate beta_0^2, that of (54)."""
    N, margins = 12, []
    for _ in range(3):
        start = _start(rng, N, N, math.ceil(hidden_layer.theorem_g2_width(N, N, constant=8)))
        beta = _beta(start)
        found = flow(start, 5 / beta**2, 300, trains_output=False)
        fallen = np.log(found.loss[0] / found.loss[1:])
        margins.append(float(np.min(1 - beta**2 * found.times[1:] / fallen)))
    return event(np.array(margins) > 0, margins)


def corollary_g3(rng: np.random.Generator) -> Outcome:
    """SGD at the same width is below epsilon after the k* of Theorem 5.6 with gamma = beta_0^2."""
    N, margins = 12, []
    for batch_size in (N, 4, 2):
        now = start = _start(rng, N, N, math.ceil(hidden_layer.theorem_g2_width(N, N, constant=8)))
        rate, target = 0.1, 1e-2 * start.loss
        time = widths.convergence_time(start.loss, target, _beta(start) ** 2)
        for _ in range(widths.num_steps_bound(time, N, batch_size, rate)):
            rows = rng.permutation(N)[:batch_size]
            now = now._replace(W=now.W - rate * gradient(now, rows)[0])
        margins.append(math.log(target / now.loss) / math.log(start.loss / now.loss))
    return event(np.array(margins) > 0, margins)


def lemma_g4(rng: np.random.Generator) -> Outcome:
    """Random moves within the radius; and one sample with m - 1 preactivations next to 0, where 2 m - 2 of 2 m change
    at a move within it.
    """
    m = int(rng.integers(1, 20))
    X, W = unit_rows(rng, 6, 4), rng.normal(size=(4, 50))
    move = rng.normal(size=W.shape) * (rng.uniform(size=W.shape) < 0.2)
    radius = hidden_layer.lemma_g4_radius(X @ W, m)
    moved = W + move * (radius / max(float(np.linalg.norm(move)), 1e-12))
    changes = math.sqrt(int(np.max(np.sum((X @ W > 0) != (X @ moved > 0), axis=1))))
    m_tight = int(rng.integers(10, 40))
    Z = np.ones((1, 9 * m_tight))
    Z[0, : m_tight - 1] = 1e-9
    radius, other = hidden_layer.lemma_g4_radius(Z, m_tight), Z.copy()  # X = 1, so that W is Z.
    other[0, : m_tight - 1 + math.floor(radius**2 * (1 - 1e-6))] = -1e-9
    assert np.linalg.norm(other - Z) <= radius
    tight = math.sqrt(int(np.sum((Z > 0) != (other > 0))))
    return combined(at_most(changes, math.sqrt(2 * m)), at_most(tight, math.sqrt(2 * m_tight)))


def lemma_g5(rng: np.random.Generator) -> Outcome:
    """By the exact law: of one sample's |Z_ij| the number below m / (2 d1) is binomial, and m of them are to be as rare
    as exp(-m / 6); logarithms of both. N samples are a union.
    """
    outcomes = []
    for m, d1 in ((int(rng.integers(1, 60)), int(rng.integers(60, 1000))), (40, 400)):
        bound, _ = hidden_layer.lemma_g5_bound(1, d1, m)
        tail = float(bdtrc(m - 1, d1, 2 * float(ndtr(bound)) - 1))
        outcomes.append(at_least(-math.log(tail), m / 6))
    return combined(*outcomes)


def corollary_g6(rng: np.random.Generator) -> Outcome:
    """For all s at once: the cheapest way to change k neurons on a sample moves its k smallest preactivations to 0; in
    networks so wide that the second term decides.
    """
    margins = []
    for d1 in (20_000, 40_000, 80_000):
        z = np.sort(np.abs(rng.normal(size=(_PATTERNS, d1))), axis=1)
        distance = np.sqrt(np.cumsum(z**2, axis=1))
        bound = hidden_layer.corollary_g6_bound(_PATTERNS, d1, distance)
        margins.append(float(np.min(1 - np.sqrt(np.arange(1, d1 + 1)) / bound)))
    return event(np.array(margins) >= 0, margins)


def proposition_g7(rng: np.random.Generator) -> Outcome:
    """With c = 0.1 and C = 1: beta_0 between c ||y|| / sqrt(N) and C ||y|| / sqrt(d0), and what the code says."""
    margins = []
    for N, d0 in ((40, 8), (40, 40), (20, 10), (20, 20)):
        start = _start(rng, N, d0, 100)
        beta, size = _beta(start), float(np.linalg.norm(start.Y))
        bounds = hidden_layer.proposition_g7_bounds(start.X, start.W, start.V[:, 0]).values()
        upper = min(size / math.sqrt(d0), *bounds)
        margins.append(min(beta / (0.1 * size / math.sqrt(N)) - 1, 1 - beta / upper))
    return event(np.array(margins) >= 0, margins)


def equation_50(rng: np.random.Generator) -> Outcome:
    """L(t) <= L(0) exp(-2 integral of beta_s^2), and its second inequality; one sample with all neurons active attains
    the first.
    """
    outcomes = []
    single = Start(np.ones((1, 1)), np.array([[rng.uniform(5, 9)]]), np.full((1, 5), 2.0), np.full((5, 1), 0.3))
    for run in (_random_run(rng), _run(single, 1.0, 400)):
        times, loss, beta = run.flow.times, run.flow.loss, run.beta
        first = loss[0] * np.exp(-2 * chain(beta**2, times))
        away = chain(np.abs(beta - beta[0]), times)
        second = loss[0] * np.exp(np.minimum(-2 * times * beta[0] ** 2 + 4 * beta[0] * away, 600))
        # Patterns change between two times: the integrals are off by a part of a step.
        outcomes += [
            decrease_at_least(loss[1:], first[1:], loss[0], 1e-4),
            at_most(first[10:], second[10:], 1e-3),
        ]
    return combined(*outcomes)


def equation_51(rng: np.random.Generator) -> Outcome:
    """|beta_s - beta_0| by the patterns' distance, and by ||W_s - W_0||; one sample on which no neuron is active at
    first attains the former.
    """
    start = _start(rng, 6, 4, 40)
    moved = start._replace(W=start.W + rng.uniform(0.05, 1) * rng.normal(size=start.W.shape))
    patterns = [state.X @ state.W > 0 for state in (start, moved)]
    distance = math.sqrt(int(np.max(np.sum(patterns[0] != patterns[1], axis=1))))
    certificate, away = _certificate(start), abs(_beta(moved) - _beta(start))
    scale = float(np.linalg.norm(start.X, 2) * np.abs(start.V).max())
    single = Start(np.ones((1, 1)), np.ones((1, 1)), -np.ones((1, 9)), np.full((9, 1), rng.uniform(0.1, 1)))
    on = rng.uniform(size=(1, 9)) < 0.7
    value = abs(_beta(single, on) - _beta(single))
    return combined(
        at_most(away, scale * distance),
        at_most(away, float(certificate.beta_bound(np.asarray(np.linalg.norm(moved.W - start.W))))),
        at_most(value, float(single.V[0, 0]) * math.sqrt(int(on.sum()))),
    )


def equation_52(rng: np.random.Generator) -> Outcome:
    """||W_t - W_0||; one sample with all neurons active attains it."""
    N, d1 = 5, 30
    run = flow(_start(rng, N, 3, d1), 3.0, 200, trains_output=False)
    bound = _certificate(run.states[0]).weight_bound(run.integral)
    size = rng.uniform(0.1, 0.5)
    single = Start(np.ones((1, 1)), np.array([[rng.uniform(20, 30)]]), np.full((1, 50), 3.0), np.full((50, 1), size))
    tight = flow(single, 0.3, 100, trains_output=False)
    constants = hidden_layer.HiddenCertificate(2, 1, 50, 1.0, 1.0, 1.0, size)
    return combined(
        at_most(run.moved[2:], bound[2:], 1e-4),
        at_most(tight.moved[2:], constants.weight_bound(tight.integral)[2:], 1e-4),
    )


def equation_53(rng: np.random.Generator) -> Outcome:
    """L(t) by (53) with its constants, on random data, and on orthonormal rows with many neurons, nearly attained."""
    outcomes = []
    for start, horizon in ((_start(rng, 8, 6, 1000), 1.0), (_wide(rng), 0.05)):
        run = flow(start, horizon, 10, trains_output=False)
        bound = _certificate(start).loss_bound(run.times, run.integral)
        outcomes.append(at_most(run.loss[1:], bound[1:], 1e-6))
    return combined(*outcomes)


def _wide(rng: np.random.Generator) -> Start:
    """Two orthonormal samples and many neurons, whose pattern hardly moves."""
    start = _start(rng, 2, 2, 50_000)
    return start._replace(X=np.eye(2))


def _after_53(rng: np.random.Generator, factor: float) -> Outcome:
    """The inequality for y = Lbar after (53): y' = sqrt(L) <= sqrt(L(0)) exp(-factor t beta_0^2 [...]), where the
    bracket is that of (53).
    """
    start = _wide(rng)
    run = flow(start, 0.01, 4, trains_output=False)
    certificate = _certificate(start)
    exponent = np.log(certificate.loss_bound(run.times, run.integral) / certificate.a**2)  # -2 t beta_0^2 [...]
    bound = certificate.a * np.exp(factor / 2 * exponent)
    return decrease_at_least(np.sqrt(run.loss[1:]), bound[1:], math.sqrt(run.loss[0]), 1e-6)


def equation_54(rng: np.random.Generator) -> Outcome:
    """Where the left side with its constants is a little below 1, solutions of the inequality after (53), with
    equality, stay below 2 a / beta_0^2 and their slope below a exp(-t beta_0^2 / 2).
    """
    N, d1, a, beta = 100, 1e9, rng.uniform(0.5, 5), rng.uniform(0.3, 1)
    make = lambda size: hidden_layer.HiddenCertificate(N, 20, d1, a, beta, 1.0, size)
    size = brentq(lambda size: min(make(size).left_side_54, 10) - rng.uniform(0.999, 0.9999), 1e-12, 1)
    assert make(size).is_certified

    def slope(t: float, y: float) -> float:
        move = math.sqrt(2 * d1) * size * y  # (52)
        bracket = 1 - 2 * size * (10 * math.sqrt(math.log(N)) + 2 * (d1 * move) ** (1 / 3)) / beta
        return a * math.exp(min(-t * beta**2 * bracket, 50))

    times = np.linspace(0, 12 / beta**2, 60)
    field = lambda t, y: slope(t, max(y[0], 0.0))
    solved = solve_ivp(field, (0, times[-1]), [0.0], t_eval=times, rtol=1e-9, atol=1e-12)
    slopes = [slope(t, max(y, 0.0)) for t, y in zip(times, solved.y[0], strict=True)]
    at_limit = beta**2 * times[1:] / 2
    end = 2 * a / beta**2
    bracket_at_end = -math.log(slope(1.0, end) / a) / beta**2
    return combined(
        at_most(solved.y[0], end, 1e-7),
        at_most(slopes[1:], a * np.exp(-at_limit), 1e-7),
        at_least(bracket_at_end, 0.5, 1e-7),
    )


CHECKS: Checks = {
    "equation-48": Check(equation_48),
    "theorem-g2": Check(theorem_g2, _HIGH),
    "corollary-g3": Check(corollary_g3, _HIGH),
    "lemma-g4": Check(lemma_g4),
    "lemma-g5": Check(lemma_g5),
    "corollary-g6": Check(corollary_g6, 1 / _PATTERNS),
    "proposition-g7": Check(proposition_g7, _HIGH),
    "equation-50": Check(equation_50),
    "equation-51": Check(equation_51),
    "equation-52": Check(equation_52),
    "equation-53": Check(equation_53),
    "equation-53-after": Check(lambda rng: _after_53(rng, 2.0)),
    "equation-53-after-repaired": Check(lambda rng: _after_53(rng, 1.0)),
    "equation-54": Check(equation_54),
}
