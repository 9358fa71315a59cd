"""The slopes of kinks: against bounded least squares, a fixed point by sweeps in NumPy, dependent rows, both ways to
solve.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import lsq_linear

from relu_sgd.inclusion import _multipliers as multipliers
from relu_sgd.inclusion._multipliers import compact, solve_slopes
from relu_sgd.inclusion._step import _averaged_slope, _instantaneous_slope

N, D1, ROOM = 37, 5, 24


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 1.0])
def test_compact_finds_what_is_wanted(share):
    wanted = np.random.default_rng(0).random((N, D1)) < share
    kinks = compact(jnp.asarray(wanted), ROOM)
    assert int(kinks.number) == wanted.sum(axis=0).max()
    for neuron in range(D1):
        expected = np.nonzero(wanted[:, neuron])[0][:ROOM]
        np.testing.assert_array_equal(np.asarray(kinks.samples[neuron])[np.asarray(kinks.present[neuron])], expected)


def least_norm_relation(speed, jump):
    return _instantaneous_slope(speed, jump)


def averaged_relation(speed, jump, Z, side):
    return _averaged_slope(Z, side, speed, jump, 0.3)[0]


@functools.partial(jax.jit, static_argnames="averaged")
def solved(X, kinks, base, c, start, data=(), averaged=False):
    return solve_slopes(X @ X.T, kinks, base, c, start, averaged_relation if averaged else least_norm_relation, data)


def drawn(seed, d0, share):
    """Rows, some of them twice; kinks, and c < 0 at all of them."""
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(N, d0))
    X[1::9] = X[::9][: len(X[1::9])]
    wanted = rng.random((N, D1)) < share
    wanted[ROOM:] = False
    return rng, X, compact(jnp.asarray(wanted), ROOM), -rng.random((D1, ROOM)) - 0.1


@pytest.mark.parametrize("share", [0.2, 0.9], ids=["in the small room", "in all of it"])
@pytest.mark.parametrize("d0", [4, 30], ids=["dependent", "independent"])
def test_the_least_norm_is_that_of_bounded_least_squares(d0, share):
    rng, X, kinks, c = drawn(1, d0, share)
    fixed = rng.normal(size=(D1, d0))
    samples, present = np.asarray(kinks.samples), np.asarray(kinks.present)
    base = np.einsum("jkd,jd->jk", X[samples], fixed)
    slopes, converged = solved(jnp.asarray(X), kinks, jnp.asarray(base), jnp.asarray(c), jnp.full((D1, ROOM), 0.5))
    assert bool(converged)
    assert not np.asarray(slopes)[~present].any()
    for neuron in range(D1):
        there = present[neuron]
        generators = (c[neuron, :, None] * X[samples[neuron]])[there]
        expected = lsq_linear(generators.T, -fixed[neuron], bounds=(0, 1), method="bvls", tol=1e-14)
        point = lambda r: fixed[neuron] + r @ generators  # noqa: B023
        np.testing.assert_allclose(point(np.asarray(slopes[neuron])[there]), point(expected.x), atol=1e-7)


def by_sweeps(X, samples, present, base, c, Z, side):
    """A neuron's slopes by Gauss-Seidel, many sweeps in float64."""
    slopes = np.zeros(len(base))
    relation = jax.jit(averaged_relation)
    rows = X[samples]
    for _ in range(400):
        old = slopes.copy()
        for k in np.nonzero(present)[0]:
            speed = base[k] + rows[k] @ (rows.T @ (c * slopes)) - c[k] * slopes[k] * rows[k] @ rows[k]
            slopes[k] = float(relation(speed, c[k] * rows[k] @ rows[k], Z[k], side[k]))
        if np.abs(slopes - old).max() < 1e-13:
            return slopes
    raise AssertionError("the reference has not converged")


@pytest.mark.parametrize("first_newton_steps", [6, 0], ids=["Newton first", "sweeps first"])
def test_averaged_slopes_are_a_fixed_point(first_newton_steps, monkeypatch):
    monkeypatch.setattr(multipliers, "_FIRST_NEWTON_STEPS", first_newton_steps)
    jax.clear_caches()  # The number of steps is compiled in.
    rng, X, kinks, c = drawn(2, 30, 0.4)
    X[1::9] += rng.normal(size=X[1::9].shape)  # Independent, so that the slopes are unique.
    base, Z = rng.normal(size=(2, D1, ROOM)) * np.array([15.0, 1.0])[:, None, None]
    side = rng.integers(-1, 2, size=(D1, ROOM)).astype(np.int8)
    Z = np.abs(Z) * side * 0.2
    start = jnp.full((D1, ROOM), 0.5)
    data = (jnp.asarray(Z), jnp.asarray(side))
    slopes, converged = solved(jnp.asarray(X), kinks, jnp.asarray(base), jnp.asarray(c), start, data, averaged=True)
    assert bool(converged)
    samples, present = np.asarray(kinks.samples), np.asarray(kinks.present)
    kinds = set()
    for j in range(2):
        expected = by_sweeps(X, samples[j], present[j], base[j], np.where(present[j], c[j], 0), Z[j], side[j])
        np.testing.assert_allclose(slopes[j], expected, atol=1e-9)
        kinds |= set(np.sign(expected[present[j]]) + np.sign(expected[present[j]] - 1))
    assert kinds == {-1.0, 0.0, 1.0}  # Some at 0, some between, some at 1.
    jax.clear_caches()


def test_single_precision_converges():
    rng, X, kinks, c = drawn(3, 30, 0.4)
    base = rng.normal(size=(D1, ROOM))
    arrays = [jnp.asarray(array, jnp.float32) for array in (base, c, np.full((D1, ROOM), 0.5))]
    slopes, converged = solved(jnp.asarray(X, jnp.float32), kinks, *arrays)
    exact, _ = solved(jnp.asarray(X), kinks, *(array.astype(float) for array in arrays))
    assert slopes.dtype == jnp.float32
    assert bool(converged)
    speeds = lambda slopes: np.einsum(
        "jkd,jk->jd", X[np.asarray(kinks.samples)], np.where(kinks.present, c, 0) * slopes
    )
    np.testing.assert_allclose(speeds(np.asarray(slopes)), speeds(np.asarray(exact)), atol=1e-4)
