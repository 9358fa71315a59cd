"""relu: its value, and its derivative under every transformation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from relu_sgd import relu

POINTS = np.array([-np.inf, -2.0, -1e-3, -0.0, 0.0, 1e-3, 3.0, np.inf])
VALUES = np.array([0.0, 0.0, 0.0, 0.0, 0.0, 1e-3, 3.0, np.inf])


def slopes(at_zero):
    return np.array([0.0, 0.0, 0.0, at_zero, at_zero, 1.0, 1.0, 1.0])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("at_zero", [0, 0.0, 0.25, 0.5, 1, 1.0])
def test_value_and_slope_in_every_mode(dtype, at_zero):
    x = jnp.asarray(POINTS, dtype)
    function = lambda x: relu(x, at_zero)
    expected = slopes(at_zero).astype(dtype)
    assert function(x).dtype == dtype
    np.testing.assert_array_equal(function(x), VALUES.astype(dtype))
    np.testing.assert_array_equal(jax.jit(function)(x), VALUES.astype(dtype))
    one = jnp.ones_like(x)
    np.testing.assert_array_equal(jax.jvp(function, (x,), (one,))[1], expected)
    np.testing.assert_array_equal(jax.vjp(function, x)[1](one)[0], expected)
    np.testing.assert_array_equal(jax.vmap(jax.grad(function))(x), expected)
    np.testing.assert_array_equal(jax.jit(jax.vmap(jax.grad(function)))(x), expected)
    np.testing.assert_array_equal(jax.jacfwd(function)(x), np.diag(expected))
    np.testing.assert_array_equal(jax.jacrev(function)(x), np.diag(expected))


@pytest.mark.parametrize("first", [jax.jacfwd, jax.jacrev])
@pytest.mark.parametrize("second", [jax.jacfwd, jax.jacrev])
def test_second_derivative_is_zero(first, second):
    x = jnp.asarray(POINTS[1:-1])
    np.testing.assert_array_equal(second(first(lambda x: relu(x, 0.5)))(x), np.zeros((6, 6, 6)))


def test_the_choice_can_be_mapped_swept_drawn_and_differentiated():
    x = jnp.asarray([-1.0, 0.0, 2.0])
    slope = lambda a: jax.grad(lambda x: jnp.sum(relu(x, a)))(x)
    swept = jax.vmap(slope)(jnp.asarray([0.0, 0.3, 1.0]))
    np.testing.assert_array_equal(swept, [[0, 0, 1], [0, 0.3, 1], [0, 1, 1]])
    drawn = jax.random.uniform(jax.random.key(0), (3,))
    np.testing.assert_array_equal(jax.jit(slope)(drawn), [0, drawn[1], 1])
    # The value does not depend on the choice; the first derivative at 0 is the choice.
    np.testing.assert_array_equal(jax.grad(lambda a: jnp.sum(relu(x, a)))(0.5), 0)
    np.testing.assert_array_equal(jax.jacfwd(slope)(0.5), [0, 1, 0])


def test_both_arguments_mapped_at_once():
    x, a = jnp.asarray([0.0, 0.0, -1.0]), jnp.asarray([0.2, 0.7, 0.9])
    np.testing.assert_array_equal(jax.vmap(jax.grad(relu))(x, a), [0.2, 0.7, 0.0])


@pytest.mark.parametrize("mode", [jax.grad, jax.jacfwd])
def test_nan_propagates(mode):
    assert np.isnan(relu(jnp.nan))
    assert np.isnan(mode(relu)(jnp.nan))


@pytest.mark.parametrize(("dtype", "tiny"), [(np.float32, 1e-40), (np.float64, 1e-310)])
@pytest.mark.parametrize("compiled", [False, True])
def test_subnormals_are_positive_or_flushed_but_never_both(dtype, tiny, compiled):
    """A backend that flushes subnormals must treat them as 0 in value and derivative alike."""
    wrap = jax.jit if compiled else lambda function: function
    for x in (tiny, -tiny):
        value, slope = wrap(jax.value_and_grad(lambda x: relu(x, 0.25)))(jnp.asarray(x, dtype))
        assert slope in ((1.0, 0.25) if x > 0 else (0.0, 0.25))
        assert value == (x if slope == 1.0 else 0.0) or value == np.asarray(x, dtype)


def test_integers_become_floats():
    assert relu(3).dtype == jnp.result_type(float)


@pytest.mark.parametrize("at_zero", [-0.1, 1.1, np.nan, np.inf, np.array([0.5, 2.0])])
def test_slopes_outside_the_subdifferential_are_refused(at_zero):
    with pytest.raises(ValueError, match=r"at_zero must lie in \[0, 1\]"):
        relu(jnp.zeros(2), at_zero)


@pytest.mark.wrong_types
@pytest.mark.parametrize("shape", [(3,), (2, 2)])
def test_slopes_of_another_shape_are_refused(shape):
    with pytest.raises(ValueError, match="does not broadcast"):
        relu(jnp.zeros(2), np.zeros(shape))


@given(st.floats(allow_nan=False, width=32, allow_subnormal=False), st.floats(0, 1))
def test_matches_its_definition(x, at_zero):
    value, slope = jax.value_and_grad(relu)(jnp.float64(x), at_zero)
    assert value == max(x, 0)
    assert slope == (at_zero if x == 0 else float(x > 0))
