"""Small studies from one command, and verdicts from what they stored."""

import csv
import dataclasses
import importlib
import logging
import re
import shutil

import jax
import pandas
import pytest
import xarray as xr
from absl.testing import flagsaver
from support import ROOT
from support.launchers import sketched

from relu_sgd.theory import hidden_layer
from sweeps.command import app
from sweeps.comparison_ode.study import Comparison
from sweeps.reproduction import ledger, measure, publish, run, studies
from sweeps.reproduction.ledger import Verdict
from sweeps.reproduction.page import text as page_text
from sweeps.reproduction.statements import study as statements
from sweeps.reproduction.statements.registry import CHECKS
from sweeps.reproduction.statements.study import Statements
from sweeps.runtime import session
from sweeps.study import Execution, UsageError

TINY = dict(
    num_samples="20", d0="2,8", d1="4,24", num_seeds="40", num_steps="400", trained_layers="hidden", prove="false"
)
FEW = dict(statement="lemma-h1,lemma-h2,lemma-h2-repaired", num_seeds="3")
# Three statements, and a map of four cells of which one lies below the edge and one far above it.
SIZES = {
    "statements": {"quick": FEW, "full": FEW},
    "map_as_written": {"quick": TINY, "full": {**TINY, "d1": "4,12,24"}, "planted": {**TINY, "tolerance": "10"}},
}
KINDS = {key: dataclasses.replace(studies.KINDS[key], sizes=sizes) for key, sizes in SIZES.items()}


@pytest.fixture(scope="module", autouse=True)
def _quietly():
    with pytest.MonkeyPatch.context() as patch, flagsaver.flagsaver():
        sketched(patch)
        yield
    jax.config.update("jax_enable_x64", True)


def words(out, *more):
    return [f"--out={out}", "--num_processes=1", "--kernel=xla", *more], KINDS


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """The folder of a whole run."""
    out = tmp_path_factory.mktemp("reproduction") / "whole"
    assert run.execute(*words(out, "--format=html,tex,markdown")) == 0
    return out


def verdicts(out):
    judged, _ = ledger.load((out / "ledger.json").read_text())
    return {one.entry.id: one for one in judged}


def test_verdicts_come_from_what_is_stored(done):
    judged = verdicts(done)
    assert judged["lemma-h1"].verdict is Verdict.HOLDS
    assert judged["lemma-h1"].measurements[0].counts.startswith("0 of 3 problems; at most a share of 0.5")
    assert judged["lemma-h2"].verdict is Verdict.FAILS
    assert judged["lemma-h2-repaired"].verdict is Verdict.HOLDS
    assert judged["figure-2a"].verdict is Verdict.HOLDS
    assert judged["figure-1"].verdict is Verdict.NOT_MEASURED
    assert "no results of the study comparison" in judged["figure-1"].reason
    below = next(one for one in judged["figure-2a"].measurements if one.name == "converged_below_edge")
    assert below.counts.startswith("0 of 40 runs")
    assert below.setup == "hidden"
    assert below.precision == "float64"
    for one in judged.values():
        assert ledger.verdict_of(one.entry, one.measurements) == (one.verdict, one.reason)


def test_all_files_say_the_same(done):
    with (done / "ledger.csv").open() as file:
        rows = {row["id"]: row for row in csv.DictReader(file)}
    judged = verdicts(done)
    assert {name: row["verdict"] for name, row in rows.items()} == {
        name: one.verdict.value for name, one in judged.items()
    }
    page, tex, text = ((done / name).read_text() for name in ("index.html", "ledger.tex", "ledger.md"))
    for entry in ledger.read():
        assert f'id="{entry.id}"' in page
        assert entry.place.replace("|", r"\|") in text
    assert tex.count("\\\\\n") > len(judged)
    assert r"\end{longtable}" in tex


def test_the_report_alone_says_the_same(done, capsys):
    before = (done / "ledger.json").read_text()
    (done / "ledger.json").write_text("")
    assert run.execute([f"--out={done}", "--report_only"], KINDS) == 0
    assert (done / "ledger.json").read_text() == before
    assert "--preset=quick" in before
    assert run.execute([f"--out={done}", "--report_only"]) == 0  # Of other sizes than the preset's.
    assert "--preset" not in (done / "ledger.json").read_text()
    line = verdicts(done)["lemma-h1"].command
    assert line == "python -m sweeps.reproduction.statements --num_seeds=3 --statement=lemma-h1 --out=DIR/lemma-h1"
    page = publish.markdown(ledger.load((done / "ledger.json").read_text())[0], {})
    assert re.search(r"^\| Lemma H\.1, .*\| lemma-h1 \|$", page, flags=re.M)


def test_what_is_done_is_not_run_again(done, capsys, monkeypatch):
    monkeypatch.setattr(run, "_run", None)
    assert run.execute(*words(done)) == 0
    assert "about 0:00:00 in all" in capsys.readouterr().out


def test_a_threshold_changed_in_a_study_flips_a_verdict(done, tmp_path):
    (planned,) = studies.plan("planted", kinds={"map_as_written": KINDS["map_as_written"]})
    with app.as_a_program():
        session.train(planned.study, Execution(out=tmp_path / planned.key, num_processes=1))
    stored = measure.stored(planned.key, tmp_path)
    planted = {one.entry.id: one.verdict for one in publish.judge_all(ledger.read(), [stored], {})}
    assert verdicts(done)["figure-2a"].verdict is Verdict.HOLDS
    assert planted["figure-2a"] is Verdict.FAILS


def test_a_wrong_constant_in_a_bound_flips_a_verdict(monkeypatch):
    study = Statements.make(statement="lemma-h2-repaired", num_seeds=3)

    def verdict():
        found = [[statements.measure(study, name, seed) for seed in study.seeds()] for name in study.statement]
        data = xr.Dataset(
            {name: (("statement", "seed"), [[one[name] for one in row] for row in found]) for name in study.metrics},
            coords={"statement": list(study.statement)},
        )
        stored = measure.Stored("statements", study, {study.variants()[0]: data}, ROOT, "")
        judged = {one.entry.id: one for one in publish.judge_all(ledger.read(), [stored], {})}
        return judged["lemma-h2-repaired"].verdict

    assert verdict() is Verdict.HOLDS
    right = hidden_layer.lemma_h2_bound
    monkeypatch.setattr(hidden_layer, "lemma_h2_bound", lambda *given: (right(*given)[0], 0.9 * right(*given)[1]))
    assert verdict() is Verdict.FAILS


def test_figure_1_is_not_that_of_9_as_printed(tmp_path):
    study, folder = Comparison.make(), tmp_path / "comparison"
    folder.mkdir()
    rows = [
        {
            "variant": name,
            "alpha": at + step,
            "outcome": outcome,
            "largest_y": 0.4,
            "bound": 0.5,
            "left_side_10": left,
        }
        for name, at, left in (("as printed", 1.7293, 2.0), ("with 2 alpha t", 2.0441, 0.87))
        for step, outcome in ((-1e-4, "blows_up"), (1e-4, "bounded"))
    ]
    pandas.DataFrame(rows).to_csv(folder / "summary.csv", index=False)
    assert measure.stored("comparison", tmp_path) is None
    session.write_config(study, folder)
    stored = measure.stored("comparison", tmp_path)
    judged = {one.entry.id: one for one in publish.judge_all(ledger.read(), [stored], {})}
    assert judged["figure-1"].verdict is Verdict.FAILS
    assert [one.value for one in judged["figure-1"].measurements] == pytest.approx([1.7293])
    assert page_text.result(judged["figure-1"].measurements[0]).startswith("(9) as printed: 1.7293 (1.7292 to 1.7294)")
    assert judged["figure-1-condition"].verdict is Verdict.FAILS
    assert [one.counts[:6] for one in judged["figure-1-condition"].measurements] == ["1 of 2"]
    assert judged["figure-1-bound"].verdict is Verdict.HOLDS
    (folder / "config.json").write_text("{")
    with pytest.raises(UsageError, match=r"config\.json"):
        measure.stored("comparison", tmp_path)


def test_other_flags_in_a_folder_are_refused(done, capsys):
    before = (done / "ledger.json").stat().st_mtime_ns
    assert run.execute(*words(done, "--preset=full")) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "--d1" in error
    assert (done / "ledger.json").stat().st_mtime_ns == before


@pytest.mark.parametrize(
    "bad",
    [
        ["--preset=large"],
        ["--format=html,doc"],
        ["--num_processes=-1"],
        ["--kernel=cuda"],
        ["--colour"],
        ["stray"],
        ["--report_only"],
    ],
)
def test_bad_input_is_one_line(bad, tmp_path, capsys):
    try:
        code = run.execute([f"--out={tmp_path / 'new'}", *bad])
    except SystemExit as left:
        code = left.code
    assert code == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert not (tmp_path / "new").exists()


def test_a_foreign_folder_is_refused(tmp_path, capsys):
    (tmp_path / "thesis.tex").write_text("x")
    assert run.execute([f"--out={tmp_path}", "--kernel=xla"]) == 2
    assert "thesis.tex" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize("more", [(), ("--report_only",)])
def test_a_page_beside_a_study_is_not_replaced(more, tmp_path, capsys):
    (tmp_path / "comparison").mkdir()
    (tmp_path / "index.html").write_text("mine")
    session.write_config(Comparison.make(), tmp_path / "comparison")
    assert run.execute([f"--out={tmp_path}", "--kernel=xla", *more]) == 2
    assert "index.html" in capsys.readouterr().err
    assert (tmp_path / "index.html").read_text() == "mine"


def test_a_folder_that_cannot_be_made_is_refused_before_any_study(monkeypatch, capsys):
    monkeypatch.setattr(run, "_run", None)
    assert run.execute(*words("/proc/none")) == 2
    said = capsys.readouterr()
    assert said.err.count("\n") == 1
    assert "studies into" not in said.out


def test_what_is_left_of_a_study_is_said(done, tmp_path, capsys):
    shutil.copytree(done, tmp_path / "whole")
    (planned,) = studies.plan("quick", kinds={"map_as_written": KINDS["map_as_written"]})
    folder = tmp_path / "whole" / "map_as_written"
    for path in (folder / "results.zarr" / "hidden" / "status").iterdir():
        if path.name == "c":
            shutil.rmtree(path)
    assert run.execute([f"--out={folder.parent}", "--report_only"], KINDS) == 0
    runs = 4 * len(planned.study.seeds())
    assert f"map_as_written is not judged: {runs} of {runs} runs are left" in capsys.readouterr().out
    assert verdicts(folder.parent)["figure-2a"].verdict is Verdict.NOT_MEASURED


def test_progress_is_of_the_whole(tmp_path, caplog):
    with caplog.at_level(logging.INFO), run._Clock(tmp_path, {"a": 100.0, "b": 60.0}, period=60) as clock:
        clock.begin("a")
    assert clock.line() == "study 1 of 2 (a), about 0:02:40 left of all"
    clock._taken["a"] = 200.0  # Twice as long as was expected: so will the other be.
    clock.begin("b")
    assert clock.line() == "study 2 of 2 (b), about 0:02:00 left of all"


def resolved(name):
    """What is imported by a dotted name."""
    module, parts = name, []
    while True:
        try:
            found = importlib.import_module(module)
            break
        except ModuleNotFoundError:
            module, _, part = module.rpartition(".")
            parts.insert(0, part)
    for part in parts:
        found = getattr(found, part)
    return found


def test_every_claim_has_code_tests_and_a_quantity_that_are_there():
    entries = ledger.read()
    assert len(entries) > 30
    for entry in entries:
        for name in entry.code:
            assert resolved(name) is not None
        for path in entry.tests:
            assert (ROOT / path).is_file(), (entry.id, path)
        for condition in ledger.conditions(entry.rule):
            if entry.study == "statements":
                assert condition["quantity"] in CHECKS, entry.id
            else:
                assert entry.study in measure.QUANTITIES[condition["quantity"]].keys, entry.id


def test_every_figure_and_table_of_the_paper_is_claimed():
    places = {entry.place for entry in ledger.read() if entry.kind in ("figure", "table")}
    assert {"Figure 1", "Figure 2a", "Figure 2b", "Figure 2c", "Figure 4", "Table 1"} <= places
    panels = " ".join(place for place in places if place.startswith("Figures 3"))
    assert all(f"3{letter}" in panels for letter in "abcdefghij")


def test_markdown_escapes_what_would_end_a_cell():
    assert publish._rows(("a", "b"), [("x | y", "two\nlines")]).splitlines()[-1] == r"| x \| y | two lines |"
    with pytest.raises(ValueError, match="comments"):
        publish.replaced("text", "table", "ledger")
    assert publish.replaced("a\n<!-- x -->\nold<!-- end of x -->\n", "new\n", "x").splitlines()[2] == "new"


def test_the_repository_shows_what_its_ledger_says():
    """README's table and the site's page are generated, and the ledger is judged by the claims of now: after a change
    of claims.toml scripts/reproduction_docs writes them.
    """
    for path, text in publish.documents(ROOT).items():
        assert path.read_text() == text, path


def test_verdicts_follow_the_measurements_that_a_ledger_holds():
    judged, _ = ledger.load((ROOT / "docs" / "reproduction" / "ledger.json").read_text())
    assert sum(bool(one.measurements) for one in judged) > 20
    changed = [
        dataclasses.replace(
            one, measurements=tuple(dataclasses.replace(of, value=1e9, low=1e9, high=1e9) for of in one.measurements)
        )
        for one in judged
    ]
    again = {one.entry.id: one.verdict for one in publish.judged_again(changed, ledger.read())}
    assert again["no-difference"] is Verdict.FAILS
    assert again["sufficient-width"] is Verdict.HOLDS


def test_the_ledger_of_the_repository_is_of_the_first_command():
    """Every measurement in it is of a study of the quick preset as it is now; scripts/reproduction_docs DIR takes it
    from a run of python -m sweeps.reproduction --out=DIR.
    """
    judged, about = ledger.load((ROOT / "docs" / "reproduction" / "ledger.json").read_text())
    quick = {one.key: session.configuration_of(one.study.science()) for one in studies.plan("quick")}
    assert {one.study: one.configuration for part in judged for one in part.measurements} == quick
    assert about["Command"] == "python -m sweeps.reproduction --preset=quick --out=DIR"
