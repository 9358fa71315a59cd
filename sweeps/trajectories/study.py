"""What happens along training: Figure 3, and whether training is lazy.

python -m sweeps.trajectories --out=DIR [--preset=quick] [--protocol=as_released]

Networks of several widths are trained for the whole of --num_steps and recorded every so many steps: loss, numerical
zeros, changes of the activation pattern, the relative change of the loss and of the differential in both of its
meanings, distances from the start, alpha_0, dead neurons and samples. The flags of a protocol are those of the
convergence map, with the values of Figure 3 for the preset's: d0 = 20, d1 = 200, 752, 2828, 5 seeds, float64, no
stopping. DIR gets results.zarr with every seed's curve, summary.csv and figures; the same command goes on after an
interruption, in the middle of a run.
"""

import dataclasses
import shutil
import time
from collections.abc import Mapping
from typing import Any, ClassVar, Self

import jax
import numpy as np

from relu_sgd.descent import Stop
from sweeps.command.parsers import Choice, Number, Whole
from sweeps.protocol import runs
from sweeps.protocol.draw import draw_tile
from sweeps.protocol.presets import PRESETS, ByLayers
from sweeps.protocol.study import ProtocolStudy
from sweeps.runtime.session import configuration_of
from sweeps.study import Execution, Metrics, Tile, Timings, UsageError, flag
from sweeps.trajectories import recording

__all__ = ["Trajectories"]

# Widths N, floor(N^1.25) and floor(N^1.5) at N = 200.
FIGURE_3: dict[str, Any] = dict(
    d0=(20,),
    d1=(200, 752, 2828),
    num_seeds=5,
    learning_rate=ByLayers(hidden=0.15, both=0.002),
    precision="float64",
    measure_every=100,
)
FIGURE_3_STEPS = {"as_written": 25_000, "as_released": 24_999}
QUICK: dict[str, Any] = dict(d1=(50, 100, 200), num_seeds=2, num_steps=1500, measure_every=25)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trajectories(ProtocolStudy):
    """Networks of several widths, trained for all of their steps and recorded on the way.

    Attributes:
      preset: "full" for Figure 3's sizes, "quick" for `QUICK`.
      measure_every: steps between two records.
      checkpoint_seconds: between two checkpoints inside a run.
    """

    name = "trajectories"
    reporter = "sweeps.trajectories.report:report"
    statuses: ClassVar = {1: "trained to the end", 3: "diverged"}
    execution_groups = ("output", "tiles")

    # No run stops before its last step.
    stop: Stop = "never"
    criterion: str = "relative_error"
    tolerance: float = 2.5e-3
    dynamics: str = "descent"
    flow_time: float = 0.0
    path_tolerance: float = 0.0

    preset: str = flag(
        Choice(("full", "quick")),
        "full: Figure 3's sizes; quick: d1 = 50, 100, 200, 2 seeds, 1500 steps, a record every 25; "
        "any flag overrides it",
        "full",
        group="trajectories",
        decides=False,
    )
    measure_every: int = flag(Whole(0), "steps between two records; 0 for the preset's", group="trajectories")
    checkpoint_seconds: float = flag(
        Number(0),
        "seconds between two checkpoints inside a run; decides nothing",
        30.0,
        group="trajectories",
        decides=False,
    )

    @classmethod
    def presets(cls) -> Mapping[str, Mapping[str, Any]]:
        """Those of Figure 2, with the values of Figure 3."""
        return {name: {**values, **FIGURE_3, "num_steps": FIGURE_3_STEPS[name]} for name, values in PRESETS.items()}

    @classmethod
    def make(cls, **values: Any) -> Self:
        """As `ProtocolStudy.make`.

        Raises:
          UsageError: see there.
        """
        values = cls.parsed(values)
        values = {name: value for name, value in values.items() if name != "measure_every" or value}
        return super().make(**{**(QUICK if values.get("preset") == "quick" else {}), **values})

    def check(self) -> None:
        """Refuses what cannot be recorded."""
        super().check()
        if len(self.d0) > 1:
            raise UsageError(f"--d0: give one input dimension, not {len(self.d0)}")
        if self.measure_every > self.num_steps:
            raise UsageError(f"--measure_every: {self.measure_every} exceeds --num_steps={self.num_steps}")

    def check_block(self, block: tuple[int, ...]) -> None:
        """A tile has one width and all seeds."""
        if block != (1, 1):
            raise UsageError("--block: a tile of trajectories has one width: 1x1")

    @property
    def metrics(self) -> Metrics:
        """What is recorded of a run."""
        kinds = {name: (kind or np.dtype(self.precision), text) for name, (kind, text) in recording.RECORDS.items()}
        return {**kinds, "status": (np.int8, "0 pending, 1 trained to the end, 3 diverged")}

    @property
    def records(self) -> tuple[str, tuple[int, ...]]:
        """The steps."""
        return "step", recording.steps_to_record(self.num_steps, self.measure_every)

    def cost(self, tile: Tile) -> float:
        """That of a step."""
        return runs.network_cost(tile)

    def finish(self, execution: Execution) -> None:
        """Removes the checkpoints."""
        shutil.rmtree(execution.out / "checkpoints", ignore_errors=True)

    def run_tile(self, tile: Tile, execution: Execution) -> tuple[dict[str, np.ndarray], Timings]:
        """The runs of one width: trained and recorded, from their checkpoints where there are some."""
        begun = time.perf_counter()
        protocol = self.protocol_of(tile.variant)
        drawn = draw_tile(protocol, tile, max(self.d1))
        # Only d0 is padded here (zero columns of X), which changes nothing that is recorded; the draws of all widths
        # share a program.
        drawing = time.perf_counter() - begun
        cpu = jax.default_backend() == "cpu"
        descent = dataclasses.replace(runs.descent_of(protocol, protocol.trained_layers), criterion=None, stop="never")
        records = recording.follow(
            protocol,
            descent,
            drawn,
            recording.steps_to_record(protocol.num_steps, self.measure_every),
            lanes=1 if cpu else len(tile.seeds),
            checkpoints=execution.out / "checkpoints" / f"{tile.variant.group}_{tile.axes['d1'][0]}",
            configuration=configuration_of(self.science()),
            seconds_between=self.checkpoint_seconds,
        )
        records["status"] = np.where(np.isfinite(records["loss"][:, -1]), 1, 3).astype(np.int8)
        jax.clear_caches()
        return records, {"drawing": drawing, "running": time.perf_counter() - begun - drawing}
