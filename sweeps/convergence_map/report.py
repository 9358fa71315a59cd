"""What a convergence map says: summary.csv, figures, and the maps as text."""

from collections.abc import Mapping

import numpy as np
import pandas
import xarray as xr

from sweeps.convergence_map import figures
from sweeps.convergence_map.study import INTERVALS, ConvergenceMap
from sweeps.protocol import laws
from sweeps.protocol.presets import CHOICES, PRESETS
from sweeps.protocol.study import ProtocolStudy
from sweeps.reporting import boundary
from sweeps.reporting.statistics import interval, summarize, summarize_proofs
from sweeps.reporting.style import variant_title
from sweeps.runtime.session import configuration_of
from sweeps.study import Claim, Report, Results, Variant, flags_of

__all__ = ["caption", "report", "text_map"]

SCALE = ".123456789#"
PROVED = (
    "Proved (docs/proofs.md): such a minimum exists, of the very network and data of the run, at most as far away as "
    "the store says; a local one is of L(., V) where the hidden layer is trained. Where descent would go is not proved."
)


def _overrides(study: ProtocolStudy) -> list[str]:
    """The values that differ from the preset's, as flags; the grid and the number of seeds are named elsewhere."""
    usual = study.make(protocol=study.protocol, trained_layers=study.trained_layers, dynamics=study.dynamics)
    skipped = ("trained_layers", "d0", "d1", "num_seeds", "precision", "dynamics")
    changed = {name for name, value in study.replay().items() if getattr(usual, name) != value} - set(skipped)
    return [
        f"--{name}={spec.parser.serialize(getattr(study, name))}"
        for name, (spec, _) in flags_of(study).items()
        if name in changed
    ]


def caption(study: ProtocolStudy, runs: str = "") -> str:
    """Protocol, precision, seeds, stopping, and what the theorems say of the cells: the small print of every figure.

    Args:
      study: what was run.
      runs: how many a cell has, where that is not the study's number of seeds.
    """
    num_samples, d1 = study.num_samples, np.asarray(study.d1)
    overrides = _overrides(study)
    below = int((d1 < num_samples).sum())
    rank = (
        "Every cell has d1 < N, so alpha_0 = sigma_min(H^T) = 0 and the paper's theorems say nothing about it."
        if below == len(d1)
        else f"{below} of {len(d1)} widths are below N: there alpha_0 = 0 and the paper's theorems say nothing."
    )
    return (
        f"Protocol {study.protocol}{' with ' + ' '.join(overrides) if overrides else ''}, {study.precision}, "
        f"N = {num_samples}, {runs or f'{study.num_seeds} seeds'} a cell, {_dynamics(study)};\n"
        f"criterion {_criterion(study)}. {rank}\n"
        f"Configuration {configuration_of(study.science())}."
    )


def _criterion(study: ProtocolStudy) -> str:
    if laws.is_own(study.criterion):
        return laws.plain_name(study.criterion)
    return f"{CHOICES['criterion'][study.criterion]}, tolerance {study.tolerance:g}"


def _dynamics(study: ProtocolStudy) -> str:
    if study.dynamics == "inclusion":
        return (
            f"the differential inclusion itself, for a flow time of at most {study.flow_time:g} (path tolerance "
            f"{study.path_tolerance:g})"
        )
    return f"at most {study.num_steps:,} steps, {CHOICES['stop'][study.stop]}"


def text_map(summary: xr.Dataset) -> str:
    """The probabilities as characters: d0 down, d1 across; "." for 0, "#" for 1, digits for tenths (rounded down),
    blank for cells without a run.
    """
    tenths = np.floor(10 * summary["probability"].values + 1e-9)
    d1 = [str(size) for size in summary["d1"].values]
    width = max(map(len, d1)) + 1
    lines = ["d0 \\ d1" + "".join(size.rjust(width) for size in d1)]
    for d0, row in zip(summary["d0"].values[::-1], tenths[::-1], strict=True):
        cells = (" " if np.isnan(tenth) else SCALE[int(tenth)] for tenth in row)
        lines.append(str(d0).rjust(7) + "".join(cell.rjust(width) for cell in cells))
    return "\n".join(lines)


def _counts(variant: Variant, summary: xr.Dataset) -> str:
    total = {name: int(summary[name].sum()) for name in ("runs", "converged", "step_limit", "dead", "diverged")}
    stopped = f", {int(summary['stopped'].sum())} stopped at a proved local minimum" if "stopped" in summary else ""
    names = [name for name in PRESETS if summary[f"within_{name}"].notnull().any()]
    within = ", ".join(f"{int(summary[f'within_{name}'].sum())} that of {name}" for name in names)
    return (
        f"{variant_title(variant)}: {total['converged']} of {total['runs']} runs converged; failures: "
        f"{total['step_limit']} at the step limit, {total['dead']} with dead samples, {total['diverged']} diverged"
        f"{stopped}" + (f"\ncriteria met by the last network: {within}" if names else "")
    )


def _comparison(summaries: Mapping[Variant, xr.Dataset]) -> tuple[Claim, ...]:
    """Whether the variants differ, as far as the intervals can tell."""
    if len(summaries) != 2:
        return ()
    (first, a), (second, b) = summaries.items()
    better = int((a["probability_low"] > b["probability_high"]).sum())
    worse = int((b["probability_low"] > a["probability_high"]).sum())
    cells = int((a["runs"] * b["runs"] > 0).sum())
    result = (
        f"of {cells} cells, {better} have a probability that is higher in the set-up {first.group!r} and {worse} one "
        f"that is higher in {second.group!r}, with 95 percent intervals that do not overlap"
    )
    return (Claim("Section 6", "no difference between the set-ups", result, better + worse == 0 if cells else None),)


def _share(count: int, runs: int, study: ConvergenceMap) -> str:
    """A count with its share of some runs and the interval of it."""
    if not runs:
        return f"{count} of 0"
    low, high = interval(count, runs, study.interval)
    return f"{count} of {runs} ({count / runs:.1%}; {low:.1%} to {high:.1%})"


def _proofs(study: ConvergenceMap, summaries: Mapping[Variant, xr.Dataset]) -> tuple[tuple[Claim, ...], str]:
    """What the criterion says of a run against what is proved of its end."""
    claims, lines = [], []
    for variant, summary in summaries.items():
        total = {name: int(summary[name].sum()) for name in summary if summary[name].dtype.kind in "iu"}
        missed = total["runs"] - total["converged"] - total["not_tried"]
        title = variant_title(variant)
        local, unsure = total["converged_at_local"], total["converged_undecided"]
        other, unknown = total["missed_at_global"], total["missed_undecided"]
        claims += [
            Claim(
                "Section 6.2",
                f"a run that meets the criterion is at a global minimum ({title})",
                f"a local minimum of positive loss is proved nearby in {_share(local, total['converged'], study)} runs "
                f"that meet it, {unsure} undecided",
                None if unsure and not local else not local,
            ),
            Claim(
                "Section 6.2",
                f"a run that misses the criterion is at no global minimum ({title})",
                f"a global minimum is proved nearby in {_share(other, missed, study)} runs that miss it, {unknown} "
                "undecided",
                None if unknown and not other else not other,
            ),
        ]
        lines += [
            f"{title}: a global minimum is proved near {_share(total['proved_global'], total['runs'], study)} runs, "
            f"a local minimum of positive loss near {_share(total['proved_local'], total['runs'], study)}; "
            f"{total['undecided']} undecided, {total['not_tried']} diverged",
            *(f"{title}: {claim.result}" for claim in claims[-2:]),
        ]
    return tuple(claims), "\n".join(lines)


def _refined(study: ConvergenceMap, summaries: Mapping[Variant, xr.Dataset]) -> str:
    """How many runs the cells have, where --refine gave some of them more."""
    most = max(int(summary["runs"].max()) for summary in summaries.values())
    return f"{study.num_seeds} to {most} runs (refined)" if most > study.num_seeds else ""


def _with_method(study: ConvergenceMap, text: str) -> str:
    """The small print, with what the boundary is."""
    shared = "; the runs of a cell share their data, so it is for these data" if study.data_sharing == "cell" else ""
    return f"{text} {boundary.METHOD}{shared}."


def _joined(frames: Mapping[Variant, pandas.DataFrame]) -> pandas.DataFrame:
    """The tables of all set-ups as one."""
    for variant, frame in frames.items():
        for position, (name, value) in enumerate(variant.varied.items()):
            frame.insert(position, name, str(value))
    return pandas.concat(frames.values(), ignore_index=True)


def report(study: ConvergenceMap, results: Results) -> Report:
    """summary.csv, boundary.csv, the figures, and the maps as text."""
    summaries = {variant: summarize(data, study.interval) for variant, data in results.items()}
    if study.prove:
        summaries = {variant: xr.merge([of, summarize_proofs(results[variant])]) for variant, of in summaries.items()}
    text = caption(study, _refined(study, summaries))
    tables = {variant: boundary.table(of, "d1") for variant, of in summaries.items() if len(study.d1) > 1}
    drawn = {
        "probability": figures.probability(summaries, _with_method(study, text) if tables else text, tables or None),
        "interval_width": figures.intervals(summaries, text, INTERVALS[study.interval]),
        "numerical_zeros": figures.numerical_zeros(summaries, text),
        "steps": figures.convergence_steps(summaries, text),
        "causes": figures.causes(summaries, text),
    }
    proved: tuple[tuple[Claim, ...], str] = ((), "")
    if study.prove:
        drawn["verdicts"] = figures.verdicts(summaries, f"{text} {PROVED}")
        drawn["proved_errors"] = figures.proved_errors(results, f"{text} {PROVED}")
        proved = _proofs(study, summaries)
    frames = {
        variant: summary.to_dataframe(dim_order=["d0", "d1"]).reset_index() for variant, summary in summaries.items()
    }
    claims = _comparison(summaries)
    parts: list[str] = []
    for variant, summary in summaries.items():
        parts.append(f"\n{_counts(variant, summary)}\n{text_map(summary)}")
        parts += [boundary.text(tables[variant], "d1", "d0")] if tables else []
    parts += [f"\n(. is probability 0, # is 1, digits are tenths)\n{text}", *(claim.result for claim in claims)]
    if study.prove:
        parts.append(f"\n{proved[1]}\n{PROVED}")
    made = {"summary": _joined(frames)} | ({"boundary": _joined(tables)} if tables else {})
    return Report(made, drawn, (*claims, *proved[0]), "\n".join(parts))
