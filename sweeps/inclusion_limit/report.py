"""What `inclusion_limit` leaves: two tables, a figure, and a text."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas
import xarray as xr
from matplotlib.figure import Figure

from sweeps.inclusion_limit.study import Limit
from sweeps.reporting import style
from sweeps.reporting.statistics import mean_interval
from sweeps.runtime.session import configuration_of
from sweeps.study import Claim, Report, Results

__all__ = ["count_zeros", "fitted_rate", "report", "summarize"]


_MARKERS = "os^vDP*X"


def fitted_rate(step_sizes: np.ndarray, distances: np.ndarray) -> float:
    """The slope of log distance against log step size; NaN when a distance is not finite and positive."""
    if not (np.isfinite(distances).all() and (distances > 0).all()):
        return float("nan")
    return float(np.polyfit(np.log(step_sizes), np.log(distances), 1)[0])


def _cells(results: Results) -> Iterator[tuple[dict[str, Any], xr.Dataset]]:
    """Every variant and cell: its columns, and its finished runs."""
    for variant, data in results.items():
        for i, d0 in enumerate(data["d0"].values):
            for j, d1 in enumerate(data["d1"].values):
                cell = data.isel(d0=i, d1=j)
                columns = {**variant.varied, "d0": int(d0), "d1": int(d1)}
                yield columns, cell.isel(seed=cell["status"].values != 0)


def summarize(results: Results, step_sizes: tuple[float, ...], horizon: float) -> pandas.DataFrame:
    """A row per variant and cell: the rate of convergence with its interval over the seeds, and the inclusion's end.

    Where solutions branch within the horizon descent may follow another one than the inclusion that is computed, and
    need not come closer to it: those runs have a rate of their own.
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


def count_zeros(results: Results, long_rates: tuple[float, ...]) -> pandas.DataFrame:
    """A row per variant, cell and rate of the long descent: its zeros beside what slides, with intervals over the
    seeds.
    """
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


def _draw_distances(axes: Any, results: Results, step_sizes: tuple[float, ...]) -> None:
    for index, (variant, data) in enumerate(results.items()):
        done = data["status"].values != 0
        distances = np.stack([data[f"distance_{k}"].values[done] for k in range(len(step_sizes))], axis=-1)
        distances = distances[(np.isfinite(distances) & (distances > 0)).all(axis=-1)]
        if len(distances):
            low, middle, high = np.percentile(distances, [10, 50, 90], axis=0)
            axes.fill_between(step_sizes, low, high, color=f"C{index}", alpha=0.2, linewidth=0)
            axes.plot(
                step_sizes,
                middle,
                "o-",
                color=f"C{index}",
                label=f"{variant.trained_layers}, N = {variant.num_samples}",
            )
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


def _draw_zeros(axes: Any, results: Results, long_rates: tuple[float, ...]) -> None:
    largest = 1.0
    for index, (variant, data) in enumerate(results.items()):
        for k, rate in enumerate(long_rates):
            zeros, sliding = data[f"zeros_{k}"].values, data["sliding"].values
            kept = (data["status"].values != 0) & (zeros >= 0)
            label = f"{variant.trained_layers}, N = {variant.num_samples}, rate {rate:g}"
            marker = _MARKERS[k % len(_MARKERS)]
            axes.plot(sliding[kept], zeros[kept], marker, color=f"C{index}", alpha=0.6, label=label, fillstyle="none")
            largest = max([largest, *sliding[kept], *zeros[kept]])
    axes.plot([0, largest], [0, largest], "k--", linewidth=1, label="equal")
    axes.set_xlabel("preactivations that the inclusion holds at 0")
    axes.set_ylabel(r"preactivations of descent with $|Z_{ij}| < 10^{-8}$")
    axes.legend(fontsize="x-small")


def _draw(results: Results, step_sizes: tuple[float, ...], long_rates: tuple[float, ...], caption: str) -> Figure:
    figure = Figure(figsize=(10, 4.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    figure.suptitle("Gradient descent and the differential inclusion")
    style.add_caption(figure, caption)
    _draw_distances(left, results, step_sizes)
    _draw_zeros(right, results, long_rates)
    return figure


def report(study: Limit, results: Results) -> Report:
    """Two tables, the figure, and the fitted rate."""
    table, zeros = summarize(results, study.step_sizes, study.horizon), count_zeros(results, study.long_rates)
    caption = (
        f"T = {study.horizon:g}, {study.num_seeds} seeds, batch size {study.batch_size or 'N'}, float64; long descent: "
        f"mean loss, momentum {study.long_momentum:g}, {study.long_steps:,} steps at rate {study.long_rates[0]:g} "
        "and as "
        f"much flow time at others. Configuration {configuration_of(study.science())}."
    )
    show = lambda table: table.to_string(index=False, float_format="%.3g")
    mean, low, high = mean_interval(table["rate"].to_numpy())
    result = f"fitted rate over the cells, unique solutions: {mean:.2f} (95 percent interval {low:.2f} to {high:.2f})"
    statement = "the interpolated descent tends to the inclusion as the step goes to 0"
    claim = Claim("Theorem 5.5", statement, result, bool(low > 0) if np.isfinite(low) else None)
    shown = show(table.drop(columns=["median_smallest_distance", "energy_residual"]))
    text = f"{shown}\n\n{result}\n\n{show(zeros)}\n\n{caption}"
    figure = _draw(results, study.step_sizes, study.long_rates, caption)
    return Report({"summary": table, "zeros": zeros}, {"inclusion_limit": figure}, (claim,), text)
