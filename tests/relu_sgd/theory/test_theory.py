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
from relu_sgd.theory import _streaming, certificate, comparison, gram, trajectory
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
    np.testing.assert_allclose(_streaming.hidden_gram(X, _streaming.neuron_chunks(W, 64)), H @ H.T, rtol=1e-12)


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
    at = lambda alpha: Certificate(1.0, alpha, 1.0, 1 / 2, 1 / math.sqrt(8))
    assert (at(2.0).c, at(2.0).c1, at(2.0).c2) == (1, pytest.approx(1), 1)
    assert brentq(lambda alpha: at(alpha).left_side_10 - 1, 1.5, 4) == pytest.approx(1.98398, abs=1e-5)
    assert brentq(lambda alpha: at(alpha).F - 1 / 8, 1.5, 4) == pytest.approx(2.24036, abs=1e-5)


@given(st.floats(0.1, 3), st.floats(0.5, 5), st.floats(0.1, 3), st.floats(0, 3), st.floats(0, 3))
def test_lemma_3_3_is_10_for_the_constants_of_a_network(a, alpha, norm, hidden, output):
    found = Certificate(a, alpha, norm, hidden, output)
    expected = comparison.lemma_3_3(alpha, a=a, c=found.c, c1=found.c1, c2=found.c2)
    assert found.left_side_10 == pytest.approx(expected, rel=1e-9)


def test_what_the_conditions_imply_at_worst():
    """With V(0) = 0 and ||W(0)||_F as small as alpha / ||X|| lets it be: the least that (10) and the sharp condition
    say about the path.
    """
    worst = lambda k: Certificate(k, 1.0, 1.0, 1.0, 0.0)
    of_sharp = brentq(lambda k: worst(k).left_side_sharp - 1, 0.1, 0.9)
    assert worst(of_sharp).path.left_side == pytest.approx(4.5 * math.acosh(2) - 3 * math.sqrt(3), rel=1e-9)
    assert 2 * worst(of_sharp).path.least_alpha ** 2 > 0.539
    assert math.sqrt(2) / worst(of_sharp).path.least_alpha < 2.73
    of_10 = brentq(lambda k: worst(k).left_side_10 - 1, 0.01, 0.9)
    assert worst(of_10).path.left_side < 0.3193
    assert 2 * worst(of_10).path.least_alpha ** 2 > 1  # So (10) gives (12) in this way too.


@given(st.floats(1e-3, 3), st.floats(1, 30), st.floats(0, 30))
def test_the_path_condition_is_the_weakest(k, hidden, output):
    """For every network ||X|| ||W(0)||_F is at least alpha."""
    found = Certificate(k, 1.0, 1.0, hidden, output)
    if found.left_side_sharp < 1:
        assert found.path.left_side < 0.7302
        assert found.path.path < found.drift  # What (13) allows.
    if found.left_side_10 < 1:
        assert found.left_side_sharp < 1
    reference, _ = integrate.quad(
        lambda y: max(1 - output * math.sinh(2**0.5 * y) - hidden * (math.cosh(2**0.5 * y) - 1), 0) ** 2,
        0,
        3,
        limit=500,
    )
    assert found.left_side_sharp == pytest.approx(k / reference, rel=1e-5)


@pytest.mark.parametrize("scale", [1e-90, 1e-40, 1e-12, 1e40, 1e90])
def test_no_scale_of_weights_or_data_is_out_of_range(scale):
    """The conditions depend on ratios: with W and V times s and Y times s^2 they stay, and so with X times s and Y
    times s.
    """
    (W, V), (X, Y) = draw(0, scale=0.1)
    plain = certificate.certificate(Params(W, V), Problem(X, Y))
    for weights, data in [((W * scale, V * scale), (X, Y * scale**2)), ((W, V), (X * scale, Y * scale))]:
        found = certificate.certificate(Params(*weights), Problem(*data))
        for name in ("left_side_10", "F", "left_side_sharp"):
            assert getattr(found, name) == pytest.approx(getattr(plain, name), rel=1e-8), name
        assert found.margins["path"] == pytest.approx(plain.margins["path"], rel=1e-8)
        factor = found.hidden_norm / plain.hidden_norm
        assert found.drift == pytest.approx(plain.drift * factor, rel=1e-8)
    nothing = certificate.certificate(Params(W * 0, V * 0), Problem(X * scale, Y))
    assert nothing.left_side_10 == nothing.left_side_sharp == nothing.drift == nothing.sharp_drift == math.inf


@pytest.mark.parametrize("angle", [1e-3, 1e-6, 1e-9, 1e-12])
def test_alpha_is_not_lost_in_the_gram_matrix(angle):
    """Two nearly equal samples: eigenvalues of H H^T stop at eps ||H||^2, so that alpha would stop near 1e-8 ||H||."""
    rng = np.random.default_rng(0)
    W = rng.normal(size=(3, 500))
    x, y = np.array([1.0, 0, 0]), np.array([0, 1.0, 0])
    X = np.array([x, x * math.cos(angle) + y * math.sin(angle), [0, 0, 1.0]])
    found = certificate.certificate(Params(W, np.ones((500, 1))), Problem(X, np.ones((3, 1))), chunk=64)
    singular = np.linalg.svd(np.maximum(X @ W, 0).T, compute_uv=False)
    assert found.alpha == pytest.approx(singular[-1], rel=1e-3)
    # About as far apart as the samples are: sqrt(500 / 2) / sqrt(2) times the angle.
    assert found.alpha == pytest.approx(math.sqrt(500) / 2 * angle, rel=0.1)


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
    """Orthonormal samples and many neurons: (10) certifies, and the inclusion obeys every bound of Section 3, and so
    does descent.
    """
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
    always = {"(4)", "(5)", "(6)", "(6), sharp", "(9)", "Proposition 2.1"}
    assert set(along) == always | {"(12)", "(13)", "(13), sharp"} | set(PATH_PROMISES)
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
    """Each bound along a short flow from a start that makes it tight: a constant smaller by sqrt(2) would leave
    negative slack.
    """
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
    """V moves towards 0 and takes alpha_0 with it: L falls more slowly than exp(-2 t alpha_0(0)^2), and faster than
    (12)'s exp(-t alpha_0(0)^2).
    """
    params, problem = scalar(3.0, 1.0, 1.6)
    start = certificate.certificate(params, problem)
    assert start.left_side_sharp < 1
    path, times = flow(params, problem, 1e-4, 20_000)
    path, times = Params(path.W[::500], path.V[::500]), times[::500]
    slack = trajectory.slack(path, problem, times)
    assert (slack["(12)"] >= 0).all()
    loss = start.loss_bound(times) - slack["(12)"]
    assert loss[-1] > start.a**2 * math.exp(-2 * times[-1] * start.alpha**2)


# What `Certificate.path` promises.
PATH_PROMISES = ("path, alpha", "path, loss", "path, hidden", "path, length")


def test_the_sharp_condition_promises_less_than_12():
    """A start that the sharp condition certifies and (10) does not: (12) and (13) are not promised, the bounds of the
    path are, and hold.
    """
    params, problem = scalar(1.0, 0.3, 0.3 + math.sqrt(2) * 0.35)
    start = certificate.certificate(params, problem)
    assert start.left_side_sharp < 1 < start.left_side_10
    assert 2 * start.path.least_alpha**2 < start.alpha**2 * 1.05
    slack = trajectory.slack(*(lambda path, times: (path, problem, times))(*flow(params, problem, 5e-3, 600)))
    assert not {"(12)", "(13)", "(13), sharp"} & set(slack)
    for name in PATH_PROMISES:
        assert (slack[name] >= -1e-9).all(), name


def test_12_fails_where_the_path_condition_alone_holds():
    """One sample, w = v = 1, a label near 0: w and v fall together, and the rate ends at 4 times the label where (12)
    says 1.
    """
    params, problem = scalar(1.0, 1.0, 0.02)
    start = certificate.certificate(params, problem)
    assert start.path.left_side == pytest.approx(0.98)
    path, times = flow(params, problem, 2e-3, 10_000)
    path, times = Params(path.W[::100], path.V[::100]), times[::100]
    slack = trajectory.slack(path, problem, times)
    for name in PATH_PROMISES:
        assert (slack[name] >= -1e-9).all(), name
    loss = start.path.loss_bound(times) - slack["path, loss"]
    assert (start.loss_bound(times) < loss).any()
    # Nearly attained: half of the path of W, or twice the least alpha, would be too much to promise.
    assert slack["path, hidden"][-1] < 0.1 * (start.alpha - start.path.least_alpha)
    assert slack["path, alpha"][-1] < start.path.least_alpha


@pytest.mark.parametrize(
    ("N", "d1", "d2", "seed", "crosses"),
    [(2, 4, 1, 0, False), (2, 3, 1, 1, False), (3, 6, 1, 5, True), (3, 5, 3, 0, True)],
)
def test_the_path_promises_along_a_flow(N, d1, d2, seed, crosses):
    """Starts at 0.9 of the path condition, some with kinks crossed on the way, and alpha_0 moves."""
    params, problem = draw(seed, N=N, d0=2, d1=d1, d2=d2, scale=2.0 if d1 == 3 else 3.0)
    predicted = np.maximum(problem.X @ params.W, 0) @ params.V
    error = np.random.default_rng(seed).normal(size=predicted.shape)
    unit = certificate.certificate(params, Problem(problem.X, predicted + error))
    problem = Problem(problem.X, predicted + error * 0.9 / unit.path.left_side)
    start = certificate.certificate(params, problem)
    assert start.path.left_side == pytest.approx(0.9)
    step = 0.02 / (start.operator_norm * (start.hidden_norm + start.output_norm)) ** 2
    path, times = flow(params, problem, step, 4000)
    assert np.diff(np.sign(problem.X @ path.W), axis=0).any() == crosses
    slack = trajectory.slack(Params(path.W[::40], path.V[::40]), problem, times[::40])
    for name in PATH_PROMISES:
        assert (slack[name] >= -1e-9).all(), (name, slack[name].min())
    assert abs(slack["path, alpha"][-1] + start.path.least_alpha - start.alpha) > 0.02 * start.alpha


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


@pytest.mark.wrong_types
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
        (lambda: gram.hermite_coefficient(-1), "k must be at least 0"),
        (lambda: gram.hermite_polynomial(-1, np.ones(1)), "k must be at least 0"),
        (lambda: gram.hermite_coefficient(2.5), "k must be a whole number"),
        (lambda: gram.least_eigenvalue(np.full((2, 2), np.nan)), "not finite"),
        (lambda: gram.operator_norm(np.full((2, 2), np.inf)), "not finite"),
        (lambda: gram.khatri_rao_gram(np.ones((1, 1)), 0), "at least 1"),
        (lambda: certificate.certificate_of(-1.0, 1, 1, 1, 1), "loss"),
        (lambda: certificate.certificate_of(1.0, 1, np.inf, 1, 1), "operator_norm"),
        (lambda: certificate.certificate(*draw(0), chunk=0), "chunk"),
        (lambda: certificate.certificate(*draw(0), chunk=2.5), "chunk must be a whole number"),
        (lambda: list(_streaming.neuron_chunks(np.ones((2, 3)), 0)), "chunk"),
        (lambda: certificate.certificate(draw(0)[0], Problem(draw(0)[1].X * np.nan, draw(0)[1].Y)), "X .* not finite"),
        (lambda: certificate.certificate(draw(0)[0]._replace(W=np.full((5, 60), np.inf)), draw(0)[1]), "W .* not fin"),
        (lambda: certificate.certificate(Params(*(1e200 * p for p in draw(0)[0])), draw(0)[1]), "a must be finite"),
        (lambda: certificate.certificate_of(1.0, np.nan, 1, 1, 1), "alpha"),
        (lambda: comparison.lemma_3_3(0.0), "alpha must be positive"),
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
