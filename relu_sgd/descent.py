"""Gradient descent and mini-batch SGD sequences, (14) of the paper with theta_k restored (see `descend`)."""

import dataclasses
import enum
import inspect
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, TypeAlias, get_args

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, ArrayLike, Bool, Float, Int, Key, PyTree, Real, ScalarLike

from relu_sgd._checks import whole_number
from relu_sgd.network import Normalization, Params, SampleLosses, TrainedLayers, normalize, sample_losses
from relu_sgd.problem import Problem
from relu_sgd.selections import Selection

__all__ = [
    "Criterion",
    "Descent",
    "DescentResult",
    "DescentState",
    "Status",
    "Stop",
    "descend",
    "mean_loss_below",
    "mean_squared_error_below",
    "paper_optimizer",
    "relative_error_below",
]

Stop: TypeAlias = Literal["first_passage", "never"]
# Sample losses at theta and the training set, to whether theta is a success.
Criterion: TypeAlias = Callable[[Float[Array, " N"], Problem], Bool[Array, ""]]


class Status(enum.IntEnum):
    """How a run ended; PENDING marks one that has not."""

    PENDING = 0
    CONVERGED = 1
    STEP_LIMIT = 2
    DIVERGED = 3


def _tolerance(value: ScalarLike) -> ScalarLike:
    if not isinstance(value, jax.core.Tracer) and not np.all(np.asarray(value) > 0):
        raise ValueError(f"a tolerance must be positive, or nothing is below it; got {value}")
    return value


def relative_error_below(tolerance: ScalarLike) -> Criterion:
    """The paper's criterion, ||Y - Yhat||_F / ||Y||_F < tolerance (Section 6.2, with 2.5e-3).

    Raises:
      ValueError: the tolerance is known when traced and is not positive; so for all criteria here.
    """
    tolerance = _tolerance(tolerance)
    return lambda losses, problem: jnp.sqrt(2 * jnp.sum(losses)) / jnp.linalg.norm(problem.Y) < tolerance


def mean_squared_error_below(tolerance: ScalarLike) -> Criterion:
    """The released code's criterion, MSE / sqrt(N) < tolerance.

    For labels +-1 it is the relative error below sqrt(tolerance sqrt(N)): 0.188 at N = 200 with 2.5e-3, 75 times laxer
    than the paper's.
    """
    tolerance = _tolerance(tolerance)
    return lambda losses, problem: (
        normalize(losses, problem.Y.shape[1], "mean") < tolerance * jnp.sqrt(problem.Y.shape[0])
    )


def mean_loss_below(tolerance: ScalarLike) -> Criterion:
    """The mean of the sample losses below a tolerance, for losses other than the squared one."""
    tolerance = _tolerance(tolerance)
    return lambda losses, problem: jnp.mean(losses) < tolerance


def paper_optimizer(trained_layers: TrainedLayers) -> optax.GradientTransformation:
    """SGD with momentum 0.9 (v <- 0.9 v + g, theta <- theta - lr v) at Section 6's rate: 0.15 hidden, 0.002 both."""
    return optax.sgd(0.15 if trained_layers == "hidden" else 0.002, momentum=0.9)


class DescentState(NamedTuple):
    """A run between two steps; what is needed to go on is all in it.

    Attributes:
      params: theta_k, `Params` or the pytree of another approximator.
      optimizer_state: of the trained weights.
      gradient: that the next step takes, of the trained weights at theta_k.
      objective: whose gradient that is, at theta_k: on the samples of the next step, in its normalization.
      steps: k, the number of updates made; -1 before theta_0 has been looked at.
      loss: L(theta_k), the sum of the losses of all samples (1/2 ||Y - Yhat||_F^2 unless told otherwise), whatever the
        objective and the batch.
      best_loss: the least of L(theta_0), ..., L(theta_k).
      converged_at: the first k at which the criterion held, -1 so far.
      meets: whether the criterion holds at theta_k.
    """

    params: Any
    optimizer_state: PyTree
    gradient: PyTree
    objective: Float[Array, ""]
    steps: Int[Array, ""]
    loss: Float[Array, ""]
    best_loss: Float[Array, ""]
    converged_at: Int[Array, ""]
    meets: Bool[Array, ""]


class DescentResult(NamedTuple):
    """What `descend` returns; fields as in `DescentState`, and:

    Attributes:
      status: a `Status`. CONVERGED when the criterion holds at the last theta, DIVERGED when its loss is not finite,
        STEP_LIMIT otherwise.
      measured_at: the step of every record, or None when nothing is measured. After a run has stopped, its last
        record is repeated.
      measurements: the records, stacked along a leading axis, or None.
    """

    params: Any
    status: Int[Array, ""]
    steps: Int[Array, ""]
    loss: Float[Array, ""]
    best_loss: Float[Array, ""]
    converged_at: Int[Array, ""]
    measured_at: Int[Array, " records"] | None = None
    measurements: PyTree = None


def _takes(function: Callable, *arguments: Any, **keywords: Any) -> bool:
    """Whether a function can be called like this; True where Python cannot tell."""
    try:
        inspect.signature(function).bind(*arguments, **keywords)
    except TypeError:
        return False
    except ValueError:
        return True
    return True


def _nodes(tree: PyTree) -> list[Any]:
    """The tree and all trees in it that are tuples, lists or dictionaries."""
    children = tree.values() if isinstance(tree, dict) else tree if isinstance(tree, tuple | list) else ()
    return [tree] + [node for child in children for node in _nodes(child)]


@dataclasses.dataclass(frozen=True)
class Descent:
    """A descent as data: `start` makes a state, `advance` takes steps, `result` reads off how it ended.

    `descend` runs all three; a caller who wants to stop, save or interleave runs uses them directly. The fields are
    the keyword arguments of `descend`.

    Raises:
      ValueError: a field is not one of the allowed values, or fields contradict each other.
    """

    optimizer: optax.GradientTransformation
    normalization: Normalization = "half_sum"
    trained_layers: TrainedLayers = "both"
    batch_size: int | None = None
    at_zero: Any = 0.0
    criterion: Criterion | None = None
    stop: Stop = "first_passage"
    losses: Callable[..., SampleLosses] = sample_losses

    def __post_init__(self) -> None:
        for name, value, allowed in (
            ("normalization", self.normalization, get_args(Normalization)),
            ("trained_layers", self.trained_layers, get_args(TrainedLayers)),
            ("stop", self.stop, get_args(Stop)),
        ):
            if value not in allowed:
                raise ValueError(f"{name} must be one of {allowed}, got {value!r}")
        if self.batch_size is not None:
            whole_number("batch_size", self.batch_size)
        if self.losses is sample_losses:
            return
        if callable(self.at_zero):
            raise ValueError("a selection of slopes is for the shallow network with the squared loss")
        if not _takes(self.losses, None, at_zero=0.0):
            raise ValueError("losses must take a problem and the keyword at_zero, and return the map to the losses")
        if self.normalization == "mean" and not getattr(self.losses, "is_squared", False):
            raise ValueError(
                "normalization='mean' is the mean of squared errors, for the squared loss alone; "
                "the mean of the losses is 'sample_mean'"
            )

    def _trained(self, params: Any) -> PyTree:
        if self.trained_layers == "hidden" and not isinstance(params, Params):
            raise ValueError(f"trained_layers='hidden' needs Params, got {type(params).__name__}")
        return params.W if self.trained_layers == "hidden" else params

    def _with_trained(self, params: Any, trained: PyTree) -> Any:
        return params._replace(W=trained) if self.trained_layers == "hidden" else trained

    def _evaluator(self, problem: Problem, key: Any) -> tuple[Callable, Callable]:
        """What is known of theta before step k + 1.

        Returns:
          A function of (trained weights, theta, k), the objective of step k + 1, with the losses that it is made of;
          and one of (theta, k), that objective, its gradient, and the losses of all samples.
        """
        num_samples, d2 = problem.Y.shape
        if self.batch_size is not None and self.batch_size > num_samples:
            raise ValueError(f"batch_size {self.batch_size} exceeds the number of samples N = {num_samples}")
        if key is None and self.batch_size is not None:
            raise ValueError("mini-batches need a key")
        if key is None and callable(self.at_zero):
            raise ValueError("a selection of slopes needs a key")
        losses_of = self.losses(problem) if callable(self.at_zero) else self.losses(problem, at_zero=self.at_zero)
        # No step has this number, so that slopes and mini-batches are independent.
        choices: Any = key if key is None else jax.random.fold_in(key, np.uint32(2**32 - 1))

        def losses_of_step(params: Any, step: Int[Array, ""]) -> Float[Array, " batch"]:
            samples = None
            if self.batch_size is not None:
                samples = jax.random.permutation(jax.random.fold_in(key, step), num_samples)[: self.batch_size]
            if not callable(self.at_zero):
                return losses_of(params, samples)
            batch = problem if samples is None else Problem(problem.X[samples], problem.Y[samples])
            slopes = self.at_zero(jax.lax.stop_gradient(params), batch, jax.random.fold_in(choices, step))
            return sample_losses(batch, slopes=jax.lax.stop_gradient(slopes))(params)

        def objective(trained: PyTree, params: Any, step: Int[Array, ""]) -> tuple[Array, Array]:
            losses = losses_of_step(self._with_trained(params, trained), step)
            return normalize(losses, d2, self.normalization), losses

        def evaluate(params: Any, step: Int[Array, ""]) -> tuple[Array, PyTree, Array]:
            (value, losses), gradient = jax.value_and_grad(objective, has_aux=True)(self._trained(params), params, step)
            return value, gradient, losses if self.batch_size is None else losses_of(params, None)

        return objective, evaluate

    def _check_losses(self, problem: Problem, params: Any) -> jax.ShapeDtypeStruct:
        """The shape of the losses of all samples, when it is right, and so is that of a batch and of the criterion."""
        losses_of = self.losses(problem, at_zero=0.0)
        if not _takes(losses_of, None, None):
            raise ValueError("the map from theta to the losses must take theta and, as an option, which samples")

        def check(samples: Any, expected: tuple[int, ...]) -> jax.ShapeDtypeStruct:
            found = jax.eval_shape(losses_of, params, samples)
            if getattr(found, "shape", None) != expected or not jnp.issubdtype(found.dtype, jnp.floating):
                raise ValueError(f"the losses of {expected[0]} samples must be floats of shape {expected}, got {found}")
            return found

        num_samples = problem.Y.shape[0]
        losses = check(None, (num_samples,))
        if self.batch_size is not None and self.batch_size <= num_samples:
            check(jax.ShapeDtypeStruct((self.batch_size,), jnp.int32), (self.batch_size,))
        if self.criterion is not None:
            met = jax.eval_shape(self.criterion, losses, problem)
            if getattr(met, "shape", None) != () or met.dtype != bool:
                raise ValueError(f"the criterion must return one truth value, got {met}")
        return losses

    def _observe(self, state: DescentState, losses: Float[Array, " N"], problem: Problem) -> DescentState:
        loss = jnp.sum(losses)
        meets = jnp.bool_(False) if self.criterion is None else jnp.asarray(self.criterion(losses, problem))
        return state._replace(
            loss=loss,
            best_loss=jnp.minimum(state.best_loss, jnp.where(jnp.isnan(loss), jnp.inf, loss)),
            converged_at=jnp.where(meets & (state.converged_at < 0), state.steps, state.converged_at),
            meets=meets,
        )

    def start(self, params: Any, problem: Problem) -> DescentState:
        """The state before theta_0 has been looked at: its first step, number 0, evaluates theta_0 and moves nothing.

        Raises:
          ValueError: shapes do not fit, `losses` or the criterion is not of the right kind, or the optimizer is
            optax.lookahead.
        """
        losses = self._check_losses(Problem(*map(jnp.asarray, problem)), params)
        trained = self._trained(params)
        optimizer_state = self.optimizer.init(trained)
        if any(isinstance(node, optax.LookaheadState) for node in _nodes(optimizer_state)):
            raise ValueError("optax.lookahead needs parameters of its own kind, and is not for descend")
        return DescentState(
            params=params,
            optimizer_state=optimizer_state,
            # What the first step does with it is thrown away, but has to have finite derivatives.
            gradient=jax.tree.map(jnp.ones_like, trained),
            objective=jnp.ones((), losses.dtype),
            steps=jnp.int32(-1),
            loss=jnp.zeros((), losses.dtype),
            best_loss=jnp.full((), jnp.inf, losses.dtype),
            converged_at=jnp.int32(-1),
            meets=jnp.bool_(False),
        )

    def is_done(self, state: DescentState) -> Bool[Array, ""]:
        """Whether the run has stopped by itself: the loss is not finite, or the stopping rule is met."""
        diverged = ~jnp.isfinite(state.loss)
        return diverged | state.meets if self.stop == "first_passage" else diverged

    def advance(
        self,
        state: DescentState,
        problem: Problem,
        num_steps: int | Int[Array, ""],
        key: Key[Array, ""] | None = None,
        *,
        differentiable: bool = False,
    ) -> DescentState:
        """Up to `num_steps` more steps; fewer when the run stops by itself.

        Args:
          state: where to go on from.
          problem: the training set.
          num_steps: at most so many updates; traced or not.
          key: of the mini-batches and of a selection; step k + 1 draws its batch from `fold_in(key, k)`.
          differentiable: use a loop of fixed length, which reverse-mode differentiation can go through. `num_steps`
            must then be an int.

        Raises:
          ValueError: shapes do not fit, num_steps is known and no whole number from 0 on, the batch exceeds N,
            mini-batches or a selection have no key, or the optimizer wants what is not there.
        """
        problem = Problem(*map(jnp.asarray, problem))
        if not isinstance(num_steps, jax.Array):
            num_steps = whole_number("num_steps", num_steps, 0)
        objective, evaluate = self._evaluator(problem, key)
        optimizer = optax.with_extra_args_support(self.optimizer)

        def update(state: DescentState, trained: PyTree) -> tuple[PyTree, PyTree]:
            """The optimizer's updates and state; some want the objective, and line searches a function for it."""
            value_fn = lambda trial: objective(trial, state.params, jnp.maximum(state.steps, 0))[0]
            known = dict(value=state.objective, grad=state.gradient, value_fn=value_fn)
            try:
                updates, new = optimizer.update(state.gradient, state.optimizer_state, trained, **known)
            except (AttributeError, TypeError) as error:
                raise ValueError(
                    f"the optimizer must do with the gradient, the weights, value, grad and value_fn: {error}"
                ) from error
            return updates, jax.tree.map(lambda a, b: jnp.asarray(b, jnp.result_type(a)), state.optimizer_state, new)

        def step(state: DescentState) -> DescentState:
            trained = self._trained(state.params)
            updates, optimizer_state = update(state, trained)
            # One evaluation for theta_0 and all that follow: half as much to compile as with one of its own before the
            # loop.
            old = (trained, state.optimizer_state)
            new = (optax.apply_updates(trained, updates), optimizer_state)
            trained, optimizer_state = jax.tree.map(lambda a, b: jnp.where(state.steps < 0, a, b), old, new)
            params, steps = self._with_trained(state.params, trained), state.steps + 1
            value, gradient, losses = evaluate(params, steps)
            moved = state._replace(
                params=params, optimizer_state=optimizer_state, gradient=gradient, objective=value, steps=steps
            )
            return self._observe(moved, losses, problem)

        last = jnp.maximum(state.steps, 0) + num_steps

        if differentiable:

            def step_unless_done(_, state: DescentState) -> DescentState:
                done = self.is_done(state) | (state.steps >= last)
                return jax.tree.map(lambda old, new: jnp.where(done, old, new), state, step(state))

            return jax.lax.fori_loop(0, num_steps + 1, step_unless_done, state)
        return jax.lax.while_loop(lambda state: (state.steps < last) & ~self.is_done(state), step, state)

    def result(self, state: DescentState) -> DescentResult:
        """How a run that takes no more steps ended."""
        status = jnp.where(state.meets, Status.CONVERGED, Status.STEP_LIMIT)
        return DescentResult(
            params=state.params,
            status=jnp.where(jnp.isfinite(state.loss), status, Status.DIVERGED).astype(jnp.int8),
            steps=state.steps,
            loss=state.loss,
            best_loss=state.best_loss,
            converged_at=state.converged_at,
        )


def descend(
    params: Any,
    problem: Problem,
    *,
    num_steps: int,
    optimizer: optax.GradientTransformation | None = None,
    normalization: Normalization = "half_sum",
    trained_layers: TrainedLayers = "both",
    batch_size: int | None = None,
    key: Key[Array, ""] | None = None,
    at_zero: Real[ArrayLike, "*#shape"] | Selection = 0.0,
    criterion: Criterion | None = None,
    stop: Stop = "first_passage",
    losses: Callable[..., SampleLosses] = sample_losses,
    measure: Callable[[Any], PyTree] | None = None,
    measure_every: int = 1,
    differentiable: bool = False,
) -> DescentResult:
    """The sequence theta_{k+1} in theta_k - eta dL^b(theta_k, xi_{k+1}), or any other optax optimizer's.

    Equation (14) as printed lacks theta_k on its right-hand side. The theory's SGD has no momentum
    (`optax.sgd(learning_rate)`); Section 6's experiments have. Pure: jit, vmap and forward-mode differentiation work,
    and reverse mode with `differentiable`.

    Args:
      params: theta_0, `Params` or the pytree that `losses` is for. Its dtype is the precision of everything that
        follows.
      problem: the training set; every sample is one of the N.
      num_steps: the largest number of updates.
      optimizer: any optax optimizer, also one that takes the objective's value or a function for it (polyak_sgd,
        lbfgs), on the samples of the step; not optax.lookahead. None for the paper's (`paper_optimizer`), with the
        paper's network and loss.
      normalization: the objective, "half_sum" (the paper's L, the sum of the sample losses), "mean" (mean squared
        error) or "sample_mean" (the mean of the sample losses).
      trained_layers: "both", or "hidden" to keep V fixed.
      batch_size: b samples drawn uniformly without replacement and independently at every step (L^b of Section 5);
        None for all N. The loss over all samples is evaluated at every step all the same.
      key: of the mini-batches, and of a selection; the mini-batches are the same whatever `at_zero` is.
      at_zero: slope of relu at 0, in [0, 1], broadcast to N x d1; or a `selections.Selection`, which chooses at every
        step.
      criterion: which theta is a success, e.g. `relative_error_below(2.5e-3)`; None for none.
      stop: "first_passage" stops at the first theta that meets the criterion, theta_0 included; "never" goes on, and
        the criterion is then judged at the last theta. Either way a run stops when its loss is not finite.
      losses: an `Approximator`, for other networks and losses than the paper's; or any function from (problem,
        at_zero=...) to a map from (theta, samples=None) to the losses of the samples, of shape (N,), or of those whose
        indices are given.
      measure: a function of theta whose results are recorded, at theta_0 and after every `measure_every` steps.
      measure_every: number of steps between two records; the last record is at `num_steps` rounded down to a multiple.
      differentiable: see `Descent.advance`.

    Returns:
      A `DescentResult`.

    Raises:
      ValueError: shapes do not fit, an option is not one of the allowed values, a number is out of its range, or
        `losses`, criterion or optimizer are not of the right kind.
    """
    num_steps, measure_every = whole_number("num_steps", num_steps, 0), whole_number("measure_every", measure_every)
    if optimizer is None and losses is not sample_losses:
        raise ValueError(
            "without an optimizer descend takes the paper's, which is for the paper's network and loss: give one"
        )
    if trained_layers not in get_args(TrainedLayers):
        raise ValueError(f"trained_layers must be one of {get_args(TrainedLayers)}, got {trained_layers!r}")
    descent = Descent(
        optimizer=paper_optimizer(trained_layers) if optimizer is None else optimizer,
        normalization=normalization,
        trained_layers=trained_layers,
        batch_size=batch_size,
        at_zero=at_zero,
        criterion=criterion,
        stop=stop,
        losses=losses,
    )

    def advance(state: DescentState, steps: int) -> DescentState:
        return descent.advance(state, problem, steps, key, differentiable=differentiable)

    state = descent.start(params, problem)
    if measure is None:
        return descent.result(advance(state, num_steps))

    def advance_and_measure(state: DescentState, _) -> tuple[DescentState, tuple[Array, PyTree]]:
        state = advance(state, measure_every)
        return state, (state.steps, measure(state.params))

    first = (jnp.int32(0), measure(state.params))
    state, rest = jax.lax.scan(advance_and_measure, state, length=num_steps // measure_every)
    steps, measurements = jax.tree.map(lambda a, b: jnp.concatenate([jnp.asarray(a)[None], b]), first, rest)
    result = descent.result(advance(state, num_steps % measure_every))
    return result._replace(measured_at=steps, measurements=measurements)
