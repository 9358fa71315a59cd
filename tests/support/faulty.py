"""A study whose tiles fail in the ways that tiles do, and are computed in no time otherwise."""

import dataclasses
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from sweeps.command import app
from sweeps.command.parsers import Choice, Number, Several, Whole
from sweeps.runtime import session
from sweeps.study import Execution, Report, Study, flag

FAULTS = (
    "none", "still none", "worker dies once", "worker dies", "own file", "compiler", "memory", "device memory",
    "killed for memory", "always short",
)  # fmt: skip


def _fail(fault, tile, out):
    if fault == "worker dies once" and not (out / "died").exists():
        (out / "died").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    if fault == "worker dies":
        os._exit(3)
    if fault == "own file":
        Path("/no/such/folder").read_text()
    if fault == "compiler":
        no_target = jax.ffi.ffi_call("no_such_target", jax.ShapeDtypeStruct((), jnp.float32))
        jax.jit(no_target)(jnp.float32(1)).block_until_ready()
    if fault == "always short" or (len(tile.seeds) > 1 and fault == "memory"):
        raise MemoryError("Unable to allocate 8. EiB for an array")
    if len(tile.seeds) > 1 and fault == "device memory":
        jax.block_until_ready(jnp.zeros(2**50, jnp.uint8))
    if len(tile.seeds) > 2 and fault == "killed for memory":
        os.kill(os.getpid(), signal.SIGKILL)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Faulty(Study):
    """Numbers that depend on the cell and the seed.

    Attributes:
      faults: the cells.
      cells: how many of each.
      num_seeds: runs of a cell.
      seconds: that a tile takes, in which it hears nothing.
    """

    name = "faulty"
    reporter = "support.faulty:report"
    statuses: ClassVar = {1: "done", 3: "diverged"}

    faults: tuple[str, ...] = flag(Several(Choice(FAULTS)), "how tiles fail", ("none", "still none"))
    cells: int = flag(Whole(1), "cells of each", 3)
    num_seeds: int = flag(Whole(1), "runs of a cell", 3)
    seconds: float = flag(Number(0), "that a tile takes", 0.0, decides=False)

    def axes(self):
        """The faults, and cells, of which a tile has two, so that some reach over the edge."""
        return {"fault": self.faults, "cell": tuple(range(self.cells))}

    def default_block(self):
        """Two cells a tile."""
        return (1, 2)

    @property
    def metrics(self):
        """A number, a count that is 0 everywhere, and an array."""
        return {
            "value": (np.float64, "a number"),
            "zeros": (np.int32, "0"),
            "pair": (np.float32, "two numbers", (2,)),
            "status": (np.int8, "1"),
        }

    def run_tile(self, tile, execution):
        """Seconds that are spent in one call, which no signal ends."""
        (fault,) = tile.axes["fault"]
        _fail(fault, tile, execution.out)
        if self.seconds:
            # A program of XLA that sleeps.
            wait = lambda: np.float32(time.sleep(self.seconds) or 0)
            jax.block_until_ready(jax.pure_callback(wait, jax.ShapeDtypeStruct((), jnp.float32)))
        index = FAULTS.index(fault) + np.add.outer(10 * np.array(tile.axes["cell"]), 100 * np.array(tile.seeds))
        value = np.sqrt(index).ravel()
        return {
            "value": value,
            "zeros": np.zeros(value.size),
            "pair": np.stack([value, -value], axis=-1),
            "status": np.where(index.ravel() % 7, 1, 3),
        }, {"running": 1e-3}


def train(out, faults=("none", "still none"), num_processes=1, cells=3, **execution):
    """The study in this process, without a report; its store."""
    with app.as_a_program():
        return session.train(
            Faulty.make(faults=faults, cells=cells),
            Execution(out=out, num_processes=num_processes, compilation_cache="", **execution),
        )


def report(study, results) -> Report:
    """Of every variant its mean."""
    import pandas  # No worker needs it.

    table: Any = pandas.DataFrame([{"mean": float(data["value"].mean())} for data in results.values()])
    return Report({"summary": table}, {}, (), "done")


if __name__ == "__main__":
    app.main(Faulty, sys.argv)
