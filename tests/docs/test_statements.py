"""docs/statements.md: every numbered statement of the paper is there, and what it names exists."""

import importlib
import re

import pytest
from support import ROOT

TEXT = (ROOT / "docs" / "statements.md").read_text()
HEADINGS = re.findall(r"^### (.*)$", TEXT, flags=re.M)
NAMED = """
    Theorems 1.1, 1.2, 1.3; Table 1; Proposition 2.1; Lemma 3.1; Proposition 3.2; Lemma 3.3; Figure 1; Theorem 3.4;
    Assumption 4.1; Remark 4.2; Theorem 4.3; Lemma 4.4; Corollary 4.5; Theorem 5.1; Remark 5.2; Remark 5.3; Remark 5.4;
    Theorem 5.5; Theorem 5.6; Figure 2a; Figures 2b, 2c; Figures 3a, 3b, 3c and 3f, 3g, 3h; Figures 3d, 3e and 3i, 3j;
    Theorem A.1; Lemma A.2; Proposition A.3; Lemma A.4; Proposition A.5; Lemma C.1; Lemma C.2; Lemma C.3; Figure 4;
    Assumption G.1; Theorem G.2; Corollary G.3; Lemma G.4; Lemma G.5; Corollary G.6; Proposition G.7;
    Lemma H.1; Lemma H.2
"""


def resolve(dotted):
    """The object of that name, its modules imported on the way."""
    parts = dotted.split(".")
    found = importlib.import_module(parts[0])
    for number, part in enumerate(parts[1:], 2):
        if not hasattr(found, part):
            importlib.import_module(".".join(parts[:number]))
        found = getattr(found, part)
    return found


def test_every_statement_has_an_entry():
    headings = "; ".join(HEADINGS)
    for name in NAMED.split(";"):
        assert re.search(re.escape(" ".join(name.split())) + r"(?!\w)", headings), name
    equations = {int(number) for number in re.findall(r"\((\d+)\)", headings)}
    for first, last in re.findall(r"\((\d+)\) to \((\d+)\)", headings):
        equations |= set(range(int(first), int(last) + 1))
    assert equations == set(range(1, 57))


PAGES = "".join(page.read_text() for page in (ROOT / "docs").rglob("*.md"))


@pytest.mark.parametrize("dotted", sorted(set(re.findall(r"`((?:relu_sgd|sweeps)(?:\.\w+)+)`", PAGES))))
def test_names_exist(dotted):
    """On any page."""
    assert resolve(dotted) is not None


def test_attributes_exist():
    """Words in code after a class are its attributes."""
    checked = 0
    for code in re.findall(r"^- Code: (.*(?:\n  .*)*)", TEXT, flags=re.M):
        owner = None
        for name in re.findall(r"`([\w.]+)`", code):
            if "." in name:
                owner = resolve(name)
            else:
                assert hasattr(owner, name), (owner, name)
                checked += 1
    assert checked > 10


def test_tests_and_commands_exist():
    files = {path.name for path in (ROOT / "tests").rglob("test_*.py")}
    assert set(re.findall(r"`(test_\w+\.py)`", TEXT)) <= files
    for study in re.findall(r"python -m sweeps\.(\w+)", TEXT):
        assert (ROOT / "sweeps" / study / "__main__.py").is_file(), study
    for script in re.findall(r"`scripts/(\w+)", TEXT):
        assert (ROOT / "scripts" / script).is_file(), script


@pytest.mark.parametrize("entry", re.split(r"^### ", TEXT, flags=re.M)[1:], ids=HEADINGS)
def test_an_entry_has_code_and_tests_or_a_reason(entry):
    reason = (
        r"[Qq]uoted|not\s+computed|Not\s+computed|nothing\s+to\s+compute|no\s+function|see\s+there|As\s+Proposition"
    )
    assert ("- Code:" in entry and "- Tests:" in entry) or re.search(reason, entry)
