"""Flags: how they are read, and that bad ones leave one line and nothing else."""

import dataclasses
import errno
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from absl.testing import flagsaver
from hypothesis import given
from hypothesis import strategies as st
from support.launchers import STUDIES

from sweeps.command import app, parsers
from sweeps.convergence_map.study import ConvergenceMap
from sweeps.protocol.presets import INCLUSION_ONLY, PRESETS, ByLayers
from sweeps.study import Execution, flags_of


@pytest.fixture(autouse=True)
def _restore_flags():
    with flagsaver.flagsaver():
        yield


def read(*words):
    values = app.flag_values(ConvergenceMap)
    values(["convergence_map", "--out=unused", *words])
    return app._read(ConvergenceMap, values)[0]


@given(st.integers(1, 50), st.integers(0, 20), st.integers(1, 9))
def test_ranges_hold_both_ends(start, count, step):
    sizes = parsers.Sizes().parse(f"{start}:{start + count * step}:{step}")
    assert sizes == tuple(start + step * index for index in range(count + 1))


def test_sizes():
    assert parsers.Sizes().parse("4") == (4,)
    assert parsers.Sizes().parse("4,7,30") == (4, 7, 30)
    assert parsers.Sizes().parse("3:6") == (3, 4, 5, 6)


@pytest.mark.parametrize("name", list(PRESETS))
def test_without_overrides_the_preset_is_what_runs(name):
    found = read(f"--protocol={name}")
    for field, value in PRESETS[name].items():
        expected = (value.hidden, value.both) if isinstance(value, ByLayers) else value
        assert getattr(found, field) == expected, field


OVERRIDES = {
    "num_samples": ("30", 30),
    "d2": ("3", 3),
    "d0": ("2:6:2", (2, 4, 6)),
    "d1": ("8,12", (8, 12)),
    "num_seeds": ("4", 4),
    "base_seed": ("9", 9),
    "data_law": ("cube", "cube"),
    "data_radius": ("sqrt_d0", "sqrt_d0"),
    "data_sharing": ("cell", "cell"),
    "label_law": ("gaussian", "gaussian"),
    "hidden_law": ("lecun", "lecun"),
    "hidden_standard_deviation": ("0.5", 0.5),
    "output_law": ("uniform", ("uniform", "uniform")),
    "learning_rate": ("0.1,0.3", (0.1, 0.3)),
    "momentum": ("0", 0.0),
    "normalization": ("mean", "mean"),
    "batch_size": ("7", 7),
    "relu_at_zero": ("0.5", 0.5),
    "criterion": ("scaled_mean_squared_error", "scaled_mean_squared_error"),
    "tolerance": ("1e-4", 1e-4),
    "stop": ("never", "never"),
    "num_steps": ("12", 12),
    "zero_threshold": ("0", 0.0),
    "zero_multiple": ("2", 2.0),
    "precision": ("float64", "float64"),
}
OF_THE_INCLUSION = {"dynamics": ("inclusion", "inclusion"), "flow_time": ("9", 9.0), "path_tolerance": ("0.1", 0.1)}


@pytest.mark.parametrize("name", list(OVERRIDES))
def test_every_value_has_a_flag(name):
    text, expected = OVERRIDES[name]
    assert read(f"--{name}={text}") == dataclasses.replace(read(), **{name: expected})


@pytest.mark.parametrize("name", list(OF_THE_INCLUSION))
def test_every_value_of_the_inclusion_has_a_flag(name):
    text, expected = OF_THE_INCLUSION[name]
    found = read("--dynamics=inclusion", f"--{name}={text}")
    changed = {"dynamics": "inclusion", "precision": "float64", name: expected}
    assert found == dataclasses.replace(read(), **changed)


def test_slopes_at_zero():
    assert read("--relu_at_zero=random").relu_at_zero == "random"
    found = read("--relu_at_zero=0,0.5,1,random,minimum_norm")
    assert found.relu_at_zero == (0.0, 0.5, 1.0, "random", "minimum_norm")
    variants = found.variants()
    assert len({variant.group for variant in variants}) == 10
    assert variants[1].group == "hidden_relu_at_zero_0.5"
    values = [found.protocol_of(variant).relu_at_zero for variant in variants]
    assert values == 2 * [0.0, 0.5, 1.0, "random", "minimum_norm"]
    assert [variant.layers for variant in variants] == 5 * ["hidden"] + 5 * ["both"]


def test_no_value_is_without_a_test():
    own = {"trained_layers", "protocol", "interval", "prove", "keep_proofs", "kernel"}
    assert set(flags_of(ConvergenceMap)) == {*OVERRIDES, *OF_THE_INCLUSION, *own}


def test_one_set_up():
    found = read("--trained_layers=both", "--learning_rate=0.5")
    assert found.trained_layers == ("both",)
    assert found.learning_rate == (0.5,)
    assert found.output_law == ("normal",)
    swapped = read("--trained_layers=both,hidden", "--learning_rate=0.5,0.25")
    assert swapped.protocol_of(swapped.variants()[0]).learning_rate == 0.5
    assert swapped.protocol_of(swapped.variants()[1]).learning_rate == 0.25


def test_the_flag_file_of_a_lecun_start_can_be_read():
    study = ConvergenceMap.make(hidden_law="lecun")
    assert read(*study.flagfile((2, 2)).split()) == study


BAD = {
    "empty range": (["--d0=10:2:2"], "--d0: '10:2:2' is empty"),
    "empty list": (["--d0="], "--d0"),
    "reversed list": (["--d1=8,4"], "must increase"),
    "repeated size": (["--d1=4,4"], "must increase"),
    "range that misses its end": (["--d0=2:9:2"], "does not reach its end"),
    "zero step": (["--d0=2:8:0"], "step"),
    "negative step": (["--d0=8:2:-2"], "step"),
    "too many parts": (["--d0=2:8:2:2"], "start:stop"),
    "zero size": (["--d0=0:8:2"], "at least 1"),
    "negative size": (["--d1=-4,4"], "at least 1"),
    "size that is no number": (["--d1=a"], "neither"),
    "fractional size": (["--d1=2.5"], "neither"),
    "zero samples": (["--num_samples=0"], "--num_samples"),
    "zero seeds": (["--num_seeds=0"], "--num_seeds"),
    "zero steps": (["--num_steps=0"], "--num_steps"),
    "steps beyond 32 bits": (["--num_steps=3000000000"], "--num_steps"),
    "negative seed": (["--base_seed=-1"], "--base_seed"),
    "zero outputs": (["--d2=0"], "--d2"),
    "unknown protocol": (["--protocol=as_imagined"], "protocol"),
    "unknown set-up": (["--trained_layers=output"], "'output' is not one of hidden, both"),
    "repeated set-up": (["--trained_layers=both,both"], "repeats"),
    "unknown law": (["--data_law=torus"], "--data_law: 'torus' is not one of sphere, cube"),
    "unknown output law": (["--output_law=zeros"], "--output_law"),
    "unknown flag": (["--learning_speed=1"], "learning_speed"),
    "another flag's part": (["--seeds=3"], "Unknown command line flag 'seeds'. Did you mean: num_seeds ?"),
    "nothing like a flag": (["--qqqq=3"], "Unknown command line flag 'qqqq'\n"),
    "not a flag": (["fast"], "'fast' is not a flag"),
    "rate that is no number": (["--learning_rate=fast"], "--learning_rate: 'fast' is not a number"),
    "rate NaN": (["--learning_rate=nan"], "--learning_rate: nan"),
    "rate infinite": (["--learning_rate=inf"], "--learning_rate: inf"),
    "rate zero": (["--learning_rate=0"], "--learning_rate"),
    "too many rates": (["--learning_rate=1,2,3"], "3 values for 2 set-ups"),
    "momentum 1": (["--momentum=1"], "--momentum"),
    "slope by an unknown name": (["--relu_at_zero=0,largest"], "--relu_at_zero: 'largest' is not a number"),
    "repeated slope": (["--relu_at_zero=0.5,0.5"], "repeats"),
    "unknown dynamics": (["--dynamics=flow"], "--dynamics"),
    "rate of the inclusion": (["--dynamics=inclusion", "--learning_rate=1"], "--learning_rate: has no effect"),
    "flow time of descent": (["--flow_time=3"], "--flow_time: has no effect without --dynamics=inclusion"),
    "negative flow time": (["--dynamics=inclusion", "--flow_time=-1"], "--flow_time"),
    "energy beyond all": (["--dynamics=inclusion", "--path_tolerance=2"], "--path_tolerance"),
    "slope above 1": (["--relu_at_zero=1.5"], "--relu_at_zero"),
    "negative tolerance": (["--tolerance=-1"], "--tolerance"),
    "negative threshold": (["--zero_threshold=-1"], "--zero_threshold"),
    "zero deviation": (["--hidden_standard_deviation=0"], "--hidden_standard_deviation"),
    "batch beyond N": (["--num_samples=10", "--batch_size=11"], "--batch_size: 11 exceeds --num_samples=10"),
    "odd N with balanced labels": (["--num_samples=11"], "--num_samples: 11 is odd"),
    "odd d1 with balanced signs": (["--d1=4,7"], "--d1: 7 is odd"),
    "appendix G with two outputs": (["--d2=2", "--output_law=appendix_g"], "--d2: 2 does not fit"),
    "deviation without effect": (["--hidden_law=lecun", "--hidden_standard_deviation=2"], "has no effect"),
    "criterion of other labels": (["--criterion=scaled_mean_squared_error", "--label_law=gaussian"], "--criterion"),
    "shard beyond count": (["--shard_index=2", "--shard_count=2"], "--shard_index: 2 is not below --shard_count=2"),
    "zero shards": (["--shard_count=0"], "--shard_count"),
    "coordinator without a port": (["--coordinator=node1"], "'node1' is neither auto nor host:port"),
    "coordinator with a bad port": (["--coordinator=node1:70000"], "--coordinator"),
    "coordinator of one": (["--coordinator=n:1"], "--coordinator: n:1 needs --shard_count above 1, and --shard_index"),
    "shards that are found": (["--coordinator=auto", "--shard_count=2"], "--shard_count: contradicts --coordinator"),
    "repair of many": (["--coordinator=auto", "--repair"], "--coordinator: contradicts --repair"),
    "refinement by many": (["--coordinator=auto", "--refine=9"], "--coordinator: contradicts --refine"),
    "figures of many": (["--coordinator=auto", "--figures_only"], "--coordinator: contradicts --figures_only"),
    "devices and processes": (["--num_devices=2", "--num_processes=2"], "--num_devices: contradicts"),
    "negative lanes": (["--lanes=-1"], "--lanes"),
    "block": (["--block=3"], "--block: 3 does not fit the axes d0, d1"),
    "unknown interval": (["--interval=normal"], "interval"),
    "unknown precision": (["--precision=float16"], "--precision"),
    "boolean with a value that is none": (["--figures_only=maybe"], "figures_only"),
    "science with figures_only": (["--figures_only", "--num_steps=5"], "--num_steps: contradicts --figures_only"),
    "figures of nothing": (["--figures_only"], "no results"),
}  # fmt: skip


def fails(capsys, words):
    with pytest.raises(SystemExit) as error:
        app.execute(ConvergenceMap, ["convergence_map", *words])
    captured = capsys.readouterr()
    assert error.value.code == 2
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert captured.err.startswith("convergence_map: ")
    return captured.err


@pytest.mark.parametrize("case", list(BAD))
def test_bad_flags(case, capsys, tmp_path):
    words, message = BAD[case]
    assert message in fails(capsys, [f"--out={tmp_path / 'out'}", *words])
    assert not list(tmp_path.iterdir())


def test_out_is_needed(capsys):
    assert "--out" in fails(capsys, [])


def test_a_foreign_folder_is_left_alone(capsys, tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    assert "holds other things (thesis.tex)" in fails(capsys, [f"--out={tmp_path}"])
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_file_is_no_folder(capsys, tmp_path):
    (tmp_path / "out").write_text("")
    assert "is not a folder" in fails(capsys, [f"--out={tmp_path / 'out'}"])


def test_an_unwritable_folder(capsys, tmp_path, monkeypatch):
    """Root may write anywhere, so the system's answer is simulated."""
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert "cannot write to" in fails(capsys, [f"--out={tmp_path / 'a' / 'b'}"])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("denied", ["mkdir", "open", "write_text"])
def test_a_system_that_refuses_to_write(denied, capsys, tmp_path, monkeypatch):
    """Though it says of the folder that one may: a folder of the system, a full disk, a network's file system."""

    def refuse(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(*{"open": (os, "open")}.get(denied, (Path, denied)), refuse)
    told = fails(capsys, [f"--out={tmp_path / 'out'}", "--d0=2", "--d1=2", "--num_seeds=1", "--num_processes=1"])
    assert told == f"convergence_map: --out: cannot write to {tmp_path / 'out'}: No space left on device\n"
    monkeypatch.undo()
    assert not list(tmp_path.rglob("status/c"))


def test_a_name_that_no_file_can_have(capsys):
    name = "x" * 300
    assert f"--out: cannot use {name}: File name too long" in fails(capsys, [f"--out={name}"])
    told = fails(capsys, [f"--out={name}", "--figures_only"])
    assert f"--out: cannot read {name}/results.zarr: File name too long" in told


def test_help_names_every_flag_with_its_default(capsys):
    with pytest.raises(SystemExit) as error:
        app.execute(ConvergenceMap, ["convergence_map", "--help"])
    assert error.value.code == 0
    text = capsys.readouterr().out
    for field in dataclasses.fields(Execution):
        assert f"--{field.name}" in text or f"--[no]{field.name}" in text
    for name in OVERRIDES:
        assert f"--{name}:" in text
    flat = " ".join(text.split())
    assert "(preset: 0.15,0.002 in as_written; 0.15 in as_released)" in flat
    assert "(preset: 2:60:2)" in flat
    # Names and formulas as they are.
    assert "v <- momentum v + gradient" in flat
    assert "sphere: rows of X uniform" in flat


@pytest.mark.parametrize("name", list(STUDIES))
def test_what_help_shows_of_a_default_is_what_the_flag_takes(name):
    study = STUDIES[name]
    for flag_name, (spec, default) in (flags_of(study) | flags_of(Execution)).items():
        if default is not None:
            assert spec.parser.parse(spec.parser.serialize(default)) == default, flag_name
        for said in re.findall(r"\(preset: (.*)\)$", study.help_of(flag_name, "")):
            for shown, _, preset in [part.rpartition(" in ") for part in said.split("; ")]:
                same = {"dynamics": "inclusion"} if flag_name in INCLUSION_ONLY[1:] else {}
                same |= {"protocol": preset} if shown else {}
                assert study.make(**same, **{flag_name: shown or preset}) == study.make(**same), flag_name


@pytest.mark.parametrize("name", list(STUDIES))
def test_help_fits_a_terminal(name, capsys):
    with pytest.raises(SystemExit):
        app.execute(STUDIES[name], [name, "--help"])
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80


def test_numbers_are_shown_in_few_digits():
    number = parsers.Number(0)
    assert [number.serialize(value) for value in (1e11, 0.15, 1e-8, 1.0)] == ["1e+11", "0.15", "1e-08", "1"]
    assert parsers.Sizes().serialize((200, 752, 2828)) == "200,752,2828"
    assert parsers.Sizes().serialize((2, 4, 6)) == "2:6:2"


@given(st.floats(0, 1e300))
def test_numbers_come_back(value):
    assert parsers.Number(0).parse(parsers.Number(0).serialize(value)) == value


@given(st.lists(st.integers(1, 99), min_size=1, max_size=4, unique=True).map(sorted).map(tuple))
def test_sizes_come_back(sizes):
    assert parsers.Sizes().parse(parsers.Sizes().serialize(sizes)) == sizes


def test_whoever_reads_the_help_may_stop_early():
    """As `head` does: a pipe that is closed at the other end."""
    reader, writer = os.pipe()
    os.close(reader)
    found = subprocess.run(
        [sys.executable, "-m", "sweeps.convergence_map", "--help"], stdout=writer, stderr=subprocess.PIPE, text=True
    )
    os.close(writer)
    assert found.stderr == ""
    assert found.returncode == 1


def test_the_program_itself_fails_in_one_line(tmp_path):
    found = subprocess.run(
        [sys.executable, "-m", "sweeps.convergence_map", f"--out={tmp_path / 'out'}", "--d0=10:2:2"],
        capture_output=True,
        text=True,
    )
    assert found.returncode == 2
    assert found.stdout == ""
    assert found.stderr == "convergence_map: --d0: '10:2:2' is empty: its end lies before its start\n"
    assert not list(tmp_path.iterdir())
