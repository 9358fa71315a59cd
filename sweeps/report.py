"""What a finished sweep leaves beside its store: figures, summary.csv and a few lines of text."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import xarray as xr

from sweeps import figures, statistics
from sweeps.protocol import CHOICES, PRESETS, PerLayers, parts_of
from sweeps.settings import INTERVALS, UsageError
from sweeps.store import Store, StoreError

__all__ = ["caption", "report", "reporting", "setups_of", "text_map"]

SCALE = ".123456789#"


def _overrides(science: Mapping[str, Any], protocol: str) -> list[str]:
    """The values that differ from the preset's, as flags; the grid and the number of seeds are named elsewhere."""
    preset, layers = PRESETS[protocol], science["trained_layers"]
    different = []
    for name, value in science.items():
        if name in ("trained_layers", "d0", "d1", "num_seeds", "precision"):
            continue
        usual = getattr(preset, name)
        if isinstance(usual, PerLayers):
            usual = [getattr(usual, setup) for setup in layers]
        if usual != value:
            different.append(f"--{name}={','.join(map(str, value)) if isinstance(value, list) else value}")
    return different


def caption(attributes: Mapping[str, Any]) -> str:
    """Protocol, precision, seeds, stopping, and what the theorems say of the cells: the small print of every figure."""
    science = attributes["science"]
    num_samples, d1 = science["num_samples"], np.asarray(science["d1"])
    overrides = _overrides(science, attributes["protocol"])
    below = int((d1 < num_samples).sum())
    rank = (
        "Every cell has d1 < N, so alpha_0 = sigma_min(H^T) = 0 and the paper's theorems say nothing about it."
        if below == len(d1)
        else f"{below} of {len(d1)} widths are below N: there alpha_0 = 0 and the paper's theorems say nothing."
    )
    return (
        f"Protocol {attributes['protocol']}{' with ' + ' '.join(overrides) if overrides else ''}, {science['precision']}, "
        f"N = {num_samples}, {science['num_seeds']} seeds a cell, {_dynamics(science)};\ncriterion {CHOICES['criterion'][science['criterion']]}, tolerance "
        f"{science['tolerance']:g}. {rank}\nConfiguration {attributes['configuration']}."
    )


def _dynamics(science: Mapping[str, Any]) -> str:
    if science.get("dynamics") == "inclusion":
        return (
            f"the differential inclusion itself, for a flow time of at most {science['flow_time']:g} (path tolerance "
            f"{science['path_tolerance']:g})"
        )
    return f"at most {science['num_steps']:,} steps, {CHOICES['stop'][science['stop']]}"


def text_map(summary: xr.Dataset) -> str:
    """The probabilities as characters: d0 down, d1 across; "." for 0, "#" for 1, digits for tenths (rounded down), blank for
    cells without a run.
    """
    tenths = np.floor(10 * summary["probability"].values + 1e-9)
    d1 = [str(size) for size in summary["d1"].values]
    width = max(map(len, d1)) + 1
    lines = ["d0 \\ d1" + "".join(size.rjust(width) for size in d1)]
    for d0, row in zip(summary["d0"].values[::-1], tenths[::-1], strict=True):
        cells = (" " if np.isnan(tenth) else SCALE[int(tenth)] for tenth in row)
        lines.append(str(d0).rjust(7) + "".join(cell.rjust(width) for cell in cells))
    return "\n".join(lines)


def _counts(setup: str, summary: xr.Dataset) -> str:
    total = {name: int(summary[name].sum()) for name in ("runs", "converged", "step_limit", "dead", "diverged")}
    within = ", ".join(f"{int(summary[f'within_{name}'].sum())} that of {name}" for name in PRESETS)
    return (
        f"{figures.setup_title(setup)}: {total['converged']} of {total['runs']} runs converged; failures: "
        f"{total['step_limit']} at the step limit, {total['dead']} with dead samples, {total['diverged']} diverged\n"
        f"criteria met by the last network: {within}"
    )


def _comparison(summaries: Mapping[str, xr.Dataset]) -> list[str]:
    """Whether the set-ups differ, as far as the intervals can tell."""
    if len(summaries) != 2:
        return []
    (first, a), (second, b) = summaries.items()
    better = int((a["probability_low"] > b["probability_high"]).sum())
    worse = int((b["probability_low"] > a["probability_high"]).sum())
    cells = int((a["runs"] * b["runs"] > 0).sum())
    return [
        f"of {cells} cells, {better} have a probability that is higher in the set-up {first!r} and {worse} one that is "
        f"higher in {second!r}, with 95 percent intervals that do not overlap"
    ]


@contextmanager
def reporting(out: Path) -> Iterator[None]:
    """What can go wrong while a report is written, as one line.

    Raises:
      UsageError: the store is damaged or of another launcher, or the folder cannot be written.
    """
    try:
        yield
    except (StoreError, KeyError, TypeError, ValueError) as error:
        raise UsageError(f"--out: {error}") from error
    except OSError as error:
        raise UsageError(f"--out: cannot write to {out}: {error.strerror or error}") from error


def setups_of(store: Store) -> list[str]:
    """The set-ups of a store; earlier ones named the trained layers alone."""
    return list(store.attributes.get("setups", store.attributes["science"]["trained_layers"]))


def report(store: Store, out: Path, interval: str) -> None:
    """Writes summary.csv and the figures from the store, and prints the maps as text.

    Raises:
      UsageError: the store is damaged or the folder cannot be written.
    """
    with reporting(out):
        store.verify()
        names = setups_of(store)
        summaries = {setup: statistics.summarize(store.read(setup), interval) for setup in names}
        text = caption(store.attributes)
        drawn = {
            "probability": figures.probability(summaries, text),
            "interval_width": figures.intervals(summaries, text, INTERVALS[interval]),
            "numerical_zeros": figures.numerical_zeros(summaries, text),
            "steps": figures.convergence_steps(summaries, text),
            "causes": figures.causes(summaries, text),
        }
        for name, figure in drawn.items():
            figures.save(figure, out / "figures", name, store.attributes["configuration"])
        frames = []
        for setup, summary in summaries.items():
            frame = summary.to_dataframe(dim_order=["d0", "d1"]).reset_index()
            layers, slope = parts_of(setup)
            if slope:
                frame.insert(0, "relu_at_zero", slope)
            frame.insert(0, "trained_layers", layers)
            frames.append(frame)
        table = pandas.concat(frames, ignore_index=True)
        table.to_csv(out / "summary.csv", index=False, float_format="%.6g")
    for setup, summary in summaries.items():
        print(f"\n{_counts(setup, summary)}\n{text_map(summary)}")
    print(f"\n(. is probability 0, # is 1, digits are tenths)\n{text}")
    for line in _comparison(summaries):
        print(line)
    print(f"figure: {out / 'figures' / 'probability.png'}\nsummary: {out / 'summary.csv'} ({len(table)} rows)")
