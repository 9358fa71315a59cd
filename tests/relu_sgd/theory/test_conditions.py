"""The board of conditions: each against a second formula, where it is attained, and along trajectories; the theorems
of docs/conditions.md by simulation."""

import math
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy.optimize import brentq
from scipy.special import lambertw
from support import ROOT

from relu_sgd import Params, Problem, inclusion
from relu_sgd.theory import certificate, conditions, flip_certificate, width_search
from relu_sgd.theory.path_certificate import DescentCertificate, LocalCriterion, PathCertificate

SCRIPT = ROOT / "scripts" / "conditions"


def unit_rows(N, d0, seed=0):
    X = np.random.default_rng(seed).normal(size=(N, d0))
    return X / np.linalg.norm(X, axis=1)[:, None]


def scalar(w, v, y, x=1.0):
    """One sample, one neuron: everything is a number."""
    return Params(np.array([[w]]), np.array([[v]])), Problem(np.array([[x]]), np.array([[y]]))


def draw(seed, N=6, d0=5, d1=60, d2=1, output=1.0, residual=0.5, kinks=0):
    """A start whose residual is small: labels are what the network says, and something."""
    rng = np.random.default_rng(seed)
    X = unit_rows(N, d0, seed)
    W, V = rng.normal(size=(d0, d1)), output * rng.normal(size=(d1, d2)) / math.sqrt(d1)
    for j in range(kinks):  # Neuron j starts on the kink of a sample.
        W[:, j] -= X[j % N] * (X[j % N] @ W[:, j])
    E = rng.normal(size=(N, d2))
    return Params(W, V), Problem(X, np.maximum(X @ W, 0) @ V + residual * E / np.linalg.norm(E))


def row(name, params, problem, **options):
    return next(found for found in conditions.board(params, problem, **options) if found.name == name)


def flow(params, problem, step, num_steps, *, trained_layers="both", keep=1):
    """Explicit steps of the flow, every `keep`-th kept: theta stacked, and the times."""
    W, V = (np.array(part, float) for part in params)
    X, Y = problem
    path = [(W.copy(), V.copy())]
    for k in range(1, num_steps + 1):
        Z = X @ W
        H = np.maximum(Z, 0)
        E = Y - H @ V
        W = W + step * X.T @ ((Z > 0) * (E @ V.T))
        if trained_layers == "both":
            V = V + step * H.T @ E
        if k % keep == 0:
            path.append((W.copy(), V.copy()))
    return Params(*map(np.array, zip(*path, strict=True))), step * keep * np.arange(len(path))


# Theorem B


def test_theorem_b_against_direct_computation():
    params, problem = draw(0, d2=3)
    H = np.maximum(problem.X @ params.W, 0)
    alpha = np.linalg.svd(H.T, compute_uv=False).min()
    root = np.linalg.norm(problem.Y - H @ params.V) / math.sqrt(2)
    norm = np.linalg.svd(problem.X, compute_uv=False).max()
    last = math.sqrt(alpha**2 - math.sqrt(2) * norm * root)
    found = row("path", params, problem)
    assert found.holds
    assert found.left_side == pytest.approx(math.sqrt(2) * norm * root / alpha**2)
    assert found.rate == pytest.approx(2 * last**2)
    assert found.hidden_path == pytest.approx((alpha - last) / norm)
    assert found.path == pytest.approx(math.sqrt(2) * root / last)
    assert found.margin == pytest.approx(1 - found.left_side)


@pytest.mark.parametrize("x", [0.3, 0.9])
def test_theorem_b_is_attained(x):
    """W = V = 1 and E = -x: both layers shrink alike until their product is 1 - x. The path of W and the last alpha_0
    are exact."""
    params, problem = scalar(1.0, 1.0, 1 - x)
    path, times = flow(params, problem, 4e-3, 10_000, keep=50)
    found = conditions.guarantee_slack(path, problem, times)["path"]
    assert row("path", params, problem).left_side == pytest.approx(x)
    value = 1 - float(path.W[-1, 0, 0])
    assert value == pytest.approx(1 - math.sqrt(1 - x), rel=1e-2)
    assert abs(found["path of W"][-1]) < 1e-2 * value
    assert abs(found["alpha"][-1]) < 1e-2
    for name, slack in found.items():
        assert (slack >= -2e-3).all(), name


def test_the_constant_of_theorem_b_cannot_be_improved():
    """Beyond the limit the same start loses all of W and V, and the loss stays."""
    params, problem = scalar(1.0, 1.0, -1e-3)
    assert 1 < row("path", params, problem).left_side < 1.002
    path, _ = flow(params, problem, 2e-2, 10_000, keep=10_000)
    assert 0 <= path.W[-1] < 0.06
    assert path.W[-1] * path.V[-1] >= 0
    at_limit = PathCertificate(1.0, math.sqrt(0.5), 1.0)
    assert at_limit.left_side == pytest.approx(1)


def test_rate_and_whole_path_of_theorem_b_are_attained_to_first_order():
    """V = 0: W does not move at first, so that all of the decrease is alpha_0's. A rate of 4 or 2 sqrt(2)
    alpha_inf^2, or a path without sqrt(2), would fail."""
    params, problem = scalar(2.0, 0.0, 1e-2)
    path, times = flow(params, problem, 1e-4, 4_000, keep=100)
    found = conditions.guarantee_slack(path, problem, times)["path"]
    start = row("path", params, problem)
    loss = start.details.loss_bound(times) - found["loss, sharper"]
    for name in ("loss", "loss, sharper", "path"):
        assert (found[name] >= -1e-9).all(), name
    rate = -np.log(loss[-1] / loss[0]) / times[-1]
    assert start.rate < rate < start.rate * 1.02
    whole, _ = flow(params, problem, 1e-3, 4_000, keep=10)
    length = float(np.sum(np.hypot(np.diff(whole.W[:, 0, 0]), np.diff(whole.V[:, 0, 0]))))
    assert length <= start.path < 1.01 * length


def test_the_sharper_loss_bound_is_the_integral_of_its_equation():
    found = PathCertificate(1.3, 0.4, 1.1)
    t = np.linspace(0, 3, 7)
    s, b = math.sqrt(2) * 1.3, found.rate / 2
    y, h = 0.4, 1e-4
    for _ in range(30_000):
        middle = y - h / 2 * (b + s * y) * y
        y -= h * (b + s * middle) * middle
    assert found.loss_bound(t)[-1] == pytest.approx(y**2, rel=1e-6)
    assert (found.loss_bound(t) <= found.a**2 * np.exp(-found.rate * t) * (1 + 1e-12)).all()
    # At the limit: W = V = 1, Y = 0, where w' = -w^3 and L = w^4 / 2 falls like the bound at first.
    limit = PathCertificate(1.0, math.sqrt(0.5), 1.0 + 1e-12)
    np.testing.assert_allclose(limit.loss_bound(t), 0.5 / (1 + t) ** 2, rtol=1e-9)
    assert (0.5 / (1 + 2 * t) ** 2 <= limit.loss_bound(t)).all()
    assert (PathCertificate(1.0, 2.0, 1.0).loss_bound(t) == 4.0).all()


def test_the_inclusion_keeps_what_the_board_promises():
    """By the inclusion's solver, with two outputs, and starts on kinks."""
    times = np.linspace(0.02, 1.5, 30)
    solve = jax.jit(
        lambda p, q: inclusion.solve(p, q, jnp.asarray(times), tolerance=1e-4, max_kinks=6, stop_at_branching=False)
    )
    for seed, kinks in ((0, 0), (1, 6), (2, 12)):
        params, problem = draw(seed, d2=2, kinks=kinks, residual=1.0)
        solution = solve(Params(*map(jnp.asarray, params)), Problem(*map(jnp.asarray, problem)))
        assert solution.status == inclusion.Status.REACHED
        path = Params(*(np.concatenate([[first], rest]) for first, rest in zip(params, solution.params, strict=True)))
        found = conditions.guarantee_slack(path, problem, np.concatenate([[0.0], times]))
        assert "path" in found
        assert row("path", params, problem).left_side > 0.1
        for name, along in found.items():
            for what, slack in along.items():
                assert (slack >= -1e-6).all(), (name, what)
        assert solution.loss[-1] < 0.01 * solution.loss[0]


# What implies what


@given(st.floats(0.01, 3), st.floats(0.3, 20), st.floats(0.1, 3), st.floats(0, 3), st.floats(1, 4))
def test_implications(a, alpha, norm, output, factor):
    """(10) wants ||X|| a / alpha^2 below 0.2258, the sharp condition below 0.5163, Theorem B below 0.7071; ||W|| is
    at least alpha / ||X||."""
    found = certificate.certificate_of(a**2, alpha**2, norm, factor * alpha / norm, output)
    k, path = norm * a / alpha**2, PathCertificate(norm, a, alpha)
    if found.left_side_10 < 1:
        assert k < 0.2258
    if found.left_side_sharp < 1:
        assert k < 0.5163
        assert path.holds
    local = LocalCriterion(norm, a, alpha)
    radius = alpha / (2 * norm)
    assert local.rate == pytest.approx(2 * (alpha - norm * radius) ** 2)
    assert local.left_side == pytest.approx(4 * a**2 / (radius**2 * local.rate)) == pytest.approx(32 * k**2)
    assert local.path == pytest.approx(2 * a / math.sqrt(local.rate))
    if local.left_side < 1:
        assert path.rate >= found.alpha**2 >= local.rate * (1 - 1e-12)
        assert path.path <= local.path * (1 + 1e-12) <= alpha / (2 * norm) * (1 + 1e-9)


def test_the_constants_of_the_implications_are_best():
    """At ||W|| = alpha / ||X|| and V = 0."""
    at = lambda k: certificate.certificate_of(k**2, 1.0, 1.0, 1.0, 0.0)
    assert brentq(lambda k: at(k).left_side_10 - 1, 0.1, 0.5) == pytest.approx(math.sqrt(lambertw(0.25).real / 4))
    assert math.sqrt(lambertw(0.25).real / 4) == pytest.approx(0.22577, abs=1e-5)
    u = math.acosh(2)
    assert brentq(lambda k: at(k).left_side_sharp - 1, 0.1, 0.9) == pytest.approx(
        (4.5 * u - 3 * math.sqrt(3)) / math.sqrt(2)
    )


# Theorem C


def test_theorem_c_against_its_statement():
    """The fixed point of vbar by iteration, and the learning rate, the decrease and the paths, in the units of the
    statement."""
    norm, a, alpha, hidden, output, kappa = 2.3, 8.0, 25.0, 60.0, 1.0, 0.4
    found = DescentCertificate(norm, a, alpha, hidden, output, kappa)
    v = output
    for _ in range(500):
        linear = (1 - kappa) * alpha - norm * v / 2
        g = math.sqrt(linear**2 - math.sqrt(2) * (1 - kappa) * norm * a)
        b = (g + norm * v / 2) / (1 - kappa)
        z = norm * v / (2 * (1 - kappa) * b)
        v = output + math.sqrt(2) * a / ((1 - kappa) * (1 - z**2) * b)
    path = (linear - g) / ((1 - kappa) * norm)
    second = norm * a / math.sqrt(2)
    eta = kappa / max((hidden + norm * path) ** 2 + second, (norm * v) ** 2 + second)
    assert found.holds
    assert found.chosen_kappa == kappa
    assert found.output_bound == pytest.approx(v)
    assert found.least_alpha == pytest.approx(b)
    assert found.learning_rate == pytest.approx(eta)
    assert found.hidden_path == pytest.approx(path)
    assert found.output_path == pytest.approx(v - output)
    assert found.decrease == pytest.approx(2 * eta * g * (g + norm * v) / (1 - kappa))
    best = DescentCertificate(norm, a, alpha, hidden, output)
    for other in np.linspace(0.05, 0.95, 19):
        assert DescentCertificate(norm, a, alpha, hidden, output, other).decrease <= best.decrease * (1 + 1e-9)


@given(st.floats(1e-3, 1.2), st.floats(0, 2), st.floats(1, 5))
def test_theorem_c_holds_where_its_left_side_is_below_1(s, u0, hidden):
    """For some kappa; by a search over vbar and small kappa, in units where ||X|| = alpha_0 = 1. C implies B."""
    found = DescentCertificate(1.0, s / math.sqrt(2), 1.0, hidden, u0)
    kappa, v = 1e-7, np.linspace(u0, 2.2, 200_001)[1:]
    linear = 1 - kappa - v / 2
    squared = np.where(linear > 0, linear**2 - (1 - kappa) * s, -1.0)
    g = np.sqrt(np.maximum(squared, 1e-300))
    by_search = bool(((squared > 0) & (u0 + s / 2 * (1 / g + 1 / (g + v)) <= v)).any())
    assume(abs(found.left_side - 1) > 1e-4)
    assert (found.left_side < 1) == found.holds == by_search
    if found.holds:
        assert s < 1
        assert 0 < found.decrease < 1
        assert DescentCertificate(1.0, s / math.sqrt(2), 1.0, hidden, u0, found.chosen_kappa / 2).holds


def descent(params, problem, eta, num_steps, rng):
    """Iterates of gradient descent with random slopes at the kinks, and how many signs changed."""
    W, V = (np.array(part, float) for part in params)
    X, Y = problem
    path, crossings = [(W, V)], 0
    for _ in range(num_steps):
        Z = X @ W
        H, slope = np.maximum(Z, 0), np.where(Z == 0, rng.uniform(size=Z.shape), Z > 0)
        E = Y - H @ V
        W, V = W + eta * X.T @ (slope * (E @ V.T)), V + eta * H.T @ E
        crossings += int(np.sum((X @ W > 0) != (Z > 0)))
        path.append((W, V))
    return Params(*map(np.array, zip(*path, strict=True))), crossings


def test_descent_at_the_largest_certified_step_keeps_theorem_c():
    """With signs that change on the way, kinks at the start, and up to three outputs."""
    rng, crossings, certified, least = np.random.default_rng(0), 0, 0, np.inf
    shapes = [(6, 5, 60), (4, 8, 200), (10, 10, 400), (8, 3, 900)]
    for seed in range(16):
        N, d0, d1 = shapes[seed % 4]
        residual = (0.1, 0.4, 1.0, 2.0)[seed // 4]
        params, problem = draw(
            seed, N, d0, d1, 1 + seed % 3, output=(0.1, 0.5)[seed % 2], residual=residual, kinks=40 * (seed % 2)
        )
        found = row("path, descent", params, problem)
        if not found.holds:
            continue
        certified += 1
        steps = 150
        path, changed = descent(params, problem, found.learning_rate, steps, rng)
        crossings += changed
        along = conditions.guarantee_slack(
            path, problem, found.learning_rate * np.arange(steps + 1), dynamics="descent"
        )
        assert list(along) == ["path, descent"]
        for name, slack in along["path, descent"].items():
            assert (slack >= -1e-9).all(), (seed, name)
            least = min(least, slack[-1])
    assert certified >= 10
    assert crossings > 200


def test_the_learning_rate_of_theorem_c_is_within_twice_the_largest():
    """V = 0 and a small residual e: it falls to e (1 - eta w^2). At 2.2 times the certified step the promised
    decrease, in proportion, fails."""
    params, problem = scalar(1.0, 0.0, 1e-6)
    found = row("path, descent", params, problem)
    for factor, kept in ((1.0, True), (2.2, False)):
        e = 1 - factor * found.learning_rate
        assert (e**2 <= 1 - factor * found.details.decrease) == kept
    # The decrease itself, and the path of V, to first order: a small kappa leaves little to second-order terms.
    small = DescentCertificate(1.0, 1e-6 / math.sqrt(2), 1.0, 1.0, 0.0, 1e-3)
    assert small.decrease == pytest.approx(2 * small.learning_rate, rel=5e-3)
    assert small.output_path == pytest.approx(1e-6, rel=5e-3)


def test_chatter_has_its_price():
    """The term ||X|| vbar / 2: a large output layer spoils C, not B."""
    assert PathCertificate(1.0, 0.1, 1.0).holds
    assert DescentCertificate(1.0, 0.1, 1.0, 1.0, 0.5).holds
    assert not DescentCertificate(1.0, 0.1, 1.0, 1.0, 2.0).holds


# Theorem D


@pytest.mark.parametrize("e", [0.5, 0.99, -0.7])
def test_theorem_d_is_attained(e):
    """One neuron, W = V = 1, E = e: W moves by |e| exactly, with rate 1, and must not reach its kink."""
    params, problem = scalar(1.0, 1.0, 1 + e)
    found = flip_certificate.flip_certificate(params, problem)
    assert found.holds
    assert found.left_side == pytest.approx(abs(e))
    assert found.radius == pytest.approx(abs(e)) == found.path
    assert found.rate == pytest.approx(2)
    path, times = flow(params, problem, 1e-3, 8_000, trained_layers="hidden", keep=100)
    along = conditions.guarantee_slack(path, problem, times, trained_layers="hidden")["flips"]
    assert abs(along["path of W"][-1]) < 1e-3
    assert abs(along["neurons"][-1]) < 1e-3
    assert np.abs(along["loss"]).max() < 1e-3


def test_theorem_d_cannot_be_improved():
    params, problem = scalar(1.0, 1.0, -1e-3)
    assert not flip_certificate.flip_certificate(params, problem).holds
    path, _ = flow(params, problem, 1e-3, 20_000, trained_layers="hidden", keep=20_000)
    assert path.W[-1] < 1e-3  # It stops at its kink, with some loss left.


def exact_reach(params, problem):
    """The integral of lambda / sigma up to where lambda is 0, jump by jump, from the statement."""
    (W, V), (X, _) = params, problem
    v, z, G = V[:, 0], X @ W, X @ X.T
    R = z > 0
    smallest = np.linalg.eigvalsh(G * ((R * v**2) @ R.T))[0]
    needed = np.abs(z) / (np.linalg.norm(X, axis=1)[:, None] * np.abs(v))
    rho, integral = 0.0, 0.0
    for jump in np.sort(needed.ravel()):
        F = needed < jump
        m = R | F
        B = np.zeros_like(G)
        for j in range(len(v)):
            B += v[j] ** 2 * np.maximum.outer(F[:, j], F[:, j]) * np.outer(m[:, j], m[:, j])
        restricted = [np.linalg.norm(X[F[:, j]], 2) if F[:, j].any() else 0.0 for j in range(len(v))]
        beta = math.sqrt(
            max(sum(v[j] ** 2 * F[i, j] * restricted[j] ** 2 for j in range(len(v))) for i in range(len(X)))
        )
        by_entries = smallest - np.linalg.norm(np.abs(G) * B, 2)
        value = max(by_entries, max(math.sqrt(max(smallest, 0)) - beta, 0) ** 2)
        if value <= 0:
            break
        integral += (
            (jump - rho) * value / max(np.linalg.norm(X[m[:, j]], 2) if m[:, j].any() else 0.0 for j in range(len(v)))
        )
        rho = jump
    return integral


def paired(scale, N=24, d0=120, d1=20, seed=0):
    """Zero output at the start: pairs of equal neurons with opposite outputs +-scale / sqrt(d1)."""
    rng = np.random.default_rng(seed)
    W = rng.normal(size=(d0, d1 // 2))
    V = scale / math.sqrt(d1) * np.repeat([1.0, -1.0], d1 // 2)[:, None]
    return Params(np.hstack([W, W]), V), Problem(unit_rows(N, d0, seed), np.where(np.arange(N) % 2, 1.0, -1.0)[:, None])


@pytest.mark.parametrize("seed", range(4))
def test_theorem_d_against_its_statement(seed):
    """The code's reach is a lower bound of the exact one, and close."""
    params, problem = paired(100.0, seed=seed)
    exact = exact_reach(params, problem)
    found = flip_certificate.flip_certificate(params, problem, max_evaluations=1000)
    assert found.lambda_0 > 0
    assert exact / 1.5 < found.reach <= exact * (1 + 1e-9)
    coarse = flip_certificate.flip_certificate(params, problem, max_evaluations=4)
    assert coarse.reach <= found.reach * (1 + 1e-9)


def test_theorem_d_for_scaled_outputs_and_fewer_neurons_than_samples():
    """d1 = 20 < N = 24: (10), B and all that lives on alpha_0 say nothing; D certifies large outputs, and the flow
    keeps its promises."""
    certified = {}
    for scale in (10.0, 100.0, 1000.0, 3000.0):
        params, problem = paired(scale)
        found = row("flips", params, problem, trained_layers="hidden")
        certified[scale] = found.holds
        if not found.holds:
            continue
        steps = 400
        path, times = flow(params, problem, 8.0 / found.rate / steps, steps, trained_layers="hidden", keep=10)
        along = conditions.guarantee_slack(path, problem, times, trained_layers="hidden")
        assert list(along) == ["flips"]
        for name, slack in along["flips"].items():
            assert (slack >= -1e-9).all(), (scale, name)
    assert certified == {10.0: False, 100.0: False, 1000.0: True, 3000.0: True}
    assert row("path", params, problem).left_side == math.inf


def test_theorem_d_with_signs_that_do_flip():
    """Starts with entries close to their kinks, and on them: they may flip, the others do not, and the rate holds."""
    flipped, allowed = 0, 0
    for seed in range(12):
        params, problem = paired(30.0, N=8, d0=30, d1=60, seed=seed)
        rng = np.random.default_rng(100 + seed)
        W = np.array(params.W)
        for j in range(4):
            i = rng.integers(8)
            W[:, j] += problem.X[i] * ((0.0 if j == 0 else 1e-3 * rng.normal()) - problem.X[i] @ W[:, j])
        params = Params(W, params.V)
        problem = Problem(problem.X, np.maximum(problem.X @ W, 0) @ params.V + 0.2 * problem.Y)
        found = row("flips", params, problem, trained_layers="hidden")
        if not found.holds:
            continue
        allowed += int(found.details.flips.sum())
        path, times = flow(params, problem, 10.0 / found.rate / 1000, 1000, trained_layers="hidden", keep=20)
        along = conditions.guarantee_slack(path, problem, times, trained_layers="hidden")["flips"]
        for name, slack in along.items():
            assert (slack >= -1e-6).all(), (seed, name)
        flipped += int(np.sum((problem.X @ path.W[-1] > 0) != (problem.X @ W > 0)))
    assert flipped >= 5
    assert allowed >= flipped


@given(st.integers(0, 10**6), st.floats(0, 0.3))
def test_lambda_bounds_every_pattern_that_may_come(seed, rho):
    """K(R) for random slopes in [0, 1] on F(rho), and the signs of the start elsewhere."""
    rng = np.random.default_rng(seed)
    N, d0, d1 = rng.integers(1, 6), rng.integers(2, 8), rng.integers(1, 12)
    X, W, v = rng.normal(size=(N, d0)), rng.normal(size=(d0, d1)), rng.normal(size=d1) * (rng.uniform(size=d1) > 0.2)
    at = flip_certificate._Flips(X, X @ W, v)
    flips = at.needed <= rho
    for _ in range(5):
        R = np.where(flips, rng.uniform(size=(N, d1)), X @ W > 0)
        if rng.uniform() < 0.5:
            R = np.round(R)
        K = (X @ X.T) * ((R * v**2) @ R.T)
        assert np.linalg.eigvalsh(K)[0] >= at.least_eigenvalue(flips) - 1e-12
        for j in np.flatnonzero(v):
            assert np.linalg.norm(X.T * R[:, j], 2) <= at.sigma(flips) * (1 + 1e-12)


# The board


NAMES = ["(11)", "(10)", "sharp", "local criterion", "path", "path, descent", "flips", "(54)"]
LITERATURE = ["Du et al. 2019", "Oymak and Soltanolkotabi 2020", "Nguyen 2021"]


def test_the_rows_of_the_board():
    params, problem = draw(0, N=6, d0=5, d1=300, residual=0.02, output=0.1)
    rows = conditions.board(params, problem)
    assert [found.name for found in rows] == NAMES + LITERATURE
    own = certificate.certificate(params, problem)
    left = {found.name: found.left_side for found in rows}
    assert left["(11)"] == pytest.approx(own.F)
    assert left["(10)"] == pytest.approx(own.left_side_10)
    assert left["sharp"] == pytest.approx(own.left_side_sharp)
    # The search for the smallest width asks the same conditions.
    limits = {found.name: found.limit for found in rows}
    assert list(width_search.CONDITIONS) == NAMES[:6]
    for name, condition in width_search.CONDITIONS.items():
        assert condition(own) == pytest.approx(left[name] / limits[name]), name
    for found in rows:
        assert found.source
        assert found.hypotheses_met == (found.name not in ("flips", "(54)", *LITERATURE[:2]))
        assert (
            (found.left_side is None)
            == (found.reason is not None)
            == (found.margin is None)
            == (found.name in LITERATURE)
        )
        assert found.holds == (found.name in NAMES[1:6]) or found.name == "(11)"
        if found.holds:
            assert found.drift > 0
            assert found.path is None or found.path >= found.drift
            assert found.rate > 0
        else:
            assert found.rate is found.drift is found.path is found.hidden_path is found.learning_rate is None
    ten = rows[1]
    assert (ten.rate, ten.drift) == (pytest.approx(own.alpha**2), pytest.approx(own.drift))
    # Only V trained as well makes alpha_0 of use, and only V fixed makes beta_0.
    fixed = conditions.board(params, problem, trained_layers="hidden")
    assert [found.name for found in fixed if found.hypotheses_met] == ["flips", "(54)", *LITERATURE[:2]]
    assert not any(found.holds for found in fixed[:6])


def test_what_does_not_fit_is_said():
    rows = {found.name: found for found in conditions.board(*draw(0, d2=2), trained_layers="hidden")}
    assert "d2 = 1" in rows["flips"].unmet
    assert "d2 is 2" in rows["(54)"].reason
    params, problem = draw(0)
    scaled = {
        found.name: found
        for found in conditions.board(params, Problem(2 * problem.X, problem.Y), trained_layers="hidden")
    }
    assert scaled["(54)"].unmet == ("N >= 2 rows of norm 1",)
    assert scaled["flips"].left_side > 0


def test_appendix_g_on_the_board():
    """Orthonormal rows, a start at the solution: (54) holds with probability 1 - 1/N."""
    N, d1 = 2, 10_000
    X, W = np.eye(N), np.random.default_rng(0).normal(size=(N, d1))
    v = np.where(np.arange(d1) % 2, 1.0, -1.0) * d1**-0.5
    Y = (np.maximum(X @ W, 0) @ v)[:, None] + 1e-9
    found = row("(54)", Params(W, v[:, None]), Problem(X, Y), trained_layers="hidden")
    assert found.probability == 0.5
    assert found.holds
    assert found.rate == pytest.approx(found.details.beta**2) == pytest.approx(0.5, rel=0.05)
    assert found.details.left_side_54 == found.left_side
    integral = 2 * 1e-9 / found.rate  # L(0) is 1e-18: two residuals of 1e-9.
    assert found.drift == found.hidden_path == pytest.approx(math.sqrt(2 * d1) * d1**-0.5 * integral, rel=1e-3)


def test_certified_by_nothing():
    """Fewer neurons than samples, equal rows, a dead sample: alpha_0 is 0 up to rounding, and rounding certifies
    nothing."""
    params, problem = draw(3, N=10, d1=9, residual=1e-9)
    assert not any(found.holds for found in conditions.board(params, problem)[:6])
    X = np.repeat(unit_rows(3, 4), 2, axis=0)
    params, _ = draw(0, N=6, d0=4, d1=50)
    E = 1e-9 * np.arange(6)[:, None]
    for layers in ("both", "hidden"):
        rows = conditions.board(params, Problem(X, np.maximum(X @ params.W, 0) @ params.V + E), trained_layers=layers)
        assert not any(found.holds for found in rows)
    zero_row = np.vstack([unit_rows(2, 3), np.zeros((1, 3))])
    params, _ = draw(0, N=3, d0=3, d1=50)
    for layers in ("both", "hidden"):
        assert not any(
            found.holds for found in conditions.board(params, Problem(zero_row, np.ones((3, 1))), trained_layers=layers)
        )


def test_zero_loss_is_certified():
    params, problem = draw(0)
    at_minimum = Problem(problem.X, np.maximum(problem.X @ params.W, 0) @ params.V)
    found = row("path", params, at_minimum)
    assert found.holds
    assert (found.left_side, found.path, found.hidden_path) == (0, 0, 0)
    flips = row("flips", params, at_minimum, trained_layers="hidden")
    assert flips.holds
    assert flips.path == 0


@pytest.mark.parametrize("factor", [1e-60, 1e60])
def test_left_sides_do_not_depend_on_the_unit(factor):
    """(X, Y) to c (X, Y) leaves every condition but the paper's own unit-free ones as it is."""
    params, problem = draw(0)
    scaled = Problem(factor * problem.X, factor * problem.Y)
    for layers, names in (("both", ("path", "path, descent", "local criterion")), ("hidden", ("flips",))):
        for name in names:
            expected = row(name, params, problem, trained_layers=layers).left_side
            assert row(name, params, scaled, trained_layers=layers).left_side == pytest.approx(expected, rel=1e-9)


def test_the_script_trains_what_is_certified():
    """scripts/conditions: the board of two starts, and descent at the certified step with its slack."""
    flags = ["--sizes=4x4x800", "--num_seeds=2", "--train=descent", "--folds=1"]
    done = subprocess.run([sys.executable, SCRIPT, *flags], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert "path, descent                  certifies 2 of 2" in done.stdout
    slacks = [
        float(value)
        for line in re.findall("least slack (.*)", done.stdout)
        for value in re.findall(r" (\S+?)(?:,|$)", line)
    ]
    assert len(re.findall("least slack", done.stdout)) == 2
    assert min(slacks) >= -1e-9


X2, Y2 = np.eye(2), np.ones((2, 1))
W2, V2 = np.ones((2, 3)), np.ones((3, 1))


@pytest.mark.wrong_types
@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: conditions.board(Params(W2, V2), Problem(X2, Y2), trained_layers="output"), "trained_layers"),
        (lambda: conditions.board(Params(W2, V2[:2]), Problem(X2, Y2)), "d1 x d2"),
        (lambda: conditions.board(Params(W2[:, :0], V2[:0]), Problem(X2, Y2)), "empty"),
        (lambda: conditions.board(Params(W2, V2), Problem(X2, np.nan * Y2)), "Y of shape"),
        (lambda: conditions.board(Params(np.inf * W2, V2), Problem(X2, Y2)), "W of shape"),
        (lambda: conditions.board(Params(W2, V2), Problem(X2, Y2), chunk=0), "chunk"),
        (
            lambda: flip_certificate.flip_certificate(Params(W2, np.ones((3, 2))), Problem(X2, np.ones((2, 2)))),
            "d2 = 1",
        ),
        (
            lambda: flip_certificate.flip_certificate(Params(W2, V2), Problem(X2, Y2), max_evaluations=0),
            "max_evaluations",
        ),
        (lambda: PathCertificate(1.0, math.nan, 1.0), "a must be"),
        (lambda: PathCertificate(-1.0, 1.0, 1.0), "operator_norm"),
        (lambda: DescentCertificate(1.0, 1.0, 1.0, math.inf, 1.0), "hidden_layer_norm"),
        (lambda: DescentCertificate(1.0, 1.0, 1.0, 1.0, 1.0, 1.0), "kappa"),
        (
            lambda: conditions.guarantee_slack(Params(W2[None], V2[None]), Problem(X2, Y2), np.ones(1)),
            "increase from 0",
        ),
        (lambda: conditions.guarantee_slack(Params(W2, V2), Problem(X2, Y2), np.zeros(1)), "x d0 x d1"),
    ],
)
def test_bad_input(call, words):
    with pytest.raises(ValueError, match=words):
        call()
