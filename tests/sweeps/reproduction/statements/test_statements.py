"""The checks of the paper's statements: what holds, what does not as printed, and that a wrong constant shows."""

import dataclasses
import math
import pkgutil
import re
import sys

import numpy as np
import pytest
from support import ROOT

from relu_sgd.theory import certificate, comparison, gram, hidden_layer, widths
from sweeps.reproduction.ledger import Measurement, Verdict, read, verdict_of
from sweeps.reproduction.statements import appendix_ab, check, section_5
from sweeps.reproduction.statements.paths import scalar_start
from sweeps.reproduction.statements.registry import CHECKS
from sweeps.reproduction.statements.report import report, summarize
from sweeps.reproduction.statements.study import Statements, measure
from sweeps.study import Tile, UsageError

PRINTED = {name.removesuffix("-repaired") for name in CHECKS if name.endswith("-repaired")}
SLOW = {"lemma-c1"}  # Tens of millions of random numbers; it is run where it is the subject.


def found(names, num_seeds):
    study = Statements.make(num_seeds=num_seeds)
    return {name: [measure(study, name, seed) for seed in range(num_seeds)] for name in names}


def is_violated(records):
    """More often than the statement allows, over the seeds."""
    violated, trials = (sum(record[name] for record in records) for name in ("violated", "trials"))
    return violated > records[0]["allowed"] * trials


def test_statements_hold_and_those_with_an_erratum_do_not_as_printed():
    records = found([name for name in CHECKS if name not in SLOW], 1)
    violated = {name for name, runs in records.items() if is_violated(runs)}
    assert violated == PRINTED - SLOW
    for name in violated:
        # Beyond rounding by far, so that no tolerance decides.
        assert records[name][0]["margin"] < -0.02, name
    assert {name for name, runs in records.items() if runs[0]["status"] == 2} == set()


def test_lemma_c1_fails_as_printed_by_its_own_constant():
    (record,) = found(["lemma-c1"], 1)["lemma-c1"]
    assert record["violated"] == record["trials"] == 1
    assert record["margin"] < -0.2


def scaled(factor):
    """Instead of a function: what it returns, times a factor."""
    return lambda function: lambda *args, **options: factor * function(*args, **options)


def dictionary(factor):
    return lambda function: lambda *args: {name: factor * bound for name, bound in function(*args).items()}


def scaled_property(factor):
    return lambda old: property(lambda self: factor * old.fget(self))


# Statement, what its bound is computed by, and a wrong constant in it: docs/statements.md names them.
PLANTED = [
    ("lemma-3-1-equation-5", certificate, "drift_bounds", dictionary(1 / math.sqrt(2))),
    ("lemma-3-1-equation-6", certificate, "drift_bounds", dictionary(1 / math.sqrt(2))),
    ("theorem-3-4-equation-11", certificate.Certificate, "F", scaled_property(7)),
    ("equation-23", appendix_ab, "drift_bounds", dictionary(1 / math.sqrt(2))),
    ("equation-28", appendix_ab, "drift_bounds", dictionary(1 / math.sqrt(2))),
    ("equation-33", gram, "hermite_polynomial", lambda f: lambda k, z: f(k, z) * 1.01**k),
    ("equation-34", gram, "hermite_polynomial", scaled(1.01)),
    ("equation-35", gram, "hermite_polynomial", scaled(1.01)),
    ("equation-36-repaired", gram, "hermite_coefficient", scaled(1.01)),
    ("equation-37", gram, "hermite_polynomial", scaled(1.01)),
    ("lemma-3-3-repaired", comparison, "lemma_3_3", scaled(1 / 4)),
    ("equation-4", gram, "operator_norm", scaled(1 / math.sqrt(2))),
    ("theorem-3-4-equation-12", certificate.Certificate, "loss_bound", lambda f: lambda self, t: f(self, 2 * t)),
    ("theorem-3-4-equation-13", certificate.Certificate, "drift", scaled_property(1 / 3)),
    ("lemma-c3", gram, "khatri_rao_bound", scaled(2)),
    ("equation-39", gram, "gershgorin_bound", scaled(1.01)),
    ("lemma-c1-repaired", widths, "least_singular_value_bound", scaled(2.2)),
    ("equation-45", widths, "output_norm_bound", scaled(1 / math.sqrt(2))),
    ("theorem-5-6", widths, "convergence_time", scaled(1 / 2)),
    ("lemma-g4", hidden_layer, "lemma_g4_radius", scaled(1.5)),
    ("lemma-g5", hidden_layer, "lemma_g5_bound", lambda f: lambda *sizes: (2 * f(*sizes)[0], f(*sizes)[1])),
    ("corollary-g6", hidden_layer, "corollary_g6_bound", scaled(1 / 2)),
    ("equation-52", hidden_layer.HiddenCertificate, "weight_bound", scaled(1 / math.sqrt(2))),
    (
        "lemma-h2-repaired",
        hidden_layer,
        "lemma_h2_bound",
        lambda f: lambda *factors: (f(*factors)[0], 0.99 * f(*factors)[1]),
    ),
]


@pytest.mark.parametrize(("statement", "owner", "name", "wrong"), PLANTED, ids=[case[0] for case in PLANTED])
def test_a_wrong_constant_flips_the_verdict(statement, owner, name, wrong, monkeypatch):
    (entry,) = (entry for entry in read() if entry.id == statement)

    def verdict():
        records = found([statement], 3)[statement]
        count, trials = (sum(int(record[name]) for record in records) for name in ("violated", "trials"))
        value = count / trials if CHECKS[statement].allowed else count
        exact = Measurement(statement, "", value, value, value, f"{count} of {trials}", "statements", "", "float64")
        return verdict_of(entry, [exact])[0]

    assert verdict() is Verdict.HOLDS
    monkeypatch.setattr(owner, name, wrong(getattr(owner, name)))
    assert verdict() is Verdict.FAILS


# What has slack: a constant in it that does not show.
SLACK = [
    ("theorem-5-1", widths, "theorem_5_1_num_steps", lambda f: lambda *a, **k: f(*a, **k) // 2),
    ("corollary-4-5", widths, "corollary_4_5_width", scaled(1 / 4)),
    ("lemma-c1-repaired", widths, "lemma_c1_width", scaled(1 / 8)),
    ("theorem-g2", hidden_layer, "theorem_g2_width", scaled(1 / 2)),
    ("corollary-g3", widths, "convergence_time", scaled(1 / 2)),
]
DOCUMENTED = (ROOT / "docs" / "statements.md").read_text()


def named_after(phrase):
    """The statements named in the sentence of docs/statements.md that begins so."""
    (sentence,) = re.findall(rf"{phrase}(.*?)\.\n", DOCUMENTED, flags=re.S)
    return re.findall(r"`([\w-]+)`", sentence)


@pytest.mark.parametrize(("statement", "owner", "name", "wrong"), SLACK, ids=[case[0] for case in SLACK])
def test_what_has_slack_is_said_to_have_it(statement, owner, name, wrong, monkeypatch):
    assert statement in named_after("These have slack")
    monkeypatch.setattr(owner, name, wrong(getattr(owner, name)))
    assert not is_violated(found([statement], 1)[statement])


def test_the_statements_in_which_a_wrong_constant_shows_are_those_of_the_page():
    assert sorted(named_after("A wrong constant shows in these")) == sorted(case[0] for case in PLANTED)


@pytest.mark.parametrize("statement", ["lemma-h2-repaired", "lemma-c3", "equation-30", "equation-4"])
def test_inequalities_on_one_draw_are_one_trial(statement):
    assert [record["trials"] for record in found([statement], 3)[statement]] == [1, 1, 1]


def test_what_algebra_decides_is_one_trial_and_labelled():
    arithmetic = {name for name, one in CHECKS.items() if one.is_arithmetic}
    assert arithmetic == {entry.id for entry in read() if entry.kind == "arithmetic"}
    assert {"theorem-5-1-q", "remark-5-3", "equation-44", "equation-26"} <= arithmetic
    for records in found(sorted(arithmetic), 3).values():
        assert [record["trials"] for record in records] == [1, 0, 0]
        assert [record["status"] for record in records] == [1, 3, 3]


def test_the_chain_rule_is_measured_where_something_slides(monkeypatch):
    rates = appendix_ab._rates(np.random.default_rng(0))
    assert any(appendix_ab._kinks(here).any() for here, *_ in rates)
    right = appendix_ab._element
    monkeypatch.setattr(appendix_ab, "_element", lambda *at: tuple(1.01 * part for part in right(*at)))
    assert is_violated(found(["equation-2"], 1)["equation-2"])


def test_theorem_5_5_is_measured_with_noise_and_between_iterates(monkeypatch):
    sizes, right = [], section_5.descend

    def descend(start, step, num_steps, batch_size, rng):
        sizes.append((batch_size, len(start.X)))
        return right(start, step, num_steps, batch_size, rng)

    monkeypatch.setattr(section_5, "descend", descend)
    found(["theorem-5-5"], 1)
    assert {1, 2} <= {batch_size for batch_size, num_samples in sizes if batch_size < num_samples}
    # Iterates on a line through 0 and its solution: joined by lines they are on it at every time.
    start = scalar_start(1.0, 0.0, 1.0)
    times = np.array([0.0, 0.13, 0.2])
    path = section_5.follow(start, times=times[1:])._replace(W=times[:, None, None], V=0 * times[:, None, None])
    line = [scalar_start(0.1 * step, 0.0, 1.0) for step in range(4)]
    monkeypatch.setattr(section_5, "descend", lambda *_: line)
    assert section_5._distance_5_5(start, path, 0.1, 1, np.random.default_rng(0)) < 1e-12


def replace_everywhere(monkeypatch, dotted, new):
    """In place of a function or property, in every module that has it under some name."""
    owner, _, name = dotted.rpartition(".")
    owner = pkgutil.resolve_name(owner)
    old = getattr(owner, name)
    if isinstance(owner, type):
        monkeypatch.setattr(owner, name, property(new) if isinstance(old, property) else new)
        return
    for module in [module for key, module in sys.modules.items() if key.startswith(("relu_sgd", "sweeps"))]:
        for key in [key for key, value in vars(module).items() if value is old]:
            monkeypatch.setattr(module, key, new)


class CallError(Exception):
    """Raised in place of what was called."""


def call(*_, **__):
    raise CallError


USES = [(entry.id, dotted) for entry in read() if entry.rule and entry.study == "statements" for dotted in entry.code]


@pytest.mark.parametrize(("statement", "dotted"), [case for case in USES if case[0] not in SLOW])
def test_a_check_calls_the_code_that_its_entry_names(statement, dotted, monkeypatch):
    replace_everywhere(monkeypatch, dotted, call)
    with pytest.raises(CallError):
        measure(Statements.make(), statement, 0)


def test_draws_depend_on_statement_and_seed_alone():
    study = Statements.make(num_seeds=2, statement="lemma-h1,lemma-g4")
    tile = Tile(*study.variants(), {"statement": ("lemma-h1",)}, range(1, 2))
    table, _ = study.run_tile(tile, None)
    assert table["margin"].tolist() == [measure(Statements.make(), "lemma-h1", 1)["margin"]]
    assert set(table) == set(study.metrics)
    other = measure(dataclasses.replace(study, base_seed=1), "lemma-h1", 1)
    assert other["value"] != table["value"][0]
    with pytest.raises(UsageError, match="repeats"):
        Statements.make(statement="lemma-h1,lemma-h1")


def test_margins():
    assert check.at_most(2.0, 1.0) == (-0.5, 1, 1, 2.0, 1.0)
    assert check.at_least([3.0, 1.0], [1.0, 2.0])[:3] == (-0.5, 1, 1)
    assert check.at_most(math.nan, 1.0).violations == 1
    assert check.at_most(1.0, math.inf)[:2] == (1.0, 0)
    assert check.at_most(1 + 1e-12, 1.0).violations == 0
    assert check.equal(1e-12, 0.0, scale=1.0).violations == 0
    assert check.equal(0.0, 1.0).violations == 1
    assert check.combined().trials == 0
    both = check.combined(check.at_most(2.0, 1.0), check.at_most(1.0, 2.0))
    assert (both.violations, both.trials) == (1, 1)  # Inequalities on one draw.
    losses = check.decrease_at_least(np.exp([-1.0, -2.0]), np.exp([-2.0, -4.0]), 1.0)
    assert (losses.margin, losses.violations) == (pytest.approx(-0.5), 1)
    assert check.event([True, False], [0.1, -0.2]) == (-0.2, 1, 2, 0.5, 0.0)


def test_the_table_counts_what_the_store_has():
    study = Statements.make(statement="lemma-h1,lemma-h2,equation-44", num_seeds=3)
    import xarray as xr

    records = found(study.statement, 3)
    data = {
        name: (("statement", "seed"), [[record[name] for record in records[one]] for one in study.statement])
        for name in study.metrics
    }
    results = {study.variants()[0]: xr.Dataset(data, coords={"statement": list(study.statement)})}
    table = summarize(study, results).set_index("statement")
    assert table["violated"].tolist() == [0, 3, 0]
    assert table["trials"].tolist() == [3, 3, 1]
    assert table.loc["lemma-h2", "share_low"] == pytest.approx(0.025 ** (1 / 3))
    assert table.loc["equation-44", ["share_low", "share_high"]].tolist() == [0, 0]
    made = report(study, results)
    assert set(made.figures) == {"statements"}
    assert "lemma-h2" in made.text
