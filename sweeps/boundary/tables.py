"""Counts over (N, d0, d1) from the results of the study."""

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from relu_sgd.dynamics import Status
from relu_sgd.proofs import Verdict
from sweeps.boundary.study import condition_of, loss_of
from sweeps.runtime import extension
from sweeps.runtime.session import open_results
from sweeps.study import Report, Results, UsageError

if TYPE_CHECKING:
    from sweeps.boundary.study import BoundaryStudy

__all__ = ["COLUMNS", "counts", "report"]

COLUMNS = (
    "condition", "trained_layers", "loss", "num_samples", "d0", "d1", "runs", "converged", "proved_global",
    "proved_local", "diverged", "dead_at_start", "runs_with_dead", "full_rank_start", "full_rank_end",
)  # fmt: skip

_CELL = COLUMNS[:6]


def counts(study: "BoundaryStudy", results: Results) -> pd.DataFrame:
    """A row for every cell that has runs, of the study and of the folders that its report is to show with it.

    Returns:
      Columns `COLUMNS`: numbers of runs that converged, that end at a minimum that is proved to be global or local
      (NaN unless asked for), that diverged, that have dead samples at the start, and whose Jacobian has full rank at
      the start and at the end; dead_at_start is the mean number of dead samples.

    Raises:
      UsageError: a folder has no results of this kind of study, or two have runs of the same cell.
    """
    parts = [_counts(study, results)]
    for folder in study.beside:
        store = open_results(folder, flag="beside")
        other = type(study).from_science(store.attributes)
        parts.append(_counts(other, {variant: extension.read(store, variant.group) for variant in other.variants()}))
    table = pd.concat(parts, ignore_index=True)
    if (again := table[table.duplicated(list(_CELL))]).size:
        cell = ", ".join(f"{name} = {again.iloc[0][name]}" for name in _CELL)
        raise UsageError(f"--beside: two of the folders have runs of {cell}")
    return table


def _counts(study: "BoundaryStudy", results: Results) -> pd.DataFrame:
    rows = []
    for variant, found in results.items():
        done = found["status"].values != Status.PENDING
        values = {name: found[name].values for name in study.metrics}
        for place in np.argwhere(done.any(axis=-1)):
            cell = tuple(place)
            of = {name: array[cell][done[cell]] for name, array in values.items()}
            verdict = of.get("verdict")
            rows.append((
                condition_of(variant), variant.trained_layers, loss_of(variant), variant.num_samples,
                int(found["d0"].values[cell[0]]), int(found["d1"].values[cell[1]]), int(done[cell].sum()),
                int(np.sum(of["status"] == Status.CONVERGED)),
                np.nan if verdict is None else int(np.sum(verdict == Verdict.GLOBAL_MINIMUM)),
                np.nan if verdict is None else int(np.sum(verdict == Verdict.LOCAL_MINIMUM)),
                int(np.sum(of["status"] == Status.DIVERGED)), float(of["dead_at_start"].mean()),
                int(np.sum(of["dead_at_start"] > 0)), int(np.sum(of["full_rank_start"] == 1)),
                int(np.sum(of["full_rank_end"] == 1)),
            ))  # fmt: skip
    return pd.DataFrame(rows, columns=list(COLUMNS))


def report(study: "BoundaryStudy", results: Results) -> Report:
    """The counts."""
    table = counts(study, results)
    text = f"{int(table['runs'].sum())} runs in {len(table)} cells, {int(table['converged'].sum())} of them converged"
    return Report({"summary": table}, {}, (), text)
