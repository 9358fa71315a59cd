"""Measurements against counts made by hand."""

import jax.numpy as jnp
import numpy as np
from support import numpy_reference as reference
from support.problems import draw

from relu_sgd import Params, Problem, measurements

PROBLEM = Problem(jnp.asarray([[1.0, 0.0], [0.0, 2.0], [-1.0, 0.0]]), jnp.asarray([[1.0], [-2.0], [2.0]]))


def network(W):
    W = jnp.asarray(W)
    return Params(W, jnp.ones((W.shape[1], 1)))


def test_relative_error():
    W, V, X, Y = draw(d2=3)
    found = measurements.relative_error(Params(jnp.asarray(W), jnp.asarray(V)), Problem(jnp.asarray(X), jnp.asarray(Y)))
    expected = np.sqrt(2 * reference.half_sum(W, V, X, Y)) / np.linalg.norm(Y)
    np.testing.assert_allclose(found, expected, rtol=1e-13)


def test_numerical_zeros():
    params = network([[1e-9, 1.0], [1.0, 1e-7]])  # Z = [[1e-9, 1], [2, 2e-7], [-1e-9, -1]]
    assert measurements.numerical_zeros(params, PROBLEM) == 2
    assert measurements.numerical_zeros(params, PROBLEM, 1e-6) == 3
    assert measurements.numerical_zeros(params, PROBLEM, 1e-10) == 0
    assert measurements.numerical_zeros(params, PROBLEM, 1e-9) == 0  # Strictly below.
    assert measurements.numerical_zeros(params, PROBLEM, 1e-6, neurons=jnp.array([False, True])) == 1


def test_zeros_at_rounding_scale_with_precision_and_weights():
    for dtype in (jnp.float32, jnp.float64):
        eps = float(jnp.finfo(dtype).eps)
        for size in (1e-3, 1.0, 1e3):
            W = jnp.asarray([[3 * eps, 1.0], [1.0, 100 * eps]], dtype) * size
            params = Params(W, jnp.ones((2, 1), dtype))
            problem = Problem(*(leaf.astype(dtype) for leaf in PROBLEM))
            assert measurements.numerical_zeros_at_rounding(params, problem) == 2
            assert measurements.numerical_zeros_at_rounding(params, problem, 2) == 0
            assert measurements.numerical_zeros_at_rounding(params, problem, 300) == 3
            assert measurements.numerical_zeros_at_rounding(params, problem, 300, neurons=jnp.array([True, False])) == 2


def test_dead_samples_and_patterns():
    params = network([[1.0, 2.0], [-1.0, 0.0]])  # Active: sample 0 by both neurons; sample 1 exactly 0 and negative.
    np.testing.assert_array_equal(
        measurements.activation_pattern(params, PROBLEM), [[True, True], [False, False], [False, False]]
    )
    assert measurements.dead_samples(params, PROBLEM) == 2
    assert measurements.dead_samples(network([[1.0, -2.0], [1.0, 0.0]]), PROBLEM) == 0
    assert measurements.dead_samples(network([[1.0, -2.0], [1.0, 0.0]]), PROBLEM, neurons=jnp.array([True, False])) == 1
    assert measurements.pattern_changes(params, params, PROBLEM) == 0
    after = network([[-1.0, 2.0], [1.0, 0.0]])
    assert measurements.pattern_changes(params, after, PROBLEM) == 3
    assert measurements.pattern_changes(params, after, PROBLEM, neurons=jnp.array([False, True])) == 0


def test_padding_never_counts():
    W, V, X, Y = draw()
    params, problem = Params(jnp.asarray(W), jnp.asarray(V)), Problem(jnp.asarray(X), jnp.asarray(Y))
    padded_params = Params(jnp.pad(params.W, ((0, 3), (0, 4))), jnp.pad(params.V, ((0, 4), (0, 0))))
    padded_problem = problem._replace(X=jnp.pad(problem.X, ((0, 0), (0, 3))))
    neurons = jnp.arange(12) < 8
    for count in (measurements.numerical_zeros, measurements.numerical_zeros_at_rounding, measurements.dead_samples):
        assert count(padded_params, padded_problem, neurons=neurons) == count(params, problem)
    assert measurements.numerical_zeros(padded_params, padded_problem) == 20 * 4
