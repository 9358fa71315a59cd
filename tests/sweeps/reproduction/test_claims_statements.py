"""claims_statements.toml: every numbered statement of Sections 2 to 5 and the appendices is in it, and what it names
exists.
"""

import importlib
import re

import pytest
from support import ROOT

from sweeps.reproduction import ledger
from sweeps.reproduction.statements.registry import CHECKS

ENTRIES = {entry.id: entry for entry in ledger.read([ledger.CLAIMS / "claims_statements.toml"])}
# The paper's numbering; equations are those from 1 to 56. Sections 1, 6 and 7 and the figures are claims.toml's.
NUMBERED = """
    Proposition 2.1; Lemma 3.1; Proposition 3.2; Lemma 3.3; Theorem 3.4; Assumption 4.1; Remark 4.2; Theorem 4.3;
    Lemma 4.4; Corollary 4.5; Theorem 5.1; Remark 5.2; Remark 5.3; Remark 5.4; Theorem 5.5; Theorem 5.6; Theorem A.1;
    Lemma A.2; Proposition A.3; Lemma A.4; Proposition A.5; Lemma C.1; Lemma C.2; Lemma C.3; Assumption G.1;
    Theorem G.2; Corollary G.3; Lemma G.4; Lemma G.5; Corollary G.6; Proposition G.7; Lemma H.1; Lemma H.2
"""
NAMED = [" ".join(name.split()) for name in NUMBERED.split(";")]


@pytest.mark.parametrize("name", NAMED)
def test_every_numbered_statement_is_an_entry(name):
    found = [entry for entry in ENTRIES.values() if re.match(re.escape(name) + r"(?!\w)", entry.place)]
    assert found
    for entry in found:
        assert bool(entry.rule) != bool(entry.out_of_scope)


def test_every_equation_belongs_to_an_entry():
    equations = {int(number) for entry in ENTRIES.values() for number in re.findall(r"\((\d+)\)", entry.place)}
    assert equations == set(range(1, 57))


def test_every_check_is_judged_and_every_rule_measured():
    measured = [entry.id for entry in ENTRIES.values() if entry.rule]
    assert measured == list(CHECKS)  # In the order of the paper.
    for entry in ENTRIES.values():
        if not entry.rule:
            continue
        assert entry.study == "statements"
        assert entry.measurement == entry.id
        allowed = CHECKS[entry.id].allowed
        limit = {name: bound for name, bound in entry.rule.items() if name != "quantity"}
        # Without exceptions, or as many as the statement allows.
        if allowed:
            assert entry.says.endswith(f"[Share that may fail: {limit['at_most']}.]")
        assert limit == ({"at_most": pytest.approx(allowed, rel=2e-3)} if allowed else {"violations": 0}), entry.id


def test_what_is_corrected_has_its_printed_form_and_the_erratum():
    repaired = [name for name in ENTRIES if name.endswith("-repaired")]
    assert len(repaired) > 15
    for name in repaired:
        printed = ENTRIES[name.removesuffix("-repaired")]
        assert printed.erratum == ENTRIES[name].erratum != ""
        assert printed.place.endswith("as printed")
        assert ENTRIES[name].place.endswith("corrected")


def resolve(dotted):
    """The object of that name, its modules imported on the way."""
    parts = dotted.split(".")
    found = importlib.import_module(parts[0])
    for number, part in enumerate(parts[1:], 2):
        if hasattr(found, "__dataclass_fields__") and part in found.__dataclass_fields__:
            return part
        if not hasattr(found, part):
            importlib.import_module(".".join(parts[:number]))
        found = getattr(found, part)
    return found


def test_names_and_files_exist():
    for entry in ENTRIES.values():
        for dotted in entry.code:
            assert resolve(dotted) is not None, (entry.id, dotted)
        for path in entry.tests:
            assert (ROOT / path).is_file(), (entry.id, path)
        if entry.rule:
            assert entry.tests, entry.id
