"""Every study: its worker loads no plots and tables, and starts within two seconds; what a variant and a tile are."""

import resource
import subprocess
import sys

import pytest
from support.launchers import STUDIES

from sweeps.study import Tile, UsageError, Variant

HEAVY = ("matplotlib", "pandas", "xarray", "scipy.stats")


def children_seconds():
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


@pytest.mark.parametrize("name", list(STUDIES))
def test_a_worker_starts_without_plots_and_tables(name):
    code = f"""if True:
        import sys
        import sweeps.{name}.study, sweeps.runtime.session
        print([module for module in {HEAVY} if module in sys.modules])
    """
    seconds: dict[str, list[float]] = {"jax": [], name: []}
    for _ in range(3):
        # In turns, and in seconds of a core, because a machine may be slow, or busy.
        for what, program in (("jax", "import jax, optax, zarr; print([])"), (name, code)):
            begun = children_seconds()
            done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
            seconds[what].append(children_seconds() - begun)
            assert done.stdout == "[]\n", done.stderr
        if min(seconds[name]) < 2:
            return
    assert min(seconds[name]) < 2.5 * min(seconds["jax"])


def test_the_program_lists_its_studies():
    done = subprocess.run([sys.executable, "-m", "sweeps"], capture_output=True, text=True, timeout=60)
    assert {line.split()[2].removeprefix("sweeps.") for line in done.stdout.splitlines()} == {*STUDIES, "reproduction"}
    unknown = subprocess.run([sys.executable, "-m", "sweeps", "maps"], capture_output=True, text=True, timeout=60)
    assert unknown.returncode == 2
    assert unknown.stderr.count("\n") == 1


def test_groups_are_named_as_ever():
    """Stores written before variants were data have these names."""
    assert Variant("hidden").group == "hidden"
    assert Variant("hidden", 0.5).group == "hidden_relu_at_zero_0.5"
    assert Variant("both", precision="float32").group == "both_float32"
    assert Variant("both", num_samples=40).group == "both_N40"
    assert Variant(name="widths").group == "widths"


def test_a_tile_knows_its_place_among_seeds_too():
    tile = Tile(Variant(), {"delta": (0.5,)}, range(4, 6))
    assert tile.slices({"delta": (0.1, 0.5)}) == (slice(1, 2), slice(4, 6))
    assert tile == Tile(Variant(), {"delta": (0.5,)}, range(4, 6))
    assert len({tile, Tile(Variant(), {"delta": (0.5,)}, range(4, 6))}) == 1


@pytest.mark.parametrize("name", list(STUDIES))
def test_the_science_of_a_study_is_the_study(name):
    study = STUDIES[name].make()
    attributes = {"science": study.science(), "protocol": study.protocol_name}
    assert STUDIES[name].from_science(attributes) == study
    with pytest.raises(UsageError, match="results of"):
        STUDIES[name].from_science({**attributes, "study": "another"})
    with pytest.raises(UsageError, match="no such flag"):
        STUDIES[name].make(learning_speed=1)
