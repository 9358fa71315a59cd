"""Laws and criterion of one's own, module:function: what is drawn, what is remembered, what is refused."""

import importlib
import itertools
import re
import sys
import types
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import xarray as xr
from support.launchers import command, sized

from relu_sgd import Problem
from sweeps import convergence_map
from sweeps.convergence_map.study import ConvergenceMap
from sweeps.protocol import draw, laws
from sweeps.reporting import style
from sweeps.runtime import arithmetic
from sweeps.runtime.session import configuration_of
from sweeps.study import UsageError
from sweeps.trajectories.study import Trajectories
from sweeps.width_bounds.study import WidthBounds, rows

SOURCE = """
import jax
import jax.numpy as jnp
import numpy as np

from relu_sgd import Problem

TABLE = [1.0]

def clusters(key, num_samples, d0):
    labels = jnp.where(jnp.arange(num_samples) % 2 == 0, 1.0, -1.0)[:, None]
    return Problem(labels * jnp.ones(d0) + 0.3 * jax.random.normal(key, (num_samples, d0)), labels)

def rows(key, num_samples, d0):
    return np.random.default_rng(np.asarray(jax.random.key_data(key))).standard_normal((num_samples, d0))

def teacher(key, X):
    return jnp.maximum(X @ jax.random.normal(key, (X.shape[1], 3)), 0).sum(1, keepdims=True) - 1

def hidden(key, d0, d1):
    return jax.random.orthogonal(key, max(d0, d1))[:d0, :d1]

def output(key, d1):
    return jax.random.choice(key, jnp.array([-1, 1]), (d1, 1))

def right_signs(losses, problem):
    return jnp.all(losses < 0.5)

def several(losses, problem):
    return losses < 0.5

def not_a_number(key, num_samples, d0):
    return jnp.full((num_samples, d0), jnp.nan)

def complex_rows(key, num_samples, d0):
    return jnp.ones((num_samples, d0), complex)

def large_rows(key, num_samples, d0):
    return np.full((num_samples, d0), 1e300)

def zero_labels(key, X):
    return np.zeros((len(X), 1))

def flat_labels(key, X):
    return np.ones(len(X))

def three(key, num_samples, d0):
    return clusters(key, num_samples, d0) + (1,)

def fails(key, num_samples, d0):
    if d0 > 2:
        raise RuntimeError("no more\\ninputs")
    return clusters(key, num_samples, d0)
"""
TINY = ("--num_samples=6", "--d0=2,3", "--d1=2,4", "--num_seeds=2", "--num_steps=20", "--precision=float64")


class File(NamedTuple):
    path: object
    name: str


_NUMBERS = itertools.count()


@pytest.fixture
def module(tmp_path, monkeypatch):
    """A file of laws in the working directory, under a name that no other test has."""
    name = f"laws_of_test_{next(_NUMBERS)}"
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(style, "save", lambda *_: [])  # Figures have tests of their own.
    path = tmp_path / "here" / f"{name}.py"
    path.write_text(SOURCE)
    yield File(path, name)
    sys.modules.pop(name, None)


def run(out, *words, processes=1):
    return command("convergence_map", f"--out={out}", f"--num_processes={processes}", "--compilation_cache=", *words)


def results(out):
    return xr.open_zarr(out / "results.zarr", group="both", consolidated=False).load()


def test_configurations_without_own_laws_are_called_what_they_were():
    before = {
        "203dc3fa7347": ConvergenceMap.make(),
        "a63e58e4fbf6": ConvergenceMap.make(protocol="as_released"),
        "d64f0abfd6bd": ConvergenceMap.make(
            hidden_law="lecun",
            label_law="gaussian",
            data_law="cube",
            data_radius="sqrt_d0",
            output_law="appendix_g,uniform",
        ),
        "50d61e022ae8": ConvergenceMap.make(dynamics="inclusion"),
        "abc9e6bae635": Trajectories.make(),
        "bcea9eb2688b": Trajectories.make(protocol="as_released", preset="quick"),
    }
    assert [configuration_of(study.science()) for study in before.values()] == list(before)


def protocol(module, **own):
    values = {name: f"{module.name}:{law}" for name, law in own.items() if name.endswith("law")}
    study = ConvergenceMap.make(
        num_samples=6, d0=(2, 3), d1=(2, 4), precision="float64", **{**own, **values}, trained_layers="both"
    )
    return study.protocol_of(study.variants()[0])


def keys_of(d0, d1, seed):
    """By the docstring of sweeps.protocol.draw."""
    key = arithmetic.key(0)
    for part in (d0, d1, 1 + seed):
        key = jax.random.fold_in(key, part)
    return {name: jax.random.fold_in(key, stream) for stream, name in enumerate("XYWV")}


TILE = sized("both", (2, 3), (2, 4), 2)


def each(tile):
    return zip(draw.networks(tile).tolist(), itertools.count())


def test_draws_are_the_laws_own_padded_with_zeros(module):
    own = protocol(module, data_law="rows", label_law="teacher", hidden_law="hidden", output_law="output")
    runs = draw.draw_tile(own, TILE)
    source = sys.modules[module.name]
    for (d0, d1, seed), index in each(TILE):
        keys = keys_of(d0, d1, seed)
        X = source.rows(keys["X"], 6, d0)
        expected = {
            "X": X,
            "Y": source.teacher(keys["Y"], jnp.asarray(X)),
            "W": source.hidden(keys["W"], d0, d1),
            "V": source.output(keys["V"], d1),
        }
        for name, drawn in zip("XYWV", (*runs.problem, *runs.params), strict=True):
            padded = np.zeros_like(drawn[index])
            padded[tuple(map(slice, expected[name].shape))] = expected[name]
            np.testing.assert_array_equal(drawn[index], padded)


@pytest.mark.parametrize("own", [{"data_law": "clusters"}, {"label_law": "teacher"}, {"output_law": "output"}])
def test_a_run_does_not_depend_on_its_tile_and_other_draws_stay_what_they_were(module, own):
    usual = draw.draw_tile(protocol(module), TILE)
    runs = draw.draw_tile(protocol(module, **own), TILE)
    changed = {"data_law": {"X", "Y"}, "label_law": {"Y"}, "output_law": {"V"}}[next(iter(own))]
    for name, a, b in zip("XYWV", (*usual.problem, *usual.params), (*runs.problem, *runs.params), strict=True):
        assert np.array_equal(a, b) == (name not in changed), name
    alone = draw.draw_tile(protocol(module, **own), sized("both", (3,), (4,), 2))
    np.testing.assert_array_equal(alone.problem.Y, runs.problem.Y[-2:])
    np.testing.assert_array_equal(alone.problem.X[:, :, :3], runs.problem.X[-2:, :, :3])
    np.testing.assert_array_equal(alone.params.V, runs.params.V[-2:])


def test_named_rows_reach_an_own_label_law_in_their_true_size(module):
    runs = draw.draw_tile(protocol(module, label_law="teacher"), TILE)
    for (d0, d1, seed), index in each(TILE):
        X = jnp.asarray(runs.problem.X[index, :, :d0])
        labels = sys.modules[module.name].teacher(keys_of(d0, d1, seed)["Y"], X)
        np.testing.assert_array_equal(runs.problem.Y[index], labels)


def test_appendix_g_knows_the_own_labels(module):
    runs = draw.draw_tile(protocol(module, label_law="teacher"), TILE)
    own = draw.draw_tile(protocol(module, label_law="teacher", **{"output_law": "output"}), TILE)
    np.testing.assert_array_equal(runs.problem.Y, own.problem.Y)
    study = ConvergenceMap.make(
        label_law=f"{module.name}:teacher", output_law="appendix_g", precision="float64", num_samples=6
    )
    runs = draw.draw_tile(study.protocol_of(study.variants()[1]), TILE)
    for (_, d1, _), index in each(TILE):
        norm = np.linalg.norm(runs.problem.Y[index])
        np.testing.assert_allclose(abs(runs.params.V[index, :d1]), norm / np.sqrt(6 * d1), rtol=1e-12)


def test_the_runs_of_a_cell_share_an_own_data_set(module):
    X = draw.draw_tile(protocol(module, data_law="clusters", data_sharing="cell"), TILE).problem.X.reshape(
        2, 2, 2, 6, -1
    )
    np.testing.assert_array_equal(X[:, :, 0], X[:, :, 1])
    assert len(np.unique(X[:, :, 0, 0, 0])) == 4


@pytest.fixture
def finished(module, tmp_path):
    out = tmp_path / "out"
    words = (
        *TINY,
        f"--data_law={module.name}:clusters",
        f"--criterion={module.name}:right_signs",
        "--block=1x2",
        "--trained_layers=both",
    )
    done = run(out, *words, processes=2)
    assert done.returncode == 0, done.stderr
    return out, words


def test_own_laws_from_workers_to_figures_and_back(module, finished, tmp_path, monkeypatch):
    """By worker processes; then by flag file in this process; then the file is edited."""
    out, words = finished
    assert {"results.zarr", "summary.csv", "report.html"} <= {path.name for path in out.iterdir()}
    law = ConvergenceMap.make(data_law=f"{module.name}:clusters").data_law
    flagfile = out / "run.flagfile"
    assert f"--data_law={law}\n" in flagfile.read_text()

    again = tmp_path / "again"
    assert run(again, f"--flagfile={flagfile}").returncode == 0
    assert (results(out)["status"] > 0).all()
    assert (results(out)["status"] == 1).any()
    xr.testing.assert_allclose(results(again), results(out), rtol=1e-6)

    with monkeypatch.context() as patch:
        patch.delattr(draw, "draw_tile")  # Nothing is run when all is there.
        assert run(out, *words).returncode == 0
    module.path.write_text(SOURCE.replace("0.3 *", "0.31 *"))
    stale = run(out, *words)
    assert (stale.returncode, stale.stderr.count("\n")) == (2, 1)
    assert "was edited or changed after it was imported" in stale.stderr
    importlib.reload(sys.modules[module.name])
    edited = run(out, *words)
    assert (edited.returncode, edited.stderr.count("\n")) == (2, 1)
    assert f"--criterion: {module.name}:right_signs was edited since the results in {out}" in edited.stderr
    laws.load.cache_clear()
    replayed = run(tmp_path / "third", f"--flagfile={flagfile}")
    assert (replayed.returncode, replayed.stderr.count("\n")) == (2, 1)
    assert "was edited: the hash of its file" in replayed.stderr
    assert not (tmp_path / "third").exists()
    # Figures need no law.
    module.path.unlink()
    assert command("convergence_map", f"--out={out}", "--figures_only").returncode == 0


BAD = {
    "no such module": ("--data_law=no_such_module:f", "--data_law: no_such_module cannot be imported"),
    "no such function": ("--data_law=LAWS:nothing", "--data_law: LAWS has no nothing"),
    "no function": ("--data_law=LAWS:TABLE", "--data_law: LAWS:TABLE is no function"),
    "no name": ("--data_law=LAWS:", "--data_law: 'LAWS:' is not of the form module:function"),
    "of the program": ("--data_law=__main__:f", "--data_law: __main__:f is in __main__"),
    "signature": ("--data_law=LAWS:teacher", "--data_law: LAWS:teacher must take (key, num_samples, d0)"),
    "signature of labels": ("--label_law=LAWS:rows", "--label_law: LAWS:rows must take (key, X)"),
    "signature of V": ("--output_law=normal,LAWS:hidden", "--output_law: LAWS:hidden must take (key, d1)"),
    "X alone": ("--data_law=LAWS:rows", "--data_law: LAWS:rows returns X alone"),
    "X and Y": (
        "--data_law=LAWS:clusters --label_law=balanced",
        "LAWS:clusters returns X and Y; leave out --label_law",
    ),
    "three": ("--data_law=LAWS:three", "LAWS:three must return X, or a Problem (X, Y), not 3 things"),
    "shape": ("--hidden_law=LAWS:output", "--hidden_law: LAWS:output must take (key, d0, d1)"),
    "labels of a wrong shape": (
        "--label_law=LAWS:flat_labels",
        "--label_law: LAWS:flat_labels must return Y of shape (6, 1), not (6,)",
    ),
    "labels 0": ("--label_law=LAWS:zero_labels", "--label_law: LAWS:zero_labels returned labels that are all 0"),
    "two outputs": (
        "--d2=2 --output_law=LAWS:output",
        "--output_law: LAWS:output must return V of shape (2, 2), not (2, 1)",
    ),
    "complex": (
        "--data_law=LAWS:complex_rows --label_law=balanced",
        "of shape (6, 2) and of real numbers, not of type complex",
    ),
    "NaN": (
        "--data_law=LAWS:not_a_number --label_law=balanced",
        "--data_law: LAWS:not_a_number must return X of shape (6, 2), all finite",
    ),
    "overflow": ("--precision=float32 --data_law=LAWS:large_rows --label_law=balanced", "all finite in float32"),
    "raises": ("--data_law=LAWS:fails", "LAWS:fails raised RuntimeError: no more inputs (LAWS.py, line 52)"),
    "criterion of several": ("--criterion=LAWS:several", "--criterion: LAWS:several must return one truth value"),
    "tolerance": ("--criterion=LAWS:right_signs --tolerance=1", "--tolerance: has no effect beside --criterion"),
    "radius": ("--data_law=LAWS:clusters --data_radius=1", "--data_radius: has no effect beside --data_law"),
    "deviation": (
        "--hidden_law=LAWS:hidden --hidden_standard_deviation=1",
        "--hidden_standard_deviation: has no effect",
    ),
    "labels of named data": ("--label_law=of_data", "--label_law: of_data needs a --data_law of your own"),
    "inclusion": (
        "--criterion=LAWS:right_signs --dynamics=inclusion",
        "--criterion: an own criterion is for --dynamics=descent",
    ),
}


@pytest.mark.parametrize("case", list(BAD))
def test_what_cannot_be_run_is_one_line_that_names_the_flag_and_nothing_is_written(module, case, tmp_path):
    words, message = BAD[case]
    usual = [word for word in TINY if case != "inclusion" or not word.startswith(("--num_steps", "--precision"))]
    done = run(tmp_path / "out", *usual, *words.replace("LAWS", module.name).split())
    assert done.returncode == 2
    assert message.replace("LAWS", module.name) in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_law_that_fails_inside_the_grid_is_one_line_too(module, tmp_path):
    """Only the ends of the grid are tried beforehand."""
    module.path.write_text(SOURCE.replace("d0 > 2", "d0 == 3"))
    done = run(tmp_path / "out", *TINY, "--d0=2,3,4", f"--data_law={module.name}:fails")
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith(f"convergence_map: --data_law: {module.name}:fails raised")


def test_rows_of_ones_own_for_the_widths(module):
    module.path.write_text(
        SOURCE + "\n\ndef unit(key, num_samples, d0):\n    X = rows(key, num_samples, d0)\n"
        "    return X / np.linalg.norm(X, axis=1, keepdims=True)\n"
    )
    given = dict(num_samples=(8,), delta=(0.5,))
    study = WidthBounds.make(data_law=f"{module.name}:unit", **given)
    study.check_code()
    key = arithmetic.key(3)
    np.testing.assert_array_equal(rows(study, key, 8, 3), sys.modules[module.name].unit(key, 8, 3))
    with pytest.raises(UsageError, match="must return rows of norm 1"):
        WidthBounds.make(data_law=f"{module.name}:rows", **given).check_code()


def test_from_python_the_function_itself_stands_for_its_name(module, tmp_path, float32):
    source = importlib.import_module(module.name) if not sys.path.insert(0, str(module.path.parent)) else None
    given = dict(num_samples=6, d0=(2, 3), d1=(2,), num_seeds=2, num_steps=5, num_processes=1, compilation_cache="")
    first = convergence_map.run(
        tmp_path / "out", data_law=source.clusters, output_law=(source.output, "normal"), **given
    )
    named = (f"{module.name}:clusters", f"{module.name}:output,normal")
    again = convergence_map.run(tmp_path / "out", data_law=named[0], output_law=named[1], **given)
    assert first["both"]["status"].shape == (2, 1, 2)
    assert (first["both"]["status"] > 0).all()
    xr.testing.assert_identical(first["both"], again["both"])
    assert jnp.result_type(float) == jnp.float32

    def inner(key, num_samples, d0):
        return Problem(jnp.ones((num_samples, d0)), jnp.ones((num_samples, 1)))

    def of_main(key, num_samples, d0):
        return inner(key, num_samples, d0)

    of_main.__module__, of_main.__qualname__ = "__main__", "of_main"
    for function, message in (
        (lambda key, num_samples, d0: None, "has no name that another process could import"),
        (inner, "has no name that another process could import"),
        (of_main, "of_main is defined in __main__"),
        (3, "--data_law: '3' is not one of sphere, cube, nor module:function"),
    ):
        with pytest.raises(UsageError, match=r"^--data_law: ") as error:
            convergence_map.run(tmp_path / "refused", data_law=function, **given)
        assert message in str(error.value)
        assert not (tmp_path / "refused").exists()
    source.clusters = source.three
    with pytest.raises(UsageError, match="is not what its file says"):
        convergence_map.run(tmp_path / "refused", data_law=f"{module.name}:clusters", **given)
    with pytest.raises(UsageError, match="--speed: convergence_map has no such flag"):
        convergence_map.run(tmp_path / "refused", speed=1)
    assert not (tmp_path / "refused").exists()


def test_the_files_of_the_page_are_laws(tmp_path, monkeypatch):
    """Each in an interpreter of its own would be slow: here under names of their own, and without scikit-learn."""
    page = (Path(__file__).parent.parent / "docs" / "own_laws.md").read_text()
    sources = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    assert len(sources) == 2
    monkeypatch.syspath_prepend(str(tmp_path))
    for name, source in zip(("clusters", "digits"), sources, strict=True):
        (tmp_path / f"page_{name}.py").write_text(source)
    images = np.random.default_rng(0).random((30, 8)), np.arange(30) % 10
    monkeypatch.setitem(sys.modules, "sklearn", types.ModuleType("sklearn"))
    datasets = types.ModuleType("sklearn.datasets")
    datasets.load_digits = lambda return_X_y: images
    monkeypatch.setitem(sys.modules, "sklearn.datasets", datasets)
    given = dict(num_samples=20, d0=(2, 8), precision="float64", criterion="page_clusters:right_signs")
    for law in ("page_clusters:two_clusters", "page_digits:even_or_odd"):
        ConvergenceMap.make(data_law=law, **given).check_code()
    with pytest.raises(UsageError, match=r"raised ValueError: there are 8 components, not 9 \(page_digits\.py"):
        ConvergenceMap.make(data_law="page_digits:even_or_odd", **{**given, "d0": (9,)}).check_code()
