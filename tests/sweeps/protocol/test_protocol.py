"""The presets, entry by entry against the table of differences between the paper and the released code."""

import dataclasses
import math

import pytest

from sweeps.convergence_map.study import ConvergenceMap
from sweeps.protocol import presets as protocol
from sweeps.protocol.presets import CHOICES, PRESETS, ByLayers
from sweeps.runtime.session import fingerprint
from sweeps.trajectories.study import Trajectories

GRID = tuple(range(2, 61, 2))
SAME = dict(
    num_samples=200, d2=1, d0=GRID, d1=GRID, num_seeds=10, data_radius="1", hidden_law="normal",
    hidden_standard_deviation=1.0, momentum=0.9, batch_size=0, tolerance=2.5e-3, zero_threshold=1e-8,
)  # fmt: skip
AS_WRITTEN = dict(
    normalization="half_sum", criterion="relative_error", data_law="sphere", data_sharing="run", label_law="balanced",
    output_law=ByLayers("balanced_signs", "normal"), learning_rate=ByLayers(0.15, 0.002), num_steps=50_000,
)  # fmt: skip
AS_RELEASED = dict(
    normalization="mean", criterion="scaled_mean_squared_error", data_law="cube", data_sharing="cell",
    label_law="random_signs", output_law=ByLayers("shuffled_signs", "uniform"), learning_rate=ByLayers(0.15, 0.15),
    num_steps=49_999, stop="never",
)  # fmt: skip


@pytest.mark.parametrize(("name", "own"), [("as_written", AS_WRITTEN), ("as_released", AS_RELEASED)])
def test_preset(name, own):
    preset = PRESETS[name]
    for field, expected in {**SAME, **own}.items():
        assert preset[field] == expected, field


@pytest.mark.parametrize(("name", "num_steps"), [("as_written", 25_000), ("as_released", 24_999)])
def test_trajectories(name, num_steps):
    found = Trajectories.make(protocol=name)
    assert (found.d0, found.num_seeds, found.num_steps, found.measure_every) == ((20,), 5, num_steps, 100)
    assert found.d1 == (200, math.floor(200**1.25), math.floor(200**1.5))
    assert found.learning_rate == (0.15, 0.002)


def test_every_named_value_is_a_choice():
    for preset in PRESETS.values():
        for field, choices in CHOICES.items():
            if field == "trained_layers":
                continue
            value = preset[field]
            assert {value.hidden, value.both} <= set(choices) if isinstance(value, ByLayers) else value in choices


def test_step_on_the_loss_of_the_paper():
    """Mean loss is (2 / N) L, so the released step on L is 0.0015."""
    preset = PRESETS["as_released"]
    assert preset["learning_rate"].hidden * 2 / preset["num_samples"] == pytest.approx(0.0015)


def test_tolerance_in_terms_of_the_relative_error():
    assert protocol.relative_tolerances(200) == {"as_written": 2.5e-3, "as_released": pytest.approx(0.188, abs=5e-4)}


def test_fingerprint_sees_the_science_and_nothing_else():
    usual = ConvergenceMap.make()
    science = usual.science()
    name = fingerprint(science)
    assert len(name) == 12
    assert name == fingerprint(dict(reversed(science.items())))
    seen = {name}
    changes = dict(OTHER, label_law="gaussian")
    assert set(changes) == set(science) - {"trained_layers"}
    for field, value in changes.items():
        seen.add(fingerprint(dataclasses.replace(usual, **{field: value}).science()))
    assert len(seen) == 1 + len(changes)
    for field, value in dict(protocol="as_released", flow_time=1.0, path_tolerance=0.1, interval="exact").items():
        assert fingerprint(dataclasses.replace(usual, **{field: value}).science()) == name
    assert fingerprint(ConvergenceMap.make(trained_layers="hidden").science()) not in seen


OTHER = dict(
    num_samples=20, d2=2, base_seed=1, data_law="cube", data_radius="sqrt_d0", data_sharing="cell", hidden_law="lecun",
    hidden_standard_deviation=2.0, momentum=0.0, normalization="mean", batch_size=4, tolerance=0.1, stop="never",
    criterion="scaled_mean_squared_error", num_steps=4, zero_threshold=0.0, zero_multiple=1.0, precision="float64",
    d0=(2,), d1=(4,), num_seeds=3, output_law=("uniform", "uniform"), learning_rate=(0.5, 0.5), relu_at_zero=0.5,
)  # fmt: skip
