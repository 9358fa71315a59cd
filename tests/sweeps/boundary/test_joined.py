"""Counts of several folders as one."""

import numpy as np
import pandas

from sweeps.boundary import joined, report, tables


def cell(runs, converged, proved_global, proved_local, **more):
    row = dict.fromkeys(joined.COLUMNS, 0) | {
        "configuration": "a", "stop": "first_passage", "prove": proved_global is not None, "rate": 1.0,
        "precision": "float32", "condition": "scaled", "trained_layers": "hidden", "loss": "squared",
        "num_samples": 50, "d0": 8, "d1": 10, "runs": runs, "converged": converged, "finished": runs,
        "proved_global": np.nan if proved_global is None else proved_global,
        "proved_local": np.nan if proved_local is None else proved_local,
    }  # fmt: skip
    return row | more


def test_more_runs_without_proofs_leave_the_proofs_of_fewer():
    cells = pandas.DataFrame(
        [cell(16, 7, 8, 8), cell(24, 11, None, None), cell(8, 3, 4, 4), cell(8, 8, None, None, d1=12)]
    )
    found = report.outcomes(joined.kept(cells)[list(tables.COLUMNS)]).set_index(["outcome", "d1"])
    assert found.loc[("criterion", 10), ["runs", "converged"]].tolist() == [24, 11]
    assert found.loc[("proved", 10), ["runs", "converged"]].tolist() == [16, 8]
    assert found.loc[("criterion", 12), "runs"] == 8
    assert len(found) == 3


def test_proofs_of_the_most_runs_need_no_second_row():
    cells = pandas.DataFrame([cell(16, 7, 8, 8), cell(8, 3, None, None), cell(8, 3, 4, 4)])
    assert joined.kept(cells)["runs"].tolist() == [16]
