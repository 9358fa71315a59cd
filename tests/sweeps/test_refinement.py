"""The rule of --refine: by brute force, on a known boundary, and at the ends of a grid."""

import numpy as np
import pytest

from sweeps import logistic
from sweeps.refinement import allocate

SIZES = np.arange(4, 41, 4)


def probabilities(true, slope=6.0):
    return 1 / (1 + np.exp(-slope * (np.log(SIZES) - np.log(true)[:, None])))


def standard_error(row_runs, eta, x, slope):
    """Of the log boundary, by the delta method and NumPy's inverse."""
    p = 1 / (1 + np.exp(-eta))
    design = np.stack([np.ones_like(x), x], axis=1)
    covariance = np.linalg.inv(design.T @ np.diag(row_runs * p * (1 - p)) @ design)
    target = np.interp(0.0, eta, x)
    u = np.array([1, target])
    return np.sqrt(u @ covariance @ u) / slope


def test_every_choice_is_the_one_that_shortens_an_interval_most():
    generator = np.random.default_rng(0)
    runs = np.full((3, 10), 10)
    successes = generator.binomial(runs, probabilities(np.array([9.0, 14.0, 25.0])))
    chosen = allocate(SIZES, successes, runs, 6, 8)
    assert len(chosen) == 6
    found = logistic.fit(SIZES, successes, runs)
    x, slope = np.log(SIZES), found.slope / found.scale
    eta = (found.intercept - slope * found.center)[:, None] + slope[:, None] * x
    runs = runs.copy()
    for choice in chosen:
        gain = np.empty(runs.shape)
        for row, cell in np.ndindex(*runs.shape):
            more = runs[row] + 8 * (np.arange(10) == cell)
            gain[row, cell] = standard_error(runs[row], eta[row], x, slope[row]) - standard_error(
                more, eta[row], x, slope[row]
            )
        assert gain[choice] == pytest.approx(gain.max(), rel=1e-6)
        runs[choice] += 8
    # What is chosen first does not depend on how many are asked for.
    assert allocate(SIZES, successes, np.full((3, 10), 10), 4, 8) == chosen[:4]


def test_runs_that_are_chosen_tell_more_than_as_many_spread_evenly():
    generator = np.random.default_rng(1)
    true = np.geomspace(6, 30, 40)
    probability = probabilities(true)
    runs = np.full(probability.shape, 5)
    successes = generator.binomial(runs, probability)
    for _ in range(5):
        for cell in allocate(SIZES, successes, runs, 50, 8):
            successes[cell] += generator.binomial(8, probability[cell])
            runs[cell] += 8
    even = np.full(probability.shape, 10)
    refined = logistic.boundary(SIZES, successes, runs, num_resamples=0)
    spread = logistic.boundary(SIZES, generator.binomial(even, probability), even, num_resamples=0)
    assert runs.sum() == even.sum()
    error = lambda found: np.sqrt(np.nanmean(np.log(found.size / true) ** 2))
    length = lambda found: np.median(np.log(found.high / found.low))
    assert error(refined) < 0.75 * error(spread)
    assert length(refined) < 0.75 * length(spread)
    assert np.mean((refined.low <= true) & (true <= refined.high)) > 0.85
    # Seen from far away they are where the probability is near 1/2.
    assert (np.abs(probability - 0.5)[runs > 5] < 0.45).mean() > 0.9


def test_rows_without_a_boundary_have_runs_only_while_their_end_is_open():
    runs, successes = np.full((3, 10), 2), np.zeros((3, 10), int)
    successes[1] = 2
    successes[2, 5:] = 2
    chosen = allocate(SIZES, successes, runs, 5, 8)
    assert chosen[:2] == [(0, 9), (1, 0)]  # 0 of 2, and 2 of 2: Wilson's intervals hold 1/2.
    assert {row for row, _ in chosen[2:]} == {2}
    runs = np.full((3, 10), 8)
    assert {row for row, _ in allocate(SIZES, successes * 4, runs, 5, 8)} == {2}
    assert allocate(SIZES, successes[:2] * 4, runs[:2], 5, 8) == []
