"""The boundary where a probability is 1/2: the fit by brute force, the coverage of its intervals, one-sided answers."""

import numpy as np
import pytest
from scipy import optimize, special

from sweeps import logistic

SIZES = np.arange(4, 41, 4)


def drawn(generator, sizes, true, slope, runs):
    """Counts of rows whose boundary is `true`."""
    probability = 1 / (1 + np.exp(-slope * (np.log(sizes) - np.log(true)[:, None])))
    runs = np.broadcast_to(runs, probability.shape)
    return generator.binomial(runs, probability), runs


def penalized(parameters, x, successes, runs):
    """Run by run, with the information as a matrix of NumPy's."""
    eta = parameters[0] + parameters[1] * x
    p = special.expit(eta)
    design = np.stack([np.ones_like(x), x], axis=1)
    log_determinant = np.linalg.slogdet(design.T @ np.diag(runs * p * (1 - p)) @ design)[1]
    counted = successes @ special.log_expit(eta) + (runs - successes) @ special.log_expit(-eta)
    return float(counted + log_determinant / 2)


CASES = {
    "smooth": ([0, 1, 2, 2, 6, 9, 9, 10, 10, 10], [10] * 10),
    "separated": ([0, 0, 0, 0, 0, 10, 10, 10, 10, 10], [10] * 10),
    "ragged": ([0, 0, 1, 20, 31, 9, 2, 2, 0, 2], [2, 2, 2, 50, 34, 10, 2, 2, 0, 2]),
    "falling": ([2, 1, 1, 0, 0, 1, 0, 0, 0, 0], [2] * 10),
    "nothing": ([0] * 10, [3] * 10),
}


@pytest.mark.parametrize("case", CASES)
def test_the_fit_is_the_largest_penalized_likelihood(case):
    successes, runs = map(np.asarray, CASES[case])
    found = logistic.fit(SIZES, successes, runs)
    slope = found.slope / found.scale
    ours = np.array([found.intercept - slope * found.center, slope])
    x = np.log(SIZES)
    value = lambda parameters: -penalized(parameters, x, successes, runs)
    starts = [(-b * c, b) for b in (-4.0, 0.5, 2.0, 8.0, 20.0) for c in (1.5, 3.0)]
    options = {"xatol": 1e-8, "fatol": 1e-10, "maxiter": 2000}
    with np.errstate(all="ignore"):
        ends = [optimize.minimize(value, start, method="Nelder-Mead", options=options) for start in starts]
    best = min(ends, key=lambda end: end.fun)
    assert -value(ours) >= -best.fun - 1e-8
    np.testing.assert_allclose(ours, best.x, rtol=1e-3, atol=1e-3)


def test_the_profile_ends_where_the_likelihood_has_fallen():
    rows = [CASES[case] for case in ("smooth", "separated", "ragged")]
    successes, runs = (np.array(part) for part in zip(*rows, strict=True))
    found = logistic.boundary(SIZES, successes, runs, num_resamples=0)
    x = np.log(SIZES)
    smooth = np.flatnonzero(((successes > 0) & (successes < runs)).sum(axis=1) > 1)
    assert len(smooth) == 2
    for row in smooth:
        best = lambda at, row=row: max(
            penalized((-b * np.log(at), b), x, successes[row], runs[row]) for b in np.geomspace(0.5, 40, 800)
        )
        top = best(found.size[row])
        for end in (found.low[row], found.high[row]):
            assert 2 * (top - best(end)) == pytest.approx(3.8415, abs=2e-3)


@pytest.mark.parametrize(("slope", "runs"), [(6.0, 10), (10.0, 10), (3.0, 30)])
def test_intervals_cover_a_known_boundary(slope, runs):
    generator = np.random.default_rng(7)
    true = np.exp(generator.uniform(np.log(8), np.log(24), 300))
    successes, runs = drawn(generator, SIZES, true, slope, runs)
    found = logistic.boundary(SIZES, successes, runs, num_resamples=100)
    assert (found.place == logistic.INSIDE).all()
    # 95 percent within 3 standard errors of 300 rows; a profile may be a little wide.
    assert 0.91 <= np.mean((found.low <= true) & (true <= found.high)) <= 0.99
    assert 0.89 <= np.mean((found.bootstrap_low <= true) & (true <= found.bootstrap_high)) <= 0.99
    errors = np.log(found.size / true)
    assert abs(errors.mean()) < 3 * errors.std() / np.sqrt(300)
    # Of an interval of 95 percent, half the length is about 1.96 standard errors.
    assert np.median(np.log(found.high / found.low)) / 3.92 == pytest.approx(errors.std(), rel=0.25)


@pytest.mark.parametrize(("slope", "runs"), [(20.0, 10), (40.0, 30), (60.0, 100), (100.0, 10)])
def test_edges_steeper_than_the_grid_can_tell_are_covered(slope, runs):
    generator = np.random.default_rng(11)
    true = np.exp(generator.uniform(np.log(8), np.log(24), 300))
    successes, runs = drawn(generator, SIZES, true, slope, runs)
    found = logistic.boundary(SIZES, successes, runs, num_resamples=0)
    assert np.mean((found.low <= true) & (true <= found.high)) >= 0.94


def test_a_row_that_jumps_knows_no_more_than_its_neighbours():
    successes, runs = np.array([[0, 0, 1000, 1000]]), np.full((1, 4), 1000)
    found = logistic.boundary([16, 20, 24, 28], successes, runs, num_resamples=0)
    assert found.low[0] <= 20 < 24 <= found.high[0]


def test_what_lies_outside_of_the_grid_has_a_bound_on_one_side():
    runs = np.full((5, 10), 2)
    successes = np.zeros((5, 10), int)
    successes[1] = 2
    successes[2] = runs[2, ::-1] * (SIZES < 10)  # Falls.
    successes[3, -1], successes[4], successes[4, 0] = 1, 2, 1
    found = logistic.boundary(SIZES, successes, runs)
    assert list(found.place) == ["above", "below", "unknown", "above", "below"]
    assert np.isnan(found.size).all()
    assert np.isnan(found.bootstrap_low).all()
    # Six failures at widths from 32 on have a probability of at most 1/64 < 0.025 where the boundary is below.
    np.testing.assert_array_equal(found.low[[0, 1, 2, 4]], [32, 0, 0, 0])
    np.testing.assert_array_equal(found.high[[0, 1, 2, 3]], [np.inf, 12, np.inf, np.inf])
    assert 16 < found.low[3] < 40
    assert 4 < found.high[4] < 20


def test_bounds_of_failures_alone_cover():
    generator = np.random.default_rng(3)
    true = np.full(400, 36.0)
    successes, runs = drawn(generator, SIZES, true, 3.0, 1)
    found = logistic.boundary(SIZES, successes, runs, num_resamples=0)
    one_sided = found.place == logistic.ABOVE
    assert one_sided.sum() > 30
    assert np.mean(found.low <= true) > 0.95


def test_few_sizes():
    with pytest.raises(ValueError, match="two positive sizes"):
        logistic.fit([4], [[1]], [[2]])
    with pytest.raises(ValueError, match="two positive sizes"):
        logistic.fit([0, 4], [[1, 1]], [[2, 2]])
    with pytest.raises(ValueError, match="each once"):
        logistic.fit([4, 8, 8], [[0, 1, 1]], [[2, 2, 2]])
    found = logistic.boundary([4, 8, 16], [[0, 0, 0], [0, 5, 0]], [[0, 0, 0], [0, 10, 0]])
    assert list(found.place) == ["unknown", "unknown"]
    assert (found.low == 0).all()
    assert np.isinf(found.high).all()
