"""Quantities of results that are made up."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import xarray as xr

from sweeps.reproduction import ledger, measure
from sweeps.study import Variant

CONVERGED, LIMIT, DIVERGED = 1, 2, 3


def a_map(status, zeros=0, sharing="run", **more):
    """Results over two d0, two d1 and the seeds, with d0 d1 / N = 0.25, 1, 1, 4; a status per set-up."""
    results = {}
    for layers, codes in status.items():
        codes = np.asarray(codes)
        shape = codes.shape
        values = {"status": codes, "numerical_zeros": np.broadcast_to(zeros.get(layers, 0) if zeros else 0, shape)}
        values["dead_samples"] = np.where(codes == LIMIT, 1, 0)
        values |= {name: np.broadcast_to(value, shape) for name, value in more.items()}
        results[Variant(trained_layers=layers)] = xr.Dataset(
            {name: (("d0", "d1", "seed"), value) for name, value in values.items()},
            coords={"d0": [5, 20], "d1": [10, 40]},
            attrs={"science": {"num_samples": 200}},
        )
    study = SimpleNamespace(
        data_sharing=sharing, prove=True, num_seeds=shape[-1], succeeded=lambda data: data["status"].values == CONVERGED
    )
    return measure.Stored("map_as_written", study, results, None, "")


def found(name, stored):
    return list(measure.QUANTITIES[name].find(stored))


EDGE = np.array([[[2, 2], [1, 1]], [[1, 2], [1, 1]]])


def of(name, stored):
    """What is found, by set-up."""
    return {one.setup: one for one in found(name, stored)}


def test_shares_about_the_edge_are_of_every_set_up():
    stored = a_map({"hidden": EDGE, "both": np.where(EDGE == 1, 1, 3)})
    below, above, far = (of(f"converged_{name}_edge", stored) for name in ("below", "above", "far_above"))
    assert below["hidden"].counts == "0 of 2 runs, 2 runs ended with a dead sample"
    assert below["both"].counts == "0 of 2 runs, 2 runs diverged"
    assert (below["hidden"].value, below["hidden"].low) == (0, 0)
    assert below["hidden"].high == pytest.approx(0.6576, abs=1e-3)
    assert above["hidden"].counts == "5 of 6 runs, 1 runs ended with a dead sample"
    assert far["both"].counts == "2 of 2 runs"


def test_runs_that_share_their_data_count_once():
    stored = a_map({"hidden": EDGE}, sharing="cell")
    assert of("converged_above_edge", stored)["hidden"].counts.startswith("2 of 3 data sets, in most of their runs")


def test_the_set_ups_differ_by_their_mean_over_contested_cells():
    (difference,) = found("setup_difference", a_map({"hidden": EDGE, "both": np.full_like(EDGE, LIMIT)}))
    assert difference.value == pytest.approx(2.5 / 3)
    assert difference.low < 2.5 / 3 < difference.high
    assert difference.counts == "3 cells where runs end differently, 0 is excluded"
    assert not found("setup_difference", a_map({"hidden": EDGE}))


def test_differences_of_either_sign_do_not_cancel_and_chance_makes_none():
    turned = np.array([[[1, 1], [2, 2]], [[1, 1], [2, 2]]])
    stored = a_map({"hidden": turned, "both": 3 - turned})
    assert found("setup_difference", stored)[0].value == 0
    (size,) = found("setup_difference_size", stored)
    assert (size.value, size.low, size.high) == (1, 1, 1)
    draws = np.random.default_rng(0).integers(1, 3, (2, 2, 2, 400))
    (alike,) = found("setup_difference_size", a_map(dict(zip(("hidden", "both"), draws, strict=True))))
    assert alike.high < 0.1
    (none,) = found("setup_difference_size", a_map({"hidden": turned, "both": turned}))
    assert math.isnan(none.low)


def test_zeros_are_those_of_runs_that_converge():
    zeros = {"hidden": np.array([[[99, 99], [10, 20]], [[30, 99], [20, 20]]]), "both": np.full(EDGE.shape, 2)}
    stored = a_map({"hidden": EDGE, "both": EDGE}, zeros)
    (hidden,), (both,), (ratio,) = (found(name, stored) for name in ("zeros_hidden", "zeros_both", "zeros_ratio"))
    assert hidden.value == pytest.approx((15 + 30 + 20) / 3)
    assert (both.value, both.low, both.high) == (2, 2, 2)
    assert ratio.value == pytest.approx(65 / 6)
    assert 15 / 2 <= ratio.low <= ratio.value <= ratio.high <= 15
    assert found("many_zeros", stored)[0].value == 1
    none = a_map({"hidden": EDGE, "both": EDGE})
    assert found("zeros_hidden", none)[0].high == pytest.approx(-math.log(0.025) / 3)
    (open_,) = found("zeros_ratio", none)
    assert (open_.low, open_.high) == (0, math.inf)


def test_a_ratio_with_a_set_up_without_zeros_is_not_exact():
    one = np.zeros_like(EDGE)
    one[1, 1, 0] = 1
    (ratio,) = found("zeros_ratio", a_map({"hidden": EDGE, "both": EDGE}, {"hidden": one}))
    assert (ratio.value, ratio.low, ratio.high) == (math.inf, 0, math.inf)
    (ratio,) = found("zeros_ratio", a_map({"hidden": EDGE, "both": EDGE}, {"both": np.full_like(EDGE, 50)}))
    assert (ratio.value, ratio.low) == (0, 0)
    assert ratio.high == pytest.approx(-math.log(0.0125) / 3 / 50)
    sparse = a_map({"hidden": EDGE, "both": EDGE}, {"hidden": one, "both": one})
    assert math.isnan(found("zeros_ratio", sparse)[0].low)  # Some resamples have no zero at all.


def test_proofs_are_held_against_the_criterion():
    verdict = np.where(EDGE == CONVERGED, 1, 2)
    stored = a_map({"hidden": EDGE}, verdict=verdict)
    assert found("success_at_local_minimum", stored)[0].counts == "0 of 5 runs that meet it"
    assert found("failure_at_global_minimum", stored)[0].counts == "0 of 3 runs that miss it"
    stored = a_map({"hidden": EDGE}, verdict=3 - verdict)
    assert found("success_at_local_minimum", stored)[0].value == 1
    assert found("failure_at_global_minimum", stored)[0].value == 1


def trajectories(patterns, error, jacobian, status, protocol="as_written", width=2828, sharing="run"):
    """Runs of one width with four records; the loss changes by a tenth in each."""
    patterns = np.asarray(patterns, np.uint32)
    runs = {
        "pattern_fingerprint_high": patterns,
        "pattern_fingerprint_low": patterns,
        "relative_error": np.asarray(error, float),
        "relative_loss_change": np.full(patterns.shape, 0.1),
        "relative_jacobian_change": np.asarray(jacobian, float),
        "relative_gradient_change": 10 * np.asarray(jacobian, float),
        "numerical_zeros": patterns % 2,
    }
    data = xr.Dataset(
        {name: (("d0", "d1", "seed", "step"), value[None, None]) for name, value in runs.items()}
        | {"status": (("d0", "d1", "seed"), np.asarray(status)[None, None])},
        coords={"d0": [20], "d1": [width], "step": [1, 100, 200, 300]},
    )
    study = SimpleNamespace(num_samples=200, protocol=protocol, data_sharing=sharing)
    return measure.Stored("trajectories_as_written", study, {Variant(trained_layers="hidden"): data}, None, "")


def test_networks_along_training():
    patterns = [[1, 2, 3, 3], [1, 2, 3, 4], [1, 1, 1, 1]]
    error = [[1, 1e-3, 1e-4, 1e-5], [1, 1, 1e-2, 1e-2], [1, np.nan, np.nan, np.nan]]
    jacobian = [[0.2, 0.2, 0.2, 0.2], [0.5, 0.5, 0.5, 0.5], [9, 9, 9, 9]]
    stored = trajectories(patterns, error, jacobian, [1, 1, 3])
    asked = (name for name, one in measure.QUANTITIES.items() if "trajectories_as_written" in one.keys)
    said = {name: found(name, stored)[0] for name in asked if name != "settling_by_width"}  # It needs two widths.
    assert said["trajectory_succeeds"].counts == "1 of 3 networks, 1 of the networks diverged"
    assert said["trajectory_succeeds"].setup == "hidden, d1 = 2828"
    assert said["zeros_stay"].value == pytest.approx(1 / 3)
    assert said["zeros_confined"].value == pytest.approx(1 / 3)
    assert said["pattern_moves_after_success"].counts.startswith("1 of 2 networks")
    assert said["pattern_settles"].value == pytest.approx(1 / 3)
    assert said["pattern_moves_late"].value == pytest.approx(1 / 3)
    assert said["differential_above_loss"].value == pytest.approx(2 / 3)
    assert said["differential_far_above_loss"].value == pytest.approx(1 / 3)  # The Jacobian: 2 and 5 times.
    released = trajectories(patterns, error, jacobian, [1, 1, 3], "as_released")
    assert found("differential_far_above_loss", released)[0].value == pytest.approx(2 / 3)  # The gradient: 20 and 50.
    (all_diverged,) = found("zeros_stay", trajectories(patterns, error, jacobian, [3, 3, 3]))
    assert all_diverged.counts == "0 of 3 networks, 3 of the networks diverged"
    shared = trajectories(patterns, error, jacobian, [1, 1, 3], sharing="cell")
    assert found("differential_above_loss", shared)[0].counts.startswith("1 of 1 data sets")


def test_without_the_largest_width_it_is_open_what_training_shows():
    narrow = trajectories([[1, 2, 3, 4]] * 9, np.full((9, 4), 1e-9), np.ones((9, 4)), [1] * 9, width=200)
    run, missing = found("jacobian_above_loss", narrow)
    assert (run.setup, run.value) == ("hidden, d1 = 200", 1)
    assert missing.setup == "hidden, d1 = 2828"
    entry = next(one for one in ledger.read() if one.id == "lazy-training-jacobian")

    def verdict(stored):
        stored.study.arithmetic, stored.study.protocol_name = "float64", "as_written"
        measured = [one for one in measure.measure([stored]) if one.name == "jacobian_above_loss"]
        return ledger.verdict_of(entry, measured)[0]

    assert verdict(narrow) is ledger.Verdict.UNDECIDED
    wide = trajectories([[1, 2, 3, 4]] * 9, np.full((9, 4), 1e-9), np.ones((9, 4)), [1] * 9)
    assert verdict(wide) is ledger.Verdict.HOLDS
    lazy = trajectories([[1, 2, 3, 4]] * 9, np.full((9, 4), 1e-9), np.full((9, 4), 1e-3), [1] * 9)
    assert verdict(lazy) is ledger.Verdict.FAILS


@pytest.mark.parametrize(
    ("rests", "expected"),
    [
        (([1, 2, 2, 2], [1, 1, 1, 2]), (3, 3, 3)),  # At steps 100 and 300.
        (([1, 1, 2, 2], [1, 2, 2, 2]), (2, 2, 2)),
        (([1, 2, 2, 2], [1, 2, 2, 2]), (1, 1, 1)),
    ],
)
def test_when_patterns_rest_by_width(rests, expected):
    error = jacobian = np.ones((3, 4))
    narrow, wide = (trajectories([row] * 3, error, jacobian, [1] * 3, width=width) for row, width in
                    zip(rests, (200, 2828), strict=True))  # fmt: skip
    (variant,) = narrow.results
    both = xr.concat([one.results[variant] for one in (narrow, wide)], "d1")
    (settling,) = found("settling_by_width", narrow._replace(results={variant: both}))
    assert (settling.value, settling.low, settling.high) == pytest.approx(expected)
    without = narrow._replace(results={variant: both.assign_coords(d1=[200, 752])})
    assert found("settling_by_width", without)[0].high == math.inf


def step_counts(power, seeds=16):
    """Steps to every epsilon that grow as a power of log(1 / epsilon), for two rates and as many sizes."""
    epsilon = (1.0, 0.1, 0.01, 1e-3)
    rows = {
        f"steps_{index}": np.broadcast_to(1000 + 500 * (-np.log(value)) ** power, (2, 2, seeds))
        for index, value in enumerate(epsilon)
    }
    rows["status"] = np.ones((2, 2, seeds), int)
    data = xr.Dataset({name: (("learning_rate", "batch_size", "seed"), value) for name, value in rows.items()})
    study = SimpleNamespace(epsilon=epsilon)
    return measure.Stored("step_counts", study, {Variant(trained_layers="both"): data}, None, "")


def test_starts_are_counted_and_not_their_rates_and_sizes():
    (reached,) = found("reaches_epsilon", step_counts(1))
    assert reached.counts == "16 of 16 starts, each with 4 pairs of eta and b"
    assert reached.low > 0.8 > found("reaches_epsilon", step_counts(1, 5))[0].low
    stored = step_counts(1)
    (data,) = stored.results.values()
    data["status"][1, 1, 0] = 2
    assert found("reaches_epsilon", stored)[0].value == 15 / 16


def test_a_linear_rate_is_told_from_a_slower_one():
    assert found("growth_of_slope", step_counts(1))[0].high == pytest.approx(1)
    assert found("growth_of_slope", step_counts(1.5))[0].low > 1.25


def test_what_is_measured_names_its_study():
    stored = a_map({"hidden": EDGE})._replace(configuration="abc")
    stored.study.arithmetic, stored.study.prove = "float64", False
    measured = {one.name: one for one in measure.measure([stored])}
    assert {(one.study, one.configuration, one.precision, one.protocol) for one in measured.values()} == {
        ("map_as_written", "abc", "float64", "")
    }
    assert "zeros_both" not in measured
