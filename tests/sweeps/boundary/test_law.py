"""The law of the boundary on counts that are drawn from a known one."""

import jax
import numpy as np
import pandas
import pytest
from scipy import special, stats

from relu_sgd import initialization, problem
from sweeps.boundary import law, report, scaling

MODELS = {model.name: model for model in law.MODELS}
SIZES = (50, 100, 200, 400)


def drawn(width, *, slope=lambda n, m: 8 * (n / 200) ** 0.3, alive=0.0, runs=16, seed=0, sizes=SIZES, per_octave=3):
    """Counts of rows d0 = 4, 8, ... to N / 2."""
    steps = np.unique(np.round(2 * 2 ** (np.arange(0, 40) / per_octave)))
    cells = [
        (n, d0, d1)
        for n in sizes
        for d0 in 4 * 2.0 ** np.arange(20)
        if d0 <= n / 2
        for d1 in steps
        if width(n, d0) / 4 < d1 < 4 * width(n, d0) + 10
    ]
    n, d0, d1 = np.array(cells, float).T
    p = special.expit(slope(n, width(n, d0)) * np.log(d1 / width(n, d0)))
    if alive:
        p = p * np.exp(-n * 2 ** (-alive * d1))
    counts = np.random.default_rng(seed).binomial(runs, p).astype(float)
    return law.Counts(n, d0, d1, np.full(len(n), float(runs)), counts, d0)


def with_log(n, d0):
    return 1.2 * (n / d0) ** 0.9 + 1.3 * np.log2(n)


def test_a_known_law_is_found_and_its_intervals_cover():
    """The interval holds a value where twice the fall of the profile to it is below the quantile: so does a test."""
    model, truth = MODELS["power + log"], {"c": 1.2, "a": 0.9, "g": 1.3, "w": 0.3, "v": 0.0}
    held, found = dict.fromkeys(truth, 0), []
    for seed in range(30):
        counts = drawn(with_log, seed=seed)
        best = law.fit(model, counts)
        found.append(best.values)
        for name, value in truth.items():
            place = [parameter.name for parameter in best.parameters].index(name)
            at = {place: best.parameters[place].inner(value)}
            profile = law.fit(model, counts, start=best.inner, fixed=at)
            assert profile.penalized <= best.penalized + 1e-6
            held[name] += 2 * (best.penalized - profile.penalized) < 3.8415
    for name, value in truth.items():
        assert held[name] >= 25, (name, held)  # Of 30: 24 or fewer have a probability of 0.003 at 95 percent.
        values = np.array([each[name] for each in found])
        assert abs(values.mean() - value) < 4 * values.std() / np.sqrt(30), name


def test_interval_ends_are_where_the_profile_has_fallen():
    counts = drawn(lambda n, d0: 2 * (n / d0) ** 0.8)
    found = law.fit(MODELS["power"], counts, transition="power of N")
    estimates = law.intervals(found, counts, num_resamples=40)
    assert [each.name for each in estimates] == ["c", "a", "s", "w"]
    for place, each in enumerate(estimates):
        assert each.low < each.value < each.high
        for end in (each.low, each.high):
            at = {place: found.parameters[place].inner(end)}
            fallen = law.fit(MODELS["power"], counts, transition="power of N", fixed=at)
            assert 2 * (found.penalized - fallen.penalized) == pytest.approx(3.8415, abs=0.02)
        # The law is true: rows drawn anew say about the same.
        assert 0.4 < (each.rows_high - each.rows_low) / (each.high - each.low) < 2


def test_rows_drawn_anew_count_what_the_law_misses():
    miss = dict(
        zip(
            [(n, d0) for n in SIZES for d0 in 4 * 2 ** np.arange(6)],
            np.random.default_rng(5).normal(0, 0.2, 24),
            strict=True,
        )
    )
    width = lambda n, d0: (
        2 * (n / d0) ** 0.8 * np.exp([miss[a, b] for a, b in zip(np.atleast_1d(n), np.atleast_1d(d0), strict=True)])
    )
    counts = drawn(lambda n, d0: width(n, d0) if np.ndim(n) else width(n, d0)[0])
    (c, a, *_) = law.intervals(law.fit(MODELS["power"], counts), counts, num_resamples=60)
    for each in (c, a):
        assert each.rows_high - each.rows_low > 1.5 * (each.high - each.low)


def test_the_law_is_found_where_runs_are_undecided_at_random():
    """And of all runs, with undecided ones as failures, another one."""
    counts = drawn(with_log, runs=40, seed=7)
    generator = np.random.default_rng(8)
    proved, local = (
        generator.binomial(number.astype(int), 0.6) for number in (counts.successes, counts.runs - counts.successes)
    )
    columns = dict(
        condition="scaled", trained_layers="hidden", loss="squared", num_samples=counts.num_samples, d0=counts.d0,
        d1=counts.d1, runs=counts.runs, converged=counts.successes, diverged=0, proved_global=proved,
        proved_local=local,
    )  # fmt: skip
    cells = report.outcomes(pandas.DataFrame(columns)).query("outcome == 'proved'")
    assert cells["undecided"].sum() == counts.runs.sum() - (proved + local).sum()
    known = law.Counts.of(cells)
    assert known.runs.sum() == (proved + local).sum()
    failing = law.Counts.of(cells.assign(runs=cells["runs"] + cells["undecided"]))
    n, d0 = np.array([100.0, 200.0, 400.0]), np.array([8.0, 16.0, 64.0])
    np.testing.assert_allclose(law.fit(MODELS["power + log"], known).boundary(n, d0), with_log(n, d0), rtol=0.05)
    assert (law.fit(MODELS["power + log"], failing).boundary(n, d0) > 1.1 * with_log(n, d0)).all()


@pytest.mark.parametrize("name", MODELS)
def test_half_of_the_runs_succeed_at_the_boundary(name):
    found = law.fit(MODELS[name], drawn(with_log, runs=8, per_octave=2))
    n, d0 = np.array([50.0, 400.0]), np.array([4.0, 200.0])
    at = found.boundary(n, d0)
    cells = law.Counts(n, d0, at, np.ones(2), np.zeros(2), d0)
    np.testing.assert_allclose(found.probability(cells), 0.5, atol=1e-9)
    if MODELS[name].alive is None:
        np.testing.assert_allclose(at, found.law(n, d0))


@pytest.mark.parametrize("name", MODELS)
def test_few_counts_and_a_start_far_off_give_finite_numbers(name):
    cells = [[50.0, 50.0], [4.0, 4.0], [4.0, 8.0], [8.0, 8.0], [0.0, 8.0], [4.0, 4.0]]
    counts = law.Counts(*map(np.array, cells))
    parameters = MODELS[name].parameters + law.TRANSITIONS["powers of N and d1*"]
    for start in (None, np.full(len(parameters), 30.0)):
        found = law.fit(MODELS[name], counts, start=start)
        assert np.isfinite(found.inner).all()
        assert np.isfinite(found.log_likelihood)


def test_expected_deviance_is_the_mean():
    counts = drawn(with_log)
    p = law.fit(MODELS["power + log"], counts).probability(counts)
    generator = np.random.default_rng(0)
    deviances = []
    for _ in range(200):
        again = counts._replace(successes=generator.binomial(counts.runs.astype(int), p).astype(float))
        with np.errstate(divide="ignore"):
            likelihood = special.xlogy(again.successes, p) + special.xlog1py(again.runs - again.successes, -p)
        deviances.append(2 * (law.saturated(again) - likelihood).sum())
    assert law.expected_deviance(p, counts) == pytest.approx(np.mean(deviances), abs=4 * np.std(deviances) / 200**0.5)


def test_counts_of_a_table():
    columns = dict(
        num_samples=50, d0=[4, 4, 8], d1=[2, 4, 4], runs=[8, 0, 8], converged=[1, 0, 8], proved_global=np.nan
    )
    both = law.Counts.of(pandas.DataFrame(columns | {"trained_layers": "both"}))
    np.testing.assert_array_equal(both.parameters, [5, 9])
    np.testing.assert_array_equal(both.successes, [1, 8])
    hidden = pandas.DataFrame(columns | {"trained_layers": "hidden"})
    assert "counting parameters" in {model.name for model in law.candidates(both)}
    assert "counting parameters" not in {model.name for model in law.candidates(law.Counts.of(hidden))}
    assert not len(law.Counts.of(hidden, "proved_global").runs)
    with pytest.raises(ValueError, match="between 0 and the runs"):
        law.Counts.of(hidden.assign(converged=9))
    with pytest.raises(ValueError, match="at least one cell"):
        law.fit(MODELS["power"], law.Counts.of(hidden, "proved_global"))
    with pytest.raises(ValueError, match="one of constant"):
        law.fit(MODELS["power"], both, transition="steep")


def test_regimes():
    np.testing.assert_array_equal(law.regime([400] * 3, [4, 50, 200]), ["counting", "between", "floor"])


def test_counts_collapse_over_the_right_coordinate_only():
    counts = drawn(lambda n, d0: 1.5 * n / d0, slope=lambda n, m: 6.0, seed=1)
    right = scaling.collapse(counts.d0 * counts.d1 / counts.num_samples, counts)
    wrong = scaling.collapse(counts.d0 * counts.d1 / counts.num_samples**0.8, counts)
    assert right.share_of_sizes > 0.995
    assert right.share_of_rows > 0.98
    assert right.p_rows > 1e-3
    assert 0.7 < right.dispersion < 1.3
    assert wrong.p_sizes < 1e-12
    assert wrong.p_rows < 1e-9
    assert wrong.share_of_rows < right.share_of_rows - 0.02
    with pytest.raises(ValueError, match="successes and failures"):
        scaling.collapse(counts.d1, counts._replace(successes=counts.runs))


def test_curves_for_each_size_fit_no_worse_than_one():
    """Steep transitions have spline coefficients of thousands: the ridge must not count there."""
    counts = drawn(lambda n, d0: 1.1 * n / (d0 - 1), slope=lambda n, m: 30 + 0 * n, runs=64, per_octave=16)
    found = scaling.collapse(counts.d0 * counts.d1 / counts.num_samples, counts)
    assert found.each_size < found.one
    assert found.share_of_sizes < 1


def test_a_curve_a_size_sees_a_transition_that_sharpens():
    """Boundaries collapse and widths do not: where one curve fails though every N has the same boundary."""
    counts = drawn(lambda n, d0: 1.5 * n / d0, slope=lambda n, m: 6 * (n / 200) ** 0.8, seed=1)
    assert scaling.collapse(counts.d0 * counts.d1 / counts.num_samples, counts).p_sizes < 1e-6


def test_the_finite_size_exponent_is_found_and_its_intervals_cover():
    held, estimates = 0, []
    for seed in range(16):
        found = scaling.transition_exponent(drawn(with_log, runs=8, seed=seed), num_resamples=0)
        held += found.low[0] <= 0.3 <= found.high[0]
        estimates.append([found.estimate[0], np.log(found.slope / 8)])
    assert held >= 12  # Of 16: 11 or fewer have a probability of 0.001 at 95 percent.
    mean, error = np.mean(estimates, axis=0), np.std(estimates, axis=0) / 4
    assert (abs(mean - [0.3, 0]) < 4 * error).all()


def test_the_exponents_of_samples_and_width_are_told_apart():
    counts = drawn(with_log, slope=lambda n, m: 8 * (n / 200) ** 0.1 * (m / 10) ** 0.5, runs=40)
    found = scaling.transition_exponent(counts, with_width=True, num_resamples=30)
    assert found.names == ("w", "v")
    assert (found.low < [0.1, 0.5]).all()
    assert (found.high > [0.1, 0.5]).all()
    assert (found.rows_low < found.estimate).all()
    assert (found.estimate < found.rows_high).all()
    with pytest.raises(ValueError, match="two N"):
        scaling.transition_exponent(counts.take(counts.num_samples == 50))


@pytest.mark.parametrize(("d0", "d1"), [(16, 6), (50, 4)])
def test_starts_of_the_protocol_have_as_many_dead_samples_as_expected(d0, d1):
    """N = 100; each of 2,000 starts."""

    def dead(key):
        X, W = problem.sphere_rows(key, 100, d0), initialization.normal_hidden(jax.random.fold_in(key, 1), d0, d1)
        return (X @ W <= 0).all(axis=1).sum()

    found = np.asarray(jax.jit(jax.vmap(dead))(jax.random.split(jax.random.key(0), 2000)))
    assert scaling.expected_dead(100, d1) == pytest.approx(found.mean(), abs=4 * found.std() / 2000**0.5)


def test_dead_samples_are_as_many_as_expected():
    n, d0, d1, runs = 40, 3, 5, 4000
    generator = np.random.default_rng(0)
    X, W = generator.standard_normal((runs, n, d0)), generator.standard_normal((runs, d0, d1))
    dead = (X @ W <= 0).all(axis=2).sum(axis=1)
    assert scaling.expected_dead(n, d1) == pytest.approx(dead.mean(), abs=4 * dead.std() / runs**0.5)
    independent, low, high = scaling.probability_of_dead(n, d0, d1)
    share = (dead > 0).mean()
    assert low < share < high + 4 * 0.5 / runs**0.5
    assert share < independent  # Samples that are close in 3 dimensions are dead together.
    # Wendel: how often 5 half-spaces leave a direction of 3 dimensions uncovered.
    assert high == pytest.approx(stats.binom.cdf(2, 4, 0.5))
    # Where samples are nearly orthogonal they are nearly independent.
    X, W = generator.standard_normal((2000, 20, 60)), generator.standard_normal((2000, 60, 5))
    share = (X @ W <= 0).all(axis=2).any(axis=1).mean()
    assert scaling.probability_of_dead(20, 60, 5)[0] == pytest.approx(share, abs=0.04)
