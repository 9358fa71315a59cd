"""How many steps of mini-batch SGD: the shape of Theorem 5.1's k*, linear in log(1 / epsilon) and proportional to 1 / (eta b).

python -m sweeps.step_counts --out=DIR

From the same starts, descent without momentum with every learning rate eta and batch size b, until the loss L is below every epsilon. Reported are the steps
(median over the seeds, with its interval), the flow time k eta b / N that they stand for, the fitted exponent of eta b, and how straight the flow time is in
log(1 / epsilon). float64. DIR gets results.zarr, summary.csv and the figure; the same command goes on after an interruption.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pandas
import xarray as xr
from absl import flags
from matplotlib.figure import Figure

from relu_sgd import Descent
from relu_sgd.descent import DescentState
from relu_sgd.network import TrainedLayers
from sweeps import arithmetic, experiment, figures, launch
from sweeps.engine import Timings
from sweeps.launch import Launcher, Sweep
from sweeps.plan import Tile
from sweeps.protocol import PRESETS, for_layers, parts_of
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
from sweeps.statistics import fitted_slope, median_interval
from sweeps.store import Store

__all__ = ["LAUNCHER", "StepCounts", "count_steps", "fits", "read", "run", "summarize"]

_FLAGS: FlagTable = {
    "trained_layers": (several(choice("trained_layers")), "both", "set-ups, a comma list of hidden and both"),
    "num_samples": (whole(2), "40", "N, even"),
    "d0": (whole(1), "20", "input dimension"),
    "d1": (whole(1), "200", "width of the hidden layer; even when V is fixed"),
    "num_seeds": (whole(1), "10", "data sets and starts per cell"),
    "base_seed": (whole(0, 2**32 - 1), "0", "random seed of the whole sweep"),
    "learning_rate": (
        several(number(0, low_in=False)),
        "0.0001,0.0002,0.0004,0.0008",
        "eta, increasing; the step on L^b, the half sum over the batch",
    ),
    "batch_size": (parse_sizes, "5,10,20,40", "b, increasing, at most N"),
    "epsilon": (several(number(0, low_in=False)), "1,0.1,0.01,0.001,0.0001", "losses L to get below, decreasing"),
    "max_steps": (whole(1), "200000", "steps at most"),
}


@dataclasses.dataclass(frozen=True)
class StepCounts:
    """What the flags say; the fields are the flags."""

    trained_layers: tuple[TrainedLayers, ...]
    num_samples: int
    d0: int
    d1: int
    num_seeds: int
    base_seed: int
    learning_rate: tuple[float, ...]
    batch_size: tuple[int, ...]
    epsilon: tuple[float, ...]
    max_steps: int


def read(values: flags.FlagValues) -> tuple[StepCounts, Execution]:
    """The settings that the flags describe.

    Raises:
      UsageError: a value is not allowed, or flags contradict each other.
    """
    execution = read_execution(values)
    chosen = StepCounts(**parse_all(_FLAGS, values))
    if chosen.num_samples % 2:
        raise UsageError(f"--num_samples: {chosen.num_samples} is odd, and balanced labels need an even number")
    if chosen.batch_size[-1] > chosen.num_samples:
        raise UsageError(f"--batch_size: {chosen.batch_size[-1]} exceeds --num_samples={chosen.num_samples}")
    if "hidden" in chosen.trained_layers and chosen.d1 % 2:
        raise UsageError(f"--d1: {chosen.d1} is odd, and half of the fixed V0 is positive")
    if list(chosen.learning_rate) != sorted(chosen.learning_rate):
        raise UsageError("--learning_rate: values must increase")
    if list(chosen.epsilon) != sorted(chosen.epsilon, reverse=True):
        raise UsageError("--epsilon: values must decrease")
    return chosen, execution


def count_steps(
    chosen: StepCounts, layers: TrainedLayers, learning_rate: float, batch_size: int, run: experiment.Run
) -> dict[str, jax.Array]:
    """One run: the first step at which L is below every epsilon, -1 for never."""
    descent = Descent(
        optax.sgd(learning_rate),
        trained_layers=layers,
        batch_size=None if batch_size == chosen.num_samples else batch_size,
    )
    key = arithmetic.wrap(run.batches)

    def reach(state: DescentState, epsilon: jax.Array) -> tuple[DescentState, jax.Array]:
        towards = dataclasses.replace(descent, criterion=lambda losses, problem: jnp.sum(losses) < epsilon)
        state = towards.advance_to(state._replace(meets=state.loss < epsilon), chosen.max_steps)
        return state, jnp.where(state.meets, state.step, -1)

    end, steps = jax.lax.scan(reach, descent.init(run.problem, run.params, key), jnp.asarray(chosen.epsilon))
    diverged = ~jnp.isfinite(end.loss)
    status = jnp.where(diverged, 3, jnp.where(end.meets, 1, 2)).astype(jnp.int8)
    return {f"steps_{index}": steps[index] for index in range(len(chosen.epsilon))} | {"status": status}


def _metrics(chosen: StepCounts) -> dict[str, tuple[Any, str]]:
    return {
        **{f"steps_{i}": (np.int32, f"first step with L < {epsilon:g}; -1 for never") for i, epsilon in enumerate(chosen.epsilon)},
        "status": (np.int8, "0 pending, 1 below the least epsilon, 2 step limit, 3 diverged"),
    }  # fmt: skip


def run_tile(chosen: StepCounts, lanes: int, num_devices: int, tile: Tile) -> tuple[dict[str, np.ndarray], Timings]:
    """All seeds of a learning rate and batch size, from the same starts."""
    layers, _ = parts_of(tile.setup)
    protocol = dataclasses.replace(
        for_layers(PRESETS["as_written"], layers),
        num_samples=chosen.num_samples,
        base_seed=chosen.base_seed,
        precision="float64",
    )
    networks = Tile(layers, (chosen.d0,), (chosen.d1,), 0, 0, chosen.num_seeds)
    follow = lambda rate, size: functools.partial(count_steps, chosen, layers, rate, int(size))
    devices = jax.local_devices()[: num_devices or None]
    return experiment.map_cells(protocol, networks, tile, follow, lanes=lanes, devices=devices)


def summarize(results: dict[str, xr.Dataset], chosen: dict[str, Any]) -> pandas.DataFrame:
    """A row per set-up, learning rate, batch size and epsilon."""
    rows = []
    for setup, data in results.items():
        for i, rate in enumerate(data["learning_rate"].values):
            for j, size in enumerate(data["batch_size"].values):
                done = data["status"].values[i, j] != 0
                for k, epsilon in enumerate(chosen["epsilon"]):
                    steps = data[f"steps_{k}"].values[i, j][done]
                    reached = steps >= 0
                    # A run that never got there took longer than any that did.
                    median, low, high, coverage = median_interval(np.where(reached, steps, np.inf))
                    rows.append(
                        {
                            "trained_layers": setup,
                            "learning_rate": float(rate),
                            "batch_size": int(size),
                            "epsilon": epsilon,
                            "runs": int(done.sum()),
                            "reached": int(reached.sum()),
                            "diverged": int((data["status"].values[i, j] == 3).sum()),
                            "steps": median,
                            "steps_low": low,
                            "steps_high": high,
                            "coverage": coverage,
                            "flow_time": median * float(rate) * int(size) / chosen["num_samples"],
                        }
                    )
    return pandas.DataFrame(rows)


def fits(table: pandas.DataFrame) -> pandas.DataFrame:
    """The two shapes of (15): a row per set-up and epsilon for the exponent of eta b, a row per cell for log(1 / epsilon)."""
    rows = []
    finite = table[np.isfinite(table["steps"]) & (table["steps"] > 0)]
    for (setup, epsilon), part in finite.groupby(["trained_layers", "epsilon"]):
        size = np.log(part["learning_rate"] * part["batch_size"])
        slope, low, high = fitted_slope(size.to_numpy(), np.log(part["steps"]).to_numpy())
        rows.append(dict(trained_layers=setup, shape="steps ~ (eta b)^p", at=f"epsilon = {epsilon:g}", value=slope, low=low, high=high, points=len(part)))  # fmt: skip
    for (setup, rate, size), part in finite.groupby(["trained_layers", "learning_rate", "batch_size"]):
        slope, low, high = fitted_slope(-np.log(part["epsilon"]).to_numpy(), part["flow_time"].to_numpy())
        rows.append(dict(trained_layers=setup, shape="flow time / log(1/epsilon)", at=f"eta = {rate:g}, b = {size}", value=slope, low=low, high=high, points=len(part)))  # fmt: skip
    return pandas.DataFrame(rows, columns=["trained_layers", "shape", "at", "value", "low", "high", "points"])


def _draw(table: pandas.DataFrame, caption: str) -> Figure:
    setups = list(dict.fromkeys(table["trained_layers"]))
    figure = Figure(figsize=(10, 4.6 * len(setups)), layout="constrained")
    grid = np.atleast_2d(figure.subplots(len(setups), 2))
    figure.suptitle("Steps of mini-batch SGD to a loss below epsilon")
    figures.add_caption(figure, caption)
    for (left, right), setup in zip(grid, setups, strict=True):
        # No log axis shows the 0 steps of a start that is there already.
        part = table[(table["trained_layers"] == setup) & np.isfinite(table["steps"]) & (table["steps"] > 0)]
        epsilons = sorted(set(part["epsilon"]), reverse=True)
        colours = figures.shades(len(epsilons))
        cells = part.groupby(["learning_rate", "batch_size"])
        for index, epsilon in enumerate(epsilons):
            rows = part[part["epsilon"] == epsilon]
            x, colour = rows["learning_rate"] * rows["batch_size"], colours[index]
            high = np.where(np.isfinite(rows["steps_high"]), rows["steps_high"], rows["steps"])
            spread = np.stack([rows["steps"] - rows["steps_low"], high - rows["steps"]])
            left.errorbar(
                x, rows["steps"], spread, fmt="o", color=colour, markersize=4, label=rf"$\epsilon = {epsilon:g}$"
            )
            if len(rows):
                ends = np.array([x.min(), x.max()])
                left.plot(ends, np.exp(np.mean(np.log(rows["steps"] * x))) / ends, "-", color=colour, linewidth=0.8)
        for index, ((rate, size), rows) in enumerate(cells):
            right.plot(
                1 / rows["epsilon"],
                rows["flow_time"],
                "o-",
                markersize=3,
                linewidth=0.8,
                color=figures.shades(len(cells))[index],
                label=rf"$\eta = {rate:g}, b = {size}$",
            )
        figures.set_log_x(left, np.outer(sorted(set(table["learning_rate"])), sorted(set(table["batch_size"]))).ravel())
        if len(part):
            left.set_yscale("log")
        left.set_xlabel(r"$\eta b$ (lines: slope $-1$)")
        left.set_ylabel("steps (median and interval)")
        figures.set_log_x(right, 1 / table["epsilon"].to_numpy())
        right.set_xlabel(r"$1 / \epsilon$")
        right.set_ylabel(r"flow time $k \eta b / N$ (median)")
        left.set_title(figures.setup_title(setup), fontsize="medium")
        if len(part):
            left.legend(fontsize="x-small")
            right.legend(fontsize="xx-small", ncols=2)
    return figure  # fmt: skip


def report(store: Store, execution: Execution) -> None:
    """Writes the tables and the figure from the store, and prints the fits.

    Raises:
      UsageError: the store is damaged or of another launcher, or the folder cannot be written.
    """
    out = execution.out
    with reporting(out):
        store.verify()
        science, configuration = store.attributes["science"], store.attributes["configuration"]
        results = {setup: store.read(setup) for setup in store.attributes["setups"]}
        table = summarize(results, science)
        shapes = fits(table)
        caption = (
            f"N = {science['num_samples']}, d0 = {science['d0']}, d1 = {science['d1']}, {science['num_seeds']} seeds, no momentum, float64. "
            f"Configuration {configuration}."
        )
        figures.save(_draw(table, caption), out / "figures", "step_counts", configuration)
        table.to_csv(out / "summary.csv", index=False, float_format="%.6g")
        shapes.to_csv(out / "fits.csv", index=False, float_format="%.4g")
    print(
        shapes.to_string(index=False, float_format="%.3g")
        if len(shapes)
        else "no loss was reached, so nothing is fitted"
    )
    exponents = shapes[shapes["shape"].str.startswith("steps")]
    times = shapes[shapes["shape"].str.startswith("flow")]
    if exponents["value"].notna().any() and times["value"].notna().any():
        print(
            f"\nsteps are proportional to (eta b)^p with p from {exponents['value'].min():.3f} to {exponents['value'].max():.3f} (Theorem 5.1: -1); "
            f"an e-fold of epsilon costs a flow time of {times['value'].min():.3g} to {times['value'].max():.3g} over all eta and b"
        )
    print(
        f"{caption}\nfigure: {out / 'figures' / 'step_counts.png'}\nsummary: {out / 'summary.csv'} ({len(table)} rows)"
    )


def run(chosen: tuple[StepCounts, Execution]) -> None:
    """The whole sweep: what is pending is computed, then the figure is drawn."""
    asked, execution = chosen
    science, lines = launch.science_of(asked)
    sweep = Sweep(
        protocol_name="",
        flags=lines,
        science=science,
        setups=asked.trained_layers,
        d0=asked.learning_rate,
        d1=asked.batch_size,
        num_seeds=asked.num_seeds,
        precision="float64",
        metrics=_metrics(asked),
        run_tile=functools.partial(run_tile, asked, execution.lanes, execution.num_devices),
        axes=("learning_rate", "batch_size"),
        cost=lambda tile: sum(1 / rate for rate in tile.d0) * sum(1 / size for size in tile.d1),
    )
    launch.complete(sweep, execution, lambda store: report(store, execution))


LAUNCHER = Launcher("step_counts", __doc__, read, run, ("sweeps.step_counts", "sweeps.settings"), _FLAGS)

if __name__ == "__main__":
    launch.main(LAUNCHER)
