"""Gradient descent against the differential inclusion as the step goes to 0: Theorem 5.5, and whose zeros the paper counts.

python -m sweeps.inclusion_limit --out=DIR

From the same start, descent without momentum with every step size, its interpolated process (17) compared with the inclusion on
[0, T] (at times where both are iterates; mini-batches of b samples run on the time scale N / b); and a long descent with momentum
on the mean loss, as the released code runs it, whose numerical zeros are compared with the set of preactivations that slide at the
same flow time. float64. DIR gets results.zarr, summary.csv and figures; the same command goes on after an interruption.
"""

import dataclasses
import functools
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pandas
import xarray as xr
from absl import flags
from matplotlib.figure import Figure

from relu_sgd import descend, inclusion, loss, measurements
from relu_sgd.network import TrainedLayers
from sweeps import experiment, figures, launch
from sweeps.engine import Timings, in_one_go, run_on_devices
from sweeps.launch import Launcher, Sweep
from sweeps.plan import Tile
from sweeps.protocol import PRESETS, Protocol, for_layers, parts_of
from sweeps.report import reporting
from sweeps.settings import (
    Execution,
    FlagTable,
    UsageError,
    choice,
    number,
    parse_all,
    parse_sizes,
    read_execution,
    several,
    whole,
)
from sweeps.statistics import mean_interval
from sweeps.store import Store

__all__ = ["LAUNCHER", "Limit", "fitted_rate", "read", "run", "summarize"]

_METRICS: dict[str, tuple[Any, str]] = {
    "zeros": (np.int32, "preactivations of the long descent below 1e-8; -1 when it diverged"),
    "sliding": (np.int32, "preactivations that the inclusion holds at 0 at the same flow time"),
    "zeros_that_slide": (np.int32, "preactivations that are both"),
    "resting": (np.int32, "neurons of the inclusion that rest at W_j = 0"),
    "long_relative_error": (np.float64, "||Y - Yhat|| / ||Y|| of the long descent at its end"),
    "inclusion_relative_error": (np.float64, "||Y - Yhat|| / ||Y|| of the inclusion at the same flow time"),
    "energy_residual": (np.float64, "|L(0) - L(T) - integral of ||theta'||^2| / L(0) of the inclusion on [0, T]"),
    "branched_at": (np.float64, "first flow time at which solutions branch; infinite for never"),
    "status": (np.int8, "0 pending, 1 done, 2 the inclusion stopped early, 3 a descent diverged"),
}

# Flag to parser, default and help.
_FLAGS: FlagTable = {
    "trained_layers": (
        several(choice("trained_layers")),
        "hidden",
        "set-ups, a comma list of hidden (V stays fixed) and both",
    ),
    "num_samples": (several(whole(1)), "40,100,200", "N, a comma list; even, for balanced labels"),
    "d0": (parse_sizes, "20", "input dimensions: start:stop:step with both ends in, or a comma list"),
    "d1": (parse_sizes, "20,50", "widths of the hidden layer; even when V is fixed"),
    "num_seeds": (whole(1), "5", "runs per cell"),
    "base_seed": (whole(0, 2**32 - 1), "0", "random seed of the whole sweep"),
    "batch_size": (whole(0), "0", "samples per step of the compared descent; 0 for all of them"),
    "horizon": (number(0, low_in=False), "2", "T, in flow time of L = 1/2 ||Y - Yhat||^2"),
    "num_records": (whole(1), "40", "times in (0, T] at which the two are compared"),
    "step_sizes": (
        several(number(0, low_in=False)),
        "0.05,0.025,0.0125,0.00625,0.003125",
        "eta, decreasing; T / num_records must be a whole number of steps (of eta b / N each, with mini-batches); "
        "both layers need shorter ones, below 2 / ||DY||^2",
    ),
    "energy_tolerance": (number(1e-12, 1), "1e-4", "of the inclusion on [0, T], see relu_sgd.inclusion.solve"),
    "long_steps": (whole(1), "20000", "steps of the long descent: mean loss, rate 0.15, momentum 0.9, all samples"),
}


@dataclasses.dataclass(frozen=True)
class Limit:
    """What the flags say of the comparison; the fields are the flags, and the set-ups."""

    trained_layers: tuple[TrainedLayers, ...]
    num_samples: tuple[int, ...]
    d0: tuple[int, ...]
    d1: tuple[int, ...]
    num_seeds: int
    base_seed: int
    batch_size: int
    horizon: float
    num_records: int
    step_sizes: tuple[float, ...]
    energy_tolerance: float
    long_steps: int


LONG_RATE, LONG_MOMENTUM = 0.15, 0.9


def steps_per_record(limit: Limit, num_samples: int, step_size: float) -> int:
    """How many steps lie between two records.

    Raises:
      UsageError: the number is not whole.
    """
    share = limit.batch_size / num_samples if limit.batch_size else 1.0
    count = limit.horizon / limit.num_records / (step_size * share)
    if abs(count - round(count)) > 1e-6 * count or round(count) < 1:
        raise UsageError(
            f"--step_sizes: {step_size:g} fits {count:g} times into T / num_records at N = {num_samples}, "
            "which is not a whole number"
        )
    return round(count)


def read(values: flags.FlagValues) -> tuple[Limit, Execution]:
    """The settings that the flags describe.

    Raises:
      UsageError: a value is not allowed, or flags contradict each other.
    """
    execution = read_execution(values)
    limit = Limit(**parse_all(_FLAGS, values))
    if odd := [size for size in limit.num_samples if size % 2]:
        raise UsageError(f"--num_samples: {odd[0]} is odd, and balanced labels need an even number")
    if "hidden" in limit.trained_layers and (odd := [size for size in limit.d1 if size % 2]):
        raise UsageError(f"--d1: {odd[0]} is odd, and half of the fixed V0 is positive")
    if limit.batch_size > min(limit.num_samples):
        raise UsageError(f"--batch_size: {limit.batch_size} exceeds N = {min(limit.num_samples)}")
    if list(limit.step_sizes) != sorted(limit.step_sizes, reverse=True) or len(limit.step_sizes) < 2:
        raise UsageError("--step_sizes: give at least two, decreasing")
    for num_samples in limit.num_samples:
        for step_size in limit.step_sizes:
            steps_per_record(limit, num_samples, step_size)
    return limit, execution


def _metrics(limit: Limit) -> dict[str, tuple[Any, str]]:
    distances = {
        f"distance_{index}": (np.float64, f"sup over the records of ||theta(t) - theta^eta(t)||, eta = {step_size:g}")
        for index, step_size in enumerate(limit.step_sizes)
    }
    return {**distances, **_METRICS}


def _protocol(limit: Limit, num_samples: int) -> Protocol:
    return dataclasses.replace(
        PRESETS["as_written"], num_samples=num_samples, base_seed=limit.base_seed, precision="float64"
    )


def compare(limit: Limit, trained_layers: TrainedLayers, run: experiment.Run) -> dict[str, jax.Array]:
    """One run: the distances, and the zeros against the sliding set; see `_METRICS`."""
    params, problem = run.params, run.problem
    num_samples = problem.X.shape[0]
    times = jnp.arange(1, limit.num_records + 1) * (limit.horizon / limit.num_records)
    follow = functools.partial(
        inclusion.solve, params, problem, trained_layers=trained_layers, stop_at_branching=False, max_steps=10**7
    )
    truth = follow(times, tolerance=limit.energy_tolerance)
    norm = lambda a, b: jnp.sqrt(jnp.sum((a.W - b.W) ** 2, axis=(1, 2)) + jnp.sum((a.V - b.V) ** 2, axis=(1, 2)))
    records: dict[str, jax.Array] = {}
    diverged = jnp.bool_(False)
    for index, step_size in enumerate(limit.step_sizes):
        every = steps_per_record(limit, num_samples, step_size)
        path = descend(
            params,
            problem,
            num_steps=every * limit.num_records,
            optimizer=optax.sgd(step_size),
            trained_layers=trained_layers,
            batch_size=limit.batch_size or None,
            key=jax.random.wrap_key_data(run.batches),
            stop="never",
            measure=lambda p: p,
            measure_every=every,
        )
        distance = jnp.max(norm(jax.tree.map(lambda leaf: leaf[1:], path.measurements), truth.params))
        records[f"distance_{index}"] = jnp.where(jnp.isfinite(distance), distance, jnp.inf)
        diverged |= ~jnp.isfinite(distance)

    long = descend(
        params,
        problem,
        num_steps=limit.long_steps,
        optimizer=optax.sgd(LONG_RATE, momentum=LONG_MOMENTUM),
        normalization="mean",
        trained_layers=trained_layers,
        stop="never",
    )
    flow_time = limit.long_steps * LONG_RATE / (1 - LONG_MOMENTUM) * 2 / num_samples
    end = follow(flow_time, tolerance=max(limit.energy_tolerance, 1e-3))
    is_zero = (jnp.abs(problem.X @ long.params.W) < 1e-8) & run.neurons
    long_diverged = ~jnp.isfinite(long.loss)
    stopped = (truth.status != inclusion.Status.REACHED) | (end.status != inclusion.Status.REACHED)
    label_norm = jnp.linalg.norm(problem.Y)
    return records | {
        "zeros": jnp.where(long_diverged, -1, jnp.sum(is_zero, dtype=jnp.int32)),
        "sliding": jnp.sum(end.sliding[0] & run.neurons, dtype=jnp.int32),
        "zeros_that_slide": jnp.sum(end.sliding[0] & is_zero, dtype=jnp.int32),
        "resting": end.resting[0],
        "long_relative_error": jnp.where(long_diverged, jnp.inf, measurements.relative_error(long.params, problem)),
        "inclusion_relative_error": jnp.sqrt(2 * end.loss[0]) / label_norm,
        "energy_residual": jnp.abs(truth.energy_residual[-1]) / loss(params, problem),
        "branched_at": jnp.minimum(truth.branched_at, end.branched_at),
        "status": jnp.where(diverged | long_diverged, 3, jnp.where(stopped, 2, 1)).astype(jnp.int8),
    }


def _setup(layers: str, num_samples: int) -> str:
    return f"{layers}_N{num_samples}"


def run_tile(limit: Limit, tile: Tile) -> tuple[dict[str, np.ndarray], Timings]:
    """All runs of a tile, one after another on every device."""
    name, _, size = tile.setup.partition("_N")
    trained_layers, _ = parts_of(name)
    begun = time.perf_counter()
    runs = experiment.draw_tile(for_layers(_protocol(limit, int(size)), trained_layers), tile)
    drawing = time.perf_counter() - begun
    work = in_one_go(functools.partial(compare, limit, trained_layers))
    records, timings = run_on_devices(work, runs, lanes=1, devices=jax.local_devices())
    jax.clear_caches()
    return records, {"drawing": drawing, **timings}


def fitted_rate(step_sizes: np.ndarray, distances: np.ndarray) -> float:
    """The slope of log distance against log step size; NaN when a distance is not finite and positive."""
    if not (np.isfinite(distances).all() and (distances > 0).all()):
        return float("nan")
    return float(np.polyfit(np.log(step_sizes), np.log(distances), 1)[0])


def summarize(results: dict[str, xr.Dataset], step_sizes: tuple[float, ...]) -> pandas.DataFrame:
    """A row per set-up and cell: the fitted rate with its interval over the seeds, and zeros beside sliding."""
    rows = []
    for setup, data in results.items():
        distances = np.stack([data[f"distance_{index}"].values for index in range(len(step_sizes))], axis=-1)
        layers, _, size = setup.partition("_N")
        for i, d0 in enumerate(data["d0"].values):
            for j, d1 in enumerate(data["d1"].values):
                done = data["status"].values[i, j] != 0
                rates = np.array([fitted_rate(np.array(step_sizes), row) for row in distances[i, j][done]])
                cell = {name: data[name].values[i, j][done].astype(float) for name in _METRICS}
                finite = cell["zeros"] >= 0
                mean, low, high = mean_interval(rates)
                rows.append(
                    {
                        "trained_layers": layers,
                        "num_samples": int(size),
                        "d0": int(d0),
                        "d1": int(d1),
                        "runs": int(done.sum()),
                        "rates": int(np.isfinite(rates).sum()),
                        "rate": mean,
                        "rate_low": low,
                        "rate_high": high,
                        "median_smallest_distance": float(np.median(distances[i, j][done][:, -1])) if done.any() else np.nan,
                        **{name: float(cell[name][finite].mean()) if finite.any() else np.nan for name in
                           ("zeros", "sliding", "zeros_that_slide", "resting", "long_relative_error", "inclusion_relative_error")},
                        "branched": int(np.isfinite(cell["branched_at"]).sum()),
                        "stopped_early": int((cell["status"] == 2).sum()),
                        "diverged": int((cell["status"] == 3).sum()),
                    }
                )  # fmt: skip
    return pandas.DataFrame(rows)


def _draw(results: dict[str, xr.Dataset], step_sizes: tuple[float, ...], caption: str) -> Figure:
    figure = Figure(figsize=(10, 4.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    figure.suptitle("Gradient descent and the differential inclusion")
    figures.add_caption(figure, caption)
    largest = 1.0
    for index, (setup, data) in enumerate(results.items()):
        layers, _, size = setup.partition("_N")
        label, colour = f"{layers}, N = {size}", f"C{index}"
        done = data["status"].values != 0
        distances = np.stack([data[f"distance_{k}"].values[done] for k in range(len(step_sizes))], axis=-1)
        distances = distances[np.isfinite(distances).all(axis=-1)]
        if len(distances):
            low, middle, high = np.percentile(distances, [10, 50, 90], axis=0)
            left.fill_between(step_sizes, low, high, color=colour, alpha=0.2, linewidth=0)
            left.plot(step_sizes, middle, "o-", color=colour, label=label)
        kept = done & (data["zeros"].values >= 0)
        right.plot(data["sliding"].values[kept], data["zeros"].values[kept], "o", color=colour, alpha=0.7, label=label)
        largest = max(largest, *data["sliding"].values[kept], *data["zeros"].values[kept]) if kept.any() else largest
    ends = np.array([min(step_sizes), max(step_sizes)])
    if left.lines:
        anchor = np.median([line.get_ydata()[0] for line in left.lines])  # type: ignore[index]
        left.plot(ends, anchor * ends / ends[1], "k--", linewidth=1, label="slope 1")
        left.set_xscale("log")
        left.set_yscale("log")
        left.set_xticks(step_sizes, [f"{step_size:g}" for step_size in step_sizes], fontsize="small")
        left.minorticks_off()
        left.legend(fontsize="small")
    left.set_xlabel(r"step size $\eta$")
    left.set_ylabel(r"$\sup_{t \leq T} \|\theta(t) - \bar\theta^\eta(t)\|$ (median, 10 to 90 percent)")
    right.plot([0, largest], [0, largest], "k--", linewidth=1, label="equal")
    right.set_xlabel("preactivations that the inclusion holds at 0")
    right.set_ylabel(r"preactivations of descent with $|Z_{ij}| < 10^{-8}$")
    right.legend(fontsize="small")
    return figure


def report(store: Store, out: Any) -> None:
    """Writes summary.csv and the figure from the store, and prints the table.

    Raises:
      UsageError: the store is damaged or of another launcher, or the folder cannot be written.
    """
    with reporting(out):
        store.verify()
        science = store.attributes["science"]
        step_sizes = tuple(science["step_sizes"])
        results = {setup: store.read(setup) for setup in store.attributes["setups"]}
        table = summarize(results, step_sizes)
        caption = (
            f"T = {science['horizon']:g}, {science['num_seeds']} seeds, batch size {science['batch_size'] or 'N'}, float64; "
            f"long descent: mean loss, rate {LONG_RATE}, momentum {LONG_MOMENTUM}, {science['long_steps']:,} steps. "
            f"Configuration {store.attributes['configuration']}."
        )
        figures.save(
            _draw(results, step_sizes, caption), out / "figures", "inclusion_limit", store.attributes["configuration"]
        )
        table.to_csv(out / "summary.csv", index=False, float_format="%.6g")
    print(
        table.drop(columns=["long_relative_error", "median_smallest_distance"]).to_string(
            index=False, float_format="%.3g"
        )
    )
    zeros, sliding, both = (table[name].sum() for name in ("zeros", "sliding", "zeros_that_slide"))
    mean, low, high = mean_interval(table["rate"].to_numpy())
    print(f"\nfitted rate over the cells: {mean:.2f} (95 percent interval {low:.2f} to {high:.2f})")
    print(
        f"of the numerical zeros of descent, {both / zeros if zeros else float('nan'):.1%} slide in the inclusion; of what "
        f"slides there, {both / sliding if sliding else float('nan'):.1%} is a numerical zero of descent"
    )
    print(
        f"{caption}\nfigure: {out / 'figures' / 'inclusion_limit.png'}\nsummary: {out / 'summary.csv'} ({len(table)} rows)"
    )


def run(chosen: tuple[Limit, Execution]) -> None:
    """The whole comparison: what is pending is computed, then the figure is drawn."""
    limit, execution = chosen
    science, lines = launch.science_of(limit)
    sweep = Sweep(
        protocol_name="",
        flags=lines,
        science=science,
        setups=tuple(_setup(layers, size) for layers in limit.trained_layers for size in limit.num_samples),
        d0=limit.d0,
        d1=limit.d1,
        num_seeds=limit.num_seeds,
        precision="float64",
        metrics=_metrics(limit),
        run_tile=functools.partial(run_tile, limit),
    )
    # One compiled program a set-up; the cells differ little.
    whole_grid = (len(limit.d0), len(limit.d1))
    launch.complete(sweep, execution, lambda store: report(store, execution.out), block=whole_grid)


LAUNCHER = Launcher("inclusion_limit", __doc__, read, run, ("sweeps.inclusion_limit", "sweeps.settings"), _FLAGS)

if __name__ == "__main__":
    launch.main(LAUNCHER)
