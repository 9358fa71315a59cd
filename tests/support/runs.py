"""Runs for the engine: a toy one, and small ones of a protocol."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from relu_sgd import Stepwise
from support.launchers import sized
from sweeps.protocol.presets import preset as preset_of

TILE = sized("hidden", (3, 5), (4, 10), 3)


def small(preset="as_written", layers="hidden", **changes):
    values = {"num_samples": 12, "num_steps": 400, "precision": "float64", **changes}
    return preset_of(preset, layers, **values)


class CountdownState(NamedTuple):
    row: jax.Array
    step: jax.Array


@dataclasses.dataclass(frozen=True)
class Countdown(Stepwise):
    """A run that is done after as many steps as its row says; it keeps its row's sum and its number of steps."""

    def init(self, problem, params=None, key=None):
        return CountdownState(problem, jnp.int32(0))

    def take_step(self, state):
        return state._replace(step=state.step + 1)

    def done(self, state):
        return state.step >= state.row[0]

    def result(self, state):
        return {"sum": jnp.sum(state.row), "steps": state.step}
