"""Maps whose runs are decided by theorems: what the store holds, certificates, and runs that end by a proof."""

import dataclasses
import importlib.machinery
import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
import xarray as xr
from support import ROOT
from support.launchers import command, sized

from relu_sgd import Params, Problem, Status, proofs
from sweeps import proving
from sweeps.convergence_map import figures, report
from sweeps.convergence_map.study import ConvergenceMap
from sweeps.protocol import runs
from sweeps.protocol.presets import preset
from sweeps.reporting.statistics import summarize, summarize_proofs
from sweeps.runtime import session
from sweeps.runtime.store import Store
from sweeps.study import Execution, Variant

GRID = dict(d0="3", d1="4,14", num_seeds=3, num_samples=16)
MAP = dict(**GRID, num_steps=1500)
STOPPING = GRID | dict(d1="4,24", num_steps=9000, stop="decided", trained_layers="hidden")


def words(values):
    return [f"--{name}={value}" for name, value in values.items()] + [
        "--num_processes=1", "--block=1x2", "--compilation_cache=",
    ]  # fmt: skip


def train(out, values, **execution):
    """The map without its report, which takes longer than the runs."""
    place = Execution(out=out, num_processes=1, block=(1, 2), compilation_cache="", **execution)
    session.train(ConvergenceMap.make(**values), place)
    jax.config.update("jax_enable_x64", True)


@pytest.fixture(scope="module")
def checker():
    loader = importlib.machinery.SourceFileLoader("verify_proofs", str(ROOT / "scripts" / "verify_proofs"))
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader("verify_proofs", loader))
    loader.exec_module(module)
    module.ctx.prec = 160
    return module


def results(out):
    store = Store.open(out / "results.zarr", read_only=True)
    return {layers: store.read(layers) for layers in store.attributes["science"]["trained_layers"]}


@pytest.fixture(scope="module")
def proved(tmp_path_factory):
    out = tmp_path_factory.mktemp("proved") / "out"
    done = command("convergence_map", *words(MAP), f"--out={out}", "--prove", "--keep_proofs")
    assert done.returncode == 0, done.stderr
    return out, done.stdout


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    out = tmp_path_factory.mktemp("plain") / "out"
    train(out, MAP)
    return out


def test_all_else_is_as_without_proofs(proved, plain):
    for layers, without in results(plain).items():
        with_proofs = results(proved[0])[layers]
        assert set(with_proofs) - set(without) == set(proving.METRICS)
        for name in without:
            np.testing.assert_array_equal(with_proofs[name], without[name], err_msg=name)
    configs = [json.loads((out / "config.json").read_text()) for out in (plain, proved[0])]
    assert "prove" not in configs[0]["science"]
    assert configs[1]["science"]["prove"] is True
    assert "--prove" not in (plain / "run.flagfile").read_text()
    assert "--prove" in (proved[0] / "run.flagfile").read_text()
    header = (proved[0] / "summary.csv").read_text().splitlines()[0].split(",")
    assert {"proved_global", "proved_local", "undecided", "not_tried"} < set(header)


def test_the_store_holds_what_is_proved_and_certificates_say_the_same(proved, checker):
    out, text = proved
    decided = {}
    for layers, found in results(out).items():
        for (_, j, seed), verdict in np.ndenumerate(found["verdict"].values):
            at = dict(d0=0, d1=j, seed=seed)
            value = {name: found[name].isel(at).item() for name in found}
            path = out / "proofs" / layers / f"d0_3_d1_{int(found['d1'][j])}_seed_{seed}.npz"
            assert path.exists() == (verdict != 0)
            decided[layers] = decided.get(layers, 0) + (verdict != 0)
            if verdict == 0:
                assert value["reason"] > 0
                assert (value["distance"], value["proved_error_low"], value["radius"]) == (np.inf, 0, 0)
                continue
            proof, problem = proofs.load_certificate(path)
            assert value["reason"] == 0
            assert (value["verdict"], value["distance"], value["radius"]) == (
                proof.verdict,
                proof.distance,
                proof.radius,
            )
            assert (value["proved_error_low"], value["proved_error_high"]) == proof.relative_error
            assert problem.X.shape == (16, 3)
            assert problem.X.dtype == np.float64
            assert np.array_equal(problem.X.astype(np.float32), problem.X)  # Of a sweep in single precision.
            assert value["proved_error_low"] <= value["relative_error"] * (1 + 1e-5)  # The search goes down.
    assert decided["hidden"] >= 5
    assert checker.main([str(out / "proofs")]) == 0
    assert "a local minimum of positive loss is proved nearby in" in text
    assert "95 percent" in text


def test_results_are_decided_again_where_a_tile_is_missing(proved, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(proved[0], out)
    (out / "results.zarr" / "hidden" / "status" / "c" / "0" / "0" / "0").unlink()
    shutil.rmtree(out / "proofs" / "hidden")
    train(out, MAP | dict(prove=True, keep_proofs=True))
    for layers, expected in results(proved[0]).items():
        xr.testing.assert_identical(results(out)[layers], expected)
    for path in sorted((proved[0] / "proofs").rglob("*.npz")):
        with np.load(path) as one, np.load(out / "proofs" / path.relative_to(proved[0] / "proofs")) as other:
            assert all(np.array_equal(one[name], other[name], equal_nan=one[name].dtype.kind == "f") for name in one)
    assert not list(out.rglob("*.partial"))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--keep_proofs"], "--keep_proofs: has no effect without --prove"),
        (["--stop=proved"], "--stop"),
        (["--stop=decided", "--dynamics=inclusion"], "has no effect with --dynamics=inclusion"),
    ],
)
def test_bad_flags_are_one_line(flags, message, tmp_path):
    done = command("convergence_map", *words(MAP), *flags, f"--out={tmp_path / 'out'}")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert message in done.stderr
    assert not (tmp_path / "out").exists()


def test_a_store_without_proofs_is_not_gone_on_with(plain):
    done = command("convergence_map", *words(MAP), f"--out={plain}", "--prove")
    assert done.returncode == 2
    assert "--prove is None there and True here" in done.stderr


def test_what_cannot_be_tried_says_why():
    params, problem = Params(np.ones((2, 2)), np.ones((2, 1))), Problem(np.ones((4, 2)), np.ones((4, 1)))
    assert proving.decide_end(params, problem, "hidden", Status.DIVERGED) == (None, 1)
    infinite = Params(np.full((2, 2), np.inf), np.ones((2, 1)))
    assert proving.decide_end(infinite, problem, "hidden", Status.MAX_STEPS_REACHED) == (None, 2)


def test_every_reason_has_a_code():
    texts = []
    for module in ("verification", "both_layers"):
        source = (ROOT / "relu_sgd" / "proofs" / f"{module}.py").read_text()
        texts += re.findall(r'(?:undecided\(|reason=)\s*f?"([^"{]+)', source)
    assert len(texts) > 20
    codes = {proving.reason_code(text) for text in texts}
    assert 99 not in codes
    assert codes <= set(proving.REASONS)
    assert proving.reason_code("something else") == 99
    assert proving.reason_code("") == 0


# --stop=decided.


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    out = tmp_path_factory.mktemp("stopped") / "out"
    done = command("convergence_map", *words(STOPPING), f"--out={out}", "--prove", "--keep_proofs")
    assert done.returncode == 0, done.stderr
    return out, done.stdout


def test_runs_end_at_a_minimum_that_is_proved(stopped, checker):
    out, text = stopped
    found = results(out)["hidden"]
    status, steps = found["status"].values.ravel(), found["steps"].values.ravel()
    ended = status == Status.STOPPED
    assert ended.sum() >= 3
    assert np.any(status == Status.CONVERGED)
    assert np.all(steps[ended] % proving.LOOK == 0)
    assert np.all(steps[ended] < 9000)
    verdict, error = found["verdict"].values.ravel(), found["relative_error"].values.ravel()
    assert np.all(verdict[ended] == proofs.Verdict.LOCAL_MINIMUM)
    low = found["proved_error_low"].values.ravel()
    assert np.all(low[ended] <= error[ended] * (1 + 1e-5))
    assert np.all(error[ended] ** 2 <= low[ended] ** 2 * (1 + proving.NEAR) * (1 + 1e-5))
    assert f"{ended.sum()} stopped at a proved local minimum" in text
    assert "stopped" in (out / "summary.csv").read_text().splitlines()[0].split(",")
    assert checker.main([str(out / "proofs")]) == 0


def test_what_stops_does_not_depend_on_lanes_and_chunks(stopped, tmp_path):
    train(tmp_path / "out", STOPPING, lanes=1, steps_per_chunk=70)
    found, expected = results(tmp_path / "out")["hidden"], results(stopped[0])["hidden"]
    assert "verdict" not in found
    np.testing.assert_array_equal(found["status"], expected["status"])
    np.testing.assert_allclose(found["steps"], expected["steps"], rtol=1e-2)
    ended = expected["status"] == Status.STOPPED
    np.testing.assert_array_equal(found["steps"].where(ended), expected["steps"].where(ended))
    # After thousands of steps that chatter runs are alike, not equal.
    kept = expected["status"] != Status.MAX_STEPS_REACHED
    error = lambda values: values["relative_error"].where(kept)
    np.testing.assert_allclose(error(found), error(expected), rtol=1e-3)


def test_without_somebody_who_decides_no_run_is_ended():
    protocol = preset("as_written", "hidden", stop="decided", num_samples=20)
    with pytest.raises(ValueError, match="somebody who decides"):
        runs.train_tile(protocol, "hidden", sized("hidden", (3,), (4,), 1))


def test_chunks_meet_every_iterate_that_is_watched_and_every_look():
    assert proving.LOOK % proving.SPACING == 0
    for steps in (1, 7, 150, 200, 999, 10**6):
        length = proving.TileProofs.chunk(steps)
        assert proving.SPACING % length == 0
        assert 1 <= length <= steps
    assert proving.TileProofs.chunk(10**6) == proving.SPACING


def test_what_chatters_has_changed_its_sign_more_than_once():
    column = lambda *signs: np.array(signs, bool)[:, None, None]
    no, yes = np.array([[False]]), np.array([[True]])
    for signs, again, may_again in [
        ((1, 1, 1, 1), False, False),
        ((0, 0, 1, 1), False, True),  # By a step that may carry it back, or for good.
        ((0, 1, 0, 0), True, True),
        ((1,), False, False),
    ]:
        assert proving.chatters(column(*signs), no).item() == again
        assert proving.chatters(column(*signs), yes).item() == may_again


def test_a_minimum_that_meets_the_criterion_is_told():
    protocol = preset("as_written", "hidden", stop="decided", num_samples=20, precision="float64")
    descent = runs.descent_of(protocol, "hidden")
    problem = Problem(np.ones((20, 3)), np.ones((20, 1)))
    # A relative error of 2.5e-3 is a loss of 2.5e-3^2 / 2 of a label 1.
    for factor, meets in ((0.99, True), (1.01, False)):
        assert proving._meets(descent, np.full(20, factor * 2.5e-3**2 / 2), problem) == meets
    assert not proving._meets(dataclasses.replace(descent, criterion=None), np.zeros(20), problem)


def a_proof():
    """Yhat = relu(w_1) on the first sample, where the second holds a kink with slope 1/2."""
    problem = Problem(np.array([[1.0, 0.0], [1.0, 1.0], [0.0, 1.0]]), np.array([[-1.0], [1.5], [0.5]]))
    return proofs.decide(Params(np.array([[0.01], [1.01]]), np.ones((1, 1))), problem), problem


def test_iterates_move_around_a_minimum_that_no_hyperplane_separates_from_them():
    proof, problem = a_proof()
    assert proof.kinks[:, 0].tolist() == [True, False, False]
    signs = lambda *column: np.array(column, bool)[:, None]
    assert proving.moves_around(proof, problem, signs(1, 1, 1), signs(1, 0, 0))
    assert proving.moves_around(proof, problem, signs(1, 1, 1), signs(1, 1, 0))  # Now and then beyond another one.
    assert proving.moves_around(proof, problem, signs(1, 1, 1), signs(0, 0, 0))  # theta* is on the kink.
    assert not proving.moves_around(proof, problem, signs(1, 0, 1), signs(1, 1, 0))  # Beyond another one for good.


def test_preactivations_that_a_step_carries_across_zero():
    problem = Problem(np.array([[1.0, 0.0], [0.0, 2.0]]), np.array([[0.0], [1.0]]))
    params = Params(np.array([[0.5], [-0.1]]), np.ones((1, 1)))
    # Z = (0.5, -0.2), c = (-0.5, 1), and a step moves them by at most 4 step (0.5, 4).
    assert proving.may_chatter(params, problem, 0.2).ravel().tolist() == [False, True]
    assert proving.may_chatter(params, problem, 0.25).ravel().tolist() == [True, True]
    assert not proving.may_chatter(params, problem, 0.0).any()


# Killed, and gone on with.

KILLED = GRID | dict(d1="4,8", num_seeds=8, num_steps=6000, stop="decided", prove=True, keep_proofs=True)


def begin(out, cache):
    """The map of `KILLED` in a process of its own, without its report."""
    program = (
        "from pathlib import Path\n"
        "from sweeps.convergence_map.study import ConvergenceMap\n"
        "from sweeps.runtime import session\n"
        "from sweeps.study import Execution\n"
        f"place = Execution(out=Path({str(out)!r}), num_processes=1, block=(1, 2), compilation_cache={str(cache)!r})\n"
        f"session.train(ConvergenceMap.make(**{KILLED!r}), place)\n"
    )
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    return subprocess.Popen([sys.executable, "-c", program], stderr=subprocess.PIPE, text=True, env=environment)


def test_killed_between_two_certificates_of_a_tile_it_ends_like_an_uninterrupted_map(tmp_path):
    whole, out = tmp_path / "whole", tmp_path / "out"
    killed, processes = [], [begin(whole, tmp_path / "one"), begin(out, tmp_path / "other")]
    for layers in ("hidden", "both"):  # Their tiles come in this order.
        folder = out / "proofs" / layers
        while not (folder.exists() and any(folder.iterdir())):
            assert processes[-1].poll() is None, processes[-1].stderr.read()
            time.sleep(1e-3)
        processes[-1].kill()
        _, log = processes[-1].communicate()
        assert processes[-1].returncode == -signal.SIGKILL, log
        assert not results(out)[layers]["status"].any()
        killed.append(len(list(folder.iterdir())))
        processes.append(begin(out, tmp_path / "other"))
    for process in processes:
        _, log = process.communicate(timeout=100)
        assert process.returncode in (0, -signal.SIGKILL), log
    for layers, expected in results(whole).items():
        xr.testing.assert_identical(results(out)[layers], expected)
        assert np.any(expected["status"] == Status.STOPPED)
    assert all(0 < count < 16 for count in killed), killed  # Of the 16 of a tile.
    certificates = sorted(path.relative_to(whole) for path in whole.glob("proofs/*/*"))
    assert certificates == sorted(path.relative_to(out) for path in out.glob("proofs/*/*"))
    assert len(certificates) >= 10
    for path in certificates:
        assert (out / path).read_bytes() == (whole / path).read_bytes(), path


# Reports.


def synthetic(**changes):
    """One cell: five runs that converged, four that did not, one that diverged."""
    status = np.array([1, 1, 1, 1, 1, 2, 2, 2, 2, 3])
    verdict = np.array([1, 1, 1, 2, 0, 1, 2, 2, 0, 0])
    values = {
        "status": status, "verdict": verdict, "reason": np.where(verdict == 0, 9, 0),
        "distance": np.where(verdict > 0, 0.5, np.inf), "proved_error_low": np.where(verdict == 2, 0.25, 0.0),
        "converged_at": np.where(status == 1, 100, -1), "relative_error": np.full(10, 0.1),
        **{name: np.zeros(10, int) for name in ("numerical_zeros", "zeros_at_rounding", "dead_samples")},
    } | changes  # fmt: skip
    attributes = {"science": {"num_samples": 20, "label_law": "balanced", "zero_threshold": 1e-8}}
    dims = ("d0", "d1", "seed")
    arrays = {name: (dims, value.reshape(1, 1, 10)) for name, value in values.items()}
    return xr.Dataset(arrays, coords={"d0": [3], "d1": [4], "seed": range(10)}, attrs=attributes)


def test_the_criterion_is_held_against_the_proof():
    found = summarize_proofs(synthetic())
    counts = {name: found[name].item() for name in found}
    assert counts == {
        "proved_global": 4, "proved_local": 3, "undecided": 2, "not_tried": 1, "converged_at_local": 1,
        "converged_undecided": 1, "missed_at_global": 1, "missed_undecided": 1, "median_distance": 0.5,
        "median_proved_error": 0.25,
    }  # fmt: skip
    study = ConvergenceMap.make(trained_layers=("hidden",), num_samples=20, num_seeds=10, prove=True)
    merged = {Variant("hidden"): xr.merge([summarize(synthetic()), found])}
    claims, text = report._proofs(study, merged)
    assert [claim.holds for claim in claims] == [False, False]
    assert "in 1 of 5 (20.0%; 3.6% to 62.4%) runs that meet it, 1 undecided" in text
    assert "in 1 of 4 (25.0%; 4.6% to 69.9%) runs that miss it, 1 undecided" in text
    right = synthetic(verdict=np.array([1, 1, 1, 1, 1, 2, 2, 2, 0, 0]))
    merged = {Variant("hidden"): xr.merge([summarize(right), summarize_proofs(right)])}
    assert [claim.holds for claim in report._proofs(study, merged)[0]] == [True, None]


def test_figures_of_what_is_proved():
    data = synthetic()
    summaries = {Variant("hidden"): xr.merge([summarize(data), summarize_proofs(data)])}
    figure = figures.verdicts(summaries, "caption")
    hatched = [patch for patch in figure.axes[0].patches if patch.get_hatch() == "//////"]
    assert {round(patch.get_height() / 0.5, 6) for patch in hatched} == {0.2}  # Halves of a cell; two of ten runs.
    figure = figures.proved_errors({Variant("hidden"): data}, "caption")
    assert figure.axes[0].get_title().endswith("3 local minima")
    lines = sorted(line.get_xdata()[0] for line in figure.axes[0].lines)
    np.testing.assert_allclose(lines, [np.sqrt(k / 20) for k in (1,)])
    assert sum(patch.get_height() for patch in figure.axes[0].patches) == 3
    empty = synthetic(verdict=np.zeros(10, int))
    assert figures.proved_errors({Variant("hidden"): empty}, "caption").axes[0].get_title().endswith("0 local minima")
