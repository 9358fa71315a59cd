"""Every numbered statement of the paper on random problems: what it bounds, measured, and its margin.

python -m sweeps.reproduction.statements --out=DIR [--num_seeds=N]

For every statement of Sections 2 to 5 and the appendices that can be computed, and every seed: problems for which its
hypothesis holds, tight ones among them; how many draws there were, how many violate it beyond rounding, and the least
relative margin. What algebra decides is one trial, whatever the number of seeds. A statement about probabilities has
trials, and the share of failures that it allows. Statements with an erratum are measured as printed and as repaired.
float64, in NumPy. DIR gets results.zarr, summary.csv and a figure; the same command goes on after an interruption.
"""

import dataclasses
import time
import zlib
from typing import Any, ClassVar

import numpy as np

from sweeps.command.parsers import Choice, Several, Whole
from sweeps.reproduction.statements.registry import CHECKS
from sweeps.study import Execution, Metrics, Study, Tile, Timings, Variant, flag

__all__ = ["Statements", "measure"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Statements(Study):
    """The statements, each with so many seeds; the fields are the flags."""

    name = "reproduction.statements"
    reporter = "sweeps.reproduction.statements.report:report"
    statuses: ClassVar = {1: "compared", 2: "no problem met the hypothesis", 3: "arithmetic, compared with seed 0"}
    execution_groups = ("output", "tiles")

    statement: tuple[str, ...] = flag(
        Several(Choice(dict.fromkeys(CHECKS))), "which statements, a comma list of their identities", tuple(CHECKS)
    )
    num_seeds: int = flag(Whole(1), "sets of random problems per statement", 20)
    base_seed: int = flag(Whole(0, 2**32 - 1), "random seed of the whole study", 0)

    def variants(self) -> tuple[Variant, ...]:
        """One."""
        return (Variant(name="statements"),)

    def axes(self) -> dict[str, tuple[Any, ...]]:
        """The statements."""
        return {"statement": self.statement}

    @property
    def metrics(self) -> Metrics:
        """What is kept of a statement and seed."""
        return {
            "margin": (
                np.float64,
                "least (bound - value) / larger of both; negative beyond rounding where violated, infinite for none",
            ),
            "violated": (np.int32, "draws or trials that violate it beyond rounding"),
            "trials": (np.int32, "draws or trials for which the hypothesis holds"),
            "value": (np.float64, "what was measured, at the least margin; of trials, the share that violates it"),
            "bound": (np.float64, "what it was compared with, at the least margin"),
            "allowed": (np.float64, "share of violated trials that the statement allows; 0 for one without exceptions"),
            "status": (np.int8, "0 pending, 1 compared, 2 no problem met the hypothesis, 3 arithmetic: seed 0 did"),
        }

    def run_tile(self, tile: Tile, execution: Execution) -> tuple[dict[str, np.ndarray], Timings]:
        """All seeds of the tile's statements, one after another."""
        del execution
        begun = time.perf_counter()
        records = [measure(self, cell["statement"], seed) for cell in tile.cells() for seed in tile.seeds]
        table = {name: np.array([record[name] for record in records]) for name in records[0]}
        return table, {"measuring": time.perf_counter() - begun}


def measure(study: Statements, statement: str, seed: int) -> dict[str, float]:
    """One statement with one seed: every metric of the store. The draws depend on both and on nothing else."""
    check = CHECKS[statement]
    if check.is_arithmetic and seed:
        nothing = {"margin": np.inf, "violated": 0, "trials": 0, "value": 0.0, "bound": 0.0, "allowed": check.allowed}
        return nothing | {"status": 3}
    rng = np.random.default_rng((study.base_seed, zlib.crc32(statement.encode()), seed))
    outcome = check.measure(rng)
    return {
        "margin": outcome.margin,
        "violated": outcome.violations,
        "trials": outcome.trials,
        "value": outcome.value,
        "bound": check.allowed or outcome.bound,
        "allowed": check.allowed,
        "status": 1 if outcome.trials else 2,
    }
