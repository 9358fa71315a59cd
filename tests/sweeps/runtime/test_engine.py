"""The engine on a toy run, and on real ones: lanes, chunks and devices change nothing."""

import dataclasses
import os
import subprocess
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import ROOT
from support import numpy_reference as reference
from support.launchers import sized
from support.runs import TILE, Countdown, CountdownState, small

from relu_sgd import Status, Stepwise, gradient_norm_below
from sweeps.protocol import runs as protocol_runs
from sweeps.protocol.draw import draw_run, draw_tile, networks
from sweeps.runtime import engine
from sweeps.runtime.engine import Start, map_on_devices, run_on_devices

pytestmark = pytest.mark.compiled_in_full


@pytest.mark.parametrize("lanes", [1, 2, 3, 7, 50])
@pytest.mark.parametrize("steps_per_chunk", [1, 4, 1000])
def test_every_run_is_done_once_and_kept_in_its_place(lanes, steps_per_chunk):
    rows = jnp.asarray(np.random.default_rng(0).integers(0, 30, size=(11, 2)), jnp.int32)
    found, _ = run_on_devices(Countdown(), Start(rows), 1000, lanes=lanes, steps_per_chunk=steps_per_chunk)
    np.testing.assert_array_equal(found["steps"], rows[:, 0])
    np.testing.assert_array_equal(found["sum"], rows.sum(axis=1))


@pytest.mark.parametrize("lanes", [2, 3])
def test_lanes_are_refilled_on_the_device_too(lanes, monkeypatch):
    """The path of an accelerator, here on a CPU; `test_devices_change_nothing` takes it on three devices."""
    monkeypatch.setattr(engine, "_is_on_host", lambda _: False)
    test_every_run_is_done_once_and_kept_in_its_place(lanes, 4)


@pytest.mark.parametrize("lanes", [1, 4, 8])
@pytest.mark.parametrize("steps_per_chunk", [1, 7, 200])
def test_a_run_is_asked_at_every_step_whether_it_is_done(lanes, steps_per_chunk):
    rows = jnp.asarray([437, 0, 1, 200, 201, 3, 5000, 19, 20])[:, None]
    for num_steps in (1000, 50):
        ends, _ = run_on_devices(Countdown(), Start(rows), num_steps, lanes=lanes, steps_per_chunk=steps_per_chunk)
        np.testing.assert_array_equal(ends["steps"], np.minimum(rows[:, 0], num_steps))


def test_a_stopping_rule_is_asked_at_every_step_whatever_the_lanes():
    """Descent until the gradient is small: for all lanes and chunks the first such step, found by brute force."""
    protocol = small(stop="never")
    runs = draw_tile(protocol, sized("hidden", (5,), (4,), 5))
    descent = dataclasses.replace(protocol_runs.descent_of(protocol, "hidden"), stop="never")
    starts = protocol_runs.starts_of(runs)

    def look(state, step):
        state = descent.advance_to(state, step)
        return state, jnp.sqrt(jnp.sum(state.gradient**2))

    path = lambda start: jax.lax.scan(look, descent.init(*start), jnp.arange(301))[1]
    paths = np.asarray(jax.vmap(path)(jax.tree.map(jnp.asarray, starts)))
    bound = float(np.median(paths))
    below = paths < bound
    expected = np.where(below.any(axis=1), below.argmax(axis=1), 300)
    assert len(set(expected)) > 2
    stopping = dataclasses.replace(descent, stopping_rule=gradient_norm_below(bound))
    for lanes, steps_per_chunk in ((1, 200), (4, 7)):
        ends, _ = run_on_devices(stopping, starts, 300, lanes=lanes, steps_per_chunk=steps_per_chunk)
        np.testing.assert_array_equal(ends.steps, expected)
        stopped = below.any(axis=1)
        np.testing.assert_array_equal(ends.status, np.where(stopped, Status.STOPPED, Status.MAX_STEPS_REACHED))


class Walk:
    """A random walk until it is far away; the key is part of its state."""

    def init(self, problem, params, key):
        return {"key": key, "place": params}, jnp.int32(0)

    def advance_to(self, state, step):
        def take_step(now):
            key, draw = jax.random.split(now[0]["key"])
            return {"key": key, "place": now[0]["place"] + jax.random.normal(draw)}, now[1] + 1

        return jax.lax.while_loop(lambda now: (now[1] < step) & ~self.done(now), take_step, state)

    def done(self, state):
        return jnp.abs(state[0]["place"]) > 5

    def result(self, state):
        return {"steps": state[1], "place": state[0]["place"]}


@pytest.mark.parametrize("generator", ["threefry2x32", "rbg"])
def test_keys_of_any_generator_travel_in_states(generator):
    keys = jax.random.split(jax.random.key(0, impl=generator), 7)
    starts = Start(None, jnp.zeros(7), keys)
    alone, _ = run_on_devices(Walk(), starts, 100, lanes=1)
    walk = Walk()
    for index in range(2):
        end = walk.result(walk.advance_to(walk.init(None, jnp.zeros(()), keys[index]), 100))
        assert end["steps"] == alone["steps"][index]
    if generator == "threefry2x32":  # Draws of the other one depend on what is drawn beside them.
        together, _ = run_on_devices(walk, starts, 100, lanes=3, steps_per_chunk=4)
        jax.tree.map(np.testing.assert_array_equal, together, alone)
        assert len(set(alone["steps"])) > 2


@pytest.mark.parametrize("lanes", [1, 2])
def test_mapping_a_run_again_compiles_nothing(lanes, caplog):
    """Neither for equal dynamics, nor for a protocol that asks for the same descent."""
    rows = jnp.asarray(np.random.default_rng(0).integers(0, 30, size=(11, 2)), jnp.int32)
    protocol = small()
    starts = protocol_runs.starts_of(draw_tile(protocol, sized("hidden", (3,), (4,), 3)))

    def compilations(num_rows):
        caplog.clear()
        with jax.log_compiles(), caplog.at_level("WARNING"):
            run_on_devices(Countdown(), Start(rows[:num_rows]), 100, lanes=lanes, steps_per_chunk=3)
            descent = protocol_runs.descent_of(small(), "hidden")
            run_on_devices(descent, starts, 20, lanes=lanes)
            map_on_devices(jnp.sum, rows[:num_rows], lanes=lanes)
        return sum("Finished XLA compilation" in record.message for record in caplog.records)

    assert compilations(9) > 2
    assert compilations(9) == 0
    assert compilations(11) > 0


@pytest.mark.parametrize(
    ("num_steps", "options"),
    [(3, dict(lanes=0)), (3, dict(lanes=2, steps_per_chunk=0)), (-5, dict(lanes=2)), (2.5, dict(lanes=2))],
)
def test_numbers_with_which_no_run_would_end(num_steps, options):
    starts = Start(jnp.ones((4, 2), jnp.int32))
    with pytest.raises(ValueError, match="must be"):
        run_on_devices(Countdown(), starts, num_steps, **options)
    if options["lanes"] == 0:
        with pytest.raises(ValueError, match="lanes must be"):
            map_on_devices(jnp.sum, starts.problem, lanes=0)


@pytest.mark.parametrize("lanes", [1, 2])
def test_what_may_change_is_compiled_anew(lanes):
    """A dynamics with state of its own, a method of an object, and another generator of random numbers."""

    class Adding(Stepwise):
        rate = 1.0

        def init(self, problem, params=None, key=None):
            return CountdownState(problem, jnp.int32(0))

        def take_step(self, state):
            return CountdownState(state.row + self.rate, state.step + 1)

        def done(self, state):
            return state.step >= 3

        def result(self, state):
            return state.row

        def scaled(self, x):
            return self.rate * x

    adding, inputs = Adding(), jnp.arange(3, dtype=jnp.float32)
    draw = lambda x: x + jax.random.uniform(jax.random.key(1))
    for rate in (1.0, 5.0):
        adding.rate = rate
        ends, _ = run_on_devices(adding, Start(inputs), 3, lanes=lanes, steps_per_chunk=2)
        np.testing.assert_array_equal(ends, inputs + 3 * rate)
        np.testing.assert_array_equal(map_on_devices(adding.scaled, inputs, lanes=lanes)[0], rate * inputs)
    for generator in ("threefry2x32", "rbg"):
        with jax.default_prng_impl(generator):
            found, _ = map_on_devices(draw, inputs, lanes=lanes)
            np.testing.assert_allclose(found, jax.vmap(draw)(inputs), rtol=1e-6)


def test_mapped_functions_share_a_device_in_lanes_and_never_more():
    """Three devices: as many side by side as lanes on each, whatever the number of runs; in a process of its own."""
    script = """
import jax, numpy as np
jax.config.update("jax_num_cpu_devices", 3)
import jax.numpy as jnp
from sweeps.runtime.engine import map_on_devices
cases = ((1, 10, None), (2, 10, 2), (3, 10, 3), (4, 10, 4), (512, 10, 4), (8, 100, 8), (5, 1, None), (2, 6, 2))
for lanes, num_runs, together in cases:
    widths, devices = set(), set()
    @jax.custom_batching.custom_vmap
    def collatz(n):
        jax.debug.callback(lambda device: devices.add(int(device)), jax.lax.axis_index("lanes"))
        return steps_to_one(n)
    def steps_to_one(n):
        even = lambda n: jnp.where(n % 2 == 0, n // 2, 3 * n + 1)
        return jax.lax.while_loop(lambda s: s[0] > 1, lambda s: (even(s[0]), s[1] + 1), (n, 0))[1]
    @collatz.def_vmap
    def side_by_side(axis_size, _, n):
        widths.add(axis_size)
        jax.debug.callback(lambda device: devices.add(int(device)), jax.lax.axis_index("lanes"))
        return jax.vmap(steps_to_one)(n), True
    numbers = np.arange(1, num_runs + 1)
    found, timings = map_on_devices(collatz, numbers, lanes=lanes)
    jax.effects_barrier()
    assert widths == (set() if together is None else {together}), (lanes, num_runs, widths)
    assert devices == {0, 1, 2}, devices
    assert min(timings.values()) > 0
    for n, count in zip(numbers.tolist(), found.tolist(), strict=True):
        steps = 0
        while n > 1:
            n, steps = n // 2 if n % 2 == 0 else 3 * n + 1, steps + 1
        assert steps == count
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", script], check=True, env=environment)


@pytest.fixture(scope="module")
def records():
    protocol = small()
    return protocol_runs.train_tile(protocol, "hidden", TILE, lanes=1, devices=jax.devices()[:1])[0]


def test_runs_equal_the_reference(records):
    """The whole chain, draws apart: unpadded, in NumPy, run by run."""
    protocol = small()
    for index, row in enumerate(networks(TILE)):
        run = draw_run(protocol, jnp.asarray(row), (int(row[0]), int(row[1])))
        W, V = map(np.asarray, run.params)
        X, Y = map(np.asarray, run.problem)
        W, V, steps, converged_at = reference.descend(
            W, V, X, Y, num_steps=400, learning_rate=0.15, momentum=0.9, trained_layers="hidden", tolerance=2.5e-3,
            stop="first_passage",
        )  # fmt: skip
        assert records["steps"][index] == steps
        assert records["converged_at"][index] == converged_at
        error = np.sqrt(2 * reference.half_sum(W, V, X, Y)) / np.linalg.norm(Y)
        np.testing.assert_allclose(records["relative_error"][index], error, rtol=1e-6)
        Z = reference.forward(W, V, X)[0]
        assert records["dead_samples"][index] == (Z <= 0).all(axis=1).sum()
        assert records["numerical_zeros"][index] == (np.abs(Z) < 1e-8).sum()
        assert records["status"][index] == (Status.CONVERGED if converged_at >= 0 else Status.MAX_STEPS_REACHED)
    assert {Status.CONVERGED, Status.MAX_STEPS_REACHED} == set(records["status"])


@pytest.mark.parametrize("lanes", [2, 5])
def test_lanes_reproduce_single_runs(records, lanes):
    protocol = small()
    found, timings = protocol_runs.train_tile(
        protocol, "hidden", TILE, lanes=lanes, steps_per_chunk=37, devices=jax.devices()[:1]
    )
    assert min(timings.values()) > 0
    for name, values in records.items():
        assert values.dtype == found[name].dtype
        if values.dtype.kind == "f":
            np.testing.assert_allclose(found[name], values, rtol=1e-6, err_msg=name)
        else:
            np.testing.assert_array_equal(found[name], values, err_msg=name)


def test_devices_change_nothing(tmp_path):
    """Eight devices, nine runs, an uneven deal: in a process of its own, because devices are counted at the start."""
    script = f"""
import jax, numpy as np
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_enable_x64", True)
import jax.numpy as jnp
from support.runs import TILE, Countdown, small
from sweeps.protocol import runs as protocol_runs
from sweeps.protocol.draw import draw_run, draw_tile, networks, padded
from sweeps.runtime import engine
from sweeps.runtime.engine import Start, run_on_devices
rows = jnp.asarray(np.random.default_rng(0).integers(0, 30, size=(10, 2)), jnp.int32)
for lanes in (1, 2):
    found, _ = run_on_devices(Countdown(), Start(rows), 1000, lanes=lanes, steps_per_chunk=3)
    np.testing.assert_array_equal(found["sum"], rows.sum(axis=1))
on_host, engine._is_on_host = engine._is_on_host, lambda _: False
found, _ = run_on_devices(Countdown(), Start(rows), 1000, lanes=2, steps_per_chunk=3)
np.testing.assert_array_equal(found["sum"], rows.sum(axis=1))
engine._is_on_host = on_host
protocol = small()
for count in (1, 8):
    records, _ = protocol_runs.train_tile(protocol, "hidden", TILE, lanes=1, devices=jax.devices()[:count])
    np.savez(f"{tmp_path}/{{count}}.npz", **records)
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])}
    subprocess.run([sys.executable, "-c", script], check=True, env=environment)
    one, eight = np.load(tmp_path / "1.npz"), np.load(tmp_path / "8.npz")
    for name in one:
        np.testing.assert_array_equal(one[name], eight[name], err_msg=name)


def test_padding_and_tile_do_not_change_a_run(records):
    """The last cell alone, padded otherwise: the same data bit for bit, and the same result to rounding."""
    protocol = small()
    alone = sized("hidden", (5,), (10,), 3)
    runs, tile_runs = draw_tile(protocol, alone), draw_tile(protocol, TILE)
    np.testing.assert_array_equal(runs.params.W[:, :5, :10], tile_runs.params.W[-3:, :5, :10])
    np.testing.assert_array_equal(runs.problem.X[:, :, :5], tile_runs.problem.X[-3:, :, :5])
    np.testing.assert_array_equal(runs.problem.Y, tile_runs.problem.Y[-3:])
    found, _ = protocol_runs.train_tile(protocol, "hidden", alone, lanes=1, devices=jax.devices()[:1])
    np.testing.assert_array_equal(found["converged_at"], records["converged_at"][-3:])
    np.testing.assert_allclose(found["relative_error"], records["relative_error"][-3:], rtol=1e-6)


def test_data_is_fresh_for_every_run_or_shared_by_the_cell():
    for preset, shared in (("as_written", False), ("as_released", True)):
        runs = draw_tile(small(preset), sized("hidden", (5,), (4, 10), 2))
        X, W = np.asarray(runs.problem.X), np.asarray(runs.params.W)
        assert np.array_equal(X[0], X[1]) == shared
        assert np.array_equal(runs.problem.Y[0], runs.problem.Y[1]) == shared
        assert not np.array_equal(X[1], X[2])  # Another cell.
        assert not np.array_equal(W[0], W[1])


@pytest.mark.parametrize("layers", ["hidden", "both"])
def test_set_ups_share_data_and_hidden_weights(layers):
    runs = draw_tile(small(layers=layers), TILE)
    other = draw_tile(small(layers="hidden"), TILE)
    np.testing.assert_array_equal(runs.problem.X, other.problem.X)
    np.testing.assert_array_equal(runs.params.W, other.params.W)


def test_divergence_is_recorded():
    protocol = small(layers="both", learning_rate=0.002)
    protocol = dataclasses.replace(protocol, learning_rate=50.0)
    tile = sized("both", (3,), (4,), 2)
    found, _ = protocol_runs.train_tile(protocol, "both", tile, lanes=1)
    np.testing.assert_array_equal(found["status"], Status.DIVERGED)
    assert np.isinf(found["relative_error"]).all()
    assert np.isfinite(found["best_relative_error"]).all()
    for name in ("numerical_zeros", "zeros_at_rounding", "dead_samples", "converged_at"):
        np.testing.assert_array_equal(found[name], -1)


@pytest.mark.parametrize("law", ["normal", "uniform", "balanced_signs", "shuffled_signs", "appendix_g"])
def test_output_laws(law):
    protocol = dataclasses.replace(small(), output_law=law)
    V = np.asarray(draw_run(protocol, jnp.asarray([5, 10, 0]), (8, 12)).params.V)
    assert V.shape == (12, 1)
    assert not V[10:].any()
    if law not in ("normal", "uniform"):
        np.testing.assert_allclose(np.abs(V[:10]), 10**-0.5)
        assert V.sum() == pytest.approx(0)
    else:
        assert len(np.unique(V[:10])) == 10
        assert law == "normal" or np.abs(V).max() <= 10**-0.5


@pytest.mark.parametrize(
    ("stats", "lanes"), [(None, sys.maxsize), ({}, sys.maxsize), ({"bytes_limit": 1000}, 5), ({"bytes_limit": 100}, 1)]
)
def test_lanes_fit_into_half_of_the_memory(stats, lanes):
    device = types.SimpleNamespace(memory_stats=lambda: stats)
    assert engine.lanes_in_memory(device, 100) == lanes


def test_default_lanes():
    assert [engine.default_lanes("cpu", weights) for weights in (100, 400, 501)] == [8, 4, 1]
    assert engine.default_lanes("gpu", 2500) > 8
    assert [engine.default_lanes(backend, 100, interruptible=False) for backend in ("cpu", "gpu")] == [1, 512]
