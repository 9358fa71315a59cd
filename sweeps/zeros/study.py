"""What the numerical zeros depend on: threshold, precision, step size, and the slope of relu at 0.

python -m sweeps.zeros --out=DIR

The networks of one (d0, d1) cell are trained as the released code does, from the same starts, in float32 and float64,
with every learning rate and slope; at the end the preactivations below every threshold are counted. DIR gets
results.zarr, summary.csv and the figure; the same command goes on after an interruption.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import optax

from relu_sgd import Descent, Status, measurements
from relu_sgd.network import TrainedLayers
from sweeps.command.parsers import Choice, Number, Several, Whole
from sweeps.protocol.draw import Run
from sweeps.protocol.presets import CHOICES, PRESETS, Protocol, preset
from sweeps.protocol.runs import map_cells
from sweeps.study import Execution, Metrics, Study, Tile, Timings, UsageError, Variant, flag

__all__ = ["Zeros", "count_zeros"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Zeros(Study):
    """The same starts, trained with every precision, learning rate and slope; the fields are the flags."""

    name = "zeros"
    reporter = "sweeps.zeros.report:report"
    statuses: ClassVar = {1: "trained to the end", 3: "diverged"}

    trained_layers: tuple[TrainedLayers, ...] = flag(
        Several(Choice(CHOICES["trained_layers"])), "variants, a comma list of hidden and both", ("hidden", "both")
    )
    precision: tuple[str, ...] = flag(Several(Choice(CHOICES["precision"])), "a comma list", ("float32", "float64"))
    protocol: str = flag(Choice(PRESETS), f"one of {', '.join(PRESETS)}: laws, objective and momentum", "as_released")
    num_samples: int = flag(Whole(2), "N, even", 200)
    d0: int = flag(Whole(1), "input dimension", 20)
    d1: int = flag(Whole(2), "width of the hidden layer, even", 50)
    num_seeds: int = flag(Whole(1), "starts per cell", 4)
    base_seed: int = flag(Whole(0, 2**32 - 1), "random seed of the whole sweep", 0)
    num_steps: int = flag(Whole(1), "steps, all of which are taken", 24_999)
    learning_rate: tuple[float, ...] = flag(
        Several(Number(0, low_in=False), "increasing"), "step sizes on the objective, increasing", (0.05, 0.15, 0.45)
    )
    relu_at_zero: tuple[float, ...] = flag(
        Several(Number(0, 1), "increasing"), "slopes of relu at 0, increasing", (0.0, 0.5, 1.0)
    )
    threshold: tuple[float, ...] = flag(
        Several(Number(0, low_in=False), "decreasing"),
        "preactivations below it in absolute value are counted; decreasing",
        (1e-6, 1e-7, 1e-8, 1e-9, 1e-10, 1e-12, 1e-14),
    )

    def check(self) -> None:
        """Refuses odd sizes."""
        for name in ("num_samples", "d1"):
            if getattr(self, name) % 2:
                raise UsageError(f"--{name}: {getattr(self, name)} is odd")

    def variants(self) -> tuple[Variant, ...]:
        """Trained layers and precision."""
        return tuple(
            Variant(trained_layers=layers, precision=precision)
            for layers in self.trained_layers
            for precision in self.precision
        )

    def axes(self) -> dict[str, tuple[Any, ...]]:
        """Step sizes and slopes."""
        return {"learning_rate": self.learning_rate, "relu_at_zero": self.relu_at_zero}

    @property
    def metrics(self) -> Metrics:
        """What is kept of a run."""
        return {
            **{
                f"zeros_{i}": (np.int32, f"preactivations below {threshold:g}; -1 when diverged")
                for i, threshold in enumerate(self.threshold)
            },
            "zeros_at_rounding": (np.int32, "preactivations below 8 eps ||x_i|| ||w_j||; -1 when diverged"),
            "relative_error": (np.float64, "||Y - Yhat||_F / ||Y||_F at the end; infinite when diverged"),
            "status": (np.int8, "0 pending, 1 trained to the end, 3 diverged"),
        }  # fmt: skip

    def protocol_of(self, variant: Variant) -> Protocol:
        """What the starts are drawn by."""
        return preset(self.protocol, variant.layers, num_samples=self.num_samples, base_seed=self.base_seed)

    def run_tile(self, tile: Tile, execution: Execution) -> tuple[dict[str, np.ndarray], Timings]:
        """All seeds of a step size and slope, from the same starts."""

        def follow(cell: Mapping[str, Any]) -> Any:
            return functools.partial(count_zeros, self, tile.variant, cell["learning_rate"], cell["relu_at_zero"])

        return map_cells(self.protocol_of(tile.variant), (self.d0, self.d1), tile, follow, execution)


def count_zeros(study: Zeros, variant: Variant, learning_rate: float, slope: float, run: Run) -> dict[str, jax.Array]:
    """One run to its end, in the precision of the variant; counts are -1 where it diverged."""
    protocol = study.protocol_of(variant)
    cast_to = lambda leaf: leaf.astype(variant.precision)
    params, problem = jax.tree.map(cast_to, run.params), jax.tree.map(cast_to, run.problem)
    descent = Descent(
        optax.sgd(learning_rate, momentum=protocol.momentum or None),
        normalization=protocol.normalization,
        trained_layers=variant.layers,
        at_zero=slope,
        stop="never",
    )
    end = descent.result(descent.advance_to(descent.init(problem, params), study.num_steps))
    diverged = end.status == Status.DIVERGED
    count = lambda value: jnp.where(diverged, -1, value)
    return {
        **{
            f"zeros_{index}": count(measurements.numerical_zeros(end.params, problem, threshold))
            for index, threshold in enumerate(study.threshold)
        },
        "zeros_at_rounding": count(measurements.numerical_zeros_at_rounding(end.params, problem)),
        "relative_error": jnp.where(diverged, jnp.inf, measurements.relative_error(end.params, problem)).astype(float),
        "status": jnp.where(diverged, 3, 1).astype(jnp.int8),
    }
