"""`sweep` beyond its examples: ranges of seeds, measures, stale code, bad input."""

import dataclasses
import importlib
import json
import sys
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.launchers import sketched

from relu_sgd import Status, Stepwise
from sweeps import sweep
from sweeps.study import UsageError

pytestmark = pytest.mark.compiled_alike


@pytest.fixture(autouse=True)
def _one_format(monkeypatch):
    """Figures in three formats take longer than the runs."""
    sketched(monkeypatch)


def toss(key, bias, side):
    assert isinstance(bias, float)
    drawn = jax.random.uniform(key)
    return {"drawn": drawn, "wanted": (drawn < bias) == (side == "heads")}


def test_a_range_of_seeds_is_part_of_the_whole(tmp_path):
    alone = dict(axes={"bias": [0.75], "side": ["tails"]}, num_processes=1, lanes=1)
    whole = sweep(toss, **alone, seeds=6, out=tmp_path / "whole")
    turned = dict(axes={"side": ["tails"], "bias": [0.75, 0.5]}, seeds=range(2, 5), lanes=1, num_processes=1)
    part = sweep(toss, **turned, out=tmp_path / "part")
    assert part["seed"].values.tolist() == [2, 3, 4]
    cell = {"bias": 0.75, "side": "tails"}
    np.testing.assert_array_equal(part.sel(cell)["drawn"], whole.sel({**cell, "seed": [2, 3, 4]})["drawn"])
    blocks = sweep(toss, **turned, out=tmp_path / "blocks", block=(1, 2, 2))
    assert blocks.drop_attrs().identical(part.drop_attrs())
    assert sweep(toss, **turned, out=tmp_path / "part").identical(part)
    with pytest.raises(UsageError, match="--seeds is 2,5 there and 5 here"):
        sweep(toss, **{**turned, "seeds": 5}, out=tmp_path / "part")


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
        status = jnp.where(self.done(state), Status.CONVERGED, Status.MAX_STEPS_REACHED)
        return End(state.x, state.step, status, state.x[None])


half = Shrink(0.5)


def start(key, scale, **_):
    return scale * jax.random.uniform(key, minval=1.0, maxval=2.0), jnp.float64(1.0)


def measure(params, problem, result):
    return {"factor": result.x / params, "is_small": params < 8 * problem}


def by_rate(rate, **_):
    return Shrink(rate)


@pytest.mark.parametrize("lanes", [1, 3])
def test_what_is_measured_of_dynamics(tmp_path, lanes):
    arguments = dict(start=start, measure=measure, axes={"scale": [1, 16, 64]}, seeds=7, num_steps=6)
    found = sweep(half, **arguments, out=tmp_path / "out", num_processes=1, lanes=lanes, steps_per_chunk=2)
    assert set(found.data_vars) == {"x", "steps", "status", "factor", "is_small"}
    # x begins between scale and 2 scale: log2(scale) halvings and one more bring it below 1.
    np.testing.assert_array_equal(found["steps"], np.broadcast_to([[1], [5], [6]], (3, 7)))
    np.testing.assert_array_equal(found["status"], np.broadcast_to([[1], [1], [2]], (3, 7)))
    np.testing.assert_array_equal(found["factor"], 0.5 ** found["steps"].values.astype(float))
    np.testing.assert_array_equal(found["is_small"], np.broadcast_to([[True], [False], [False]], (3, 7)))


def test_dynamics_of_the_cell(tmp_path):
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
    arguments = dict(axes={"d": [1, 2, 5], "scale": [0.1]}, seeds=5, compilation_cache="")
    one = sweep(own.norm, **arguments, out=tmp_path / "one", num_processes=1)
    two = sweep(own.norm, **arguments, out=tmp_path / "two", num_processes=2)
    assert two.identical(one)
    (line,) = (tmp_path / "two" / "sessions.jsonl").read_text().splitlines()
    assert json.loads(line)["num_processes"] == 2


def test_code_that_is_not_its_file_s_is_refused(tmp_path, own, monkeypatch):
    """The folder would name one code, and this process run another."""
    arguments = dict(axes={"d": [1], "scale": [0.1]}, seeds=2, out=tmp_path / "out", num_processes=1)
    Path(own.__file__).write_text(OWN.replace("scale * jnp", "2 * scale * jnp"))
    with pytest.raises(
        UsageError, match=r"^run: own_module.py was edited after norm was imported from it; begin anew$"
    ):
        sweep(own.norm, **arguments)
    Path(own.__file__).write_text(OWN.replace("30", "31"))
    with pytest.raises(UsageError, match=r"^run: SIZE is 30, and 31 in own_module.py$"):
        sweep(own.norm, **arguments)
    Path(own.__file__).write_text(OWN)
    monkeypatch.setattr(own, "SIZE", 31)
    with pytest.raises(UsageError, match=r"^run: SIZE is 31, and 30 in own_module.py$"):
        sweep(own.norm, **arguments)
    assert not (tmp_path / "out").exists()


def root(key, x):
    return {"root": jnp.sqrt(x)}


def test_results_may_be_nan(tmp_path):
    for _ in range(2):
        found = sweep(root, axes={"x": [-1.0, 4.0]}, seeds=2, out=tmp_path / "out", num_processes=1)
        np.testing.assert_array_equal(found["root"], [[np.nan] * 2, [2.0] * 2])


def plain(key, x):
    return {"y": x}


def text(key, x):
    return {"y": "many"}


def other_names(key, x):
    return {f"y{x}": 1.0}


def other_shapes(key, x):
    return {"y": jnp.zeros(x)}


def whole_numbers_first(key, x):
    return {"y": x if x == 1 else 0.5}


def other_argument(key, y):
    return {"z": y}


def no_dynamics(x):
    return 3


def given(key, x):
    return 1.0, 1.0


def no_pair(key, x):
    return 1.0


def no_dictionary(params, problem, result):
    return params


DYNAMICS = dict(run=half, start=given, num_steps=3)
REFUSED = {
    "text": (dict(run=text), "run: must return numbers and arrays"),
    "names": (dict(run=other_names), r"run: returns \['status', 'y2'\] at x=2, and \['status', 'y1'\] in the first"),
    "shapes": (dict(run=other_shapes), r"run: y has shape \(2,\) at x=2, and \(1,\) in the first cell"),
    "types": (dict(run=whole_numbers_first), "run: y is of type float64 at x=2, and int64 in the first cell"),
    "arguments": (dict(run=other_argument), r"run: must take \(key, x\)"),
    "no function": (dict(run=3), "run: 3 is no function"),
    "no axes": (dict(axes=None), "axes: must be a dictionary of names to values, got None"),
    "a number": (dict(axes={"x": 3}), "axes: the values of x must be a list, got 3"),
    "no values": (dict(axes={"x": []}), "axes: the values of x"),
    "repeated": (dict(axes={"x": [1, 1.0]}), "axes: x repeats a value"),
    "not finite": (dict(axes={"x": [float("nan")]}), "axes: the values of x must be finite"),
    "name": (dict(axes={"seed": [1]}), "axes: 'seed' is no name for an axis"),
    "numbered": (dict(axes={3: [1]}), "axes: 3 is no name for an axis"),
    "list of seeds": (dict(seeds=[1, 2]), "seeds"),
    "float seeds": (dict(seeds=2.5), "seeds"),
    "empty range": (dict(seeds=range(3, 3)), "seeds: a range must go up from 0 or more in steps of 1"),
    "steps of seeds": (dict(seeds=range(0, 4, 2)), "seeds: a range must go up"),
    "processes": (dict(num_processes=-1), "num_processes: "),
    "lanes": (dict(lanes="many"), "lanes: "),
    "unknown": (dict(num_threads=1), "num_threads: sweep has no such argument"),
    "folder": (dict(out=None), "out: must be a folder, got None"),
    "measure": (dict(measure=measure), "measure: must be a function .* and belongs to Dynamics"),
    "no dynamics": (dict(DYNAMICS, run=no_dynamics), "run: with a start it must return Dynamics"),
    "no pair": (dict(DYNAMICS, start=no_pair), r"start: must return \(params, problem\), got float"),
    "no measure": (dict(DYNAMICS, measure=no_dictionary), "measure: must return a dictionary"),
}


@pytest.mark.parametrize(("wrong", "message"), REFUSED.values(), ids=REFUSED)
def test_bad_input_is_one_line_and_nothing_is_written(tmp_path, wrong, message):
    arguments = dict(run=plain, axes={"x": [1, 2]}, seeds=2, out=tmp_path / "out", num_processes=1) | wrong
    with pytest.raises(UsageError, match=message) as caught:
        sweep(arguments.pop("run"), **arguments)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()
