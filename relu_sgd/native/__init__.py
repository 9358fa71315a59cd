"""Gradient descent by compiled C++ in place of XLA's program: the same steps, faster on a CPU for small networks.

Full batch, the paper's network and the squared loss, momentum; float32 and float64. `NativeDescent` is a
`dynamics.Dynamics` as `Descent` is, with the same states, and jit, vmap and shard_map go through it. Its sums are taken
in another order, so that it agrees with `Descent` to rounding, not to the bit. XLA's program is the reference.

The code is compiled for the processor at hand when it is first used, by the compiler that CXX names or one that is
found, and kept in a folder (XDG_CACHE_HOME, ~/.cache unless set).
"""

import ctypes
import dataclasses
import functools
import hashlib
import importlib.metadata
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Int, Key

from relu_sgd._normalization import loss_scale, normalize
from relu_sgd.descent import (
    Descent,
    DescentResult,
    DescentState,
    Stop,
    mean_squared_error_below,
    relative_error_below,
)
from relu_sgd.network import Normalization, Params, TrainedLayers

__all__ = ["NativeDescent", "NativeError", "build"]

_SOURCE = Path(__file__).with_name("descent.cpp")
_FLAGS = ("-std=c++17", "-O3", "-fno-math-errno", "-fno-trapping-math", "-fPIC", "-shared")
_CRITERIA = {"relative_error": 1, "mean_squared_error": 2}


class NativeError(RuntimeError):
    """The compiled code is not to be had; the message is one line that says why."""


def _compiler() -> list[str]:
    named = os.environ.get("CXX")
    if named:
        return named.split()
    found = next(filter(None, map(shutil.which, ("c++", "g++", "clang++"))), None)
    if found is None:
        raise NativeError("there is no C++ compiler (c++, g++ or clang++); the variable CXX may name one")
    return [found]


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next((line for line in lines if line.startswith(("flags", "Features"))), platform.processor())
    except OSError:
        return platform.processor()


def _run(command: list[str]) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout
    except OSError as error:
        raise NativeError(f"cannot run the C++ compiler {command[0]}: {error.strerror or error}") from error
    except subprocess.CalledProcessError as error:
        lines = [line for line in error.stderr.splitlines() if "error" in line] or error.stderr.splitlines() or [""]
        raise NativeError(f"the C++ compiler {command[0]} failed: {lines[0].strip()}") from error


def build(folder: Path | None = None) -> Path:
    """The shared library for this processor, compiled unless it is there.

    Args:
      folder: the folder that keeps it; None for relu_sgd in XDG_CACHE_HOME or ~/.cache.

    Raises:
      NativeError: there is no compiler, it fails, or the folder cannot be written.
    """
    compiler = _compiler()
    parts = (
        _SOURCE.read_text(),
        *compiler,
        _run([*compiler, "--version"]),
        *_FLAGS,
        importlib.metadata.version("jaxlib"),
        _processor(),
    )
    name = hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]
    if folder is None:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "relu_sgd"
    path = folder / f"descent-{name}.so"
    if path.exists():
        return path
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as partial:
            whole = Path(partial) / path.name
            # ARM's compilers name the processor by another flag.
            native = "-march=native" if platform.machine() in ("x86_64", "AMD64") else "-mcpu=native"
            _run([*compiler, *_FLAGS, native, "-isystem", jax.ffi.include_dir(), str(_SOURCE), "-o", str(whole)])
            whole.replace(path)
    except OSError as error:
        raise NativeError(f"cannot write {folder}: {error.strerror or error}") from error
    return path


@functools.cache
def _targets() -> dict[str, str]:
    """Names under which JAX knows the compiled code, by precision."""
    try:
        library = ctypes.CDLL(str(build()))
    except OSError as error:
        raise NativeError(f"cannot load the compiled code: {error}") from error
    names = {precision: f"relu_sgd_descent_{precision}" for precision in ("float32", "float64")}
    for name in names.values():
        jax.ffi.register_ffi_target(name, jax.ffi.pycapsule(getattr(library, name)), platform="cpu")
    return names


def _is_stopped(state: DescentState) -> Array:
    return state.stopped


@dataclasses.dataclass(frozen=True)
class NativeDescent:
    """`Descent` by the compiled code; a state of one may be gone on with by the other.

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
      stoppable: whether a run ends where `stopped` is set in its state, which then carries the losses of the samples.

    Raises:
      NativeError: the code cannot be compiled or loaded.
      ValueError: a field is not one of the allowed values.
    """

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
            if isinstance(value, bool) or not isinstance(value, int | float) or not np.isfinite(value):
                raise ValueError(f"{name} must be a finite number, got {value!r}")
        if not 0 <= self.momentum < 1:
            raise ValueError(f"momentum must lie in [0, 1), got {self.momentum!r}")
        if not 0 <= self.at_zero <= 1:
            raise ValueError(f"at_zero must lie in [0, 1], got {self.at_zero!r}")
        if self.criterion not in (None, *_CRITERIA):
            raise ValueError(f"criterion must be one of {(None, *_CRITERIA)}, got {self.criterion!r}")
        _ = self.reference
        _targets()

    @functools.cached_property
    def reference(self) -> Descent:
        """The same descent by XLA's program."""
        criteria = {"relative_error": relative_error_below, "mean_squared_error": mean_squared_error_below}
        return Descent(
            optimizer=optax.sgd(self.learning_rate, momentum=self.momentum or None),
            normalization=self.normalization,
            trained_layers=self.trained_layers,
            at_zero=self.at_zero,
            criterion=None if self.criterion is None else criteria[self.criterion](self.tolerance),
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

    def advance_to(self, state: DescentState, step: int | Int[Array, ""]) -> DescentState:
        """As `Descent.advance_to`; not differentiable.

        Raises:
          ValueError: weights and data are not all float32 or all float64.
        """
        W, V = state.params
        kind, both = W.dtype, self.trained_layers == "both"
        kinds = {array.dtype.name for array in (*state.params, *state.problem)}
        if kinds not in ({"float32"}, {"float64"}):
            raise ValueError(f"weights and data must all be float32 or all float64, got {', '.join(sorted(kinds))}")
        (N, _), d2 = state.problem.X.shape, state.problem.Y.shape[1]
        nothing = jnp.zeros((0, 0), kind)
        gradient = state.gradient if both else Params(state.gradient, nothing)
        if self.momentum:
            trace = state.optimizer_state[0].trace
            velocity = trace if both else Params(trace, nothing)
        else:
            velocity = jax.tree.map(jnp.zeros_like, gradient)
        flags = (state.step, state.evaluated, state.converged_at, state.meets, state.stopped & self.stoppable)
        integers = jnp.stack([jnp.asarray(flag, jnp.int32) for flag in flags])
        arguments = (
            *state.problem,
            *(W, velocity.W, gradient.W),
            *(V, velocity.V, gradient.V),
            *(state.loss, state.best_loss, integers, jnp.asarray(step, jnp.int32)),
        )
        like = lambda *arrays: [jax.ShapeDtypeStruct(array.shape, array.dtype) for array in arrays]
        call = jax.ffi.ffi_call(
            _targets()[kind.name],
            [*like(*arguments[2:-1]), jax.ShapeDtypeStruct((N,), kind)],
            vmap_method="broadcast_all",
        )
        W, v_W, g_W, V, v_V, g_V, loss, best_loss, now, losses = call(
            *arguments,
            learning_rate=np.float64(self.learning_rate),
            momentum=np.float64(self.momentum),
            tolerance=np.float64(self.tolerance),
            at_zero=np.float64(self.at_zero),
            gradient_scale=np.float64(loss_scale(N, d2, self.normalization)),
            both_layers=np.bool_(both),
            first_passage=np.bool_(self.stop == "first_passage"),
            criterion=np.int32(0 if self.criterion is None else _CRITERIA[self.criterion]),
        )
        optimizer_state = state.optimizer_state
        if self.momentum:
            trace = Params(v_W, v_V) if both else v_W
            optimizer_state = (optimizer_state[0]._replace(trace=trace), *optimizer_state[1:])
        is_new = now[4] > 0
        return state._replace(
            params=Params(W, V) if both else state.params._replace(W=W),
            step=now[0],
            evaluated=now[1] > 0,
            optimizer_state=optimizer_state,
            gradient=Params(g_W, g_V) if both else g_W,
            objective=jnp.where(is_new, normalize(losses, d2, self.normalization), state.objective),
            loss=loss,
            best_loss=best_loss,
            losses=None if state.losses is None else jnp.where(is_new, losses, state.losses),
            converged_at=now[2],
            meets=now[3] > 0,
        )
