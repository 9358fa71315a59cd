"""Full-batch descent with momentum on the paper's network by a kernel of its own in place of XLA's program."""

import abc
import dataclasses
import functools
import math
import numbers
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int, Key

from relu_sgd._checks import whole_number
from relu_sgd._normalization import normalize
from relu_sgd.descent import (
    Descent,
    DescentResult,
    DescentState,
    Stop,
    mean_squared_error_below,
    relative_error_below,
)
from relu_sgd.network import Normalization, Params, TrainedLayers

__all__ = ["CRITERIA", "Advanced", "Layers", "MomentumDescent", "Run"]

CRITERIA = {"relative_error": relative_error_below, "mean_squared_error": mean_squared_error_below}


class Layers(NamedTuple):
    """A layer of weights under way; an output layer that is not trained has no velocity and gradient (0 x 0).

    Attributes:
      weights, velocity, gradient: as in `DescentState`; the gradient is without meaning before theta_0 was evaluated.
    """

    weights: Array
    velocity: Array
    gradient: Array


class Run(NamedTuple):
    """A run as a kernel takes it.

    Attributes:
      X, Y: the training set.
      hidden, output: the layers.
      loss, best_loss: as in `DescentState`.
      flags: step, evaluated, converged_at, meets and stopped, in this order, as int32.
    """

    X: Float[Array, "N d0"]
    Y: Float[Array, "N d2"]
    hidden: Layers
    output: Layers
    loss: Float[Array, ""]
    best_loss: Float[Array, ""]
    flags: Int[Array, " 5"]


class Advanced(NamedTuple):
    """What a kernel returns.

    Attributes:
      hidden, output, loss, best_loss: as in `Run`.
      flags: those of `Run`, but in the last place whether theta was evaluated now.
      losses: of the samples at theta, where it was evaluated now.
    """

    hidden: Layers
    output: Layers
    loss: Float[Array, ""]
    best_loss: Float[Array, ""]
    flags: Int[Array, " 5"]
    losses: Float[Array, " N"]


def _is_stopped(state: DescentState) -> Array:
    return state.stopped


@dataclasses.dataclass(frozen=True)
class MomentumDescent(abc.ABC):
    """A `dynamics.Dynamics` with the steps and states of `Descent`; sums are taken in another order, so that the two
    agree to rounding. One goes on with a state of the other.

    Attributes:
      learning_rate: eta.
      momentum: of v <- momentum v + gradient, in [0, 1); 0 for none.
      normalization: of the objective, as for `descend`.
      trained_layers: "both", or "hidden" to keep V fixed.
      at_zero: the slope of relu at 0, one number in [0, 1].
      criterion: "relative_error" or "mean_squared_error", as `relative_error_below` and `mean_squared_error_below`
        judge them; None for none.
      tolerance: the criterion's.
      stop: as for `descend`.
      precisions: what it computes in.
      stoppable: whether a run ends where `stopped` is set in its state, which then carries the losses of the samples.

    Raises:
      ValueError: a field is not one of the allowed values.
    """

    precisions: ClassVar[tuple[str, ...]] = ("float32", "float64")

    learning_rate: float
    momentum: float = 0.0
    normalization: Normalization = "half_sum"
    trained_layers: TrainedLayers = "both"
    at_zero: float = 0.0
    criterion: str | None = None
    tolerance: float = 0.0
    stop: Stop = "first_passage"
    stoppable: bool = False

    def __post_init__(self) -> None:
        for name in ("learning_rate", "momentum", "at_zero", "tolerance"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, numbers.Real) or not math.isfinite(value):
                raise ValueError(f"{name} must be a finite number, got {value!r}")
        if not 0 <= self.momentum < 1:
            raise ValueError(f"momentum must lie in [0, 1), got {self.momentum!r}")
        if not 0 <= self.at_zero <= 1:
            raise ValueError(f"at_zero must lie in [0, 1], got {self.at_zero!r}")
        if self.criterion not in (None, *CRITERIA):
            raise ValueError(f"criterion must be one of {(None, *CRITERIA)}, got {self.criterion!r}")
        _ = self.reference

    @functools.cached_property
    def reference(self) -> Descent:
        """The same descent by XLA's program."""
        return Descent(
            optimizer=optax.sgd(self.learning_rate, momentum=self.momentum or None),
            normalization=self.normalization,
            trained_layers=self.trained_layers,
            at_zero=self.at_zero,
            criterion=None if self.criterion is None else CRITERIA[self.criterion](self.tolerance),
            stop=self.stop,
            stopping_rule=_is_stopped if self.stoppable else None,
        )

    def init(self, problem: Any, params: Any, key: Key[Array, ""] | None = None) -> DescentState:
        """As `Descent.init`."""
        return self.reference.init(problem, params, key)

    def done(self, state: DescentState) -> Bool[Array, ""]:
        """As `Descent.done`."""
        return self.reference.done(state)

    def result(self, state: DescentState) -> DescentResult:
        """As `Descent.result`."""
        return self.reference.result(state)

    @abc.abstractmethod
    def _advance(self, run: Run, step: Int[Array, ""]) -> Advanced:
        """The kernel: on to an absolute step, or to where the run ends by itself."""

    def advance_to(self, state: DescentState, step: int | Int[Array, ""]) -> DescentState:
        """As `Descent.advance_to`, without a fixed length; not differentiable.

        Raises:
          ValueError: `step` is known and no whole number from 0 on, or weights and data are not all of one of
            `precisions`.
        """
        if not isinstance(step, jax.Array):
            step = whole_number("step", step, 0)
        kinds = {array.dtype.name for array in (*state.params, *state.problem)}
        if len(kinds) > 1 or not kinds <= {*self.precisions}:
            allowed = " or all ".join(self.precisions)
            raise ValueError(f"weights and data must all be {allowed}, got {', '.join(sorted(kinds))}")
        both, momentum = self.trained_layers == "both", self.momentum > 0
        nothing = jnp.zeros((0, 0), state.params.W.dtype)
        as_params = lambda trained: trained if both else Params(trained, nothing)
        gradient = as_params(state.gradient)
        zeros = jax.tree.map(jnp.zeros_like, gradient)
        velocity = as_params(state.optimizer_state[0].trace) if momentum else zeros
        flags = (
            state.step,
            state.evaluated,
            state.converged_at,
            state.meets,
            state.stopped & jnp.bool_(self.stoppable),
        )
        run = Run(
            X=state.problem.X,
            Y=state.problem.Y,
            hidden=Layers(state.params.W, velocity.W, gradient.W),
            output=Layers(state.params.V, velocity.V, gradient.V),
            loss=state.loss,
            best_loss=state.best_loss,
            flags=jnp.stack([jnp.asarray(flag, jnp.int32) for flag in flags]),
        )
        now = self._advance(run, jnp.asarray(step, jnp.int32))
        hidden, output = now.hidden, now.output
        trained = lambda W, V: Params(W, V) if both else W
        optimizer_state = state.optimizer_state
        if momentum:
            trace = trained(hidden.velocity, output.velocity)
            optimizer_state = (optimizer_state[0]._replace(trace=trace), *optimizer_state[1:])
        is_new = now.flags[4] > 0
        objective = normalize(now.losses, state.problem.Y.shape[1], self.normalization)
        return state._replace(
            params=state.params._replace(W=hidden.weights, V=output.weights if both else state.params.V),
            step=now.flags[0],
            evaluated=now.flags[1] > 0,
            optimizer_state=optimizer_state,
            gradient=trained(hidden.gradient, output.gradient),
            objective=jnp.where(is_new, objective, state.objective),
            loss=now.loss,
            best_loss=now.best_loss,
            losses=None if state.losses is None else jnp.where(is_new, now.losses, state.losses),
            converged_at=now.flags[2],
            meets=now.flags[3] > 0,
        )
