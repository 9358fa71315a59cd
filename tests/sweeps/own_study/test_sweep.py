"""`sweeps.sweep`: somebody's own function as a map, with resume, intervals, figures, processes."""

import importlib
import json
import os
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pandas
import pytest
from support import ROOT
from support.launchers import sketched

from relu_sgd import Descent, Params, Problem
from relu_sgd.dynamics import Status
from sweeps import sweep
from sweeps.reporting.statistics import interval
from sweeps.study import UsageError

SCRIPT = ROOT / "scripts" / "own_experiment"


@pytest.fixture(autouse=True)
def _one_format(monkeypatch):
    sketched(monkeypatch)


def walk(key, law, length):
    """A sum of steps; the text says of which law."""
    draw = {"signs": jax.random.rademacher, "normal": jax.random.normal}[law]
    steps = jnp.asarray(draw(key, (length,)), float)
    return {"end": jnp.sum(steps), "is_positive": jnp.sum(steps) > 0, "range": jnp.stack([steps.min(), steps.max()])}


def number(key, a):
    return {"value": jax.random.uniform(key) + a}


AXES = {"law": ("signs", "normal"), "length": (3, 5)}


def run(out, function=walk, axes=None, **options):
    return sweep(
        function, **{"axes": AXES if axes is None else axes, "seeds": 8, "out": out, "num_processes": 1, **options}
    )


def message(*arguments, **options):
    with pytest.raises(UsageError) as caught:
        run(*arguments, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_map_its_files_and_what_a_second_call_does(tmp_path, capsys, float32):
    before = dict(jax.config.values), dict(os.environ)
    results = run(tmp_path, precision="float64")
    assert (dict(jax.config.values), dict(os.environ)) == before
    assert dict(results.sizes) == {"law": 2, "length": 2, "seed": 8, "range_0": 2}
    assert (results["end"].dtype, results["is_positive"].dtype) == (np.float64, bool)
    ends = results["end"].sel(law="signs", length=5).values
    assert set(np.abs(ends)) <= {1, 3, 5}
    assert len(set(results["end"].sel(law="normal", length=3).values)) == 8
    np.testing.assert_array_equal(results["is_positive"], results["end"] > 0)
    summary = pandas.read_csv(tmp_path / "summary.csv")
    assert list(summary["law"]) == ["signs", "signs", "normal", "normal"]
    for row in summary.itertuples():
        count = int(results["is_positive"].sel(law=row.law, length=row.length).sum())
        assert (row.runs, row.is_positive_count) == (8, count)
        np.testing.assert_allclose((row.is_positive_low, row.is_positive_high), interval(count, 8), rtol=1e-5)
        values = results["end"].sel(law=row.law, length=row.length)
        np.testing.assert_allclose(row.end, values.mean(), rtol=1e-5, atol=1e-12)
    assert (tmp_path / "figures" / "is_positive.png").stat().st_size > 1000
    assert "is_positive" in (tmp_path / "report.html").read_text()
    assert "is_positive" in capsys.readouterr().out

    sessions = (tmp_path / "sessions.jsonl").read_text()
    assert run(tmp_path, precision="float64").identical(results)
    assert (tmp_path / "sessions.jsonl").read_text() == sessions
    assert capsys.readouterr().out == ""
    # A status that is taken away is a run to be made again, and comes out as it was.
    (tmp_path / "results.zarr" / "runs" / "status" / "c" / "1" / "0" / "0").unlink()
    assert run(tmp_path, precision="float64").identical(results)
    assert json.loads((tmp_path / "sessions.jsonl").read_text().splitlines()[-1])["tiles"] == 1


def test_a_key_depends_on_the_seed_and_the_values_alone(tmp_path):
    whole = run(tmp_path / "whole")
    part = run(tmp_path / "part", axes={"length": (5,), "law": ("normal",)}, seeds=3, lanes=1)
    expected = whole["end"].sel(law="normal", length=5).isel(seed=slice(3)).values
    np.testing.assert_allclose(part["end"].values[0, 0], expected, rtol=1e-14)
    other = run(tmp_path / "other", axes={"length": (5,), "law": ("normal",)}, seeds=3, base_seed=1)
    assert not np.isin(other["end"].values, expected).any()
    assert len(np.unique(run(tmp_path / "one", number, {"a": (0.0, 1.0)})["value"].values % 1)) == 16


def test_shards_leave_pending_runs_to_each_other(tmp_path):
    first = run(tmp_path, shard_index=0, shard_count=2)
    assert (first["status"] == 0).sum() == 16
    assert not (tmp_path / "report.html").exists()
    second = run(tmp_path, shard_index=1, shard_count=2)
    assert (second["status"] == 1).all()
    assert (tmp_path / "report.html").exists()


class Endless:
    """Halves theta at every step, and is done below a tenth."""

    def init(self, problem, params, key=None):
        return problem * params, jnp.int32(0)

    def advance_to(self, state, step):
        going = lambda now: (now[1] < step) & ~self.done(now)
        return jax.lax.while_loop(going, lambda now: (now[0] / 2, now[1] + 1), state)

    def done(self, state):
        return state[0] < 0.1

    def result(self, state):
        return {"steps": state[1], "status": jnp.where(self.done(state), Status.CONVERGED, Status.MAX_STEPS_REACHED)}


HALVING = Endless()
descent = Descent(optax.sgd(0.1), criterion=lambda losses, problem: jnp.sum(losses) < 1e-3)


def given(key, scale):
    return 1.0 + jax.random.uniform(key), jnp.float32(scale)


def line(key, slope):
    X = jax.random.normal(key, (4, 1))
    return Params(jnp.ones((1, 2)), jnp.ones((2, 1))), Problem(X, jax.nn.relu(slope * X))


def test_own_dynamics_and_a_descent(tmp_path):
    results = run(tmp_path / "own", HALVING, {"scale": (0.01, 1.0, 1000.0)}, start=given, num_steps=10)
    assert [set(row) for row in results["status"].values.tolist()] == [{1}, {1}, {2}]
    assert results["steps"].values[0].max() == 0
    assert set(results["steps"].values[1].tolist()) <= {4, 5}
    assert (results["steps"].values[2] == 10).all()
    table = pandas.read_csv(tmp_path / "own" / "summary.csv")
    assert list(table["converged_count"]) == [8, 8, 0]
    results = run(tmp_path / "descent", descent, {"slope": (1.0, 2.0, 1e6)}, start=line, num_steps=300, seeds=2)
    assert {"steps", "loss", "converged_at", "status"} <= set(results.data_vars)
    assert results["status"].values[:2].tolist() == [[1, 1], [1, 1]]
    assert sorted(results["status"].values[2]) == [1, 3]
    assert (results["loss"][:2] < 1e-3).all()
    converged = results["converged_at"].where(results["status"] == 1).mean("seed")
    np.testing.assert_allclose(pandas.read_csv(tmp_path / "descent" / "summary.csv")["converged_at"], converged)


def no_dictionary(key, a):
    return a


def clash(key, a):
    return {"a": 1}


def two_shapes(key, a):
    return {"value": jnp.zeros(int(a) + 1)}


def pending(key, a):
    return {"status": jnp.int32(0)}


def partial_status(key, a):
    return {"status": 1.5}


BAD = [
    (dict(axes={}), "axes: give at least one"),
    (dict(axes={"law": "signs", "length": (3,)}), "axes: the values of law"),
    (dict(axes={"law": ("signs", 1), "length": (3,)}), "axes: the values of law"),
    (dict(axes={"law": ("signs",), "length": (3, 3)}), "axes: length repeats"),
    (dict(axes={"law": ("signs",)}), "run: must take (key, law): missing a required argument: 'length'"),
    (dict(seeds=0), "seeds"),
    (dict(precision="bfloat16"), "precision"),
    (dict(num_steps=3), "start and num_steps"),
    (dict(function=descent), "run: Dynamics need a start"),
    (dict(function=lambda key, law, length: {"a": 1}), "run: a lambda has no name"),
    (dict(function=no_dictionary, axes={"a": (1,)}), "run: must return a dictionary"),
    (dict(function=clash, axes={"a": (1,)}), "run: returns 'a'"),
    (dict(function=two_shapes, axes={"a": (1, 2)}), "run: value has shape (3,) at a=2, and (2,) in the first cell"),
    (dict(function=pending, axes={"a": (1,)}), "run: a status at a=1"),
    (dict(function=partial_status, axes={"a": (1,)}), "run: the status must be one whole number"),
    (dict(shard_index=1), "--shard_index"),
]


@pytest.mark.parametrize(("options", "expected"), BAD, ids=[expected for _, expected in BAD])
def test_bad_input_is_one_line(options, expected, tmp_path):
    options = {"function": walk, "axes": AXES, **options}
    shown = message(tmp_path / "out", **options)
    assert shown.startswith(expected)


def test_another_sweep_in_the_folder_is_refused(tmp_path):
    axes = {"a": (1.0, 2.0)}
    run(tmp_path, number, axes)
    assert message(tmp_path, number, {"a": (1.0, 3.0)}).startswith("--out: the results in")
    assert "--seeds is 8 there and 9 here" in message(tmp_path, number, axes, seeds=9)
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "notes").write_text("mine")
    assert "holds other things" in message(tmp_path / "foreign", number, axes)


def test_functions_within_functions_run_in_this_process_and_closures_are_refused(tmp_path):
    def inner(key, a):
        return {"value": jax.random.uniform(key) * a}

    factor = 2.0

    def closure(key, a):
        return {"value": factor * a}

    results = sweep(inner, axes={"a": (1.0,)}, seeds=2, out=tmp_path / "inner")
    assert (results["value"] > 0).all()
    assert "cannot import" in message(tmp_path / "other", inner, {"a": (1.0,)}, num_processes=2)
    assert "uses variables of the function around it" in message(tmp_path / "other", closure, {"a": (1.0,)})
    assert not (tmp_path / "other").exists()


def test_an_edited_function_is_refused(tmp_path, monkeypatch):
    module = tmp_path / "edited_walk.py"
    module.write_text("def run(key, a):\n    return {'value': 1.0 * a}\n")
    monkeypatch.syspath_prepend(tmp_path)
    function = importlib.import_module("edited_walk").run
    run(tmp_path / "out", function, {"a": (1.0,)})
    module.write_text("def run(key, a):\n    return {'value': 2.0 * a}\n")
    shown = message(tmp_path / "out", function, {"a": (1.0,)})
    assert "edited_walk.py:run was edited since the results" in shown


def python(*words, **options):
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "JAX_ENABLE_X64": "0", "PYTHONPATH": str(ROOT)}
    return subprocess.run([sys.executable, *words], capture_output=True, text=True, env=environment, **options)


SCRIPT_OF_ONES_OWN = """
import sys, jax
from sweeps import sweep
def run(key, a):
    return {"value": a * jax.random.uniform(key)}
"""
CALL = "sweep(run, axes={'a': (1.0, 2.0)}, seeds=3, out=sys.argv[1], num_processes=int(sys.argv[2]))"


def test_a_script_with_and_without_a_guard(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(f"{SCRIPT_OF_ONES_OWN}\nif __name__ == '__main__':\n    {CALL}\n")
    done = python(script, tmp_path / "two", "2")
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "two" / "sessions.jsonl").read_text())["num_processes"] == 2
    script.write_text(f"{SCRIPT_OF_ONES_OWN}\n{CALL}\n")
    done = python(script, tmp_path / "one", "0")
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "one" / "sessions.jsonl").read_text())["num_processes"] == 1
    done = python(script, tmp_path / "no", "2")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].endswith(
        'num_processes: worker processes would run script.py again, which has no `if __name__ == "__main__":`'
    )
    assert not (tmp_path / "no").exists()


def test_import_is_cheap():
    done = python("-c", "import sys, sweeps; assert not {'jax', 'numpy', 'xarray'} & set(sys.modules)")
    assert done.returncode == 0, done.stderr


def test_own_experiment_goes_on_after_an_interruption(tmp_path):
    assert len(SCRIPT.read_text().splitlines()) <= 40
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "JAX_ENABLE_X64": "0"}
    out = tmp_path / "out"
    first = subprocess.Popen([sys.executable, SCRIPT, out], env=environment, stderr=subprocess.PIPE, text=True)
    while not (out / "results.zarr" / "runs" / "status" / "c").exists() and first.poll() is None:
        time.sleep(0.05)
    first.send_signal(signal.SIGINT)
    errors = first.communicate()[1]
    assert first.returncode == 130, errors
    assert "the same command goes on" in errors
    done = python(SCRIPT, out)
    assert done.returncode == 0, done.stderr
    tiles = [json.loads(line)["tiles"] for line in (out / "sessions.jsonl").read_text().splitlines()]
    assert sum(tiles) == 4
    assert len(tiles) == 2
    again = python(SCRIPT, out)
    assert again.stdout
    assert again.stdout in done.stdout
    probability = pandas.read_csv(out / "summary.csv").set_index(["d1", "learning_rate"])["converged"]
    assert probability[16, 0.005] > 0.9 > probability[4, 0.005] > 0.2


def is_below(key, law, a):
    """True with probability a / (a + c)."""
    return {"below": jax.random.uniform(key) < a / (a + {"one": 4.0, "other": 20.0}[law])}


def test_refine_spends_runs_near_one_half(tmp_path):
    axes = {"law": ("one", "other"), "a": (1, 4, 16, 64)}
    found = run(tmp_path / "out", is_below, axes, refine=64)
    made = (found["status"] != 0).sum("seed")
    assert int(made.sum()) == 8 * 8 + 64
    assert int(made.sel(law="one", a=64)) == 8
    assert (found["below"].values & (found["status"].values == 0)).sum() == 0
    table = pandas.read_csv(tmp_path / "out" / "boundary.csv")
    assert list(table["law"]) == ["one", "other"]
    assert table["runs"].sum() == 128
    assert (table["boundary_low"] < table["boundary"]).all()
    np.testing.assert_array_less(np.abs(np.log(table["boundary"] / [4, 20])), np.log(2))
    assert list(pandas.read_csv(tmp_path / "out" / "summary.csv")["runs"]) == made.values.ravel().tolist()
    more = run(tmp_path / "more", is_below, axes, seeds=found["seed"].size)
    done = found["status"].values != 0
    np.testing.assert_array_equal(found["below"].values[done], more["below"].values[done])
    again = run(tmp_path / "out", is_below, axes)  # Nothing is to be done, and nothing is lost.
    assert again.identical(found)


def test_refine_needs_an_axis_of_numbers_and_a_success(tmp_path):
    assert "--refine: sweep has no axis" in message(tmp_path / "a", number, {"a": (1, 2)}, refine=8)
    assert "--refine: sweep has no axis" in message(
        tmp_path / "b", axes={"length": (3, 5), "law": ("signs",)}, refine=8
    )
    assert not list(tmp_path.iterdir())
