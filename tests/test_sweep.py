"""`sweep`: a function or dynamics of one's own as a map, against closed forms; resume, edits, refusals."""

import dataclasses
import importlib
import json
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pandas
import pytest
from scipy import stats

from relu_sgd import Status, Stepwise
from sweeps import sweep
from sweeps.function_map.study import keys_of
from sweeps.reporting import style
from sweeps.study import UsageError

ROOT = Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def _one_format(monkeypatch):
    """Figures in three formats take longer than the runs."""
    monkeypatch.setattr(style, "FORMATS", ("png",))


def coin(key, bias, side):
    """A biased coin; the values of the axes come as they were given."""
    assert isinstance(bias, float)
    assert isinstance(side, str)
    toss = jax.random.uniform(key)
    landed = toss < bias
    wanted = landed if side == "heads" else ~landed
    return {"toss": toss, "landed": landed, "status": jnp.where(wanted, 1, 2), "length": len(side)}


GRID = {"bias": [0.25, 0.75], "side": ["heads", "tails", "edges"]}


def test_a_function_against_its_closed_form(tmp_path):
    found = sweep(coin, axes=GRID, seeds=40, out=tmp_path / "out", num_processes=1)
    assert dict(found.sizes) == {"bias": 2, "side": 3, "seed": 40}
    assert found["landed"].dtype == bool
    assert found["toss"].dtype == np.float64
    for bias in GRID["bias"]:
        cell = found.sel(bias=bias, side="tails")
        toss = jax.vmap(jax.random.uniform)(keys_of({"bias": bias, "side": "tails"}, range(40)))
        np.testing.assert_array_equal(cell["toss"], toss)
        np.testing.assert_array_equal(cell["status"], np.where(toss < bias, 2, 1))
        assert (cell["length"] == 5).all()
    assert len(np.unique(found["toss"])) == found["toss"].size

    table = pandas.read_csv(tmp_path / "out" / "summary.csv").set_index(["bias", "side"]).loc[(0.25, "tails")]
    successes = int((found.sel(bias=0.25, side="tails")["status"] == 1).sum())
    expected = stats.binomtest(successes, 40).proportion_ci(method="wilson")
    assert table["runs"] == 40
    np.testing.assert_allclose(table["probability"], successes / 40, rtol=1e-5)
    np.testing.assert_allclose([table["probability_low"], table["probability_high"]], expected, rtol=1e-5)
    np.testing.assert_allclose(table["landed_share"], 1 - successes / 40, rtol=1e-5)
    np.testing.assert_allclose(table["toss_mean"], found.sel(bias=0.25, side="tails")["toss"].mean(), rtol=1e-5)
    assert (tmp_path / "out" / "report.html").exists()
    assert (tmp_path / "out" / "figures" / "map.png").stat().st_size > 10_000


def sessions(out):
    file = out / "sessions.jsonl"
    return [json.loads(line)["tiles"] for line in file.read_text().splitlines()] if file.exists() else []


def test_what_is_lost_is_done_again_and_nothing_else(tmp_path):
    whole = sweep(coin, axes=GRID, seeds=6, out=tmp_path / "whole", num_processes=1)
    out = tmp_path / "out"
    arguments = dict(axes=GRID, seeds=6, out=out, num_processes=1)
    part = sweep(coin, **arguments, shard_count=3)
    assert ((part["status"] == 0).sum("seed") == 6).sum() == 4
    assert not (out / "report.html").exists()
    sweep(coin, **arguments)
    assert sessions(out) == [2, 4]
    # As after a kill: metrics without a status.
    (out / "results.zarr" / "runs" / "status" / "c" / "1" / "0" / "0").unlink()
    assert sweep(coin, **arguments).identical(whole)
    assert sessions(out) == [2, 4, 1]
    written = (out / "report.html").stat().st_mtime_ns
    assert sweep(coin, **arguments).identical(whole)
    assert sessions(out) == [2, 4, 1]
    assert (out / "report.html").stat().st_mtime_ns == written


def test_a_run_depends_on_its_seed_and_cell_alone(tmp_path):
    whole = sweep(coin, axes=GRID, seeds=6, out=tmp_path / "whole", num_processes=1)
    turned = {"side": ["tails"], "bias": [0.75, 0.5]}
    part = sweep(coin, axes=turned, seeds=range(2, 5), out=tmp_path / "part", num_processes=1)
    assert part["seed"].values.tolist() == [2, 3, 4]
    cell = {"bias": 0.75, "side": "tails"}
    np.testing.assert_array_equal(part.sel(cell)["toss"], whole.sel({**cell, "seed": [2, 3, 4]})["toss"])
    blocks = sweep(coin, axes=turned, seeds=range(2, 5), out=tmp_path / "blocks", num_processes=1, block=(1, 2, 2))
    assert blocks.drop_attrs().identical(part.drop_attrs())


class Shrinking(NamedTuple):
    x: jax.Array
    step: jax.Array
    limit: jax.Array


class End(NamedTuple):
    x: jax.Array
    steps: jax.Array
    status: jax.Array
    path: jax.Array


@dataclasses.dataclass(frozen=True)
class Shrink(Stepwise):
    """x <- rate x until |x| is below a limit; the problem is the limit."""

    rate: float

    def init(self, problem, params, key=None):
        return Shrinking(params, jnp.int32(0), problem)

    def take_step(self, state):
        return state._replace(x=self.rate * state.x, step=state.step + 1)

    def done(self, state):
        return jnp.abs(state.x) < state.limit

    def result(self, state):
        status = jnp.where(self.done(state), Status.CONVERGED, Status.STEP_LIMIT)
        return End(state.x, state.step, status, state.x[None])


half = Shrink(0.5)


def start(key, scale, **_):
    return scale * jax.random.uniform(key, minval=1.0, maxval=2.0), jnp.float64(1.0)


def measure(params, problem, result):
    return {"factor": result.x / params, "is_small": params < 8 * problem}


@pytest.mark.parametrize("lanes", [1, 3])
def test_dynamics_against_their_closed_form(tmp_path, lanes):
    out = tmp_path / "out"
    arguments = dict(start=start, measure=measure, axes={"scale": [1, 16, 64]}, seeds=7, num_steps=6, out=out)
    found = sweep(half, **arguments, num_processes=1, lanes=lanes, steps_per_chunk=2)
    assert set(found.data_vars) == {"x", "steps", "status", "factor", "is_small"}
    # x begins between scale and 2 scale: at least log2(scale) and at most log2(scale) + 1 halvings, and one for "below".
    np.testing.assert_array_equal(found["steps"], np.broadcast_to([[1], [5], [6]], (3, 7)))
    np.testing.assert_array_equal(found["status"], np.broadcast_to([[1], [1], [2]], (3, 7)))
    np.testing.assert_array_equal(found["factor"], 0.5 ** found["steps"].values.astype(float))
    np.testing.assert_array_equal(found["is_small"], np.broadcast_to([[True], [False], [False]], (3, 7)))


def by_rate(rate, **_):
    return Shrink(rate)


def test_dynamics_may_depend_on_the_cell(tmp_path):
    axes = {"rate": [0.5, 0.125], "scale": [16]}
    found = sweep(by_rate, start=start, axes=axes, seeds=3, num_steps=9, out=tmp_path / "out", num_processes=1)
    np.testing.assert_array_equal(found["steps"].values[:, 0], [[5] * 3, [2] * 3])


OWN = """
import jax, jax.numpy as jnp
SIZE = 30

def norm(key, d, scale):
    return {"norm": scale * jnp.linalg.norm(jax.random.normal(key, (SIZE, d)) @ jnp.ones((d, 40)))}
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A module of one's own."""
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / "own_module.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path / "modules")
    yield importlib.import_module("own_module")
    del sys.modules["own_module"]


def test_two_processes_give_what_one_gives(tmp_path, own):
    axes = {"d": [1, 2, 5], "scale": [0.1]}
    one = sweep(own.norm, axes=axes, seeds=5, out=tmp_path / "one", num_processes=1, compilation_cache="")
    two = sweep(own.norm, axes=axes, seeds=5, out=tmp_path / "two", num_processes=2, compilation_cache="")
    assert two.identical(one)
    (line,) = (tmp_path / "two" / "sessions.jsonl").read_text().splitlines()
    assert json.loads(line)["num_processes"] == 2


def test_an_edited_function_is_refused(tmp_path, own):
    arguments = dict(axes={"d": [1], "scale": [0.1]}, seeds=2, out=tmp_path / "out", num_processes=1)
    before = sweep(own.norm, **arguments)
    # Of another size: Python tells a stale bytecode by seconds and size.
    Path(own.__file__).write_text(OWN.replace("30", "310"))
    edited = importlib.reload(own)
    with pytest.raises(UsageError, match="has results of own_module:norm as it was before an edit") as caught:
        sweep(edited.norm, **arguments)
    assert "\n" not in str(caught.value)
    Path(own.__file__).write_text(OWN)
    assert sweep(importlib.reload(own).norm, **arguments).identical(before)


def test_code_that_is_not_its_file_s_is_refused(tmp_path, own, monkeypatch):
    """The folder would name one code, and this process run another."""
    arguments = dict(axes={"d": [1], "scale": [0.1]}, seeds=2, out=tmp_path / "out", num_processes=1)
    Path(own.__file__).write_text(OWN.replace("scale * jnp", "2 * scale * jnp"))
    with pytest.raises(UsageError, match=r"^own_module.py was edited after norm was imported from it; begin anew$"):
        sweep(own.norm, **arguments)
    Path(own.__file__).write_text(OWN.replace("30", "31"))
    with pytest.raises(UsageError, match=r"^SIZE is 30, and 31 in own_module.py$"):
        sweep(own.norm, **arguments)
    Path(own.__file__).write_text(OWN)
    monkeypatch.setattr(own, "SIZE", 31)
    with pytest.raises(UsageError, match=r"^SIZE is 31, and 30 in own_module.py$"):
        sweep(own.norm, **arguments)
    assert not (tmp_path / "out").exists()


def test_what_a_closure_captures_is_part_of_it(tmp_path):
    def scaled(by):
        return lambda key, d: {"x": by * jnp.ones(d).sum()}

    arguments = dict(axes={"d": [1, 2]}, seeds=1, out=tmp_path / "out")
    found = sweep(scaled(np.arange(3.0)[2]), **arguments)
    np.testing.assert_array_equal(found["x"].values[:, 0], [2, 4])
    assert sweep(scaled(np.arange(3.0)[2]), **arguments).identical(found)
    with pytest.raises(UsageError, match="before an edit"):
        sweep(scaled(np.arange(3.0)[1]), **arguments)


def test_other_arguments_on_a_folder_are_refused(tmp_path):
    out = tmp_path / "out"
    sweep(coin, axes=GRID, seeds=1, out=out, num_processes=1)
    with pytest.raises(UsageError, match=r"of another sweep: seeds is 0,1 there and 0,2 here$"):
        sweep(coin, axes=GRID, seeds=2, out=out, num_processes=1)
    with pytest.raises(UsageError, match=r"axes is .* there and .* here$"):
        sweep(coin, axes={**GRID, "bias": [0.25]}, seeds=1, out=out, num_processes=1)


def test_results_may_be_nan(tmp_path):
    arguments = dict(axes={"x": [-1.0, 4.0]}, seeds=2, out=tmp_path / "out")
    for _ in range(2):
        found = sweep(lambda key, x: {"root": jnp.sqrt(x)}, **arguments)
        np.testing.assert_array_equal(found["root"], [[np.nan] * 2, [2.0] * 2])


def test_the_configuration_of_jax_stays(tmp_path, float32):
    options = ("jax_enable_x64", "jax_default_matmul_precision", "jax_compilation_cache_dir")
    before = [jax.config.values[name] for name in options]
    arguments = dict(axes={"x": [1]}, seeds=1, compilation_cache=str(tmp_path / "cache"))
    single = sweep(lambda key, x: {"y": x / 3.0}, **arguments, out=tmp_path / "single")
    double = sweep(
        lambda key, x: {"y": x / jnp.float64(3.0)}, **arguments, out=tmp_path / "double", precision="float64"
    )
    assert single["y"].dtype == np.float32
    assert double["y"].dtype == np.float64
    assert [jax.config.values[name] for name in options] == before


def constant(value):
    return lambda key, x: value


REFUSED = {
    "no dict": (dict(run=constant(3.0)), "must return a dict of named scalars, got float"),
    "empty dict": (dict(run=constant({})), "got an empty one"),
    "shape": (dict(run=lambda key, x: {"y": jnp.ones(3)}), r"returns y of shape \(3,\), and must return scalars"),
    "text": (dict(run=constant({"y": "many"})), "returns y, which is no number but str"),
    "name of an axis": (dict(run=constant({"x": 1.0})), "'x', which cannot be the name"),
    "names": (dict(run=lambda key, x: {f"y{x}": 1.0}), "returns y2 at x = 2, and y1 before"),
    "status": (dict(run=constant({"status": 0.5})), "a status that is no whole number"),
    "arguments": (dict(run=lambda key, y: {"z": y}), r"must take \(key, \*\*axes\), with the axes x"),
    "no function": (dict(run=3), "run: must be a function, got 3"),
    "no axes": (dict(axes={}), "axes: must be a dict of names to values, with one axis at least"),
    "no values": (dict(axes={"x": []}), "axes: x must be a list of values"),
    "one text": (dict(axes={"x": "ab"}), "axes: x must be a list of values"),
    "repeated": (dict(axes={"x": [1, 1.0]}), "axes: x repeats a value"),
    "mixed": (dict(axes={"x": [1, "a"]}), "axes: x must have finite numbers, or strings"),
    "not finite": (dict(axes={"x": [float("nan")]}), "axes: x must have finite numbers"),
    "name": (dict(axes={"seed": [1]}), "'seed' cannot be the name of an axis"),
    "no seeds": (dict(seeds=0), "seeds: must be a whole number from 1 on, or a range"),
    "list of seeds": (dict(seeds=[1, 2]), "seeds: must be a whole number"),
    "float seeds": (dict(seeds=2.0), "seeds: must be a whole number"),
    "precision": (dict(precision="half"), "precision: must be float32 or float64, got 'half'"),
    "processes": (dict(num_processes=-1), "num_processes: "),
    "unknown": (dict(num_threads=1), "num_threads: sweep has no such argument"),
    "lambda in processes": (dict(num_processes=2), "num_processes: 2 processes cannot import test_sweep:.*<lambda>"),
    "no start": (dict(run=half), "start: dynamics need one"),
    "no steps": (dict(run=half, start=start), "num_steps: dynamics need a number of steps"),
    "steps": (dict(run=half, start=start, num_steps=-1), "num_steps: "),
    "steps of a function": (dict(num_steps=3), "num_steps: is for dynamics with a start"),
    "no dynamics": (dict(run=lambda x: 3, start=lambda key, x: (1.0, 1.0), num_steps=3), "must return dynamics"),
    "no pair": (dict(run=half, start=lambda key, x: 1.0, num_steps=3), r"must return \(params, problem\), got float"),
}  # fmt: skip


@pytest.mark.parametrize(("wrong", "message"), REFUSED.values(), ids=REFUSED)
def test_bad_input_is_one_line_and_nothing_is_written(tmp_path, wrong, message):
    given = dict(run=lambda key, x: {"y": x}, axes={"x": [1, 2]}, seeds=2, out=tmp_path / "out") | wrong
    with pytest.raises(UsageError, match=message) as caught:
        sweep(given.pop("run"), **given)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_foreign_folder_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("text")
    with pytest.raises(UsageError, match=r"^out: .* holds other things \(thesis.tex\)"):
        sweep(lambda key, x: {"y": x}, axes={"x": [1]}, seeds=1, out=tmp_path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["thesis.tex"]


def late(key, x):
    """Other names in the middle of the grid, which its first and last cells do not show."""
    return {"y" if x != 2 else "z": 1.0}


def no_success(key, x):
    return {"status": x}


@pytest.mark.parametrize(
    ("run", "message"),
    [(late, "returns z at x = 2, and y before"), (no_success, "returns the status 200 at x = 200")],
)
def test_what_shows_late_is_one_line_too(tmp_path, run, message):
    with pytest.raises(UsageError, match=message):
        sweep(run, axes={"x": [1, 2, 3, 200, 4]}, seeds=1, out=tmp_path / "out", num_processes=1)


UNGUARDED = """
import sys
sys.path.insert(0, sys.argv[2])
from sweeps import sweep

def double(key, x):
    return {"y": 2 * x}

print(sweep(double, axes={"x": [1, 2]}, seeds=1, out=sys.argv[1])["y"].values.ravel())
"""


def test_a_script_without_a_guard_runs_in_its_own_process(tmp_path):
    (tmp_path / "script.py").write_text(UNGUARDED)
    command = [sys.executable, tmp_path / "script.py", tmp_path / "out", ROOT]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[2 4]"
    (tmp_path / "script.py").write_text(UNGUARDED.replace("out=", "num_processes=2, out="))
    shutil.rmtree(tmp_path / "out")
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert "2 processes cannot import script:double" in done.stderr.splitlines()[-1]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("page", "first"),
    [("docs/own_study.md", 0), ("docs/quickstart.md", -1), ("README.md", 0)],
    ids=lambda value: str(value),
)
def test_the_blocks_of_a_page_run_in_order(page, first, float32, monkeypatch, tmp_path):
    blocks = re.findall(r"^```python\n(.*?)^```", (ROOT / page).read_text(), flags=re.M | re.S)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tempfile, "mkdtemp", lambda: str(tmp_path))
    namespace = {}
    for block in blocks[first:]:
        exec(compile(block, page, "exec"), namespace)
    made = sorted(path.parent for path in tmp_path.rglob("report.html"))
    assert len(made) == sum(len(re.findall(r"\bsweep\(.*?out=", block, flags=re.S)) for block in blocks[first:]) > 0


def test_what_was_typed_is_followed_name_by_name(tmp_path):
    """Functions without a file: the globals that they read count, and attributes of the same name do not."""
    namespace = {"random": np.random.default_rng(0)}
    code = "import jax\nsize = 2\ndef f(key, x):\n    return {'y': size * x + 0 * jax.random.uniform(key)}"
    exec(code, namespace)
    sweep(namespace["f"], axes={"x": [1]}, seeds=1, out=tmp_path / "out")
    namespace["size"] = 3
    with pytest.raises(UsageError, match="results of f as it was before an edit"):
        sweep(namespace["f"], axes={"x": [1]}, seeds=1, out=tmp_path / "out")
    namespace["size"] = np.random.default_rng(0)
    with pytest.raises(UsageError, match=r"Generator .* is captured, and its value cannot be told apart"):
        sweep(namespace["f"], axes={"x": [1]}, seeds=1, out=tmp_path / "new")
