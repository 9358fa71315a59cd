"""The paper's statements as functions, against direct computation, quadrature, Monte Carlo, and each other."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import integrate
from scipy.optimize import brentq

from relu_sgd import Params, Problem, inclusion, loss
from relu_sgd.theory import certificate, comparison, gram, trajectory
from relu_sgd.theory.certificate import Certificate


def unit_rows(N, d0, seed=0):
    X = np.random.default_rng(seed).normal(size=(N, d0))
    return X / np.linalg.norm(X, axis=1)[:, None]


def test_gram_against_quadrature():
    """E relu(x.w) relu(y.w) in the plane of x and y, in polar coordinates."""
    X = np.array([[1.0, 0.0], [0.3, 2.0], [-1.0, 0.5], [-2.0, 0.0]])
    for i in range(4):
        for j in range(4):
            angular = lambda t, i=i, j=j: max(X[i] @ [np.cos(t), np.sin(t)], 0) * max(X[j] @ [np.cos(t), np.sin(t)], 0)
            value, _ = integrate.quad(angular, 0, 2 * np.pi, limit=500, epsabs=1e-12)
            # The radius contributes E r^2 / 2 pi = integral of r^3 exp(-r^2 / 2) / 2 pi = 2 / 2 pi.
            assert gram.gram(X)[i, j] == pytest.approx(value / np.pi, abs=1e-8)


def test_gram_by_sampling_lies_within_its_error():
    X = unit_rows(12, 5) * np.linspace(0.5, 2, 12)[:, None]
    estimate = gram.gram_by_sampling(X, 200_000)
    deviation = (estimate.mean - gram.gram(X)) / estimate.standard_error
    assert np.abs(deviation).max() < 4.5
    assert np.sqrt((deviation**2).mean()) == pytest.approx(1, abs=0.25)


def test_gram_of_duplicate_and_opposite_rows():
    G = gram.gram(np.array([[3.0, 4.0], [3.0, 4.0], [-3.0, -4.0]]))
    np.testing.assert_allclose(G, [[12.5, 12.5, 0], [12.5, 12.5, 0], [0, 0, 12.5]], atol=1e-14)


def test_hermite_polynomials_are_orthogonal():
    nodes, weights = np.polynomial.hermite_e.hermegauss(40)
    weights = weights / weights.sum()
    table = np.array([gram.hermite_polynomial(k, nodes) / math.sqrt(math.factorial(k)) for k in range(9)])
    np.testing.assert_allclose((table * weights) @ table.T, np.eye(9), atol=1e-10)
    for k in range(9):
        np.testing.assert_allclose(
            gram.hermite_polynomial(k, nodes), np.polynomial.hermite_e.hermeval(nodes, np.eye(9)[k]), rtol=1e-9
        )


@pytest.mark.parametrize("k", range(13))
def test_hermite_coefficients_against_quadrature(k):
    density = lambda z: z * gram.hermite_polynomial(k, z) * np.exp(-(z**2) / 2) / np.sqrt(2 * np.pi)
    size = math.sqrt(math.factorial(k))
    value, _ = integrate.quad(lambda z: density(z) / size, 0, 40, epsabs=1e-9, limit=400)
    assert gram.hermite_coefficient(k) == pytest.approx(value, abs=1e-8)


def test_hermite_coefficients_sum_and_decay():
    assert gram.hermite_coefficient(2) == pytest.approx(1 / (2 * math.sqrt(math.pi)))
    total = sum(gram.hermite_coefficient(k) ** 2 for k in range(2, 200_001, 2))
    tail = 0.127 / 1.5 / 2 * 200_000**-1.5  # Of the terms left out, by their asymptotics.
    assert total + tail == pytest.approx(1 / 4 - 1 / (2 * math.pi), abs=1e-9)
    limit = math.sqrt(2 / math.pi) / (2 * math.pi)
    assert 10_000**2.5 * gram.hermite_coefficient(10_000) ** 2 == pytest.approx(limit, rel=1e-3)


def test_khatri_rao_power_is_never_needed():
    X = np.random.default_rng(0).normal(size=(5, 3))
    power = np.einsum("ia,ib,ic->iabc", X, X, X).reshape(5, -1)
    np.testing.assert_allclose(gram.khatri_rao_gram(X, 3), power @ power.T)


@pytest.mark.parametrize("r", [1, 2, 4, 6, 10])
@pytest.mark.parametrize("shape", [(6, 6), (20, 10), (30, 4)])
def test_lemma_c3_and_gershgorin_bound_from_below(r, shape):
    X = unit_rows(*shape) * np.random.default_rng(1).uniform(0.5, 2, size=(shape[0], 1))
    smallest = gram.least_eigenvalue(gram.gram(X))
    assert gram.khatri_rao_bound(X, r) <= smallest + 1e-12
    assert gram.gershgorin_bound(X, r) <= gram.least_eigenvalue(gram.khatri_rao_gram(X, r)) + 1e-9


def test_lemma_c3_is_sharp_for_orthogonal_rows():
    """For orthonormal rows lambda is 1/2 - mu_0^2 - ...: the sum of mu_k^2, k >= 1. A wrong mu_1 would exceed it."""
    smallest = gram.least_eigenvalue(gram.gram(np.eye(6)))
    assert smallest == pytest.approx(1 / 2 - 1 / (2 * math.pi), abs=1e-12)
    bounds = [gram.khatri_rao_bound(np.eye(6), r) for r in range(1, 400)]
    assert bounds[0] == pytest.approx(1 / 4)
    assert 0.97 * smallest < sum(bounds) <= smallest
    # Twice the largest coefficient would break the lemma here.
    assert 2 * bounds[0] > smallest
    # (39) is an equality for orthogonal rows of one length.
    assert gram.gershgorin_bound(3 * np.eye(6), 2) == pytest.approx(
        gram.least_eigenvalue(gram.khatri_rao_gram(3 * np.eye(6), 2))
    )


def test_truncation_as_printed_fails_and_as_repaired_holds():
    """(42): lambda_t >= lambda / 2. The norm of relu(Xw) concentrates near sqrt(N d0 / 2), which (41) forgets."""
    X = unit_rows(100, 100) * 10.0
    smallest = gram.least_eigenvalue(gram.gram(X))
    printed, repaired = gram.truncation_level(X, repaired=False), gram.truncation_level(X)
    assert printed < repaired
    kept = gram.truncated_gram(X, repaired, 20_000).mean
    assert gram.least_eigenvalue(kept) >= smallest / 2
    low = 0.4 * math.sqrt(100 * 100 / 2)
    assert gram.least_eigenvalue(gram.truncated_gram(X, low, 20_000).mean) < smallest / 2


def draw(seed, N=8, d0=5, d1=60, d2=2, scale=1.0):
    rng = np.random.default_rng(seed)
    X = unit_rows(N, d0, seed)
    return Params(rng.normal(size=(d0, d1)), scale * rng.normal(size=(d1, d2)) / np.sqrt(d1)), Problem(
        X, rng.normal(size=(N, d2))
    )


def test_certificate_against_direct_computation():
    params, problem = draw(0)
    found = certificate.certificate(params, problem, chunk=7)
    H = np.maximum(problem.X @ params.W, 0)
    a = np.sqrt(0.5 * np.sum((problem.Y - H @ params.V) ** 2))
    alpha = np.linalg.svd(H.T, compute_uv=False).min()
    norm = np.linalg.svd(problem.X, compute_uv=False).max()
    c, c1, c2 = norm**2, 2 * 2**0.5 * norm**2 * np.linalg.norm(params.V), 2 * norm**3 * np.linalg.norm(params.W)
    for name, value in dict(a=a, alpha=alpha, c=c, c1=c1, c2=c2).items():
        assert getattr(found, name) == pytest.approx(value, rel=1e-9), name
    E = np.exp(4 * c * a**2 / alpha**4)
    assert found.left_side_10 == pytest.approx(4 * (a * c1 / alpha**3 + 2 * a**2 * c2 / alpha**5) * E, rel=1e-8)
    assert pytest.approx((a * c1 / alpha**3 + a**2 * c2 / alpha**5) * E, rel=1e-8) == found.F
    theta = np.hypot(np.linalg.norm(params.W), np.linalg.norm(params.V))
    u = 4 * norm * a / alpha**2
    assert found.drift == pytest.approx(u * theta * np.exp(u), rel=1e-9)
    assert found.sharp_drift == pytest.approx(theta * (np.exp(u / 2**0.5) - 1), rel=1e-9)
    np.testing.assert_allclose(found.loss_bound(np.array([0.0, 0.1])), a**2 * np.exp(-np.array([0, 0.1]) * alpha**2))
    assert found.a**2 == pytest.approx(float(loss(params, problem)))


def test_streaming_needs_no_whole_layer():
    X = unit_rows(6, 3)
    W = np.random.default_rng(0).normal(size=(3, 1001))
    H = np.maximum(X @ W, 0)
    np.testing.assert_allclose(certificate.hidden_gram(X, certificate.neuron_chunks(W, 64)), H @ H.T, rtol=1e-12)


@given(st.floats(0.01, 3), st.floats(0.5, 20), st.floats(0.1, 3), st.floats(0.1, 3), st.floats(0.1, 3))
def test_conditions_are_nested(a, alpha, norm, hidden, output):
    """(11) implies (10), which is up to twice weaker; the sharp condition is weaker than both."""
    found = certificate.certificate_of(a**2, alpha**2, norm, hidden, output)
    assert found.left_side_10 <= 8 * found.F * (1 + 1e-12) <= 2 * found.left_side_10 * (1 + 1e-9)
    if found.left_side_10 < 1:
        assert found.is_certified
        assert found.left_side_sharp < 1
    assert found.sharp_drift <= found.drift * (1 + 1e-12)


def test_figure_1_constants():
    """(10) holds for alpha above 1.98398 and (11) above 2.24036 when a = c = c1 = c2 = 1."""
    at = lambda alpha: Certificate(1.0, alpha, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0)
    assert brentq(lambda alpha: at(alpha).left_side_10 - 1, 1.5, 4) == pytest.approx(1.98398, abs=1e-5)
    assert brentq(lambda alpha: at(alpha).F - 1 / 8, 1.5, 4) == pytest.approx(2.24036, abs=1e-5)


def population(N, d0, d1, seed=0):
    """The certificate of unit rows and the paper's scaling, with alpha^2 = d1 lambda(X) and the mean initial loss."""
    X = unit_rows(N, d0, seed)
    G = gram.gram(X)
    return certificate.certificate_of(
        0.5 * (N + np.trace(G)), d1 * gram.least_eigenvalue(G), np.linalg.norm(X, 2), np.sqrt(d0 * d1), 1.0
    )


@pytest.mark.parametrize(
    ("N", "d0", "by_11", "by_10", "sharp"), [(200, 20, 2.89e5, 2.86e5, 1.35e5), (200, 200, 1.10e4, 1.09e4, 5.13e3)]
)
def test_widths_for_orientation(N, d0, by_11, by_10, sharp):
    def width(value):
        crossing = lambda log_width: math.log(min(value(population(N, d0, math.exp(log_width))), 1e300))
        return math.exp(brentq(crossing, math.log(1e3), math.log(1e8), xtol=1e-4))

    assert width(lambda c: 8 * c.F) == pytest.approx(by_11, rel=0.01)
    assert width(lambda c: c.left_side_10) == pytest.approx(by_10, rel=0.01)
    assert width(lambda c: c.left_side_sharp) == pytest.approx(sharp, rel=0.01)


def flow(params, problem, step, num_steps):
    """Explicit steps of gradient descent in NumPy: theta at every iterate, stacked, and the flow times."""
    W, V = (np.array(part, float) for part in params)
    X, Y = (np.asarray(part, float) for part in problem)
    path = [(W.copy(), V.copy())]
    for _ in range(num_steps):
        Z = X @ W
        H = np.maximum(Z, 0)
        E = H @ V - Y
        W, V = W - step * X.T @ (E @ V.T * (Z > 0)), V - step * H.T @ E
        path.append((W, V))
    return Params(*map(np.array, zip(*path, strict=True))), step * np.arange(num_steps + 1)


def test_a_certified_run_keeps_every_promise():
    """Orthonormal samples and many neurons: (10) certifies, and the inclusion obeys every bound of Section 3, and so does descent."""
    N = d0 = 4
    rng = np.random.default_rng(0)
    d1 = 6000
    params = Params(jnp.asarray(rng.normal(size=(d0, d1))), jnp.asarray(rng.normal(size=(d1, 1)) * 1e-3))
    problem = Problem(jnp.eye(d0)[:N], jnp.asarray(rng.normal(size=(N, 1)) * 0.5))
    found = certificate.certificate(params, problem)
    assert found.is_certified
    assert found.left_side_sharp < 1
    times = np.linspace(1e-4, 4 / found.alpha**2, 40)
    solution = jax.jit(lambda p, q: inclusion.solve(p, q, jnp.asarray(times), tolerance=1e-5, max_kinks=4))(
        params, problem
    )
    assert solution.status == inclusion.Status.REACHED
    assert solution.loss[-1] < 0.05 * solution.loss[0]
    path = Params(*(np.concatenate([first[None], rest]) for first, rest in zip(params, solution.params, strict=True)))
    along = trajectory.slack(path, problem, np.concatenate([[0.0], times]))
    assert set(along) == {"(4)", "(5)", "(6)", "(6), sharp", "(9)", "Proposition 2.1", "(12)", "(13)", "(13), sharp"}
    for name, slack in along.items():
        assert (slack >= -1e-12).all(), name
    assert (along["(6), sharp"] <= along["(6)"] + 1e-9).all()
    for name, slack in trajectory.slack(
        *(lambda p, t: (p, problem, t))(*flow(params, problem, times[1] / 4, 60))
    ).items():
        assert (slack >= -1e-12).all(), name


def scalar(w, v, y):
    """One sample, one neuron: everything is a number."""
    return Params(np.array([[w]]), np.array([[v]])), Problem(np.ones((1, 1)), np.array([[y]]))


def test_bounds_of_section_3_are_attained_to_first_order():
    """Each bound along a short flow from a start that makes it tight: a constant smaller by sqrt(2) would leave negative slack."""
    tight = {"(4)": (1.0, 2.0, 5.0), "(5)": (1.0, 1e-9, 1.0), "(6)": (1e-3, 1.0, 1.0), "(6), sharp": (1e-3, 1.0, 1.0)}
    for name, start in tight.items():
        params, problem = scalar(*start)
        path, times = flow(params, problem, 1e-5, 10)
        slack = trajectory.slack(path, problem, times)[name][-1]
        value = {"(4)": abs(path.W[-1] - path.W[0]), "(5)": np.hypot(path.W[-1] - start[0], path.V[-1] - start[1])}
        value = float(np.squeeze(value.get(name, path.W[-1] - path.W[0])))
        assert -1e-4 * value <= slack < (1 - 1 / math.sqrt(2)) * value, (
            name
        )  # Explicit steps lead the flow by half a step.
    # Proposition 2.1 and (9) bound a decrease: the rate of a flow that begins with V = 0.
    params, problem = scalar(1.0, 0.0, 1.0)
    path, times = flow(params, problem, 1e-5, 10)
    slack, start = trajectory.slack(path, problem, times), certificate.certificate(params, problem)
    assert abs(slack["Proposition 2.1"][-1]) < start.a**2 * times[-1] * 2 * (1 - 1 / math.sqrt(2))
    assert abs(slack["(9)"][-1]) < start.a * times[-1] * (1 - 1 / math.sqrt(2))


def test_12_would_show_twice_the_rate():
    """V moves towards 0 and takes alpha_0 with it: L falls more slowly than exp(-2 t alpha_0(0)^2), and faster than (12)'s exp(-t alpha_0(0)^2)."""
    params, problem = scalar(3.0, 1.0, 1.6)
    start = certificate.certificate(params, problem)
    assert start.left_side_sharp < 1
    path, times = flow(params, problem, 1e-4, 20_000)
    path, times = Params(path.W[::500], path.V[::500]), times[::500]
    slack = trajectory.slack(path, problem, times)
    assert (slack["(12)"] >= 0).all()
    loss = start.loss_bound(times) - slack["(12)"]
    assert loss[-1] > start.a**2 * math.exp(-2 * times[-1] * start.alpha**2)


def test_no_width_no_certificate():
    params, problem = draw(1, N=10, d1=9)
    found = certificate.certificate(params, problem)
    assert found.alpha == 0
    assert found.left_side_10 == found.F == found.left_side_sharp == found.drift == math.inf
    assert not found.is_certified
    assert found.terms == {"alpha": 0.0}
    assert set(found.margins.values()) == {-math.inf}


def test_terms_multiply_to_the_left_side():
    found = population(200, 20, 3e5)
    first, second, exponential = found.terms.values()
    assert (first + second) * exponential == pytest.approx(found.left_side_10)
    assert second > first  # c2 is to blame at this size.


def test_thresholds_of_the_comparison_problem():
    assert comparison.blow_up_threshold() == pytest.approx(1.7293, abs=1e-4)
    assert comparison.blow_up_threshold(factor=2.0) == pytest.approx(2.0441, abs=1e-4)


def test_comparison_problem_against_scipy():
    alpha, times = 2.1, np.linspace(0, 5, 11)

    def field(t, y):
        return np.exp(2 * alpha * t * (y + y**2) * np.exp(y**2) - alpha**2 * t)

    reference = integrate.solve_ivp(field, (0, 5), [0.0], t_eval=times, rtol=1e-11, atol=1e-13, method="DOP853").y[0]
    found = comparison.solve_comparison(alpha, times, factor=2.0)
    assert found.outcome == comparison.Outcome.BOUNDED
    np.testing.assert_allclose(found.y, reference, atol=1e-9)
    assert found.y[-1] < 2 / alpha**2


def test_comparison_problem_is_mapped_over_alpha():
    solve = jax.jit(jax.vmap(lambda alpha: comparison.solve_comparison(alpha, jnp.array([0.5, 8.0]), factor=2.0)))
    found = solve(jnp.array([2.042, 2.045]))
    assert found.outcome.tolist() == [comparison.Outcome.BLOWS_UP, comparison.Outcome.BOUNDED]
    assert np.isnan(found.y[0, 1])
    assert np.isfinite(found.y[1, 1])


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: gram.gram(np.zeros((2, 3))), "row 0 of X"),
        (lambda: gram.gram(np.ones(3)), "N x d0"),
        (lambda: gram.gram(np.array([[np.nan]])), "not finite"),
        (lambda: gram.least_eigenvalue(np.ones((2, 3))), "square"),
        (lambda: gram.gram_by_sampling(np.ones((1, 1)), 1), "num_draws"),
        (lambda: gram.truncated_gram(np.ones((1, 1)), 0.0, 10), "level"),
        (lambda: gram.truncation_level(np.ones((2, 1))), "lambda"),
        (lambda: gram.hermite_coefficient(-1), "negative"),
        (lambda: gram.hermite_polynomial(-1, np.ones(1)), "negative"),
        (lambda: gram.khatri_rao_gram(np.ones((1, 1)), 0), "at least 1"),
        (lambda: certificate.certificate_of(-1.0, 1, 1, 1, 1), "loss"),
        (lambda: certificate.certificate_of(1.0, 1, np.inf, 1, 1), "operator_norm"),
        (lambda: certificate.certificate(*draw(0), chunk=0), "chunk"),
        (lambda: certificate.certificate(draw(0)[0], draw(1, d2=1)[1]), "d1 x d2"),
        (
            lambda: trajectory.slack(
                Params(np.ones((2, 1, 1)), np.ones((2, 1, 1))), scalar(1, 1, 1)[1], np.array([1.0, 2.0])
            ),
            "increase from 0",
        ),
        (
            lambda: trajectory.slack(Params(np.ones((1, 1)), np.ones((1, 1))), scalar(1, 1, 1)[1], np.zeros(1)),
            "x d0 x d1",
        ),
        (lambda: comparison.blow_up_threshold(low=3.0), "threshold is not in"),
    ],
)
def test_bad_input(call, words):
    with pytest.raises(ValueError, match=words):
        call()
