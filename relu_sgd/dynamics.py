"""What a run is: a start, a way on, an end. `descend` follows this protocol, and so may a run of one's own."""

import abc
import enum
from typing import Any, Generic, Protocol, TypeVar

import jax
from jaxtyping import Array, Bool, Int, Key, PyTree

__all__ = ["Dynamics", "Status", "Stepwise"]

StateT = TypeVar("StateT")
ResultT = TypeVar("ResultT", covariant=True)


class Status(enum.IntEnum):
    """How a run ended, whatever its dynamics; PENDING marks one that has not."""

    PENDING = 0
    CONVERGED = 1  # The criterion of success holds at the end.
    MAX_STEPS_REACHED = 2
    DIVERGED = 3  # The loss is not finite.
    STOPPED = 4  # A stopping rule ended it, short of the criterion.
    REACHED = 5  # The inclusion: the final time, or the error that was asked for.
    BRANCHING = 6  # The inclusion: the solution is not unique from here on.
    KINK_LIMIT = 7  # The inclusion: a neuron has more kinks than there is room for.
    UNDECIDED = 8  # The inclusion: its velocity is not known, or errors have grown too large to tell.


class Dynamics(Protocol[StateT, ResultT]):
    """A run as pure functions, which jit and vmap go through.

    The state is a pytree of arrays and holds all that is needed to go on, the problem and the random key included.
    Steps are absolute: a run begins at step 0. `sweeps.runtime.engine` maps any such run over lanes and devices;
    it reuses compiled programs where the dynamics are equal and cannot change, as a frozen dataclass.
    """

    def init(self, problem: PyTree, params: PyTree, key: Key[Array, ""] | None = None) -> StateT:
        """The state at step 0.

        Args:
          problem: the training set, or any pytree that describes what is solved.
          params: theta_0, any pytree.
          key: the random key for whatever the run draws.
        """
        ...

    def advance_to(self, state: StateT, step: int | Int[Array, ""]) -> StateT:
        """On to an absolute step; it takes no step of a state that is done, and none where it is there already.

        The state is asked at every step, and at step 0, whether it is done.
        """
        ...

    def done(self, state: StateT) -> Bool[Array, ""]:
        """Whether the run has ended by itself, and takes no more steps."""
        ...

    def result(self, state: StateT) -> ResultT:
        """What is kept of a run that takes no more steps."""
        ...


class Stepwise(abc.ABC, Generic[StateT, ResultT]):
    """`Dynamics` made of single steps: with `init`, `take_step`, `done` and `result` there is `advance_to`.

    The state must have an attribute `step`, the number of steps taken: 0 at first, and one more after every step.
    """

    @abc.abstractmethod
    def init(self, problem: PyTree, params: PyTree, key: Key[Array, ""] | None = None) -> StateT:
        """The state at step 0; see `Dynamics.init`."""

    @abc.abstractmethod
    def take_step(self, state: StateT) -> StateT:
        """The state one step on."""

    @abc.abstractmethod
    def done(self, state: StateT) -> Bool[Array, ""]:
        """Whether the run has ended by itself."""

    @abc.abstractmethod
    def result(self, state: StateT) -> ResultT:
        """What is kept of the run."""

    def advance_to(self, state: StateT, step: int | Int[Array, ""]) -> StateT:
        """On to an absolute step, or to where the run is done."""
        going: Any = lambda now: (now.step < step) & ~self.done(now)
        return jax.lax.while_loop(going, self.take_step, state)
