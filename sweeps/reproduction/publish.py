"""The ledger as files: JSON, CSV, the page, and on request LaTeX, Markdown and PDF."""

import re
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import pandas

from sweeps.reproduction import ledger, page
from sweeps.reproduction.ledger import Entry, Finding, Judged, Verdict
from sweeps.reproduction.measure import Stored, measure
from sweeps.reproduction.page import text
from sweeps.reproduction.studies import KINDS, Planned, command_of, flags_that_differ
from sweeps.runtime import journal

__all__ = [
    "documents",
    "findings",
    "judge_all",
    "judged_again",
    "markdown",
    "readme_table",
    "replaced",
    "table",
    "write",
]

# Of a figure of so many bytes the PNG is shown: a browser draws tens of thousands of dots slowly.
_LARGEST_SVG = 300_000
_SHORT = {
    Verdict.HOLDS: "holds",
    Verdict.AS_RELEASED: "as released",
    Verdict.FAILS: "not as written",
    Verdict.UNDECIDED: "undecided",
    Verdict.NOT_MEASURED: "not measured",
    Verdict.NOT_COMPUTABLE: "",
}
# File name of a figure to its caption and what is on it.
_FIGURES = {
    "comparison_ode": (
        "Solutions of (9), as printed and with 2 alpha t",
        "Two panels of curves y(t), a colour per left side of (10): curves stay below the red band of the bound or "
        "leave the panel steeply.",
    ),
    "probability": (
        "Probability of convergence over (d0, d1)",
        "A map per set-up, d1 across and d0 up: dark where no run converges, bright where all do, with a sharp edge.",
    ),
    "numerical_zeros": (
        "Numerical zeros of the last network, mean over the runs of a cell",
        "A map per set-up, d1 across and d0 up, coloured by the number of preactivations below 1e-8.",
    ),
    "verdicts": (
        "Shares of runs with a proved global and a proved local minimum nearby",
        "Maps per set-up and kind of minimum, d1 across and d0 up.",
    ),
    "trajectories": (
        "What happens along training: Figure 3",
        "A row per set-up: error, zeros, pattern changes, regions, relative changes of loss and differential against "
        "the step, a colour per width.",
    ),
    "lazy": (
        "Relative change of the loss against that of the differential, in both meanings",
        "Dots per record on logarithmic axes with the diagonal: training is lazy below it.",
    ),
    "inclusion_limit": (
        "Descent against the inclusion, and zeros against what slides",
        "Left the distance against the step size with a line of slope 1; right zeros of descent against sliding "
        "preactivations, near the diagonal.",
    ),
    "step_counts": (
        "Steps of mini-batch SGD to a loss below epsilon",
        "Left steps against eta b with lines of slope -1; right flow time against 1 / epsilon.",
    ),
    "statements": (
        "The least relative margin of every statement on random problems",
        "A dot per statement, to the right of a vertical line at 0 where no problem violates it.",
    ),
    "width_bounds": (
        "Certified widths against N, Table 1's orders, and alpha_0 at small multiples of N",
        "Curves of width against N on logarithmic axes, and ratios of alpha_0 to Lemma C.1's bound.",
    ),
}


def _seconds(folder: Path) -> float:
    """What all sessions took; NaN where none is known."""
    took = [float(line["seconds"]) for line in journal.sessions(folder) if "seconds" in line]
    return sum(took) if took else float("nan")


def _machine(folder: Path) -> dict[str, str]:
    """What the last session says of its machine and versions."""
    last = (journal.sessions(folder) or [{}])[-1]
    machine = {name: str(last[name]) for name in ("device", "num_processes", "kernel", "commit") if last.get(name)}
    return machine | {name: str(version) for name, version in last.get("versions", {}).items()}


def _figures(folder: Path) -> tuple[tuple[Path, str, str], ...]:
    """Those that are described here, in that order."""
    found = []
    for stem, (caption, alt) in _FIGURES.items():
        path = folder / "figures" / f"{stem}.svg"
        if path.exists() and path.stat().st_size > _LARGEST_SVG:
            path = path.with_suffix(".png")
        if path.exists():
            found.append((path, caption, alt))
    return tuple(found)


def findings(stored: Iterable[Stored], commands: Mapping[str, str]) -> tuple[Finding, ...]:
    """The studies that there are results of, as the page shows them."""
    made = []
    for one in stored:
        summary = one.folder / "summary.csv"
        made.append(
            Finding(
                key=one.key,
                title=KINDS[one.key].title,
                command=commands.get(one.key, ""),
                configuration=one.configuration,
                folder=one.folder,
                seconds=_seconds(one.folder),
                machine=_machine(one.folder),
                figures=_figures(one.folder),
                summary=pandas.read_csv(summary) if summary.exists() else None,
            )
        )
    return tuple(made)


def _commands(stored: Iterable[Stored], planned: Iterable[Planned]) -> dict[str, str]:
    """The shell line of every study: the planned one, or its own where it ran with other flags."""
    known = {one.key: one for one in planned}
    return {
        one.key: known[one.key].command
        if one.key in known and known[one.key].study.science() == one.study.science()
        else command_of(one.key, one.study, flags_that_differ(one.study))
        for one in stored
    }


def judge_all(entries: Iterable[Entry], stored: Sequence[Stored], commands: Mapping[str, str]) -> tuple[Judged, ...]:
    """The verdict on every claim, from stored results alone."""
    measured = measure(stored)
    made = []
    for entry in entries:
        keys = [one.study for one in measured if one.name == entry.measurement] or [entry.study]
        command = "; ".join(dict.fromkeys(commands[key] for key in keys if key in commands))
        made.append(ledger.judge(entry, measured, "" if entry.out_of_scope else _of_one(entry, command)))
    return tuple(made)


def _of_one(entry: Entry, command: str) -> str:
    """The command that measures one entry alone: of the statements study its own statements, in a folder of theirs."""
    if entry.study != "statements":
        return command
    ids = ",".join(dict.fromkeys(condition["quantity"] for condition in ledger.conditions(entry.rule)))
    plain = re.sub(r" --statement=\S+", "", command)
    return re.sub(r" --out=\S+", f" --statement={ids} --out=DIR/{entry.id}", plain)


def _result(judged: Judged) -> str:
    return "; ".join(text.results(judged.measurements))


def table(judged: Iterable[Judged]) -> pandas.DataFrame:
    """The ledger, a row per claim."""
    return pandas.DataFrame(
        [
            {
                "id": one.entry.id,
                "section": one.entry.section,
                "place": one.entry.place,
                "kind": one.entry.kind,
                "says": one.entry.says,
                "verdict": one.verdict.value,
                "result": _result(one),
                "reason": one.reason,
                "erratum": one.entry.erratum,
                "study": one.entry.study,
                "command": one.command,
            }
            for one in judged
        ]
    )


def _tex(judged: Iterable[Judged]) -> str:
    """The ledger as a longtable; of the packages it needs longtable and booktabs."""
    short = table(judged)[["place", "says", "verdict", "result"]]
    rows = short.to_latex(index=False, escape=True, longtable=True, column_format="p{2cm}p{5.5cm}p{2.5cm}p{5cm}")
    return f"% The ledger of the paper's claims; needs longtable and booktabs.\n{rows}"


def _rows(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown."""
    # A bracket would begin a link.
    cells = lambda row: "| " + " | ".join(" ".join(re.sub(r"([|\[])", r"\\\1", part).split()) for part in row) + " |"
    return "\n".join([cells(header), "|" + "---|" * len(header), *map(cells, rows)]) + "\n"


def _shell(line: str) -> str:
    """A command, in lines that end in time."""
    return " \\\n    ".join(textwrap.wrap(line, 112, break_long_words=False, break_on_hyphens=False))


def _repeated_by(judged: Judged) -> str:
    """The statements, or the folders of the studies, that an entry is measured by."""
    found = re.findall(r"--statement=(\S+)", judged.command) or re.findall(r"--out=DIR/(\S+?)(?=;|$)", judged.command)
    return ", ".join(name.replace(",", ", ") for name in found)


def markdown(judged: Iterable[Judged], about: Mapping[str, str]) -> str:
    """The ledger as Markdown: what it is about, the commands that repeat it, and a table per section."""
    judged = tuple(judged)
    lines = ["", *(f"- {name}: {value}" for name, value in about.items()), ""]
    counts = {verdict: sum(one.verdict is verdict for one in judged) for verdict in ledger.Verdict}
    lines += [_rows(("verdict", "claims"), [(verdict.value, str(count)) for verdict, count in counts.items()])]
    commands = dict.fromkeys(
        line for one in judged if one.entry.study != "statements" for line in one.command.split("; ") if line
    )
    statements = "python -m sweeps.reproduction.statements --statement=ID --out=DIR/ID"
    lines += [
        "",
        "Commands by study; a statement has its ID beside it.",
        "",
        "```sh",
        *map(_shell, commands),
        statements,
        "```",
        "",
    ]
    for section in dict.fromkeys(one.entry.section for one in judged):
        lines += [f"## {section}", ""]
        rows = [
            (one.entry.place, one.entry.says, one.verdict.value, _result(one) or one.reason, _repeated_by(one))
            for one in judged
            if one.entry.section == section
        ]
        lines.append(_rows(("place", "the paper says", "verdict", "found", "study or ID"), rows))
    return "\n".join(lines)


def readme_table(judged: Iterable[Judged]) -> str:
    """What the experiments of the paper say, a line each: figures, tables and sentences that a study measures. Section
    7 repeats some of them, and captions and sentences about single figures are on the page.
    """
    rows = []
    for one in judged:
        is_one = one.entry.kind in ("figure", "table", "sentence") and one.entry.section != "Section 7"
        is_detail = one.entry.kind == "sentence" and one.entry.place.startswith("Figure")
        if is_one and not is_detail and one.entry.study not in ("", "statements"):
            says = one.entry.says.partition(" (here")[0].rstrip(".")
            rows.append((one.entry.place, textwrap.shorten(says, 68, placeholder="..."), _SHORT[one.verdict]))
    return _rows(("place", "the paper says", "found"), rows)


def judged_again(before: Sequence[Judged], entries: Iterable[Entry]) -> tuple[Judged, ...]:
    """The verdicts on claims from the measurements that a ledger holds."""
    measured = tuple(dict.fromkeys(one for judged in before for one in judged.measurements))
    commands = {one.entry.study: one.command for one in before} | {one.entry.id: one.command for one in before}
    return tuple(
        ledger.judge(entry, measured, _of_one(entry, commands.get(entry.id, commands.get(entry.study, ""))))
        for entry in entries
    )


def documents(root: Path) -> dict[Path, str]:
    """What the repository shows of the ledger in docs/reproduction, by file: the ledger itself, judged again by the
    claims of now; the page of the site; and README.

    Raises:
      LedgerError: the ledger or the claims cannot be read.
      OSError: a file cannot be read.
      ValueError: a file has no place for a table.
    """
    path = root / "docs" / "reproduction" / "ledger.json"
    before, about = ledger.load(path.read_text())
    judged = judged_again(before, ledger.read())
    shown = {path: ledger.dump(judged, about)}
    for name, generated in (("README.md", readme_table(judged)), ("docs/reproduction.md", markdown(judged, about))):
        shown[root / name] = replaced((root / name).read_text(), generated, "ledger")
    return shown


def write(
    out: Path, stored: Sequence[Stored], planned: Iterable[Planned], about: Mapping[str, str], formats: Sequence[str]
) -> tuple[tuple[Judged, ...], tuple[Path, ...]]:
    """Judges, and writes ledger.json, ledger.csv and what the formats ask for.

    Returns:
      The judged claims, and the files.

    Raises:
      LedgerError: the claims cannot be read.
      OSError: a file cannot be written.
    """
    commands = _commands(stored, planned)
    judged, found = judge_all(ledger.read(), stored, commands), findings(stored, commands)
    texts = {"ledger.json": ledger.dump(judged, about), "ledger.csv": table(judged).to_csv(index=False)}
    if "html" in formats:
        texts["index.html"] = page.render(judged, found, about)
    if "tex" in formats:
        texts["ledger.tex"] = _tex(judged)
    if "markdown" in formats:
        texts["ledger.md"] = markdown(judged, about)
    for name, content in texts.items():
        journal.write(out / name, content)
    names = list(texts)
    if "pdf" in formats:
        page.write_pdf(judged, found, out / "ledger.pdf")
        names.append("ledger.pdf")
    return judged, tuple(out / name for name in names)


def replaced(document: str, generated: str, name: str) -> str:
    """A document whose part between the comments `<!-- NAME -->` and `<!-- end of NAME -->` is what was generated.

    Raises:
      ValueError: it has no such part.
    """
    begin, end = f"<!-- {name} -->\n", f"<!-- end of {name} -->"
    before, found, rest = document.partition(begin)
    _, closed, after = rest.partition(end)
    if not (found and closed):
        raise ValueError(f"there are no comments around {name}")
    return f"{before}{begin}{generated}{closed}{after}"
