"""What the counts say of the boundary: tables, figures, and a text."""

import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas
from absl import logging

from relu_sgd import Status
from sweeps import logistic
from sweeps.boundary import figures, law, scaling, scatter
from sweeps.boundary.certified import CertifiedWidth, certified_widths
from sweeps.boundary.law import Counts
from sweeps.boundary.study import BoundaryStudy, condition_of, loss_of
from sweeps.boundary.tables import counts as counted
from sweeps.boundary.tables import stable
from sweeps.reporting.statistics import interval
from sweeps.runtime.session import configuration_of
from sweeps.study import Report, Results

__all__ = [
    "GROUP",
    "analyze",
    "boundaries",
    "dead_samples",
    "dying",
    "failures",
    "floors",
    "laws",
    "models",
    "once",
    "outcomes",
    "ranks",
    "report",
    "scalings",
]

GROUP = ["condition", "trained_layers", "loss", "outcome"]
SETUP = GROUP[:-1]
# Fitted besides the best one, so that set-ups can be compared.
REFERENCES = ("dying samples, directions", "dying samples, exponents", "dead samples, directions")


def _scored(scores: law.Scores, place: int) -> dict[str, Any]:
    """How a law foresees what was left out, beside the others, as columns."""
    names = ("score", "behind", "standard_error", "margin", "is_behind")
    return {**{name: getattr(scores, name)[place] for name in names}, "rows": scores.rows, "runs": scores.runs}


def _groups(table: pandas.DataFrame) -> Iterable[tuple[dict[str, str], pandas.DataFrame]]:
    for values, part in table.groupby(GROUP, sort=False):
        yield dict(zip(GROUP, map(str, values), strict=True)), part


def outcomes(table: pandas.DataFrame) -> pandas.DataFrame:
    """The cells once for each meaning of success, `outcome`, with `runs` and `converged` counted in it, and `undecided`
    besides these runs.

    "criterion": the run met it within its steps. "proved", where runs were to be decided: a global minimum is proved
    near the run's end, of the runs near whose end a minimum is proved, global or not. Undecided are those of the others
    that did not diverge; a cell may have no other. Of a cell that stands there twice the row with more runs is kept,
    undecided ones counted: they are numbered, and the fewer are among them.
    """
    decided = table["proved_global"] + table["proved_local"]
    undecided = table["runs"] - table["diverged"] - decided
    proved = table.assign(outcome="proved", runs=decided, converged=table["proved_global"], undecided=undecided)
    both = pandas.concat(
        [table.assign(outcome="criterion", undecided=0), proved[decided + undecided > 0]], ignore_index=True
    )
    return once(both.astype({"runs": int, "converged": int, "undecided": int}))


def once(table: pandas.DataFrame) -> pandas.DataFrame:
    """Every cell once, with the most runs, of equally many the last: runs are numbered, and the fewer ones of another
    folder are among them.
    """
    total = table["runs"] + table.get("undecided", 0)
    kept = table.loc[total.sort_values(kind="stable").index].drop_duplicates(_cell(table), keep="last")
    return table.loc[kept.index.sort_values()].reset_index(drop=True)


def _cell(table: pandas.DataFrame) -> list[str]:
    """The columns that say which cell a row is of."""
    return [name for name in (*GROUP, "num_samples", "d0", "d1") if name in table]


def boundaries(table: pandas.DataFrame, successes: str = "converged", num_resamples: int = 400) -> pandas.DataFrame:
    """A row a (set-up, N, d0): the width at which half of the runs succeed, by `sweeps.logistic.boundary`.

    Args:
      table: cells, a row each.
      successes: the column that counts them.
      num_resamples: of the bootstrap.

    Returns:
      GROUP, num_samples, d0, regime, runs, boundary, boundary_low, boundary_high, bootstrap_low, bootstrap_high, slope,
      place, and expected_dead: N 2^(-d1*) at the boundary, with its interval. `undecided` counts runs besides `runs`
      (see `outcomes`), and boundary_undecided_fail, _low and _high are the boundary where they are failures.
    """
    rows = []
    for values, part in table.groupby([*GROUP, "num_samples", "d0"], sort=False):
        part = part[part[successes].notna()].assign(undecided=part.get("undecided", 0)).sort_values("d1")
        known = part[part["runs"] > 0]
        if len(known) < 2:
            continue
        found = logistic.boundary(
            known["d1"].to_numpy(float),
            known[successes].to_numpy(float)[None],
            known["runs"].to_numpy(float)[None],
            num_resamples=num_resamples,
        )
        failed = found
        if part["undecided"].any():
            tried = part["runs"] + part["undecided"]
            counts = (part.loc[tried > 0, successes], tried[tried > 0])
            failed = logistic.boundary(
                part.loc[tried > 0, "d1"].to_numpy(float),
                *(count.to_numpy(float)[None] for count in counts),
                num_resamples=0,
            )
        group = dict(zip([*GROUP, "num_samples", "d0"], values, strict=True))
        n = group["num_samples"]
        rows.append(
            {
                **group,
                "regime": str(law.regime(np.array(n), np.array(group["d0"]))),
                "runs": int(known["runs"].sum()),
                "boundary": found.size[0],
                "boundary_low": found.low[0],
                "boundary_high": found.high[0],
                "bootstrap_low": found.bootstrap_low[0],
                "bootstrap_high": found.bootstrap_high[0],
                "slope": found.slope[0],
                "place": found.place[0],
                "expected_dead": scaling.expected_dead(n, found.size[0]),
                "expected_dead_low": scaling.expected_dead(n, found.high[0]),
                "expected_dead_high": scaling.expected_dead(n, found.low[0]),
                "undecided": int(part["undecided"].sum()),
                "boundary_undecided_fail": failed.size[0],
                "boundary_undecided_fail_low": failed.low[0],
                "boundary_undecided_fail_high": failed.high[0],
            }
        )
    return pandas.DataFrame(rows)


def models(table: pandas.DataFrame, candidates: Sequence[law.Model] = law.MODELS) -> pandas.DataFrame:
    """A row a (set-up, what is left out, model), the best first: how well it foresees what is left out.

    `left_out` is "rows" (N, d0), one after the other, or "largest N". `sigma` is the scatter of the rows about the law
    (`scatter`), `deviance` what is left of a fit to all cells beside it.
    """
    rows = []
    for group, part in _groups(table):
        counts = Counts.of(part)
        known = law.candidates(counts, candidates)
        fits = {model.name: scatter.fit(model, counts) for model in known}
        folds = {"rows": law.leave_out_rows(counts), "largest N": law.leave_out_sizes(counts)}
        for left_out, masks in folds.items():
            if not len(masks) or all(mask.all() for mask in masks):
                continue
            scores = scatter.held_out(known, counts, masks)
            for place, name in enumerate(scores.names):
                found = fits[name]
                rows.append(
                    {
                        **group,
                        "left_out": left_out,
                        "model": name,
                        "formula": found.model.formula,
                        **_scored(scores, place),
                        "parameters": len(found.parameters),
                        "sigma": found.values["sigma"],
                        "log_likelihood": found.log_likelihood,
                        "deviance": found.deviance,
                    }
                )
    return pandas.DataFrame(rows)


def _best(compared: pandas.DataFrame, group: dict[str, str]) -> str:
    """The model that foresees rows best."""
    part = _select(compared, group)
    return str(part.loc[part["left_out"] == "rows", "model"].iloc[0])


def laws(
    table: pandas.DataFrame, compared: pandas.DataFrame, candidates: Sequence[law.Model] = law.MODELS
) -> pandas.DataFrame:
    """A row a (set-up, model, parameter), with its interval: of the model that foresees rows best, `chosen`, and of
    `REFERENCES` among the candidates.
    """
    rows = []
    for group, part in _groups(table):
        counts = Counts.of(part)
        chosen = _best(compared, group)
        for model in law.candidates(counts, candidates):
            if model.name in (chosen, *REFERENCES):
                found = scatter.fit(model, counts)
                rows += [
                    {**group, "model": model.name, "chosen": model.name == chosen, "parameter": each.name}
                    | {"value": each.value, "low": each.low, "high": each.high}
                    for each in scatter.intervals(found, counts)
                ]
    return pandas.DataFrame(rows)


def _coordinates(counts: Counts, found: law.Fit) -> dict[str, np.ndarray]:
    n, d0, d1 = counts.num_samples, counts.d0, counts.d1
    coordinates = {
        "d0 d1 / N": d0 * d1 / n,
        "parameters / N": counts.parameters * d1 / n,
        "d1 / log2 N": d1 / np.log2(n),
        f"d1 / d1* of {found.model.name}": d1 / found.boundary(n, d0, counts.parameters),
    }
    if (counts.parameters == d0).all():
        coordinates.pop("parameters / N")
    return coordinates


def scalings(
    table: pandas.DataFrame, compared: pandas.DataFrame, num_resamples: int = 200
) -> tuple[pandas.DataFrame, pandas.DataFrame]:
    """Of all rows and of those of each regime (`law.regime`): whether counts collapse, and how the transition's
    steepness grows.

    Returns:
      A row a (set-up, regime, coordinate) of `scaling.collapse`, and a row a (set-up, regime, power) of
      `scaling.transition_exponent`; what has too few cells is not there.
    """
    collapses, exponents = [], []
    for group, part in _groups(table):
        whole = Counts.of(part)
        chosen = next(model for model in law.MODELS if model.name == _best(compared, group))
        found = scatter.fit(chosen, whole)
        kinds = law.regime(whole.num_samples, whole.d0)
        for kind in ("all", "counting", "between", "floor"):
            counts = whole.take(kinds == kind) if kind != "all" else whole
            if len(np.unique(counts.rows)) < 3 or len(np.unique(counts.num_samples)) < 2:
                continue
            here = {**group, "regime": kind, "runs": int(counts.runs.sum())}
            for name, coordinate in _coordinates(counts, found).items():
                try:
                    collapsed = scaling.collapse(coordinate, counts)
                except ValueError:
                    continue
                collapses.append({**here, "coordinate": name, **collapsed._asdict()})
            for with_width in (False, True) if kind == "all" else (False,):
                try:
                    grown = scaling.transition_exponent(counts, with_width=with_width, num_resamples=num_resamples)
                except ValueError:
                    continue
                exponents += [
                    {
                        **here,
                        "rows": grown.rows,
                        "powers": " and ".join(grown.names),
                        "power": name,
                        "estimate": grown.estimate[place],
                        "low": grown.low[place],
                        "high": grown.high[place],
                        "rows_low": grown.rows_low[place],
                        "rows_high": grown.rows_high[place],
                    }
                    for place, name in enumerate(grown.names)
                ]
    return pandas.DataFrame(collapses), pandas.DataFrame(exponents)


def _steepness(table: pandas.DataFrame) -> pandas.DataFrame:
    """A row a (set-up, N): `scaling.steepness`."""
    rows = [
        {**group, **found._asdict()} for group, part in _groups(table) for found in scaling.steepness(Counts.of(part))
    ]
    return pandas.DataFrame(rows)


def dead_samples(table: pandas.DataFrame) -> pandas.DataFrame:
    """A row a (set-up, N, d0, d1): dead samples at the start, counted and foreseen.

    `expected` is N 2^(-d1), exact; `independent` the probability of a dead sample for samples that are dead
    independently, `low` and `high` its bounds for all (see `scaling.probability_of_dead`); `share` the measured one,
    with Wilson's interval; `inside` whether a two-sided binomial test at one in a thousand agrees with `independent`.
    """
    known = table[table["runs_with_dead"].notna() & (table["runs"] > 0)]
    rows = []
    for cell in known.itertuples():
        independent, low, high = scaling.probability_of_dead(cell.num_samples, cell.d0, cell.d1)
        count, runs = int(cell.runs_with_dead), int(cell.runs)
        share_low, share_high = interval(count, runs)
        rare_low, rare_high = interval(count, runs, "exact", 0.999)
        rows.append(
            {name: getattr(cell, name) for name in [*SETUP, "num_samples", "d0", "d1", "runs"]}
            | {
                "measured": cell.dead_at_start,
                "expected": float(scaling.expected_dead(cell.num_samples, cell.d1)),
                "runs_with_dead": count,
                "share": count / runs,
                "share_low": share_low,
                "share_high": share_high,
                "independent": float(independent),
                "low": float(low),
                "high": float(high),
                "inside": rare_low <= float(independent) <= rare_high,
            }
        )
    return pandas.DataFrame(rows)


def dead_ratio(dead: pandas.DataFrame, num_resamples: int = 1000) -> tuple[float, float, float]:
    """Dead samples counted over those expected, over all cells, and the interval from (d0, d1) drawn anew: runs of the
    same (d0, d1, seed) have the same weights at every N.
    """
    sums = (
        pandas.DataFrame({name: dead["runs"] * dead[name] for name in ("measured", "expected")})
        .groupby([dead["d0"], dead["d1"]])
        .sum()
    )
    measured, expected = (sums[name].to_numpy() for name in ("measured", "expected"))
    places = np.random.default_rng(0).integers(len(sums), size=(num_resamples, len(sums)))
    low, high = np.quantile(measured[places].sum(1) / expected[places].sum(1), [0.025, 0.975])
    return float(measured.sum() / expected.sum()), float(low), float(high)


def _floor_models() -> tuple[law.Model, ...]:
    f, g, a = law.FLOOR, law.LOGS, law.Parameter("a", 0.2)
    return (
        law.Model("constant", "f", (f,), lambda n, d0, m, f: f + 0 * n),
        law.Model("log2 N + constant", "log2 N + f", (law.Parameter("f", 0.5, positive=False),), _shifted),
        law.Model("multiple of log2 N", "g log2 N", (g,), lambda n, d0, m, g: g * np.log2(n)),
        law.Model("log2 N twice + constant", "2 log2 N + f", (law.Parameter("f", 0.5, positive=False),), _twice),
        law.Model("power of N", "f N^a", (f, a), lambda n, d0, m, f, a: f * n**a),
    )


def _shifted(n: np.ndarray, d0: np.ndarray, m: np.ndarray, f: float) -> np.ndarray:
    return np.maximum(np.log2(n) + f, 1e-3)


def _twice(n: np.ndarray, d0: np.ndarray, m: np.ndarray, f: float) -> np.ndarray:
    return np.maximum(2 * np.log2(n) + f, 1e-3)


def floors(table: pandas.DataFrame) -> pandas.DataFrame:
    """A row a (set-up, model): laws of the width at large d0 alone, where N / d0 is below log2 N / 2, by how well they
    foresee each N from the others.
    """
    rows = []
    for group, part in _groups(table):
        counts = Counts.of(part)
        counts = counts.take(law.regime(counts.num_samples, counts.d0) == "floor")
        sizes = np.unique(counts.num_samples)
        if len(sizes) < 3:
            continue
        scores = scatter.held_out(_floor_models(), counts, [counts.num_samples == size for size in sizes])
        for place, name in enumerate(scores.names):
            model = next(model for model in _floor_models() if model.name == name)
            found = scatter.fit(model, counts)
            parameters = scatter.intervals(found, counts)[: len(model.parameters)]
            rows.append(
                {
                    **group,
                    "model": name,
                    "formula": model.formula,
                    **_scored(scores, place),
                    "parameters": "; ".join(
                        f"{p.name} = {p.value:.3g} ({p.low:.3g} to {p.high:.3g})" for p in parameters
                    ),
                    "sigma": found.values["sigma"],
                }
            )
    return pandas.DataFrame(rows)


def ranks(table: pandas.DataFrame, num_resamples: int = 0) -> pandas.DataFrame:
    """A row a (set-up, N, d0) with measured ranks: the width at which half of the Jacobians have rank N, at the start
    and at the end, with intervals; and the shares over all runs of the row, with Wilson's.
    """
    found = []
    for moment in ("start", "end"):
        column = f"full_rank_{moment}"
        known = table[table[column].notna()]
        if not len(known):
            continue
        limits = boundaries(known.assign(outcome="rank"), column, num_resamples)
        sums = known.groupby([*SETUP, "num_samples", "d0"], sort=False)[[column, "runs"]].sum()
        for row in limits.to_dict("records"):
            key = tuple(row[name] for name in [*SETUP, "num_samples", "d0"])
            count, runs = (int(sums.loc[key, name]) for name in (column, "runs"))
            low, high = interval(count, runs)
            kept = [*SETUP, "num_samples", "d0", "boundary", "boundary_low", "boundary_high", "place"]
            found.append(
                {name: row[name] for name in kept}
                | {"moment": moment, "full_rank": count, "runs": runs, "share": count / runs}
                | {"share_low": low, "share_high": high}
            )
    return pandas.DataFrame(found)


@functools.lru_cache(maxsize=4)
def _certified(rows: tuple[tuple[int, int], ...]) -> pandas.DataFrame:
    return pandas.DataFrame(certified_widths(rows), columns=list(CertifiedWidth._fields))


def analyze(
    table: pandas.DataFrame,
    *,
    caption: str = "",
    more: Mapping[str, pandas.DataFrame] | None = None,
    candidates: Sequence[law.Model] = law.MODELS,
    largest_certified: int = 800,
    num_resamples: int = 40,
) -> Report:
    """The report of a table of counts.

    Args:
      table: a row a cell; columns condition, trained_layers, loss, num_samples, d0, d1, runs, converged, proved_global,
        proved_local, diverged, dead_at_start, runs_with_dead, full_rank_start, full_rank_end. Laws are not fitted to
        rows most of whose failures diverged.
      caption: what was run, for figures and text.
      more: further tables.
      candidates: the laws that are compared.
      largest_certified: N up to which certified widths are computed.
      num_resamples: of rows, for the intervals of steepness; of runs, twice as many, for those of boundaries.
    """
    cells = table[table["runs"] > 0].reset_index(drop=True)
    table, cells = outcomes(cells), once(cells)
    limits = boundaries(table, num_resamples=2 * num_resamples)
    table = table[table["runs"] > 0].reset_index(drop=True)
    # A set-up needs rows of at least two N, and something to see.
    enough = table.groupby(GROUP)["num_samples"].transform("nunique") > 1
    fitted = stable(table[enough & (table.groupby(GROUP)["converged"].transform("sum") > 0)])
    tables: dict[str, pandas.DataFrame] = {"summary": cells, "boundaries": limits}
    if len(fitted):
        groups = fitted.groupby(GROUP).ngroups
        logging.info("fitting laws to %d set-ups: up to some minutes for each", groups)
        tables["models"] = models(fitted, candidates)
        tables["laws"] = laws(fitted, tables["models"], candidates)
        tables["collapse"], tables["transition"] = scalings(fitted, tables["models"], num_resamples)
        tables["floor"] = floors(fitted)
    # Starts and ends are the same whatever a success is called.
    tables["dead_samples"], tables["rank"] = dead_samples(cells), ranks(cells)
    pairs = table.loc[table["num_samples"] <= largest_certified, ["num_samples", "d0"]].drop_duplicates()
    tables["certified"] = _certified(tuple((int(n), int(d0)) for n, d0 in pairs.itertuples(index=False)))
    tables |= {"steepness": _steepness(stable(table)), **(more or {})}
    if "failures" in tables:
        tables["dying"] = dying(tables["failures"])
        tables["dying_rows"] = dying(tables["failures"], by_row=True)
    tables = {name: part for name, part in tables.items() if len(part)}
    drawn = figures.draw(table, tables, caption)
    return Report(
        tables, drawn, (), "\n".join([*_lines(table, tables), caption]), {"models": "%.8g", "counts": "%.12g"}
    )


def failures(results: Results) -> pandas.DataFrame:
    """A row a (set-up, N, d0, d1): whether dead samples are why runs fail.

    Counts of finished runs that did not diverge: `runs`, `failed`, `dead_start` and `dead_end` (with a dead sample at
    the start, and in the last network), `failed_dead_start`, `failed_dead_end`.
    """
    rows = []
    for variant, found in results.items():
        status, start, end = (found[name].values for name in ("status", "dead_at_start", "dead_samples"))
        finished = (status != Status.PENDING) & (status != Status.DIVERGED)
        failed = finished & (status != Status.CONVERGED)
        counts = {
            "runs": finished,
            "failed": failed,
            "dead_start": finished & (start > 0),
            "dead_end": finished & (end > 0),
            "failed_dead_start": failed & (start > 0),
            "failed_dead_end": failed & (end > 0),
        }
        sums = {name: mask.sum(axis=-1) for name, mask in counts.items()}
        rows += [
            {
                "condition": condition_of(variant),
                "trained_layers": variant.trained_layers,
                "loss": loss_of(variant),
                "num_samples": variant.num_samples,
                "d0": int(found["d0"].values[i]),
                "d1": int(found["d1"].values[j]),
                **{name: int(total[i, j]) for name, total in sums.items()},
            }
            for i, j in np.argwhere(sums["runs"] > 0)
        ]
    return pandas.DataFrame(rows)


def report(study: BoundaryStudy, results: Results) -> Report:
    """The report of a study's results."""
    caption = (
        f"Rows uniform on the sphere, balanced labels; at most {study.steps_per_sample} N steps, {study.stop}, "
        f"{study.precision}; scaled: learning rate {study.rate:g} over the largest eigenvalue of J J^T at the start. "
        f"Configuration {configuration_of(study.science())}."
    )
    return analyze(counted(study, results), caption=caption, more={"failures": failures(results)})


def _dying_model(name: str, parameters: tuple[law.Parameter, ...], k: Any) -> law.Model:
    return law.Model(name, "exp(-N 2^(-k d1))", parameters, lambda n, d0, m, *of: 1e-9 + 0 * n, k)


_DYING = (
    _dying_model("k", (law.K,), lambda n, d0, k: k),
    _dying_model("1 - 1 / (2 + q N / d0)", (law.Q,), lambda n, d0, q: law.k_of_ratio(n / d0, q)),
    _dying_model(
        "1 - 1 / (2 + q (N / d0)^p)",
        (law.Q, law.Parameter("p", 1.0, scale=1.0)),
        lambda n, d0, q, p: law.k_of_ratio((n / d0) ** p, q),
    ),
)


def dying(causes: pandas.DataFrame, by_row: bool = False) -> pandas.DataFrame:
    """How fast dead samples become rare: k of P(no dead sample) = exp(-N 2^(-k d1)), a row a (set-up, regime, moment,
    law of k, parameter), or a (set-up, N, d0, moment).

    At the start k is 1 if samples are dead independently; where k is 1/2 a sample is as good as dead when the half of
    the neurons whose output has its label's sign is inactive on it (`relu_sgd.theory.orthogonal`).

    Args:
      causes: see `failures`.
      by_row: whether every (N, d0) has its k.

    Returns:
      Columns SETUP, regime or num_samples and d0, moment, runs, with_dead, law, parameter, value, low, high, and, but
      `by_row`, rows_low and rows_high (see `law.Estimate`), deviance, expected_deviance. At the end, of
      three N / d0 or more, laws by which k depends on N / d0 are fitted besides.
    """
    rows = []
    for group, part in causes.groupby(SETUP, sort=False):
        for place, chosen in _parts(part, by_row):
            for moment in ("start", "end"):
                dead = int(chosen[f"dead_{moment}"].sum())
                if not 0 < dead < int(chosen["runs"].sum()):
                    continue
                counts = Counts.of(chosen.assign(alive=chosen["runs"] - chosen[f"dead_{moment}"]), "alive")
                here = dict(zip(SETUP, group, strict=True)) | place
                here |= {"moment": moment, "runs": int(counts.runs.sum()), "with_dead": dead}
                several = not by_row and len(np.unique(counts.num_samples / counts.d0)) > 2
                for model in _DYING if moment == "end" and several else _DYING[:1]:
                    found = law.fit(model, counts, transition="constant")
                    fitted = {
                        "deviance": found.deviance,
                        "expected_deviance": law.expected_deviance(found.probability(counts), counts),
                    }
                    estimates = law.intervals(
                        found, counts, num_resamples=0 if by_row else 100, leave_out=[p.name for p in found.transition]
                    )
                    for each in estimates[: len(model.parameters)]:
                        around = {} if by_row else {"rows_low": each.rows_low, "rows_high": each.rows_high}
                        value = {"value": each.value, "low": each.low, "high": each.high}
                        rows.append(here | {"law": model.name, "parameter": each.name} | value | around | fitted)
    return pandas.DataFrame(rows)


def _parts(causes: pandas.DataFrame, by_row: bool) -> Iterable[tuple[dict[str, Any], pandas.DataFrame]]:
    """The rows (N, d0), or all of them and each regime, with the columns that name them."""
    if by_row:
        for (size, d0), part in causes.groupby(["num_samples", "d0"]):
            yield {"num_samples": int(size), "d0": int(d0)}, part
        return
    kinds = law.regime(causes["num_samples"].to_numpy(float), causes["d0"].to_numpy(float))
    for kind in ("all", "counting", "between", "floor"):
        yield {"regime": kind}, causes[(kinds == kind) | (kind == "all")]


def _said(values: Sequence[float]) -> str:
    estimate, low, high = values
    return f"{estimate:.3g} ({low:.3g} to {high:.3g})"


def _distance(row: Any) -> str:
    """Of a model to the best one."""
    if row.behind == 0:
        return "best"
    said = "behind" if row.is_behind else "not told apart from the best, less"
    return f"{said} by {row.behind:.1f} (95 percent: {row.margin:.1f} either way, of {row.rows} rows)"


def _lines(table: pandas.DataFrame, tables: dict[str, pandas.DataFrame]) -> list[str]:
    """The text."""
    lines = []
    for group, part in _groups(table):
        here = lambda name, group=group: _select(tables.get(name), group)
        total = part[["runs", "converged", "diverged"]].sum()
        lines.append(
            f"\n{', '.join(group.values())}: {int(total['runs'])} runs in {len(part)} cells, "
            f"{int(total['converged'])} successes, {int(total['diverged'])} diverged"
        )
        limits = here("boundaries")
        for n, row in limits.groupby("num_samples"):
            said = [_boundary(each) for each in row.itertuples()]
            lines.append(f"N = {n}: d1* at " + "; ".join(said))
        for left_out, compared in here("models").groupby("left_out", sort=False) if len(here("models")) else ():
            lines.append(f"left out: {left_out} ({compared['rows'].iloc[0]} rows, {compared['runs'].iloc[0]} runs)")
            for model in compared.head(6).itertuples():
                lines.append(
                    f"  {model.model}: {model.score:.5f} a run, {_distance(model)}; rows scatter by {model.sigma:.3f}"
                )
        for model in here("foreseen").head(6).itertuples():
            lines.append(f"foreseen: {model.model}: {model.score:.5f} a run, {_distance(model)}")
        for name, parameters in here("laws").groupby("model", sort=False) if len(here("laws")) else ():
            told = parameters[parameters["low"].notna()]
            said = [f"{p.parameter} = {_said((p.value, p.low, p.high))}" for p in told.itertuples()]
            lines.append(f"{'chosen law' if parameters['chosen'].iloc[0] else 'law'}: {name}: " + "; ".join(said))
        for row in here("collapse").query("regime == 'all'").itertuples() if len(here("collapse")) else ():
            lines.append(
                f"collapse over {row.coordinate}, {row.regime} rows: one curve explains {row.share_of_sizes:.4f} of "
                f"what one for each N does, and {row.share_of_rows:.4f} of one for each row (p = {row.p_sizes:.2g}, "
                f"{row.p_rows:.2g})"
            )
        for row in here("transition").itertuples() if len(here("transition")) else ():
            lines.append(
                f"steepness, {row.regime} rows ({row.rows}), powers {row.powers}: {row.power} = "
                f"{_said((row.estimate, row.low, row.high))}, by rows {row.rows_low:.3g} to {row.rows_high:.3g}"
            )
        for row in here("floor").itertuples() if len(here("floor")) else ():
            lines.append(f"floor: {row.formula}: {row.parameters}; {_distance(row)}")
        if group["outcome"] != "criterion":
            continue
        dead = here("dead_samples")
        if len(dead):
            lines.append(
                f"dead samples at the start, counted over expected N 2^-d1: {_said(dead_ratio(dead))} in {len(dead)} "
                f"cells; share of runs with one as for independent samples in {int(dead['inside'].sum())} cells"
            )
        causes = here("failures")
        if len(causes):
            low = causes[law.regime(causes["num_samples"].to_numpy(float), causes["d0"].to_numpy(float)) == "floor"]
            for name, part in (("all rows", causes), ("floor rows", low)):
                total = part.drop(columns=SETUP).sum().astype(int)
                lines.append(
                    f"{name}: of {total['failed']} failures {total['failed_dead_end']} end with a dead "
                    f"sample, {total['failed_dead_start']} began with one; of {total['dead_start']} runs that "
                    f"began with one {total['dead_start'] - total['failed_dead_start']} succeeded"
                )
        for row in here("dying").query("regime in ('all', 'floor')").itertuples() if len(here("dying")) else ():
            lines.append(
                f"no dead sample at the {row.moment}, {row.regime} rows: exp(-N 2^(-k d1)) with "
                f"{'' if row.law == 'k' else f'k = {row.law}, '}{row.parameter} = "
                f"{_said((row.value, row.low, row.high))}, by rows {row.rows_low:.3g} to {row.rows_high:.3g}; deviance "
                f"{row.deviance:.0f}, of a true one about {row.expected_deviance:.0f}"
            )
        for moment, row in here("rank").groupby("moment", sort=False) if len(here("rank")) else ():
            lines.append(f"rank N at the {moment}: {int(row['full_rank'].sum())} of {int(row['runs'].sum())} runs")
    return lines


def _select(table: pandas.DataFrame | None, group: dict[str, str]) -> pandas.DataFrame:
    """The rows of a group; of a table without outcomes, those of its set-up."""
    if table is None:
        return pandas.DataFrame()
    known = [name for name in group if name in table]
    return table[(table[known] == pandas.Series(group)[known]).all(axis=1)]


def _boundary(row: Any) -> str:
    if row.place == logistic.INSIDE:
        return f"d0 = {row.d0}: {_said((row.boundary, row.boundary_low, row.boundary_high))}{_besides(row)}"
    bound = {logistic.ABOVE: f"above {row.boundary_low:.3g}", logistic.BELOW: f"below {row.boundary_high:.3g}"}
    return f"d0 = {row.d0}: {bound.get(row.place, 'not known')}{_besides(row)}"


def _besides(row: Any) -> str:
    """What undecided runs would change."""
    if not row.undecided:
        return ""
    names = [f"boundary_undecided_fail{end}" for end in ("", "_low", "_high")]
    return f", with {row.undecided} undecided as failures {_said([getattr(row, name) for name in names])}"
