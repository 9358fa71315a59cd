"""What the numerical zeros depend on: threshold, precision, step size, and the slope of relu at 0.

python -m sweeps.zeros --out=DIR

The networks of one (d0, d1) cell are trained as the released code does, from the same starts, in float32 and float64, with every learning rate and slope; at the
end the preactivations below every threshold are counted. DIR gets results.zarr, summary.csv and the figure; the same command goes on after an interruption.
"""

import dataclasses
import functools
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pandas
import xarray as xr
from absl import flags
from matplotlib.figure import Figure

from relu_sgd import Descent, Status, measurements
from relu_sgd.network import TrainedLayers
from sweeps import experiment, figures, launch
from sweeps.engine import Timings
from sweeps.launch import Launcher, Sweep
from sweeps.plan import Tile
from sweeps.protocol import PRESETS, for_layers
from sweeps.report import reporting
from sweeps.settings import (
    Execution,
    FlagTable,
    UsageError,
    choice,
    number,
    one_of,
    parse_all,
    read_execution,
    several,
    whole,
)
from sweeps.store import Store

__all__ = ["LAUNCHER", "Zeros", "count_zeros", "read", "run", "sentence", "summarize"]

_FLAGS: FlagTable = {
    "trained_layers": (several(choice("trained_layers")), "hidden,both", "set-ups, a comma list of hidden and both"),
    "precision": (several(choice("precision")), "float32,float64", "a comma list"),
    "protocol": (one_of(PRESETS), "as_released", f"one of {', '.join(PRESETS)}: laws, objective and momentum"),
    "num_samples": (whole(2), "200", "N, even"),
    "d0": (whole(1), "20", "input dimension"),
    "d1": (whole(2), "50", "width of the hidden layer, even"),
    "num_seeds": (whole(1), "4", "starts per cell"),
    "base_seed": (whole(0, 2**32 - 1), "0", "random seed of the whole sweep"),
    "num_steps": (whole(1), "24999", "steps, all of which are taken"),
    "learning_rate": (several(number(0, low_in=False)), "0.05,0.15,0.45", "step sizes on the objective, increasing"),
    "relu_at_zero": (several(number(0, 1)), "0,0.5,1", "slopes of relu at 0, increasing"),
    "threshold": (
        several(number(0, low_in=False)),
        "1e-6,1e-7,1e-8,1e-9,1e-10,1e-12,1e-14",
        "preactivations below it in absolute value are counted; decreasing",
    ),
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Zeros:
    """What the flags say; the fields are the flags."""

    trained_layers: tuple[TrainedLayers, ...]
    precision: tuple[str, ...]
    protocol: str
    num_samples: int
    d0: int
    d1: int
    num_seeds: int
    base_seed: int
    num_steps: int
    learning_rate: tuple[float, ...]
    relu_at_zero: tuple[float, ...]
    threshold: tuple[float, ...]


def read(values: flags.FlagValues) -> tuple[Zeros, Execution]:
    """The settings that the flags describe.

    Raises:
      UsageError: a value is not allowed, or flags contradict each other.
    """
    execution = read_execution(values)
    chosen = Zeros(**parse_all(_FLAGS, values))
    for name in ("num_samples", "d1"):
        if getattr(chosen, name) % 2:
            raise UsageError(f"--{name}: {getattr(chosen, name)} is odd")
    for name in ("learning_rate", "relu_at_zero"):
        if list(getattr(chosen, name)) != sorted(getattr(chosen, name)):
            raise UsageError(f"--{name}: values must increase")
    if list(chosen.threshold) != sorted(chosen.threshold, reverse=True):
        raise UsageError("--threshold: values must decrease")
    return chosen, execution


def _setups(chosen: Zeros) -> tuple[str, ...]:
    return tuple(f"{layers}_{precision}" for layers in chosen.trained_layers for precision in chosen.precision)


def _parts(setup: str) -> tuple[TrainedLayers, str]:
    layers, _, precision = setup.partition("_")
    return cast(TrainedLayers, layers), precision


def count_zeros(
    chosen: Zeros, setup: str, learning_rate: float, slope: float, run: experiment.Run
) -> dict[str, jax.Array]:
    """One run to its end, in the precision of the set-up; counts are -1 where it diverged."""
    layers, precision = _parts(setup)
    protocol = PRESETS[chosen.protocol]
    cast_to = lambda leaf: leaf.astype(precision)
    params, problem = jax.tree.map(cast_to, run.params), jax.tree.map(cast_to, run.problem)
    descent = Descent(
        optax.sgd(learning_rate, momentum=protocol.momentum or None),
        normalization=protocol.normalization,
        trained_layers=layers,
        at_zero=slope,
        stop="never",
    )
    end = descent.result(descent.advance_to(descent.init(problem, params), chosen.num_steps))
    diverged = end.status == Status.DIVERGED
    count = lambda value: jnp.where(diverged, -1, value)
    return {
        **{
            f"zeros_{index}": count(measurements.numerical_zeros(end.params, problem, threshold))
            for index, threshold in enumerate(chosen.threshold)
        },
        "zeros_at_rounding": count(measurements.numerical_zeros_at_rounding(end.params, problem)),
        "relative_error": jnp.where(diverged, jnp.inf, measurements.relative_error(end.params, problem)).astype(float),
        "status": jnp.where(diverged, 3, 1).astype(jnp.int8),
    }


def _metrics(chosen: Zeros) -> dict[str, tuple[Any, str]]:
    return {
        **{f"zeros_{i}": (np.int32, f"preactivations below {threshold:g}; -1 when diverged") for i, threshold in enumerate(chosen.threshold)},
        "zeros_at_rounding": (np.int32, "preactivations below 8 eps ||x_i|| ||w_j||; -1 when diverged"),
        "relative_error": (np.float64, "||Y - Yhat||_F / ||Y||_F at the end; infinite when diverged"),
        "status": (np.int8, "0 pending, 1 trained to the end, 3 diverged"),
    }  # fmt: skip


def run_tile(chosen: Zeros, lanes: int, num_devices: int, tile: Tile) -> tuple[dict[str, np.ndarray], Timings]:
    """All seeds of a step size and slope, from the same starts."""
    layers, _ = _parts(tile.setup)
    protocol = dataclasses.replace(
        for_layers(PRESETS[chosen.protocol], layers), num_samples=chosen.num_samples, base_seed=chosen.base_seed
    )
    networks = Tile(layers, (chosen.d0,), (chosen.d1,), 0, 0, chosen.num_seeds)
    follow = lambda rate, slope: functools.partial(count_zeros, chosen, tile.setup, rate, slope)
    devices = jax.local_devices()[: num_devices or None]
    return experiment.map_cells(protocol, networks, tile, follow, lanes=lanes, devices=devices)


def summarize(results: dict[str, xr.Dataset], chosen: dict[str, Any]) -> pandas.DataFrame:
    """A row per set-up, precision, step size, slope and threshold; means over the runs that did not diverge."""
    rows = []
    for setup, data in results.items():
        layers, precision = _parts(setup)
        for i, rate in enumerate(data["learning_rate"].values):
            for j, slope in enumerate(data["relu_at_zero"].values):
                kept = data["status"].values[i, j] == 1
                mean = lambda name, k=kept, d=data, at=(i, j): (
                    float(d[name].values[at][k].mean()) if k.any() else np.nan
                )
                for index, threshold in enumerate(chosen["threshold"]):
                    counts = data[f"zeros_{index}"].values[i, j][kept]
                    rows.append(
                        {
                            "trained_layers": layers,
                            "precision": precision,
                            "learning_rate": float(rate),
                            "relu_at_zero": float(slope),
                            "threshold": threshold,
                            "runs": int(kept.sum()),
                            "diverged": int((data["status"].values[i, j] == 3).sum()),
                            "mean_zeros": mean(f"zeros_{index}"),
                            "least_zeros": int(counts.min()) if len(counts) else -1,
                            "most_zeros": int(counts.max()) if len(counts) else -1,
                            "mean_zeros_at_rounding": mean("zeros_at_rounding"),
                            "relative_error": mean("relative_error"),
                        }
                    )
    return pandas.DataFrame(rows)


def sentence(table: pandas.DataFrame) -> str:
    """What decides the count, as the data say: the spread of the mean count over each of the four, the others at their middle value.

    The middle is a threshold of 1e-8 (or the nearest), float64, the middle step size and the least slope.
    """
    if table["mean_zeros"].isna().all():
        return "every run diverged"
    values = {name: sorted(set(table[name])) for name in ("threshold", "precision", "learning_rate", "relu_at_zero")}
    middle = {
        "threshold": min(values["threshold"], key=lambda t: abs(np.log(t / 1e-8))),
        "precision": "float64" if "float64" in values["precision"] else values["precision"][0],
        "learning_rate": values["learning_rate"][len(values["learning_rate"]) // 2],
        "relu_at_zero": values["relu_at_zero"][0],
    }
    found = []
    for layers, part in table.groupby("trained_layers"):
        spread = []
        for name in middle:
            fixed = [part[other] == value for other, value in middle.items() if other != name]
            means = part[np.logical_and.reduce(fixed)].set_index(name)["mean_zeros"].dropna()
            if len(means):
                spread.append(f"{name} {', '.join(f'{at}: {mean:.3g}' for at, mean in means.items())}")
        found.append(f"{layers}: mean zeros by {'; by '.join(spread)}")
    fixed_at = ", ".join(f"{name} {value}" for name, value in middle.items())
    return "\n".join([*found, f"(one at a time, the others at {fixed_at})"])


def _draw(table: pandas.DataFrame, caption: str) -> Figure:
    layers = list(dict.fromkeys(table["trained_layers"]))
    figure = Figure(figsize=(5.4 * len(layers), 4.8), layout="constrained")
    panels = np.atleast_1d(figure.subplots(1, len(layers), sharey=False))
    figure.suptitle("Numerical zeros at the end of training")
    figures.add_caption(figure, caption)
    rates, slopes = sorted(set(table["learning_rate"])), sorted(set(table["relu_at_zero"]))
    colours = figures.shades(len(rates))
    for axes, name in zip(panels, layers, strict=True):
        for (precision, rate, slope), part in table[table["trained_layers"] == name].groupby(
            ["precision", "learning_rate", "relu_at_zero"]
        ):
            if part["mean_zeros"].notna().any():
                axes.plot(
                    part["threshold"],
                    part["mean_zeros"],
                    "-" if precision == "float64" else ":",
                    linewidth=1,
                    marker="osd^v"[slopes.index(slope) % 5],
                    markersize=4,
                    markerfacecolor="none",
                    color=colours[rates.index(rate)],
                )
        for index, rate in enumerate(rates):
            axes.plot([], [], "-", color=colours[index], label=f"learning rate {rate:g}")
        for index, slope in enumerate(slopes):
            axes.plot(
                [],
                [],
                "osd^v"[index % 5],
                color="k",
                markerfacecolor="none",
                markersize=4,
                label=f"relu'(0) = {slope:g}",
            )
        for precision, style in (("float64", "-"), ("float32", ":")):
            axes.plot([], [], style, color="k", label=precision)
        axes.set_xscale("log")
        axes.set_yscale("symlog", linthresh=1)
        axes.set_ylim(bottom=-0.1)
        axes.set_xlabel("threshold")
        axes.set_ylabel("preactivations below it (mean)")
        axes.set_title(figures.setup_title(name), fontsize="medium")
        axes.legend(fontsize="x-small")
    return figure  # fmt: skip


def report(store: Store, execution: Execution) -> None:
    """Writes summary.csv and the figure from the store, and prints what they say.

    Raises:
      UsageError: the store is damaged or of another launcher, or the folder cannot be written.
    """
    out = execution.out
    with reporting(out):
        store.verify()
        science, configuration = store.attributes["science"], store.attributes["configuration"]
        table = summarize({setup: store.read(setup) for setup in store.attributes["setups"]}, science)
        caption = (
            f"{science['protocol']}: N = {science['num_samples']}, d0 = {science['d0']}, d1 = {science['d1']}, {science['num_seeds']} seeds, "
            f"{science['num_steps']:,} steps. Configuration {configuration}."
        )
        figures.save(_draw(table, caption), out / "figures", "zeros", configuration)
        table.to_csv(out / "summary.csv", index=False, float_format="%.6g")
    print(sentence(table))
    print(f"{caption}\nfigure: {out / 'figures' / 'zeros.png'}\nsummary: {out / 'summary.csv'} ({len(table)} rows)")


def run(chosen: tuple[Zeros, Execution]) -> None:
    """The whole sweep: what is pending is computed, then the figure is drawn."""
    asked, execution = chosen
    science, lines = launch.science_of(asked)
    sweep = Sweep(
        protocol_name=asked.protocol,
        flags=lines,
        science=science,
        setups=_setups(asked),
        d0=asked.learning_rate,
        d1=asked.relu_at_zero,
        num_seeds=asked.num_seeds,
        precision="float64",
        metrics=_metrics(asked),
        run_tile=functools.partial(run_tile, asked, execution.lanes, execution.num_devices),
        axes=("learning_rate", "relu_at_zero"),
        cost=lambda tile: float(len(tile.d0) * len(tile.d1)),
    )
    launch.complete(sweep, execution, lambda store: report(store, execution))


LAUNCHER = Launcher("zeros", __doc__, read, run, ("sweeps.zeros", "sweeps.settings"), _FLAGS)

if __name__ == "__main__":
    launch.main(LAUNCHER)
