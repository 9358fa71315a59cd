"""The probability that gradient descent finds a global minimum, over (d0, d1): Figure 2 of the paper.

python -m sweeps.convergence_map --protocol=as_written --out=DIR

trains every network of the grid, in every variant, and leaves DIR/results.zarr, DIR/summary.csv and DIR/figures. The
same command goes on after an interruption.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import numpy as np

from sweeps.command.parsers import Choice, Switch
from sweeps.protocol import runs
from sweeps.protocol.study import ProtocolStudy
from sweeps.runtime import tiles
from sweeps.study import Execution, Metrics, Tile, Timings, UsageError, flag

__all__ = ["INTERVALS", "KERNELS", "ConvergenceMap"]

KERNELS = {
    "xla": "the program that JAX compiles",
    "native": "C++ that is compiled for this processor when it is first used, faster for small networks; full batch, a "
    "fixed slope at 0, on a CPU",
    "pallas": "one kernel a network that keeps it on the chip, for accelerators; not timed on one yet; full batch, a "
    "fixed slope at 0, float32",
}
INTERVALS = {"wilson": "Wilson's score interval", "exact": "Clopper and Pearson's exact interval"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConvergenceMap(ProtocolStudy):
    """Every network of the grid, trained to its end.

    Attributes:
      interval: method of the confidence intervals, see `INTERVALS`.
      prove: whether the end of every run is decided by a theorem, see `sweeps.proving`.
      keep_proofs: whether the certificates are kept.
      kernel: what takes the steps, see `KERNELS`.
    """

    name = "convergence_map"
    reporter = "sweeps.convergence_map.report:report"
    execution_groups = (*ProtocolStudy.execution_groups, "refinement")
    statuses: ClassVar[Mapping[int, str]] = {**runs.STATUSES, runs.STOPPED[0]: runs.STOPPED[1]}

    interval: str = flag(
        Choice(INTERVALS),
        "confidence interval of the probabilities, 95 percent; " + "; ".join(f"{k}: {v}" for k, v in INTERVALS.items()),
        "wilson",
        group="report",
        decides=False,
    )

    prove: bool = flag(
        Switch(),
        "decide the end of every run by a theorem, in float64: verdict, distance, error and radius of a minimum that "
        "is proved to be nearby (docs/proved_maps.md)",
        False,
        group="proofs",
    )
    keep_proofs: bool = flag(
        Switch(),
        "with --prove: keep the certificates of the tiles that are trained now, in the folder proofs beside the "
        "results, for scripts/verify_proofs",
        False,
        group="proofs",
        decides=False,
    )
    kernel: str = flag(
        Choice(KERNELS),
        "what takes the steps; results differ by rounding; " + "; ".join(f"{k}: {v}" for k, v in KERNELS.items()),
        "xla",
        group="devices",
        decides=False,
    )

    def check(self) -> None:
        """Refuses values that contradict each other.

        Raises:
          UsageError: naming the flag.
        """
        super().check()
        if self.keep_proofs and not self.prove:
            raise UsageError("--keep_proofs: has no effect without --prove")

    def check_code(self) -> None:
        """Tries laws of the user's own, and the kernel that is asked for.

        Raises:
          UsageError: naming the flag.
        """
        super().check_code()
        if self.kernel != "xla":
            for variant in self.variants():
                runs.kernel_of(self.kernel, self.protocol_of(variant), variant.layers)

    def replay(self) -> dict[str, Any]:
        """The values of the flags that repeat the study, to the last bit."""
        return super().replay() | ({} if self.kernel == "xla" else {"kernel": self.kernel})

    def recorded(self) -> dict[str, Any]:
        """What a session writes down besides: the kernel."""
        return {"kernel": self.kernel}

    def science(self) -> dict[str, Any]:
        """Everything that decides the results; nothing about proofs where none are asked for, as in older stores."""
        science = super().science()
        return science if self.prove else {name: value for name, value in science.items() if name != "prove"}

    @property
    def metrics(self) -> Metrics:
        """What is kept of a run."""
        own = {name: (kind or np.dtype(self.precision), text) for name, (kind, text) in runs.metrics(self).items()}
        if not self.prove:
            return own
        from sweeps import proving  # Loads solvers.

        return {**proving.METRICS, **own}

    @property
    def boundary_axis(self) -> str:
        """The width."""
        return "d1"

    def default_block(self) -> tuple[int, ...]:
        """What spans 8 inputs and 6 neurons."""
        return tiles.default_block(self.d0, self.d1)

    def cost(self, tile: Tile) -> float:
        """A step's cost times a guess at the steps.

        Networks with d0 d1 far below N cannot fit their labels and take every step, and those far above it take a few
        hundred; in between, which is about where half of them converge, the share of all steps falls as a power of
        d0 d1 / N.
        """
        if self.stop == "never" or self.dynamics == "inclusion":
            return runs.network_cost(tile)
        most = min(self.num_steps, 4_000) if self.stop == "decided" else self.num_steps
        load = np.outer(tile.axes["d0"], tile.axes["d1"]) / (1.1 * self.num_samples)
        steps = np.minimum(most, 300 + most / (1 + load**4))
        return runs.network_cost(tile) * float(np.mean(steps))

    def run_tile(self, tile: Tile, execution: Execution) -> tuple[dict[str, np.ndarray], Timings]:
        """Trains the networks of a tile on the devices of this process."""
        protocol = self.protocol_of(tile.variant)
        decider = None
        if self.prove or protocol.stop == "decided":
            from sweeps import proving

            keep = execution.out / "proofs" if self.keep_proofs else None
            decider = proving.TileProofs(protocol, tile, record=self.prove, keep=keep)
        result = runs.train_tile(
            protocol,
            protocol.trained_layers,
            tile,
            lanes=execution.lanes,
            steps_per_chunk=execution.steps_per_chunk,
            devices=runs.devices_of(execution),
            decider=decider,
            kernel=self.kernel,
        )
        jax.clear_caches()  # What JAX itself keeps of a tile: memory would grow with the sweep.
        return result
