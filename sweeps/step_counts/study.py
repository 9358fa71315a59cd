"""How many steps of mini-batch SGD: the shape of Theorem 5.1's k*, linear in log(1 / epsilon) and proportional to 1 /
(eta b).

python -m sweeps.step_counts --out=DIR

From the same starts, descent without momentum with every learning rate eta and batch size b, until the loss L is below
every epsilon. Reported are the steps (median over the seeds, with its interval), the flow time k eta b / N that they
stand for, the fitted exponent of eta b, and how straight the flow time is in log(1 / epsilon). float64. DIR gets
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

from relu_sgd import Descent
from relu_sgd.descent import DescentState
from relu_sgd.network import TrainedLayers
from sweeps.command.parsers import Choice, Number, Several, Sizes, Whole
from sweeps.protocol.draw import Run
from sweeps.protocol.presets import CHOICES, preset
from sweeps.protocol.runs import map_cells
from sweeps.runtime import arithmetic
from sweeps.study import Execution, Metrics, Study, Tile, Timings, UsageError, Variant, flag

__all__ = ["StepCounts", "count_steps"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class StepCounts(Study):
    """The same starts, trained with every learning rate and batch size; the fields are the flags."""

    name = "step_counts"
    reporter = "sweeps.step_counts.report:report"
    statuses: ClassVar = {1: "below the least epsilon", 2: "step limit", 3: "diverged"}

    trained_layers: tuple[TrainedLayers, ...] = flag(
        Several(Choice(CHOICES["trained_layers"])), "variants, a comma list of hidden and both", ("both",)
    )
    num_samples: int = flag(Whole(2), "N, even", 40)
    d0: int = flag(Whole(1), "input dimension", 20)
    d1: int = flag(Whole(1), "width of the hidden layer; even when V is fixed", 200)
    num_seeds: int = flag(Whole(1), "data sets and starts per cell", 10)
    base_seed: int = flag(Whole(0, 2**32 - 1), "random seed of the whole sweep", 0)
    learning_rate: tuple[float, ...] = flag(
        Several(Number(0, low_in=False), "increasing"),
        "eta, increasing; the step on L^b, the half sum over the batch",
        (0.0001, 0.0002, 0.0004, 0.0008),
    )
    batch_size: tuple[int, ...] = flag(Sizes(), "b, increasing, at most N", (5, 10, 20, 40))
    epsilon: tuple[float, ...] = flag(
        Several(Number(0, low_in=False), "decreasing"),
        "losses L to get below, decreasing",
        (1.0, 0.1, 0.01, 1e-3, 1e-4),
    )
    max_steps: int = flag(Whole(1), "steps at most", 200_000)

    def check(self) -> None:
        """Refuses sizes that do not fit each other."""
        if self.num_samples % 2:
            raise UsageError(f"--num_samples: {self.num_samples} is odd, and balanced labels need an even number")
        if self.batch_size[-1] > self.num_samples:
            raise UsageError(f"--batch_size: {self.batch_size[-1]} exceeds --num_samples={self.num_samples}")
        if "hidden" in self.trained_layers and self.d1 % 2:
            raise UsageError(f"--d1: {self.d1} is odd, and half of the fixed V0 is positive")

    def variants(self) -> tuple[Variant, ...]:
        """The trained layers."""
        return tuple(Variant(trained_layers=layers) for layers in self.trained_layers)

    def axes(self) -> dict[str, tuple[Any, ...]]:
        """Learning rates and batch sizes."""
        return {"learning_rate": self.learning_rate, "batch_size": self.batch_size}

    @property
    def metrics(self) -> Metrics:
        """What is kept of a run."""
        return {
            **{
                f"steps_{i}": (np.int32, f"first step with L < {epsilon:g}; -1 for never")
                for i, epsilon in enumerate(self.epsilon)
            },
            "status": (np.int8, "0 pending, 1 below the least epsilon, 2 step limit, 3 diverged"),
        }  # fmt: skip

    def cost(self, tile: Tile) -> float:
        """Steps grow as 1 / (eta b)."""
        return sum(1 / rate for rate in tile.axes["learning_rate"]) * sum(1 / b for b in tile.axes["batch_size"])

    def run_tile(self, tile: Tile, execution: Execution) -> tuple[dict[str, np.ndarray], Timings]:
        """All seeds of a learning rate and batch size, from the same starts."""
        layers = tile.variant.layers
        protocol = preset(
            "as_written", layers, num_samples=self.num_samples, base_seed=self.base_seed, precision="float64"
        )

        def follow(cell: Mapping[str, Any]) -> Any:
            return functools.partial(count_steps, self, layers, cell["learning_rate"], cell["batch_size"])

        return map_cells(protocol, (self.d0, self.d1), tile, follow, execution)


def count_steps(
    study: StepCounts, layers: TrainedLayers, learning_rate: float, batch_size: int, run: Run
) -> dict[str, jax.Array]:
    """One run: the first step at which L is below every epsilon, -1 for never."""
    descent = Descent(
        optax.sgd(learning_rate),
        trained_layers=layers,
        batch_size=None if batch_size == study.num_samples else batch_size,
    )
    key = arithmetic.wrap(run.batches)

    def reach(state: DescentState, epsilon: jax.Array) -> tuple[DescentState, jax.Array]:
        towards = dataclasses.replace(descent, criterion=lambda losses, problem: jnp.sum(losses) < epsilon)
        state = towards.advance_to(towards.take_over(state), study.max_steps)
        return state, jnp.where(state.meets, state.step, -1)

    end, steps = jax.lax.scan(reach, descent.init(run.problem, run.params, key), jnp.asarray(study.epsilon))
    diverged = ~jnp.isfinite(end.loss)
    status = jnp.where(diverged, 3, jnp.where(end.meets, 1, 2)).astype(jnp.int8)
    return {f"steps_{index}": steps[index] for index in range(len(study.epsilon))} | {"status": status}
