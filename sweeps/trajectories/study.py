"""What happens along training: Figure 3, and whether training is lazy.

python -m sweeps.trajectories --out=DIR [--preset=quick] [--protocol=as_released]

Networks of several widths are trained for the whole of --num_steps and recorded every so many steps: loss, numerical zeros, changes of the activation
pattern, the relative change of the loss and of the differential in both of its meanings, distances from the start, alpha_0, dead neurons and samples. The flags of
a protocol are those of the convergence map, with the values of Figure 3 for the preset's: d0 = 20, d1 = 200, 752, 2828, 5 seeds, float64, no stopping.
DIR gets results.zarr with every seed's curve, summary.csv and figures; the same command goes on after an interruption, in the middle of a run.
"""

import dataclasses
import functools
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pandas
import xarray as xr
from absl import flags
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sweeps import experiment, figures, launch, protocol_settings, recording
from sweeps.runtime.engine import Timings
from sweeps.launch import Launcher, Sweep
from sweeps.plan import Tile
from sweeps.protocol import Protocol, for_setup, parts_of, science, setups
from sweeps.protocol_settings import Settings, flagfile
from sweeps.report import reporting
from sweeps.settings import FlagTable, UsageError, number, one_of, parse_all, whole
from sweeps.store import Store

__all__ = ["LAUNCHER", "distinct_regions", "pattern_freezes", "read", "report", "run", "run_tile", "tables"]

PRESETS = ("full", "quick")


_FLAGS: FlagTable = {
    "preset": (
        one_of(PRESETS),
        "full",
        "full: Figure 3's sizes; quick: d1 = 50, 100, 200, 2 seeds, 1500 steps, a record every 25; any flag overrides it",
    ),
    "measure_every": (whole(0), "0", "steps between two records; 0 for the preset's (100 in Figure 3)"),
    "checkpoint_seconds": (number(0), "30", "seconds between two checkpoints inside a run; decides nothing"),
}


# Of a protocol: no run stops before its last step.
_NO_EFFECT = ("stop", "criterion", "tolerance")


@dataclasses.dataclass(frozen=True)
class Trajectories:
    """What the flags say.

    Attributes:
      settings: protocol, set-ups and execution, as of a convergence map.
      measure_every: steps between two records.
      checkpoint_seconds: between two checkpoints.
    """

    settings: Settings
    measure_every: int
    checkpoint_seconds: float

    @property
    def science(self) -> dict[str, Any]:
        """Everything that decides the results."""
        found = science(self.settings.protocol, self.settings.trained_layers)
        return {name: value for name, value in found.items() if name not in _NO_EFFECT} | {
            "measure_every": self.measure_every
        }


def figure_3(preset: str) -> Callable[[Protocol], Protocol]:
    """From a protocol of Figure 2 to that of Figure 3."""

    def adapted(protocol: Protocol) -> Protocol:
        recorded = protocol.trajectories
        protocol = dataclasses.replace(
            protocol, d0=(recorded.d0,), d1=recorded.d1, num_seeds=recorded.num_seeds, num_steps=recorded.num_steps,
            learning_rate=recorded.learning_rate, stop="never", precision="float64",
        )  # fmt: skip
        if preset == "quick":
            protocol = dataclasses.replace(protocol, d1=(50, 100, 200), num_seeds=2, num_steps=1500)
        return protocol

    return adapted


def read(values: flags.FlagValues) -> Trajectories:
    """The settings that the flags describe.

    Raises:
      UsageError: a value is not allowed, or flags contradict each other.
    """
    own = parse_all(_FLAGS, values)
    for name in ("lanes", "steps_per_chunk", "interval", "dynamics", "flow_time", "path_tolerance", *_NO_EFFECT):
        if values[name].present and values[name].value is not None:
            raise UsageError(f"--{name}: has no effect here")
    settings = protocol_settings.read(values, figure_3(own["preset"]))
    if len(settings.protocol.d0) > 1:
        raise UsageError(f"--d0: give one input dimension, not {len(settings.protocol.d0)}")
    every = own["measure_every"] or (25 if own["preset"] == "quick" else settings.protocol.trajectories.measure_every)
    if every > settings.protocol.num_steps:
        raise UsageError(f"--measure_every: {every} exceeds --num_steps={settings.protocol.num_steps}")
    return Trajectories(settings, every, own["checkpoint_seconds"])


def run_tile(chosen: Trajectories, tile: Tile) -> tuple[dict[str, np.ndarray], Timings]:
    """The runs of one width: trained and recorded, from their checkpoints where there are some."""
    begun = time.perf_counter()
    protocol, execution = for_setup(chosen.settings.protocol, tile.setup), chosen.settings.execution
    layers = parts_of(tile.setup)[0]
    if len(tile.d1) > 1:
        raise ValueError(f"a tile of trajectories has one width, got {tile.d1}")
    widest = max(chosen.settings.protocol.d1)
    runs = experiment.draw_tile(protocol, tile, widest)
    # Only d0 is padded here (zero columns of X), which changes nothing that is recorded; the draws of all widths share a program.
    drawing = time.perf_counter() - begun
    cpu = jax.default_backend() == "cpu"
    descent = dataclasses.replace(experiment.descent_of(protocol, layers), criterion=None, stop="never")
    records = recording.follow(
        protocol,
        descent,
        runs,
        recording.steps_to_record(protocol.num_steps, chosen.measure_every),
        lanes=1 if cpu else tile.num_seeds,
        checkpoints=execution.out / "checkpoints" / f"{tile.setup}_{int(tile.d1[0])}",
        configuration=launch.configuration_of(chosen.science),
        seconds_between=chosen.checkpoint_seconds,
    )
    records["status"] = np.where(np.isfinite(records["loss"][:, -1]), 1, 3).astype(np.int8)
    jax.clear_caches()
    return records, {"drawing": drawing, "running": time.perf_counter() - begun - drawing}


def _metrics(precision: str) -> dict[str, tuple[Any, str]]:
    kinds = {name: (kind or np.dtype(precision), text) for name, (kind, text) in recording.RECORDS.items()}
    return {**kinds, "status": (np.int8, "0 pending, 1 trained to the end, 3 diverged")}


def distinct_regions(high: np.ndarray, low: np.ndarray) -> np.ndarray:
    """How many linear regions the records up to each one lie in: seeds x steps, from the halves of their fingerprints."""
    words = high.astype(np.uint64) << np.uint64(32) | low.astype(np.uint64)
    counts = np.zeros(words.shape, int)
    for seed, row in enumerate(words):
        _, first = np.unique(row, return_index=True)
        counts[seed, first] = 1
    return np.cumsum(counts, axis=-1)


def pattern_freezes(steps: np.ndarray, high: np.ndarray, low: np.ndarray) -> np.ndarray:
    """The first recorded step from which on every record lies in one linear region, a seed: the last step if it still moves then."""
    same = (high == high[:, -1:]) & (low == low[:, -1:])
    frozen = np.flip(np.logical_and.accumulate(np.flip(same, axis=-1), axis=-1), axis=-1)
    return steps[np.argmax(frozen, axis=-1)]


def _comparable(cell: xr.Dataset, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Relative loss changes and relative changes of `name`, at the records of the runs that did not diverge, while the error is above rounding."""
    loss_change, change, error = (cell[key].values for key in ("relative_loss_change", name, "relative_error"))
    kept = (cell["status"].values == 1)[:, None] & (error > 1000 * np.finfo(error.dtype).eps) & (loss_change > 0)
    return loss_change[kept], change[kept]


def _median_of_ratio(cell: xr.Dataset, name: str) -> float:
    """The median of relative change of `name` / relative loss change."""
    loss_change, change = _comparable(cell, name)
    return float(np.median(change / loss_change)) if len(change) else float("nan")


def tables(setup: str, results: xr.Dataset) -> pandas.DataFrame:
    """summary.csv: a row per width."""
    rows = []
    for j, d1 in enumerate(results["d1"].values):
        cell = results.isel(d0=0, d1=j)
        done = cell["status"].values != 0
        data = {name: cell[name].values[done] for name in recording.RECORDS}
        steps = cell["step"].values
        finished = np.isfinite(data["loss"][:, -1])
        end = lambda name, d=data, f=finished: float(d[name][f, -1].mean()) if f.any() else float("nan")
        fingerprints = data["pattern_fingerprint_high"], data["pattern_fingerprint_low"]
        rows.append(
            {
                "trained_layers": setup,
                "d1": int(d1),
                "runs": int(done.sum()),
                "diverged": int((~finished).sum()),
                "relative_error": end("relative_error"),
                "numerical_zeros": end("numerical_zeros"),
                "zeros_at_rounding": end("zeros_at_rounding"),
                "pattern_freezes_at": float(np.median(pattern_freezes(steps, *fingerprints)[finished]))
                if finished.any()
                else float("nan"),
                "last_step": int(steps[-1]),
                "regions_of_records": float(distinct_regions(*fingerprints)[finished, -1].mean())
                if finished.any()
                else float("nan"),
                "pattern_changes_from_start": end("pattern_changes_from_start"),
                "hidden_distance": end("hidden_distance"),
                "output_distance": end("output_distance"),
                "least_singular_value": end("least_singular_value"),
                "dead_neurons": end("dead_neurons"),
                "dead_samples": end("dead_samples"),
                "jacobian_over_loss_change": _median_of_ratio(cell, "relative_jacobian_change"),
                "gradient_over_loss_change": _median_of_ratio(cell, "relative_gradient_change"),
            }
        )
    return pandas.DataFrame(rows)


def sentences(table: pandas.DataFrame) -> list[str]:
    """Whether training is far from lazy, in each meaning of the differential, as the data say.

    Chizat et al. call training lazy where the loss changes relatively much more than the differential; the paper finds the opposite for moderate and large widths.
    """
    found = []
    for name, meaning in (
        ("jacobian_over_loss_change", "the Jacobian DY, operator norm (the paper's text)"),
        ("gradient_over_loss_change", "the loss gradient (the released code)"),
    ):
        ratios = table[["trained_layers", "d1", name]].dropna()
        if not len(ratios):
            continue
        above = ratios[ratios[name] > 1]
        least, most = ratios[name].min(), ratios[name].max()
        verdict = (
            "so far from lazy in all of them" if len(above) == len(ratios)
            else "so lazy in all of them" if not len(above)
            else f"so far from lazy in {len(above)} of {len(ratios)} networks"
        )  # fmt: skip
        found.append(
            f"{meaning}: the median of relative differential change / relative loss change is {least:.2g} to {most:.2g}, {verdict}"
        )
    return found


_PANELS = {
    "relative_error": r"$\|\hat Y - Y\| / \|Y\|$",
    "numerical_zeros": "numerical zeros",
    "pattern_changes": "pattern changes in a step",
    "regions": "linear regions among the records",
    "relative_loss_change": r"relative loss change $\Delta L$",
    "relative_jacobian_change": r"relative change of $DY$",
    "relative_gradient_change": "relative change of the gradient",
}


def _honest_log(axes: Axes, curves: list[np.ndarray]) -> None:
    """A log axis where the data span decades, linear below the least positive value, so that zero is on it."""
    positive = np.concatenate([curve[np.isfinite(curve) & (curve > 0)] for curve in curves] or [np.empty(0)])
    zero = any((curve == 0).any() for curve in curves)
    if len(positive) and positive.max() / positive.min() > 100:
        if zero:
            linear = 10 ** np.floor(np.log10(max(positive.min(), positive.max() * 1e-14)))
            axes.set_yscale("symlog", linthresh=linear)
            axes.set_ylim(bottom=-0.3 * linear)
            axes.axhline(0, color="0.8", linewidth=0.6)
        else:
            axes.set_yscale("log")
    elif zero:
        axes.set_ylim(bottom=0 if not len(positive) else -0.02 * positive.max())


def draw(results: dict[str, xr.Dataset], caption: str) -> Figure:
    """Figure 3: a row a set-up, a column a quantity, a colour a width; mean and standard deviation over the seeds."""
    figure = Figure(figsize=(3.1 * len(_PANELS), 3.3 * len(results) + 0.6), layout="constrained")
    grid = np.atleast_2d(figure.subplots(len(results), len(_PANELS), sharex=True))
    figure.suptitle("Training trajectories")
    figures.add_caption(figure, caption)
    for row, (setup, data) in zip(grid, results.items(), strict=True):
        widths, steps = data["d1"].values, data["step"].values
        for axes, (name, label) in zip(row, _PANELS.items(), strict=True):
            curves = []
            for j, d1 in enumerate(widths):
                cell = data.isel(d0=0, d1=j)
                cell = cell.isel(seed=np.flatnonzero(cell["status"].values != 0))
                if not cell.sizes["seed"]:
                    continue
                colour = figures.shades(len(widths))[j]
                high, low = (cell[f"pattern_fingerprint_{half}"].values for half in ("high", "low"))
                values = distinct_regions(high, low) if name == "regions" else cell[name].values
                alive = np.isfinite(cell["loss"].values)
                values = np.where(alive, values, np.nan).astype(float)
                kept = alive.any(axis=0)
                mean, spread = np.nanmean(values[:, kept], axis=0), np.nanstd(values[:, kept], axis=0)
                axes.plot(steps[kept], mean, color=colour, linewidth=1, label=f"$d_1 = {d1}$")
                axes.fill_between(
                    steps[kept], np.maximum(mean - spread, 0), mean + spread, color=colour, alpha=0.2, linewidth=0
                )
                curves.append(mean)
                if not alive[:, -1].all() and kept.any():
                    axes.plot(steps[kept][-1], mean[-1], "x", color="tab:red", markersize=8)
                if alive[:, -1].any():
                    freeze = np.median(pattern_freezes(steps, high, low)[alive[:, -1]])
                    if freeze < steps[-1]:
                        axes.axvline(freeze, color=colour, linestyle=":", linewidth=1)
            _honest_log(axes, curves)
            axes.set_title(label, fontsize="medium")
            figures.set_log_x(axes, steps)
        row[0].set_ylabel(figures.setup_title(setup))
        if row[0].lines:
            row[0].legend(fontsize="x-small")
    for axes in grid[-1]:
        axes.set_xlabel("step")
    return figure


def draw_lazy(results: dict[str, xr.Dataset], caption: str) -> Figure:
    """Relative loss change against relative differential change, in both meanings: lazy lies below the diagonal."""
    names = {"relative_jacobian_change": "the Jacobian $DY$", "relative_gradient_change": "the loss gradient"}
    figure = Figure(figsize=(9, 4.2 * len(results)), layout="constrained")
    grid = np.atleast_2d(figure.subplots(len(results), 2))
    figure.suptitle("Is training lazy? (below the line the loss changes more than the differential)")
    figures.add_caption(figure, caption)
    for row, (setup, data) in zip(grid, results.items(), strict=True):
        for axes, (name, label) in zip(row, names.items(), strict=True):
            shown = []
            for j, d1 in enumerate(data["d1"].values):
                cell = data.isel(d0=0, d1=j)
                x, y = _comparable(cell, name)
                kept = y > 0
                colour = figures.shades(data.sizes["d1"])[j]
                label_of = f"$d_1 = {d1}$" if kept.all() else f"$d_1 = {d1}$ ({(~kept).sum()} of {len(y)} at 0)"
                axes.plot(x[kept], y[kept], ".", color=colour, markersize=3, alpha=0.5, label=label_of)
                shown.append(np.concatenate([x[kept], y[kept]]))
            values = np.concatenate(shown)
            if len(values):
                ends = [values.min(), values.max()]
                axes.plot(ends, ends, "k-", linewidth=0.8)
                axes.set_xscale("log")
                axes.set_yscale("log")
            axes.set_xlabel(r"relative loss change $\Delta L$")
            axes.set_ylabel(f"relative change of {label}")
            axes.set_title(figures.setup_title(setup), fontsize="medium")
            axes.legend(fontsize="x-small", markerscale=3)
    return figure


def report(store: Store, out: Path) -> None:
    """Writes summary.csv and the figures from the store, and prints what they say.

    Raises:
      UsageError: the store is damaged or of another launcher, or the folder cannot be written.
    """
    with reporting(out):
        store.verify()
        attributes = store.attributes
        values, configuration = attributes["science"], attributes["configuration"]
        results = {setup: store.read(setup) for setup in attributes["setups"]}
        caption = (
            f"{attributes['protocol']}: N = {values['num_samples']}, d0 = {values['d0'][0]}, {values['num_seeds']} seeds (mean and standard deviation), "
            f"{values['num_steps']:,} steps, recorded every {values['measure_every']}, {values['precision']}. Dotted: the pattern changes no more (median). "
            f"Red cross: diverged. Configuration {configuration}."
        )
        table = pandas.concat([tables(setup, data) for setup, data in results.items()], ignore_index=True)
        figures.save(draw(results, caption), out / "figures", "trajectories", configuration)
        figures.save(draw_lazy(results, caption), out / "figures", "lazy", configuration)
        table.to_csv(out / "summary.csv", index=False, float_format="%.6g")
    print(table.to_string(index=False, float_format="%.3g"))
    print("\n".join(["", *sentences(table)]))
    print(f"{caption}\nfigures: {out / 'figures'}\nsummary: {out / 'summary.csv'} ({len(table)} rows)")


def run(chosen: Trajectories) -> None:
    """Trains and records what is pending, then draws."""
    protocol, layers, execution = (
        chosen.settings.protocol,
        chosen.settings.trained_layers,
        chosen.settings.execution,
    )
    if execution.block not in (None, (1, 1)):
        raise UsageError("--block: a tile of trajectories has one width: 1x1")
    names = setups(protocol, layers)
    sweep = Sweep(
        protocol_name=protocol.name,
        flags=flagfile(protocol.name, chosen.science),
        science=chosen.science,
        setups=names,
        d0=protocol.d0,
        d1=protocol.d1,
        num_seeds=protocol.num_seeds,
        precision=protocol.precision,
        metrics=_metrics(protocol.precision),
        run_tile=functools.partial(run_tile, chosen),
        records=("step", recording.steps_to_record(protocol.num_steps, chosen.measure_every)),
    )

    def finish(store: Store) -> None:
        if not any(store.pending(setup).any() for setup in names):
            shutil.rmtree(execution.out / "checkpoints", ignore_errors=True)
        report(store, execution.out)

    launch.complete(sweep, execution, finish)


LAUNCHER = Launcher(
    "trajectories",
    __doc__,
    read,
    run,
    ("sweeps.trajectories", "sweeps.protocol_settings", "sweeps.settings"),
    _FLAGS,
)

if __name__ == "__main__":
    launch.main(LAUNCHER)
