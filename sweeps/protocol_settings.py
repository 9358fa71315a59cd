"""The flags of an experiment's science, read once into frozen dataclasses."""

import dataclasses
from collections.abc import Callable
from typing import Any

from absl import flags

from relu_sgd.network import TrainedLayers
from sweeps.protocol import CHOICES, DESCENT_ONLY, PRESETS, SELECTIONS, PerLayers, Protocol
from sweeps.settings import Execution, UsageError, choice, number, parse, parse_sizes, read_execution, several, whole

__all__ = ["Settings", "flagfile", "read"]


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


def _meanings(field: str) -> str:
    return "; ".join(f"{value}: {meaning}" for value, meaning in CHOICES[field].items())


def _slope(text: str) -> float | str:
    return text if text in SELECTIONS else number(0, 1)(text)


def _slopes(text: str) -> Any:
    values = several(_slope)(text)
    return values[0] if len(values) == 1 else values


_PER_LAYERS = "one value for every set-up, or a comma list in the order of --trained_layers"

# Flag to how its text becomes a value, and its help; the presets' values are appended as the default.
_PROTOCOL_FLAGS: dict[str, tuple[Callable[[str], Any], str]] = {
    "num_samples": (whole(1), "N, the number of samples"),
    "d2": (whole(1), "output dimension"),
    "d0": (parse_sizes, "input dimensions: start:stop:step with both ends in, or a comma list"),
    "d1": (parse_sizes, "widths of the hidden layer: start:stop:step with both ends in, or a comma list"),
    "num_seeds": (whole(1), "runs per (d0, d1) cell"),
    "base_seed": (whole(0, 2**32 - 1), "random seed of the whole sweep"),
    "data_law": (choice("data_law"), _meanings("data_law")),
    "data_radius": (choice("data_radius"), _meanings("data_radius")),
    "data_sharing": (choice("data_sharing"), _meanings("data_sharing")),
    "label_law": (choice("label_law"), _meanings("label_law")),
    "hidden_law": (choice("hidden_law"), _meanings("hidden_law")),
    "hidden_standard_deviation": (number(0, low_in=False), "standard deviation of the entries of W0"),
    "output_law": (choice("output_law"), f"law of V0, {_PER_LAYERS}; {_meanings('output_law')}"),
    "learning_rate": (number(0, low_in=False), f"step size on the objective, {_PER_LAYERS}"),
    "momentum": (number(0, 1, high_in=False), "v <- momentum v + gradient; 0 for none"),
    "normalization": (choice("normalization"), f"the objective; {_meanings('normalization')}"),
    "batch_size": (whole(0), "samples per step, drawn without replacement; 0 for all of them"),
    "relu_at_zero": (
        _slopes,
        "slope of relu at 0: a number in [0, 1] at exact zeros; random, drawn anew in [0, 1] at every step; minimum_norm, the "
        "Clarke set's least element, zeros up to rounding; a comma list runs a set-up for each",
    ),
    "criterion": (choice("criterion"), f"what counts as success; {_meanings('criterion')}"),
    "tolerance": (number(0, low_in=False), "tolerance of the criterion, dimensionless"),
    "stop": (choice("stop"), _meanings("stop")),
    "num_steps": (whole(1), "largest number of steps"),
    "zero_threshold": (number(0), "preactivations below it in absolute value count as numerical zeros"),
    "zero_multiple": (number(0), "preactivations below so many eps ||x_i|| ||w_j|| count as zeros to rounding"),
    "dynamics": (choice("dynamics"), _meanings("dynamics")),
    "flow_time": (number(0, low_in=False), "with --dynamics=inclusion: how long the flow of L is followed at most"),
    "path_tolerance": (
        number(1e-12, 1),
        "with --dynamics=inclusion: largest estimated error, relative to the path's length, see relu_sgd.inclusion.solve",
    ),
    "precision": (choice("precision"), "floating-point type of everything: float32 or float64"),
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
    "protocol", "as_written", list(PRESETS), "preset that every value below comes from unless its flag says otherwise."
)
flags.DEFINE_string("trained_layers", "hidden,both", f"set-ups, a comma list. {_meanings('trained_layers')}.")
for _name, (_, _help) in _PROTOCOL_FLAGS.items():
    flags.DEFINE_string(_name, None, f"{_help}. (preset: {_defaults(_name)})")


def _per_layers(
    name: str, parser: Callable[[str], Any], text: str, layers: tuple[str, ...], preset: PerLayers
) -> PerLayers:
    values = [parse(name, parser, part) for part in text.split(",")]
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


def read(values: flags.FlagValues, adapt: Callable[[Protocol], Protocol] = lambda preset: preset) -> Settings:
    """The settings that the flags describe.

    Args:
      values: the parsed flags.
      adapt: what becomes of a preset before flags override it.

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
    layers = parse("trained_layers", several(choice("trained_layers")), values.trained_layers)
    preset = adapt(PRESETS[values.protocol])
    overrides: dict[str, Any] = {}
    for name in given:
        parser = _PROTOCOL_FLAGS[name][0]
        old = getattr(preset, name)
        if isinstance(old, PerLayers):
            overrides[name] = _per_layers(name, parser, str(values[name].value), layers, old)
        else:
            overrides[name] = parse(name, parser, str(values[name].value))
    protocol = dataclasses.replace(preset, **overrides)
    if protocol.dynamics == "inclusion":
        if unused := sorted(given & set(DESCENT_ONLY)):
            raise UsageError(f"--{unused[0]}: has no effect with --dynamics=inclusion")
        if "precision" not in given:
            protocol = dataclasses.replace(protocol, precision="float64")
    elif unused := sorted(given & {"flow_time", "path_tolerance"}):
        raise UsageError(f"--{unused[0]}: has no effect without --dynamics=inclusion")
    _check_protocol(protocol, layers, given)

    return Settings(protocol, layers, read_execution(values))


def flagfile(protocol_name: str, science: dict[str, Any]) -> str:
    """Flags that repeat a sweep exactly, even if a preset should change: every value is written out."""
    lines = [f"--protocol={protocol_name}"]
    for name, value in science.items():
        text = ",".join(str(part) for part in value) if isinstance(value, list) else str(value)
        lines.append(f"--{name}={text}")
    return "\n".join(lines) + "\n"
