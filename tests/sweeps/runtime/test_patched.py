"""A law that a script has replaced is refused: workers would not know of it, and the configuration does not name it."""

import functools
import importlib.util
import os
import sys

import pytest
from support.launchers import command

import relu_sgd.problem
from sweeps.protocol import draw
from sweeps.protocol.presets import PRESETS
from sweeps.runtime import patched, processes
from sweeps.study import UsageError
from sweeps.width_bounds import study as width_bounds


def double(number):
    return 2 * number


def other_rows(*_, **__):
    raise RuntimeError("not the paper's")


def nothing():
    pass


def in_workers(numbers):
    run = functools.partial(patched.checked, double, patched.fingerprints())
    return sorted(processes.map_unordered(run, numbers, 2, nothing, lambda: False))


def changed(before):
    return [name for (name, old), (_, new) in zip(before, patched.fingerprints(), strict=True) if old != new]


def test_workers_agree_with_a_parent_that_patched_nothing_and_refuse_another(monkeypatch):
    assert in_workers([1, 2, 3]) == [(1, 2), (2, 4), (3, 6)]
    monkeypatch.setitem(width_bounds.ROW_LAWS, "sphere", other_rows)
    with pytest.raises(UsageError, match=r"sweeps\.width_bounds\.study was changed after it was imported"):
        in_workers([1])


def test_whatever_is_replaced_changes_the_fingerprint_of_its_module_alone(monkeypatch):
    before = patched.fingerprints()
    assert patched.fingerprints() == before
    with monkeypatch.context() as patch:
        patch.setitem(PRESETS, "as_released", {**PRESETS["as_released"], "momentum": 0.5})
        assert "sweeps.protocol.presets" in changed(before)
        assert all(name.startswith("sweeps.") for name in changed(before))
    with monkeypatch.context() as patch:
        patch.setattr(width_bounds, "MULTIPLES", (1.0, 3.0))
        assert changed(before) == ["sweeps.width_bounds.study"]
    with monkeypatch.context() as patch:
        patch.setattr(width_bounds, "dimension", lambda num_samples, delta: round(num_samples**delta) + 1)
        assert changed(before) == ["sweeps.width_bounds.study"]
    assert changed(before) == []


def test_a_law_of_ones_own_in_the_place_of_another_is_refused_in_one_process_too(monkeypatch, tmp_path):
    monkeypatch.setattr(relu_sgd.problem, "sphere_rows", other_rows)
    words = ["--num_processes=1", "--num_samples=4", "--d0=2", "--d1=2", "--num_seeds=1"]
    done = command("convergence_map", f"--out={tmp_path / 'out'}", *words)
    assert done.returncode == 2
    assert done.stderr.startswith(
        f"convergence_map: relu_sgd.problem.sphere_rows was replaced by {other_rows.__module__}.other_rows"
    )
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_one_process_refuses_a_table_of_the_sweeps_that_was_replaced(monkeypatch, tmp_path):
    patched.check_here()
    words = ["--num_processes=1", "--num_samples=4", "--d0=2", "--d1=2", "--num_seeds=1"]
    monkeypatch.setattr(draw, "STREAMS", {**draw.STREAMS, "W": 7})
    done = command("convergence_map", f"--out={tmp_path / 'out'}", *words)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("convergence_map: sweeps.protocol.draw was changed")


def test_what_has_passed_is_refused_once_a_module_or_a_file_is_changed_and_passes_when_all_is_as_before(
    monkeypatch, tmp_path
):
    """With what was imported from a patched module, too."""
    file = tmp_path / "sweeps" / "test_module.py"
    file.parent.mkdir()
    file.write_text("from sweeps.protocol.draw import STREAMS\nvalue = 1\n")
    spec = importlib.util.spec_from_file_location("sweeps.test_module", file)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "sweeps.test_module", module)
    spec.loader.exec_module(module)
    patched.check_here()

    def refused(name="test_module"):
        with pytest.raises(UsageError, match=rf"{name} was changed after it was imported"):
            patched.check_here()

    with monkeypatch.context() as patch:
        patch.setattr(module, "value", 2)
        refused()
    other = {**draw.STREAMS, "W": 7}
    with monkeypatch.context() as patch:
        patch.setattr(draw, "STREAMS", other)
        patch.setattr(module, "STREAMS", other)
        refused("draw")
    with monkeypatch.context() as patch:
        patch.setattr(module, "STREAMS", other)
        refused()
    patched.check_here()
    before = file.stat()
    file.write_text(file.read_text().replace("1", "30"))  # Python itself takes the same size for no change.
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    refused()
    file.write_text("raise RuntimeError")
    refused()
