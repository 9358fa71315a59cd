"""Proofs of minima: against exact enumeration, closed forms, sampling, and the independent checker with planted
faults."""

import dataclasses
import fractions
import importlib.machinery
import importlib.util

import numpy as np
import pytest
from programs.exact_minima import contradiction, random_problem
from support import ROOT

from relu_sgd import Params, Problem
from relu_sgd.proofs import (
    Proof,
    Verdict,
    decide,
    global_minimum,
    load_certificate,
    local_minimum,
    rounding,
    save_certificate,
    verification,
)
from relu_sgd.proofs import kinks as rows_of_kinks
from relu_sgd.proofs.both_layers import descend_to_stationary_point, verify_both_layers
from relu_sgd.proofs.search import Candidate, nearest_fit

SCRIPT = ROOT / "scripts" / "verify_proofs"


@pytest.fixture(scope="module")
def checker():
    loader = importlib.machinery.SourceFileLoader("verify_proofs", str(SCRIPT))
    spec = importlib.util.spec_from_loader("verify_proofs", loader)
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    module.ctx.prec = 160
    return module


def loss(W, V, problem):
    return 0.5 * np.sum((problem.Y - np.maximum(problem.X @ W, 0) @ V) ** 2)


def sphere(generator, *shape):
    rows = generator.normal(size=shape)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def descended(seed, N, d0, d1, d2=1, steps=400, rate=0.05, both=False):
    """A network after some steps of gradient descent with momentum."""
    generator = np.random.default_rng(seed)
    X, Y = sphere(generator, N, d0), generator.choice([-1.0, 1.0], (N, d2))
    W, V = generator.normal(size=(d0, d1)), generator.choice([-1.0, 1.0], (d1, d2)) / np.sqrt(d1)
    dW, dV = np.zeros_like(W), np.zeros_like(V)
    for _ in range(steps):
        Z = X @ W
        E = Y - np.maximum(Z, 0) @ V
        dW = 0.9 * dW + X.T @ ((Z > 0) * (E @ V.T))
        dV = 0.9 * dV + np.maximum(Z, 0).T @ E
        W, V = W + rate * dW, V + rate * dV * both
    return Params(W, V), Problem(X, Y)


# Rounding.


@pytest.mark.parametrize("condition", [1e1, 1e4, 1e5])
def test_proved_least_singular_value_is_a_lower_bound(condition):
    generator = np.random.default_rng(int(condition))
    F, X = generator.normal(size=(12, 5)), generator.normal(size=(12, 6))
    F[-1], X[-1] = F[0], X[0] + generator.normal(size=6) / condition
    rows = (F[:, :, None] * X[:, None, :]).reshape(12, -1)
    exact = np.linalg.svd(rows, compute_uv=False)[-1]
    proved = rounding.singular_value_bound(F, X)
    assert 0.9 * exact < proved <= exact * (1 + 1e-6)


def test_a_singular_matrix_has_no_proved_singular_value():
    F, X = np.ones((3, 2)), np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    assert rounding.singular_value_bound(F, X) == 0
    assert rounding.eigenvalue_bound(np.diag([1.0, 1e-17]), 1e-16) == -np.inf
    assert rounding.eigenvalue_bound(np.diag([1.0, np.nan]), 0.0) == -np.inf


def test_norm_bounds_are_above_the_norms():
    generator = np.random.default_rng(0)
    for shape in ((7, 3), (3, 7), (1, 1)):
        A = generator.normal(size=shape)
        assert np.linalg.norm(A, 2) <= rounding.spectral_norm(A) <= 1.5 * np.linalg.norm(A, 2)
        assert np.linalg.norm(A) <= rounding.frobenius(A)


def test_rounding_of_products_is_within_the_bound():
    generator = np.random.default_rng(1)
    a, b = generator.normal(size=(2, 50, 300)) * 10.0 ** generator.integers(-8, 8, (2, 50, 300))
    computed = np.array([x @ y for x, y in zip(a, b, strict=True)])
    for x, y, c in zip(a, b, computed, strict=True):
        truth = sum(
            (fractions.Fraction(p) * fractions.Fraction(q) for p, q in zip(x.tolist(), y.tolist(), strict=True))
        )
        assert abs(float(fractions.Fraction(float(c)) - truth)) <= rounding.at_most(
            rounding.gamma(300) * (abs(x) @ abs(y))
        )


def test_exact_linear_dependence():
    rows = np.array([[1.0, 2.0, 3.0], [0.1, 0.2, 0.7]])
    assert rows_of_kinks.spans(rows, np.array([[-1.0, -2.0, -3.0], [0.0, 0.0, 0.0]]))
    assert rows_of_kinks.spans(np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]), np.array([[3.0, -5.0, 0.0]]))
    assert not rows_of_kinks.spans(np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]), np.array([[3.0, -5.0, 1e-300]]))
    assert not rows_of_kinks.spans(rows[:1], rows[:1] * (1 + 2.0**-52) + np.array([[0.0, 2.0**-50, 0.0]]))


# Closed forms.


def one_neuron(slope):
    """d0 = 2, V = 1; sample 0 holds the neuron at its kink with the given slope: minimum at W = (0, 1)."""
    X = np.array([[1.0, 0.0], [1.0, 1.0], [0.0, 1.0]])
    # c = E; stationarity: E_1 + E_2 = 0 in the second coordinate, slope c_0 + E_1 = 0 in the first.
    return Params(np.array([[0.0], [1.0]]), np.ones((1, 1))), Problem(
        X, np.array([[-1.0], [1.0 + slope], [1.0 - slope]])
    )


@pytest.mark.parametrize("slope", [0.25, 0.5, 1e-6, 1 - 1e-6])
def test_slope_of_a_kink_in_closed_form(slope, checker, tmp_path):
    params, problem = one_neuron(slope)
    proof = decide(Params(params.W + 0.01, params.V), problem)
    assert proof.verdict == Verdict.LOCAL_MINIMUM
    assert proof.kinks[:, 0].tolist() == [True, False, False]
    np.testing.assert_allclose(proof.W, params.W, atol=1e-12)
    np.testing.assert_allclose(proof.slopes[0, 0], slope, atol=1e-9)
    L = (1 + 2 * slope**2) / 2
    assert L - 1e-8 < proof.loss[0] <= L <= proof.loss[1] < L + 1e-8
    # Beyond a change of min |Z| / ||x|| = 1 / sqrt(2) the second sample may die.
    np.testing.assert_allclose(proof.radius, np.sqrt(0.5), rtol=1e-6)
    save_certificate(tmp_path / "proof.npz", proof, problem)
    assert checker.main([str(tmp_path)]) == 0


@pytest.mark.parametrize("slope", [1 + 1e-9, -1e-9])
def test_slopes_at_or_beyond_their_bounds_are_not_proved_at_the_kink(slope, checker):
    params, problem = one_neuron(slope)
    proof = decide(params, problem)
    if proof.verdict == Verdict.LOCAL_MINIMUM:  # Another one: just off the kink.
        assert not proof.kinks.any()
    # The kink itself, claimed with a slope that rounds to a legal one.
    claimed = decide(*one_neuron(0.5))
    multipliers = np.array([[-slope], [0.0], [0.0]])
    arrays = as_arrays(
        dataclasses.replace(claimed, multipliers=multipliers, loss=(0.0, 9.0), error=1.0, radius=0.1), problem
    )
    arrays["slopes"] = np.array([[min(max(slope, 0.0), 1.0)], [1.0], [1.0]])
    with pytest.raises(checker.Refused, match=r"slope at the kink \(0, 0\)"):
        checker.check(arrays)


def test_dead_samples_are_minima_of_either_set_up():
    X = np.array([[1.0, 0.0], [-1.0, 0.25]])
    problem = Problem(X, np.array([[1.0], [1.0]]))
    params = Params(np.array([[0.75], [0.0]]), np.ones((1, 1)))
    for layers in ("hidden", "both"):
        proof = local_minimum(params, problem, trained_layers=layers)
        assert proof.verdict == Verdict.LOCAL_MINIMUM
        np.testing.assert_allclose(proof.loss, 0.5, rtol=1e-8)
        np.testing.assert_allclose(proof.radius, 1 / np.sqrt(1 + 0.25**2), rtol=1e-8)
    refused = global_minimum(params, problem)
    assert refused.verdict == Verdict.UNDECIDED
    assert "positive loss" in refused.reason


def test_a_multiplier_at_a_fitted_sample_is_not_a_slope():
    # Neuron 1 fits sample 0, where neuron 0 has its kink: c = 0 there, so no slope can balance the pull of sample 1 on
    # neuron 0.
    s = 0.25
    problem = Problem(np.array([[1.0, 0.0], [1.0, 1.0], [0.0, 1.0]]), np.array([[1.0], [1 + s], [1 - s]]))
    W, V = np.array([[0.0, 1.0], [1.0, -5.0]]), np.ones((2, 1))
    kinks = np.array([[True, False], [False, False], [False, False]])
    active = np.array([[False, True], [True, False], [True, False]])
    proof = verification.verify(*problem, W, Candidate(W, V, kinks, active, np.where(kinks, -s, 0.0), True))
    assert proof.verdict == Verdict.UNDECIDED
    assert "slope" in proof.reason
    D = np.array([[1e-3, -1e-3], [0.0, 0.0]])
    assert loss(W + D, V, problem) < loss(W, V, problem)  # And it is none.


def test_neurons_that_share_a_pattern_are_minima_that_are_not_isolated(checker):
    # Yhat = W_0 - W_1 on both samples; the mean of the labels is best.
    problem = Problem(np.array([[1.0, 0.0], [1.0, 0.0], [1.0, 1.0]]), np.array([[1.0], [0.0], [3.0]]))
    W, V = np.array([[2.0, 1.5], [2.5, 0.5]]), np.array([[1.0], [-1.0]])
    proof = decide(Params(W + 0.01, V), problem)
    assert proof.verdict == Verdict.LOCAL_MINIMUM
    np.testing.assert_allclose(proof.loss, 0.25, rtol=1e-8)
    arrays = as_arrays(proof, problem)
    assert checker.check(arrays) == "LOCAL_MINIMUM"
    with pytest.raises(ArithmeticError):
        checker.check(arrays | {"W": proof.W + np.array([[0.0, 1e-3], [0.0, 0.0]])})
    # Output rows that are parallel only to rounding do not count.
    pattern, rows = np.ones((3, 2), bool), np.array([[1.0, 3.0], [1 / 3, 1.0]])
    parallel = np.array([[1.0, 3.0], [-2.0, -6.0]])
    assert rows_of_kinks.leaders(pattern, parallel, np.ones(2, bool)).tolist() == [0, 0]
    assert rows_of_kinks.leaders(pattern, rows, np.ones(2, bool)).tolist() == [0, 1]
    assert rows_of_kinks.leaders(pattern, parallel, np.array([False, True])).tolist() == [-1, 1]


def test_neurons_that_share_a_pattern_may_fit_a_sample(checker):
    """Both neurons are active on four samples, where their sum (0.6, 1) is best; one of them alone fits the fifth."""
    problem = Problem(
        np.array([[1.0, 0.0], [2.0, 0.0], [0.0, 1.0], [0.0, 2.0], [-1.0, 1.0]]),
        np.array([[1.0], [1.0], [2.0], [1.5], [0.8]]),
    )
    W, V = np.array([[0.1, 0.5], [0.9, 0.1]]), np.ones((2, 1))
    proof = decide(Params(W + 1e-4 * np.array([[1.0, -0.3], [0.5, 2.0]]), V), problem)
    assert proof.verdict == Verdict.LOCAL_MINIMUM
    np.testing.assert_allclose(proof.loss, (0.4**2 + 0.2**2 + 1 + 0.5**2) / 2, rtol=1e-8)
    np.testing.assert_allclose(proof.W.sum(axis=1), [0.6, 1.0], rtol=1e-8)
    assert proof.W[1, 0] - proof.W[0, 0] == pytest.approx(0.8, rel=1e-8)
    assert 0 < proof.radius <= 0.1 + 1e-6  # The second neuron is 0.1 from its kink at (0, 1).
    arrays = as_arrays(proof, problem)
    assert checker.check(arrays) == "LOCAL_MINIMUM"
    for move in ([[0.0, 1e-3], [0.0, 0.0]], [[1e-3, -1e-3], [0.0, 0.0]]):  # The sum; what is fitted.
        with pytest.raises(ArithmeticError):
            checker.check(arrays | {"W": proof.W + np.array(move)})
    with pytest.raises(ArithmeticError):
        checker.check(arrays | {"Y": problem.Y + np.array([[0.0], [0.0], [0.0], [0.0], [1e-3]])})
    rng = np.random.default_rng(0)
    for D in rng.normal(size=(300, 2, 2)):
        D *= rng.uniform(0, proof.radius) / np.linalg.norm(D)
        assert loss(proof.W + D, V, problem) >= proof.loss[0] * (1 - 1e-9)


# Networks after descent.

CASES = {
    "global": (0, 12, 6, 8, 1, "hidden", Verdict.GLOBAL_MINIMUM),
    "global, two outputs": (1, 8, 6, 8, 2, "both", Verdict.GLOBAL_MINIMUM),
    "local": (2, 30, 4, 4, 1, "hidden", Verdict.LOCAL_MINIMUM),
    "local, two outputs": (3, 20, 4, 4, 2, "hidden", Verdict.LOCAL_MINIMUM),
    "local, both layers": (2, 30, 4, 3, 1, "both", Verdict.LOCAL_MINIMUM),
    "local, both layers, two outputs": (3, 20, 3, 3, 2, "both", Verdict.LOCAL_MINIMUM),
}


@pytest.fixture(scope="module")
def proofs():
    found = {}
    for name, (seed, N, d0, d1, d2, layers, verdict) in CASES.items():
        both = layers == "both"
        params, problem = descended(seed, N, d0, d1, d2, both=both, rate=0.02 if both else 0.05)
        found[name] = params, problem, decide(params, problem, trained_layers=layers), verdict
    return found


@pytest.mark.parametrize("name", CASES)
def test_what_is_proved_holds_around_the_minimum(name, proofs):
    params, problem, proof, verdict = proofs[name]
    assert proof.verdict == verdict, proof.reason
    assert proof.reason == ""
    L = loss(proof.W, proof.V, problem)
    assert proof.loss[0] - 1e-12 <= L <= proof.loss[1] + 1e-12
    relative = np.sqrt(2 * L) / np.linalg.norm(problem.Y)
    assert proof.relative_error[0] - 1e-9 <= relative <= proof.relative_error[1] + 1e-9
    moved = np.hypot(np.linalg.norm(proof.W - params.W), np.linalg.norm(proof.V - params.V))
    assert moved <= proof.distance <= moved * (1 + 1e-8) + 2 * proof.error
    assert loss(params.W, params.V, problem) >= proof.loss[0]
    Z = problem.X @ proof.W
    assert np.all(np.abs(Z[proof.kinks]) <= 2 * proof.error + 1e-14)
    assert np.array_equal((Z > 0)[~proof.kinks], proof.active[~proof.kinks])
    if verdict == Verdict.LOCAL_MINIMUM:
        generator = np.random.default_rng(0)
        E = problem.Y - np.maximum(np.where(proof.kinks, 0, Z), 0) @ proof.V
        gradient = problem.X.T @ (proof.slopes * (E @ proof.V.T))
        assert np.max(np.abs(gradient)) < 1e-6
        for scale in (1.0, 0.1, 1e-3) * 30:
            D, d = generator.normal(size=proof.W.shape), generator.normal(size=proof.V.shape)
            if proof.trained_layers == "both":
                size = scale * proof.radius / np.sqrt(np.sum(D**2) + np.sum(d**2))
            else:
                D, d, size = D / np.linalg.norm(D, axis=0), 0 * d, scale * proof.radius
            assert loss(proof.W + size * D, proof.V + size * d, problem) >= proof.loss[0] * (1 - 1e-12)


def as_arrays(proof: Proof, problem: Problem) -> dict[str, np.ndarray]:
    fields = {name: np.asarray(value) for name, value in dataclasses.asdict(proof).items() if name != "margins"}
    return fields | {"X": problem.X, "Y": problem.Y, "verdict": np.asarray(proof.verdict.name)}


@pytest.mark.parametrize("name", CASES)
def test_the_checker_agrees_and_refuses_planted_faults(name, proofs, checker):
    _, problem, proof, verdict = proofs[name]
    arrays = as_arrays(proof, problem)
    assert checker.check(arrays) == verdict.name

    def refused(**changes):
        with pytest.raises(ArithmeticError):
            checker.check(arrays | {key: np.asarray(value) for key, value in changes.items()})

    flipped = proof.active.copy()
    i, j = np.argwhere(~proof.kinks)[3]
    flipped[i, j] ^= True
    refused(active=flipped, slopes=np.where(proof.kinks, proof.slopes, flipped))
    refused(W=proof.W + 1e-3)
    refused(W=proof.W * (1 + 1e-5), error=proof.error)
    other = {"GLOBAL_MINIMUM": "LOCAL_MINIMUM", "LOCAL_MINIMUM": "GLOBAL_MINIMUM"}[verdict.name]
    refused(verdict=other)
    refused(Y=problem.Y * 1.001)
    if proof.kinks.any():
        fewer = proof.kinks.copy()
        i, j = np.argwhere(proof.kinks)[0]
        fewer[i, j] = False
        # Zero loss goes on across a kink, so beside a global minimum there may be others without it, on both sides.
        for side in (False, True) if verdict == Verdict.LOCAL_MINIMUM else ():
            act = proof.active.copy()
            act[i, j] = side
            refused(kinks=fewer, active=act, slopes=np.where(fewer, proof.slopes, act))
        refused(slopes=np.where(proof.kinks, 1 + 1e-9, proof.slopes))
    if verdict == Verdict.LOCAL_MINIMUM:
        refused(loss=[proof.loss[0] * 1.01, proof.loss[1] * 1.01])
        refused(radius=proof.radius * 1.05)
        refused(X=np.vstack([problem.X[:1], problem.X[:-1]]))
    # A neuron in two halves is a minimum like the whole one, as long as they are halves of it.
    if name == "local":
        double = lambda array: np.hstack([array, array[:, :1]])
        halves = {key: double(arrays[key]) for key in ("W", "kinks", "active", "slopes", "multipliers")}
        halves["V"] = np.vstack([proof.V, proof.V[:1]])
        halves["V"][[0, -1]] /= 2
        halves["multipliers"][:, [0, -1]] /= 2
        assert checker.check(arrays | halves) == "LOCAL_MINIMUM"
        for key in ("V", "W"):
            changed = halves[key].copy()
            changed.T[-1] *= 1 + 1e-6
            refused(**halves | {key: changed})
        halves["V"][[0, -1]] *= np.array([[3.0], [-1.0]])  # Their sum is the whole, with the wrong sign of one.
        halves["multipliers"][:, [0, -1]] *= np.array([3.0, -1.0])
        refused(**halves)


def test_a_system_without_full_rank_is_refused(checker):
    """The second weight has no say: a minimum, and not isolated."""
    params = Params(np.array([[0.5], [0.0]]), np.ones((1, 1)))
    problem = Problem(np.array([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0]]), np.array([[0.0], [1.0], [0.5]]))
    proof = decide(params, problem)
    assert proof.verdict == Verdict.UNDECIDED
    claimed = dataclasses.replace(
        proof, verdict=Verdict.LOCAL_MINIMUM, error=1e-3, loss=(0.2, 0.3), radius=0.1, active=np.ones((3, 1), bool),
        slopes=np.ones((3, 1)), kinks=np.zeros((3, 1), bool), multipliers=np.zeros((3, 1)), W=params.W,
    )  # fmt: skip
    with pytest.raises(ArithmeticError):
        checker.check(as_arrays(claimed, problem))
    # With a sample that the weight has a say on, the same claim is true.
    more = Problem(np.vstack([problem.X, [[0.0, 1.0]]]), np.vstack([problem.Y, [[1.0]]]))
    assert decide(Params(params.W + np.array([[0.0], [0.9]]), params.V), more).verdict == Verdict.LOCAL_MINIMUM


def test_neurons_that_share_their_kinks_follow_one_of_them(checker):
    """The neuron of `one_neuron` in two parts, one of them twice as strong."""
    (W, _), problem = one_neuron(0.5)
    V = np.array([[1.0], [2.0]])
    start = Params(W * np.array([[0.5, 0.25]]) + np.array([[0.01, -0.02], [0.0, 0.01]]), V)
    proof = decide(start, problem)
    assert proof.verdict == Verdict.LOCAL_MINIMUM
    assert proof.kinks.tolist() == [[True, True], [False, False], [False, False]]
    np.testing.assert_allclose(proof.W @ V, W, atol=1e-12)
    np.testing.assert_allclose(proof.slopes[0], 0.5, rtol=1e-9)
    np.testing.assert_allclose(proof.multipliers[0], [-0.5, -1.0], rtol=1e-9)
    np.testing.assert_allclose(proof.loss, 0.75, rtol=1e-8)
    assert checker.check(as_arrays(proof, problem)) == "LOCAL_MINIMUM"
    rng = np.random.default_rng(0)
    for D in rng.normal(size=(300, 2, 2)):
        D *= rng.uniform(0, proof.radius) / np.linalg.norm(D, axis=0)
        assert loss(proof.W + D, V, problem) >= proof.loss[0] * (1 - 1e-9)
    # Of opposite signs they share nothing: one of them would grow beyond the kink.
    apart = decide(Params(start.W, np.array([[3.0], [-1.0]])), problem)
    assert not apart.kinks.all(axis=1).any() or apart.verdict == Verdict.UNDECIDED


def test_the_distance_is_checked_where_theta_is_known(proofs, checker, tmp_path):
    params, problem, proof, verdict = proofs["local, both layers"]
    save_certificate(tmp_path / "proof.npz", proof, problem, params)
    with np.load(tmp_path / "proof.npz") as stored:
        arrays = {name: stored[name] for name in stored.files}
    assert checker.check(dict(arrays)) == verdict.name
    for farther in ({"theta_W": params.W + 1e-3}, {"theta_V": params.V * 1.01}, {"distance": proof.distance / 1.001}):
        with pytest.raises(checker.Refused, match="distance"):
            checker.check(arrays | farther)


def test_certificates_survive_the_file(proofs, tmp_path):
    for k, (params, problem, proof, _) in enumerate(proofs.values()):
        save_certificate(tmp_path / f"{k}.npz", proof, problem, params)
        again, data = load_certificate(tmp_path / f"{k}.npz")
        for field in dataclasses.fields(Proof):
            assert np.array_equal(getattr(again, field.name), getattr(proof, field.name)), field.name
        assert np.array_equal(data.X, problem.X)
    np.savez(tmp_path / "other.npz", X=np.ones(3))
    with pytest.raises(ValueError, match="not a certificate"):
        load_certificate(tmp_path / "other.npz")


def test_chattering_is_a_further_start(proofs):
    params, problem, proof, _ = proofs["local"]
    held = np.abs(problem.X @ params.W) < 1e-2
    again = local_minimum(params, problem, held)
    assert again.verdict == Verdict.LOCAL_MINIMUM
    with pytest.raises(ValueError, match="chattering"):
        local_minimum(params, problem, held[:-1])
    with pytest.raises(ValueError, match="chattering"):
        local_minimum(params, problem, held.astype(float))
    for least_loss in (-1.0, np.nan, np.inf):
        with pytest.raises(ValueError, match="least_loss must be a number from 0 on"):
            decide(params, problem, least_loss=least_loss)


@pytest.mark.parametrize("name", ["local", "local, both layers"])
def test_a_search_ends_below_the_least_loss_that_is_wanted(name, proofs):
    params, problem, proof, _ = proofs[name]
    ask = lambda least: decide(params, problem, trained_layers=proof.trained_layers, least_loss=least)
    found = ask(0.9 * proof.loss[0])
    assert found.verdict == Verdict.LOCAL_MINIMUM
    np.testing.assert_allclose(found.loss, proof.loss, rtol=1e-6)
    ended = ask(1.1 * loss(*params, problem))
    assert ended.verdict == Verdict.UNDECIDED
    assert ended.reason == "the search found no stationary point"


def test_the_nearest_fit_is_nearest_and_fits():
    generator = np.random.default_rng(3)
    X, Y, V = sphere(generator, 10, 6), generator.normal(size=(10, 2)), generator.normal(size=(8, 2))
    W = generator.normal(size=(6, 8))
    Y = np.maximum(X @ W, 0) @ V + 0.05 * Y
    fit = nearest_fit(X, Y, W, V)
    assert fit is not None
    assert loss(fit.W, V, Problem(X, Y)) < 1e-24
    assert np.all(np.abs(X @ fit.W)[fit.kinks] < 1e-12)
    # On its linear pieces, with those kinks, no other solution is nearer.
    rows = [np.kron(x, fit.active[i] * v) for v in V.T for i, x in enumerate(X)]
    rows += [np.kron(X[i], np.eye(8)[j]) for i, j in np.argwhere(fit.kinks)]
    right = np.concatenate([(Y - np.where(fit.active, X @ W, 0) @ V).T.ravel(), -(X @ W)[fit.kinks]])
    least = np.linalg.lstsq(np.array(rows), right, rcond=None)[0]
    np.testing.assert_allclose((fit.W - W).ravel(), least, atol=1e-10)
    assert nearest_fit(X, Y, W[:, :2], V[:2]) is None  # Too few weights.


# Bad input.


def test_bad_arrays_are_refused():
    params, problem = descended(0, 6, 3, 2, steps=3)
    for changed in (
        Params(params.W[:-1], params.V),
        Params(params.W, params.V[:, 0]),
        Params(params.W[:, :0], params.V[:0]),
    ):
        with pytest.raises(ValueError, match="need X"):
            decide(changed, problem)
    arrays = {"X": problem.X, "Y": problem.Y, "W": params.W, "V": params.V}
    ask = lambda X, Y, W, V: decide(Params(W, V), Problem(X, Y))
    for name, array in arrays.items():
        for bad in (np.nan, -np.inf, 1e40):
            damaged = array.copy()
            damaged.flat[-1] = bad
            with pytest.raises(ValueError, match=f"{name} has entries"):
                ask(**arrays | {name: damaged})
        for kind in (np.float32, np.int64):
            with pytest.raises(ValueError, match=f"{name} must be float64, not {np.dtype(kind)}"):
                ask(**arrays | {name: array.astype(kind)})
        for shape in (array[None], array[:0], array[:, 0]):
            with pytest.raises(ValueError, match="need X"):
                ask(**arrays | {name: shape})
    with pytest.raises(ValueError, match="trained_layers"):
        decide(params, problem, trained_layers="output")


def test_degenerate_data_are_undecided_or_right():
    generator = np.random.default_rng(5)
    X, Y, W, V = sphere(generator, 6, 3), generator.normal(size=(6, 1)), generator.normal(size=(3, 8)), np.ones((8, 1))
    V[::2] = -1
    twice = Problem(np.vstack([X, X[:1]]), np.vstack([Y, Y[:1] + 1]))
    proof = decide(Params(W, V), twice)
    assert proof.verdict != Verdict.GLOBAL_MINIMUM  # The labels of one input differ.
    same = decide(Params(W, V), Problem(np.vstack([X, X[:1]]), np.vstack([Y, Y[:1]])))
    assert same.verdict == Verdict.GLOBAL_MINIMUM  # A sample twice asks for nothing new.
    zero_row = decide(Params(W, V), Problem(np.vstack([X, 0 * X[:1]]), np.vstack([Y, [[1.0]]])))
    assert zero_row.verdict == Verdict.LOCAL_MINIMUM
    np.testing.assert_allclose(zero_row.loss, 0.5, rtol=1e-8)
    silent = V.copy()
    silent[0] = 0
    proof = decide(Params(W, silent), Problem(X, Y))
    assert proof.verdict != Verdict.UNDECIDED
    np.testing.assert_array_equal(proof.W[:, 0], W[:, 0])
    assert decide(Params(W, 0 * V), Problem(X, Y)).verdict == Verdict.LOCAL_MINIMUM  # L is constant.
    assert decide(Params(W, 0 * V), Problem(X, Y), trained_layers="both").verdict == Verdict.UNDECIDED
    flat = decide(Params(np.vstack([W, W]), V), Problem(np.hstack([X, X]), Y))
    assert flat.verdict in (Verdict.GLOBAL_MINIMUM, Verdict.UNDECIDED)


@pytest.mark.parametrize("layers", ["hidden", "both"])
@pytest.mark.parametrize("case", ["rank-deficient", "duplicate rows", "zero rows", "V_j = 0", "opposite rows"])
def test_verdicts_on_degenerate_data_hold_where_they_claim_to(layers, case):
    """A local minimum is one by sampling, and a global one fits; or nothing is claimed, with the reason."""
    params, problem = descended(7, 24, 4, 3, both=layers == "both", rate=0.02, steps=600)
    (X, Y), (W, V) = problem, params
    if case == "rank-deficient":
        X = X.copy()
        X[:, 3] = X[:, 0]
    elif case == "duplicate rows":
        X, Y = np.vstack([X, X[:6]]), np.vstack([Y, -Y[:6]])
    elif case == "zero rows":
        X = np.vstack([X, 0 * X[:2]])
        Y = np.vstack([Y, Y[:2]])
    elif case == "opposite rows":
        X, Y = np.vstack([X, -X[:6]]), np.vstack([Y, Y[:6]])
    else:
        V = np.vstack([V[:2], 0 * V[2:]])
    problem = Problem(X, Y)
    proof = decide(Params(W, V), problem, trained_layers=layers)
    assert (proof.verdict == Verdict.UNDECIDED) == bool(proof.reason)
    if proof.verdict == Verdict.GLOBAL_MINIMUM:
        assert loss(proof.W, proof.V, problem) < 1e-12
    if proof.verdict == Verdict.LOCAL_MINIMUM:
        generator = np.random.default_rng(0)
        moves_V = proof.trained_layers == "both"
        for scale in (0.9, 0.1, 1e-2) * 40:
            D, d = generator.normal(size=W.shape), generator.normal(size=V.shape) * moves_V
            size = np.sqrt(np.sum(D**2) + np.sum(d**2)) if moves_V else np.linalg.norm(D, axis=0)
            step = scale * min(proof.radius, 1e3) / size
            assert loss(proof.W + step * D, proof.V + (step * d if moves_V else 0), problem) >= proof.loss[0] * (
                1 - 1e-12
            )


def test_the_reason_is_that_of_the_theorem_that_counts():
    """With both layers that of Theorem 3, not what fails for V fixed."""
    generator = np.random.default_rng(5)
    X, Y, W = sphere(generator, 6, 3), generator.normal(size=(6, 1)), generator.normal(size=(3, 8))
    silent = Params(W, np.zeros((8, 1)))
    proof = decide(silent, Problem(X, Y), trained_layers="both")
    assert proof.verdict == Verdict.UNDECIDED
    found = descend_to_stationary_point(X, Y, *silent)
    assert proof.reason == verify_both_layers(X, Y, *silent, found).reason != ""


@pytest.mark.parametrize("seed", range(1000, 1020))
def test_no_verdict_contradicts_exact_enumeration(seed):
    params, problem = random_problem(np.random.default_rng(seed))
    proof = decide(params, problem)
    assert contradiction(proof, problem) == ""
