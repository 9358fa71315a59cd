"""Section 4 with Appendices D and E: random starts.

Where a statement leaves constants open, those of its proof are taken, and what happens "with high probability" is to
happen in three of four draws at the sizes here.
"""

import math

import numpy as np
from scipy.special import gammaincc, log_ndtr

from relu_sgd.theory import gram, widths
from sweeps.reproduction.statements.check import Check, Checks, Outcome, at_least, at_most, combined, event
from sweeps.reproduction.statements.descents import flow, speed
from sweeps.reproduction.statements.paths import Start, unit_rows

__all__ = ["APPENDICES", "CHECKS"]

_PSI = 1.0
_HIGH = 0.25  # What "with high probability" may fail with.


def remark_4_2(rng: np.random.Generator) -> Outcome:
    """||Yhat||_F / ||Y||_F for labels of norm sqrt(d2) under LeCun's scaling: within a factor of 4 of 1."""
    margins = []
    for _ in range(10):
        N, d0, d1, d2 = 40, int(rng.integers(5, 40)), int(rng.integers(50, 300)), int(rng.integers(1, 4))
        start = Start(
            unit_rows(rng, N, d0) * math.sqrt(d0),
            np.ones((N, d2)),
            rng.normal(size=(d0, d1)) / math.sqrt(d0),
            rng.normal(size=(d1, d2)) / math.sqrt(d1),
        )
        ratio = float(np.linalg.norm(start.hidden @ start.V) / np.linalg.norm(start.Y))
        margins.append(1 - abs(math.log(ratio)) / math.log(4))
    return event(np.array(margins) > 0, margins)


def _order_of_alpha(rng: np.random.Generator, repaired: bool) -> Outcome:
    """Whether a constant bounds alpha_0 / sqrt(d0 d1) from below as N grows, for d0 = N at the width with C = 1: the
    median of seven draws at N = 256 against half of that at N = 32.
    """
    medians = []
    for N in (32, 256):
        d1 = math.ceil(widths.theorem_4_3_width(N, N, delta=0.9, psi=_PSI, repaired=repaired))
        ratios = []
        for _ in range(7):
            hidden = np.maximum(unit_rows(rng, N, N) * math.sqrt(N) @ rng.normal(size=(N, d1)), 0)
            smallest = float(np.linalg.eigvalsh(hidden @ hidden.T)[0])
            ratios.append(math.sqrt(max(smallest, 0.0) / (N * d1)))
        medians.append(float(np.median(ratios)))
    return at_least(medians[1], medians[0] / 2)


_SIZE = 24  # d0 d1, or d1 d2, of the small matrices whose norms are looked at.


def _norm_of_weights(rng: np.random.Generator, hidden: bool) -> Outcome:
    """A normal matrix of 24 entries has its norm within half of what Lemma 4.4 says but with 2 exp(-24 / 8)."""
    beta = rng.uniform(0.1, 2)
    sizes = widths.initial_sizes(20, 3, 8, beta_w=beta, beta_v=beta, label_norm=1.0, d2=3)
    expected = sizes.hidden_norm if hidden else sizes.output_norm
    ratios = np.linalg.norm(beta * rng.normal(size=(50, 8, 3)), axis=(1, 2)) / expected
    return event(np.abs(ratios - 1) <= 0.5, 1 - np.abs(ratios - 1) / 0.5)


def norm_of_data(rng: np.random.Generator) -> Outcome:
    """||X|| <= 3 sqrt(max(N, d0)) for rows from the sphere of radius sqrt(d0)."""
    margins = []
    for N, d0 in ((10, 10), (30, 6), (6, 30)) * 4:
        bound = 3 * widths.initial_sizes(N, d0, 8, beta_w=1.0, beta_v=1.0, label_norm=1.0).operator_norm
        margins.append(1 - float(np.linalg.norm(unit_rows(rng, N, d0) * math.sqrt(d0), 2)) / bound)
    return event(np.array(margins) >= 0, margins)


def initial_loss(rng: np.random.Generator) -> Outcome:
    """L(theta_0) <= ||Y||^2 + 4 beta_v^2 d2 ||W_0||^2 ||X||^2 log N, for a random start and for a hidden layer of rank
    one, which has the largest deviations.
    """
    N, beta_v, margins = 20, rng.uniform(0.1, 2), []
    for _ in range(10):
        for X, W in (
            (unit_rows(rng, N, 5) * math.sqrt(5), rng.normal(size=(5, 12))),
            (np.abs(rng.normal(size=(N, 1))), np.abs(rng.normal(size=(1, 12)))),
        ):
            start = Start(X, 0.1 * rng.normal(size=(N, 1)), W, beta_v * rng.normal(size=(12, 1)))
            size = float(np.linalg.norm(X, 2) * np.linalg.norm(W))
            bound = float(np.sum(start.Y**2)) + 4 * beta_v**2 * size**2 * math.log(N)
            margins.append(1 - start.loss / bound)
    return event(np.array(margins) >= 0, margins)


def output_norm(rng: np.random.Generator) -> Outcome:
    """Appendix D: ||Yhat||_F <= 2 beta_v sqrt(d2 log N) ||H||_F but with N^(-d2 / 2), by the exact law for a hidden
    layer of rank one, where ||Yhat||_F is beta_v ||H||_F chi(d2); logarithms of both probabilities.
    """
    outcomes = []
    for d2, N in ((1, 3), (10, 3), (int(rng.integers(2, 12)), int(rng.integers(3, 40)))):
        beta_v, norm = rng.uniform(0.1, 2), rng.uniform(0.5, 5)
        bound = widths.output_norm_bound(N, norm, beta_v=beta_v, d2=d2)
        tail = float(gammaincc(d2 / 2, (bound / (beta_v * norm)) ** 2 / 2))
        outcomes.append(at_least(-math.log(tail), d2 / 2 * math.log(N)))
    return combined(*outcomes)


def equation_45(rng: np.random.Generator) -> Outcome:
    """P(||AV||_F > E ||AV||_F + t) <= exp(-t^2 / (2 beta_v^2 ||A||_F^2)) for A of one row, where ||AV|| is |g| times
    beta_v ||A||: logarithms of the exact law.
    """
    size, t = rng.uniform(0.1, 5), rng.uniform(0, 12, 10)
    t = np.append(t, 12.0)
    tail = math.log(2) + log_ndtr(-(math.sqrt(2 / math.pi) + t))
    return at_least(-tail, (t * size) ** 2 / (2 * size**2))


def corollary_4_5(rng: np.random.Generator) -> Outcome:
    """The flow at the width with C = 1 under LeCun's scaling, against the rate c d0 d1 beta_w^2 with c = lambda(X) / (4
    d0), that of the proof.
    """
    N, d0, margins = 8, 4, []
    d1 = math.ceil(widths.corollary_4_5_width(N, d0, delta=0.5, rho=1.0, beta_w=d0**-0.5))
    for _ in range(3):
        X = unit_rows(rng, N, d0) * math.sqrt(d0)
        W, V = rng.normal(size=(d0, d1)) / math.sqrt(d0), rng.normal(size=(d1, 1)) / math.sqrt(d1)
        start = Start(X, rng.choice([-1.0, 1.0], size=(N, 1)), W, V)
        rate = gram.least_eigenvalue(gram.gram(X)) * d1 / d0 / 4
        found = flow(start, 2 / rate, math.ceil(2 * speed(start) / rate), trains_output=True)
        fallen = np.log(found.loss[0] / found.loss[1:])
        margins.append(float(np.min((fallen - rate * found.times[1:]) / fallen)))
    return event(np.array(margins) > 0, margins)


def _order_of_f(num_samples: float, rho: float, repaired: bool) -> float:
    """F of (11) from Lemma 4.4's orders and alpha_0^2 = d0 d1 beta_w^2, at Corollary 4.5's width, LeCun's scaling."""
    d0 = num_samples**0.8
    d1 = widths.corollary_4_5_width(num_samples, d0, delta=0.8, rho=rho, beta_w=d0**-0.5, repaired=repaired)
    squared_loss = d1 ** (1 - rho) * num_samples * (1 + math.log(num_samples))  # Of labels and of predictions.
    operator, hidden, output = math.sqrt(num_samples), math.sqrt(d1), d1 ** ((1 - rho) / 2)
    ratio = operator * math.sqrt(squared_loss) / d1
    first = 2 * math.sqrt(2) * ratio * operator * output / math.sqrt(d1)
    second = 2 * ratio**2 * operator * hidden / math.sqrt(d1)
    return (first + second) * math.exp(4 * ratio**2)


def appendix_e_printed(rng: np.random.Generator) -> Outcome:
    """F = O(1 / log N) at the printed width: F log N at N = 1e18 against 1e9, for rho below 1/4."""
    rho = rng.uniform(0, 0.1)
    small, large = 1e9, 1e18
    values = [_order_of_f(N, rho, repaired=False) * math.log(N) for N in (small, large)]
    return at_most(values[1], values[0])


def appendix_e(rng: np.random.Generator) -> Outcome:
    """F does not grow at the repaired width, for any rho."""
    rho = rng.uniform(0, 2)
    return at_most(_order_of_f(1e18, rho, repaired=True), _order_of_f(1e9, rho, repaired=True))


CHECKS: Checks = {
    "remark-4-2": Check(remark_4_2, _HIGH),
    "theorem-4-3": Check(lambda rng: _order_of_alpha(rng, repaired=False)),
    "theorem-4-3-repaired": Check(lambda rng: _order_of_alpha(rng, repaired=True)),
    "lemma-4-4-hidden-norm": Check(lambda rng: _norm_of_weights(rng, hidden=True), 2 * math.exp(-_SIZE / 8)),
    "lemma-4-4-output-norm": Check(lambda rng: _norm_of_weights(rng, hidden=False), 2 * math.exp(-_SIZE / 8)),
    "lemma-4-4-operator-norm": Check(norm_of_data, _HIGH),
    "lemma-4-4-loss": Check(initial_loss, 20**-0.5),
    "corollary-4-5": Check(corollary_4_5, _HIGH),
}

APPENDICES: Checks = {
    "equation-45": Check(lambda rng: combined(equation_45(rng), output_norm(rng))),
    "appendix-e": Check(appendix_e_printed),
    "appendix-e-repaired": Check(appendix_e),
}
