"""Gradient descent against the differential inclusion as the step goes to 0: Theorem 5.5, and whose zeros the paper counts.

python -m sweeps.inclusion_limit --out=DIR

From the same start, descent without momentum with every step size, its interpolated process (17) compared with the inclusion on
[0, T] (at times where both are iterates; mini-batches of b samples run on the time scale N / b); and a long descent with momentum
on the mean loss, as the released code runs it, whose numerical zeros are compared with the set of preactivations that slide at the
same flow time, at the released rate and at smaller ones. float64. DIR gets results.zarr, summary.csv, zeros.csv and figures; the
same command goes on after an interruption.
"""

import dataclasses
import functools
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import flags

from relu_sgd import descend, inclusion, loss, measurements
from relu_sgd.network import TrainedLayers
from sweeps import arithmetic, experiment, launch, limit_report
from sweeps.engine import Timings, default_lanes, map_on_devices
from sweeps.launch import Launcher, Sweep
from sweeps.plan import Tile
from sweeps.protocol import PRESETS, Protocol, for_layers, parts_of
from sweeps.settings import (
    Execution,
    FlagTable,
    UsageError,
    choice,
    number,
    parse_all,
    parse_sizes,
    read_execution,
    several,
    whole,
)

__all__ = ["LAUNCHER", "Limit", "compare", "read", "run", "run_tile", "steps_per_record"]

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

# Flag to parser, default and help.
_FLAGS: FlagTable = {
    "trained_layers": (
        several(choice("trained_layers")),
        "hidden",
        "set-ups, a comma list of hidden (V stays fixed) and both",
    ),
    "num_samples": (several(whole(1)), "40,100,200", "N, a comma list; even, for balanced labels"),
    "d0": (parse_sizes, "20", "input dimensions: start:stop:step with both ends in, or a comma list"),
    "d1": (parse_sizes, "20,50", "widths of the hidden layer; even when V is fixed"),
    "num_seeds": (whole(1), "5", "runs per cell"),
    "base_seed": (whole(0, 2**32 - 1), "0", "random seed of the whole sweep"),
    "batch_size": (whole(0), "0", "samples per step of the compared descent; 0 for all of them"),
    "horizon": (number(0, low_in=False), "2", "T, in flow time of L = 1/2 ||Y - Yhat||^2"),
    "num_records": (whole(1), "40", "times in (0, T] at which the two are compared"),
    "step_sizes": (
        several(number(0, low_in=False)),
        "0.05,0.025,0.0125,0.00625,0.003125",
        "eta, decreasing; T / num_records must be a whole number of steps (of eta b / N each, with mini-batches); "
        "both layers need shorter ones, below 2 / ||DY||^2",
    ),
    "path_tolerance": (number(1e-12, 1), "1e-4", "of the inclusion on [0, T], see relu_sgd.inclusion.solve"),
    "long_steps": (whole(1), "20000", "steps of the long descent: mean loss, all samples"),
    "long_rates": (
        several(number(0, low_in=False)),
        "0.15,0.03",
        "its learning rates, decreasing; the smaller ones take more steps, up to the same flow time",
    ),
    "long_momentum": (number(0, 1, high_in=False), "0.9", "its momentum"),
}


@dataclasses.dataclass(frozen=True)
class Limit:
    """What the flags say of the comparison; the fields are the flags, and the set-ups."""

    trained_layers: tuple[TrainedLayers, ...]
    num_samples: tuple[int, ...]
    d0: tuple[int, ...]
    d1: tuple[int, ...]
    num_seeds: int
    base_seed: int
    batch_size: int
    horizon: float
    num_records: int
    step_sizes: tuple[float, ...]
    path_tolerance: float
    long_steps: int
    long_rates: tuple[float, ...]
    long_momentum: float


def steps_per_record(limit: Limit, num_samples: int, step_size: float) -> int:
    """How many steps lie between two records.

    Raises:
      UsageError: the number is not whole.
    """
    share = limit.batch_size / num_samples if limit.batch_size else 1.0
    count = limit.horizon / limit.num_records / (step_size * share)
    if abs(count - round(count)) > 1e-6 * count or round(count) < 1:
        raise UsageError(
            f"--step_sizes: {step_size:g} fits {count:g} times into T / num_records at N = {num_samples}, "
            "which is not a whole number"
        )
    return round(count)


def read(values: flags.FlagValues) -> tuple[Limit, Execution]:
    """The settings that the flags describe.

    Raises:
      UsageError: a value is not allowed, or flags contradict each other.
    """
    execution = read_execution(values)
    limit = Limit(**parse_all(_FLAGS, values))
    if odd := [size for size in limit.num_samples if size % 2]:
        raise UsageError(f"--num_samples: {odd[0]} is odd, and balanced labels need an even number")
    if "hidden" in limit.trained_layers and (odd := [size for size in limit.d1 if size % 2]):
        raise UsageError(f"--d1: {odd[0]} is odd, and half of the fixed V0 is positive")
    if limit.batch_size > min(limit.num_samples):
        raise UsageError(f"--batch_size: {limit.batch_size} exceeds N = {min(limit.num_samples)}")
    if list(limit.step_sizes) != sorted(limit.step_sizes, reverse=True) or len(limit.step_sizes) < 2:
        raise UsageError("--step_sizes: give at least two, decreasing")
    if list(limit.long_rates) != sorted(set(limit.long_rates), reverse=True):
        raise UsageError("--long_rates: give them decreasing")
    if (steps := limit.long_steps * limit.long_rates[0] / limit.long_rates[-1]) >= 2**31:
        raise UsageError(f"--long_rates: {limit.long_rates[-1]:g} would take {steps:.3g} steps, more than 2^31 - 1")
    for num_samples in limit.num_samples:
        for step_size in limit.step_sizes:
            steps_per_record(limit, num_samples, step_size)
    return limit, execution


def _metrics(limit: Limit) -> dict[str, tuple[Any, str]]:
    distances = {
        f"distance_{index}": (np.float64, f"sup over the records of ||theta(t) - theta^eta(t)||, eta = {step_size:g}")
        for index, step_size in enumerate(limit.step_sizes)
    }
    long = {
        f"{name}_{index}": (dtype, f"{words}, rate {rate:g}")
        for index, rate in enumerate(limit.long_rates)
        for name, (dtype, words) in _LONG_METRICS.items()
    }
    return {**distances, **long, **_METRICS}


def _protocol(limit: Limit, num_samples: int) -> Protocol:
    return dataclasses.replace(
        PRESETS["as_written"], num_samples=num_samples, base_seed=limit.base_seed, precision="float64"
    )


def compare(limit: Limit, trained_layers: TrainedLayers, run: experiment.Run) -> dict[str, jax.Array]:
    """One run: the distances, and the zeros against the sliding set; see `_METRICS`."""
    params, problem = run.params, run.problem
    num_samples = problem.X.shape[0]
    times = jnp.arange(1, limit.num_records + 1) * (limit.horizon / limit.num_records)
    follow = functools.partial(
        inclusion.solve, params, problem, trained_layers=trained_layers, stop_at_branching=False, max_steps=10**7
    )
    truth = follow(times, tolerance=limit.path_tolerance)
    norm = lambda a, b: jnp.sqrt(jnp.sum((a.W - b.W) ** 2, axis=(1, 2)) + jnp.sum((a.V - b.V) ** 2, axis=(1, 2)))
    records: dict[str, jax.Array] = {}
    diverged = jnp.bool_(False)
    for index, step_size in enumerate(limit.step_sizes):
        every = steps_per_record(limit, num_samples, step_size)
        path = descend(
            params,
            problem,
            num_steps=every * limit.num_records,
            optimizer=optax.sgd(step_size),
            trained_layers=trained_layers,
            batch_size=limit.batch_size or None,
            key=arithmetic.wrap(run.batches),
            stop="never",
            measure=lambda p: p,
            measure_every=every,
        )
        distance = jnp.max(norm(jax.tree.map(lambda leaf: leaf[1:], path.measurements), truth.params))
        records[f"distance_{index}"] = jnp.where(jnp.isfinite(distance), distance, jnp.inf)
        diverged |= ~jnp.isfinite(distance)

    flow_time = limit.long_steps * limit.long_rates[0] / (1 - limit.long_momentum) * 2 / num_samples
    end = follow(flow_time, tolerance=limit.path_tolerance)
    label_norm = jnp.linalg.norm(problem.Y)
    for index, rate in enumerate(limit.long_rates):
        long = descend(
            params,
            problem,
            num_steps=round(limit.long_steps * limit.long_rates[0] / rate),
            optimizer=optax.sgd(rate, momentum=limit.long_momentum),
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


def _setup(layers: str, num_samples: int) -> str:
    return f"{layers}_N{num_samples}"


def run_tile(limit: Limit, lanes: int, num_devices: int, tile: Tile) -> tuple[dict[str, np.ndarray], Timings]:
    """All runs of a tile; on a CPU one after another on every device, unless `lanes` says otherwise."""
    name, _, size = tile.setup.partition("_N")
    trained_layers, _ = parts_of(name)
    begun = time.perf_counter()
    runs = experiment.draw_tile(for_layers(_protocol(limit, int(size)), trained_layers), tile)
    drawing = time.perf_counter() - begun
    records, timings = map_on_devices(
        functools.partial(compare, limit, trained_layers),
        runs,
        lanes=lanes or default_lanes(jax.default_backend(), interruptible=False),
        devices=jax.local_devices()[: num_devices or None],
    )
    jax.clear_caches()
    return records, {"drawing": drawing, **timings}


def run(chosen: tuple[Limit, Execution]) -> None:
    """The whole comparison: what is pending is computed, then the figure is drawn."""
    limit, execution = chosen
    science, lines = launch.science_of(limit)
    sweep = Sweep(
        protocol_name="",
        flags=lines,
        science=science,
        setups=tuple(_setup(layers, size) for layers in limit.trained_layers for size in limit.num_samples),
        d0=limit.d0,
        d1=limit.d1,
        num_seeds=limit.num_seeds,
        precision="float64",
        metrics=_metrics(limit),
        run_tile=functools.partial(run_tile, limit, execution.lanes, execution.num_devices),
    )
    # One compiled program a set-up; the cells differ little.
    whole_grid = (len(limit.d0), len(limit.d1))
    launch.complete(sweep, execution, lambda store: limit_report.report(store, execution.out), block=whole_grid)


LAUNCHER = Launcher("inclusion_limit", __doc__, read, run, ("sweeps.inclusion_limit", "sweeps.settings"), _FLAGS)

if __name__ == "__main__":
    launch.main(LAUNCHER)
