"""One report of the counts of several folders, and of files that hold them."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas

from sweeps.boundary import foreseeing, tables
from sweeps.boundary.report import GROUP, analyze, failures, once
from sweeps.boundary.study import BoundaryStudy
from sweeps.runtime import extension
from sweeps.runtime.session import configuration_of, open_results
from sweeps.study import Report, UsageError

__all__ = ["COLUMNS", "SETTINGS", "Part", "kept", "read", "together"]

# What all runs of one law have in common.
SETTINGS = ("steps_per_sample", "base_seed", "rate", "precision")
# How a folder's runs were made besides: they may differ.
_MADE = ("configuration", "stop", "prove")
_CELL = (*(name for name in GROUP if name != "outcome"), "num_samples", "d0", "d1")
# What `failures` counts among the runs that did not diverge.
_CAUSES = ("failed", "dead_start", "dead_end", "failed_dead_start", "failed_dead_end")
COLUMNS = (*_MADE, *SETTINGS, *tables.COLUMNS, "finished", *_CAUSES)


class Part(NamedTuple):
    """The cells of one configuration, columns `COLUMNS`, and where they are from."""

    source: Path
    cells: pandas.DataFrame


def _of_folder(folder: Path) -> Part:
    store = open_results(folder)
    study = BoundaryStudy.from_science(store.attributes)
    results = {variant: extension.read(store, variant.group) for variant in study.variants()}
    cells = tables.counts(study, results)
    causes = failures(results)
    if len(causes):
        cells = cells.merge(causes.rename(columns={"runs": "finished"}), how="left", on=list(_CELL))
    made = {"configuration": configuration_of(study.science()), "stop": study.stop, "prove": study.prove}
    cells = cells.assign(**made, **{name: getattr(study, name) for name in SETTINGS})
    return Part(folder, cells.reindex(columns=list(COLUMNS)))


def _of_file(path: Path) -> Iterator[Part]:
    try:
        table = pandas.read_csv(path, dtype={"configuration": str, "rate": float, "dead_at_start": float})
    except (ValueError, OSError) as error:
        raise UsageError(f"{path}: no table of counts: {error}") from None
    if missing := [name for name in COLUMNS if name not in table]:
        raise UsageError(f"{path}: no table of counts: it has no column {missing[0]}")
    for _, cells in table.groupby("configuration", sort=False, dropna=False):
        yield Part(path, cells[list(COLUMNS)].reset_index(drop=True))


def read(source: Path) -> list[Part]:
    """The counts of a folder of runs, or of a file.

    Raises:
      UsageError: there are none.
    """
    return list(_of_file(source)) if source.is_file() else [_of_folder(source)]


def _precedence(part: Part) -> tuple[Any, ...]:
    """The later, the rather a configuration's counts are kept; equal only where all of them are."""
    first = part.cells.iloc[0]
    return (first["stop"] == "first_passage", bool(first["prove"]), first["configuration"], part.cells.to_csv())


def kept(cells: pandas.DataFrame) -> pandas.DataFrame:
    """Of every cell the row with the most runs, of equally many the last; and where that has no proofs the row with the
    most runs that has some, of which `report.outcomes` takes what is proved.

    Args:
      cells: columns `COLUMNS`.
    """
    most = once(cells)
    proved = once(cells[cells["proved_global"].notna()])
    without = most.loc[most["proved_global"].isna(), list(_CELL)]
    return pandas.concat([most, proved.merge(without, on=list(_CELL))], ignore_index=True)


def _caption(cells: pandas.DataFrame) -> str:
    first = cells.iloc[0]
    sizes, conditions = (", ".join(map(str, cells[name].unique())) for name in ("num_samples", "condition"))
    return (
        f"N = {sizes}, {conditions}, at most {first['steps_per_sample']} N steps, {first['stop']}: "
        f"{first['configuration']}"
    )


def together(sources: Sequence[Path], least_d0: int = 1, foresee: Sequence[Path] = (), **options: Any) -> Report:
    """One report of the results in several folders, finished or not, and of counts.csv of earlier such reports; it is
    the same in whatever order they are given.

    Of a cell that several have the one with the most runs counts, for all tables, see `report.outcomes`; of equally
    many that by first passage, whose runs none ended early, then one with proofs, then by the configuration and the
    counts.

    Args:
      sources: folders of runs of the study, and files.
      least_d0: rows of fewer inputs are left out: where N / d0 is large the step limit may decide them.
      foresee: further such sources. Of their rows (N, d0) that no other source has any run of, the report says how well
        the laws, which are fitted without them, foresee them; of nothing else in it they are a part.
      options: of `report.analyze`.

    Returns:
      The report, with a table more: `counts`, columns `COLUMNS`; `finished` runs did not diverge. With `foresee` two
      more: `foreseen` and `foreseen_rows`, see `foreseeing.foreseen`.

    Raises:
      UsageError: a folder has no results of this study, or of runs that are others than those of the first: by another
        number of steps, seed, rate or precision; a file is no table of counts; no row is left to foresee.
    """
    parts, new = _parts(sources, "--out"), _parts(foresee, "--foresee") if foresee else []
    _check_same([*parts, *new])
    parts, new = (sorted(given, key=_precedence) for given in (parts, new))
    joined = _joined(parts, least_d0)
    causes = once(joined)
    causes = causes.loc[causes["finished"].notna(), [*_CELL, "finished", *_CAUSES]]
    causes = causes.astype(dict.fromkeys(["finished", *_CAUSES], int)).rename(columns={"finished": "runs"})
    text = f"Configurations: {'; '.join(_caption(part.cells) for part in parts)}."
    text += f" Rows with d0 >= {least_d0}." if least_d0 > 1 else ""
    more = {"counts": joined, "failures": causes.reset_index(drop=True)}
    if new:
        cells = foreseeing.unseen(joined, _joined(new, least_d0))
        if not len(cells):
            raise UsageError("--foresee: there is no row that the other folders have not")
        text += f" Foreseen: {'; '.join(_caption(part.cells) for part in new)}."
        known = {name: options[name] for name in ("candidates",) if name in options}
        found = foreseeing.foreseen(joined[list(tables.COLUMNS)], cells[list(tables.COLUMNS)], **known)
        more |= dict(zip(("foreseen", "foreseen_rows"), found, strict=True))
    return analyze(joined[list(tables.COLUMNS)], caption=text, more=more, **options)


def _parts(sources: Sequence[Path], flag: str) -> list[Part]:
    """What has runs.

    Raises:
      UsageError: there is nothing, or what cannot be read; it names the flag.
    """
    try:
        parts = [part for source in sources for part in read(source) if len(part.cells)]
    except UsageError as error:
        raise UsageError(str(error).replace("--out", flag)) from None
    if not parts:
        raise UsageError(f"{flag}: no runs to report")
    return parts


def _check_same(parts: Sequence[Part]) -> None:
    """Refuses what is no part of one law.

    Raises:
      UsageError: a part is of other runs than the first.
    """
    shared = {name: parts[0].cells[name].iloc[0] for name in SETTINGS}
    for part in parts:
        for name, value in shared.items():
            if len(other := part.cells.loc[part.cells[name] != value, name]):
                raise UsageError(
                    f"{part.source}: --{name}={other.iloc[0]}, where {parts[0].source} has {value}: no runs of one law"
                )


def _joined(parts: Sequence[Part], least_d0: int) -> pandas.DataFrame:
    joined = kept(pandas.concat([part.cells for part in parts], ignore_index=True))
    joined = joined[joined["d0"] >= least_d0].reset_index(drop=True)
    if not len(joined):
        raise UsageError(f"--least_d0: no row has {least_d0} inputs or more")
    return joined
