"""The laws of data and weights: what they are, and that padding never changes a draw."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from relu_sgd import draws, initialization, problem

KEY = jax.random.key(5)
SIGNIFICANCE = 1e-4


@pytest.mark.parametrize("precision", ["float64", "float32"])
def test_normal_is_jax_random_normal_however_padded(precision, request):
    if precision == "float32":
        request.getfixturevalue("float32")
    expected = jax.random.normal(KEY, (7, 5))
    assert expected.dtype == precision
    np.testing.assert_array_equal(draws.normal(KEY, (7, 5)), expected)
    padded = jax.jit(lambda rows, columns: draws.normal(KEY, (rows, columns), (9, 16)))(7, 5)
    np.testing.assert_array_equal(padded[:7, :5], expected)
    assert padded.shape == (9, 16)
    assert np.count_nonzero(padded) == 35


# (law with its padded sizes as the last argument, true rows and columns)
HIDDEN_LAWS = {
    "normal": lambda d0, d1, **pad: initialization.normal_hidden(KEY, d0, d1, 0.5, **pad),
    "lecun": lambda d0, d1, **pad: initialization.lecun_hidden(KEY, d0, d1, **pad),
}
OUTPUT_LAWS = {
    "normal": lambda d1, **pad: initialization.normal_output(KEY, d1, 2, 0.3, **pad),
    "lecun": lambda d1, **pad: initialization.lecun_output(KEY, d1, 2, **pad),
    "uniform": lambda d1, **pad: initialization.uniform_output(KEY, d1, 2, **pad),
    "balanced": lambda d1, **pad: initialization.balanced_sign_output(d1, 2, **pad),
    "shuffled": lambda d1, **pad: initialization.shuffled_sign_output(KEY, d1, 2, **pad),
}
ROW_LAWS = {
    "sphere": lambda d0, **pad: problem.sphere_rows(KEY, 30, d0, **pad),
    "sphere sqrt": lambda d0, **pad: problem.sphere_rows(KEY, 30, d0, jnp.sqrt(d0), **pad),
    "cube": lambda d0, **pad: problem.cube_rows(KEY, 30, d0, **pad),
}


@pytest.mark.parametrize("precision", ["float64", "float32"])
@pytest.mark.parametrize("padding", [0, 1, 9])
def test_padding_and_tracing_change_no_bit(precision, padding, request):
    if precision == "float32":
        request.getfixturevalue("float32")
    d0, d1 = 6, 10

    @jax.jit
    def padded(d0, d1):
        p0, p1 = dict(padded_d0=6 + padding), dict(padded_d1=10 + padding)
        return (
            {name: law(d0, d1, **p0, **p1) for name, law in HIDDEN_LAWS.items()},
            {name: law(d1, **p1) for name, law in OUTPUT_LAWS.items()},
            {name: law(d0, **p0) for name, law in ROW_LAWS.items()},
        )

    hidden, output, rows = padded(d0, d1)
    plain = jax.jit(
        lambda: (
            {name: law(d0, d1) for name, law in HIDDEN_LAWS.items()},
            {name: law(d1) for name, law in OUTPUT_LAWS.items()},
            {name: law(d0) for name, law in ROW_LAWS.items()},
        )
    )()
    for name in HIDDEN_LAWS:
        np.testing.assert_array_equal(hidden[name][:d0, :d1], plain[0][name], err_msg=name)
        assert not hidden[name][d0:].any()
        assert not hidden[name][:, d1:].any()
    for name in OUTPUT_LAWS:
        np.testing.assert_array_equal(output[name][:d1], plain[1][name], err_msg=name)
        assert not output[name][d1:].any()
    for name in ROW_LAWS:
        np.testing.assert_array_equal(rows[name][:, :d0], plain[2][name], err_msg=name)
        assert not rows[name][:, d0:].any()


@pytest.mark.parametrize(("name", "radius"), [("sphere", 1.0), ("cube", 1.0), ("sphere sqrt", np.sqrt(6))])
def test_rows_have_their_norm(name, radius):
    np.testing.assert_allclose(np.linalg.norm(ROW_LAWS[name](6), axis=1), radius, rtol=1e-12)


def test_sphere_rows_are_uniform():
    """The first coordinate of a uniform point on the sphere in R^5: (1 + x) / 2 is Beta(2, 2). The cube's is not."""
    law = stats.beta(2, 2, loc=-1, scale=2)
    sphere = np.asarray(problem.sphere_rows(KEY, 4000, 5))[:, 0]
    cube = np.asarray(problem.cube_rows(KEY, 4000, 5))[:, 0]
    assert stats.kstest(sphere, law.cdf).pvalue > SIGNIFICANCE
    assert stats.kstest(cube, law.cdf).pvalue < SIGNIFICANCE


def test_cube_rows_are_normalised_uniform_points():
    raw = 2 * np.asarray(jax.random.uniform(KEY, (30, 6))) - 1
    expected = raw / np.linalg.norm(raw, axis=1, keepdims=True)
    np.testing.assert_allclose(ROW_LAWS["cube"](6), expected, rtol=1e-12)


def test_balanced_labels():
    labels = np.asarray(problem.balanced_labels(KEY, 200, 3))
    np.testing.assert_array_equal(np.sort(labels, axis=0), np.repeat([[-1.0] * 3, [1.0] * 3], 100, axis=0))
    assert not np.array_equal(labels[:, 0], labels[:, 1])
    many = jax.vmap(lambda key: problem.balanced_labels(key, 4)[:, 0])(jax.random.split(KEY, 6000))
    _, counts = np.unique(np.asarray(many), axis=0, return_counts=True)
    assert len(counts) == 6
    assert stats.chisquare(counts).pvalue > SIGNIFICANCE
    with pytest.raises(ValueError, match="N = 7"):
        problem.balanced_labels(KEY, 7)


def test_random_sign_and_gaussian_labels():
    signs = np.asarray(problem.random_sign_labels(KEY, 4000, 1))
    assert set(np.unique(signs)) == {-1.0, 1.0}
    assert stats.binomtest(int((signs > 0).sum()), 4000).pvalue > SIGNIFICANCE
    assert stats.kstest(np.asarray(problem.gaussian_labels(KEY, 4000)).ravel(), "norm").pvalue > SIGNIFICANCE


@pytest.mark.parametrize(
    ("draw", "law"),
    [
        (lambda: initialization.normal_hidden(KEY, 40, 100), stats.norm(0, 1)),
        (lambda: initialization.normal_hidden(KEY, 40, 100, 0.25), stats.norm(0, 0.25)),
        (lambda: initialization.lecun_hidden(KEY, 40, 100), stats.norm(0, 1 / np.sqrt(40))),
        (lambda: initialization.normal_output(KEY, 4000, 1, 3.0), stats.norm(0, 3)),
        (lambda: initialization.lecun_output(KEY, 4000, 1), stats.norm(0, 1 / np.sqrt(4000))),
        (lambda: initialization.uniform_output(KEY, 4000, 1), stats.uniform(-1 / np.sqrt(4000), 2 / np.sqrt(4000))),
    ],
)
def test_weights_have_their_law(draw, law):
    assert stats.kstest(np.asarray(draw()).ravel(), law.cdf).pvalue > SIGNIFICANCE


def test_sign_outputs():
    fixed = np.asarray(initialization.balanced_sign_output(10))
    np.testing.assert_allclose(fixed[:, 0], [10**-0.5] * 5 + [-(10**-0.5)] * 5)
    shuffled = np.asarray(initialization.shuffled_sign_output(KEY, 10))
    np.testing.assert_allclose(np.sort(shuffled, axis=0), np.sort(fixed, axis=0))
    assert not np.array_equal(shuffled, fixed)
    np.testing.assert_allclose(np.abs(initialization.balanced_sign_output(4, magnitude=0.7)), 0.7)
    np.testing.assert_allclose(np.abs(initialization.shuffled_sign_output(KEY, 4, magnitude=0.7)), 0.7)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: draws.normal(KEY, (0, 3)), "positive"),
        (lambda: draws.normal(KEY, (4, 3), (None, 2)), "must not shrink"),
        (lambda: jax.jit(lambda n: draws.normal(KEY, (n, 3)))(4), "padded size"),
    ],
)
def test_bad_sizes(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_draws_refuse_to_depend_on_padding():
    with jax.threefry_partitionable(False), pytest.raises(ValueError, match="jax_threefry_partitionable"):
        draws.normal(KEY, (2, 2), (3, 3))
