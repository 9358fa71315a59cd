"""Gradient descent against the differential inclusion as the step goes to 0: Theorem 5.5, and whose zeros the paper
counts.

python -m sweeps.inclusion_limit --out=DIR

From the same start, descent without momentum with every step size, its interpolated process (17) compared with the
inclusion on [0, T] (at times where both are iterates; mini-batches of b samples run on the time scale N / b); and a
long descent with momentum on the mean loss, as the released code runs it, whose numerical zeros are compared with the
set of preactivations that slide at the same flow time, at the released rate and at smaller ones. float64. DIR gets
results.zarr, summary.csv, zeros.csv and figures; the same command goes on after an interruption.
"""

import dataclasses
import functools
import time
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import optax

from relu_sgd import descend, inclusion, loss, measurements
from relu_sgd.network import TrainedLayers
from sweeps.command.parsers import Choice, Number, Several, Sizes, Whole
from sweeps.protocol.draw import Run, draw_tile
from sweeps.protocol.presets import CHOICES, preset
from sweeps.protocol.runs import devices_of, network_cost
from sweeps.runtime import arithmetic
from sweeps.runtime.engine import default_lanes, map_on_devices
from sweeps.study import Execution, Metrics, Study, Tile, Timings, UsageError, Variant, flag

__all__ = ["Limit", "compare", "steps_per_record"]

# For every rate of the long descent.
_LONG_METRICS: dict[str, tuple[Any, str]] = {
    "zeros": (np.int32, "preactivations of the long descent below 1e-8; -1 when it diverged"),
    "zeros_that_slide": (np.int32, "preactivations that are below 1e-8 there and held at 0 by the inclusion"),
    "long_relative_error": (np.float64, "||Y - Yhat|| / ||Y|| of the long descent at its end"),
}

_METRICS: dict[str, tuple[Any, str]] = {
    "sliding": (np.int32, "preactivations that the inclusion holds at 0 at the same flow time"),
    "resting": (np.int32, "neurons of the inclusion that rest at W_j = 0"),
    "inclusion_relative_error": (np.float64, "||Y - Yhat|| / ||Y|| of the inclusion at the same flow time"),
    "energy_residual": (np.float64, "|L(0) - L(T) - integral of ||theta'||^2| / L(0) of the inclusion on [0, T]"),
    "branched_at": (np.float64, "first flow time at which solutions branch; infinite for never"),
    "status": (np.int8, "0 pending, 1 done, 2 the inclusion stopped early, 3 a descent diverged"),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Limit(Study):
    """Descent with every step size, and the inclusion, from the same starts; the fields are the flags."""

    name = "inclusion_limit"
    reporter = "sweeps.inclusion_limit.report:report"
    statuses: ClassVar = {1: "done", 2: "the inclusion stopped early", 3: "a descent diverged"}

    trained_layers: tuple[TrainedLayers, ...] = flag(
        Several(Choice(CHOICES["trained_layers"])), "variants, a comma list of hidden and both", ("hidden",)
    )
    num_samples: tuple[int, ...] = flag(Several(Whole(1)), "N, a comma list; even, for balanced labels", (40, 100, 200))
    d0: tuple[int, ...] = flag(Sizes(), "input dimensions: start:stop:step with both ends in, or a comma list", (20,))
    d1: tuple[int, ...] = flag(Sizes(), "widths of the hidden layer; even when V is fixed", (20, 50))
    num_seeds: int = flag(Whole(1), "runs per cell", 5)
    base_seed: int = flag(Whole(0, 2**32 - 1), "random seed of the whole sweep", 0)
    batch_size: int = flag(Whole(0), "samples per step of the compared descent; 0 for all of them", 0)
    horizon: float = flag(Number(0, low_in=False), "T, in flow time of L = 1/2 ||Y - Yhat||^2", 2.0)
    num_records: int = flag(Whole(1), "times in (0, T] at which the two are compared", 40)
    step_sizes: tuple[float, ...] = flag(
        Several(Number(0, low_in=False), "decreasing"),
        "eta, decreasing; T / num_records must be a whole number of steps (of eta b / N each, with mini-batches); "
        "both layers need shorter ones, below 2 / ||DY||^2",
        (0.05, 0.025, 0.0125, 0.00625, 0.003125),
    )
    path_tolerance: float = flag(Number(1e-12, 1), "of the inclusion on [0, T], see relu_sgd.inclusion.solve", 1e-4)
    long_steps: int = flag(Whole(1), "steps of the long descent: mean loss, all samples", 20_000)
    long_rates: tuple[float, ...] = flag(
        Several(Number(0, low_in=False), "decreasing"),
        "its learning rates, decreasing; the smaller ones take more steps, up to the same flow time",
        (0.15, 0.03),
    )
    long_momentum: float = flag(Number(0, 1, high_in=False), "its momentum", 0.9)

    def check(self) -> None:
        """Refuses values that do not fit each other."""
        if odd := [size for size in self.num_samples if size % 2]:
            raise UsageError(f"--num_samples: {odd[0]} is odd, and balanced labels need an even number")
        if "hidden" in self.trained_layers and (odd := [size for size in self.d1 if size % 2]):
            raise UsageError(f"--d1: {odd[0]} is odd, and half of the fixed V0 is positive")
        if self.batch_size > min(self.num_samples):
            raise UsageError(f"--batch_size: {self.batch_size} exceeds N = {min(self.num_samples)}")
        if len(self.step_sizes) < 2:
            raise UsageError("--step_sizes: give at least two, decreasing")
        if (steps := self.long_steps * self.long_rates[0] / self.long_rates[-1]) >= 2**31:
            raise UsageError(f"--long_rates: {self.long_rates[-1]:g} would take {steps:.3g} steps, more than 2^31 - 1")
        for num_samples in self.num_samples:
            for step_size in self.step_sizes:
                steps_per_record(self, num_samples, step_size)

    def variants(self) -> tuple[Variant, ...]:
        """Trained layers and numbers of samples."""
        return tuple(
            Variant(trained_layers=layers, num_samples=size)
            for layers in self.trained_layers
            for size in self.num_samples
        )

    def axes(self) -> dict[str, tuple[Any, ...]]:
        """The sizes of the networks."""
        return {"d0": self.d0, "d1": self.d1}

    def default_block(self) -> tuple[int, ...]:
        """The whole grid: one compiled program a variant; the cells differ little."""
        return len(self.d0), len(self.d1)

    def cost(self, tile: Tile) -> float:
        """That of a step."""
        return network_cost(tile)

    @property
    def metrics(self) -> Metrics:
        """What is kept of a run."""
        distances = {
            f"distance_{index}": (
                np.float64,
                f"sup over the records of ||theta(t) - theta^eta(t)||, eta = {step_size:g}",
            )
            for index, step_size in enumerate(self.step_sizes)
        }
        long = {
            f"{name}_{index}": (dtype, f"{words}, rate {rate:g}")
            for index, rate in enumerate(self.long_rates)
            for name, (dtype, words) in _LONG_METRICS.items()
        }
        return {**distances, **long, **_METRICS}

    def run_tile(self, tile: Tile, execution: Execution) -> tuple[dict[str, np.ndarray], Timings]:
        """All runs of a tile; on a CPU one after another on every device, unless `lanes` says otherwise."""
        layers, num_samples = tile.variant.layers, tile.variant.num_samples
        begun = time.perf_counter()
        protocol = preset("as_written", layers, num_samples=num_samples, base_seed=self.base_seed, precision="float64")
        runs = draw_tile(protocol, tile)
        drawing = time.perf_counter() - begun
        records, timings = map_on_devices(
            functools.partial(compare, self, layers),
            runs,
            lanes=execution.lanes or default_lanes(jax.default_backend(), interruptible=False),
            devices=devices_of(execution),
        )
        jax.clear_caches()
        return records, {"drawing": drawing, **timings}


def steps_per_record(study: Limit, num_samples: int, step_size: float) -> int:
    """How many steps lie between two records.

    Raises:
      UsageError: the number is not whole.
    """
    share = study.batch_size / num_samples if study.batch_size else 1.0
    count = study.horizon / study.num_records / (step_size * share)
    if abs(count - round(count)) > 1e-6 * count or round(count) < 1:
        raise UsageError(
            f"--step_sizes: {step_size:g} fits {count:g} times into T / num_records at N = {num_samples}, "
            "which is not a whole number"
        )
    return round(count)


def compare(study: Limit, trained_layers: TrainedLayers, run: Run) -> dict[str, jax.Array]:
    """One run: the distances, and the zeros against the sliding set; see `_METRICS`."""
    params, problem = run.params, run.problem
    num_samples = problem.X.shape[0]
    times = jnp.arange(1, study.num_records + 1) * (study.horizon / study.num_records)
    follow = functools.partial(
        inclusion.solve, params, problem, trained_layers=trained_layers, stop_at_branching=False, max_steps=10**7
    )
    truth = follow(times, tolerance=study.path_tolerance)
    norm = lambda a, b: jnp.sqrt(jnp.sum((a.W - b.W) ** 2, axis=(1, 2)) + jnp.sum((a.V - b.V) ** 2, axis=(1, 2)))
    records: dict[str, jax.Array] = {}
    diverged = jnp.bool_(False)
    for index, step_size in enumerate(study.step_sizes):
        every = steps_per_record(study, num_samples, step_size)
        path = descend(
            params,
            problem,
            num_steps=every * study.num_records,
            optimizer=optax.sgd(step_size),
            trained_layers=trained_layers,
            batch_size=study.batch_size or None,
            key=arithmetic.wrap(run.batches),
            stop="never",
            measure=lambda p: p,
            measure_every=every,
        )
        distance = jnp.max(norm(jax.tree.map(lambda leaf: leaf[1:], path.measurements), truth.params))
        records[f"distance_{index}"] = jnp.where(jnp.isfinite(distance), distance, jnp.inf)
        diverged |= ~jnp.isfinite(distance)

    flow_time = study.long_steps * study.long_rates[0] / (1 - study.long_momentum) * 2 / num_samples
    end = follow(flow_time, tolerance=study.path_tolerance)
    label_norm = jnp.linalg.norm(problem.Y)
    for index, rate in enumerate(study.long_rates):
        long = descend(
            params,
            problem,
            num_steps=round(study.long_steps * study.long_rates[0] / rate),
            optimizer=optax.sgd(rate, momentum=study.long_momentum),
            normalization="mean",
            trained_layers=trained_layers,
            stop="never",
        )
        is_zero = (jnp.abs(problem.X @ long.params.W) < 1e-8) & run.neurons
        finite = jnp.isfinite(long.loss)
        error = measurements.relative_error(long.params, problem)
        records[f"zeros_{index}"] = jnp.where(finite, jnp.sum(is_zero, dtype=jnp.int32), -1)
        records[f"zeros_that_slide_{index}"] = jnp.sum(end.sliding[0] & is_zero, dtype=jnp.int32)
        records[f"long_relative_error_{index}"] = jnp.where(finite, error, jnp.inf)
        diverged |= ~finite
    stopped = (truth.status != inclusion.Status.REACHED) | (end.status != inclusion.Status.REACHED)
    return records | {
        "sliding": jnp.sum(end.sliding[0] & run.neurons, dtype=jnp.int32),
        "resting": end.resting[0],
        "inclusion_relative_error": jnp.sqrt(2 * end.loss[0]) / label_norm,
        "energy_residual": jnp.abs(truth.energy_residual[-1]) / loss(params, problem),
        "branched_at": jnp.minimum(truth.branched_at, end.branched_at),
        "status": jnp.where(diverged, 3, jnp.where(stopped, 2, 1)).astype(jnp.int8),
    }
