"""Gradient descent and mini-batch SGD sequences, (14) of the paper with theta_k restored (see `descend`)."""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, TypeAlias, get_args

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, ArrayLike, Bool, Float, Int, Key, PyTree, Real, ScalarLike

from relu_sgd._checks import check_fields, check_key, takes, whole_number
from relu_sgd._normalization import normalize
from relu_sgd.clarke.selections import Selection
from relu_sgd.dynamics import Status
from relu_sgd.network import Normalization, Params, SampleLosses, TrainedLayers, sample_losses
from relu_sgd.problem import Problem

__all__ = [
    "Criterion",
    "Descent",
    "DescentResult",
    "DescentState",
    "Evaluation",
    "Evaluator",
    "Stop",
    "StoppingRule",
    "descend",
    "gradient_norm_below",
    "mean_loss_below",
    "mean_squared_error_below",
    "paper_optimizer",
    "relative_error_below",
    "zero_loss",
]

Stop: TypeAlias = Literal["first_passage", "never"]
# Sample losses at theta and the training set, to whether theta is a success.
Criterion: TypeAlias = Callable[[Float[Array, " N"], Any], Bool[Array, ""]]


class Evaluation(NamedTuple):
    """What a step of descent wants to know of theta_k.

    Attributes:
      objective: what step k + 1 descends on, on its samples and in its normalization; a number.
      gradient: the objective's gradient, a pytree like the trained weights.
      losses: the losses of all samples, of shape (N,).
    """

    objective: Float[Array, ""]
    gradient: PyTree
    losses: Float[Array, " N"]


# From theta and the number k of updates made.
Evaluator: TypeAlias = Callable[[Any, Int[Array, ""]], Evaluation]


def _tolerance(value: ScalarLike) -> ScalarLike:
    if isinstance(value, jax.core.Tracer):
        return value
    array = np.asarray(value)
    if array.ndim or array.dtype.kind not in "iuf" or not 0 < array < np.inf:
        raise ValueError(
            f"a tolerance must be positive and finite, or nothing or everything is below it; got {value!r}"
        )
    return value


@dataclasses.dataclass(frozen=True, eq=False)
class _SquaredErrorCriterion:
    """A criterion that takes the losses for half squared errors."""

    holds: Criterion

    def __call__(self, losses: Float[Array, " N"], problem: Any) -> Bool[Array, ""]:
        return self.holds(losses, problem)


def relative_error_below(tolerance: ScalarLike) -> Criterion:
    """The paper's criterion, ||Y - Yhat||_F / ||Y||_F < tolerance (Section 6.2, with 2.5e-3); for squared losses.

    Raises:
      ValueError: the tolerance is known when traced and is no positive and finite number; so for all criteria here.
    """
    tolerance = _tolerance(tolerance)
    return _SquaredErrorCriterion(
        lambda losses, problem: jnp.sqrt(2 * jnp.sum(losses)) / jnp.linalg.norm(problem.Y) < tolerance
    )


def mean_squared_error_below(tolerance: ScalarLike) -> Criterion:
    """The released code's criterion, MSE / sqrt(N) < tolerance; for squared losses.

    For labels +-1 it is the relative error below sqrt(tolerance sqrt(N)): 0.188 at N = 200 with 2.5e-3, 75 times laxer
    than the paper's.
    """
    tolerance = _tolerance(tolerance)
    return _SquaredErrorCriterion(
        lambda losses, problem: normalize(losses, problem.Y.shape[1], "mean") < tolerance * jnp.sqrt(problem.Y.shape[0])
    )


def mean_loss_below(tolerance: ScalarLike) -> Criterion:
    """The mean of the sample losses below a tolerance, for losses other than the squared one."""
    tolerance = _tolerance(tolerance)
    return lambda losses, problem: jnp.mean(losses) < tolerance


def paper_optimizer(trained_layers: TrainedLayers) -> optax.GradientTransformation:
    """SGD with momentum 0.9 (v <- 0.9 v + g, theta <- theta - lr v) at Section 6's rate: 0.15 hidden, 0.002 both."""
    return optax.sgd(0.15 if trained_layers == "hidden" else 0.002, momentum=0.9)


class DescentState(NamedTuple):
    """A run after k updates; what is needed to go on is all in it.

    Attributes:
      problem: the training set.
      key: the random key of the mini-batches and of a selection; step k + 1 draws from `fold_in(key, k)`.
      params: theta_k, `Params` or the pytree of another approximator.
      step: k, the number of updates made.
      evaluated: whether theta_k has been evaluated; False at the start, before `Descent.advance_to` was called. What
        follows is then without meaning (the losses are infinite).
      optimizer_state: the optimizer's state for the trained weights.
      gradient: the gradient with respect to the trained weights at theta_k, which the next step takes.
      objective: the function whose gradient that is, at theta_k: on the samples of the next step, in its normalization.
      loss: L(theta_k), the sum of the losses of all samples (1/2 ||Y - Yhat||_F^2 unless told otherwise), whatever the
        objective and the batch.
      best_loss: the least of L(theta_0), ..., L(theta_k).
      losses: the losses of all samples at theta_k, of shape (N,); None without a stopping rule, since the loop pays
        for what it carries.
      converged_at: the first k at which the criterion held, -1 so far.
      meets: whether the criterion holds at theta_k.
      stopped: whether the stopping rule holds at theta_k.
    """

    problem: Any
    key: Key[Array, ""] | None
    params: Any
    step: Int[Array, ""]
    evaluated: Bool[Array, ""]
    optimizer_state: PyTree
    gradient: PyTree
    objective: Float[Array, ""]
    loss: Float[Array, ""]
    best_loss: Float[Array, ""]
    losses: Float[Array, " N"] | None
    converged_at: Int[Array, ""]
    meets: Bool[Array, ""]
    stopped: Bool[Array, ""]


# From the state after k updates, theta_k evaluated, to whether the run ends there.
StoppingRule: TypeAlias = Callable[[DescentState], Bool[Array, ""]]


def gradient_norm_below(tolerance: ScalarLike) -> StoppingRule:
    """The stopping rule ||gradient|| < tolerance: the Euclidean norm over all trained weights, of the step's objective.

    Raises:
      ValueError: the tolerance is known when traced and is no positive and finite number.
    """
    tolerance = _tolerance(tolerance)
    return lambda state: optax.tree.norm(state.gradient) < tolerance


def zero_loss(state: DescentState) -> Bool[Array, ""]:
    """The stopping rule L(theta_k) = 0, to the last bit: for losses that reach it, as hinges do."""
    return state.loss == 0


class DescentResult(NamedTuple):
    """What `descend` returns; fields as in `DescentState`, and:

    Attributes:
      status: the first that applies: PENDING when theta_0 was never evaluated, DIVERGED when the last loss is not
        finite, CONVERGED when the criterion holds at the last theta, STOPPED when the stopping rule does,
        MAX_STEPS_REACHED.
      steps: the number of updates made.
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


def _check_scalar(name: str, kind: Any, function: Callable[..., Any], *arguments: Any) -> jax.ShapeDtypeStruct:
    """What a function returns for such arguments, when it can be called and returns one value of a kind."""
    wanted = "truth value" if kind is bool else "float"
    try:
        value = jax.eval_shape(function, *arguments)
    except (AttributeError, TypeError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"the {name} must do with {len(arguments)} arguments of this run: {reason}") from error
    if getattr(value, "shape", None) != () or not jnp.issubdtype(value.dtype, kind):
        raise ValueError(f"the {name} must return one {wanted}, got {value}")
    return value


@dataclasses.dataclass(frozen=True)
class Descent:
    """A descent as `dynamics.Dynamics`: `init` makes a state, `advance_to` takes steps, `result` reads off its end.

    `descend` calls all three; a caller who wants to stop, save, map or interleave runs uses them directly. The fields
    are the keyword arguments of `descend`.

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
    stopping_rule: StoppingRule | None = None
    losses: Callable[..., SampleLosses] = sample_losses
    objective: Callable[..., Float[Array, ""]] | None = None
    kernel: Callable[[Any, Any], Evaluator] | None = None

    def __post_init__(self) -> None:
        for name, value, allowed in (
            ("normalization", self.normalization, get_args(Normalization)),
            ("trained_layers", self.trained_layers, get_args(TrainedLayers)),
            ("stop", self.stop, get_args(Stop)),
        ):
            if value not in allowed:
                raise ValueError(f"{name} must be one of {allowed}, got {value!r}")
        if not all(callable(getattr(self.optimizer, name, None)) for name in ("init", "update")):
            raise ValueError(f"optimizer must be one of optax, with init and update, got {self.optimizer!r}")
        if not (
            callable(self.at_zero)
            or isinstance(self.at_zero, jax.Array)
            or np.asarray(self.at_zero).dtype.kind in "buif"
        ):
            raise ValueError(f"at_zero must be a number, an array or a selection, got {self.at_zero!r}")
        if self.batch_size is not None:
            whole_number("batch_size", self.batch_size)
        for name in ("criterion", "stopping_rule", "objective", "kernel"):
            if not (getattr(self, name) is None or callable(getattr(self, name))):
                raise ValueError(f"{name} must be a function, got {getattr(self, name)!r}")
        if not callable(self.losses):
            raise ValueError(f"losses must be a function, got {self.losses!r}")
        if self.objective is not None:
            self._check_objective()
        elif self.losses is not sample_losses:
            if callable(self.at_zero):
                raise ValueError("a selection of slopes is for the shallow network with the squared loss")
            if not takes(self.losses, None, at_zero=0.0):
                raise ValueError(
                    "losses must have the signature losses(problem, *, at_zero) -> (theta, samples=None) -> N floats; "
                    "a loss(outputs, labels) goes through approximators.shallow(loss=...)"
                )
            if not getattr(self.losses, "is_squared", False):
                if self.normalization == "mean":
                    raise ValueError(
                        "normalization='mean' is the mean of squared errors, for the squared loss alone; "
                        "the mean of the losses is 'sample_mean'"
                    )
                if isinstance(self.criterion, _SquaredErrorCriterion):
                    raise ValueError(
                        "the criterion is one of squared errors, for the squared loss alone; "
                        "for other losses there is mean_loss_below"
                    )

    def _check_objective(self) -> None:
        """Whether everything about samples is left out."""
        contradictions = {
            "losses": self.losses is not sample_losses,
            "batch_size": self.batch_size is not None,
            "normalization": self.normalization != "half_sum",
            "at_zero": callable(self.at_zero) or np.ndim(self.at_zero) > 0 or self.at_zero != 0,
        }
        if names := [name for name, is_set in contradictions.items() if is_set]:
            raise ValueError(f"an objective is a function of theta as a whole; leave out {', '.join(names)}")

    def _trained(self, params: Any) -> PyTree:
        if self.trained_layers == "hidden" and not isinstance(params, Params):
            raise ValueError(f"trained_layers='hidden' needs Params, got {type(params).__name__}")
        return params.W if self.trained_layers == "hidden" else params

    def _with_trained(self, params: Any, trained: PyTree) -> Any:
        return params._replace(W=trained) if self.trained_layers == "hidden" else trained

    def _objective(self, problem: Any, key: Any) -> tuple[Callable[..., Any], Callable[..., Any]]:
        """What the steps descend on.

        Returns:
          A function of (trained weights, theta, k), the objective of step k + 1 with the losses that it is made of;
          and one of theta, the losses of all samples.
        """
        if self.objective is not None:
            data = () if problem is None else (problem,)
            total = self.objective

            def whole(trained: PyTree, params: Any, step: Int[Array, ""]) -> tuple[Array, Array]:
                value = jnp.asarray(total(self._with_trained(params, trained), *data))
                return value, value[None]

            return whole, lambda params: jnp.asarray(total(params, *data))[None]

        num_samples, d2 = problem.Y.shape
        if self.batch_size is not None and self.batch_size > num_samples:
            raise ValueError(f"batch_size {self.batch_size} exceeds the number of samples N = {num_samples}")
        if key is None and self.batch_size is not None:
            raise ValueError("mini-batches need a key")
        if key is None and callable(self.at_zero):
            raise ValueError("a selection of slopes needs a key")
        if key is not None:
            check_key(key)
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

        return objective, lambda params: losses_of(params, None)

    def evaluator(self, problem: Any, key: Key[Array, ""] | None = None) -> Evaluator:
        """The map from (theta, k) to what step k + 1 wants to know: `kernel`'s, or automatic differentiation's.

        Raises:
          ValueError: shapes do not fit, the batch exceeds N, or mini-batches or a selection have no key.
        """
        if self.kernel is not None:
            return self.kernel(problem, key)
        objective, losses_of = self._objective(problem, key)

        def evaluate(params: Any, step: Int[Array, ""]) -> Evaluation:
            (value, losses), gradient = jax.value_and_grad(objective, has_aux=True)(self._trained(params), params, step)
            return Evaluation(value, gradient, losses if self.batch_size is None else losses_of(params))

        return evaluate

    def _check_kinds(self, problem: Any, params: Any) -> None:
        """Whether theta, and the training set where there is one, are of the right kind."""
        if self.objective is None and problem is not None and not hasattr(problem, "Y"):
            check_fields("problem", problem, Problem)
        if self.losses is sample_losses and self.objective is None and problem is not None:
            check_fields("params", params, Params)
        leaves = jax.tree.leaves(self._trained(params))
        if not leaves:
            raise TypeError(f"params must be theta_0, a pytree of arrays, got {params!r}")
        for leaf in leaves:
            if not jnp.issubdtype(jnp.result_type(leaf), jnp.floating):
                raise TypeError(f"the trained weights must be floats, got {jnp.result_type(leaf)}")

    def _check_losses(self, problem: Any, params: Any) -> jax.ShapeDtypeStruct:
        """The shape of the losses of all samples, when it is right, and so is that of a batch."""
        if self.objective is not None:
            data = () if problem is None else (problem,)
            if not takes(self.objective, params, *data):
                raise ValueError(f"the objective must take {'theta' if problem is None else 'theta and the problem'}")
            value = _check_scalar("objective", jnp.floating, self.objective, params, *data)
            return jax.ShapeDtypeStruct((1,), value.dtype)
        if problem is None:
            raise ValueError("without an objective of its own a descent needs a problem")
        losses_of = self.losses(problem, at_zero=0.0)
        if not takes(losses_of, None, None):
            raise ValueError("what losses(problem, at_zero=...) returns must have the signature (theta, samples=None)")

        def check(samples: Any, expected: tuple[int, ...]) -> jax.ShapeDtypeStruct:
            losses = jax.eval_shape(losses_of, params, samples)
            if getattr(losses, "shape", None) != expected or not jnp.issubdtype(losses.dtype, jnp.floating):
                raise ValueError(
                    f"the losses of {expected[0]} samples must be floats of shape {expected}, got {losses}"
                )
            return losses

        num_samples = problem.Y.shape[0]
        losses = check(None, (num_samples,))
        if self.batch_size is not None and self.batch_size <= num_samples:
            check(jax.ShapeDtypeStruct((self.batch_size,), jnp.int32), (self.batch_size,))
        return losses

    def _check_rules(self, state: DescentState, losses: jax.ShapeDtypeStruct) -> None:
        """Whether criterion, stopping rule and kernel return what they should."""
        if self.criterion is not None:
            _check_scalar("criterion", bool, self.criterion, losses, state.problem)
        if self.stopping_rule is not None:
            _check_scalar("stopping rule", bool, self.stopping_rule, state)
        if self.kernel is not None:
            kinds = lambda tree: jax.tree.map(lambda leaf: (jnp.shape(leaf), jnp.result_type(leaf)), tree)
            expected = kinds((state.objective, state.gradient, losses))
            evaluate = lambda now: self.evaluator(now.problem, now.key)(now.params, now.step)
            actual = jax.eval_shape(evaluate, state)
            if not isinstance(actual, Evaluation) or kinds(tuple(actual)) != expected:
                raise ValueError(
                    "the kernel must return an Evaluation, objective, gradient and losses of these shapes and types: "
                    f"{expected}; got {actual}"
                )

    def _observe(self, state: DescentState, losses: Float[Array, " N"]) -> DescentState:
        loss = jnp.sum(losses)
        meets = jnp.bool_(False) if self.criterion is None else jnp.asarray(self.criterion(losses, state.problem))
        state = state._replace(
            evaluated=jnp.bool_(True),
            loss=loss,
            best_loss=jnp.minimum(state.best_loss, jnp.where(jnp.isnan(loss), jnp.inf, loss)),
            converged_at=jnp.where(meets & (state.converged_at < 0), state.step, state.converged_at),
            meets=meets,
        )
        if self.stopping_rule is None:
            return state
        state = state._replace(losses=losses)
        return state._replace(stopped=jnp.asarray(self.stopping_rule(state)))

    def init(self, problem: Any, params: Any, key: Key[Array, ""] | None = None) -> DescentState:
        """The state at theta_0, which is not evaluated yet: `advance_to` does it first, and `advance_to(state, 0)` that
        alone.

        Args:
          problem: the training set; with an objective of one's own, what it takes besides theta, or None.
          params: theta_0.
          key: the random key for mini-batches and a selection.

        Raises:
          TypeError: params, problem or key are of another kind.
          ValueError: shapes do not fit, the batch exceeds N, mini-batches or a selection have no key, what was given
            as losses, objective, criterion, stopping rule or kernel is not of the right kind, or the optimizer is
            optax.lookahead.
        """
        self._check_kinds(problem, params)
        problem = jax.tree.map(jnp.asarray, problem)
        losses = self._check_losses(problem, params)
        self._objective(problem, key)  # Sizes and key.
        trained = self._trained(params)
        optimizer_state = self.optimizer.init(trained)
        is_lookahead = lambda node: isinstance(node, optax.LookaheadState)
        if any(map(is_lookahead, jax.tree.leaves(optimizer_state, is_leaf=is_lookahead))):
            raise ValueError("optax.lookahead needs parameters of its own kind, and is not for descend")
        infinite = jnp.full((), jnp.inf, losses.dtype)
        begun = DescentState(
            problem=problem,
            key=key,
            params=params,
            step=jnp.int32(0),
            evaluated=jnp.bool_(False),
            optimizer_state=optimizer_state,
            # What the first pass of the loop does with it is thrown away, but has to have finite derivatives.
            gradient=jax.tree.map(jnp.ones_like, trained),
            objective=jnp.ones((), losses.dtype),
            loss=infinite,
            best_loss=infinite,
            losses=None,
            converged_at=jnp.int32(-1),
            meets=jnp.bool_(False),
            stopped=jnp.bool_(False),
        )
        state = self._to_be_judged(begun, losses)
        self._check_rules(state, losses)
        return state

    def _to_be_judged(self, state: DescentState, losses: jax.ShapeDtypeStruct) -> DescentState:
        """The state before theta_k is evaluated and its losses judged."""
        return state._replace(
            evaluated=jnp.bool_(False),
            losses=None if self.stopping_rule is None else jnp.full(losses.shape, jnp.inf, losses.dtype),
            converged_at=jnp.int32(-1),
            meets=jnp.bool_(False),
            stopped=jnp.bool_(False),
        )

    def take_over(self, state: DescentState) -> DescentState:
        """The state of another descent with the same optimizer, to go on by the criterion and the rules of this one.

        theta_k is evaluated again, at its step, and judged anew; `converged_at` is of this criterion.

        Raises:
          ValueError: criterion, stopping rule or kernel are not of the right kind.
        """
        losses = self._check_losses(state.problem, state.params)
        state = self._to_be_judged(state, losses)
        self._check_rules(state, losses)
        return state

    def done(self, state: DescentState) -> Bool[Array, ""]:
        """Whether the run has ended by itself: the loss is not finite, the stopping rule holds, or, unless `stop` is
        "never", the criterion.
        """
        ended = ~jnp.isfinite(state.loss)
        if self.stop == "first_passage":
            ended = ended | state.meets
        if self.stopping_rule is not None:
            ended = ended | state.stopped
        return state.evaluated & ended

    def advance_to(
        self, state: DescentState, step: int | Int[Array, ""], *, fixed_length: int | None = None
    ) -> DescentState:
        """On to an absolute step, or to where the run ends by itself; theta_0 is evaluated on the way.

        Args:
          state: the state to go on from; one of another descent goes through `take_over` first.
          step: the number of updates to have been made, counted from theta_0; traced or not.
          fixed_length: the most updates to make now, as an int, for a loop of fixed length, which reverse-mode
            differentiation can go through; None for a loop that ends when it can.

        Raises:
          ValueError: `step` or `fixed_length` is known and no whole number from 0 on, or the optimizer wants what is
            not there.
        """
        if not isinstance(step, jax.Array):
            step = whole_number("step", step, 0)
        if fixed_length is not None:
            length = whole_number("fixed_length", fixed_length, 0)
            step = jnp.minimum(step, state.step + length)
        problem, key = state.problem, state.key
        evaluate = self.evaluator(problem, key)
        optimizer = optax.with_extra_args_support(self.optimizer)

        def update(state: DescentState, trained: PyTree) -> tuple[PyTree, PyTree]:
            """The optimizer's updates and state; some want the objective, and line searches a function for it."""
            objective = self._objective(problem, key)[0]
            value_fn = lambda trial: objective(trial, state.params, state.step)[0]
            known = dict(value=state.objective, grad=state.gradient, value_fn=value_fn)
            try:
                # Where the caller is strict about types: optax's optimizers count steps in int32 and take powers of
                # floats.
                with jax.numpy_dtype_promotion("standard"):
                    updates, new = optimizer.update(state.gradient, state.optimizer_state, trained, **known)
            except (AttributeError, TypeError) as error:
                raise ValueError(
                    f"the optimizer must do with the gradient, the weights, value, grad and value_fn: {error}"
                ) from error
            return updates, jax.tree.map(lambda a, b: jnp.asarray(b, jnp.result_type(a)), state.optimizer_state, new)

        def take_step(state: DescentState) -> DescentState:
            trained = self._trained(state.params)
            updates, optimizer_state = update(state, trained)
            # One evaluation for theta_0 and all that follow: half as much to compile as with one of its own before the
            # loop.
            old = (trained, state.optimizer_state)
            new = (optax.apply_updates(trained, updates), optimizer_state)
            trained, optimizer_state = jax.tree.map(lambda a, b: jnp.where(state.evaluated, b, a), old, new)
            params = self._with_trained(state.params, trained)
            number = jnp.where(state.evaluated, state.step + 1, state.step)
            value, gradient, losses = evaluate(params, number)
            moved = state._replace(
                problem=problem,
                key=key,
                params=params,
                optimizer_state=optimizer_state,
                gradient=gradient,
                objective=value,
                step=number,
            )
            return without_problem(self._observe(moved, losses))

        # The loop closes over what it never changes.
        without_problem = lambda state: state._replace(problem=None, key=None)
        is_due = lambda state: (~state.evaluated | (state.step < step)) & ~self.done(state)
        state = without_problem(state)
        if fixed_length is None:
            state = jax.lax.while_loop(is_due, take_step, state)
        else:

            def step_if_due(_: Array, state: DescentState) -> DescentState:
                due = is_due(state)
                return jax.tree.map(lambda old, new: jnp.where(due, new, old), state, take_step(state))

            # One more, where theta_0 has not been evaluated.
            state = jax.lax.fori_loop(0, length + 1, step_if_due, state)
        return state._replace(problem=problem, key=key)

    def result(self, state: DescentState) -> DescentResult:
        """How a run that takes no more steps ended."""
        status = jnp.where(state.stopped, Status.STOPPED, Status.MAX_STEPS_REACHED)
        status = jnp.where(state.meets, Status.CONVERGED, status)
        status = jnp.where(jnp.isfinite(state.loss), status, Status.DIVERGED)
        return DescentResult(
            params=state.params,
            status=jnp.where(state.evaluated, status, Status.PENDING).astype(jnp.int8),
            steps=state.step,
            loss=state.loss,
            best_loss=state.best_loss,
            converged_at=state.converged_at,
        )


def descend(
    params: Any,
    problem: Any = None,
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
    stopping_rule: StoppingRule | None = None,
    losses: Callable[..., SampleLosses] = sample_losses,
    objective: Callable[..., Float[Array, ""]] | None = None,
    kernel: Callable[[Any, Any], Evaluator] | None = None,
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
      problem: the training set; every sample is one of the N. With an objective, see there.
      num_steps: the largest number of updates.
      optimizer: any optax optimizer, also one that takes the objective's value or a function for it (polyak_sgd,
        lbfgs), on the samples of the step; not optax.lookahead. None for the paper's (`paper_optimizer`), with the
        paper's network and loss.
      normalization: the objective, "half_sum" (the paper's L, the sum of the sample losses), "mean" (mean squared
        error) or "sample_mean" (the mean of the sample losses).
      trained_layers: "both", or "hidden" to keep V fixed.
      batch_size: b samples drawn uniformly without replacement and independently at every step (L^b of Section 5);
        None for all N. The loss over all samples is evaluated at every step all the same.
      key: the random key for mini-batches and a selection; the mini-batches are the same whatever `at_zero` is.
      at_zero: slope of relu at 0, in [0, 1], broadcast to N x d1; or a `selections.Selection`, which chooses at every
        step.
      criterion: the criterion of success, e.g. `relative_error_below(2.5e-3)`; None for none.
      stop: "first_passage" stops at the first theta that meets the criterion, theta_0 included; "never" goes on, and
        the criterion is then judged at the last theta. Either way a run stops when its loss is not finite.
      stopping_rule: a rule to stop by besides, whether theta is a success or not: from a `DescentState` (step k,
        params, gradient, losses, problem) to a truth value, asked at theta_0 and after every update.
        `gradient_norm_below` and `zero_loss` are two. A run that it ends is STOPPED, or CONVERGED where the criterion
        holds as well.
      losses: an `Approximator`, for other networks and losses than the paper's; or any function from (problem,
        at_zero=...) to a map from (theta, samples=None) to the losses of the samples, of shape (N,), or of those whose
        indices are given.
      objective: a function from theta to a float, in place of a sum over samples; from (theta, problem) where a problem
        is given, which then may be any pytree. The criterion sees the array of its one value as losses.
      kernel: an evaluator of one's own in place of automatic differentiation, from (problem, key) to a function of
        (theta, k) that returns an `Evaluation`. Losses, objective, normalization and batch size say what it computes;
        line searches evaluate those.
      measure: a function of theta whose results are recorded, at theta_0 and after every `measure_every` steps.
      measure_every: number of steps between two records; the last record is at `num_steps` rounded down to a multiple.
      differentiable: whether loops have fixed length, which reverse-mode differentiation can go through; without it
        `jax.grad` raises JAX's ValueError about reverse mode and `while_loop`.

    Returns:
      A `DescentResult`.

    Raises:
      TypeError: params, problem or key are of another kind.
      ValueError: shapes do not fit, an option is not one of the allowed values, a number is out of its range, or
        `losses`, objective, criterion, stopping rule, kernel or optimizer are not of the right kind.
    """
    num_steps, measure_every = whole_number("num_steps", num_steps, 0), whole_number("measure_every", measure_every)
    if optimizer is None and (losses is not sample_losses or objective is not None):
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
        stopping_rule=stopping_rule,
        losses=losses,
        objective=objective,
        kernel=kernel,
    )

    def advance(state: DescentState, step: int | Int[Array, ""], length: int) -> DescentState:
        return descent.advance_to(state, step, fixed_length=length if differentiable else None)

    state = descent.init(problem, params, key)
    if measure is None:
        return descent.result(advance(state, num_steps, num_steps))

    def advance_and_measure(state: DescentState, step: Int[Array, ""]) -> tuple[DescentState, tuple[Array, PyTree]]:
        state = advance(state, step, measure_every)
        return state, (state.step, measure(state.params))

    first = (jnp.int32(0), measure(state.params))
    due = measure_every * jnp.arange(1, num_steps // measure_every + 1, dtype=jnp.int32)
    state, rest = jax.lax.scan(advance_and_measure, state, due)
    steps, measurements = jax.tree.map(lambda a, b: jnp.concatenate([jnp.asarray(a)[None], b]), first, rest)
    result = descent.result(advance(state, num_steps, num_steps % measure_every))
    return result._replace(measured_at=steps, measurements=measurements)
