"""README and docs: what they print is true, their commands name flags that exist, their links lead somewhere."""

import inspect
import itertools
import re

import pytest
import yaml
from support import ROOT
from support.launchers import STUDIES

from relu_sgd import descend
from sweeps.command import app
from sweeps.reproduction.statements.study import Statements

DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]
named = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
BLOCK = re.compile(
    r"^```python\n(.*?)^```$(?:\n\nIt prints `([^`]*)`(?: and `([^`]*)`)?)?", flags=re.DOTALL | re.MULTILINE
)
KINDS = {"python", "sh", "text", "console"}


@pytest.mark.parametrize(
    "page", [page for page in PAGES if "```python" in page.read_text()], ids=lambda page: page.stem
)
def test_code_runs_and_prints_what_it_promises(page, capsys, float32, tmp_path, monkeypatch):
    """The blocks of a page, in order, share their names. What is promised below a block is its output, in so few digits
    that they are those of every processor."""
    monkeypatch.chdir(tmp_path)
    text, names = page.read_text(), {"__name__": page.stem}
    blocks = BLOCK.findall(text)
    assert len(blocks) == text.count("```python") > 0
    assert sum(bool(promised) for _, promised, _ in blocks) == text.count("It prints `")
    for code, *promised in blocks:
        exec(compile(code, page.name, "exec"), names)
        printed = capsys.readouterr().out.strip()
        if any(promised):
            assert printed.splitlines() == [line for line in promised if line]


@pytest.mark.parametrize("name", ["README.md", "docs/quickstart.md"])
def test_pages_say_what_reverse_mode_needs(name):
    """In the same sentence that says what goes through descend."""
    (sentence,) = re.findall(r"[^.;:]*\bjit, vmap and jvp\b[^.]*\.", (ROOT / name).read_text())
    assert "grad with `differentiable=True`" in " ".join(sentence.split())


@pytest.mark.parametrize("name", ["README.md", "docs/quickstart.md"])
def test_first_pages_say_how_to_begin_and_what_comes_out(name):
    text = (ROOT / name).read_text()
    assert "`pip install -e .`" in text[: text.index("```python")]
    assert "report.html`" in text


def test_quickstart_names_the_keywords_of_descend():
    (paragraph,) = re.findall(r"^`descend` takes.*?\n\n", (DOCS / "quickstart.md").read_text(), flags=re.M | re.S)
    keywords = set(re.findall(r"`(\w+)=", paragraph))
    assert keywords <= set(inspect.signature(descend).parameters)
    assert keywords >= {"measure", "stopping_rule", "stop", "criterion", "losses", "at_zero", "batch_size"}


@named
def test_every_block_is_of_a_kind_that_is_tested(page):
    assert {*re.findall(r"^ *```(.*)\n(?:(?! *```).*\n)*? *```$", page.read_text(), flags=re.M)} <= KINDS


@named
def test_commands_name_flags_that_exist(page):
    """A command's flags are those of its study or script; flags named in the text exist somewhere."""
    known = {name: set(app.flag_values(study)) | {"help", "flagfile"} for name, study in STUDIES.items()}
    for script in ("benchmark", "conditions", "boundary_law"):
        known[script] = set(re.findall(r'"--(\w+)"', (ROOT / "scripts" / script).read_text()))
    for command, source in (("status", "status.py"), ("reproduction", "reproduction/run.py")):
        known[command] = set(re.findall(r'"--(\w+)"', (ROOT / "sweeps" / source).read_text()))
    known["statements"] = set(app.flag_values(Statements))
    text = page.read_text()
    for name, words in re.findall(r"(?:sweeps\.(?:reproduction\.)?|scripts/)(\w+)((?:\s+--\w+(?:=[^\s`]+)?)+)", text):
        if name in known:
            assert set(re.findall(r"--(\w+)", words)) <= known[name], name
    assert set(re.findall(r"(?<![\w-])--(\w+)", text)) <= set().union(*known.values())


def anchors(page):
    """As the site makes them from headings."""
    headings = re.findall(r"^#+ (.*)$", re.sub(r"^```.*?^```", "", page.read_text(), flags=re.M | re.S), flags=re.M)
    return {re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", heading).strip().lower()) for heading in headings}


@named
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if not target.startswith("https://"):
            path, _, anchor = target.partition("#")
            to = (page.parent / path).resolve() if path else page
            assert to.is_file(), target
            assert not anchor or anchor in anchors(to), target
            assert page.parent == ROOT or DOCS in to.parents, f"{target} is not on the site"


@named
def test_formulas_begin_no_list_or_quotation(page):
    """A line of prose that begins with - or > is one, and (*) begins an emphasis, wherever Markdown is shown."""
    text = re.sub(r"^```.*?^```|^    .*?$", "", page.read_text(), flags=re.M | re.S)
    for before, line in itertools.pairwise(text.splitlines()):
        assert not re.match(r">|\+ | {1,3}([-+>] |\d+\. )", line), line
        assert not re.match(r"- |\d+\. ", line) or re.match(r"$|- |\d+\. |  ", before), line
        assert not re.search(r"(?<!\\)\(\*\)", line), line


def test_every_page_of_the_site_is_in_its_navigation():
    def flat(node):
        children = node.values() if isinstance(node, dict) else node
        return [node] if isinstance(node, str) else [leaf for child in children for leaf in flat(child)]

    named = flat(yaml.safe_load((ROOT / "scripts" / "mkdocs.yml").read_text())["nav"])
    assert sorted(named) == sorted(page.relative_to(DOCS).as_posix() for page in DOCS.rglob("*.md"))


def test_readme_is_short():
    lines = (ROOT / "README.md").read_text().splitlines()
    assert len(lines) <= 150
    assert max(map(len, lines)) < 120
