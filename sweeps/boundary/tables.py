"""Counts over (N, d0, d1) from the results of the study."""

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from relu_sgd.dynamics import Status
from relu_sgd.proofs import Verdict
from sweeps.boundary.study import condition_of, loss_of
from sweeps.study import Results

if TYPE_CHECKING:
    from sweeps.boundary.study import BoundaryStudy

__all__ = ["COLUMNS", "counts", "stable"]

COLUMNS = (
    "condition", "trained_layers", "loss", "num_samples", "d0", "d1", "runs", "converged", "proved_global",
    "proved_local", "diverged", "dead_at_start", "runs_with_dead", "full_rank_start", "full_rank_end",
)  # fmt: skip


def counts(study: "BoundaryStudy", results: Results) -> pd.DataFrame:
    """A row for every cell that has runs.

    Returns:
      Columns `COLUMNS`: numbers of runs that converged, that end at a minimum that is proved to be global or local
      (NaN unless asked for), that diverged, that have dead samples at the start, and whose Jacobian has full rank at
      the start and at the end; dead_at_start is the mean number of dead samples.
    """
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


def stable(table: pd.DataFrame) -> pd.DataFrame:
    """Without the rows (N, d0) most of whose failures by criterion diverged: those are about the learning rate, and no
    law of the boundary foresees them.

    Args:
      table: cells with their outcomes, see `report.outcomes`.
    """
    sums = table.groupby(["condition", "trained_layers", "loss", "outcome", "num_samples", "d0"])[
        ["runs", "converged", "diverged"]
    ].transform("sum")
    diverging = (table["outcome"] == "criterion") & (2 * sums["diverged"] > sums["runs"] - sums["converged"])
    return table[~diverging]
