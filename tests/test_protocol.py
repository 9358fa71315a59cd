"""The presets, entry by entry against the table of differences between the paper and the released code."""

import dataclasses
import math

import pytest

from sweeps import protocol
from sweeps.protocol import CHOICES, PRESETS, PerLayers

GRID = tuple(range(2, 61, 2))
SAME = dict(
    num_samples=200, d2=1, d0=GRID, d1=GRID, num_seeds=10, data_radius="1", hidden_law="normal",
    hidden_standard_deviation=1.0, momentum=0.9, batch_size=0, tolerance=2.5e-3, zero_threshold=1e-8,
)  # fmt: skip
AS_WRITTEN = dict(
    normalization="half_sum", criterion="relative_error", data_law="sphere", data_sharing="run", label_law="balanced",
    output_law=PerLayers("balanced_signs", "normal"), learning_rate=PerLayers(0.15, 0.002), num_steps=50_000,
)  # fmt: skip
AS_RELEASED = dict(
    normalization="mean", criterion="scaled_mean_squared_error", data_law="cube", data_sharing="cell",
    label_law="random_signs", output_law=PerLayers("shuffled_signs", "uniform"), learning_rate=PerLayers(0.15, 0.15),
    num_steps=49_999, stop="never",
)  # fmt: skip


@pytest.mark.parametrize(("name", "own"), [("as_written", AS_WRITTEN), ("as_released", AS_RELEASED)])
def test_preset(name, own):
    preset = PRESETS[name]
    assert preset.name == name
    for field, expected in {**SAME, **own}.items():
        assert getattr(preset, field) == expected, field


@pytest.mark.parametrize(("name", "num_steps"), [("as_written", 25_000), ("as_released", 24_999)])
def test_trajectories(name, num_steps):
    found = PRESETS[name].trajectories
    assert (found.d0, found.num_seeds, found.num_steps, found.measure_every) == (20, 5, num_steps, 100)
    assert found.d1 == (200, math.floor(200**1.25), math.floor(200**1.5))
    assert found.learning_rate == PerLayers(0.15, 0.002)
    assert found.differential_change == {"as_written": "jacobian_operator_norm", "as_released": "loss_gradient"}[name]


def test_every_named_value_is_a_choice():
    for preset in PRESETS.values():
        for field, choices in CHOICES.items():
            if field == "trained_layers":
                continue
            value = getattr(preset, field)
            assert {value.hidden, value.both} <= set(choices) if isinstance(value, PerLayers) else value in choices


def test_step_on_the_loss_of_the_paper():
    """Mean loss is (2 / N) L, so the released step on L is 0.0015."""
    preset = PRESETS["as_released"]
    assert preset.learning_rate.hidden * 2 / preset.num_samples == pytest.approx(0.0015)


def test_tolerance_in_terms_of_the_relative_error():
    assert protocol.relative_tolerances(200) == {"as_written": 2.5e-3, "as_released": pytest.approx(0.188, abs=5e-4)}


def test_fingerprint_sees_the_science_and_nothing_else():
    layers = ("hidden", "both")
    science = protocol.science(PRESETS["as_written"], layers)
    name = protocol.fingerprint(science)
    assert len(name) == 12
    assert name == protocol.fingerprint(dict(reversed(science.items())))
    seen = {name}
    for field in dataclasses.fields(protocol.Protocol):
        if field.name in ("name", "trajectories", "flow_time", "path_tolerance"):
            changed = dataclasses.replace(PRESETS["as_written"], **{field.name: "other"})
            assert protocol.fingerprint(protocol.science(changed, layers)) == name
        elif field.name not in ("output_law", "learning_rate"):
            changed = dataclasses.replace(PRESETS["as_written"], **{field.name: 77})
            seen.add(protocol.fingerprint(protocol.science(changed, layers)))
    assert len(seen) == 1 + len(dataclasses.fields(protocol.Protocol)) - 6
    assert protocol.fingerprint(protocol.science(PRESETS["as_written"], ("hidden",))) not in seen
