"""A run recorded as it goes: what is read off two consecutive iterates every so many steps, and checkpoints in between.

The step is compiled with its measurements and calls nobody back; the host takes a record off the device whenever one
is due, and from time to time saves the state of the run. A run that was interrupted goes on from there, and ends bit
for bit like one that was not.
"""

import functools
import os
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from jaxtyping import Array, Int

from relu_sgd import differentials, measurements
from relu_sgd.descent import Descent, DescentState
from relu_sgd.network import Params
from sweeps.protocol import runs as protocol_runs
from sweeps.protocol.draw import Run
from sweeps.protocol.presets import Protocol
from sweeps.runtime.engine import raw, typed

__all__ = ["RECORDS", "Recorded", "advance_and_measure", "follow", "steps_to_record"]

# What is recorded: name, type (None for the precision of the run), whether it compares with the iterate before, and
# description.
RECORDS: dict[str, tuple[type | None, str]] = {
    "loss": (None, "L = 1/2 ||Y - Yhat||_F^2"),
    "relative_error": (None, "||Y - Yhat||_F / ||Y||_F"),
    "numerical_zeros": (np.int32, "preactivations below zero_threshold"),
    "zeros_at_rounding": (np.int32, "preactivations below zero_multiple eps ||x_i|| ||w_j||"),
    "pattern_changes": (np.int32, "entries of the activation pattern that the last step changed"),
    "pattern_changes_from_start": (np.int32, "entries of the activation pattern that differ from theta_0's"),
    "pattern_fingerprint_high": (np.uint32, "first half of a hash of the activation pattern"),
    "pattern_fingerprint_low": (np.uint32, "second half of it"),
    "relative_loss_change": (None, "|L(theta_k) - L(theta_(k-1))| / L(theta_(k-1))"),
    "relative_jacobian_change": (None, "||DY_k - DY_(k-1)|| / ||DY_(k-1)|| in operator norm (the paper's text)"),
    "relative_gradient_change": (
        None,
        "max over layers of ||g_k - g_(k-1)|| / max over layers of ||g_(k-1)||, spectral norms (the released code)",
    ),
    "hidden_distance": (None, "||W - W0||_F"),
    "output_distance": (None, "||V - V0||_F"),
    "least_singular_value": (None, "alpha_0 = sigma_min(H^T); 0 where d1 < N"),
    "balance_change": (None, "largest change of ||W_j||^2 - ||V_j||^2 since theta_0"),
    "dead_neurons": (np.int32, "neurons that are active on no sample"),
    "dead_samples": (np.int32, "samples on which no neuron is active"),
}


def steps_to_record(num_steps: int, measure_every: int) -> tuple[int, ...]:
    """The first step, and every multiple of `measure_every`."""
    return tuple(sorted({1, *range(measure_every, num_steps + 1, measure_every)}))


class Recorded(NamedTuple):
    """A run between two records.

    Attributes:
      start: theta_0.
      state: the state of the descent.
    """

    start: Params
    state: DescentState


def _measure(
    protocol: Protocol, descent: Descent, run: Recorded, before: DescentState, after: DescentState
) -> dict[str, Array]:
    start, problem = run.start, run.state.problem
    old, new = before.params, after.params
    fingerprint = measurements.pattern_fingerprint(new, problem)
    layers = descent.trained_layers
    balance = measurements.neuron_balance
    return {
        "loss": after.loss,
        "relative_error": jnp.sqrt(2 * after.loss) / jnp.linalg.norm(problem.Y),
        "numerical_zeros": measurements.numerical_zeros(new, problem, protocol.zero_threshold),
        "zeros_at_rounding": measurements.numerical_zeros_at_rounding(new, problem, protocol.zero_multiple),
        "pattern_changes": measurements.pattern_changes(old, new, problem),
        "pattern_changes_from_start": measurements.pattern_changes(start, new, problem),
        "pattern_fingerprint_high": fingerprint[0],
        "pattern_fingerprint_low": fingerprint[1],
        "relative_loss_change": jnp.abs(after.loss - before.loss) / before.loss,
        "relative_jacobian_change": differentials.relative_jacobian_change(old, new, problem, trained_layers=layers),
        "relative_gradient_change": differentials.relative_gradient_change(before.gradient, after.gradient),
        "hidden_distance": jnp.linalg.norm(new.W - start.W),
        "output_distance": jnp.linalg.norm(new.V - start.V),
        "least_singular_value": differentials.least_hidden_singular_value(new, problem),
        "balance_change": jnp.max(jnp.abs(balance(new) - balance(start))),
        "dead_neurons": measurements.dead_neurons(new, problem),
        "dead_samples": measurements.dead_samples(new, problem),
    }


def advance_and_measure(
    protocol: Protocol, descent: Descent, run: Recorded, step: Int[Array, ""]
) -> tuple[Recorded, dict[str, Array]]:
    """On to `step`, and what is recorded there; a run that has diverged stays, with infinite losses and
    counts of -1.
    """

    def advance(state: DescentState, target: Int[Array, ""]) -> tuple[DescentState, DescentState]:
        state = descent.advance_to(state, target)
        return state, state._replace(problem=None, key=None)

    # One compiled loop for the way to the step before and for the step.
    after, both = jax.lax.scan(advance, run.state, jnp.stack([step - 1, step]))
    before = jax.tree.map(lambda leaf: leaf[0], both)
    alive = jnp.isfinite(after.loss) & (after.step == step)

    def guarded(value: Array) -> Array:
        if jnp.issubdtype(value.dtype, jnp.floating):
            # A ratio of nothing to nothing says that nothing changed.
            return jnp.where(alive, jnp.where(jnp.isnan(value), 0, value), jnp.inf)
        return jnp.where(alive, value, jnp.zeros_like(value) if value.dtype == jnp.uint32 else -jnp.ones_like(value))

    record = jax.tree.map(guarded, _measure(protocol, descent, run, before, after))
    return run._replace(state=after), record


def _alone(function: Any) -> Any:
    """A function of one run as one of runs stacked along a leading axis of length 1."""
    return lambda *trees: jax.tree.map(
        lambda leaf: leaf[None], function(*(jax.tree.map(lambda leaf: leaf[0], tree) for tree in trees))
    )


@functools.lru_cache(maxsize=8)
def _compiled(protocol: Protocol, descent: Descent, lanes: int, precision: bool) -> Any:
    del precision  # JAX's, part of what is compiled.
    one = functools.partial(advance_and_measure, protocol, descent)
    if lanes > 1:
        return jax.jit(jax.vmap(one, in_axes=(0, None)))

    # vmap over a single run would cost a CPU its fast products.
    return jax.jit(lambda run, step: _alone(lambda only: one(only, step))(run))


def _save(path: Path, state: Any, records: list[dict[str, np.ndarray]], configuration: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    leaves = {f"leaf_{i}": leaf for i, leaf in enumerate(jax.tree.leaves(jax.device_get(raw(state))))}
    table = {f"record_{name}": np.stack([record[name] for record in records]) for name in records[0]}
    with partial.open("wb") as file:
        np.savez(file, allow_pickle=False, configuration=np.array(configuration), **leaves, **table)
    partial.replace(path)


def _load(
    path: Path, like: Any, configuration: str, num_records: int
) -> tuple[Any, list[dict[str, np.ndarray]]] | None:
    """A checkpoint's state and records; None where there is none of this configuration, or it is damaged."""
    if not path.exists():
        return None
    kinds = lambda tree: [(np.shape(leaf), np.dtype(leaf.dtype)) for leaf in jax.tree.leaves(tree)]
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as saved:
            if str(saved["configuration"]) != configuration:
                return None
            leaves = [saved[f"leaf_{i}"] for i in range(len(jax.tree.leaves(like)))]
            table = {name: saved[f"record_{name}"] for name in RECORDS}
        if kinds(leaves) != kinds(like):
            return None  # Of other lanes.
        (count,) = {len(values) for values in table.values()}
        if not 0 < count <= num_records:
            raise ValueError(f"{count} records of {num_records}")
        records = [{name: values[i] for name, values in table.items()} for i in range(count)]
    except (
        Exception
    ) as error:  # NumPy and zipfile raise many kinds for damaged files, down to EOFError and SyntaxError.
        logging.warning("%s is damaged (%s: %s); its runs begin anew", path, type(error).__name__, error)
        return None
    return jax.tree.unflatten(jax.tree.structure(like), leaves), records


def follow(
    protocol: Protocol,
    descent: Descent,
    runs: Run,
    steps: tuple[int, ...],
    *,
    lanes: int,
    checkpoints: Path | None = None,
    configuration: str = "",
    seconds_between: float = 30.0,
) -> dict[str, np.ndarray]:
    """Trains and records runs of one shape.

    Args:
      protocol: the variant's protocol.
      descent: what is run; it stops only where the loss is not finite.
      runs: their starts, stacked along a leading axis.
      steps: the recorded steps, increasing from 1 on.
      lanes: the number of runs side by side.
      checkpoints: file name without its ending, of the states in between; None for none.
      configuration: a checkpoint of another one is not used.
      seconds_between: two checkpoints.

    Returns:
      Every record of `RECORDS`, runs x steps.
    """
    num_runs = runs.neurons.shape[0]
    whole: list[dict[str, np.ndarray]] = []
    for first in range(0, num_runs, lanes):
        part = jax.tree.map(lambda leaf, at=first: jnp.asarray(leaf[at : at + lanes]), runs)
        size = part.neurons.shape[0]
        start = protocol_runs.starts_of(part)
        run = Recorded(part.params, (jax.vmap if size > 1 else _alone)(descent.init)(*start))
        path = None if checkpoints is None else checkpoints.with_name(f"{checkpoints.name}_{first}.npz")
        records: list[dict[str, np.ndarray]] = []
        if path is not None and (saved := _load(path, raw(run), configuration, len(steps))) is not None:
            run, records = typed(saved[0]), saved[1]
        program = _compiled(protocol, descent, size, jax.config.jax_enable_x64)  # type: ignore[attr-defined]
        last = time.monotonic()
        for step in steps[len(records) :]:
            if records and not np.isfinite(records[-1]["loss"]).any():
                records.append(records[-1])  # All have diverged.
                continue
            run, record = program(run, jnp.int32(step))
            records.append(jax.device_get(record))
            if path is not None and (time.monotonic() - last > seconds_between or step == steps[-1]):
                _save(path, run, records, configuration)
                last = time.monotonic()
        whole.append({name: np.stack([record[name] for record in records], axis=1) for name in records[0]})
    return {name: np.concatenate([part[name] for part in whole]) for name in whole[0]}
