"""Flags, read once into frozen dataclasses. Bad input is a UsageError whose message is one line."""

import dataclasses
import itertools
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from absl import flags

from relu_sgd.network import TrainedLayers
from sweeps.protocol import CHOICES, PRESETS, PerLayers, Protocol
from sweeps.statistics import INTERVALS

__all__ = ["Execution", "Settings", "UsageError", "flagfile", "parse_sizes", "read"]


class UsageError(Exception):
    """What the user asked for is not possible; the message is one line that says why."""


@dataclasses.dataclass(frozen=True)
class Execution:
    """Where and how a sweep runs. None of it decides the science.

    Attributes:
      out: the output folder.
      block: (d0, d1) cells of a tile; None for the store's own, or `plan.default_block` in a new one.
      num_processes: worker processes on a CPU, each pinned to a core; 0 for one per core; 1 works in this process.
      num_devices: devices that a process uses; 0 for all.
      lanes: runs that a device trains side by side; 0 for 8 or, if large, 1 on a CPU and 512 elsewhere.
      steps_per_chunk: steps between two looks at which lanes are done.
      compilation_cache: folder of compiled programs, "" for none.
      shard_index, shard_count: this run does every shard_count-th tile.
      interval: method of the confidence intervals.
      figures_only: draw from the store, and run nothing.
    """

    out: Path
    block: tuple[int, int] | None
    num_processes: int
    num_devices: int
    lanes: int
    steps_per_chunk: int
    compilation_cache: str
    shard_index: int
    shard_count: int
    interval: str
    figures_only: bool


@dataclasses.dataclass(frozen=True)
class Settings:
    """What the flags said.

    Attributes:
      protocol: the preset with every override applied.
      trained_layers: the set-ups.
      execution: where and how.
    """

    protocol: Protocol
    trained_layers: tuple[TrainedLayers, ...]
    execution: Execution


def parse_sizes(text: str) -> tuple[int, ...]:
    """Sizes from "start:stop:step" with both ends in, or from a comma list.

    Raises:
      ValueError: the sizes are none, not whole, not positive or not increasing, or the step misses the end.
    """
    try:
        if ":" in text:
            parts = [int(part) for part in text.split(":")]
            if len(parts) not in (2, 3):
                raise ValueError(f"{text!r} is not start:stop or start:stop:step")
            start, stop, step = (*parts, 1)[:3]
        else:
            sizes = tuple(int(part) for part in text.split(","))
    except ValueError as error:
        if "is not start" in str(error):
            raise
        raise ValueError(f"{text!r} is neither start:stop:step nor a comma list of whole numbers") from error
    if ":" in text:
        if step < 1:
            raise ValueError(f"the step of {text!r} must be at least 1")
        if stop < start:
            raise ValueError(f"{text!r} is empty: its end lies before its start")
        if (stop - start) % step:
            raise ValueError(f"{text!r} does not reach its end, and both ends belong to a range")
        sizes = tuple(range(start, stop + 1, step))
    if sizes[0] < 1:
        raise ValueError(f"sizes must be at least 1, got {sizes[0]}")
    if any(b <= a for a, b in itertools.pairwise(sizes)):
        raise ValueError(f"sizes must increase without repeats, got {text!r}")
    return sizes


def _number(low: float, high: float = math.inf, *, low_in: bool = True, high_in: bool = True) -> Callable[[str], Any]:
    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError as error:
            raise ValueError(f"{text!r} is not a number") from error
        fits = (value >= low if low_in else value > low) and (value <= high if high_in else value < high)
        if not fits or not math.isfinite(value):
            ends = f"{'[' if low_in else '('}{low:g}, {high:g}{']' if high_in and high < math.inf else ')'}"
            raise ValueError(f"{text} is not a finite number in {ends}")
        return value

    return parse


def _whole(low: int, high: int = 2**31 - 1) -> Callable[[str], int]:
    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError as error:
            raise ValueError(f"{text!r} is not a whole number") from error
        if not low <= value <= high:
            raise ValueError(f"{text} is not a whole number in [{low}, {high}]")
        return value

    return parse


def _choice(field: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text not in CHOICES[field]:
            raise ValueError(f"{text!r} is not one of {', '.join(CHOICES[field])}")
        return text

    return parse


def _meanings(field: str) -> str:
    return "; ".join(f"{value}: {meaning}" for value, meaning in CHOICES[field].items())


_PER_LAYERS = "one value for every set-up, or a comma list in the order of --trained_layers"

# Flag to how its text becomes a value, and its help; the presets' values are appended as the default.
_PROTOCOL_FLAGS: dict[str, tuple[Callable[[str], Any], str]] = {
    "num_samples": (_whole(1), "N, the number of samples"),
    "d2": (_whole(1), "output dimension"),
    "d0": (parse_sizes, "input dimensions: start:stop:step with both ends in, or a comma list"),
    "d1": (parse_sizes, "widths of the hidden layer: start:stop:step with both ends in, or a comma list"),
    "num_seeds": (_whole(1), "runs per (d0, d1) cell"),
    "base_seed": (_whole(0, 2**32 - 1), "random seed of the whole sweep"),
    "data_law": (_choice("data_law"), _meanings("data_law")),
    "data_radius": (_choice("data_radius"), _meanings("data_radius")),
    "data_sharing": (_choice("data_sharing"), _meanings("data_sharing")),
    "label_law": (_choice("label_law"), _meanings("label_law")),
    "hidden_law": (_choice("hidden_law"), _meanings("hidden_law")),
    "hidden_standard_deviation": (_number(0, low_in=False), "standard deviation of the entries of W0"),
    "output_law": (_choice("output_law"), f"law of V0, {_PER_LAYERS}; {_meanings('output_law')}"),
    "learning_rate": (_number(0, low_in=False), f"step size on the objective, {_PER_LAYERS}"),
    "momentum": (_number(0, 1, high_in=False), "v <- momentum v + gradient; 0 for none"),
    "normalization": (_choice("normalization"), f"the objective; {_meanings('normalization')}"),
    "batch_size": (_whole(0), "samples per step, drawn without replacement; 0 for all of them"),
    "relu_at_zero": (_number(0, 1), "slope of relu at exactly 0"),
    "criterion": (_choice("criterion"), f"what counts as success; {_meanings('criterion')}"),
    "tolerance": (_number(0, low_in=False), "tolerance of the criterion, dimensionless"),
    "stop": (_choice("stop"), _meanings("stop")),
    "num_steps": (_whole(1), "largest number of steps"),
    "zero_threshold": (_number(0), "preactivations below it in absolute value count as numerical zeros"),
    "zero_multiple": (_number(0), "preactivations below so many eps ||x_i|| ||w_j|| count as zeros to rounding"),
    "precision": (_choice("precision"), "floating-point type of everything: float32 or float64"),
}

_DEFAULT_CACHE = "~/.cache/relu_sgd/compiled"

# Flag to parser, default and help.
_EXECUTION_FLAGS: dict[str, tuple[Callable[[str], Any], str, str]] = {
    "num_processes": (
        _whole(0, 4096),
        "0",
        "worker processes on a CPU, each pinned to a core; 0 for one per core, 1 for none besides this one",
    ),
    "num_devices": (
        _whole(0, 4096),
        "0",
        "devices that one process uses (on a CPU, into how many it is divided); 0 for all that it sees",
    ),
    "lanes": (
        _whole(0),
        "0",
        "networks that a device trains side by side; 0 for 8 or, if large, 1 on a CPU and 512 elsewhere",
    ),
    "steps_per_chunk": (_whole(1), "100", "steps between two looks at which lanes are done, with more than one lane"),
    "shard_index": (_whole(0), "0", "which shard of the tiles this run does, from 0 (job arrays)"),
    "shard_count": (_whole(1), "1", "number of shards that the tiles are dealt out to"),
}


def _shown(value: Any) -> str:
    if isinstance(value, PerLayers):
        return _shown(value.hidden) if value.hidden == value.both else f"{value.hidden} hidden, {value.both} both"
    if isinstance(value, tuple):
        return f"{value[0]}:{value[-1]}:{value[1] - value[0]}"
    return str(value)


def _defaults(field: str) -> str:
    values = {name: _shown(getattr(preset, field)) for name, preset in PRESETS.items()}
    if len(set(values.values())) == 1:
        return next(iter(values.values()))
    return "; ".join(f"{value} in {name}" for name, value in values.items())


flags.DEFINE_enum(
    "protocol", "as_written", list(PRESETS), "Preset that every value below comes from unless its flag says otherwise."
)
flags.DEFINE_string("trained_layers", "hidden,both", f"Set-ups, a comma list. {_meanings('trained_layers')}.")
for _name, (_, _help) in _PROTOCOL_FLAGS.items():
    flags.DEFINE_string(_name, None, f"{_help[0].upper()}{_help[1:]}. (preset: {_defaults(_name)})")
flags.DEFINE_string("out", None, "Output folder: new, empty, or one of an earlier run of the same sweep.")
flags.DEFINE_string(
    "block",
    None,
    "Cells of a tile, as 4x3 for 4 values of d0 and 3 of d1. (default: what spans 8 inputs and 6 neurons, or what the folder was begun with)",
)
for _name, (_, _default, _help) in _EXECUTION_FLAGS.items():
    flags.DEFINE_string(_name, _default, f"{_help[0].upper()}{_help[1:]}.")
flags.DEFINE_string("compilation_cache", _DEFAULT_CACHE, "Folder that compiled programs are kept in; empty for none.")
flags.DEFINE_enum(
    "interval",
    "wilson",
    list(INTERVALS),
    f"Confidence interval of the probabilities, 95 percent. {'; '.join(f'{k}: {v}' for k, v in INTERVALS.items())}.",
)
flags.DEFINE_boolean("figures_only", False, "Draw figures and summary from the results in --out, and run nothing.")


def _parse(name: str, parse: Callable[[str], Any], text: str) -> Any:
    try:
        return parse(text)
    except ValueError as error:
        raise UsageError(f"--{name}: {error}") from error


def _trained_layers(text: str) -> tuple[TrainedLayers, ...]:
    layers = tuple(_parse("trained_layers", _choice("trained_layers"), part) for part in text.split(","))
    if len(set(layers)) != len(layers):
        raise UsageError(f"--trained_layers: {text!r} repeats a set-up")
    return layers


def _per_layers(
    name: str, parse: Callable[[str], Any], text: str, layers: tuple[str, ...], preset: PerLayers
) -> PerLayers:
    values = [_parse(name, parse, part) for part in text.split(",")]
    if len(values) == 1:
        values = values * len(layers)
    if len(values) != len(layers):
        raise UsageError(f"--{name}: {text!r} has {len(values)} values for {len(layers)} set-ups in --trained_layers")
    return dataclasses.replace(preset, **dict(zip(layers, values, strict=True)))


def _check_protocol(protocol: Protocol, layers: tuple[str, ...], given: set[str]) -> None:
    num_samples = protocol.num_samples
    if protocol.label_law == "balanced" and num_samples % 2:
        raise UsageError(f"--num_samples: {num_samples} is odd, and --label_law=balanced needs an even number")
    if protocol.batch_size > num_samples:
        raise UsageError(f"--batch_size: {protocol.batch_size} exceeds --num_samples={num_samples}")
    for setup in layers:
        law = getattr(protocol.output_law, setup)
        odd = [d1 for d1 in protocol.d1 if d1 % 2]
        if odd and law in ("balanced_signs", "shuffled_signs", "appendix_g"):
            raise UsageError(f"--d1: {odd[0]} is odd, and --output_law={law} ({setup}) needs even widths")
        if law == "appendix_g" and protocol.d2 != 1:
            raise UsageError(f"--d2: {protocol.d2} does not fit --output_law=appendix_g ({setup}), which has d2 = 1")
    if protocol.hidden_law == "lecun" and "hidden_standard_deviation" in given:
        raise UsageError("--hidden_standard_deviation: has no effect with --hidden_law=lecun; give one of the two")
    if protocol.criterion == "scaled_mean_squared_error" and protocol.label_law == "gaussian":
        raise UsageError(
            "--criterion: scaled_mean_squared_error is comparable for labels +-1 only, not --label_law=gaussian"
        )


def _block(text: str) -> tuple[int, int]:
    parts = text.split("x")
    if len(parts) != 2 or not all(part.isdigit() and int(part) for part in parts):
        raise UsageError(f"--block: {text!r} is not of the form 4x3")
    return int(parts[0]), int(parts[1])


def read(values: flags.FlagValues) -> Settings:
    """The settings that the flags describe.

    Raises:
      UsageError: a value is not allowed, or flags contradict each other.
    """
    given = {name for name in _PROTOCOL_FLAGS if values[name].value is not None}
    if not values.out:
        raise UsageError("--out: say where the results go")
    if values.figures_only:
        extra = sorted(given | {name for name in ("protocol", "trained_layers", "block") if values[name].present})
        if extra:
            raise UsageError(
                f"--{extra[0]}: contradicts --figures_only, which takes everything from the results in --out"
            )
    layers = _trained_layers(values.trained_layers)
    preset = PRESETS[values.protocol]
    overrides: dict[str, Any] = {}
    for name in given:
        parse = _PROTOCOL_FLAGS[name][0]
        old = getattr(preset, name)
        if isinstance(old, PerLayers):
            overrides[name] = _per_layers(name, parse, str(values[name].value), layers, old)
        else:
            overrides[name] = _parse(name, parse, str(values[name].value))
    protocol = dataclasses.replace(preset, **overrides)
    _check_protocol(protocol, layers, given)

    numbers = {name: _parse(name, spec[0], str(values[name].value)) for name, spec in _EXECUTION_FLAGS.items()}
    if numbers["shard_index"] >= numbers["shard_count"]:
        raise UsageError(f"--shard_index: {numbers['shard_index']} is not below --shard_count={numbers['shard_count']}")
    if numbers["num_devices"]:
        if numbers["num_processes"] > 1:
            raise UsageError(
                f"--num_devices: contradicts --num_processes={numbers['num_processes']}, where each has a core"
            )
        numbers["num_processes"] = 1
    execution = Execution(
        out=Path(values.out),
        block=None if values.block is None else _block(values.block),
        compilation_cache=values.compilation_cache,
        interval=values.interval,
        figures_only=values.figures_only,
        **numbers,
    )
    return Settings(protocol, layers, execution)


def flagfile(protocol_name: str, science: dict[str, Any], block: Sequence[int]) -> str:
    """Flags that repeat a sweep exactly, even if a preset should change: every value is written out."""
    lines = [f"--protocol={protocol_name}", f"--block={block[0]}x{block[1]}"]
    for name, value in science.items():
        text = ",".join(str(part) for part in value) if isinstance(value, list) else str(value)
        lines.append(f"--{name}={text}")
    return "\n".join(lines) + "\n"
