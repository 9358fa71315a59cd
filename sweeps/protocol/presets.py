"""An experiment's science as data: the paper's Section 6 as written, and as the authors' released code runs it.

The two differ in loss, success criterion, learning rate, data law, label law, output law, sharing of the data and
stopping; the differences decide the results, so every figure names the protocol that it shows.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from relu_sgd.network import Normalization, TrainedLayers
from sweeps.command.parsers import Choice, Number, Whole
from sweeps.protocol.laws import Law
from sweeps.study import flag

__all__ = [
    "CHOICES",
    "DESCENT_ONLY",
    "INCLUSION_ONLY",
    "PRESETS",
    "SELECTIONS",
    "SIGNATURES",
    "WITHOUT_EFFECT",
    "ByLayers",
    "Conditions",
    "Protocol",
    "meanings",
    "preset",
    "relative_tolerance",
    "relative_tolerances",
]

# The allowed values of every field that names a law or a rule, with what each means.
CHOICES: dict[str, dict[str, str]] = {
    "trained_layers": {"hidden": "W is trained and V stays fixed", "both": "W and V are trained"},
    "data_law": {
        "sphere": "rows of X uniform on the sphere",
        "cube": "rows of X uniform in the cube [-1, 1]^d0, then scaled to the radius",
    },
    "data_radius": {"1": "rows of norm 1", "sqrt_d0": "rows of norm sqrt(d0) (Assumption 4.1)"},
    "data_sharing": {
        "run": "every run draws its own data set",
        "cell": "the runs of a (d0, d1) cell share one data set",
    },
    "label_law": {
        "balanced": "half of the labels +1, half -1 (N must be even)",
        "random_signs": "independent +-1",
        "gaussian": "independent standard normal",
        "of_data": "those that an own --data_law returns beside X",
    },
    "hidden_law": {
        "normal": "W0 independent normal entries, of standard deviation --hidden_standard_deviation",
        "lecun": "W0 independent N(0, 1/d0) entries",
    },
    "output_law": {
        "normal": "V0 independent N(0, 1/d1) entries",
        "uniform": "V0 independent entries uniform in +-1/sqrt(d1)",
        "balanced_signs": "first half of V0 +1/sqrt(d1), second half -1/sqrt(d1) (d1 must be even)",
        "shuffled_signs": "a random half of V0 +1/sqrt(d1), the rest -1/sqrt(d1) (d1 must be even)",
        "appendix_g": "as balanced_signs, with ||Y|| / sqrt(N d1) for 1/sqrt(d1) (Assumption G.1)",
    },
    "normalization": {
        "half_sum": "1/2 the sum of squared errors, the paper's L",
        "mean": "mean squared error",
    },
    "criterion": {
        "relative_error": "||Y - Yhat||_F / ||Y||_F < tolerance (Section 6.2)",
        "scaled_mean_squared_error": "MSE / sqrt(N) < tolerance (released code)",
    },
    "stop": {
        "first_passage": "stop at the first network that meets the criterion",
        "never": "take every step, and judge the last network",
        "decided": "as first_passage, and stop where the last steps move around a local minimum that is proved",
    },
    "dynamics": {
        "descent": "gradient descent (14)",
        "inclusion": "the differential inclusion (3), the limit of descent as the step goes to 0",
    },
    "precision": {"float32": "32-bit", "float64": "64-bit"},
}

# Where a function of one's own, module:function, may stand for a choice: the arguments that it is called with.
SIGNATURES = {
    "data_law": "key, num_samples, d0",
    "label_law": "key, X",
    "hidden_law": "key, d0, d1",
    "output_law": "key, d1",
    "criterion": "losses, problem",
}
# What decides nothing beside such a function.
WITHOUT_EFFECT = {
    "data_law": "data_radius",
    "hidden_law": "hidden_standard_deviation",
    "criterion": "tolerance",
}
# Choices of the slope of relu at 0 that are not a number.
SELECTIONS = ("random", "minimum_norm")
# What decides nothing when the inclusion is followed, and what decides nothing when it is not.
DESCENT_ONLY = ("learning_rate", "momentum", "normalization", "batch_size", "relu_at_zero", "stop", "num_steps")
INCLUSION_ONLY = ("dynamics", "flow_time", "path_tolerance")


@dataclasses.dataclass(frozen=True)
class ByLayers:
    """A value for each choice of trained layers: `hidden` when W alone is trained, `both` when W and V are."""

    hidden: Any
    both: Any


def _choice(field: str, *, group: str) -> Any:
    parser = Law(CHOICES[field], SIGNATURES[field]) if field in SIGNATURES else Choice(CHOICES[field])
    return flag(parser, meanings(field), group=group)


def meanings(field: str) -> str:
    """The allowed values of a field, with what each means."""
    own = f"; or module:function, of ({SIGNATURES[field]})" if field in SIGNATURES else ""
    return "; ".join(f"{value}: {meaning}" for value, meaning in CHOICES[field].items()) + own


@dataclasses.dataclass(frozen=True, kw_only=True)
class Conditions:
    """What decides a run's result besides its size, seed and variant.

    Attributes:
      num_samples: N.
      d2: output dimension.
      base_seed: random seed of the whole sweep.
      data_law, data_radius, data_sharing, label_law, hidden_law, normalization, criterion, stop, precision, dynamics:
        see `CHOICES`; where `SIGNATURES` has the field, or an own function, see `sweeps.protocol.laws`.
      hidden_standard_deviation: of the entries of W0 under hidden_law "normal".
      momentum: v <- momentum v + gradient, theta <- theta - learning_rate v.
      batch_size: samples per step; 0 for all of them.
      tolerance: of the criterion.
      num_steps: largest number of updates.
      zero_threshold: preactivations below it in absolute value are numerical zeros.
      zero_multiple: preactivations below zero_multiple eps ||x_i|| ||w_j|| are zeros to rounding.
      flow_time: how long the inclusion is followed at most.
      path_tolerance: see `relu_sgd.inclusion.solve`.
    """

    num_samples: int = flag(Whole(1), "N, the number of samples", group="laws")
    d2: int = flag(Whole(1), "output dimension", group="laws")
    base_seed: int = flag(Whole(0, 2**32 - 1), "random seed of the whole sweep", group="laws")
    data_law: str = _choice("data_law", group="laws")
    data_radius: str = _choice("data_radius", group="laws")
    data_sharing: str = _choice("data_sharing", group="laws")
    label_law: str = _choice("label_law", group="laws")
    hidden_law: str = _choice("hidden_law", group="laws")
    hidden_standard_deviation: float = flag(
        Number(0, low_in=False), "standard deviation of the entries of W0", group="laws"
    )
    momentum: float = flag(Number(0, 1, high_in=False), "v <- momentum v + gradient; 0 for none", group="training")
    normalization: Normalization = flag(
        Choice(CHOICES["normalization"]), f"the objective; {meanings('normalization')}", group="training"
    )
    batch_size: int = flag(Whole(0), "samples per step, drawn without replacement; 0 for all of them", group="training")
    criterion: str = flag(
        Law(CHOICES["criterion"], SIGNATURES["criterion"]),
        f"what counts as success; {meanings('criterion')}",
        group="training",
    )
    tolerance: float = flag(Number(0, low_in=False), "tolerance of the criterion, dimensionless", group="training")
    stop: str = _choice("stop", group="training")
    num_steps: int = flag(Whole(1), "largest number of steps", group="training")
    zero_threshold: float = flag(
        Number(0), "preactivations below it in absolute value count as numerical zeros", group="training"
    )
    zero_multiple: float = flag(
        Number(0), "preactivations below so many eps ||x_i|| ||w_j|| count as zeros to rounding", group="training"
    )
    dynamics: str = _choice("dynamics", group="training")
    flow_time: float = flag(
        Number(0, low_in=False),
        "with --dynamics=inclusion: how long the flow of L is followed at most",
        group="training",
    )
    path_tolerance: float = flag(
        Number(1e-12, 1),
        "with --dynamics=inclusion: largest estimated error, relative to the path's length, see relu_sgd.inclusion.solve",
        group="training",
    )
    precision: str = flag(
        Choice(CHOICES["precision"]), "floating-point type of everything: float32 or float64", group="training"
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Protocol(Conditions):
    """Everything that decides a run's result, apart from its (d0, d1) and seed: the conditions, and one variant.

    Attributes:
      trained_layers: what is trained.
      output_law: law of V0, see `CHOICES`, or an own function.
      learning_rate: step size on the objective.
      relu_at_zero: slope of relu at 0: a number in [0, 1], or one of `SELECTIONS`.
    """

    trained_layers: TrainedLayers
    output_law: str
    learning_rate: float
    relu_at_zero: float | str


_AS_WRITTEN: dict[str, Any] = dict(
    num_samples=200,
    d2=1,
    d0=tuple(range(2, 61, 2)),
    d1=tuple(range(2, 61, 2)),
    num_seeds=10,
    base_seed=0,
    data_law="sphere",
    data_radius="1",
    data_sharing="run",
    label_law="balanced",
    hidden_law="normal",
    hidden_standard_deviation=1.0,
    output_law=ByLayers(hidden="balanced_signs", both="normal"),
    learning_rate=ByLayers(hidden=0.15, both=0.002),
    momentum=0.9,
    normalization="half_sum",
    batch_size=0,
    relu_at_zero=0.0,
    criterion="relative_error",
    tolerance=2.5e-3,
    stop="first_passage",
    num_steps=50_000,
    zero_threshold=1e-8,
    zero_multiple=8.0,
    dynamics="descent",
    flow_time=750.0,
    path_tolerance=3e-3,
    precision="float32",
)

# The grid of Figure 2 and everything else, by the name of its flag; what depends on the trained layers is `ByLayers`.
PRESETS: dict[str, Mapping[str, Any]] = {
    "as_written": _AS_WRITTEN,
    "as_released": _AS_WRITTEN
    | dict(
        data_law="cube",
        data_sharing="cell",
        label_law="random_signs",
        output_law=ByLayers(hidden="shuffled_signs", both="uniform"),
        learning_rate=ByLayers(hidden=0.15, both=0.15),
        normalization="mean",
        criterion="scaled_mean_squared_error",
        stop="never",
        num_steps=49_999,
    ),
}


def preset(name: str, trained_layers: TrainedLayers, **changes: Any) -> Protocol:
    """A preset's protocol for one choice of trained layers, with some values changed."""
    names = {field.name for field in dataclasses.fields(Protocol)}
    values = {
        field: getattr(value, trained_layers) if isinstance(value, ByLayers) else value
        for field, value in PRESETS[name].items()
        if field in names
    }
    return Protocol(**{**values, "trained_layers": trained_layers, **changes})


def relative_tolerance(criterion: str, tolerance: float, num_samples: int) -> float:
    """A criterion as a bound on the relative error, for N samples with labels +-1.

    "scaled_mean_squared_error" bounds MSE / sqrt(N), with MSE = ||Y - Yhat||^2 / (N d2) and ||Y||^2 = N d2, so the relative
    error is below sqrt(tolerance sqrt(N)): 0.188 at N = 200.
    """
    return tolerance if criterion == "relative_error" else math.sqrt(tolerance * math.sqrt(num_samples))


def relative_tolerances(num_samples: int) -> dict[str, float]:
    """Every preset's criterion as a bound on the relative error: see `relative_tolerance`."""
    return {
        name: relative_tolerance(values["criterion"], values["tolerance"], num_samples)
        for name, values in PRESETS.items()
    }
