"""The runs of the boundary: what is measured of their starts, their own learning rates, and a small study."""

import csv
import itertools
import json
import shutil
from pathlib import Path

import jax
import numpy as np
import optax
import pandas
import pytest
import zarr
from support.launchers import command

from relu_sgd import Params, Problem, Status, descend
from sweeps.boundary import allocation
from sweeps.boundary.joined import together
from sweeps.boundary.study import BoundaryStudy, measure_start, rescaled
from sweeps.protocol.draw import Run
from sweeps.runtime import session
from sweeps.study import Execution, Tile, UsageError

TINY = ["--num_samples=10", "--d0=4", "--loss=squared,quadratic_hinge", "--steps_per_sample=60",
        "--precision=float64", "--kernel=xla", "--num_processes=1", "--compilation_cache="]  # fmt: skip


@pytest.fixture(scope="module")
def drawn():
    """Three runs of N = 12, d0 = 3, d1 = 4 and 6, padded to 5 x 6."""
    generator = np.random.default_rng(3)
    X, W, V = generator.normal(size=(3, 12, 5)), generator.normal(size=(3, 5, 6)), generator.normal(size=(3, 6, 1))
    X[:, :, 3:] = W[:, 3:] = 0
    W[0, :, 4:] = V[0, 4:] = 0
    X /= np.linalg.norm(X, axis=2, keepdims=True)
    Y = np.where(np.arange(12) % 2 == 0, 1.0, -1.0)[None, :, None] * np.ones((3, 1, 1))
    return Run(Params(W, V), Problem(X, Y), np.zeros((3, 2), np.uint32), np.ones((3, 6), bool))


@pytest.mark.parametrize("layers", ["hidden", "both"])
def test_the_spectrum_at_the_start_is_that_of_the_jacobian(drawn, layers):
    for run, d1 in enumerate((4, 6, 6)):
        params = Params(drawn.params.W[run, :3, :d1], drawn.params.V[run, :d1])
        data = Problem(drawn.problem.X[run, :, :3], drawn.problem.Y[run])
        Z = data.X @ params.W
        in_W = np.einsum("ik,ij,j->ikj", data.X, Z > 0, params.V[:, 0]).reshape(12, -1)
        parts = [in_W, np.maximum(Z, 0)] if layers == "both" else [in_W]
        singular = np.linalg.svd(np.concatenate(parts, axis=1), compute_uv=False)
        found = measure_start(drawn, run, 3, d1, layers)
        assert found.largest_eigenvalue == pytest.approx(singular[0] ** 2)
        assert found.has_full_rank == (len(singular) == 12 and singular[-1] > 1e-6 * singular[0])
        assert found.dead_samples == np.sum((Z <= 0).all(axis=1))


def test_rank_and_dead_samples_are_seen(drawn):
    """12 samples: 3 x 4 weights have a Jacobian of rank 12 only if every neuron sees all; 24 weights of both may."""
    dead = drawn._replace(params=Params(np.where(np.arange(3)[:, None, None] == 1, -1.0, 1.0) * np.abs(
        drawn.params.W), drawn.params.V), problem=drawn.problem._replace(X=np.abs(drawn.problem.X)))  # fmt: skip
    assert [measure_start(dead, run, 3, 6, "hidden").dead_samples for run in range(3)] == [0, 12, 0]
    assert not measure_start(dead, 1, 3, 6, "both").has_full_rank
    wide = drawn._replace(params=Params(np.random.default_rng(0).normal(size=(3, 5, 40)), np.ones((3, 40, 1))))
    assert measure_start(wide, 0, 3, 40, "hidden").has_full_rank


@pytest.mark.parametrize("layers", ["hidden", "both"])
def test_a_rescaled_run_at_rate_1_is_the_run_at_its_own_rate(drawn, layers):
    rates = np.array([0.03, 0.4, 0.07])
    scaled = rescaled(drawn, rates, layers)
    one, other = (
        descend(
            jax.tree.map(lambda leaf: np.asarray(leaf[1]), each.params),
            jax.tree.map(lambda leaf: np.asarray(leaf[1]), each.problem),
            optimizer=optax.sgd(rate, momentum=0.9),
            num_steps=12,
            trained_layers=layers,
        )
        for each, rate in ((drawn, rates[1]), (scaled, 1.0))
    )
    assert float(one.loss) != pytest.approx(6.0, rel=1e-3)
    assert float(other.loss) == pytest.approx(float(one.loss), rel=1e-9)
    s = np.sqrt(rates[1])
    np.testing.assert_allclose(s * other.params.W, one.params.W, rtol=1e-8, atol=1e-10)
    np.testing.assert_allclose((s if layers == "both" else 1) * other.params.V, one.params.V, rtol=1e-8)


def test_runs_of_every_n_have_their_own_draws_and_steps():
    study = BoundaryStudy(num_samples=(50, 100), condition=("as_written", "scaled"), d0=(4, 8, 32))
    protocols = {variant.group: study.protocol_of(variant) for variant in study.variants()}
    assert list(protocols) == [
        "hidden_N50_as_written", "hidden_N100_as_written", "hidden_N50_scaled", "hidden_N100_scaled",
    ]  # fmt: skip
    assert len({protocol.base_seed for protocol in protocols.values()}) == 2
    assert [protocol.num_steps for protocol in protocols.values()] == [12_500, 25_000] * 2
    assert [protocol.learning_rate for protocol in protocols.values()] == [0.15, 0.15, 1.0, 1.0]
    first = dict(study.allocate([], 8))
    assert len(study.allocate([], 8)) == 10  # d0 = 32 is more than half of 50.
    assert first["hidden_N100_scaled"][0] == 2
    small, large = (Tile(study.variants()[0], {"d0": (8,), "d1": (d1,)}, range(8)) for d1 in (4, 64))
    # Besides what any group costs: a step at 64 is ten times one at 4, of which a run below the boundary takes 25 times
    # as many.
    assert 0.3 < (study.cost(large) - 0.5) / (study.cost(small) - 0.5) < 0.6
    assert len(study.expected([], 8)) == 10 * 96 // 8


def train(out, row_runs):
    """Without a report."""
    flags = dict(word.removeprefix("--").split("=") for word in TINY)
    where = Execution(
        out=out, num_processes=int(flags.pop("num_processes")), compilation_cache=flags.pop("compilation_cache")
    )
    session.train(BoundaryStudy.make(row_runs=row_runs, **flags), where)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A study whose rows were given more runs later."""
    out = tmp_path_factory.mktemp("boundary") / "out"
    train(out, 16)
    shutil.copytree(out, out.with_name("few"))
    done = command("boundary", f"--out={out}", "--row_runs=32", *TINY)
    assert done.returncode == 0, done.stderr
    return out


def test_runs_are_counted(small):
    rows = list(csv.DictReader((small / "summary.csv").read_text().splitlines()))
    assert {row["num_samples"] for row in rows} == {"10"}
    for loss in ("squared", "quadratic_hinge"):
        own = [row for row in rows if row["loss"] == loss]
        assert {row["condition"] for row in own} == {"as_written"}
        assert sum(int(row["runs"]) for row in own) in (24, 32)
        shares = [int(row["converged"]) / int(row["runs"]) for row in own]
        assert min(shares) < 0.5 <= max(shares)
    for row in rows:
        assert 0 <= int(row["full_rank_start"]) <= int(row["runs"])
        assert row["proved_global"] == ""


def test_more_runs_later_are_those_of_the_same_study_at_once(small, tmp_path):
    train(tmp_path / "once", 32)

    def chunks(out: Path) -> dict[Path, bytes]:
        root = out / "refined.zarr"
        files = (path for path in root.rglob("*") if path.is_file() and path.parent != root)
        return {path.relative_to(root): path.read_bytes() for path in files}

    def attributes(out: Path) -> dict:
        """Which runs are in which round depends on when a row waited for a larger --row_runs."""
        known = json.loads((out / "refined.zarr" / "zarr.json").read_text())["attributes"]
        return known | {"rounds": sorted(map(repr, itertools.chain(*known["rounds"])))}

    assert chunks(tmp_path / "once") == chunks(small)
    assert attributes(tmp_path / "once") == attributes(small)
    flags = (small / "run.flagfile").read_text()
    assert "--row_runs=32" in flags
    assert "--refine" not in flags
    rounds = json.loads((small / "refined.zarr" / "zarr.json").read_text())["attributes"]["rounds"]
    assert len(rounds[0]) == 2


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--num_samples=9"], "--num_samples: 9 is odd"),
        (["--num_samples=10", "--d0=8"], "--num_samples: 10 is less than twice the least --d0, 8"),
        (["--loss=quadratic_hinge", "--prove"], "--prove: theorems are about the squared loss"),
        (["--shard_count=2"], "--shard_count: 2 shards cannot do boundary"),
        (["--rate=3.8"], "--rate: 3.8 is not a finite number in (0, 3.8)"),
    ],
)
def test_what_cannot_be_is_one_line(tmp_path, words, said):
    done = command("boundary", f"--out={tmp_path / 'out'}", "--kernel=xla", *words)
    assert done.returncode == 2
    assert said in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def copied(folder, to, science=None, **changes):
    """A folder's results under another science, with finished runs' metrics changed by functions of their values."""
    shutil.copytree(folder, to)
    root = zarr.open_group(to / "results.zarr", mode="r+")
    root.attrs["science"] = root.attrs["science"] | (science or {})
    for _, group in zarr.open_group(to / "refined.zarr", mode="r+").groups():
        done = group["status"][:] != 0
        for name, change in changes.items():
            group[name][:] = np.where(done, change(group[name][:]), group[name][:])
    return to


def test_folders_are_reported_together(small, tmp_path):
    found = together([small.with_name("few"), small])
    for name, table in together([small, small.with_name("few")]).tables.items():
        pandas.testing.assert_frame_equal(table, found.tables[name])
    found.tables["summary"].to_csv(tmp_path / "summary.csv", index=False, float_format="%.6g")
    assert (tmp_path / "summary.csv").read_bytes() == (small / "summary.csv").read_bytes()
    causes = found.tables["failures"]
    assert causes["runs"].sum() == found.tables["summary"]["runs"].sum()
    assert (causes["failed_dead_end"] <= causes["failed"]).all()
    assert found.text.count("N = 10, as_written, at most 60 N steps, first_passage: ") == 2
    with pytest.raises(UsageError, match="--out"):
        together([tmp_path])
    assert together([small], least_d0=4).text.count("Rows with d0 >= 4.") == 1
    with pytest.raises(UsageError, match="--least_d0: no row has 5 inputs or more"):
        together([small], least_d0=5)
    # Its counts in a file stand for the folders.
    found.tables["counts"].to_csv(tmp_path / "counts.csv", index=False, float_format="%.12g")
    again = together([tmp_path / "counts.csv"])
    for name, table in again.tables.items():
        pandas.testing.assert_frame_equal(table, found.tables[name])
    for wrong, said in (("configuration\n1\n", "no column stop"), ("", "no table of counts")):
        (tmp_path / "wrong.csv").write_text(wrong)
        with pytest.raises(UsageError, match=said):
            together([tmp_path / "wrong.csv"])
    other = copied(small, tmp_path / "other", {"steps_per_sample": 500})
    with pytest.raises(UsageError, match=r"other: --steps_per_sample=500, where .*no runs of one law"):
        together([small, other])


def test_of_folders_with_the_same_cells_one_is_kept_whatever_their_order(small, tmp_path):
    """Of equally many runs those by first passage; and failures are of the folder that the counts are of."""
    decided = copied(
        small, tmp_path / "decided", {"stop": "decided", "loss": ["squared"]},
        dead_at_start=lambda dead: dead + 1, status=lambda _: int(Status.MAX_STEPS_REACHED),
    )  # fmt: skip
    alone, both, other = (together(folders) for folders in ([small], [small, decided], [decided, small]))
    for name, table in alone.tables.items():
        pandas.testing.assert_frame_equal(both.tables[name], table)
    assert both.text == other.text
    for name, table in both.tables.items():
        pandas.testing.assert_frame_equal(other.tables[name], table)
    assert "60 N steps, decided: " in both.text
    # Where a run of the larger folder diverged the smaller one has more that did not.
    diverged = copied(small, tmp_path / "diverged", status=lambda _: int(Status.DIVERGED))
    found = together([diverged, small.with_name("few")]).tables
    twice = found["summary"].query("runs == diverged")
    assert len(twice)
    assert len(found.get("failures", ())) + len(twice) == len(found["summary"])


def test_runs_of_another_rule_are_reported_and_not_gone_on_with(small, tmp_path):
    """As where the folder is of an earlier version; or of one that did not yet say so."""
    out = tmp_path / "out"
    shutil.copytree(small, out)
    root = zarr.open_group(out / "refined.zarr", mode="r+")
    assert root.attrs["rule"] == allocation.VERSION
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    for rule in (allocation.VERSION - 1, None):
        attributes = {name: value for name, value in root.attrs.items() if name != "rule"}
        root.attrs.put(attributes | ({} if rule is None else {"rule": rule}))
        known = (out / "refined.zarr" / "zarr.json").read_bytes()
        done = command("boundary", f"--out={out}", "--row_runs=64", *TINY)
        assert done.returncode == 2
        assert len(done.stderr.splitlines()) == 1
        assert "another rule" in done.stderr
        assert "another --out begins anew" in done.stderr
        after = {path: path.read_bytes() for path in out.rglob("*") if path.is_file() and path.parent != out}
        assert after == {p: known if p.name == "zarr.json" and p.parent == out / "refined.zarr" else b
                         for p, b in before.items() if p.parent != out}  # fmt: skip
    assert together([out]).tables["summary"]["runs"].sum() > 0
