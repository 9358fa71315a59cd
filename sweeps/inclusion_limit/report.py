"""What `inclusion_limit` leaves: two tables, a figure, and a text."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import xarray as xr
from matplotlib.figure import Figure

from sweeps import figures
from sweeps.report import reporting
from sweeps.statistics import mean_interval
from sweeps.store import Store

__all__ = ["count_zeros", "fitted_rate", "report", "summarize"]


_MARKERS = "os^vDP*X"


def fitted_rate(step_sizes: np.ndarray, distances: np.ndarray) -> float:
    """The slope of log distance against log step size; NaN when a distance is not finite and positive."""
    if not (np.isfinite(distances).all() and (distances > 0).all()):
        return float("nan")
    return float(np.polyfit(np.log(step_sizes), np.log(distances), 1)[0])


def _cells(results: dict[str, xr.Dataset]) -> Iterator[tuple[dict[str, Any], xr.Dataset]]:
    """Every set-up and cell: its columns, and its finished runs."""
    for setup, data in results.items():
        layers, _, size = setup.partition("_N")
        for i, d0 in enumerate(data["d0"].values):
            for j, d1 in enumerate(data["d1"].values):
                cell = data.isel(d0=i, d1=j)
                columns = {"trained_layers": layers, "num_samples": int(size), "d0": int(d0), "d1": int(d1)}
                yield columns, cell.isel(seed=cell["status"].values != 0)


def summarize(results: dict[str, xr.Dataset], step_sizes: tuple[float, ...], horizon: float) -> pandas.DataFrame:
    """A row per set-up and cell: the rate of convergence with its interval over the seeds, and the inclusion's end.

    Where solutions branch within the horizon descent may follow another one than the inclusion that is computed, and need not
    come closer to it: those runs have a rate of their own.
    """
    rows = []
    for columns, runs in _cells(results):
        distances = np.stack([runs[f"distance_{k}"].values for k in range(len(step_sizes))], axis=-1)
        rates = np.array([fitted_rate(np.array(step_sizes), row) for row in distances])
        branches = runs["branched_at"].values <= horizon
        mean, low, high = mean_interval(rates[~branches])
        mean_of = lambda name: float(runs[name].values.mean()) if runs.sizes["seed"] else float("nan")  # noqa: B023
        rows.append(
            columns
            | {
                "runs": runs.sizes["seed"],
                "rates": int(np.isfinite(rates[~branches]).sum()),
                "rate": mean,
                "rate_low": low,
                "rate_high": high,
                "branched": int(branches.sum()),
                "rate_branched": mean_interval(rates[branches])[0],
                "median_smallest_distance": float(np.median(distances[:, -1])) if len(distances) else float("nan"),
                "sliding": mean_of("sliding"),
                "resting": mean_of("resting"),
                "inclusion_relative_error": mean_of("inclusion_relative_error"),
                "energy_residual": mean_of("energy_residual"),
                "branched_later": int((np.isfinite(runs["branched_at"].values) & ~branches).sum()),
                "stopped_early": int((runs["status"].values == 2).sum()),
                "diverged": int((runs["status"].values == 3).sum()),
            }
        )
    return pandas.DataFrame(rows)


def count_zeros(results: dict[str, xr.Dataset], long_rates: tuple[float, ...]) -> pandas.DataFrame:
    """A row per set-up, cell and rate of the long descent: its zeros beside what slides, with intervals over the seeds."""
    rows = []
    for columns, all_runs in _cells(results):
        for index, rate in enumerate(long_rates):
            runs = all_runs.isel(seed=all_runs[f"zeros_{index}"].values >= 0)
            zeros, both, sliding = (
                runs[name].values.astype(float) for name in (f"zeros_{index}", f"zeros_that_slide_{index}", "sliding")
            )
            row: dict[str, Any] = columns | {"long_rate": rate, "runs": len(zeros), "zeros": mean_interval(zeros)[0]}
            row["sliding"] = mean_interval(sliding)[0]
            with np.errstate(invalid="ignore", divide="ignore"):
                shares = {"zeros_that_slide": both / zeros, "sliding_that_are_zero": both / sliding}
            for name, share in shares.items():
                mean, low, high = mean_interval(share)
                row[name], row[f"{name}_low"], row[f"{name}_high"] = mean, max(low, 0.0), min(high, 1.0)
            errors = runs[f"long_relative_error_{index}"].values
            row["largest_relative_error"] = float(errors.max()) if len(errors) else float("nan")
            rows.append(row)
    return pandas.DataFrame(rows)


def _draw_distances(axes: Any, results: dict[str, xr.Dataset], step_sizes: tuple[float, ...]) -> None:
    for index, (setup, data) in enumerate(results.items()):
        layers, _, size = setup.partition("_N")
        done = data["status"].values != 0
        distances = np.stack([data[f"distance_{k}"].values[done] for k in range(len(step_sizes))], axis=-1)
        distances = distances[(np.isfinite(distances) & (distances > 0)).all(axis=-1)]
        if len(distances):
            low, middle, high = np.percentile(distances, [10, 50, 90], axis=0)
            axes.fill_between(step_sizes, low, high, color=f"C{index}", alpha=0.2, linewidth=0)
            axes.plot(step_sizes, middle, "o-", color=f"C{index}", label=f"{layers}, N = {size}")
    if axes.lines:
        ends = np.array([min(step_sizes), max(step_sizes)])
        anchor = np.median([line.get_ydata()[0] for line in axes.lines])
        axes.plot(ends, anchor * ends / ends[1], "k--", linewidth=1, label="slope 1")
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xticks(step_sizes, [f"{step_size:g}" for step_size in step_sizes], fontsize="small")
        axes.minorticks_off()
        axes.legend(fontsize="small")
    axes.set_xlabel(r"step size $\eta$")
    axes.set_ylabel(r"$\sup_{t \leq T} \|\theta(t) - \bar\theta^\eta(t)\|$ (median, 10 to 90 percent)")


def _draw_zeros(axes: Any, results: dict[str, xr.Dataset], long_rates: tuple[float, ...]) -> None:
    largest = 1.0
    for index, (setup, data) in enumerate(results.items()):
        layers, _, size = setup.partition("_N")
        for k, rate in enumerate(long_rates):
            zeros, sliding = data[f"zeros_{k}"].values, data["sliding"].values
            kept = (data["status"].values != 0) & (zeros >= 0)
            label = f"{layers}, N = {size}, rate {rate:g}"
            marker = _MARKERS[k % len(_MARKERS)]
            axes.plot(sliding[kept], zeros[kept], marker, color=f"C{index}", alpha=0.6, label=label, fillstyle="none")
            largest = max([largest, *sliding[kept], *zeros[kept]])
    axes.plot([0, largest], [0, largest], "k--", linewidth=1, label="equal")
    axes.set_xlabel("preactivations that the inclusion holds at 0")
    axes.set_ylabel(r"preactivations of descent with $|Z_{ij}| < 10^{-8}$")
    axes.legend(fontsize="x-small")


def _draw(
    results: dict[str, xr.Dataset], step_sizes: tuple[float, ...], long_rates: tuple[float, ...], caption: str
) -> Figure:
    figure = Figure(figsize=(10, 4.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    figure.suptitle("Gradient descent and the differential inclusion")
    figures.add_caption(figure, caption)
    _draw_distances(left, results, step_sizes)
    _draw_zeros(right, results, long_rates)
    return figure


def report(store: Store, out: Path) -> None:
    """Writes summary.csv, zeros.csv and the figure from the store, and prints the tables.

    Raises:
      UsageError: the store is damaged or of another launcher, or the folder cannot be written.
    """
    with reporting(out):
        store.verify()
        science, configuration = store.attributes["science"], store.attributes["configuration"]
        step_sizes, long_rates = tuple(science["step_sizes"]), tuple(science["long_rates"])
        results = {setup: store.read(setup) for setup in store.attributes["setups"]}
        table, zeros = summarize(results, step_sizes, science["horizon"]), count_zeros(results, long_rates)
        caption = (
            f"T = {science['horizon']:g}, {science['num_seeds']} seeds, batch size {science['batch_size'] or 'N'}, float64; "
            f"long descent: mean loss, momentum {science['long_momentum']:g}, {science['long_steps']:,} steps at rate "
            f"{long_rates[0]:g} and as much flow time at others. Configuration {configuration}."
        )
        figure = _draw(results, step_sizes, long_rates, caption)
        figures.save(figure, out / "figures", "inclusion_limit", configuration)
        table.to_csv(out / "summary.csv", index=False, float_format="%.6g")
        zeros.to_csv(out / "zeros.csv", index=False, float_format="%.6g")
    show = lambda table: table.to_string(index=False, float_format="%.3g")
    mean, low, high = mean_interval(table["rate"].to_numpy())
    print(show(table.drop(columns=["median_smallest_distance", "energy_residual"])))
    print(f"\nfitted rate over the cells, unique solutions: {mean:.2f} (95 percent interval {low:.2f} to {high:.2f})\n")
    print(show(zeros))
    print(
        f"\n{caption}\nfigure: {out / 'figures' / 'inclusion_limit.png'}\n"
        f"tables: {out / 'summary.csv'} ({len(table)} rows), {out / 'zeros.csv'} ({len(zeros)} rows)"
    )
