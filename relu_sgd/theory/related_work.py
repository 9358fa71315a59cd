"""Table 1: the widths that the literature asks for, as data, with its erratum; and where two of them cross."""

import dataclasses
import math
from typing import Literal

__all__ = ["RESULTS", "Result", "crossing"]


@dataclasses.dataclass(frozen=True)
class Result:
    """A row of Table 1, or a result since: d1 of order N^sample_power d0^dimension_power L^depth_power, up to
    logarithms and constants.

    Attributes:
      name: authors and year.
      algorithm: "GD", "SGD" or "gradient flow".
      trained_layers: what is trained.
      relu: whether it covers ReLU networks.
      deep: whether it covers deep networks.
      data: what is asked of the samples.
      scaling: the width as the paper prints it, without the tilde Omega.
      sample_power, dimension_power, depth_power: the exponents of N, d0 and L.
      logarithm_power: the exponent of log N, where that is all there is.
      in_table: whether it is a row of Table 1.
      note: an erratum or a restriction.
    """

    name: str
    algorithm: Literal["GD", "SGD", "gradient flow"]
    trained_layers: Literal["all", "hidden"]
    relu: bool
    deep: bool
    data: str
    scaling: str
    sample_power: float
    dimension_power: float = 0.0
    depth_power: float = 0.0
    logarithm_power: float = 0.0
    in_table: bool = True
    note: str = ""

    def width(self, num_samples: float, d0: float = 1.0, depth: float = 1.0) -> float:
        """The width with unit constant and without the hidden logarithms: an order of magnitude, not a promise.

        Raises:
          ValueError: N or d0 or the depth is less than 1.
        """
        for name, value in dict(num_samples=num_samples, d0=d0, depth=depth).items():
            if not (math.isfinite(value) and value >= 1):
                raise ValueError(f"{name} must be at least 1, got {value}")
        return (
            num_samples**self.sample_power
            * d0**self.dimension_power
            * depth**self.depth_power
            * math.log(num_samples) ** self.logarithm_power
        )


RESULTS: tuple[Result, ...] = (
    Result("Du et al. 2019a", "GD", "all", False, True, "non degenerate, normalized", "2^O(L) N^4", 4,
           note="the factor 2^O(L) is not computed"),
    Result("Kawaguchi and Huang 2019, shallow", "GD", "all", False, True, "normalized", "N d0", 1, 1),
    Result("Kawaguchi and Huang 2019, deep", "GD", "all", False, True, "normalized", "N + d0 L^2", 1,
           note="the second term is not computed"),
    Result("Liu et al. 2022", "SGD", "all", False, True, "non degenerate, normalized", "N", 1),
    Result("Allen-Zhu et al. 2019", "SGD", "all", True, True, "separable", "N^24 L^12", 24, 0, 12,
           note="Table 1 prints Deep: no"),
    Result("Arora et al. 2019b", "GD", "all", True, False, "uniform on the sphere", "N^7", 7,
           note="Table 1 prints Deep: yes"),
    Result("Zou and Gu 2019", "SGD", "all", True, True, "separable", "N^8 L^12", 8, 0, 12),
    Result("Oymak and Soltanolkotabi 2020", "SGD", "hidden", True, False, "uniform on the sphere", "N^4 / d0^3", 4, -3,
           note="for d0 in [sqrt(N), N] and d2 = 1"),
    Result("Nguyen 2021, shallow", "GD", "all", True, True, "sub-Gaussian", "N^2", 2),
    Result("Nguyen 2021, deep", "GD", "all", True, True, "sub-Gaussian", "N^3", 3),
    Result("Polaczyk and Cyranka 2023", "SGD", "all", True, False, "sub-Gaussian", "N^1.25", 1.25,
           note="Corollary 4.5 and Theorem 5.1 with LeCun's scaling"),
    Result("Polaczyk and Cyranka 2023, Appendix G", "SGD", "hidden", True, False, "uniform on the sphere", "N^5 / d0^4",
           5, -4, in_table=False,
           note="(49), for d0 in [sqrt(N), N] and d2 = 1; its other term N log(N) / d0 is below N"),
    Result("Path certificate (docs/conditions.md, Theorem B)", "gradient flow", "all", True, False, "sub-Gaussian",
           "N", 1, in_table=False,
           note="LeCun's scaling; widths.path_certificate_width has law, logarithm and failure probability. "
           "No new order: Chatterjee's local criterion for the output layer gives it too, and Nguyen 2021 has linear "
           "widths for some initialisations"),
    Result("Dana, Bach and Pillaud-Vivien 2025", "gradient flow", "all", True, False, "weakly interacting", "log N", 0,
           logarithm_power=1, in_table=False, note="for data that are nearly orthogonal"),
)  # fmt: skip


def crossing(first: Result, second: Result) -> float:
    """The delta at which, for d0 = N^delta, the two widths are of one order; logarithms and depth do not count.

    Remark 5.4's crossing of N^1.25 and N^4 / d0^3 is 11/12.

    Returns:
      delta, which may lie outside (0, 1): then one of the two is smaller throughout.

    Raises:
      ValueError: both depend on d0 in the same way, and do not cross.
    """
    slope = first.dimension_power - second.dimension_power
    if slope == 0:
        raise ValueError(f"{first.name} and {second.name} depend on d0 in the same way and do not cross")
    return (second.sample_power - first.sample_power) / slope
