"""What studies share that train by a protocol: the flags of its values, presets, and what is refused."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Self

from relu_sgd.network import TrainedLayers
from sweeps.command.parsers import Choice, Number, OneOrSeveral, Parser, PerLayers, Several, Sizes, Whole
from sweeps.protocol import draw, laws
from sweeps.protocol.presets import (
    CHOICES,
    DESCENT_ONLY,
    INCLUSION_ONLY,
    PRESETS,
    SELECTIONS,
    SIGNATURES,
    WITHOUT_EFFECT,
    ByLayers,
    Conditions,
    Protocol,
    meanings,
)
from sweeps.study import Study, UsageError, Variant, flag, flags_of

__all__ = ["ProtocolStudy"]

_PER_LAYERS = "one value for every set-up, or a comma list in the order of --trained_layers"
_EVEN_WIDTHS = ("balanced_signs", "shuffled_signs", "appendix_g")


class Slope(Parser):
    """The slope of relu at 0: a number, or the name of a selection."""

    def parse(self, argument: str) -> float | str:
        """The number or name."""
        return argument if argument in SELECTIONS else Number(0, 1).parse(argument)


def _shown(parser: Parser, value: Any) -> str:
    """A preset's value, as the flag takes it."""
    if isinstance(value, ByLayers):
        value = value.hidden if value.hidden == value.both else (value.hidden, value.both)
    return parser.serialize(value)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProtocolStudy(Conditions, Study):
    """A study over (d0, d1) whose runs follow a protocol; the values that no flag gives are those of its preset.

    Attributes:
      protocol: name of the preset.
      trained_layers: the variants, with every value of `relu_at_zero` if there are several.
      d0, d1, num_seeds: the grid.
      output_law, learning_rate: a value for each of `trained_layers`.
      relu_at_zero: slope of relu at 0, or a tuple of slopes, a variant each.
    """

    protocol: str = flag(
        Choice(PRESETS),
        f"preset that every value below comes from unless its flag says otherwise: {', '.join(PRESETS)}",
        "as_written",
        group="protocol",
        decides=False,
    )
    trained_layers: tuple[TrainedLayers, ...] = flag(
        Several(Choice(CHOICES["trained_layers"])),
        f"set-ups, a comma list; {meanings('trained_layers')}",
        ("hidden", "both"),
        group="protocol",
    )
    d0: tuple[int, ...] = flag(
        Sizes(), "input dimensions: start:stop:step with both ends in, or a comma list", group="protocol"
    )
    d1: tuple[int, ...] = flag(
        Sizes(), "widths of the hidden layer: start:stop:step with both ends in, or a comma list", group="protocol"
    )
    num_seeds: int = flag(Whole(1), "runs per (d0, d1) cell", group="protocol")
    output_law: tuple[str, ...] = flag(
        PerLayers(laws.Law(CHOICES["output_law"], SIGNATURES["output_law"])),
        f"law of V0, {_PER_LAYERS}; {meanings('output_law')}",
        group="laws",
    )
    learning_rate: tuple[float, ...] = flag(
        PerLayers(Number(0, low_in=False)), f"step size on the objective, {_PER_LAYERS}", group="training"
    )
    relu_at_zero: Any = flag(
        OneOrSeveral(Slope()),
        "slope of relu at 0: a number in [0, 1] at exact zeros; random, drawn anew in [0, 1] at every step; "
        "minimum_norm, the Clarke set's least element, zeros up to rounding; a comma list runs a set-up for each",
        group="training",
    )

    @classmethod
    def presets(cls) -> Mapping[str, Mapping[str, Any]]:
        """The values that no flag gives, by the name of the preset."""
        return PRESETS

    @classmethod
    def make(cls, **given: Any) -> Self:
        """As `Study.make`; what is not given comes from the preset.

        Raises:
          UsageError: there is no such flag, its value is not allowed, or it has no effect beside another one.
        """
        given = cls.parsed(given)
        layers = given.get("trained_layers", flags_of(cls)["trained_layers"][1])
        known = flags_of(cls)
        values = {
            name: tuple(getattr(value, part) for part in layers) if isinstance(value, ByLayers) else value
            for name, value in cls.presets()[given.get("protocol", "as_written")].items()
            if name in known
        }
        for name in ("output_law", "learning_rate"):
            if len(own := given.get(name, layers)) not in (1, len(layers)):
                text = known[name][0].parser.serialize(own)
                raise UsageError(
                    f"--{name}: {text!r} has {len(own)} values for {len(layers)} set-ups in --trained_layers"
                )
            if len(own) == 1 and name in given:
                given[name] = own * len(layers)
        follows = given.get("dynamics", "descent") == "inclusion"
        if unused := sorted(set(given) & set(DESCENT_ONLY if follows else INCLUSION_ONLY) - {"dynamics"}):
            raise UsageError(f"--{unused[0]}: has no effect with{'' if follows else 'out'} --dynamics=inclusion")
        if follows:
            values["precision"] = "float64"
        if given.get("hidden_law") == "lecun" and "hidden_standard_deviation" in given:
            raise UsageError("--hidden_standard_deviation: has no effect with --hidden_law=lecun; give one of the two")
        for name, other in WITHOUT_EFFECT.items():
            if laws.is_own(given.get(name)) and other in given:
                raise UsageError(f"--{other}: has no effect beside --{name}={laws.plain_name(given[name])}")
        if laws.is_own(given.get("data_law")):
            values["label_law"] = "of_data"
        return cls(**{**values, **given})

    def check(self) -> None:
        """Refuses values that contradict each other.

        Raises:
          UsageError: naming the flag.
        """
        if self.label_law == "balanced" and self.num_samples % 2:
            raise UsageError(f"--num_samples: {self.num_samples} is odd, and --label_law=balanced needs an even number")
        if self.label_law == "of_data" and not laws.is_own(self.data_law):
            raise UsageError("--label_law: of_data needs a --data_law of your own, module:function")
        if laws.is_own(self.criterion) and self.dynamics == "inclusion":
            raise UsageError("--criterion: an own criterion is for --dynamics=descent")
        if self.batch_size > self.num_samples:
            raise UsageError(f"--batch_size: {self.batch_size} exceeds --num_samples={self.num_samples}")
        odd = [d1 for d1 in self.d1 if d1 % 2]
        for layers, law in zip(self.trained_layers, self.output_law, strict=True):
            if odd and law in _EVEN_WIDTHS:
                raise UsageError(f"--d1: {odd[0]} is odd, and --output_law={law} ({layers}) needs even widths")
            if law == "appendix_g" and self.d2 != 1:
                raise UsageError(f"--d2: {self.d2} does not fit --output_law=appendix_g ({layers}), which has d2 = 1")
        # Descent takes the labels as they are; the inclusion's criterion is a relative error.
        incomparable = self.label_law == "gaussian" or (
            self.dynamics == "inclusion" and (self.label_law == "of_data" or laws.is_own(self.label_law))
        )
        if self.criterion == "scaled_mean_squared_error" and incomparable:
            law = laws.plain_name(self.label_law)
            raise UsageError(
                f"--criterion: scaled_mean_squared_error is comparable for labels +-1 only, not --label_law={law}"
            )

    def check_code(self) -> None:
        """Draws by the laws that are the user's own, at the ends of the grid.

        Raises:
          UsageError: naming the flag.
        """
        for variant in self.variants():
            draw.try_own_laws(self.protocol_of(variant), [(self.d0[end], self.d1[end]) for end in (0, -1)])

    def variants(self) -> tuple[Variant, ...]:
        """The trained layers and, when several are asked for, the slope of relu at 0."""
        if not isinstance(self.relu_at_zero, tuple):
            return tuple(Variant(trained_layers=layers) for layers in self.trained_layers)
        return tuple(Variant(layers, slope) for layers in self.trained_layers for slope in self.relu_at_zero)

    def axes(self) -> dict[str, tuple[int, ...]]:
        """The grid of sizes."""
        return {"d0": self.d0, "d1": self.d1}

    @property
    def arithmetic(self) -> str:
        """The precision of everything."""
        return self.precision

    def protocol_of(self, variant: Variant) -> Protocol:
        """The protocol of the runs of a variant."""
        index = self.trained_layers.index(variant.layers)
        return Protocol(
            **{field.name: getattr(self, field.name) for field in dataclasses.fields(Conditions)},
            trained_layers=variant.layers,
            output_law=self.output_law[index],
            learning_rate=self.learning_rate[index],
            relu_at_zero=self.relu_at_zero if variant.relu_at_zero is None else variant.relu_at_zero,
        )

    def science(self) -> dict[str, Any]:
        """Everything that decides the results, by flag, as JSON holds it."""
        unused = {*(INCLUSION_ONLY if self.dynamics == "descent" else DESCENT_ONLY)}
        unused |= {field for law, field in WITHOUT_EFFECT.items() if laws.is_own(getattr(self, law))}
        return {name: value for name, value in super().science().items() if name not in unused}

    def replay(self) -> dict[str, Any]:
        """The values of the flags that repeat the study, even if a preset should change."""
        values = {"protocol": self.protocol, **super().replay()}
        if self.hidden_law == "lecun":
            del values["hidden_standard_deviation"]
        return values

    @classmethod
    def restored(cls, values: dict[str, Any], attributes: Mapping[str, Any]) -> dict[str, Any]:
        """What `make` is given, from the values of a store."""
        if values.get("hidden_law") == "lecun":
            del values["hidden_standard_deviation"]
        return {"protocol": attributes["protocol"], **values}

    @classmethod
    def help_of(cls, name: str, text: str) -> str:
        """The help of a flag, with the presets' values."""
        parser = flags_of(cls)[name][0].parser if name in flags_of(cls) else Parser()
        values = {preset: _shown(parser, fields[name]) for preset, fields in cls.presets().items() if name in fields}
        if not values:
            return text
        same = len(set(values.values())) == 1
        said = next(iter(values.values())) if same else "; ".join(f"{v} in {preset}" for preset, v in values.items())
        return f"{text}. (preset: {said})"
