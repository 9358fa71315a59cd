"""The page and the PDF, as far as no browser is needed."""

import dataclasses
import itertools
import json
import math
import re
import sys
from pathlib import Path

import html5lib
import pandas
import pytest
from support import claims

from sweeps.reproduction.ledger import Finding, Verdict
from sweeps.reproduction.page import charts, document, printed, render, text, write_pdf

LIBRARY = charts.library
NS = "{http://www.w3.org/1999/xhtml}"


@pytest.fixture(scope="module", autouse=True)
def _no_library():
    """Bundling the library takes seconds; the tests in a browser have it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(charts, "library", lambda: "'the library'")
        yield


@pytest.fixture(scope="module")
def findings(tmp_path_factory):
    return claims.findings(tmp_path_factory.mktemp("figures"))


@pytest.fixture(scope="module")
def page(findings):
    return render(claims.JUDGED, findings, claims.ABOUT)


def parsed(page):
    """The document; anything that HTML does not allow raises."""
    return html5lib.HTMLParser(strict=True).parse(page)


def text_of(element):
    return " ".join("".join(element.itertext()).split())


def by_id(root, name):
    return next(one for one in root.iter() if one.get("id") == name)


@pytest.fixture(scope="module")
def root(page):
    return parsed(page)


def test_names_are_unique_links_lead_somewhere_and_pictures_are_described(root):
    names = [one.get("id") for one in root.iter() if one.get("id")]
    assert len(names) == len(set(names))
    targets = [one.get(key) for one in root.iter() for key in ("href", "src", "aria-labelledby") if one.get(key)]
    assert len(targets) > 40
    for target in targets:
        assert target.removeprefix("#") in names or target.startswith("data:"), target
    assert [image.get("alt") for image in root.iter(f"{NS}img")] == ["A map with an edge."]


def test_nothing_of_ours_names_an_address(page):
    assert not re.findall(r"(?:https?:)?//\w", re.sub(r"base64,[\w+/=]+", "", page))


def test_strictness_finds_what_is_wrong(page):
    with pytest.raises(html5lib.html5parser.ParseError):
        parsed(page.replace("</article>", "</div></article>", 1))


def test_every_entry_is_there_in_full(root):
    for one in claims.JUDGED:
        article = text_of(by_id(root, one.entry.id))
        for part in (one.entry.place, one.entry.says, one.reason, one.command, one.verdict.value, *one.entry.code):
            assert " ".join(part.split()) in article, (one.entry.id, part)
        for measurement in one.measurements:
            assert measurement.counts in article
    article = text_of(by_id(root, "figure-2a"))
    assert "Another loss." in article
    assert "The loss is a mean." in article
    assert "share, as released 0.9 0.6 to 0.98 9 of 10 runs 3a9293c3d68a float32" in article
    assert "exact" in text_of(by_id(root, "lemma-a4"))
    assert "Informal: see Corollary 4.5." in text_of(by_id(root, "informal"))


def test_verdicts_are_counted(root):
    rows = [text_of(row) for row in by_id(root, "verdicts").iter(f"{NS}tr")]
    for verdict, count in zip(Verdict, (2, 1, 2, 2, 1, 1), strict=True):
        assert any(f"{verdict.value} {count}" not in row and f"{verdict.value}{count}" in row for row in rows), verdict


def test_studies_have_command_machine_figure_and_tables(root):
    study = by_id(root, "study-map")
    machine = "Processor a <fast> one, jax 0.10.2"
    for part in ("--protocol=as_written", "3a9293c3d68a", "33 s", machine, "Probability & caption."):
        assert part in text_of(study), part
    rows = [[text_of(cell) for cell in row] for row in study.iter(f"{NS}tr")]
    assert ["16", "1/4", "4/4", "4/4", "4/4", "4/4"] in rows
    assert ["4", "", "0/4", "1/4", "1/4", "2/4"] in rows
    assert "50 further rows" in text_of(by_id(root, "study-zeros"))


def test_a_page_without_the_library_has_the_figure_and_the_table(findings, monkeypatch):
    monkeypatch.setattr(charts, "library", lambda: "")
    study = by_id(parsed(render(claims.JUDGED, findings, {})), "study-map")
    assert not list(study.iter(f"{NS}script"))
    assert len(list(study.iter(f"{NS}img"))) == 1
    assert len(list(study.iter(f"{NS}table"))) == 2


def test_no_library_where_its_package_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "vl_convert", None)
    assert LIBRARY.__wrapped__() == ""


def test_a_page_without_anything():
    root = parsed(render((), (), {}))
    assert "No study was run." in text_of(by_id(root, "studies"))


def test_two_of_one_name_and_a_figure_that_browsers_do_not_show_are_refused(tmp_path):
    with pytest.raises(ValueError, match="are called lemma-a4"):
        render([*claims.JUDGED, claims.JUDGED[4]], (), {})
    with pytest.raises(ValueError, match="are called table"):
        render([claims.judged("table", "Table 1", Verdict.HOLDS)], (), {})
    figure = tmp_path / "figure.pdf"
    study = Finding("a", "a", "", "", tmp_path, 1.0, {}, ((figure, "", ""),), None)
    with pytest.raises(ValueError, match=r"figure\.pdf: figures on the page are \.png"):
        render((), (study,), {})


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ({}, ""),
        ({"quantity": "lemma_a4", "violations": 0}, "lemma a4: no violation"),
        (
            {"all": [{"quantity": "a", "at_least": 0.5}, {"quantity": "b", "between": [1.0, 2000]}]},
            "a at least 0.5; b between 1 and 2,000",
        ),
    ],
)
def test_rules_are_said_in_words(rule, expected):
    assert document._rule(rule) == expected


# Numbers.


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0.0, "0"), (1630.0, "1,630"), (-3.0, "-3"), (2.5, "2.5"), (0.00241, "0.00241"), (289123.0, "289,123"),
        (1.2e7, "1.2e7"), (2.89e-7, "2.89e-7"), (math.nan, "not known"), (math.inf, "∞"), (-math.inf, "\u2212∞"),
    ],
)  # fmt: skip
def test_numbers(value, expected):
    assert text.number(value) == expected


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0.0, 0.0024, "0 to 0.0024"), (-math.inf, 2.0, "at most 2"), (2.0, math.inf, "at least 2"),
        (-math.inf, math.inf, "nothing excluded"), (math.nan, 1.0, ""), (0.0, math.nan, ""),
    ],
)  # fmt: skip
def test_intervals(low, high, expected):
    assert text.interval(low, high) == expected


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [(0.84, "0.8 s"), (42.4, "42 s"), (59.7, "1:00 min"), (250.0, "4:10 min"), (3900.0, "1:05:00 h")],
)
def test_durations(seconds, expected):
    assert text.duration(seconds) == expected


# Maps.


def layers(chart):
    json.dumps(chart.specification, allow_nan=False)  # Browsers read no NaN.
    return chart.specification["layer"]


def test_a_map_tells_of_every_cell_and_its_boundary():
    hidden, both = charts.map_charts(claims.map_summary())
    assert (hidden.title, both.title) == ("hidden layer trained", "both layers trained")
    cells, *_, boundary = (layer["data"]["values"] for layer in layers(hidden))
    assert len(cells) == 15
    assert hidden.columns == 5
    assert (cells[0]["cell"], cells[0]["converged"]) == ("d0 = 4, d1 = 4", "no run yet")
    assert cells[0]["probability"] is None
    assert (cells[8]["left"], cells[8]["right"], cells[8]["bottom"], cells[8]["top"]) == (14, 18, 6, 12)
    assert cells[8]["converged"] == "4 of 4 runs"
    assert [mark["d0"] for mark in boundary if mark["shape"] == "circle"] == [8, 16]
    assert all(2 <= mark["low"] < mark["d1"] < mark["high"] <= 22 for mark in boundary if mark["shape"] == "circle")
    assert all("probability 1/2 at d1" in mark["told"] for mark in boundary if mark["shape"] == "circle")


@pytest.mark.parametrize(
    "summary",
    [
        claims.map_summary(d0=(8,), d1=(16,)),
        claims.map_summary(d0=(8,)),
        claims.map_summary(d1=(16,)),
        claims.map_summary().drop(index=3),
        claims.map_summary().drop(columns=["step_limit", "proved_global", "undecided"]),
        claims.map_summary(["hidden"]).drop(columns="trained_layers"),
        claims.map_summary().assign(converged=0, probability=0.0),
        claims.map_summary(d0=(4, 8)).assign(runs=0, converged=0, probability=math.nan),
        claims.map_summary(["hidden"]).assign(trained_layers=math.nan),
    ],
    ids=[
        "one cell",
        "one d0",
        "one d1",
        "a cell missing",
        "few columns",
        "no set-up",
        "nothing converged",
        "no run",
        "no name",
    ],
)
def test_maps_with_little(summary):
    assert charts.is_map(summary)
    assert charts.map_charts(summary)
    for chart in charts.map_charts(summary):
        assert len(layers(chart)[0]["data"]["values"]) == chart.columns * len(chart.rows)
        assert all(len(row) == 1 + chart.columns for row in chart.rows)


def test_other_tables_are_no_maps_and_a_cell_is_there_once():
    assert not charts.is_map(pandas.DataFrame({"d0": [1], "d1": [1]}))
    assert not charts.is_map(claims.map_summary().head(0))
    with pytest.raises(ValueError, match="there twice"):
        charts.map_charts(pandas.concat([claims.map_summary()] * 2))


# Colours.


def luminance(colour):
    """Relative luminance as WCAG 2 defines it."""
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(a, b):
    low, high = sorted((luminance(a), luminance(b)))
    return (high + 0.05) / (low + 0.05)


def test_text_stands_out_in_the_light_the_dark_and_in_print():
    schemes = re.findall(r":root \{(.*?)\}", (document.FOLDER / "page.css").read_text(), re.DOTALL)
    assert len(schemes) == 3
    for scheme in schemes:
        colours = dict(re.findall(r"--([\w-]+): (#\w{6})", scheme))
        verdicts = [document._slug(verdict) for verdict in Verdict]
        for ground, ink in itertools.product(("ground", "panel"), ("ink", "quiet", "link", *verdicts)):
            assert contrast(colours[ground], colours[ink]) >= 4.5, (ground, ink)
    assert contrast("#ffffff", "#000000") == pytest.approx(21)


def test_verdicts_differ_by_more_than_colour():
    assert len(set(document.SYMBOLS.values())) == len(Verdict)


def test_set_ups_of_which_the_same_is_found_share_a_line_and_digits_tell_ends_apart():
    one = dataclasses.replace(claims.measurement(), setup="hidden")
    both = dataclasses.replace(one, setup="both")
    assert text.results([one, both]) == ("hidden and both: 0.9 (0.6 to 0.98), 9 of 10 runs",)
    other = claims.measurement(name="an_other", protocol="as_written", counts="")
    lines = text.results([one, other])
    assert lines == ("share, hidden: 0.9 (0.6 to 0.98), 9 of 10 runs", "an other, as written: 0.9 (0.6 to 0.98)")
    close = claims.measurement(value=2.0441, low=2.0440, high=2.0442, counts="")
    assert text.result(close) == "2.0441 (2.044 to 2.0442)"


# The PDF.


def pages(path):
    return len(re.findall(rb"/Type /Page\b(?!s)", path.read_bytes()))


def test_a_pdf_of_the_table_and_the_figures(findings, tmp_path):
    """The first page, the rest of a row that is longer than a page, and the figure."""
    path = tmp_path / "a.pdf"
    write_pdf([*claims.JUDGED, claims.judged("more", "A", Verdict.HOLDS, says=claims.LONG * 4)], findings, path)
    assert path.read_bytes().startswith(b"%PDF")
    assert pages(path) == 4


def test_a_pdf_of_nothing(tmp_path):
    write_pdf((), (), tmp_path / "a.pdf")
    assert pages(tmp_path / "a.pdf") == 1


def test_lines_of_the_pdf_fit_and_lose_nothing():
    for text_, width in itertools.product(
        (claims.LONG, claims.AWKWARD, "two  words\nand a line\n", ""), (0.2, 1.0, 3.0)
    ):
        lines = printed._wrapped(text_, width)
        assert all(sum(map(printed._width, line)) <= width + 1e-9 for line in lines)
        assert "".join("".join(lines).split()) == "".join(text_.split())


def test_a_figure_that_is_missing_is_said(tmp_path):
    study = Finding("a", "a", "", "", tmp_path, 1.0, {}, ((Path("missing.svg"), "", ""),), None)
    with pytest.raises(FileNotFoundError, match=r"missing\.png"):
        write_pdf((), (study,), tmp_path / "a.pdf")
    assert not list(tmp_path.iterdir())
