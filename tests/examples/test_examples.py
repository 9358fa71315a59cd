"""examples/: each is short, runs with few seeds, and computes what it says."""

import ast
import functools
import importlib
import re
import runpy
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pandas
import pytest
from support import ROOT
from support.launchers import sketched

from relu_sgd import Params, Problem, predict
from relu_sgd.theory import orthogonal

FOLDER = ROOT / "examples"
LINES = {"safran_shamir": 40, "dana": 45, "jamming": 45, "jamming_depth": 45, "karhadkar": 45, "dying_samples": 50}


@pytest.mark.parametrize("name", LINES)
def test_examples_are_short(name):
    lines = (FOLDER / f"{name}.py").read_text().splitlines()
    assert len(lines) <= LINES[name]
    assert max(map(len, lines)) < 120


@pytest.mark.parametrize("name", LINES)
def test_a_wrong_command_line_is_refused_in_one_line(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    said = {(): "DIR", ("out", "abc"): "invalid positive whole number value: 'abc'", ("out", "0"): "'0'"}
    said |= {("--hlep",): "DIR", ("out", "1", "1", "1"): "unrecognized arguments"}
    for words, part in said.items():
        monkeypatch.setattr(sys, "argv", [name, *words])
        with pytest.raises(SystemExit) as stopped:
            runpy.run_module(f"examples.{name}", run_name="__main__")
        error = capsys.readouterr().err
        assert stopped.value.code == 2
        assert part in error
        assert len(error.splitlines()) == 1
    monkeypatch.setattr(sys, "argv", [name, "--help"])
    with pytest.raises(SystemExit) as stopped:
        runpy.run_module(f"examples.{name}", run_name="__main__")
    assert not stopped.value.code
    help_text = capsys.readouterr().out
    source = ast.parse((FOLDER / f"{name}.py").read_text())
    assert ast.get_docstring(source, clean=False) in help_text
    assert re.search(r"runs of a cell\s+\(default: \d+\)", help_text)
    assert not list(tmp_path.iterdir())


# Words of the command, what a line of its output looks like, and how many of them.
RUNS = {
    "safran_shamir": (["3"], r"k = (7|8|10): [0-3] of 3 not global, \d+ of 500 published; Fisher's p = [01]\.\d\d", 3),
    "dana": (["1"], r"d, p, n = [\d ]+: [01] of 1 succeed; published \d+ of \d+; Fisher's p = [01]\.\d\d", 3),
    "jamming": (["1", "150"], r"P / N = \d\.\d: [01] of 1 at zero loss", 7),
}


@pytest.mark.parametrize("name", RUNS)
def test_an_example_runs_and_its_second_call_prints_the_same(name, tmp_path, monkeypatch, capsys):
    words, pattern, count = RUNS[name]
    sketched(monkeypatch)
    monkeypatch.setattr(sys, "argv", [name, str(tmp_path / "out"), *words])
    runpy.run_module(f"examples.{name}", run_name="__main__")
    lines = [line for line in capsys.readouterr().out.splitlines() if re.fullmatch(pattern, line)]
    assert len(lines) == count
    assert len(pandas.read_csv(tmp_path / "out" / "summary.csv")) == count
    runpy.run_module(f"examples.{name}", run_name="__main__")
    assert capsys.readouterr().out.splitlines() == lines


def test_safran_and_shamirs_loss_is_the_population_loss_and_its_gradient_the_gradient():
    example = importlib.import_module("examples.safran_shamir")
    W = jax.random.normal(jax.random.key(0), (3, 3))
    found = example.evaluate(W)
    inputs = np.random.default_rng(0).standard_normal((400_000, 3))
    squares = (np.maximum(inputs @ W.T, 0).sum(axis=1) - np.maximum(inputs, 0).sum(axis=1)) ** 2 / 2
    assert abs(found.objective - squares.mean()) < 5 * squares.std() / np.sqrt(len(squares))
    step = 1e-6 * jax.random.normal(jax.random.key(1), W.shape)
    change = (example.evaluate(W + step).objective - example.evaluate(W - step).objective) / 2
    np.testing.assert_allclose(jnp.sum(found.gradient * step), change, rtol=1e-6)
    solved = example.evaluate(jnp.eye(3)[jnp.array([2, 0, 1])])
    assert abs(solved.objective) < 1e-15
    assert jnp.abs(solved.gradient).max() < 1e-15


def test_danas_laws():
    example = importlib.import_module("examples.dana")
    params, problem = example.draw(jax.random.key(0), 4, 300, 500)
    for sizes in (np.linalg.norm(problem.X, axis=1), np.abs(problem.Y)):
        assert 1 <= sizes.min() < 1.1 < 1.9 < sizes.max() <= 2
    W, a = (np.sqrt(300) * np.asarray(layer) for layer in (params.W, params.V[:, 0]))
    assert np.abs(W).max() <= 0.5
    excess = np.abs(a) - np.linalg.norm(W, axis=0)
    assert excess.min() > 0
    assert abs(excess.mean() - 1) < 0.25
    assert 100 < (a > 0).sum() < 200
    whole = (a * np.maximum(np.asarray(problem.X) @ W, 0)).mean(axis=1, keepdims=True)
    np.testing.assert_allclose(predict(params, problem), whole, rtol=1e-9)


def test_jammings_number_of_parameters():
    example = importlib.import_module("examples.jamming")
    problem = example.problem.Problem(jnp.ones((2, 16)), jnp.ones((2, 1)))
    leaves = jax.tree.leaves(example.NETWORK.init(jax.random.key(0), problem))
    assert sum(leaf.size for leaf in leaves) == example.NUM_PARAMETERS == 561


def test_the_spectrum_is_that_of_the_jacobian():
    example = importlib.import_module("examples.karhadkar")
    for d1, d0, rank in ((6, 8, False), (16, 8, True)):
        generator = np.random.default_rng(d1)
        X, W, V = (generator.standard_normal(shape) for shape in ((example.NUM_SAMPLES, d0), (d0, d1), (d1, 1)))
        V = np.sign(V)
        full, largest = example.spectrum(Params(W, V), Problem(X, np.zeros((example.NUM_SAMPLES, 1))))
        J = (X[:, :, None] * ((X @ W > 0) * V[:, 0])[:, None, :]).reshape(example.NUM_SAMPLES, -1)
        assert bool(full) == rank == (np.linalg.matrix_rank(J) == example.NUM_SAMPLES)
        assert largest == pytest.approx(np.linalg.norm(J, 2) ** 2, rel=1e-5)


def test_jamming_draws_the_data_and_weights_of_the_published_code(monkeypatch):
    example = importlib.import_module("examples.jamming_depth")
    monkeypatch.setattr(example, "WIDTH", 4)
    seen = {}

    def descend(params, data, **rules):
        seen.update(params=params, data=data)
        return example_descend(params, data, **rules)

    example_descend = example.descend
    monkeypatch.setattr(example, "descend", descend)
    end = example.train(jax.random.key(0), 3, 2.0, 1)
    X, Y = seen["data"]
    assert X.shape == (2 * round(2.0 * (3 * 16 + 4) / 2), 4)
    np.testing.assert_allclose(jnp.linalg.norm(X, axis=1), 2.0, rtol=1e-5)
    assert Y.sum() == 0
    kernels = [leaf for leaf in jax.tree.leaves(seen["params"]) if leaf.ndim == 2]
    assert sorted(kernel.shape for kernel in kernels) == [(4, 1), (4, 4), (4, 4), (4, 4)]
    for kernel in kernels:
        np.testing.assert_allclose(kernel.T @ kernel, np.eye(kernel.shape[1]), atol=1e-5)
    assert bool(end["few"]) == (int(end["unsatisfied"]) <= 4)


def test_samples_die_of_orthogonal_rows_as_the_theory_says(monkeypatch):
    example = importlib.import_module("examples.dying_samples")
    monkeypatch.setattr(example, "NUM_SAMPLES", 20)
    monkeypatch.setattr(example, "NUM_STEPS", 400)
    compiled = functools.partial(jax.jit, static_argnums=(1, 2))
    key = jax.random.key(2)
    (W, V), (X, Y) = (tuple(map(np.asarray, part)) for part in compiled(example.draw)(key, "orthogonal", 6))
    np.testing.assert_allclose(X @ X.T, np.eye(20), atol=1e-6)
    lost = orthogonal.is_unsupported(X, Y[:, 0], W, V[:, 0])
    found = compiled(example.train)(key, "orthogonal", 6)
    assert lost.any()
    assert int(found["unsupported"]) == int(found["dead"]) == int(found["both"]) == lost.sum()
    assert int(found["dead_start"]) == np.sum((X @ W <= 0).all(axis=1))
    assert not found["success"]
    assert jax.eval_shape(lambda key: example.draw(key, "8", 6), key)[1].X.shape == (20, 8)
