"""Rows (N, d0) that the laws had not seen when they were fitted."""

from collections.abc import Sequence

import pandas

from sweeps.boundary import law, scatter
from sweeps.boundary.law import Counts
from sweeps.boundary.report import GROUP, boundaries, outcomes
from sweeps.boundary.tables import stable

__all__ = ["foreseen", "unseen"]

_ROW = [name for name in GROUP if name != "outcome"] + ["num_samples", "d0"]


def unseen(known: pandas.DataFrame, new: pandas.DataFrame) -> pandas.DataFrame:
    """The cells of `new` in rows of which `known` has no cell."""
    rows = known[_ROW].drop_duplicates()
    return new[new[_ROW].merge(rows, how="left", on=_ROW, indicator=True)["_merge"].to_numpy() == "left_only"]


def foreseen(
    known: pandas.DataFrame, new: pandas.DataFrame, candidates: Sequence[law.Model] = law.MODELS
) -> tuple[pandas.DataFrame, pandas.DataFrame]:
    """How laws that are fitted to some rows foresee others.

    Args:
      known: cells that the laws are fitted to, columns `tables.COLUMNS`.
      new: cells of other rows.
      candidates: the laws.

    Returns:
      A row a (set-up, law), the best first: `score` to `runs` as in `scatter.scored`. And a row a (set-up, N, d0,
      law): the measured boundary with its interval, NaN where there is one width, and `foreseen`, that of the same
      fit. Rows that diverge are left out of both,
      and set-ups where either has no success, or `known` has one N alone.

    Raises:
      ValueError: a row of `new` is one of `known`.
    """
    if len(unseen(known, new)) < len(new):
        raise ValueError("rows that are foreseen must not be among those that laws are fitted to")
    seen, left_out = (stable(table[table["runs"] > 0]) for table in map(outcomes, (known, new)))
    scores, rows = [], []
    for values, part in left_out.groupby(GROUP, sort=False):
        group = dict(zip(GROUP, values, strict=True))
        own = seen[(seen[GROUP] == pandas.Series(group)).all(axis=1)]
        if own["num_samples"].nunique() < 2 or not own["converged"].sum() or not part["converged"].sum():
            continue
        fitted, test = Counts.of(own), Counts.of(part)
        models = law.candidates(fitted, candidates)
        fits = [scatter.fit(model, fitted) for model in models]
        found = scatter.scored(fits, test)
        for place, name in enumerate(found.names):
            columns = ("score", "behind", "standard_error", "margin", "is_behind")
            said = {column: getattr(found, column)[place] for column in columns}
            scores.append({**group, "model": name, **said, "rows": found.rows, "runs": found.runs})
        here = part.groupby(["num_samples", "d0"], as_index=False)["runs"].sum()
        measured = boundaries(part)
        if len(measured):  # A row of one cell has none.
            kept = ["num_samples", "d0", "boundary", "boundary_low", "boundary_high", "place"]
            here = here.merge(measured[kept], how="left", on=["num_samples", "d0"])
        for each in fits:
            neuron = here["d0"] + (group["trained_layers"] == "both")
            widths = each.boundary(here["num_samples"], here["d0"], neuron)
            rows.append(here.assign(**group, model=each.model.name, foreseen=widths))
    empty = pandas.DataFrame()
    return pandas.DataFrame(scores), pandas.concat(rows, ignore_index=True) if rows else empty
