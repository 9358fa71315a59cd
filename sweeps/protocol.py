"""An experiment's science as data: the paper's Section 6 as written, and as the authors' released code runs it.

The two differ in loss, success criterion, learning rate, data law, label law, output law, sharing of the data and
stopping; the differences decide the results, so every figure names the protocol that it shows.
"""

import dataclasses
import hashlib
import json
import math
from typing import Any, cast, get_args

from relu_sgd.descent import Stop
from relu_sgd.network import Normalization, TrainedLayers

__all__ = [
    "CHOICES",
    "DESCENT_ONLY",
    "PRESETS",
    "SELECTIONS",
    "PerLayers",
    "Protocol",
    "Trajectories",
    "fingerprint",
    "for_layers",
    "for_setup",
    "parts_of",
    "relative_tolerance",
    "relative_tolerances",
    "science",
    "setups",
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
    },
    "dynamics": {
        "descent": "gradient descent (14)",
        "inclusion": "the differential inclusion (3), the limit of descent as the step goes to 0",
    },
    "precision": {"float32": "32-bit", "float64": "64-bit"},
}

# Choices of the slope of relu at 0 that are not a number.
SELECTIONS = ("random", "minimum_norm")
# What decides nothing when the inclusion is followed, and what decides nothing when it is not.
DESCENT_ONLY = ("learning_rate", "momentum", "normalization", "batch_size", "relu_at_zero", "stop", "num_steps")
INCLUSION_ONLY = ("dynamics", "flow_time", "path_tolerance")


@dataclasses.dataclass(frozen=True)
class PerLayers:
    """A value for each set-up: `hidden` when W alone is trained, `both` when W and V are."""

    hidden: Any
    both: Any


@dataclasses.dataclass(frozen=True)
class Trajectories:
    """Figure 3: the networks whose trajectories are recorded, and how.

    Attributes:
      d0: input dimension.
      d1: widths; N, floor(N^1.25) and floor(N^1.5) at N = 200.
      num_seeds: runs per network.
      num_steps: updates per run.
      measure_every: updates between two records.
      learning_rate: by trained layers.
      differential_change: what Figures 3e, 3j show; "jacobian_operator_norm" is the operator norm of the change of the
        Jacobian DY, relative to DY (the paper's text), "loss_gradient" the largest layer's spectral norm of the change
        of the loss gradient, relative to that of the gradient (the released code).
    """

    d0: int
    d1: tuple[int, ...]
    num_seeds: int
    num_steps: int
    measure_every: int
    learning_rate: PerLayers
    differential_change: str


@dataclasses.dataclass(frozen=True)
class Protocol:
    """Everything that decides a run's result, apart from its (d0, d1) and seed.

    Attributes:
      name: of the preset that the values come from.
      num_samples: N.
      d2: output dimension.
      d0, d1: the grid of Figure 2.
      num_seeds: runs per cell.
      base_seed: random seed of the whole sweep.
      data_law, data_radius, data_sharing, label_law, hidden_law, output_law, normalization, criterion, stop, precision:
        see `CHOICES`; `output_law` and `learning_rate` by trained layers.
      hidden_standard_deviation: of the entries of W0 under hidden_law "normal".
      learning_rate, momentum: v <- momentum v + gradient, theta <- theta - learning_rate v.
      tolerance: of the criterion.
      num_steps: largest number of updates.
      batch_size: samples per step; 0 for all of them.
      relu_at_zero: slope of relu at 0: a number in [0, 1], one of `SELECTIONS`, or a tuple of them, a set-up for each.
      dynamics: see `CHOICES`.
      flow_time: how long the inclusion is followed at most.
      path_tolerance: see `relu_sgd.inclusion.solve`.
      zero_threshold: preactivations below it in absolute value are numerical zeros.
      zero_multiple: preactivations below zero_multiple eps ||x_i|| ||w_j|| are zeros to rounding.
      trajectories: Figure 3.
    """

    name: str
    num_samples: int
    d2: int
    d0: tuple[int, ...]
    d1: tuple[int, ...]
    num_seeds: int
    base_seed: int
    data_law: str
    data_radius: str
    data_sharing: str
    label_law: str
    hidden_law: str
    hidden_standard_deviation: float
    output_law: Any
    learning_rate: Any
    momentum: float
    normalization: Normalization
    batch_size: int
    relu_at_zero: Any
    criterion: str
    tolerance: float
    stop: Stop
    num_steps: int
    zero_threshold: float
    zero_multiple: float
    dynamics: str
    flow_time: float
    path_tolerance: float
    precision: str
    trajectories: Trajectories


_AS_WRITTEN = Protocol(
    name="as_written",
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
    output_law=PerLayers(hidden="balanced_signs", both="normal"),
    learning_rate=PerLayers(hidden=0.15, both=0.002),
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
    trajectories=Trajectories(
        d0=20,
        d1=(200, 752, 2828),
        num_seeds=5,
        num_steps=25_000,
        measure_every=100,
        learning_rate=PerLayers(hidden=0.15, both=0.002),
        differential_change="jacobian_operator_norm",
    ),
)

PRESETS: dict[str, Protocol] = {
    "as_written": _AS_WRITTEN,
    "as_released": dataclasses.replace(
        _AS_WRITTEN,
        name="as_released",
        data_law="cube",
        data_sharing="cell",
        label_law="random_signs",
        output_law=PerLayers(hidden="shuffled_signs", both="uniform"),
        learning_rate=PerLayers(hidden=0.15, both=0.15),
        normalization="mean",
        criterion="scaled_mean_squared_error",
        stop="never",
        num_steps=49_999,
        trajectories=dataclasses.replace(
            _AS_WRITTEN.trajectories, num_steps=24_999, differential_change="loss_gradient"
        ),
    ),
}


def for_layers(protocol: Protocol, trained_layers: str) -> Protocol:
    """The protocol of one set-up: `output_law` and `learning_rate` become single values."""
    return dataclasses.replace(
        protocol,
        output_law=getattr(protocol.output_law, trained_layers),
        learning_rate=getattr(protocol.learning_rate, trained_layers),
    )


_SLOPE = "_relu_at_zero_"


def setups(protocol: Protocol, trained_layers: tuple[TrainedLayers, ...]) -> tuple[str, ...]:
    """The names of a sweep's set-ups: the trained layers and, when several are asked for, the slope of relu at 0."""
    if not isinstance(protocol.relu_at_zero, tuple):
        return trained_layers
    return tuple(f"{layers}{_SLOPE}{slope}" for layers in trained_layers for slope in protocol.relu_at_zero)


def parts_of(setup: str) -> tuple[TrainedLayers, str]:
    """The trained layers of a set-up and its slope of relu at 0, "" where its name holds none.

    Raises:
      ValueError: there are no such layers.
    """
    layers, _, slope = setup.partition(_SLOPE)
    if layers not in get_args(TrainedLayers):
        raise ValueError(f"unknown set-up {setup!r}")
    return cast(TrainedLayers, layers), slope


def for_setup(protocol: Protocol, setup: str) -> Protocol:
    """The protocol of one set-up, with a single value for everything."""
    layers, text = parts_of(setup)
    protocol = for_layers(protocol, layers)
    if not isinstance(protocol.relu_at_zero, tuple):
        return protocol
    slope = next(slope for slope in protocol.relu_at_zero if str(slope) == text)
    return dataclasses.replace(protocol, relu_at_zero=slope)


def relative_tolerance(criterion: str, tolerance: float, num_samples: int) -> float:
    """A criterion as a bound on the relative error, for N samples with labels +-1.

    "scaled_mean_squared_error" bounds MSE / sqrt(N), with MSE = ||Y - Yhat||^2 / (N d2) and ||Y||^2 = N d2, so the relative
    error is below sqrt(tolerance sqrt(N)): 0.188 at N = 200.
    """
    return tolerance if criterion == "relative_error" else math.sqrt(tolerance * math.sqrt(num_samples))


def relative_tolerances(num_samples: int) -> dict[str, float]:
    """Every preset's criterion as a bound on the relative error: see `relative_tolerance`."""
    return {
        name: relative_tolerance(preset.criterion, preset.tolerance, num_samples) for name, preset in PRESETS.items()
    }


def science(protocol: Protocol, trained_layers: tuple[TrainedLayers, ...]) -> dict[str, Any]:
    """Everything that decides the results of a convergence map, by the name of its flag, as JSON holds it."""
    values = dataclasses.asdict(protocol)
    for name in ("output_law", "learning_rate"):
        values[name] = [values[name][layers] for layers in trained_layers]
    unused = INCLUSION_ONLY if protocol.dynamics == "descent" else DESCENT_ONLY
    for name in ("name", "trajectories", *unused):
        del values[name]
    return json.loads(json.dumps({"trained_layers": trained_layers, **values}))


def fingerprint(science: dict[str, Any]) -> str:
    """Twelve hexadecimal digits that name a configuration: SHA-256 of its canonical JSON."""
    return hashlib.sha256(json.dumps(science, sort_keys=True).encode()).hexdigest()[:12]
