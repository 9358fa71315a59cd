"""The studies that the paper is made of, each an ordinary one with its flags, in two sizes.

What a study is expected to take is its own cost of the tiles that are left, times the seconds that a unit of cost took
on one core of a Xeon with AVX-512 (`Kind.seconds`, native kernel where there is one), plus what it takes whatever its
size, over the cores. It is a guess; once tiles are done the study's own forecast is better.
"""

import dataclasses
import importlib
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sweeps.protocol.study import ProtocolStudy
from sweeps.runtime import processes, session, tiles
from sweeps.study import Study, UsageError, flags_of

__all__ = [
    "KERNELS",
    "KINDS",
    "PRESETS",
    "Kind",
    "Planned",
    "command_of",
    "flags_that_differ",
    "kernel_here",
    "kind_of",
    "plan",
    "protocol_of",
]

# What XLA's program takes where the native kernel takes 1, see docs/performance.md.
_XLA = 2.6
KERNELS = ("auto", "native", "xla")


@dataclasses.dataclass(frozen=True)
class Kind:
    """A study of the paper.

    Attributes:
      study: module:class.
      title: what it shows.
      flags: name to text, those of all presets.
      sizes: preset to flags, what makes it small or large.
      seconds: on one core, of a unit of cost.
      overhead: seconds of compiling and reporting.
    """

    study: str
    title: str
    flags: Mapping[str, str]
    sizes: Mapping[str, Mapping[str, str]]
    seconds: float
    overhead: float


_MAP = "sweeps.convergence_map.study:ConvergenceMap"
_TRAJECTORIES = "sweeps.trajectories.study:Trajectories"
# Zeros are hidden by rounding in float32, so both maps are in float64; trajectories are anyway.
_ZEROS = {"precision": "float64"}
# Of Figure 3's widths the largest, 2828, takes a quarter of an hour. With fewer than four runs no share is decided.
_NARROW = dict(d1="200,752", num_seeds="4")
_COARSE = dict(d0="4:60:14", d1="4:60:14")

KINDS: dict[str, Kind] = {
    "comparison": Kind(
        "sweeps.comparison_ode.study:Comparison",
        "Figure 1: solutions of the comparison problem (9)",
        {},
        {"quick": {}, "full": {}},
        seconds=0.0,
        overhead=8,
    ),
    "statements": Kind(
        "sweeps.reproduction.statements.study:Statements",
        "Every numbered statement on random problems",
        {},
        {"quick": {}, "full": {"num_seeds": "100"}},
        seconds=0.033,
        overhead=8,
    ),
    "map_as_written": Kind(
        _MAP,
        "Figure 2 as written: convergence, zeros at first passage, proofs",
        {"protocol": "as_written", "prove": "true", **_ZEROS},
        {"quick": _COARSE, "full": {}},
        seconds=2.0e-8,
        overhead=15,
    ),
    "map_as_released": Kind(
        _MAP,
        "Figure 2 as the released code runs it: convergence, zeros after all steps",
        {"protocol": "as_released", **_ZEROS},
        # Data are drawn anew for a cell, not for a run: many cells say more than many runs.
        {"quick": dict(d0="10:50:10", d1="10:50:10", num_seeds="2"), "full": {}},
        seconds=3.2e-4,
        overhead=15,
    ),
    "trajectories_as_written": Kind(
        _TRAJECTORIES,
        "Figure 3 as written: what happens along training",
        {"protocol": "as_written"},
        {"quick": _NARROW, "full": {}},
        seconds=1.0e-3,
        overhead=10,
    ),
    "trajectories_as_released": Kind(
        _TRAJECTORIES,
        "Figure 3 as the released code runs it, with a data set a run: what happens along training",
        # The released code trains all runs of a width on one data set, of which no interval can be made.
        {"protocol": "as_released", "data_sharing": "run"},
        {"quick": _NARROW, "full": {}},
        seconds=1.0e-3,
        overhead=10,
    ),
    "inclusion": Kind(
        "sweeps.inclusion_limit.study:Limit",
        "Theorem 5.5: descent and the inclusion; zeros and what slides",
        {},
        {
            "quick": dict(num_samples="40", d0="20", d1="20,50", num_seeds="4", long_steps="10000"),
            "full": dict(num_samples="40,100", d0="20", d1="20,50", long_rates="0.15,0.03,0.006,0.0012"),
        },
        seconds=2e-3,
        overhead=25,
    ),
    "step_counts": Kind(
        "sweeps.step_counts.study:StepCounts",
        "Theorem 5.1: how many steps of mini-batch SGD",
        {},
        {
            "quick": dict(
                learning_rate="0.0004,0.0008", batch_size="10,20,40", epsilon="1,0.1,0.01,0.001", num_seeds="16"
            ),
            "full": {"num_seeds": "20"},
        },
        seconds=0.05,
        overhead=10,
    ),
    "widths": Kind(
        "sweeps.width_bounds.study:WidthBounds",
        "Table 1, Theorem 4.3 and Corollary 4.5: certified widths",
        {},
        {"quick": dict(num_samples="32,48,64,96,128,192,256", num_seeds="3", max_operations="1e9"), "full": {}},
        seconds=5e-9,
        overhead=10,
    ),
}
PRESETS = ("quick", "full")


@dataclasses.dataclass(frozen=True)
class Planned:
    """A study as it is to be run.

    Attributes:
      key: its name here, and that of its folder.
      title: what it shows.
      study: with its flags.
      flags: those that were given, name to text.
      rate: seconds of a unit of cost on one core.
      overhead: seconds whatever its size.
    """

    key: str
    title: str
    study: Study
    flags: Mapping[str, str]
    rate: float
    overhead: float

    @property
    def command(self) -> str:
        """The shell line that runs it by itself, in the folder DIR."""
        return command_of(self.key, self.study, self.flags)

    def expected(self, out: Path) -> float:
        """Seconds that what is left of it takes on the cores of this machine, roughly; 0 where nothing is left."""
        study, folder = self.study, out / self.key
        axes, seeds = study.axes(), study.seeds()
        if not axes:
            return 0.0 if (folder / "config.json").exists() else self.overhead
        block, left = study.default_block(), None
        if (folder / "results.zarr").exists():
            store = session.open_results(folder)
            block, left = tuple(store.attributes["block"]), session.pending(study, store)
        grid = {**axes, "seed": seeds}
        todo = [
            tile
            for tile in tiles.cut(study.variants(), axes, seeds, block)
            if left is None or left[tile.variant][tile.slices(grid)].any()
        ]
        cores = min(len(processes.available_cores()), max(len(todo), 1))
        return self.rate * sum(map(study.cost, todo)) / cores + (self.overhead if todo else 0.0)


def command_of(key: str, study: Study, flags: Mapping[str, str]) -> str:
    """The shell line of a study with some flags, name to text."""
    words = [f"--{name}" if text == "true" else f"--{name}={text}" for name, text in flags.items()]
    return shlex.join(["python", "-m", f"sweeps.{study.name}", *words, f"--out=DIR/{key}"])


def flags_that_differ(study: Study) -> dict[str, str]:
    """The flags of a study whose values are not the usual ones, name to text; the protocol is always among them."""
    given = {"protocol": protocol_of(study)} if protocol_of(study) else {}
    usual = type(study).make(**given)
    known = flags_of(type(study))
    changed = [name for name in study.replay() if getattr(study, name) != getattr(usual, name)]
    return given | {name: known[name][0].parser.serialize(getattr(study, name)) for name in changed}


def kind_of(key: str) -> type[Study]:
    """The class of a study."""
    module, _, name = KINDS[key].study.partition(":")
    found: type[Study] = getattr(importlib.import_module(module), name)
    return found


def kernel_here(asked: str) -> str:
    """The kernel that takes the steps: the native one where it can be compiled, if nothing else is asked for.

    Raises:
      UsageError: it is asked for, and cannot.
    """
    if asked == "xla":
        return asked
    try:
        kind_of("map_as_written").make(kernel="native").check_code()
    except UsageError:
        if asked == "native":
            raise
        return "xla"
    return "native"


def plan(preset: str, kernel: str = "xla", kinds: Mapping[str, Kind] = KINDS) -> tuple[Planned, ...]:
    """The studies of a preset, in the order in which they run.

    Args:
      preset: one of `PRESETS`.
      kernel: "native" or "xla", for the maps.
      kinds: key to study, keys of `KINDS`.

    Raises:
      UsageError: a flag is wrong.
    """
    planned = []
    for key, kind in kinds.items():
        known: Mapping[str, Any] = flags_of(kind_of(key))
        flags = {**kind.flags, **kind.sizes[preset]}
        if "kernel" in known and kernel != "xla":
            flags["kernel"] = kernel
        slower = _XLA if "kernel" in known and kernel == "xla" else 1.0
        study = kind_of(key).make(**flags)
        planned.append(Planned(key, kind.title, study, flags, kind.seconds * slower, kind.overhead))
    return tuple(planned)


def protocol_of(study: Study) -> str:
    """The protocol that a study trains by, "" where it has none."""
    return study.protocol_name if isinstance(study, ProtocolStudy) else ""
