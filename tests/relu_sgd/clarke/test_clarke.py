"""The subdifferential as a set: against SciPy, against the true Clarke set, and on the cases where Lemma A.4 fails."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import lsq_linear

from relu_sgd import Params, Problem, loss
from relu_sgd.clarke import Exactness, Subdifferential
from relu_sgd.clarke import subdifferential as eager_subdifferential
from relu_sgd.clarke._zonotope import nearest_point
from relu_sgd.clarke.hull import achievable_patterns, clarke_hull

nearest = jax.jit(nearest_point)
subdifferential = jax.jit(eager_subdifferential, static_argnames=("trained_layers", "normalization", "max_kinks"))
minimum_norm = jax.jit(Subdifferential.minimum_norm)
contains = jax.jit(Subdifferential.contains)
is_exact = jax.jit(lambda members: members.is_exact)
gradient_of = jax.jit(jax.grad(loss), static_argnames="normalization")


def test_a_second_call_compiles_nothing(caplog):
    """Outside of jit."""
    params = Params(np.zeros((2, 1)), np.ones((1, 1)))
    first, second = (Problem(np.eye(2), sign * np.ones((2, 1))) for sign in (1, -1))
    eager_subdifferential(*jax.device_put((params, first))).minimum_norm()
    with jax.log_compiles():
        eager_subdifferential(*jax.device_put((params, second))).minimum_norm()
    assert not [record.message for record in caplog.records if "XLA compilation" in record.message]


def degenerate(kind, rng, K, d):
    G = rng.normal(size=(K, d))
    match kind:
        case "antiparallel":
            G[K // 2 :] = -G[: K - K // 2]
        case "duplicate":
            G[K // 2 :] = G[: K - K // 2]
        case "badly scaled":
            G *= 10.0 ** rng.integers(-6, 3, size=(K, 1))
        case "with zeros":
            G[::3] = 0
        case "rank one":
            G = np.outer(G[:, 0], G[0])
    return G


@pytest.mark.parametrize("kind", ["random", "antiparallel", "duplicate", "badly scaled", "with zeros", "rank one"])
@pytest.mark.parametrize(("K", "d"), [(1, 1), (12, 30), (30, 12), (60, 3)])
def test_nearest_point_equals_scipys_active_set_method(kind, K, d):
    rng = np.random.default_rng(K + d)
    for size in (0.1, 1.0, 10.0):
        G, b = degenerate(kind, rng, K, d), size * np.sqrt(K) * rng.normal(size=d)
        found = nearest(b, G)
        reference = b + lsq_linear(G.T, -b, bounds=(0, 1), method="bvls", tol=1e-15, max_iter=10_000).x @ G
        scale = max(np.linalg.norm(b), np.linalg.norm(G, axis=1).max())
        np.testing.assert_allclose(found.point, reference, rtol=0, atol=3e-12 * scale)
        assert 0 <= found.gap <= 1e-10 * scale**2
        assert ((found.coefficients >= 0) & (found.coefficients <= 1)).all()


def nearest_by_enumeration(b, G):
    """For stacked problems: the best of all 3^K ways to have every coefficient at 0, at 1 or free."""
    best, point = np.full(len(b), np.inf), np.zeros_like(b)
    for status in itertools.product((0, 1, 2), repeat=G.shape[1]):
        free, base = np.equal(status, 2), b + G[:, np.equal(status, 1)].sum(axis=1)
        inverse = np.linalg.pinv(np.swapaxes(np.where(free[:, None], G, 0), 1, 2), rcond=1e-10)
        r = -np.einsum("nkd,nd->nk", inverse, base)
        inside = (((r >= -1e-12) & (r <= 1 + 1e-12)) | ~free).all(axis=1)
        candidate = base + np.einsum("nk,nkd->nd", np.clip(r, 0, 1) * free, G)
        norm = np.where(inside, np.linalg.norm(candidate, axis=1), np.inf)
        point[norm < best] = candidate[norm < best]
        best = np.minimum(best, norm)
    return point


@pytest.mark.parametrize(("K", "d"), [(3, 2), (4, 2), (4, 3)])
def test_nearest_point_without_strict_complementarity(K, d):
    """Small integers: coefficients at a bound whose multiplier is 0 too are common, and an interior point ends
    sqrt(eps) away.
    """
    rng = np.random.default_rng(0)
    b, G = rng.integers(-2, 3, size=(2000, d)).astype(float), rng.integers(-2, 3, size=(2000, K, d)).astype(float)
    stacked = jax.jit(jax.vmap(nearest_point))
    found, expected = stacked(b, G), nearest_by_enumeration(b, G)
    np.testing.assert_allclose(found.point, expected, rtol=0, atol=1e-13)
    assert found.gap.max() < 1e-13
    single = stacked(b.astype(np.float32), G.astype(np.float32))
    np.testing.assert_allclose(single.point, expected, rtol=0, atol=5e-6)


@pytest.mark.parametrize(("K", "d"), [(8, 5), (20, 3), (30, 6)])
def test_nearest_point_of_integers_against_scipy(K, d):
    rng = np.random.default_rng(1)
    b, G = rng.integers(-1, 2, size=(100, d)).astype(float), rng.integers(-1, 2, size=(100, K, d)).astype(float)
    found = jax.jit(jax.vmap(nearest_point))(b, G)
    for index in range(100):
        bounded = lsq_linear(G[index].T, -b[index], bounds=(0, 1), method="bvls", tol=1e-15, max_iter=1000)
        np.testing.assert_allclose(found.point[index], b[index] + bounded.x @ G[index], rtol=0, atol=1e-12)


def test_nearest_point_of_hundreds_of_generators_in_both_precisions():
    rng = np.random.default_rng(0)
    G, b = rng.normal(size=(300, 50)), 20 * rng.normal(size=50)
    reference = b + lsq_linear(G.T, -b, bounds=(0, 1), method="bvls", tol=1e-15, max_iter=10_000).x @ G
    np.testing.assert_allclose(nearest(b, G).point, reference, atol=1e-11)
    single = nearest(jnp.asarray(b, jnp.float32), jnp.asarray(G, jnp.float32))
    assert single.point.dtype == jnp.float32
    np.testing.assert_allclose(single.point, reference, atol=1e-3)  # Of a norm of 50.


def test_nearest_point_inside_the_zonotope_is_the_origin():
    G = np.random.default_rng(1).normal(size=(40, 4))
    found = nearest(-0.5 * G.sum(axis=0), G)
    assert np.linalg.norm(found.point) < 1e-12


def one_neuron(X, Y, W=None):
    X, Y = jnp.asarray(X, float), jnp.asarray(Y, float)[:, None]
    W = jnp.zeros((X.shape[1], 1)) if W is None else jnp.asarray(W, float)[:, None]
    return Params(W, jnp.ones((1, 1))), Problem(X, Y)


# The table of counterexamples and examples: case, exact?, true set, Lemma A.4's set, validity of slopes 0, 1/2, 1.
TABLE = {
    "antiparallel, opposite signs": (
        one_neuron([[1], [-1]], [-0.5, 0.5]), False, (0.5, 0.5), (0.0, 1.0), (False, True, False),
    ),
    "antiparallel, equal signs": (
        one_neuron([[1], [-1]], [0.5, 0.5]), True, (-0.5, 0.5), (-0.5, 0.5), (True, True, True),
    ),
    "duplicate, opposite signs": (
        one_neuron([[1], [1]], [0.5, -0.5]), False, (0.0, 0.0), (-0.5, 0.5), (True, True, True),
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", TABLE)
def test_table_of_lemma_a4(case):
    (params, problem), exact, true_set, product_set, valid = TABLE[case]
    product = subdifferential(params, problem, trained_layers="hidden")
    hull = clarke_hull(params, problem, 0)
    up, down = Params(jnp.ones((1, 1)), jnp.zeros((1, 1))), Params(-jnp.ones((1, 1)), jnp.zeros((1, 1)))
    np.testing.assert_allclose([-product.support(down), product.support(up)], product_set, atol=1e-15)
    np.testing.assert_allclose([-hull.support(np.array([-1.0])), hull.support(np.ones(1))], true_set, atol=1e-15)
    assert is_exact(product) == (Exactness.EXACT if exact else Exactness.NOT_EXACT)
    for slope, is_valid in zip((0.0, 0.5, 1.0), valid, strict=True):
        gradient = gradient_of(params, problem, at_zero=slope).W
        assert contains(product, Params(gradient, jnp.zeros((1, 1)))).contains
        assert hull.contains(np.asarray(gradient)[:, 0]) == is_valid


def test_false_stationarity_is_told_apart():
    params, problem = TABLE["antiparallel, opposite signs"][0]
    found = minimum_norm(subdifferential(params, problem, trained_layers="hidden"))
    assert found.norm < 1e-12  # The product set holds 0,
    assert found.exactness == Exactness.NOT_EXACT  # but this is only a lower bound:
    assert clarke_hull(params, problem, 0).distance(np.zeros(1)) == pytest.approx(0.5)


def test_antiparallel_rows_off_the_origin_make_a_strict_superset():
    params, problem = one_neuron([[1, 0], [-1, 0]], [-0.5, 0.5], W=[0, 1])
    product = subdifferential(params, problem, trained_layers="hidden")
    assert is_exact(product) == Exactness.NOT_EXACT
    hull = clarke_hull(params, problem, 0)
    assert hull.distance(np.array([0.5, 0.0])) < 1e-12
    inside = contains(product, Params(jnp.zeros((2, 1)), jnp.zeros((1, 1))))
    assert inside.contains
    assert not hull.contains(np.zeros(2))


integers = st.integers(-2, 2)


@given(st.integers(1, 3), st.integers(1, 4), st.data())
def test_exactness_against_the_true_set(d0, num_samples, data):
    """The product set is exact if and only if every one of its 2^K vertices lies in the hull of
    achievable gradients.
    """
    X = np.array(data.draw(st.lists(st.tuples(*[integers] * d0), min_size=num_samples, max_size=num_samples)), float)
    Y = np.array(data.draw(st.lists(integers.filter(bool), min_size=num_samples, max_size=num_samples)), float)
    W = np.array(data.draw(st.tuples(*[integers] * d0)), float)
    params, problem = one_neuron(X, Y, W)
    product = exactness_of(params, problem)
    hull = clarke_hull(params, problem, 0)
    vertices = []
    for signs in itertools.product((0.0, 1.0), repeat=num_samples):
        slopes = np.where(X @ W == 0, signs, X @ W > 0)
        c = Y - np.maximum(X @ W, 0)
        vertices.append(-X.T @ (slopes * c))
    same = all(hull.contains(vertex, 1e-7) for vertex in vertices)
    assert product == (Exactness.EXACT if same else Exactness.NOT_EXACT)


exactness_of = lambda params, problem: is_exact(subdifferential(params, problem, trained_layers="hidden"))


def test_a_nearly_dependent_set_is_undecided():
    params, problem = one_neuron([[1, 0], [-1, 1e-11]], [-0.5, 0.5])
    assert exactness_of(params, problem) == Exactness.UNDECIDED


def test_a_sign_that_rounding_hides_is_undecided():
    # Neuron 1 predicts 0.1 + 0.2 for sample 0, so what is left of its label 0.3 is rounding; neuron 0 is at both kinks.
    problem = Problem(jnp.array([[1.0, 1.0], [-1.0, -1.0]]), jnp.array([[0.3], [1.0]]))
    params = Params(jnp.array([[0.0, 0.1], [0.0, 0.2]]), jnp.ones((2, 1)))
    product = subdifferential(params, problem, trained_layers="hidden")
    assert 0 < abs(product.coefficients[0]).min() < 1e-15
    assert is_exact(product) == Exactness.UNDECIDED


def draw_with_kinks(seed, N=12, d0=5, d1=4, d2=2, kinks=3, dtype=jnp.float64):
    """A network whose neurons each have `kinks` preactivations at zero, to rounding."""
    rng = np.random.default_rng(seed)
    X, Y = rng.normal(size=(N, d0)), rng.normal(size=(N, d2))
    W, V = rng.normal(size=(d0, d1)), rng.normal(size=(d1, d2))
    for j in range(d1):
        rows = X[rng.choice(N, kinks, replace=False)]
        for _ in range(3):  # Once leaves more than rounding.
            W[:, j] -= np.linalg.lstsq(rows, rows @ W[:, j], rcond=None)[0]
    return Params(*(jnp.asarray(a, dtype) for a in (W, V))), Problem(*(jnp.asarray(a, dtype) for a in (X, Y)))


@pytest.mark.parametrize("trained_layers", ["hidden", "both"])
@pytest.mark.parametrize("normalization", ["half_sum", "mean"])
def test_gradients_from_nearby_points_are_elements(trained_layers, normalization):
    params, problem = draw_with_kinks(0)
    product = subdifferential(params, problem, trained_layers=trained_layers, normalization=normalization)
    assert is_exact(product) == Exactness.EXACT
    assert int((product.sides == 0).sum()) == 12
    for seed in range(5):
        noise = jax.random.normal(jax.random.key(seed), params.W.shape)
        near = params._replace(W=params.W + 1e-9 * noise)
        gradient = gradient_of(near, problem, normalization=normalization)
        if trained_layers == "hidden":
            gradient = gradient._replace(V=jnp.zeros_like(gradient.V))
        inside = contains(product, gradient, tolerance=1e-6)
        assert inside.contains
        same = product.element(inside.slopes)
        np.testing.assert_allclose(same.W, gradient.W, atol=1e-6)


def test_support_is_the_largest_directional_derivative_nearby():
    params, problem = draw_with_kinks(1, d2=1)
    product = subdifferential(params, problem)
    direction = Params(
        jax.random.normal(jax.random.key(0), params.W.shape), jax.random.normal(jax.random.key(1), params.V.shape)
    )
    slopes = np.array(jnp.where(product.sides > 0, 1.0, 0.0))
    best = -np.inf
    for j in range(params.W.shape[1]):  # Neurons are independent: the best pattern of each.
        kinks = np.flatnonzero(np.asarray(product.sides)[:, j] == 0)
        values = []
        for signs in itertools.product((0.0, 1.0), repeat=len(kinks)):
            slopes[kinks, j] = signs
            element = product.element(jnp.asarray(slopes))
            values.append((float((element.W * direction.W).sum() + (element.V * direction.V).sum()), signs))
        best, slopes[kinks, j] = max(values)
    assert product.support(direction) == pytest.approx(best, rel=1e-12)


def test_a_point_outside_comes_with_a_separating_direction():
    params, problem = draw_with_kinks(2)
    product = subdifferential(params, problem)
    outside = product.element(jnp.ones_like(product.sides, float))
    outside = outside._replace(W=outside.W + 10.0)
    answer = contains(product, outside)
    assert not answer.contains
    assert answer.margin > 0
    assert answer.margin == pytest.approx(float(answer.distance) ** 2, rel=1e-6)
    assert product.distance(outside) == pytest.approx(float(answer.distance))
    shifted_output = minimum_norm(product).element
    shifted_output = shifted_output._replace(V=shifted_output.V + 1)
    assert contains(product, shifted_output).distance == pytest.approx(np.sqrt(shifted_output.V.size))


@pytest.mark.parametrize("trained_layers", ["hidden", "both"])
def test_minimum_norm_against_scipy(trained_layers):
    params, problem = draw_with_kinks(3, N=20, d0=8, kinks=6)
    found = minimum_norm(subdifferential(params, problem, trained_layers=trained_layers))
    X, Y, W, V = (np.asarray(a) for a in (*problem, *params))
    H = np.maximum(X @ W, 0)
    H[np.abs(X @ W) < 1e-12] = 0
    C = (Y - H @ V) @ V.T
    squared = np.sum((H.T @ (Y - H @ V)) ** 2) if trained_layers == "both" else 0.0
    for j in range(W.shape[1]):
        z = X @ W[:, j]
        kinks = np.abs(z) < 1e-12
        active = (z > 0) & ~kinks
        G = -C[kinks, j][:, None] * X[kinks]
        b = -X[active].T @ C[active, j]
        g = b + lsq_linear(G.T, -b, bounds=(0, 1), method="bvls", tol=1e-15).x @ G
        np.testing.assert_allclose(found.element.W[:, j], g, atol=1e-11)
        squared += g @ g
    assert found.norm == pytest.approx(np.sqrt(squared), rel=1e-10)
    assert found.lower_bound <= found.norm
    assert found.lower_bound == pytest.approx(float(found.norm), rel=1e-6)
    assert found.exactness == Exactness.EXACT


def test_works_under_vmap_and_in_float32():
    drawn = [draw_with_kinks(seed, dtype=jnp.float32) for seed in range(4)]
    params, problem = jax.tree.map(lambda *leaves: jnp.stack(leaves), *drawn)
    run = lambda p, q: minimum_norm(subdifferential(p, q, max_kinks=5, tolerance=1e-5))
    batched = jax.jit(jax.vmap(run))(params, problem)
    assert batched.norm.dtype == jnp.float32
    for index, (p, q) in enumerate(drawn):
        double = [jax.tree.map(lambda a: a.astype(jnp.float64), t) for t in (p, q)]
        alone = minimum_norm(subdifferential(*double, max_kinks=5, tolerance=1e-5))
        assert batched.norm[index] == pytest.approx(float(alone.norm), rel=1e-4)


def test_more_kinks_than_room_is_said_and_never_silent():
    params, problem = draw_with_kinks(4)
    small = subdifferential(params, problem, max_kinks=2)
    assert not small.is_complete
    assert np.isnan(minimum_norm(small).norm)
    assert np.isnan(small.support(small.fixed))
    assert is_exact(small) == Exactness.UNDECIDED
    assert subdifferential(params, problem, max_kinks=3).is_complete


def test_a_sample_that_is_zero_and_a_neuron_without_output_have_no_kink():
    params, problem = draw_with_kinks(5)
    problem = problem._replace(X=problem.X.at[0].set(0))
    params = Params(params.W.at[:, 0].set(0), params.V.at[0].set(0))
    product = subdifferential(params, problem, max_kinks=3)
    assert (product.sides[0] == -1).all()
    assert product.is_complete  # Neuron 0 is at every kink, and c_i0 = 0 there.


def test_tolerance_is_relative_to_sample_and_neuron():
    params, problem = draw_with_kinks(6)
    for scale in (1e-6, 1.0, 1e6):
        scaled = Params(params.W * scale, params.V), Problem(problem.X / scale**2, problem.Y)
        assert int((subdifferential(*scaled).sides == 0).sum()) == 12
    assert int((subdifferential(params, problem, tolerance=0.0).sides == 0).sum()) <= 12
    assert int((subdifferential(params, problem, tolerance=10.0).sides == 0).sum()) == params.W.shape[1] * 12


@pytest.mark.parametrize(
    ("keywords", "words"),
    [
        ({"tolerance": -1.0}, "tolerance"),
        ({"max_kinks": 0}, "max_kinks"),
        ({"max_kinks": 13}, "max_kinks"),
        ({"trained_layers": "none"}, "trained_layers"),
        ({"normalization": "sum"}, "normalization"),
    ],
)
def test_bad_options(keywords, words):
    with pytest.raises(ValueError, match=words):
        eager_subdifferential(*draw_with_kinks(0), **keywords)


def test_bad_shapes():
    params, problem = draw_with_kinks(0)
    with pytest.raises(ValueError, match="N x d0"):
        subdifferential(params, Problem(problem.X[:, 1:], problem.Y))
    with pytest.raises(ValueError, match="slopes must be"):
        subdifferential(params, problem).element(jnp.ones((2, 2)))
    with pytest.raises(ValueError, match="K x d"):
        nearest_point(jnp.zeros(3), jnp.zeros((2, 4)))
    with pytest.raises(ValueError, match="not one of 4"):
        clarke_hull(params, problem, 4)


def test_achievable_patterns_of_known_arrangements():
    generic = np.random.default_rng(0).normal(size=(5, 2))
    assert len(achievable_patterns(generic)) == 10  # 2 n cells for n lines through the origin of the plane.
    assert len(achievable_patterns(np.random.default_rng(0).normal(size=(4, 3)))) == 14
    assert achievable_patterns(np.array([[1.0], [-2.0]])).tolist() == [[False, True], [True, False]]
    assert achievable_patterns(np.zeros((0, 3))).shape == (1, 0)
    with pytest.raises(ValueError, match="max_kinks = 16"):
        achievable_patterns(np.ones((17, 2)))
    with pytest.raises(ValueError, match="row 1 is 0"):
        achievable_patterns(np.array([[1.0], [0.0]]))


def test_slope_one_half_is_always_an_element():
    """Patterns come in opposite pairs, so their average, slope 1/2 at every kink, is in the Clarke set."""
    rng = np.random.default_rng(7)
    for _ in range(20):
        X, Y = rng.integers(-2, 3, size=(5, 2)).astype(float), rng.normal(size=5)
        X[np.all(X == 0, axis=1)] = 1
        params, problem = one_neuron(X, Y)
        gradient = gradient_of(params, problem, at_zero=0.5).W
        assert clarke_hull(params, problem, 0).contains(np.asarray(gradient)[:, 0])
