"""Quantities of results that are made up."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import xarray as xr

from sweeps.reproduction import measure
from sweeps.study import Variant

CONVERGED, LIMIT, DIVERGED = 1, 2, 3


def a_map(status, zeros=0, sharing="run", **more):
    """Results over two d0, two d1 and the seeds, with d0 d1 / N = 0.25, 1, 1, 4; a status per set-up."""
    results = {}
    for layers, codes in status.items():
        codes = np.asarray(codes)
        shape = codes.shape
        values = {"status": codes, "numerical_zeros": np.broadcast_to(zeros.get(layers, 0) if zeros else 0, shape)}
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


def test_shares_about_the_edge_are_those_of_the_set_up_that_agrees_less():
    stored = a_map({"hidden": EDGE, "both": np.where(EDGE == 1, 1, 3)})
    (below,), (above,), (far,) = (found(f"converged_{name}_edge", stored) for name in ("below", "above", "far_above"))
    assert below.counts == "0 of 2 runs (hidden)"
    assert (below.value, below.low) == (0, 0)
    assert below.high == pytest.approx(0.6576, abs=1e-3)
    assert above.counts == "5 of 6 runs (hidden)"
    assert far.counts == "2 of 2 runs (hidden)"
    worse = a_map({"hidden": EDGE, "both": np.full_like(EDGE, DIVERGED)})
    assert found("converged_above_edge", worse)[0].counts == "0 of 6 runs (both)"
    assert found("converged_below_edge", worse)[0].value == 0


def test_runs_that_share_their_data_count_once():
    stored = a_map({"hidden": EDGE}, sharing="cell")
    assert found("converged_above_edge", stored)[0].counts == "2 of 3 data sets, in most of their runs (hidden)"


def test_the_set_ups_differ_by_their_mean_over_cells():
    (difference,) = found("setup_difference", a_map({"hidden": EDGE, "both": np.full_like(EDGE, LIMIT)}))
    assert difference.value == pytest.approx(2.5 / 4)
    assert difference.low < 0.625 < difference.high
    assert not found("setup_difference", a_map({"hidden": EDGE}))


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
    assert not found("zeros_ratio", none)


def test_proofs_are_held_against_the_criterion():
    verdict = np.where(EDGE == CONVERGED, 1, 2)
    stored = a_map({"hidden": EDGE}, verdict=verdict)
    assert found("success_at_local_minimum", stored)[0].counts == "0 of 5 runs that meet it (hidden)"
    assert found("failure_at_global_minimum", stored)[0].counts == "0 of 3 runs that miss it (hidden)"
    stored = a_map({"hidden": EDGE}, verdict=3 - verdict)
    assert found("success_at_local_minimum", stored)[0].value == 1
    assert found("failure_at_global_minimum", stored)[0].value == 1


def trajectories(patterns, error, jacobian, status, protocol="as_written"):
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
        coords={"d0": [20], "d1": [50], "step": [1, 100, 200, 300]},
    )
    study = SimpleNamespace(num_samples=200, protocol=protocol)
    return measure.Stored("trajectories_as_written", study, {Variant(trained_layers="hidden"): data}, None, "")


def test_networks_along_training():
    patterns = [[1, 2, 3, 3], [1, 2, 3, 4], [1, 1, 1, 1]]
    error = [[1, 1e-3, 1e-4, 1e-5], [1, 1, 1e-2, 1e-2], [1, np.nan, np.nan, np.nan]]
    jacobian = [[0.2, 0.2, 0.2, 0.2], [0.5, 0.5, 0.5, 0.5], [9, 9, 9, 9]]
    stored = trajectories(patterns, error, jacobian, [1, 1, 3])
    said = {name: found(name, stored)[0] for name in measure.QUANTITIES if "trajectories_as_written" in
            measure.QUANTITIES[name].keys}  # fmt: skip
    assert said["trajectory_succeeds"].counts == "1 of 2 networks, 1 others diverged"
    assert said["zeros_stay"].value == 0.5
    assert said["pattern_moves_after_success"].counts.startswith("1 of 1 networks")
    assert said["pattern_settles"].value == 0.5
    assert said["pattern_moves_half_way"].value == 1
    assert said["differential_above_loss"].value == 1
    assert said["differential_far_above_loss"].value == 0.5  # The Jacobian: 2 and 5 times.
    released = trajectories(patterns, error, jacobian, [1, 1, 3], "as_released")
    assert found("differential_far_above_loss", released)[0].value == 1  # The gradient: 20 and 50 times.
    assert not found("zeros_stay", trajectories(patterns, error, jacobian, [3, 3, 3]))


def test_what_is_measured_names_its_study():
    stored = a_map({"hidden": EDGE})._replace(configuration="abc")
    stored.study.arithmetic, stored.study.prove = "float64", False
    measured = {one.name: one for one in measure.measure([stored])}
    assert {(one.study, one.configuration, one.precision, one.protocol) for one in measured.values()} == {
        ("map_as_written", "abc", "float64", "")
    }
    assert "zeros_both" not in measured
