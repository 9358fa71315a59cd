"""What a proof says, and the file that it is kept in."""

import dataclasses
import enum
from pathlib import Path
from typing import IO, Any

import numpy as np
from jaxtyping import Bool, Float

from relu_sgd.network import Params, TrainedLayers
from relu_sgd.problem import Problem

__all__ = ["Proof", "Verdict", "load_certificate", "save_certificate"]


class Verdict(enum.IntEnum):
    """What is proved.

    GLOBAL_MINIMUM: there is W* with L(W*, V) = 0. LOCAL_MINIMUM: there is a local minimum theta* with L(theta*) > 0,
      of L(., V) when the hidden layer
    is trained and of L when both are. UNDECIDED: neither is proved, which says nothing about what is true.
    """

    UNDECIDED = 0
    GLOBAL_MINIMUM = 1
    LOCAL_MINIMUM = 2


@dataclasses.dataclass(frozen=True)
class Proof:
    """A minimum theta* that exists, and all that is proved about it. docs/proofs.md has the theorems.

    Bounds hold for exact arithmetic on the float64 numbers given. Of an undecided network they are those that were
    reached, nan where none was.

    Attributes:
      verdict: what is proved.
      reason: why nothing is, "" otherwise.
      trained_layers: "hidden" where theta* minimises over W alone, "both" over W and V. A global minimum is one of
        either.
      W, V: a network within `error` of theta*, d0 x d1 and d1 x d2.
      kinks: N x d1, the set S: where Z*_ij = 0 exactly (V fixed), or to `error` ||x_i|| (both layers).
      active: N x d1, where Z*_ij > 0.
      slopes: N x d1, r_ij: 1 where active, 0 where not, computed between them on the kinks.
      fitted: N, samples with E*_i = 0 on which the theorem lets Z_ij change its sign (V fixed, and Theorem 4).
      multipliers: N x d1, mu_ij = r_ij c_ij on the kinks, computed; 0 elsewhere.
      error: upper bound of ||theta* - (W, V)||.
      distance: upper bound of ||theta* - theta||, theta the network that was asked about.
      loss: L* between these, 0 and 0 for a global minimum.
      relative_error: ||Y - Yhat*|| / ||Y|| between these.
      radius: L >= L* wherever ||W_j - W*_j|| < radius for every j; with both layers wherever ||theta - theta*|| <
        radius. inf for a global minimum.
      singular_value: the least of the proved lower bounds of singular values that the proof divides by.
      margins: lower bounds of what had to be positive, by name: "sign" (of |Z*_ij| / ||x_i|| off the kinks), "slope"
        (of -mu_ij and mu_ij - c_ij on the kinks), "coefficient"
        (of -c_ij on kinks with slope 0); inf where nothing of that name had to be shown.
    """

    verdict: Verdict
    reason: str
    trained_layers: TrainedLayers
    W: Float[np.ndarray, "d0 d1"]
    V: Float[np.ndarray, "d1 d2"]
    kinks: Bool[np.ndarray, "N d1"]
    active: Bool[np.ndarray, "N d1"]
    slopes: Float[np.ndarray, "N d1"]
    multipliers: Float[np.ndarray, "N d1"]
    fitted: Bool[np.ndarray, " N"]
    error: float = np.nan
    distance: float = np.nan
    loss: tuple[float, float] = (np.nan, np.nan)
    relative_error: tuple[float, float] = (np.nan, np.nan)
    radius: float = np.nan
    singular_value: float = np.nan
    margins: dict[str, float] = dataclasses.field(default_factory=dict)


def save_certificate(
    path: Path | str | IO[bytes], proof: Proof, problem: Problem, params: Params | None = None
) -> None:
    """A proof and its problem as an npz file (or into an open one), which a checker can decide again without this
    package; with theta, `params`, the distance too.

    Arrays X, Y, W, V, kinks, active, slopes, multipliers, fitted, and those of theta, theta_W, theta_V; verdict and
    trained_layers as strings; numbers error, radius and loss.
    """
    fields = {field.name: getattr(proof, field.name) for field in dataclasses.fields(proof)}
    margins = {f"margin_{name}": value for name, value in fields.pop("margins").items()}
    arrays: dict[str, Any] = fields | margins | {"verdict": proof.verdict.name, "X": problem.X, "Y": problem.Y}
    if params is not None:
        arrays |= {"theta_W": params.W, "theta_V": params.V}
    np.savez_compressed(path, **arrays)


def load_certificate(path: Path | str) -> tuple[Proof, Problem]:
    """What `save_certificate` kept.

    Raises:
      ValueError: the file is not a certificate.
    """
    with np.load(path) as stored:
        arrays: dict[str, Any] = {name: stored[name] for name in stored.files}
    try:
        problem = Problem(arrays.pop("X"), arrays.pop("Y"))
        verdict = Verdict[str(arrays.pop("verdict"))]
        margins = {
            name.removeprefix("margin_"): float(arrays.pop(name)) for name in list(arrays) if name[:7] == "margin_"
        }
        arrays = {name: value for name, value in arrays.items() if not name.startswith("theta_")}
        arrays.setdefault("fitted", np.zeros(len(problem.X), bool))  # Older certificates do not say.
        fields: dict[str, Any] = {name: value if value.ndim else value.item() for name, value in arrays.items()}
        fields |= {name: tuple(fields[name].tolist()) for name in ("loss", "relative_error")}
        return Proof(verdict=verdict, margins=margins, **fields), problem
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is not a certificate: {error}") from error
