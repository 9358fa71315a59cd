"""The page in a real browser, where one is installed."""

import pytest
from support import browser, claims

from sweeps.reproduction.page import render

pytestmark = pytest.mark.skipif(browser.NAME is None, reason="needs Chromium or Chrome")

SHOWN = "[...document.querySelectorAll('#table tbody tr')].filter((row) => !row.hidden).map((row) => row.dataset.entry)"
CELLS = ".map path[aria-roledescription='rect mark']"
ALL = [one.entry.id for one in claims.JUDGED]


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    page = folder / "index.html"
    page.write_text(render(claims.JUDGED, claims.findings(folder / "figures"), claims.ABOUT))
    return page


@pytest.fixture(scope="module")
def chromium(tmp_path_factory):
    with browser.opened(tmp_path_factory.mktemp("profile")) as running:
        yield running


@pytest.fixture(scope="module")
def page(chromium, path):
    """The page as it is with scripts in a wide window; every test leaves it unfiltered."""
    chromium.open(path)
    chromium.wait_for("document.querySelectorAll('.map svg').length === 2")
    return chromium


def type_in(page, text):
    page(
        f"document.getElementById('search').value = {text!r}; "
        "document.getElementById('search').dispatchEvent(new Event('input', {bubbles: true}))"
    )


def test_it_asks_for_nothing_and_complains_of_nothing(page, path):
    page.move_to(CELLS)
    fetched = [url for url in page.requests if not url.startswith("data:")]
    assert fetched == [path.as_uri()]
    assert not page.complaints


def test_the_browser_would_see_a_request_and_an_error(chromium, tmp_path, path):
    """Otherwise the test above could not fail; the page's own policy refuses the request."""
    other = tmp_path / "index.html"
    broken = '<img src="http://127.0.0.1:9/a.png" alt="a"><script>missing()</script></body>'
    other.write_text(path.read_text().replace("</body>", broken))
    chromium.open(other)
    text = str(chromium.complaints)
    assert "missing is not defined" in text
    assert "Content Security Policy" in text
    other.write_text(f"<!doctype html><title>a</title>{broken}")
    chromium.open(other)
    assert "http://127.0.0.1:9/a.png" in chromium.requests
    chromium.open(path)
    chromium.wait_for("document.querySelectorAll('.map svg').length === 2")


def test_rows_and_entries_are_found_by_text(page):
    type_in(page, "  LEMMA a.4 ")
    assert page(SHOWN) == ["lemma-a4"]
    assert page("document.getElementById('shown').textContent") == "1 of 9 entries"
    assert page("[...document.querySelectorAll('article:not([hidden])')].map((one) => one.id)") == ["lemma-a4"]
    type_in(page, "lazy far")
    assert page(SHOWN) == ["lazy"]
    type_in(page, "theorem 4.3")
    assert page(SHOWN) == ["theorem-4-3"]
    type_in(page, "no such thing")
    assert page(SHOWN) == []
    type_in(page, "")
    assert page(SHOWN) == ALL


def test_rows_are_filtered_by_verdict(page):
    page("document.querySelector('input[value=holds]').click()")
    assert page(SHOWN) == [one for one in ALL if one not in ("theorem-4-3", "lemma-a4")]
    page("document.querySelector('input[value=not-measured]').click()")
    assert page(SHOWN) == [one for one in ALL if one not in ("theorem-4-3", "lemma-a4", "pending")]
    page("document.querySelector('button[type=reset]').click()")
    page.wait_for(f"{SHOWN}.length === 9")


def test_a_link_to_a_filtered_entry_shows_it(page):
    type_in(page, "lazy")
    page("location.hash = '#lemma-a4'")
    page.wait_for("!document.getElementById('lemma-a4').hidden")
    page.wait_for("Math.abs(document.getElementById('lemma-a4').getBoundingClientRect().top) < 400")
    assert page(SHOWN) == ALL


def test_columns_sort_both_ways_and_unknown_results_come_last(page):
    def sort(key):
        page(f"document.querySelector('th[data-key={key}] button').click()")
        return page(SHOWN), page(f"document.querySelector('th[data-key={key}]').ariaSort")

    by_result = ["lemma-a4", "theorem-4-3", "figure-2a", "lazy", "zeros", "long"]
    assert sort("result") == ([*by_result, "awkward", "pending", "informal"], "ascending")
    assert sort("result") == ([*by_result[::-1], "awkward", "pending", "informal"], "descending")
    assert sort("verdict")[0] == [
        "theorem-4-3", "lemma-a4", "figure-2a", "lazy", "awkward", "zeros", "long", "pending", "informal",
    ]  # fmt: skip
    assert page("document.querySelectorAll('th[aria-sort]').length") == 1
    assert sort("says")[0][-1] == "figure-2a"
    assert sort("place") == (ALL, "ascending")


def test_cells_of_a_map_speak_to_pointer_and_keys(page):
    said = "document.querySelector('.map output').textContent"
    page.move_to(f"{CELLS}:nth-of-type(2)")
    page.wait_for(f"{said}.startsWith('d0 = 4, d1 = 8')")
    page.wait_for("document.querySelector('#vg-tooltip-element.visible')?.textContent.includes('0 of 4 runs')")
    fills = page(f"[...document.querySelectorAll({CELLS!r})].map((one) => one.getAttribute('fill'))")
    assert fills[:2] == ["transparent", "rgb(0, 32, 81)"]  # No run; probability 0.
    page("document.querySelector('.map .plot').focus()")
    for key in ("ArrowUp", "ArrowUp", "ArrowUp", "ArrowRight", "ArrowLeft", "ArrowRight"):
        page.press(key)
    assert page(said) == (
        "d0 = 16, d1 = 12; converged: 4 of 4 runs; share: 1 (95% interval 0.6 to 1); otherwise: none; "
        "proved nearby: 4 global minimum"
    )
    assert page("document.querySelectorAll('.map .current').length") == 1
    page.move_to(".map path[aria-roledescription='point']")
    page.wait_for(f"{said}.includes('probability 1/2 ')")


def test_a_command_is_copied_as_it_is(page):
    page("document.querySelector('#lemma-a4 .copy').click()")
    command = "python -m sweeps.convergence_map --out=DIR # lemma-a4"
    assert page("getSelection().toString()") == command
    assert page("document.querySelector('#lemma-a4 code:has(span)').textContent") == command


def test_all_is_readable_without_scripts(chromium, path):
    chromium.open(path, scripts=False)
    visible = "((one) => one.checkVisibility() && one.getBoundingClientRect().height > 0)"
    for selector, number in (("#table tbody tr", 9), ("article", 9), ("img", 1), ("article .command", 9)):
        assert chromium(f"[...document.querySelectorAll({selector!r})].filter({visible}).length") == number
    assert not chromium("[...document.querySelectorAll('form, .maps, .copy')].some((one) => one.checkVisibility())")
    assert chromium("[...document.images].every((one) => one.naturalWidth > 0)")
    assert "3/4" in chromium("document.querySelector('#study-map details').textContent")


@pytest.mark.parametrize("scripts", [True, False])
def test_a_phone_scrolls_in_one_direction_and_the_dark_is_dark(chromium, path, scripts):
    chromium.open(path, width=375, dark=True, scripts=scripts)
    if scripts:
        chromium.wait_for("document.querySelectorAll('.map svg').length === 2")
    chromium("document.querySelectorAll('details').forEach((one) => (one.open = true))")
    assert chromium("document.documentElement.scrollWidth") == 375
    assert chromium("getComputedStyle(document.body).backgroundColor") == "rgb(21, 24, 27)"
    assert not chromium.complaints


def test_paper_is_white_and_has_no_controls(chromium, path):
    chromium.open(path, dark=True)
    dark = {"name": "prefers-color-scheme", "value": "dark"}
    chromium.call("Emulation.setEmulatedMedia", media="print", features=[dark])
    assert chromium("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert chromium("getComputedStyle(document.body).color") == "rgb(0, 0, 0)"
    controls = "form, button:not(th *), .maps, details"
    assert not chromium(f"[...document.querySelectorAll({controls!r})].some((one) => one.checkVisibility())")
    assert chromium("[...document.querySelectorAll('article, .paper')].every((one) => one.checkVisibility())")
