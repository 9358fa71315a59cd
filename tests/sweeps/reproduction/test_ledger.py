"""Rules make verdicts of numbers; malformed claims are refused in one line."""

import dataclasses
import math

import pytest
from support import claims

from sweeps.reproduction import ledger
from sweeps.reproduction.ledger import Verdict

GOOD = """
[[claim]]
id = "share"
place = "Figure 2a"
section = "Section 6"
kind = "figure"
says = "Most runs converge."
study = "map"
rule = { quantity = "share", at_least = 0.5 }
"""


def entry(rule, **more):
    return dataclasses.replace(claims.JUDGED[0].entry, rule=rule, **more)


def verdict(rule, *measured, **more):
    return ledger.verdict_of(entry(rule, **more), measured)[0]


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0.6, 0.9, Verdict.HOLDS),
        (0.5, 0.5, Verdict.HOLDS),
        (0.4, 0.6, Verdict.UNDECIDED),
        (0.1, 0.4, Verdict.FAILS),
        (math.nan, math.nan, Verdict.UNDECIDED),
    ],
)
def test_the_whole_interval_has_to_agree(low, high, expected):
    measured = claims.measurement(low=low, high=high)
    assert verdict({"quantity": "share", "at_least": 0.5}, measured) is expected
    turned = claims.measurement(value=-0.8, low=-high, high=-low)
    assert verdict({"quantity": "share", "at_most": -0.5}, turned) is expected


def test_between_has_two_ends():
    rule = {"quantity": "share", "between": [0.5, 1.0]}
    inside, above, across = (
        claims.measurement(low=low, high=high) for low, high in ((0.6, 0.9), (1.1, 1.2), (0.9, 1.1))
    )
    assert verdict(rule, inside) is Verdict.HOLDS
    assert verdict(rule, above) is Verdict.FAILS
    assert verdict(rule, across) is Verdict.UNDECIDED


def test_one_violation_is_a_counterexample():
    rule = {"quantity": "share", "violations": 0}
    none = claims.measurement(value=0.0, low=0.0, high=0.04, counts="0 of 90 problems")
    held, reason = ledger.verdict_of(entry(rule), [none])
    assert held is Verdict.HOLDS
    assert "0 of 90 problems" in reason
    assert "0.04" in reason
    assert verdict(rule, claims.measurement(value=1.0, low=0.0, high=0.06)) is Verdict.FAILS


@pytest.mark.parametrize(
    ("written", "released", "expected"),
    [
        (0.9, 0.9, Verdict.HOLDS),
        (0.9, 0.1, Verdict.HOLDS),
        (0.1, 0.9, Verdict.AS_RELEASED),
        (0.5, 0.9, Verdict.UNDECIDED),
        (0.1, 0.1, Verdict.FAILS),
        (0.5, 0.1, Verdict.UNDECIDED),
        (None, 0.9, Verdict.NOT_MEASURED),
        (None, 0.1, Verdict.NOT_MEASURED),
        (0.1, None, Verdict.FAILS),
        (None, None, Verdict.NOT_MEASURED),
    ],
)
def test_protocols(written, released, expected):
    measured = [
        claims.measurement(protocol=name, value=value, low=value - 0.05, high=value + 0.05)
        for name, value in (("as_written", written), ("as_released", released))
        if value is not None
    ]
    assert verdict({"quantity": "share", "at_least": 0.5}, *measured) is expected


def test_all_conditions_have_to_hold():
    rule = {"all": [{"quantity": "share", "at_least": 0.5}, {"quantity": "other", "at_most": 1}]}
    share, small, large = claims.measurement(), *(claims.measurement("other", low=x, high=x, value=x) for x in (0, 2))
    assert verdict(rule, share, small) is Verdict.HOLDS
    assert verdict(rule, share, large) is Verdict.FAILS
    assert verdict(rule, share) is Verdict.NOT_MEASURED


def test_the_worst_set_up_counts():
    """17 of 20 leaves 0.9 open, 430 of 500 contradicts it, although its share is the larger one."""
    few, many = (
        dataclasses.replace(claims.measurement(value=value, low=low, high=high), setup=setup)
        for value, low, high, setup in ((0.85, 0.64, 0.95, "hidden"), (0.86, 0.827, 0.888, "both"))
    )
    rule = {"quantity": "share", "at_least": 0.9}
    found, reason = ledger.verdict_of(entry(rule), [few, many])
    assert found is Verdict.FAILS
    assert "(hidden): 0.85" in reason
    assert "share (both): 0.86" in reason
    assert verdict(rule, few) is Verdict.UNDECIDED
    agrees = dataclasses.replace(few, value=1.0, low=0.95, high=1.0)
    assert verdict(rule, agrees, few) is Verdict.UNDECIDED


def test_what_is_out_of_scope_says_why():
    assert ledger.verdict_of(entry({}, out_of_scope="A name."), []) == (Verdict.NOT_COMPUTABLE, "A name.")


def test_claims_are_read_in_the_order_of_the_paper(tmp_path):
    first, second = tmp_path / "a.toml", tmp_path / "b.toml"
    first.write_text(GOOD)
    second.write_text(GOOD.replace('"share"\n', '"early"\n').replace("Section 6", "Section 3"))
    assert [one.id for one in ledger.read([first, second])] == ["early", "share"]


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('place = "Figure 2a"', "", "place is missing"),
        ('"Section 6"', '"Section 12"', "no section"),
        ("at_least = 0.5", "above = 0.5", "one of"),
        ("at_least = 0.5", "between = [2, 1]", "lower one first"),
        ("at_least = 0.5", 'at_least = "0.5"', "number"),
        ("at_least = 0.5", "violations = 3", "takes 0"),
        ('study = "map"', "", "study is missing"),
        ("rule = {", "role = {", "no key"),
        ('rule = { quantity = "share", at_least = 0.5 }', "", "either a rule"),
        ("[[claim]]", '[[claim]]\nout_of_scope = "x"', "either a rule"),
        ("[[claim]]", '[[claim]]\nmeasurement = "x"', "no quantity of the rule"),
        ("[[claim]]", "[[claim]]\ncode = [1]", "list of texts"),
        ("[[claim]]", "[[claims]]", "something else"),
        ("[[claim]]", "[[claim", "a.toml"),
        (GOOD, GOOD + GOOD, "two of them"),
    ],
)
def test_malformed_claims_are_refused(tmp_path, old, new, said):
    path = tmp_path / "a.toml"
    assert old in GOOD
    path.write_text(GOOD.replace(old, new, 1))
    with pytest.raises(ledger.LedgerError, match=said) as error:
        ledger.read([path])
    assert "\n" not in str(error.value)


def test_a_ledger_is_read_as_it_was_written():
    plain = [one for one in claims.JUDGED if one.entry.id != "awkward"]  # It holds NaN, which equals nothing.
    assert ledger.load(ledger.dump(plain, claims.ABOUT)) == (tuple(plain), dict(claims.ABOUT))
    assert ledger.dump(ledger.load(ledger.dump(claims.JUDGED, {}))[0], {}) == ledger.dump(claims.JUDGED, {})
    with pytest.raises(ledger.LedgerError):
        ledger.load('{"ledger": [{}], "about": {}}')
