"""What is recorded along training, against direct computation; the launcher: what it leaves, and that it goes on in
the middle of a run.
"""

import dataclasses
import io
import shutil
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import pandas
import pytest
import xarray as xr
from support.launchers import command, sized
from support.numpy_reference import descend as reference
from support.numpy_reference import gradients, jacobian

from relu_sgd import Params, Problem, differentials, measurements
from sweeps.protocol import runs as protocol_runs
from sweeps.protocol.draw import draw_tile
from sweeps.protocol.presets import preset
from sweeps.trajectories import recording
from sweeps.trajectories import report as trajectories

TINY = ["--d0=3", "--d1=4,12", "--num_samples=10", "--num_seeds=2", "--num_steps=60", "--measure_every=10",
        "--num_processes=1"]  # fmt: skip


def draw(seed, N=6, d0=4, d1=9, d2=1):
    rng = np.random.default_rng(seed)
    return Params(rng.normal(size=(d0, d1)), rng.normal(size=(d1, d2))), Problem(
        rng.normal(size=(N, d0)), rng.normal(size=(N, d2))
    )


@pytest.mark.parametrize("layers", ["hidden", "both"])
@pytest.mark.parametrize("d2", [1, 2])
def test_relative_jacobian_change_without_the_jacobian(layers, d2):
    before, problem = draw(0, d2=d2)
    after = draw(1, d2=d2)[0]
    old, new = (jacobian(*p, problem.X, trained_layers=layers) for p in (before, after))
    expected = np.linalg.norm(new - old, 2) / np.linalg.norm(old, 2)
    found = differentials.relative_jacobian_change(before, after, problem, trained_layers=layers)
    assert found == pytest.approx(expected, rel=1e-10)
    assert differentials.relative_jacobian_change(before, before, problem, trained_layers=layers) == 0


def test_relative_gradient_change_takes_the_largest_layer():
    rng = np.random.default_rng(0)
    before, after = ({"W": rng.normal(size=(3, 7)), "V": 5 * rng.normal(size=(7, 1))} for _ in range(2))
    expected = max(np.linalg.norm(after[k] - before[k], 2) for k in before) / max(
        np.linalg.norm(before[k], 2) for k in before
    )
    assert differentials.relative_gradient_change(before, after) == pytest.approx(expected)


def test_least_singular_value():
    params, problem = draw(0)
    H = np.maximum(problem.X @ params.W, 0)
    expected = np.linalg.svd(H.T, compute_uv=False).min()
    assert differentials.least_hidden_singular_value(params, problem) == pytest.approx(expected, abs=1e-8)
    assert differentials.least_hidden_singular_value(draw(0, d1=5)[0], problem) == 0


def test_dead_neurons_and_balance():
    params = Params(np.array([[1.0, -1, -1], [0, -1, -2]]), np.array([[2.0], [1], [0]]))
    problem = Problem(np.array([[1.0, 0], [0, 1]]), np.zeros((2, 1)))
    assert measurements.dead_neurons(params, problem) == 2
    assert measurements.dead_neurons(params, problem, neurons=np.array([True, True, False])) == 1
    np.testing.assert_allclose(measurements.neuron_balance(params), [-3, 1, 5])


def test_fingerprints_tell_patterns_apart():
    problem = Problem(np.eye(8), np.zeros((8, 1)))
    rng = np.random.default_rng(0)
    patterns = rng.integers(0, 2, size=(500, 8, 5))
    patterns = np.concatenate([patterns, patterns[:3] ^ (np.arange(40).reshape(8, 5) == 7)])  # Also neighbours.
    prints = jax.vmap(
        lambda pattern: measurements.pattern_fingerprint(Params(pattern - 0.5, np.ones((5, 1))), problem)
    )(jnp.asarray(patterns))
    assert len(np.unique(np.asarray(prints), axis=0)) == len(np.unique(patterns.reshape(503, -1), axis=0))
    again = measurements.pattern_fingerprint(Params(3 * patterns[0] - 1.0, np.ones((5, 1))), problem)
    np.testing.assert_array_equal(again, prints[0])  # The pattern alone counts.
    padded = np.concatenate([patterns[0] - 0.5, np.ones((8, 2))], axis=1)
    masked = measurements.pattern_fingerprint(Params(padded, np.ones((7, 1))), problem, neurons=np.arange(7) < 5)
    np.testing.assert_array_equal(masked, prints[0])


def test_steps_to_record():
    assert recording.steps_to_record(250, 100) == (1, 100, 200)
    assert recording.steps_to_record(3, 1) == (1, 2, 3)
    assert recording.steps_to_record(4, 2) == (1, 2, 4)


def small(layers="both", **changes):
    protocol = preset(
        "as_written",
        layers,
        num_samples=10,
        num_steps=60,
        precision="float64",
        stop="never",
        **changes,
    )
    tile = sized(layers, (4,), (12,), 2)
    descent = dataclasses.replace(protocol_runs.descent_of(protocol, layers), criterion=None, stop="never")
    return protocol, descent, draw_tile(protocol, tile)


@pytest.mark.parametrize("layers", ["hidden", "both"])
def test_records_against_the_reference(layers):
    """Every record of a run in NumPy float64, from iterates of the independent reference."""
    protocol, descent, runs = small(layers)
    steps = (1, 20, 40)
    found = recording.follow(protocol, descent, runs, steps, lanes=1)
    for seed in range(2):
        params, problem = (type(t)(*(np.asarray(leaf[seed], float) for leaf in t)) for t in (runs.params, runs.problem))
        at = lambda k, p=params, q=problem: Params(
            *reference(*p, *q, num_steps=k, learning_rate=protocol.learning_rate, momentum=0.9, trained_layers=layers)[
                :2
            ]
        )
        pattern = lambda p, q=problem: q.X @ p.W > 0
        half = lambda p, q=problem: 0.5 * np.sum((q.Y - np.maximum(q.X @ p.W, 0) @ p.V) ** 2)
        for column, step in enumerate(steps):
            before, after = at(step - 1), at(step)
            get = lambda name, s=seed, c=column: found[name][s, c]
            assert get("loss") == pytest.approx(half(after), rel=1e-8)
            assert get("relative_error") == pytest.approx(np.sqrt(2 * half(after) / 10), rel=1e-8)
            assert get("relative_loss_change") == pytest.approx(abs(half(after) / half(before) - 1), rel=1e-5)
            assert get("pattern_changes") == np.sum(pattern(before) != pattern(after))
            assert get("pattern_changes_from_start") == np.sum(pattern(params) != pattern(after))
            assert get("numerical_zeros") == np.sum(np.abs(problem.X @ after.W) < 1e-8)
            old, new = (jacobian(*p, problem.X, trained_layers=layers) for p in (before, after))
            change = np.linalg.norm(new - old, 2) / np.linalg.norm(old, 2)
            assert get("relative_jacobian_change") == pytest.approx(change, rel=1e-6, abs=1e-9)
            kept = slice(0, 2 if layers == "both" else 1)
            old, new = (gradients(*p, *problem, 0.0)[kept] for p in (before, after))
            norms = lambda matrices: max(np.linalg.norm(g, 2) for g in matrices)
            change = norms([b - a for a, b in zip(old, new, strict=True)]) / norms(old)
            assert get("relative_gradient_change") == pytest.approx(change, rel=1e-6)
            assert get("hidden_distance") == pytest.approx(np.linalg.norm(after.W - params.W), rel=1e-8)
            assert get("output_distance") == pytest.approx(np.linalg.norm(after.V - params.V), rel=1e-8, abs=1e-12)
            balance = lambda p: np.sum(p.W**2, 0) - np.sum(p.V**2, 1)
            assert get("balance_change") == pytest.approx(np.abs(balance(after) - balance(params)).max(), rel=1e-7)
            H = np.maximum(problem.X @ after.W, 0)
            assert get("least_singular_value") == pytest.approx(np.linalg.svd(H.T, compute_uv=False).min(), abs=1e-7)
            assert get("dead_neurons") == np.sum(~pattern(after).any(axis=0))
            assert get("dead_samples") == np.sum(~pattern(after).any(axis=1))


def test_an_interrupted_run_ends_bit_for_bit_the_same(tmp_path, monkeypatch):
    protocol, descent, runs = small(batch_size=4)
    steps = recording.steps_to_record(60, 10)
    options = dict(lanes=1, checkpoints=tmp_path / "run", configuration="c", seconds_between=0.0)
    whole = recording.follow(protocol, descent, runs, steps, lanes=1)
    save, saved = recording._save, []

    def dying(*arguments):
        save(*arguments)
        saved.append(1)
        if len(saved) == 4:
            raise KeyboardInterrupt

    monkeypatch.setattr(recording, "_save", dying)
    with pytest.raises(KeyboardInterrupt):
        recording.follow(protocol, descent, runs, steps, **options)
    resumed = recording.follow(protocol, descent, runs, steps, **options)
    assert len(saved) == 4 + (len(steps) - 4) + len(steps)  # Nothing before the checkpoint was done again.
    for name, values in whole.items():
        np.testing.assert_array_equal(resumed[name], values, err_msg=name)
    # What is damaged or of another configuration is not used.
    (tmp_path / "run_0.npz").write_bytes((tmp_path / "run_0.npz").read_bytes()[:100])
    again = recording.follow(protocol, descent, runs, steps, **{**options, "configuration": "c"})
    np.testing.assert_array_equal(again["loss"], whole["loss"])
    count = len(saved)
    recording.follow(protocol, descent, runs, steps, **{**options, "configuration": "d"})
    assert len(saved) == count + 2 * len(steps)


def places(archive):
    """Every byte of a checkpoint that stands for something: (the structure of a zip file that it lies in, its place
    there).
    """
    with zipfile.ZipFile(io.BytesIO(archive)) as file:
        members, central = file.infolist(), file.start_dir
    found, at = [], central
    for member in (members[0], members[-1]):
        header = 30 + len(member.filename) + int.from_bytes(archive[member.header_offset + 28 :][:2], "little")
        # The local header, NumPy's header, and the data.
        found += range(member.header_offset, member.header_offset + header + 128)
        found += range(member.header_offset + header + 128, member.header_offset + header + member.file_size, 29)
    entry = lambda at: 46 + sum(int.from_bytes(archive[at + part :][:2], "little") for part in (28, 30, 32))
    for index in range(len(members)):
        size = entry(at)
        found += range(at, at + size) if index in (0, len(members) - 1) else []
        at += size
    return found + list(range(at, len(archive)))


def test_a_damaged_checkpoint_is_not_used_wherever_it_is_damaged(tmp_path):
    """Every flipped byte, every truncation: the checkpoint is read as it was, or its runs begin anew; nothing is
    raised.
    """
    path = tmp_path / "run_0.npz"
    state = (np.arange(6.0).reshape(1, 2, 3), np.zeros(1, np.int32), np.ones((1, 2), np.uint32))
    records = [
        {name: np.full(1, index, kind or float) for name, (kind, _) in recording.RECORDS.items()} for index in (1, 2)
    ]
    recording._save(path, state, records, "c")
    load = lambda: recording._load(path, state, "c", 5)
    found, table = load()
    jax.tree.map(np.testing.assert_array_equal, found, state)
    assert table == records
    archive = path.read_bytes()
    refused = 0
    for place in places(archive):
        for flip in (0x01, 0xFF):
            path.write_bytes(archive[:place] + bytes([archive[place] ^ flip]) + archive[place + 1 :])
            if (read := load()) is None:
                refused += 1
            else:  # A date, say.
                jax.tree.map(np.testing.assert_array_equal, read[0], state)
                assert read[1] == records
    assert refused > len(places(archive))
    for size in (0, 1, 22, len(archive) // 2, len(archive) - 1):
        path.write_bytes(archive[:size])
        assert load() is None
    path.write_bytes(archive)
    assert recording._load(path, state, "d", 5) is None
    assert recording._load(path, state, "c", 1) is None  # More records than there are to be.
    assert recording._load(path, (state[0].astype(np.float32), *state[1:]), "c", 5) is None


def test_lanes_agree():
    protocol, descent, runs = small("hidden")
    alone, together = (recording.follow(protocol, descent, runs, (1, 30), lanes=lanes) for lanes in (1, 2))
    for name in ("loss", "relative_jacobian_change", "pattern_changes_from_start"):
        np.testing.assert_allclose(together[name], alone[name], rtol=1e-6)


def test_divergence_is_a_status_and_no_nan():
    protocol, _, runs = small()
    protocol = dataclasses.replace(protocol, learning_rate=5.0)
    descent = dataclasses.replace(protocol_runs.descent_of(protocol, "both"), criterion=None, stop="never")
    found = recording.follow(protocol, descent, runs, recording.steps_to_record(60, 10), lanes=1)
    assert np.isinf(found["loss"][:, -1]).all()
    assert (found["pattern_changes"][:, -1] == -1).all()
    for name, values in found.items():
        assert not np.isnan(values).any(), name


def test_regions_and_freezing():
    high = np.array([[1, 2, 1, 3, 3], [7, 7, 7, 7, 7]], np.uint32)
    low = np.array([[0, 0, 0, 0, 0], [1, 2, 1, 2, 2]], np.uint32)
    assert trajectories.distinct_regions(high, low).tolist() == [[1, 2, 2, 3, 3], [1, 2, 2, 2, 2]]
    assert trajectories.pattern_freezes(np.array([1, 10, 20, 30, 40]), high, low).tolist() == [30, 30]


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    out = tmp_path_factory.mktemp("trajectories") / "out"
    done = command("trajectories", f"--out={out}", *TINY)
    assert done.returncode == 0, done.stderr
    return out, done.stdout


def test_what_trajectories_leave(recorded):
    out, printed = recorded
    for setup in ("hidden", "both"):
        found = xr.open_zarr(out / "results.zarr", group=setup, consolidated=False)
        assert dict(found.sizes) == {"d0": 1, "d1": 2, "seed": 2, "step": 7}
        assert found["step"].values.tolist() == [1, 10, 20, 30, 40, 50, 60]
        assert set(found.data_vars) == {*recording.RECORDS, "status"}
        assert found["status"].dims == ("d0", "d1", "seed")
        assert found["loss"].dtype == np.float64
        assert (found["status"] == 1).all()
        assert (found["loss"].isel(step=-1) < found["loss"].isel(step=0)).all()
    assert not (out / "checkpoints").exists()
    table = pandas.read_csv(out / "summary.csv")
    assert table[["trained_layers", "d1"]].values.tolist() == [["hidden", 4], ["hidden", 12], ["both", 4], ["both", 12]]
    assert {path.name for path in (out / "figures").iterdir()} == {"trajectories.png", "lazy.png"}
    for sentence in (
        "the Jacobian DY, operator norm (the paper's text): the median",
        "the loss gradient (the released code): the median",
    ):
        assert sentence in printed
    lazy = table["jacobian_over_loss_change"]
    assert ("lazy in all of them" in printed.split("paper's text)")[1].splitlines()[0]) == (
        (lazy <= 1).all() or (lazy > 1).all()
    )


def test_trajectories_are_resumed_and_replayed(recorded, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(recorded[0], out)
    (out / "results.zarr" / "both" / "status" / "c" / "0" / "1" / "0").unlink()
    done = command("trajectories", f"--out={out}", f"--flagfile={out / 'run.flagfile'}", "--num_processes=1")
    assert done.returncode == 0, done.stderr
    for setup in ("hidden", "both"):
        first, second = (xr.open_zarr(p / "results.zarr", group=setup, consolidated=False) for p in (out, recorded[0]))
        xr.testing.assert_identical(first.load(), second.load())
    refused = command("trajectories", f"--out={out}", *TINY[:-2], "--measure_every=20")
    assert refused.returncode == 2
    assert "--measure_every is 10 there and 20 here" in refused.stderr


def test_diverged_trajectories_are_drawn(tmp_path):
    out = tmp_path / "out"
    done = command("trajectories", f"--out={out}", *TINY, "--learning_rate=9", "--trained_layers=both", "--d1=4")
    assert done.returncode == 0, done.stderr
    table = pandas.read_csv(out / "summary.csv")
    assert table["diverged"].tolist() == [2]
    assert (out / "figures" / "trajectories.png").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--preset=slow"], "--preset: 'slow' is not one of full, quick"),
        (["--d0=3,4"], "--d0: give one input dimension, not 2"),
        (["--measure_every=99"], "--measure_every: 99 exceeds --num_steps=60"),
        (["--measure_every=-1"], "--measure_every: -1"),
        (["--stop=never"], "Unknown command line flag 'stop'"),
        (["--dynamics=inclusion"], "Unknown command line flag 'dynamics'"),
        (["--lanes=4"], "Unknown command line flag 'lanes'"),
        (["--block=1x2"], "--block: a tile of trajectories has one width"),
        (["--checkpoint_seconds=-1"], "--checkpoint_seconds: -1"),
        (["--d1=5"], "--d1: 5 is odd"),
        (["--batch_size=11"], "--batch_size: 11 exceeds"),
    ],
)
def test_bad_flags(words, message, tmp_path):
    out = tmp_path / "out"
    done = command("trajectories", f"--out={out}", *TINY, *words)
    assert done.returncode == 2
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not out.exists()
