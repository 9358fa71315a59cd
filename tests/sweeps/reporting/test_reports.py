"""Every launcher's report on stores that hold little: one cell, one seed, nothing converged, everything diverged,
nothing measured.
"""

import contextlib
import json
import warnings

import numpy as np
import pytest
from support.launchers import command

from sweeps.reporting import style
from sweeps.runtime import session

# Small grids: one cell and one seed, and two of everything.
GRIDS = {
    "convergence_map": (["--d0=2", "--d1=4", "--num_seeds=1"], ["--d0=2,3", "--d1=4,6", "--num_seeds=2"]),
    "trajectories": (
        ["--d0=2", "--d1=4", "--num_seeds=1", "--num_steps=1", "--measure_every=1"],
        ["--d0=2", "--d1=4,6", "--num_seeds=2", "--num_steps=3", "--measure_every=1"],
    ),
    "inclusion_limit": (
        ["--num_samples=4", "--d0=2", "--d1=4", "--num_seeds=1", "--long_rates=0.15"],
        ["--num_samples=4,6", "--d0=2,3", "--d1=4", "--num_seeds=2"],
    ),
    "zeros": (
        ["--learning_rate=0.1", "--relu_at_zero=0", "--threshold=1e-8", "--precision=float32", "--num_seeds=1"],
        ["--learning_rate=0.1,0.2", "--relu_at_zero=0,1", "--threshold=1e-6,1e-8", "--num_seeds=2"],
    ),
    "step_counts": (
        ["--learning_rate=0.1", "--batch_size=4", "--epsilon=1", "--num_seeds=1"],
        [
            *("--learning_rate=0.1,0.2", "--batch_size=2,4", "--epsilon=1,0.1", "--num_seeds=2"),
            "--trained_layers=hidden,both",
        ],
    ),
    "width_bounds": (
        ["--num_samples=4", "--delta=0.6", "--scaling=unit", "--num_seeds=1"],
        ["--num_samples=4,6", "--delta=0.6,0.7", "--num_seeds=2"],
    ),
}  # fmt: skip
VARIANTS = {
    "inclusion": ("convergence_map", ["--dynamics=inclusion"]),
    "slopes": ("convergence_map", ["--relu_at_zero=0,random", "--label_law=gaussian"]),
}
# From a metric's type to what stands in the store: (status, numbers, counts); the counts of a run that never got there
# are -1.
ENDS = {
    "all done": (1, lambda shape: np.linspace(0.1, 0.9, np.prod(shape)).reshape(shape), 7),
    "all alike": (1, lambda shape: np.ones(shape), 1),
    "all zero": (1, np.zeros, 0),
    "nothing converged": (2, lambda shape: np.full(shape, 0.5), -1),
    "everything diverged": (3, lambda shape: np.full(shape, np.inf), -1),
    "nothing measured": (0, np.zeros, 0),
}


@contextlib.contextmanager
def ended(name):
    """Sweeps that end so, without work; drawn, but not written, which takes longer than everything else."""
    status, numbers, count = ENDS[name]

    def run_tiles(study, execution, store, mine, todo, *_):
        code = status if status in study.statuses else max(study.statuses)
        for tile in todo if status else ():
            records = {}
            for metric, (kind, _) in study.metrics.items():
                along = (len(study.records[1]),) if study.records and metric != "status" else ()
                shape = (tile.num_runs, *along)
                if np.dtype(kind).kind == "f":
                    records[metric] = numbers(shape)
                else:
                    records[metric] = np.full(shape, code if metric == "status" else count).astype(kind)
            store.write(tile.variant.group, tile.slices(study.axes()), records)

    def draw(figure, folder, stem, configuration):
        figure.set_layout_engine("none")
        figure.draw_without_rendering()
        return []

    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("error")
        patch.setattr(session, "run_tiles", run_tiles)
        patch.setattr(style, "save", draw)
        yield


def rows(out, name="summary.csv"):
    return (out / name).read_text().splitlines()


CASES = [
    *(
        (name, 0, end) for name in GRIDS for end in ENDS if (name, end) != ("width_bounds", "all zero")
    ),  # No width is 0.
    *((name, 1, end) for name in GRIDS for end in ("all done", "nothing converged")),
    *((name, 0, end) for name in VARIANTS for end in ("nothing converged", "nothing measured")),
]


@pytest.mark.parametrize(("name", "size", "end"), CASES)
def test_every_report_says_what_there_is(name, size, end, tmp_path):
    launcher, more = VARIANTS.get(name, (name, []))
    words = [f"--out={tmp_path / 'out'}", "--num_processes=1", *GRIDS[launcher][size], *more]
    with ended(end):
        done = command(launcher, *words)
        if end == "nothing measured":
            assert done.returncode == 0, done.stderr
            done = command(launcher, words[0], "--figures_only")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert rows(tmp_path / "out")
    assert "Configuration" in done.stdout


def test_results_of_another_launcher_are_refused_in_one_line(tmp_path):
    out = tmp_path / "out"
    with ended("all done"):
        assert command("zeros", f"--out={out}", "--num_processes=1", *GRIDS["zeros"][0]).returncode == 0
        for name in set(GRIDS) - {"zeros"}:
            done = command(name, f"--out={out}", "--figures_only")
            assert done.returncode == 2, name
            assert done.stderr.startswith(f"{name}: --out: ")
            assert len(done.stderr.splitlines()) == 1


def test_a_flag_file_that_is_no_text_is_refused(tmp_path):
    (tmp_path / "flags").write_bytes(b"\xa6\xff")
    done = command("zeros", f"--flagfile={tmp_path / 'flags'}", f"--out={tmp_path / 'out'}")
    assert done.returncode == 2
    assert done.stderr.startswith("zeros: --flagfile: ")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("name", [*GRIDS, *VARIANTS])
def test_the_flag_file_repeats_a_sweep_of_every_launcher(name, tmp_path):
    launcher, more = VARIANTS.get(name, (name, []))
    config, folders = [], (tmp_path / "first", tmp_path / "second")
    with ended("all done"):
        for folder, words in zip(
            folders, ([*GRIDS[launcher][0], *more], [f"--flagfile={folders[0] / 'run.flagfile'}"]), strict=True
        ):
            done = command(launcher, f"--out={folder}", "--num_processes=1", *words)
            assert done.returncode == 0, done.stderr
            config.append(json.loads((folder / "config.json").read_text()))
    assert config[0] == config[1]
    assert (folders[0] / "run.flagfile").read_text() == (folders[1] / "run.flagfile").read_text()
    assert rows(folders[0]) == rows(folders[1])
