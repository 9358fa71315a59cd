"""The scalar comparison problem (9): Figure 1 of the paper, as printed and as it must have been drawn.

python -m sweeps.comparison_ode --out=DIR

Every panel shows y(t) for many alpha, coloured by the left side of (10). As printed the exponent holds alpha t, and
with the figure's constants the solutions blow up below alpha = 1.7293; with 2 alpha t the threshold is 2.0441, inside
the figure's range [2.042, 2.045]. DIR gets figures, summary.csv and config.json; it takes seconds and is not resumed.
"""

import dataclasses

from sweeps.command.parsers import Number, Whole
from sweeps.study import Study, UsageError, flag

__all__ = ["FACTORS", "Comparison"]

# Of alpha t in the exponent.
FACTORS = {"as printed": 1.0, "with 2 alpha t": 2.0}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Comparison(Study):
    """Solutions of (9) for many alpha; it takes seconds, and so has no store. The fields are the flags."""

    name = "comparison_ode"
    reporter = "sweeps.comparison_ode.report:report"
    execution_groups = ("output",)

    a: float = flag(Number(0, low_in=False), "a of (8), sqrt(L(theta(0)))", 1.0)
    c: float = flag(Number(0), "c of (7)", 1.0)
    c1: float = flag(Number(0), "c1 of (7)", 1.0)
    c2: float = flag(Number(0), "c2 of (7)", 1.0)
    alpha_low: float = flag(Number(0, low_in=False), "least alpha of the second panel, as in Figure 1", 2.042)
    alpha_high: float = flag(Number(0, low_in=False), "largest alpha of the second panel", 2.045)
    half_width: float = flag(
        Number(0, low_in=False), "half of the first panel's range of alpha, about its own threshold", 0.0015
    )
    num_alpha: int = flag(Whole(2, 10_000), "curves in a panel", 61)
    t_max: float = flag(Number(0, low_in=False), "end of the time axis", 20.0)
    num_times: int = flag(Whole(2, 100_000), "points on a curve", 801)

    def check(self) -> None:
        """Refuses an empty range of alpha, and constants with which nothing blows up."""
        if self.alpha_low >= self.alpha_high:
            raise UsageError(f"--alpha_low: {self.alpha_low:g} is not below --alpha_high={self.alpha_high:g}")
        if self.c1 == 0 and self.c2 == 0:
            raise UsageError("--c1: with c1 = c2 = 0 nothing can blow up")
