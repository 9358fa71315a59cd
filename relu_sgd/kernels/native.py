"""Gradient descent by compiled C++ in place of XLA's program: the same steps, faster on a CPU for small networks.

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
import shlex
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

import jax
import numpy as np
from jaxtyping import Array, Int

from relu_sgd._normalization import loss_scale
from relu_sgd.kernels._momentum_descent import CRITERIA, Advanced, Layers, MomentumDescent, Run

__all__ = ["NativeDescent", "NativeError", "build"]

_SOURCE = Path(__file__).with_name("descent.cpp")
_FLAGS = ("-std=c++17", "-O3", "-fno-math-errno", "-fno-trapping-math", "-fPIC", "-shared")
# Folders that a build works in, and after how many seconds one that was killed is known by its age.
_PARTIAL, _STALE = "build-", 3600.0


class NativeError(RuntimeError):
    """The compiled code is not to be had; the message is one line that says why."""


def _compiler() -> list[str]:
    if named := shlex.split(os.environ.get("CXX", "")):
        return named
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
        said = error.stderr.splitlines()
        lines = [line for line in said if "error" in line] or said or [f"status {error.returncode}"]
        raise NativeError(f"the C++ compiler {command[0]} failed: {lines[0].strip()}") from error


def _is_whole(path: Path) -> bool:
    """Whether a library is there as it was compiled."""
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest() == path.with_suffix(".sha256").read_text()
    except OSError:
        return False


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
    if _is_whole(path):
        return path
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for left in folder.glob(f"{_PARTIAL}*"):
            if time.time() - left.stat().st_mtime > _STALE:
                shutil.rmtree(left, ignore_errors=True)
        with tempfile.TemporaryDirectory(prefix=_PARTIAL, dir=folder) as partial:
            whole = Path(partial) / path.name
            # ARM's compilers name the processor by another flag.
            native = "-march=native" if platform.machine() in ("x86_64", "AMD64") else "-mcpu=native"
            _run([*compiler, *_FLAGS, native, "-isystem", jax.ffi.include_dir(), str(_SOURCE), "-o", str(whole)])
            # Loading what a crash of the machine has cut would end the process without a word.
            digest = whole.with_name("digest")
            digest.write_text(hashlib.sha256(whole.read_bytes()).hexdigest())
            whole.replace(path)
            digest.replace(path.with_suffix(".sha256"))
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


@dataclasses.dataclass(frozen=True)
class NativeDescent(MomentumDescent):
    """`MomentumDescent` by the compiled code, on a CPU, in float32 and float64; jit, vmap and shard_map go through it.

    Raises:
      NativeError: the code cannot be compiled or loaded.
      ValueError: a field is not one of the allowed values.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        _targets()

    def _advance(self, run: Run, step: Int[Array, ""]) -> Advanced:
        (N, _), d2, kind = run.X.shape, run.Y.shape[1], run.X.dtype
        same = [jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(run)[2:]]
        results = [*same, jax.ShapeDtypeStruct((N,), kind)]
        call = jax.ffi.ffi_call(_targets()[kind.name], results, vmap_method="broadcast_all")
        *layers, loss, best_loss, flags, losses = call(
            *jax.tree.leaves(run),
            step,
            learning_rate=np.float64(self.learning_rate),
            momentum=np.float64(self.momentum),
            tolerance=np.float64(self.tolerance),
            at_zero=np.float64(self.at_zero),
            gradient_scale=np.float64(loss_scale(N, d2, self.normalization)),
            both_layers=np.bool_(self.trained_layers == "both"),
            first_passage=np.bool_(self.stop == "first_passage"),
            criterion=np.int32(0 if self.criterion is None else 1 + list(CRITERIA).index(self.criterion)),
        )
        return Advanced(Layers(*layers[:3]), Layers(*layers[3:]), loss, best_loss, flags, losses)
