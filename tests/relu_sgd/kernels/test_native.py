import dataclasses
import os
import shutil
import stat

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import numpy_reference
from support.problems import advanced, arrays, draw

from relu_sgd import Params, Problem, Status
from relu_sgd.kernels import native

pytestmark = pytest.mark.skipif(
    not os.environ.get("CXX") and not any(map(shutil.which, ("c++", "g++", "clang++"))), reason="needs a C++ compiler"
)

CRITERION = {"criterion": "relative_error", "tolerance": 0.3}


def same(left, right):
    return all(
        np.array_equal(a, b, equal_nan=True) for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True)
    )


@settings(max_examples=12)
@given(
    st.tuples(st.integers(1, 40), st.integers(1, 9), st.integers(1, 10), st.integers(1, 3)),
    st.sampled_from(["hidden", "both"]),
    st.sampled_from(["half_sum", "mean", "sample_mean"]),
    st.sampled_from([0.0, 0.9]),
    st.sampled_from([0.0, 0.3, 1.0]),
)
def test_steps_are_those_of_the_numpy_reference(sizes, layers, normalization, momentum, at_zero):
    N, d0, d1, d2 = sizes
    W, V, X, Y = draw(N, N, d0, d1, d2)
    X[0], W[:, 0] = 0.0, 0.0  # Exact zeros among the preactivations, where the slope counts.
    rate = 0.01
    descent = native.NativeDescent(
        rate, momentum, normalization=normalization, trained_layers=layers, at_zero=at_zero, **CRITERION, stop="never"
    )
    state = advanced(descent, *arrays(W, V, X, Y), 7)
    scale = {"half_sum": 1.0, "mean": 2 / (N * d2), "sample_mean": 1 / N}[normalization]
    velocity = [np.zeros_like(W), np.zeros_like(V)]
    losses = [numpy_reference.half_sum(W, V, X, Y)]
    for _ in range(7):
        gradients = numpy_reference.gradients(W, V, X, Y, at_zero)
        velocity = [momentum * v + scale * g for v, g in zip(velocity, gradients, strict=True)]
        W = W - rate * velocity[0]
        V = V - rate * velocity[1] if layers == "both" else V
        losses.append(numpy_reference.half_sum(W, V, X, Y))
    np.testing.assert_allclose(state.params.W, W, rtol=1e-11, atol=1e-12)
    np.testing.assert_allclose(state.params.V, V, rtol=1e-11, atol=1e-12)
    np.testing.assert_allclose(state.loss, losses[-1], rtol=1e-11, atol=1e-13)
    np.testing.assert_allclose(state.best_loss, min(losses), rtol=1e-11, atol=1e-13)
    gradients = numpy_reference.gradients(W, V, X, Y, at_zero)
    for found, expected in zip(jax.tree.leaves(state.gradient), gradients[: 1 + (layers == "both")], strict=True):
        np.testing.assert_allclose(found, scale * expected, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("layers", ["hidden", "both"])
def test_every_field_of_the_state_is_that_of_the_reference(layers):
    problem, params = arrays(*draw(1, 53, 6, 7, 2))
    descent = native.NativeDescent(0.003, 0.9, trained_layers=layers, stoppable=True, **CRITERION)
    for step in (0, 1, 60):
        found, expected = advanced(descent, problem, params, step), advanced(descent.reference, problem, params, step)
        assert jax.tree.structure(found) == jax.tree.structure(expected)
        for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
            assert a.dtype == b.dtype
            np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-11)


def test_first_passage_is_at_the_step_of_the_reference():
    problem, params = arrays(*draw(2, 8, 12, 16))
    descent = native.NativeDescent(0.02, 0.9, **CRITERION)
    found, expected = (descent.result(advanced(one, problem, params, 10_000)) for one in (descent, descent.reference))
    assert found.status == expected.status == Status.CONVERGED
    assert 0 < int(found.steps) == int(expected.steps) == int(found.converged_at) < 10_000
    never = dataclasses.replace(descent, stop="never")
    assert int(never.result(advanced(never, problem, params, 500)).steps) == 500
    assert int(advanced(never, problem, params, 500).converged_at) == int(found.converged_at)


def test_mean_squared_error_criterion():
    problem, params = arrays(*draw(2, 8, 12, 16))
    descent = native.NativeDescent(0.02, 0.9, criterion="mean_squared_error", tolerance=1e-3)
    found, expected = (advanced(one, problem, params, 10_000) for one in (descent, descent.reference))
    assert 0 < int(found.step) == int(expected.step) < 10_000


def test_a_run_that_meets_the_criterion_at_its_start_takes_no_step():
    problem, params = arrays(*draw(3, 8, 12, 16))
    near = Problem(problem.X, jnp.maximum(problem.X @ params.W, 0) @ params.V + 1e-6)
    state = advanced(native.NativeDescent(0.02, **CRITERION), near, params, 100)
    assert (int(state.step), int(state.converged_at), bool(state.meets)) == (0, 0, True)


def test_divergence_ends_a_run():
    problem, params = arrays(*draw(4, 30, 5, 8))
    descent = native.NativeDescent(10.0, 0.9)
    result = descent.result(advanced(descent, problem, params, 10_000))
    assert result.status == Status.DIVERGED
    assert int(result.steps) < 10_000
    assert np.isfinite(result.best_loss)


def test_nan_in_the_data_is_divergence():
    problem, params = arrays(*draw(4, 30, 5, 8))
    broken = Problem(problem.X.at[3, 2].set(jnp.nan), problem.Y)
    descent = native.NativeDescent(0.01)
    assert descent.result(advanced(descent, broken, params, 5)).status == Status.DIVERGED


@pytest.mark.parametrize("layers", ["hidden", "both"])
def test_chunks_padding_and_batches_change_no_bit(layers):
    descent = native.NativeDescent(0.003, 0.9, trained_layers=layers, stoppable=True, **CRITERION)
    starts = [arrays(*draw(seed, 21, 6, 5)) for seed in range(3)]
    whole = [advanced(descent, *start, 50) for start in starts]
    assert same(whole[0], advanced(descent, *starts[0], 0, 1, 20, 20, 50))

    problems, params = jax.tree.map(lambda *leaves: jnp.stack(leaves), *starts)
    together = jax.jit(jax.vmap(lambda problem, start: descent.advance_to(descent.init(problem, start), 50)))
    one_by_one = jax.jit(lambda *both: jax.lax.map(lambda start: descent.advance_to(descent.init(*start), 50), both))
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *whole)
    assert same(together(problems, params), stacked)
    assert same(one_by_one(problems, params), stacked)

    problem, start = starts[1]
    wide = advanced(
        descent,
        Problem(jnp.pad(problem.X, ((0, 0), (0, 58))), problem.Y),
        Params(jnp.pad(start.W, ((0, 58), (0, 27))), jnp.pad(start.V, ((0, 27), (0, 0)))),
        50,
    )
    assert same(Params(wide.params.W[:6, :5], wide.params.V[:5]), whole[1].params)
    assert not wide.params.W[6:].any()
    assert not wide.params.W[:, 5:].any()
    assert wide.loss == whole[1].loss


def test_each_goes_on_with_the_state_of_the_other():
    problem, params = arrays(*draw(5, 21, 6, 5))
    descent = native.NativeDescent(0.003, 0.9)
    there = advanced(descent.reference, problem, params, 30)
    back = jax.jit(descent.reference.advance_to)(jax.jit(descent.advance_to)(there, 60), 90)
    np.testing.assert_allclose(back.params.W, advanced(descent, problem, params, 90).params.W, rtol=1e-9)


def test_a_state_that_is_stopped_takes_no_step():
    descent = native.NativeDescent(0.003, stoppable=True)
    state = advanced(descent, *arrays(*draw(6)), 5)._replace(stopped=jnp.bool_(True))
    after = jax.jit(descent.advance_to)(state, 50)
    assert same(after, state)
    assert descent.result(after).status == Status.STOPPED


def test_single_precision_is_near_double():
    numbers = draw(7, 40, 6, 9)
    descent = native.NativeDescent(0.003, 0.9)
    single = advanced(descent, *arrays(*numbers, kind=np.float32), 40)
    double = advanced(descent, *arrays(*numbers), 40)
    assert single.params.W.dtype == np.float32
    np.testing.assert_allclose(single.params.W, double.params.W, atol=1e-4)


def test_velocities_that_fade_do_not_become_slow():
    """A neuron that no sample activates has a velocity that decays to subnormal numbers, which are taken for 0."""
    W, V, X, Y = draw(8, 10, 3, 2)
    W[:, 1] = [-1e3, 0, 0]
    problem, params = arrays(W, V, np.abs(X), Y, kind=np.float32)
    descent = native.NativeDescent(1e-3, 0.5, trained_layers="hidden")
    state = advanced(descent, problem, params, 1)
    pushed = state._replace(optimizer_state=jax.tree.map(lambda leaf: leaf.at[:, 1].set(1e-37), state.optimizer_state))
    after = jax.jit(descent.advance_to)(pushed, 11)  # 1e-40 where subnormal numbers are kept.
    assert not np.any(np.asarray(after.optimizer_state[0].trace[:, 1]))


@pytest.mark.parametrize("num_samples", [5, 9, 16])
def test_an_infinite_weight_of_a_dead_neuron_is_no_divergence(num_samples):
    X = jnp.ones((num_samples, 1))
    problem, params = Problem(X, -jnp.ones((num_samples, 1))), Params(jnp.array([[-jnp.inf, 1.0]]), jnp.ones((2, 1)))
    descent = native.NativeDescent(0.001, trained_layers="hidden", stop="never")
    found, expected = advanced(descent, problem, params, 3), advanced(descent.reference, problem, params, 3)
    assert int(found.step) == int(expected.step) == 3
    np.testing.assert_allclose(found.loss, expected.loss, rtol=1e-12)


@pytest.mark.wrong_types
@pytest.mark.parametrize("step", [-1, 2.7, True, "3"])
def test_steps_are_whole_numbers(step):
    problem, params = arrays(*draw(0, 5, 2, 3))
    descent = native.NativeDescent(0.001)
    with pytest.raises(ValueError, match="step"):
        descent.advance_to(descent.init(problem, params), step)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("learning_rate", float("nan")),
        ("learning_rate", True),
        ("momentum", 1.0),
        ("at_zero", 1.5),
        ("criterion", "loss"),
        ("normalization", "sum"),
        ("stop", "later"),
    ],
)
@pytest.mark.wrong_types
def test_fields_are_checked(field, value):
    with pytest.raises(ValueError, match=field):
        native.NativeDescent(**{"learning_rate": 0.1, field: value})


def test_a_criterion_needs_its_tolerance():
    with pytest.raises(ValueError, match="tolerance"):
        native.NativeDescent(0.1, criterion="relative_error")


def test_what_has_no_compiled_code_is_refused():
    problem, params = arrays(*draw(9))
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.float16), (problem, params))
    descent = native.NativeDescent(0.1)
    with pytest.raises(ValueError, match="float16"):
        descent.advance_to(descent.init(*half), 1)


def program(path, text):
    path.write_text(f'#!/bin/sh\n[ "$1" = --version ] && exit 0\n{text}\n')
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


def test_build_compiles_once_for_each_compiler(monkeypatch, tmp_path):
    last = 'for argument; do :; done; echo compiled > "$argument"'
    folder = tmp_path / "cache"
    built = []
    for name in ("one", "one", "other"):
        monkeypatch.setenv("CXX", program(tmp_path / name, last))
        built.append(native.build(folder))
        written = built[-1].stat().st_mtime_ns
        if name == "one":
            assert written == built[0].stat().st_mtime_ns
    assert built[0] == built[1] != built[2]
    assert {entry for entry in folder.iterdir() if entry.suffix == ".so"} == set(built)
    assert built[0].read_text() == "compiled\n"
    built[2].write_text("compil")  # As a crash of the machine leaves it.
    assert native.build(folder) == built[2]
    assert built[2].read_text() == "compiled\n"


def test_what_a_killed_build_left_goes_with_the_next(monkeypatch, tmp_path):
    monkeypatch.setenv("CXX", program(tmp_path / "compiler", 'for argument; do :; done; echo compiled > "$argument"'))
    old, new = tmp_path / "cache" / "build-killed", tmp_path / "cache" / "build-at-work"
    for folder in (old, new):
        folder.mkdir(parents=True)
    os.utime(old, (0, 0))
    native.build(tmp_path / "cache")
    assert not old.exists()
    assert new.exists()


@pytest.mark.parametrize(
    ("compiler", "reason"), [("/nowhere/c++", "cannot run the C"), ("{folder}/failing", "failed: oh no error")]
)
def test_a_compiler_that_is_not_there_or_fails_is_one_line(monkeypatch, tmp_path, compiler, reason):
    program(tmp_path / "failing", 'echo "oh no error" >&2; exit 1')
    monkeypatch.setenv("CXX", compiler.format(folder=tmp_path))
    with pytest.raises(native.NativeError, match=reason) as caught:
        native.build(tmp_path / "cache")
    assert "\n" not in str(caught.value)


def test_no_compiler_at_all(monkeypatch, tmp_path):
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(native.NativeError, match="there is no C"):
        native.build(tmp_path)
