"""What an experiment is, as types: what varies, what decides its results, how one tile of it is run, what it reports.

A study is a frozen dataclass. Its fields are at once flags of the command line, arguments in Python, and the science
that its store remembers: `flag` puts the typed parser, the help and the group of flags into a field's metadata.
"""

import dataclasses
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Self, TypeAlias

import numpy as np
from absl import flags

from relu_sgd.dynamics import Status
from relu_sgd.network import TrainedLayers
from sweeps.command.parsers import Block, Coordinator, Folder, Parser, Switch, Whole

if TYPE_CHECKING:  # Plots and tables are loaded by who reports, not by every worker process.
    import pandas
    import xarray as xr
    from matplotlib.figure import Figure

__all__ = [
    "Claim",
    "Execution",
    "Flag",
    "Made",
    "Metrics",
    "Report",
    "Results",
    "Study",
    "Tile",
    "TileError",
    "Timings",
    "UsageError",
    "Variant",
    "flag",
    "flags_of",
]

# Name to type and description, and the shape of a metric that is no number. "status" must be among them: an integer, 0
# for pending.
Metrics: TypeAlias = Mapping[str, tuple[Any, str] | tuple[Any, str, tuple[int, ...]]]
# Runs of one cell: the name of the variant, the place among the axes, and some metrics of theirs.
Made: TypeAlias = tuple[str, tuple[int, ...], Mapping[str, np.ndarray]]
# Seconds by what they went into.
Timings: TypeAlias = dict[str, float]


class UsageError(ValueError):
    """What the user asked for is not possible; the message is one line that says why.

    Attributes:
      exit_code: of the program.
    """

    exit_code: ClassVar[int] = 2


class TileError(UsageError):
    """Some tiles could not be computed; the others are stored."""

    exit_code = 1


@dataclasses.dataclass(frozen=True)
class Variant:
    """A variant of a study; what a study does not vary is None.

    Attributes:
      trained_layers: "hidden" or "both".
      relu_at_zero: slope of relu at 0, a number or the name of a selection.
      precision: "float32" or "float64".
      num_samples: N.
      name: of a variant that is none of these.
    """

    trained_layers: TrainedLayers | None = None
    relu_at_zero: float | str | None = None
    precision: str | None = None
    num_samples: int | None = None
    name: str | None = None

    @property
    def group(self) -> str:
        """Its name in the store."""
        patterns = {"relu_at_zero": "relu_at_zero_{}", "num_samples": "N{}"}
        parts = [patterns.get(name, "{}").format(value) for name, value in self.varied.items()]
        return "_".join(parts) or "runs"

    @property
    def varied(self) -> dict[str, Any]:
        """What the study varies, with its values."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {name: value for name, value in values.items() if value is not None}

    @property
    def layers(self) -> TrainedLayers:
        """The trained layers.

        Raises:
          ValueError: the study does not vary them.
        """
        if self.trained_layers is None:
            raise ValueError(f"{self} has no trained layers")
        return self.trained_layers


@dataclasses.dataclass(frozen=True)
class Tile:
    """A block of the grid of one variant: what a process takes, a chunk of the store, and what resume skips.

    Attributes:
      variant: the variant that it belongs to.
      axes: name to the values in the block, in their own types, in the order of the store's dimensions.
      seeds: the runs of every cell.
      within: of a part of a block, the block's axes, whose largest values its programs are made for; so its runs end
        as those of the whole block do, to the bit.
    """

    variant: Variant
    axes: Mapping[str, tuple[Any, ...]]
    seeds: range
    within: Mapping[str, tuple[Any, ...]] | None = None

    def __hash__(self) -> int:
        return hash((self.variant, tuple(self.axes.items()), self.seeds))

    @property
    def shape(self) -> tuple[int, ...]:
        """Number of values of every axis, and of seeds."""
        return (*map(len, self.axes.values()), len(self.seeds))

    @property
    def num_runs(self) -> int:
        """How many runs the tile has."""
        return math.prod(self.shape)

    def slices(self, grid: Mapping[str, Sequence[Any]]) -> tuple[slice, ...]:
        """Where the tile lies in the arrays of its variant, given the grid's axes, and its seeds where not from 0."""
        starts = [grid[name].index(values[0]) for name, values in self.axes.items()]
        starts.append(self.seeds.start - grid.get("seed", range(1))[0])
        return tuple(slice(start, start + size) for start, size in zip(starts, self.shape, strict=True))

    def cells(self) -> Iterator[dict[str, Any]]:
        """The values of the axes, a cell of the grid after the other, in the order of `shape`."""
        for values in itertools.product(*self.axes.values()):
            yield dict(zip(self.axes, values, strict=True))


class Flag(NamedTuple):
    """What a field of a study, or of `Execution`, says of its flag.

    Attributes:
      parser: from text to typed value and back.
      help: one phrase; names of values stay as they are.
      group: of flags, a heading of --help.
      decides: whether the value decides results, and so belongs to the science.
    """

    parser: Parser
    help: str
    group: str
    decides: bool


def flag(
    parser: Parser, text: str, default: Any = dataclasses.MISSING, *, group: str = "study", decides: bool = True
) -> Any:
    """A field of a dataclass that is a flag; without a default it must be given, or the study finds one."""
    return dataclasses.field(default=default, metadata={"flag": Flag(parser, text, group, decides)})


def flags_of(owner: Any) -> dict[str, tuple[Flag, Any]]:
    """The flags of a dataclass, by name, with their defaults (None where there is none)."""
    return {
        field.name: (field.metadata["flag"], None if field.default is dataclasses.MISSING else field.default)
        for field in dataclasses.fields(owner)
        if "flag" in field.metadata
    }


@dataclasses.dataclass(frozen=True, kw_only=True)
class Execution:
    """Where and how a study runs. None of it decides the science.

    Attributes:
      out: the output folder.
      block: cells of a tile along every axis; None for the store's own, or the study's default in a new one.
      num_processes: worker processes on a CPU, each pinned to a core; 0 for one per core; 1 works in this process.
      num_devices: devices that a process uses; 0 for all.
      lanes: runs that a device trains side by side; 0 for 8, 4 or 1 by size on a CPU, and 512 elsewhere.
      steps_per_chunk: steps between two looks at which lanes are done.
      compilation_cache: folder of compiled programs, "" for none.
      shard_index, shard_count: this run does every shard_count-th tile.
      coordinator: "auto" or "host:port", where the processes of many machines meet; "" for none.
      figures_only: draw from the store, and run nothing.
      refine: further runs, spent where they tell most about the boundary, see `sweeps.refinement`.
      repair: compute anew what is damaged.
    """

    out: Path = flag(Folder(), "output folder: new, empty, or one of an earlier run of the same study", group="output")
    block: tuple[int, ...] | None = flag(
        Block(),
        "cells of a tile, as 4x3 for 4 values of the first axis (d0) and 3 of the second (d1); a further number blocks "
        "the seeds. (default: what spans 8 inputs and 6 neurons, or what the folder was begun with)",
        None,
        group="tiles",
    )
    num_processes: int = flag(
        Whole(0, 4096),
        "worker processes on a CPU, each pinned to a core; 0 for one per core, 1 for none besides this one",
        0,
        group="tiles",
    )
    compilation_cache: str = flag(
        Parser(),
        "folder that compiled programs are kept in; empty for none",
        "~/.cache/relu_sgd/compiled",
        group="tiles",
    )
    shard_index: int = flag(Whole(0), "which shard of the tiles this run does, from 0 (job arrays)", 0, group="tiles")
    shard_count: int = flag(Whole(1), "number of shards that the tiles are dealt out to", 1, group="tiles")
    coordinator: str = flag(
        Coordinator(),
        "where processes that do one study together find each other through JAX, wait for each other at the start and "
        "at the end, and leave the report to the first: auto in a job of SLURM, Kubernetes, Open MPI or Cloud TPU, "
        "which says itself which shard is whose; or host:port of the process with --shard_index=0. JAX ends all of "
        "them when one dies; what is stored stays, and the same command goes on. Empty for shards that know nothing of "
        "each other",
        "",
        group="tiles",
    )
    figures_only: bool = flag(
        Switch(), "draw figures and summary from the results in --out, and run nothing", False, group="tiles"
    )
    refine: int = flag(
        Whole(0),
        "so many further runs at most, in groups of 8, where they tell most about the boundary at which the "
        "probability is 1/2 (docs/refinement.md); a larger number later goes on",
        0,
        group="refinement",
    )
    repair: bool = flag(
        Switch(),
        "compute what is damaged or deleted of the results in --out again, and make missing metadata anew; otherwise "
        "such results are refused",
        False,
        group="tiles",
    )
    num_devices: int = flag(
        Whole(0, 4096),
        "devices that one process uses (on a CPU, into how many it is divided); 0 for all that it sees",
        0,
        group="devices",
    )
    lanes: int = flag(
        Whole(0),
        "networks that a device trains side by side; 0 for 8, 4 or 1 by size on a CPU, and 512 elsewhere",
        0,
        group="devices",
    )
    steps_per_chunk: int = flag(
        Whole(1), "steps between two looks at which lanes are done, with more than one lane", 200, group="devices"
    )

    def __post_init__(self) -> None:
        if self.shard_index >= self.shard_count:
            raise UsageError(f"--shard_index: {self.shard_index} is not below --shard_count={self.shard_count}")
        if 0 < self.refine < 8:
            raise UsageError(f"--refine: {self.refine} is less than a group of 8 runs")
        if self.refine and self.shard_count > 1:
            raise UsageError(
                f"--refine: contradicts --shard_count={self.shard_count}, since it needs the results of all shards; "
                "give it without shards when they are done"
            )
        if self.repair and self.figures_only:
            raise UsageError("--repair: contradicts --figures_only, which computes nothing")
        self._check_coordinator()
        if self.num_devices and self.num_processes > 1:
            raise UsageError(f"--num_devices: contradicts --num_processes={self.num_processes}, where each has a core")
        if self.num_devices and not self.num_processes:
            object.__setattr__(self, "num_processes", 1)

    def _check_coordinator(self) -> None:
        if not self.coordinator:
            return
        for name in ("figures_only", "refine", "repair"):
            if getattr(self, name):
                raise UsageError(f"--coordinator: contradicts --{name}, which one process does alone")
        if self.coordinator != "auto" and self.shard_count == 1:
            raise UsageError(f"--coordinator: {self.coordinator} needs --shard_count above 1, and --shard_index")
        if self.coordinator == "auto" and self.shard_count != 1:
            raise UsageError("--shard_count: contradicts --coordinator=auto, which finds it")


class Claim(NamedTuple):
    """A statement, and what the data say of it.

    Attributes:
      source: where it is made, say "Section 6" or "Theorem 5.5".
      statement: the claim.
      result: what was found, with its counts or interval.
      holds: whether it agrees; None where the data do not decide.
    """

    source: str
    statement: str
    result: str
    holds: bool | None


class Report(NamedTuple):
    """What a study leaves beside its store; it is written in one place, `sweeps.reporting.write`.

    Attributes:
      tables: file name without its ending, "summary" first, to a table.
      figures: file name without its ending, the main one first, to a figure.
      claims: what the data say of published statements.
      text: for the terminal.
      float_formats: of tables whose numbers are not written with six digits.
    """

    tables: Mapping[str, "pandas.DataFrame"]
    figures: Mapping[str, "Figure"]
    claims: tuple[Claim, ...]
    text: str
    float_formats: Mapping[str, str] = {}


Results: TypeAlias = Mapping[Variant, "xr.Dataset"]


def _plain(value: Any) -> Any:
    """A value as JSON holds it."""
    return list(map(_plain, value)) if isinstance(value, tuple) else value


@dataclasses.dataclass(frozen=True, kw_only=True)
class Study:
    """An experiment. A subclass is a frozen dataclass whose flags are fields made by `flag`; see `make`.

    Attributes:
      name: of its command, `python -m sweeps.NAME`.
      reporter: "module:function", from (study, results) to a `Report`; imported when there is something to report.
      statuses: the codes that a finished run may have, with their meaning; 0 is a pending run's.
      execution_groups: the groups of flags of `Execution` that have an effect here.
      nan_allowed: whether a metric of a finished run may be NaN; otherwise that is a sign of damage.
      allocates: whether the study says itself which cells have runs, see `allocate`; then it has no seeds of its own.
      rule: the version of `allocate`, another whenever the same results have other next runs.
    """

    name: ClassVar[str]
    reporter: ClassVar[str]
    statuses: ClassVar[Mapping[int, str]] = {1: "done"}
    execution_groups: ClassVar[tuple[str, ...]] = ("output", "tiles", "devices")
    nan_allowed: ClassVar[bool] = False
    allocates: ClassVar[bool] = False
    rule: ClassVar[int] = 1

    # What a subclass says of itself.

    def variants(self) -> tuple[Variant, ...]:
        """The variants, a group of the store each."""
        return (Variant(),)

    def axes(self) -> dict[str, tuple[Any, ...]]:
        """Dimensions of the store besides the seeds, with the values along them; none for a study that takes seconds.

        Such a study has no store: its report computes.
        """
        return {}

    def seeds(self) -> range:
        """The runs of a cell."""
        return range(0 if self.allocates else getattr(self, "num_seeds", 1))

    @property
    def allocated_by(self) -> tuple[str, ...]:
        """The metrics that decide which cells have the next runs, for a study that `allocates`."""
        return ("status",)

    def allocate(self, made: Sequence[Made], unit: int) -> list[tuple[str, tuple[int, ...]]]:
        """Which cells have the next runs, for a study that `allocates`; it must follow from its arguments alone.

        Args:
          made: all runs so far.
          unit: runs that a cell has each time.

        Returns:
          The name of the variant and the place among the axes, once for every `unit` runs; nothing when all is done.
        """
        raise NotImplementedError(f"{type(self).__name__} allocates its runs, and so must have allocate")

    @property
    def metrics(self) -> Metrics:
        """What is kept of a run, the status among it; nothing in a study without axes."""
        return {}

    @property
    def records(self) -> tuple[str, tuple[int, ...]] | None:
        """What all metrics but the status are recorded along, and the values there."""
        return None

    @property
    def boundary_axis(self) -> str:
        """The axis along which the probability of success grows from below 1/2 to above it; "" for none."""
        return ""

    def succeeded(self, results: "xr.Dataset") -> np.ndarray:
        """Which runs are successes, over the axes and the seeds: those that converged."""
        return results["status"].values == Status.CONVERGED

    @property
    def arithmetic(self) -> str:
        """The precision that JAX computes in: "float32" or "float64"."""
        return "float64"

    def run_tile(self, tile: Tile, execution: Execution) -> tuple[dict[str, np.ndarray], Timings]:
        """The runs of a tile, in a worker process: every metric in the tile's order, and the seconds spent.

        Every study with axes has its own; one without has no tiles.
        """
        raise NotImplementedError(f"{type(self).__name__} has axes, and so must have run_tile")

    def cost(self, tile: Tile) -> float:
        """How long the tile takes at most, roughly, in any unit: the longest go first."""
        return tile.num_runs

    def default_block(self) -> tuple[int, ...]:
        """Cells of a tile along every axis, in a new store."""
        return (1,) * len(self.axes())

    def expected(self, made: Sequence[Made], unit: int) -> list[tuple[str, tuple[int, ...]]]:
        """What `allocate` will ask for until all is done, as far as can be guessed; for a forecast alone."""
        del made, unit
        return []

    def check(self) -> None:
        """Refuses values that contradict each other.

        Raises:
          UsageError: naming the flag.
        """

    def check_block(self, block: tuple[int, ...]) -> None:
        """Refuses tiles that the study cannot run.

        Raises:
          UsageError: naming --block.
        """

    def recorded(self) -> dict[str, Any]:
        """What a session writes down besides its devices and lanes: choices that are no science and may move the last
        bits of results.
        """
        return {}

    def check_code(self) -> None:
        """Refuses code of one's own that cannot be run, before anything is written.

        Raises:
          UsageError: naming the flag.
        """

    def finish(self, execution: Execution) -> None:
        """Whatever is to be done when nothing is pending any more, before the report."""

    # What follows from that.

    def __post_init__(self) -> None:
        self.check()

    @classmethod
    def make(cls, **given: Any) -> Self:
        """A study from values or their texts, with the defaults of what is not given.

        Raises:
          UsageError: there is no such flag, or its value is not allowed.
        """
        return cls(**cls.parsed(given))

    @classmethod
    def parsed(cls, given: Mapping[str, Any]) -> dict[str, Any]:
        """The given values in their types, checked as if they were flags."""
        known = flags_of(cls)
        values = {}
        for name, value in given.items():
            if name not in known:
                raise UsageError(f"--{name}: {cls.name} has no such flag")
            parser = known[name][0].parser
            try:
                values[name] = parser.parse(value if isinstance(value, str) else parser.serialize(value))
            except (ValueError, TypeError) as error:
                raise UsageError(f"--{name}: {error}") from error
        return values

    @classmethod
    def help_of(cls, name: str, text: str) -> str:
        """The help of a flag."""
        del name
        return text

    @classmethod
    def from_science(cls, attributes: Mapping[str, Any], **options: Any) -> Self:
        """The study whose results a store holds, from the store's attributes.

        Raises:
          UsageError: they are of another study.
        """
        science = dict(attributes["science"])
        if attributes.get("study", cls.name) != cls.name:
            raise UsageError(f"--out: these are results of {attributes['study']}, not of {cls.name}")
        known = {name for name, (spec, _) in flags_of(cls).items() if spec.decides}
        if stray := sorted(set(science) - known):
            raise UsageError(f"--out: these are results of another study than {cls.name}, with a {stray[0]}")
        values = {name: tuple(value) if isinstance(value, list) else value for name, value in science.items()}
        try:
            return cls.make(**cls.restored(values, attributes), **options)
        except TypeError as error:
            raise UsageError(f"--out: these are results of another study than {cls.name} ({error})") from error

    @classmethod
    def restored(cls, values: dict[str, Any], attributes: Mapping[str, Any]) -> dict[str, Any]:
        """What `make` is given, from the values of a store."""
        del attributes
        return values

    def science(self) -> dict[str, Any]:
        """Everything that decides the results, by flag, as JSON holds it."""
        return {name: _plain(getattr(self, name)) for name, (spec, _) in flags_of(self).items() if spec.decides}

    def replay(self) -> dict[str, Any]:
        """The values of the flags that repeat the study."""
        return {name: getattr(self, name) for name in self.science()}

    def flagfile(self, block: Sequence[int] = (), refine: int = 0) -> str:
        """The flag file that repeats the study, in tiles of `block` cells, with so many further runs."""
        values = flags.FlagValues()
        known = {**flags_of(type(self)), **flags_of(Execution)}
        execution = {"block": tuple(block), "refine": refine}
        for name, value in {**self.replay(), **{name: value for name, value in execution.items() if value}}.items():
            parser = known[name][0].parser
            flags.DEFINE(parser, name, parser.serialize(value), "", values, serializer=parser)
        return values.flags_into_string()

    @property
    def protocol_name(self) -> str:
        """The preset that the values come from, "" for none."""
        return getattr(self, "protocol", "")
