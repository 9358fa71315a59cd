"""The laws of data and weights: what they are, and that nothing but key and true shape decides a bit of them."""

import functools
import os
import subprocess
import sys
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special, stats
from support import ROOT, drawn

from relu_sgd import _draws as draws
from relu_sgd import initialization, laws, problem

pytestmark = pytest.mark.compiled_in_full

KEY = jax.random.key(5)
SIGNIFICANCE = 1e-4
# What `drawn.together` draws, on every machine.
DIGESTS = {"float32": "7bd03746f9de1469", "float64": "c73a61c16142dbe1"}


@pytest.fixture(params=["float32", "float64"])
def precision(request):
    jax.config.update("jax_enable_x64", request.param == "float64")
    yield request.param
    jax.config.update("jax_enable_x64", True)


def words_of(key, shape, num_bits):
    """By the definition: the data of fold_in(key, i), one after another."""
    pairs = [jax.random.key_data(jax.random.fold_in(key, i)).tolist() for i in range(shape[0] * shape[1])]
    words = [(upper << 32 | lower) >> (64 - num_bits) for upper, lower in pairs]
    return np.reshape(np.array(words, f"uint{num_bits}"), shape)


def quantile(words, num_bits):
    """The normal law's, of a word's tail probability, by SciPy."""
    below_sign = [int(word) % 2 ** (num_bits - 1) for word in words.ravel()]
    tail = np.array([(2 * m + 1) / 2 ** (num_bits + 1) for m in below_sign]).reshape(words.shape)
    return np.where(words < 2 ** (num_bits - 1), -special.ndtri(tail), special.ndtri(tail))


def test_normal_is_the_quantile_of_its_bits(precision):
    num_bits = int(precision[-2:])
    found = draws.normal(KEY, (3, 5))
    assert found.dtype == precision
    tolerance = {"float32": 2.0**-25, "float64": 2.0**-43}[precision]
    expected = quantile(words_of(KEY, (3, 5), num_bits), num_bits)
    np.testing.assert_allclose(found, expected, rtol=jnp.finfo(precision).eps, atol=tolerance)


def extreme_words(num_bits):
    """Both ends of every cell of every octave of the tail probability, with both signs, in increasing order of it."""
    cells = []
    for octave in reversed(range(num_bits)):
        for cell in range(32):
            first = (32 + cell) << (num_bits - 6) >> octave
            last = (((33 + cell) << (num_bits - 6)) - 1) >> octave
            cells += [first >> 1, last >> 1]
    tails = np.array(sorted(set(cells)), f"uint{num_bits}")
    return np.stack([tails, tails | np.array(2 ** (num_bits - 1), tails.dtype)])


def test_normal_at_the_ends_of_all_cells(precision, monkeypatch):
    num_bits = int(precision[-2:])
    words = extreme_words(num_bits)
    monkeypatch.setattr(draws, "_words", lambda *_: jnp.asarray(words))
    found = np.asarray(draws.normal(KEY, words.shape))
    tolerance = {"float32": 2.0**-25, "float64": 2.0**-43}[precision]
    np.testing.assert_allclose(found, quantile(words, num_bits), rtol=jnp.finfo(precision).eps, atol=tolerance)
    np.testing.assert_array_equal(found[0], -found[1])
    assert (found[0] > 0).all()
    assert (np.diff(found[0]) <= tolerance + np.spacing(found[0][:-1])).all()


@pytest.mark.parametrize("law", [problem.sphere_rows, problem.cube_rows])
def test_no_word_makes_a_nan(law, precision, monkeypatch):
    """A row of one entry is 1 or -1, also where the entry is next to 0."""
    num_bits = int(precision[-2:])
    words = jnp.asarray(extreme_words(num_bits)).reshape(-1, 1)
    middle = [[2 ** (num_bits - 1) + n] for n in range(-2000, 2000)]
    words = jnp.concatenate([words, jnp.asarray(np.array(middle, words.dtype))])
    monkeypatch.setattr(draws, "_words", lambda *_: words)
    rows = np.asarray(law(KEY, len(words), 1))
    np.testing.assert_allclose(np.abs(rows), 1, rtol=4 * jnp.finfo(precision).eps)


def test_uniform_is_symmetric_without_its_ends_and_0(precision, monkeypatch):
    num_bits = int(precision[-2:])
    words = [0, 1, 2 ** (num_bits - 1) - 1, 2 ** (num_bits - 1), 2**num_bits - 2, 2**num_bits - 1]
    monkeypatch.setattr(draws, "_words", lambda *_: jnp.asarray([words], f"uint{num_bits}"))
    found = np.asarray(draws.uniform(KEY, (1, 6)))[0]
    digits = jnp.finfo(precision).nmant + 1
    step = 2.0**-digits
    np.testing.assert_array_equal(found, [step - 1, step - 1, -step, step, 1 - step, 1 - step])


def test_one_network_in_both_precisions():
    """The draws in float32 are those in float64, up to rounding."""
    draw = lambda: (draws.normal(KEY, (6, 9)), draws.uniform(KEY, (6, 9)), draws.balanced_signs(KEY, (6, 9)))
    double = jax.jit(draw)()
    with jax.enable_x64(False):
        single = jax.jit(draw)()
    assert {array.dtype.name for array in single} == {"float32"}
    for one, other in zip(single[:2], double[:2], strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-7)
    np.testing.assert_array_equal(single[2], double[2])


def test_neither_padding_nor_tracing_nor_mapping_changes_a_bit(precision):
    expected = drawn.together()
    assert drawn.digest(expected) == DIGESTS[precision]
    (d0, d1), (padded_d0, _) = drawn.SHAPES[0]
    key = drawn.keys()[0]
    drawn.assert_same(drawn.true_part(drawn.laws(key, d0, d1), d0, d1), expected[0])  # Not compiled as a whole.
    hidden = jax.jit(lambda d0, d1: initialization.lecun_hidden(key, d0, d1, padded_d0=padded_d0, padded_d1=8))(d0, d1)
    np.testing.assert_array_equal(hidden[:d0, :d1], expected[0]["hidden"])
    np.testing.assert_array_equal(initialization.lecun_hidden(key, d0, d1), expected[0]["hidden"])


@pytest.mark.parametrize(
    "flags",
    [
        "--xla_cpu_max_isa=SSE4_2",
        "--xla_cpu_max_isa=AVX",
        "--xla_cpu_max_isa=AVX2 --xla_cpu_prefer_vector_width=128",
        "--xla_cpu_prefer_vector_width=512",
    ],
)
def test_the_same_bits_on_every_instruction_set(flags):
    environment = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    found = subprocess.run(
        [sys.executable, ROOT / "tests" / "support" / "drawn.py"],
        env=environment | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert found.returncode == 0, found.stderr
    assert dict(line.split() for line in found.stdout.splitlines()) == DIGESTS


@pytest.mark.parametrize("option", ["jax_threefry_partitionable", "jax_default_prng_impl"])
def test_the_configuration_of_jax_changes_no_bit(option):
    expected = draws.normal(KEY, (4, 3))
    change = {
        "jax_threefry_partitionable": lambda: jax.threefry_partitionable(False),
        "jax_default_prng_impl": lambda: jax.default_prng_impl("rbg"),
    }
    with change[option]():
        np.testing.assert_array_equal(draws.normal(KEY, (4, 3)), expected)


def test_signs_keep_their_padding():
    for law in (
        lambda size, padded: initialization.balanced_sign_output(size, 2, padded_d1=padded),
        lambda size, padded: initialization.shuffled_sign_output(KEY, size, 2, padded_d1=padded),
        lambda size, padded: draws.signs(KEY, (size, 2), (padded, None)),
    ):
        found = jax.jit(law, static_argnums=1)(10, 19)
        np.testing.assert_array_equal(found[:10], law(10, None))
        assert not found[10:].any()


def test_sum_of_squares(precision):
    rows = np.random.default_rng(0).normal(size=(40, 30)).astype(precision)
    exact = [float(sum(Fraction(float(x)) ** 2 for x in row)) for row in rows]
    np.testing.assert_allclose(draws.sum_of_squares(rows), exact, rtol=20 * jnp.finfo(precision).eps)
    np.testing.assert_array_equal(
        draws.sum_of_squares(np.pad(rows, ((0, 0), (0, 9)))), jax.jit(draws.sum_of_squares)(rows)
    )


def test_normal_law_far_out():
    """Half a million entries: all octaves of the tail, both signs, and moments."""
    sample = np.asarray(jax.jit(lambda: draws.normal(KEY, (500, 1000)))()).ravel()
    assert stats.kstest(sample, "norm").pvalue > SIGNIFICANCE
    edges = -special.ndtri(2.0 ** -np.arange(1, 15))
    edges = np.concatenate([-np.inf * np.ones(1), -edges[::-1], edges[1:], np.inf * np.ones(1)])
    counts = np.histogram(sample, edges)[0]
    assert stats.chisquare(counts, sample.size * np.diff(stats.norm.cdf(edges))).pvalue > SIGNIFICANCE
    for power, moment, fourth in ((1, 0, 1), (2, 1, 3), (3, 0, 15), (4, 3, 105)):
        assert abs(np.mean(sample**power) - moment) < 4 * np.sqrt((fourth - moment**2) / sample.size)
    assert abs(stats.pearsonr(sample[:-1], sample[1:]).statistic) < 4 / np.sqrt(sample.size)


def norms(rows):
    return np.linalg.norm(np.asarray(rows), axis=1)


def test_rows_have_their_norm():
    np.testing.assert_allclose(norms(problem.sphere_rows(KEY, 30, 6)), 1, rtol=1e-15)
    np.testing.assert_allclose(norms(problem.cube_rows(KEY, 30, 6)), 1, rtol=1e-15)
    np.testing.assert_allclose(norms(problem.sphere_rows(KEY, 30, 6, np.sqrt(6))), np.sqrt(6), rtol=1e-15)


def test_sphere_rows_are_uniform():
    """The first coordinate of a uniform point on the sphere in R^5: (1 + x) / 2 is Beta(2, 2). The cube's is not."""
    law = stats.beta(2, 2, loc=-1, scale=2)
    sphere = np.asarray(problem.sphere_rows(KEY, 4000, 5))[:, 0]
    cube = np.asarray(problem.cube_rows(KEY, 4000, 5))[:, 0]
    assert stats.kstest(sphere, law.cdf).pvalue > SIGNIFICANCE
    assert stats.kstest(cube, law.cdf).pvalue < SIGNIFICANCE


def test_cube_rows_are_normalised_uniform_points():
    raw = np.asarray(draws.uniform(KEY, (30, 6)))
    expected = raw / np.linalg.norm(raw, axis=1, keepdims=True)
    np.testing.assert_allclose(problem.cube_rows(KEY, 30, 6), expected, rtol=1e-14)


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


@pytest.mark.wrong_types
@pytest.mark.parametrize("name", sorted(set(laws.__all__) - {"balanced_sign_output"}))
def test_keys_and_sizes_of_another_kind_are_named(name):
    draw = functools.partial(getattr(laws, name), **({"standard_deviation": 1.0} if name == "normal_output" else {}))
    for key in (3, None, jax.random.split(KEY, 3), jnp.ones(2)):
        with pytest.raises(TypeError, match="key must be one random key"):
            draw(key, 4, 2)
    for sizes in ((2.5, 2), (4, "2"), (4, True)):
        with pytest.raises(ValueError, match="must be a whole number"):
            draw(KEY, *sizes)
    assert draw(jax.random.PRNGKey(0), 4, 2).ndim == 2  # A key of the old kind.


@pytest.mark.wrong_types
def test_sizes_of_fixed_weights_are_whole_numbers():
    for sizes in ((2.5, 1), (0, 1), (4, 1.5)):
        with pytest.raises(ValueError, match=r"(d1|d2) must be"):
            laws.balanced_sign_output(*sizes)
