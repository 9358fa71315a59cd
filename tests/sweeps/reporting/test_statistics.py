"""Intervals against second formulas, and summaries against counts made by hand."""

import numpy as np
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from sweeps.reporting import statistics


@given(st.integers(1, 200).flatmap(lambda runs: st.tuples(st.integers(0, runs), st.just(runs))))
def test_wilson_interval_solves_its_quadratic(counts):
    successes, runs = counts
    z = stats.norm.ppf(0.975)
    share = successes / runs
    for end in statistics.interval(successes, runs):
        assert abs((share - end) ** 2 - z**2 * end * (1 - end) / runs) < 1e-9
    low, high = statistics.interval(successes, runs)
    assert 0 <= low <= share <= high <= 1


@pytest.mark.parametrize(("successes", "runs"), [(0, 10), (3, 10), (10, 10), (1, 7)])
def test_exact_interval_is_made_of_binomial_tails(successes, runs):
    low, high = statistics.interval(successes, runs, "exact")
    if successes:
        assert stats.binom.sf(successes - 1, runs, low) == pytest.approx(0.025)
    else:
        assert low == 0
    if successes < runs:
        assert stats.binom.cdf(successes, runs, high) == pytest.approx(0.025)
    else:
        assert high == 1


def test_exact_interval_covers_at_least_what_it_says():
    runs = 10
    for probability in np.linspace(0.01, 0.99, 33):
        covered = sum(
            stats.binom.pmf(successes, runs, probability)
            for successes in range(runs + 1)
            if np.prod(np.sign(np.subtract(statistics.interval(successes, runs, "exact"), probability))) <= 0
        )
        assert covered >= 0.95


def test_bad_counts():
    for arguments in ((3, 2), (0, 0), (-1, 2), (1, 2, "normal")):
        with pytest.raises(ValueError, match=r".+"):
            statistics.interval(*arguments)


def dataset(status, dead, zeros, at):
    dims = ("d0", "d1", "seed")
    status = np.asarray(status)[None]
    return xr.Dataset(
        {
            "status": (dims, status.astype(np.int8)),
            "dead_samples": (dims, np.asarray(dead)[None]),
            "numerical_zeros": (dims, np.asarray(zeros)[None]),
            "zeros_at_rounding": (dims, 2 * np.asarray(zeros)[None]),
            "converged_at": (dims, np.asarray(at)[None]),
            "relative_error": (dims, np.where(status == 3, np.inf, np.where(np.asarray(zeros)[None] == 2, 0.1, 0.002))),
        },
        coords={"d0": [4], "d1": np.arange(status.shape[1]), "seed": np.arange(status.shape[2])},
        attrs={"science": {"num_samples": 200, "label_law": "balanced"}},
    )


@pytest.mark.parametrize("method", ["wilson", "exact"])
def test_summary(method):
    summary = statistics.summarize(
        dataset(
            status=[[1, 1, 2, 2, 3], [0, 0, 0, 0, 0], [1, 0, 2, 0, 0], [3, 3, 3, 3, 3]],
            dead=[[0, 4, 3, 0, -1], [0] * 5, [0] * 5, [-1] * 5],
            zeros=[[1, 2, 3, 6, -1], [0] * 5, [8, 0, 2, 0, 0], [-1] * 5],
            at=[[10, 30, -1, 7, -1], [0] * 5, [5, 0, -1, 0, 0], [-1] * 5],
        ),
        method,
    ).isel(d0=0)
    for name, expected in {
        "runs": [5, 0, 2, 5],
        "converged": [2, 0, 1, 0],
        "step_limit": [1, 0, 1, 0],
        "dead": [1, 0, 0, 0],
        "diverged": [1, 0, 0, 5],
        "within_as_written": [3, 0, 1, 0],
        "within_as_released": [4, 0, 2, 0],
        "probability": [0.4, np.nan, 0.5, 0],
        "median_steps": [20, np.nan, 5, np.nan],
        "least_steps": [10, np.nan, 5, np.nan],
        "most_steps": [30, np.nan, 5, np.nan],
        "mean_numerical_zeros": [3, np.nan, 5, np.nan],
        "mean_zeros_at_rounding": [6, np.nan, 10, np.nan],
        "mean_dead_samples": [1.75, np.nan, 0, np.nan],
    }.items():
        np.testing.assert_array_equal(summary[name], expected, err_msg=name)
    low, high = statistics.interval(2, 5, method)
    assert (summary["probability_low"][0], summary["probability_high"][0]) == (low, high)
    assert np.isnan(summary["probability_low"][1])
    parts = summary["converged"] + summary["step_limit"] + summary["dead"] + summary["diverged"]
    np.testing.assert_array_equal(parts, summary["runs"])


def test_interval_of_a_mean():
    values = np.array([1.0, 2.0, 4.0, np.nan, np.inf])
    expected = stats.ttest_1samp(values[:3], 0).confidence_interval()
    np.testing.assert_allclose(statistics.mean_interval(values), (7 / 3, expected.low, expected.high))
    mean, low, high = statistics.mean_interval(np.array([1.0, np.nan]))
    assert mean == 1
    assert np.isnan(low)
    assert np.isnan(high)


def test_median_interval_covers():
    """The interval's stated coverage is exact for continuous laws: here by drawing."""
    generator = np.random.default_rng(0)
    for count in (1, 5, 10, 25):
        drawn = [statistics.median_interval(generator.exponential(size=count)) for _ in range(2000)]
        share = np.mean([low <= np.log(2) <= high for _, low, high, _ in drawn])
        assert share == pytest.approx(drawn[0][3], abs=0.03)
        assert drawn[0][3] >= 0.95 or count <= 5
    assert statistics.median_interval(np.array([3.0, 1, np.inf]))[:3] == (3.0, 1.0, np.inf)
    assert np.isnan(statistics.median_interval(np.array([]))).all()


def test_fitted_slope():
    x = np.array([1.0, 2, 3, 5])
    slope, low, high = statistics.fitted_slope(x, np.array([1.0, 3.1, 4.9, 9]))
    fit, covariance = np.polyfit(x, [1.0, 3.1, 4.9, 9], 1, cov="unscaled")
    residual = np.array([1.0, 3.1, 4.9, 9]) - np.polyval(fit, x)
    half = 4.302653 * np.sqrt(covariance[0, 0] * residual @ residual / 2)  # Student's 0.975 quantile with 2 degrees.
    assert (slope, low, high) == pytest.approx((fit[0], fit[0] - half, fit[0] + half), rel=1e-6)
    assert np.isnan(statistics.fitted_slope(x[:1], x[:1])).all()
    assert np.isnan(statistics.fitted_slope(x[:2], np.array([1.0, 2.0]))[1:]).all()
    assert statistics.fitted_slope(x, np.array([1, 2, 3, np.inf]))[0] == pytest.approx(1)
