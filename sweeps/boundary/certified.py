"""Widths that the board's conditions certify, for the rows (N, d0) of a boundary."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from relu_sgd import Params, Problem
from relu_sgd.theory import flip_certificate, hidden_layer, width_search

__all__ = ["CertifiedWidth", "certified_widths"]

EXPECTED, MEASURED, EXTRAPOLATED = "expected", "measured", "extrapolated"
_WIDEST_FLIPS, _FLIP_STARTS = 3_200, 5


class CertifiedWidth(NamedTuple):
    """The smallest width at which a condition certifies random starts.

    Attributes:
      num_samples, d0: the row.
      certificate: a condition of `relu_sgd.theory.conditions`, or (54).
      trained_layers: of the set-up it speaks of.
      width: infinite where none is.
      source: "expected" (alpha_0, beta_0 and L(0) by their expectations), "measured" on one start, or "extrapolated"
        from starts that are not certified, by their median: the left side of the flip certificate falls as d1^(-1/2),
        since a neuron moves by |v_j| rho and |v_j| = d1^(-1/2). Starts differ by several times.
    """

    num_samples: int
    d0: int
    certificate: str
    trained_layers: str
    width: float
    source: str


def certified_widths(
    rows: Sequence[tuple[int, int]], *, seed: int = 0, measured_samples: int = 100, measured_width: float = 2e4
) -> list[CertifiedWidth]:
    """For unit rows uniform on the sphere, balanced labels, W0 standard normal and V0 of variance 1 / d1.

    Cost: eigenvalues of a few N x N matrices a row: up to a second at N <= 400, 2 seconds at 800.

    Args:
      rows: pairs (N, d0).
      seed: of data and neurons.
      measured_samples: up to which N a start is drawn too, where the expected width is at most `measured_width`, for
        the path certificate; and up to half of which for the flip certificate.
      measured_width: see there.
    """
    found: list[CertifiedWidth] = []
    for num_samples, d0 in rows:
        generator = np.random.default_rng([seed, num_samples, d0])
        X = generator.standard_normal((num_samples, d0))
        X /= np.linalg.norm(X, axis=1, keepdims=True)
        Y = np.where(np.arange(num_samples) % 2, 1.0, -1.0)[:, None]
        try:
            expected = width_search.population_widths(X, Y)
            appendix = hidden_layer.population_width(X, Y[:, 0])
        except ValueError:  # lambda(X) is 0 up to rounding, as for many samples in few dimensions.
            expected, appendix = {"path": math.inf, "(10)": math.inf}, math.inf
        for name in ("path", "(10)"):
            found.append(CertifiedWidth(num_samples, d0, name, "both", expected[name], EXPECTED))
        found.append(CertifiedWidth(num_samples, d0, "(54)", "hidden", appendix, EXPECTED))
        if num_samples <= measured_samples and expected["path"] <= measured_width:
            most = int(4 * measured_width)
            width = width_search.certified_widths(X, Y, seed=seed, conditions=("path",), max_width=most)["path"]
            if width is not None:
                found.append(CertifiedWidth(num_samples, d0, "path", "both", width, MEASURED))
        if 2 * num_samples <= measured_samples:
            found.append(CertifiedWidth(num_samples, d0, "flips", "hidden", *_by_flips(X, Y, generator)))
    return found


def _by_flips(X: np.ndarray, Y: np.ndarray, generator: np.random.Generator) -> tuple[float, str]:
    """The first of N, 4 N, ... that the flip certificate certifies; the median of starts that do not get there."""
    found = []
    for _ in range(_FLIP_STARTS):
        W = generator.standard_normal((X.shape[1], max(_WIDEST_FLIPS, len(X))))
        widest = d1 = len(X)
        while d1 <= W.shape[1]:
            V = np.where(np.arange(d1) % 2, 1.0, -1.0)[:, None] / math.sqrt(d1)
            start = Params(W[:, :d1], V)  # type: ignore[arg-type]
            left_side = flip_certificate.flip_certificate(start, Problem(X, Y)).left_side  # type: ignore[arg-type]
            if left_side <= 1:
                return float(d1), MEASURED
            widest, d1 = d1, 4 * d1
        found.append(widest * left_side**2)
    return float(np.median(found)), EXTRAPOLATED
