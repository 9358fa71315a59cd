"""The ledger and the studies behind it as one page of HTML that opens offline."""

import base64
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2
import markupsafe

from sweeps.reproduction.ledger import Finding, Judged, Measurement, Verdict, conditions
from sweeps.reproduction.page import charts, text

if TYPE_CHECKING:
    import pandas

__all__ = ["SYMBOLS", "render"]

FOLDER = Path(__file__).parent
# Beside the colour, for those who cannot tell it.
SYMBOLS = {
    Verdict.HOLDS: "✓",
    Verdict.AS_RELEASED: "≈",
    Verdict.FAILS: "✗",
    Verdict.UNDECIDED: "?",
    Verdict.NOT_MEASURED: "○",
    Verdict.NOT_COMPUTABLE: "-",
}
MEANINGS = {
    Verdict.HOLDS: "the whole 95 percent interval agrees with the paper, by its own protocol",
    Verdict.AS_RELEASED: "so it does by the released code's protocol, and the paper's own contradicts",
    Verdict.FAILS: "the whole interval contradicts the paper, or there is a verified counterexample",
    Verdict.UNDECIDED: "the interval lies on both sides, or covers only a part of what the paper shows",
    Verdict.NOT_MEASURED: "there is no result yet, or none by the paper's own protocol",
    Verdict.NOT_COMPUTABLE: "nothing to compute, with the reason",
}
_OWN_NAMES = ("entries", "filters", "ledger", "search", "shown", "studies", "table", "verdicts")
_ROWS_SHOWN = 200
_IMAGE_TYPES = {".png": "image/png", ".svg": "image/svg+xml", ".jpg": "image/jpeg"}


def _data_address(path: Path) -> str:
    """An image as an address that holds it; as an image and no part of the page, so that its names clash with none.
    Of an SVG and a PNG of one name the smaller one is taken.

    Raises:
      ValueError: not a PNG, SVG or JPEG file.
      OSError: it cannot be read.
    """
    if path.suffix.lower() not in _IMAGE_TYPES:
        raise ValueError(f"{path}: figures on the page are {', '.join(_IMAGE_TYPES)}")
    beside = [other for other in map(path.with_suffix, (".svg", ".png")) if other != path and other.exists()]
    smallest = min([path, *beside], key=lambda other: other.stat().st_size)
    kind = _IMAGE_TYPES[smallest.suffix.lower()]
    return f"data:{kind};base64,{base64.b64encode(smallest.read_bytes()).decode()}"


def _slug(verdict: Verdict) -> str:
    return verdict.name.lower().replace("_", "-")


def _main(judged: Judged) -> Measurement | None:
    """The measurement that the entry names; by the paper's own protocol where there are several."""
    named = [one for one in judged.measurements if one.name == judged.entry.measurement] or list(judged.measurements)
    return min(named, key=lambda one: one.protocol != "as_written", default=None)


def _sort_value(judged: Judged) -> str:
    """What the table is sorted by where it is sorted by results; empty where there is none."""
    main = _main(judged)
    return "" if main is None or not math.isfinite(main.value) else repr(float(main.value))


def _rule(rule: Mapping[str, Any]) -> str:
    """A rule in words: where every quantity's interval has to lie."""
    words = []
    for condition in conditions(rule):
        for bound, value in condition.items():
            name = condition["quantity"].replace("_", " ")
            if bound == "between":
                words.append(f"{name} between {text.number(value[0])} and {text.number(value[1])}")
            elif bound == "violations":
                words.append(f"{name}: no violation")
            elif bound != "quantity":
                words.append(f"{name} {bound.replace('_', ' ')} {text.number(value)}")
    return "; ".join(words)


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return "" if math.isnan(value) else text.number(value)
    return str(value)


def _table(summary: "pandas.DataFrame") -> dict[str, Any]:
    """The first rows of a table as text."""
    shown = summary.head(_ROWS_SHOWN)
    return {
        "header": [str(name) for name in shown.columns],
        "rows": [[_cell(value) for value in row] for row in shown.itertuples(index=False)],
        "left_out": len(summary) - len(shown),
    }


def _studies(judged: Judged) -> set[str]:
    return {one.study for one in judged.measurements}


def _finding(finding: Finding, judged: Sequence[Judged]) -> dict[str, Any]:
    summary = finding.summary
    is_map = summary is not None and charts.is_map(summary)
    return {
        "finding": finding,
        "entries": [one.entry for one in judged if finding.key in {one.entry.study, *_studies(one)}],
        "machine": ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in finding.machine.items()),
        "images": [(_data_address(Path(path)), caption, alt) for path, caption, alt in finding.figures],
        "maps": charts.map_charts(summary) if is_map else (),
        "table": None if summary is None or is_map or summary.empty else _table(summary),
    }


def _by_section(judged: Sequence[Judged]) -> dict[str, list[Judged]]:
    """Entries by section, in the order of the paper; a section that comes back later is one all the same."""
    sections: dict[str, list[Judged]] = {}
    for one in judged:
        sections.setdefault(one.entry.section, []).append(one)
    return sections


def render(judged: Sequence[Judged], findings: Sequence[Finding], about: Mapping[str, str]) -> str:
    """One page of HTML with the ledger, every entry of it, and the studies with their figures.

    Nothing is fetched, which the page itself forbids; everything is readable without JavaScript, which adds sorting,
    filters and maps to hover over.

    Args:
      judged: in the order of the paper; an entry is at #ID.
      findings: the studies that were run, in any order; a study is at #study-KEY.
      about: what is said of the run as a whole, by label: the command, the commit, the machine.

    Raises:
      ValueError: two entries or studies, or one and a part of the page, have one name; or a figure is of a kind that
        browsers do not show.
      OSError: a figure cannot be read.
    """
    names = [*_OWN_NAMES, *(one.entry.id for one in judged)] + [f"study-{one.key}" for one in findings]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"two entries, studies or parts of the page are called {twice[0]}")
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(FOLDER),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "duration": text.duration,
        "interval": lambda one: text.interval(one.low, one.high),
        "number": text.number,
        "results": text.results,
        "rule": _rule,
        "slug": _slug,
        "value": text.value,
    }
    shown = [_finding(finding, judged) for finding in findings]
    library = charts.library() if any(one["maps"] for one in shown) else ""
    return environment.get_template("page.html").render(
        about=about,
        counts={verdict: sum(one.verdict is verdict for one in judged) for verdict in Verdict},
        judged=judged,
        library=markupsafe.Markup(library),
        meanings=MEANINGS,
        script=markupsafe.Markup((FOLDER / "page.js").read_text()),
        sections=_by_section(judged),
        sort_values={one.entry.id: _sort_value(one) for one in judged},
        studies=shown,
        study_titles={one.key: one.title for one in findings},
        style=markupsafe.Markup((FOLDER / "page.css").read_text()),
        symbols=SYMBOLS,
    )
