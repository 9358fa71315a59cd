"""Sections 4 and 5: the sizes at a random start (Lemma 4.4), the widths of Lemma C.1, Theorem 4.3 and Corollary 4.5,
the steps of Theorem 5.1.

Where the paper leaves a constant open it is an argument here, 1 unless told otherwise: such a width is an order of
magnitude, not a promise. `width_search` computes widths that are promises.
"""

import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from relu_sgd.theory import gram

__all__ = [
    "FailureProbability",
    "InitialSizes",
    "convergence_time",
    "corollary_4_5_width",
    "failure_probability",
    "initial_sizes",
    "least_singular_value_bound",
    "lemma_c1_width",
    "num_steps_bound",
    "output_norm_bound",
    "path_certificate_width",
    "theorem_4_3_width",
    "theorem_5_1_num_steps",
]

# The constant of Lemma C.1: 16 / (1 - log 2).
_LEMMA_C1_CONSTANT = 16 / (1 - math.log(2))


def _check(*, positive: dict[str, float] | None = None, not_negative: dict[str, float] | None = None) -> None:
    for name, value in (positive or {}).items():
        if not (math.isfinite(value) and value > 0):
            raise ValueError(f"{name} must be finite and positive, got {value}")
    for name, value in (not_negative or {}).items():
        if not (math.isfinite(value) and value >= 0):
            raise ValueError(f"{name} must be finite and not negative, got {value}")


def _check_sizes(num_samples: float, d0: float, delta: float) -> None:
    """The hypothesis d0 in [N^delta, N], delta in (0, 1), of Theorem 4.3, Corollary 4.5 and Theorem 5.1.

    Raises:
      ValueError: it does not hold; the message says which part.
    """
    if not num_samples >= 1:
        raise ValueError(f"num_samples must be at least 1, got {num_samples}")
    if not 0 < delta < 1:
        raise ValueError(f"delta must be in (0, 1), got {delta}")
    if not d0 <= num_samples:
        raise ValueError(f"d0 must be at most N = {num_samples:g}, got {d0}")
    # A dimension that was rounded from N^delta is meant to satisfy this.
    if not d0 >= max(1.0, num_samples**delta - 0.5):
        raise ValueError(f"d0 must be at least N^delta = {num_samples**delta:.4g}, got {d0}")


class InitialSizes(NamedTuple):
    """What Lemma 4.4 says of a random start, as orders of magnitude with unit constants.

    Attributes:
      hidden_norm: ||W0||_F, beta_w sqrt(d0 d1).
      output_norm: ||V0||_F, beta_v sqrt(d1 d2).
      operator_norm: ||X||, sqrt(max(N, d0)), for rows of norm sqrt(d0).
      loss: L(theta_0), ||Y||_F^2 + beta_v^2 d2 ||W0||_F^2 ||X||^2 log N.
    """

    hidden_norm: float
    output_norm: float
    operator_norm: float
    loss: float


def initial_sizes(
    num_samples: int, d0: int, d1: int, *, beta_w: float, beta_v: float, label_norm: float, d2: int = 1
) -> InitialSizes:
    """Lemma 4.4 under Assumption 4.1.

    Args:
      num_samples, d0, d1, d2: N and the sizes of the network.
      beta_w, beta_v: standard deviations of the entries of W0 and V0.
      label_norm: ||Y||_F.

    Raises:
      ValueError: a size is less than 1 or a number is negative.
    """
    _check(positive=dict(num_samples=num_samples, d0=d0, d1=d1, d2=d2))
    _check(not_negative=dict(beta_w=beta_w, beta_v=beta_v, label_norm=label_norm))
    hidden, operator = beta_w * math.sqrt(d0 * d1), math.sqrt(max(num_samples, d0))
    loss = label_norm**2 + beta_v**2 * d2 * hidden**2 * operator**2 * math.log(num_samples)
    return InitialSizes(hidden, beta_v * math.sqrt(d1 * d2), operator, loss)


def output_norm_bound(num_samples: int, hidden_layer_norm: float, *, beta_v: float, d2: int = 1) -> float:
    """Appendix D with its constants: ||Yhat||_F <= 2 beta_v sqrt(d2 log N) ||relu(X W0)||_F.

    It holds with probability at least 1 - N^(-d2 / 2) over V0, given X and W0, for N >= 3. (E ||Yhat||_F <= beta_v
    sqrt(d2) ||H||_F, and the deviation sqrt(d2 log N) beta_v ||H||_F is at least as large only where log N >= 1, which
    the paper does not say.)

    Args:
      num_samples: N.
      hidden_layer_norm: ||relu(X W0)||_F.
      beta_v: standard deviation of the entries of V0.
      d2: output dimension.

    Raises:
      ValueError: N is less than 3 or a number is negative.
    """
    if num_samples < 3:
        raise ValueError(f"num_samples must be at least 3, so that log N >= 1, got {num_samples}")
    _check(not_negative=dict(hidden_layer_norm=hidden_layer_norm, beta_v=beta_v), positive=dict(d2=d2))
    return 2 * beta_v * math.sqrt(d2 * math.log(num_samples)) * hidden_layer_norm


def least_singular_value_bound(lambda_X: float, d1: float, *, beta_w: float = 1.0) -> float:
    """Lemma C.1's conclusion: alpha_0(0) > beta_w sqrt(d1 lambda(X)) / 2, with probability at least 1 - exp(-psi) at
    its width.

    Raises:
      ValueError: a number is negative.
    """
    _check(not_negative=dict(lambda_X=lambda_X, d1=d1, beta_w=beta_w))
    return beta_w * math.sqrt(d1 * lambda_X) / 2


def lemma_c1_width(
    X: Float[np.ndarray, "N d0"],
    *,
    psi: float,
    repaired: bool = True,
    lambda_X: float | None = None,
) -> float:
    """The width (29) at which Lemma C.1 promises `least_singular_value_bound`.

    As printed: max(N, C ||X||^2 (psi + log N) / lambda(X) max(1, log(12 ||X||^2 / lambda(X)))), C = 16 / (1 - log 2).

    Erratum: its proof bounds P(||relu(Xw)|| >= t) by exp(-t^2 / 2 ||X||^2) and so forgets the mean of the norm, about
    sqrt(N d0 / 2) for rows of norm sqrt(d0). For d0 = N the printed width is N beyond some N, and at d1 = N alpha_0 is
    that of a square matrix: alpha_0 / sqrt(d0 d1) tends to 0. Repaired: max(N, 4 t^2 (psi + log N) / ((1 - log 2)
    lambda(X))) with t of `gram.truncation_level`, whose square is at least 2 ||X||_F^2.

    Args:
      X: the samples.
      psi: the promise fails with probability at most exp(-psi); at least 1.
      repaired: False for (29) as printed.
      lambda_X: lambda(X), where it is known already.

    Raises:
      ValueError: psi is less than 1, or as `gram.gram`, or lambda(X) is not positive.
    """
    if not psi >= 1:
        raise ValueError(f"psi must be at least 1, got {psi}")
    smallest = gram.least_eigenvalue(gram.gram(X)) if lambda_X is None else lambda_X
    level = gram.truncation_level(X, repaired=repaired, lambda_X=smallest)
    # As printed t^2 = 4 ||X||^2 max(1, log(...)), so that both are 4 t^2 (...) / ((1 - log 2) lambda).
    return max(len(X), _LEMMA_C1_CONSTANT / 4 * level**2 * (psi + math.log(len(X))) / smallest)


def theorem_4_3_width(
    num_samples: float, d0: float, *, delta: float, psi: float, constant: float = 1.0, repaired: bool = True
) -> float:
    """The width of Theorem 4.3, at which alpha_0(0) >= sqrt(c(delta) d0 d1) beta_w.

    As printed: max(N, C(delta) N psi log^2(N) / d0). Erratum (see `lemma_c1_width`): it fails at d0 = d1 = N.
    Repaired: C(delta) N (psi + log N).

    Args:
      num_samples, d0: N and the input dimension, d0 in [N^delta, N].
      delta: delta_0.
      psi: the failure probability is exp(-psi) and more, see `failure_probability`; at least 1.
      constant: C(delta).
      repaired: False for the theorem as printed.

    Raises:
      ValueError: d0 is not in [N^delta, N] or delta not in (0, 1); psi is less than 1 or the constant is not positive.
    """
    _check_sizes(num_samples, d0, delta)
    _check(positive=dict(constant=constant))
    if not psi >= 1:
        raise ValueError(f"psi must be at least 1, got {psi}")
    if repaired:
        return max(num_samples, constant * num_samples * (psi + math.log(num_samples)))
    return max(num_samples, constant * num_samples * psi * math.log(num_samples) ** 2 / d0)


def corollary_4_5_width(
    num_samples: float,
    d0: float,
    *,
    delta: float,
    rho: float,
    beta_w: float,
    d2: int = 1,
    constant: float = 1.0,
    repaired: bool = True,
) -> float:
    """The width of Corollary 4.5 and Theorem 5.1: max(N, C(delta) [d2 N^2.5 / (d0 beta_w^2)]^(1/(1+rho)) log^2(N)).

    Erratum: Appendix E drops the first term of F. Repaired: also d1 >= C [d2 N^1.5 / (d0 beta_w^2)]^(1/(1/2+rho))
    log^2(N), which decides where rho < 1/4 under LeCun's scaling (beta_w^2 = 1 / d0). For rho = 1 the two agree.

    Args:
      num_samples, d0: N and the input dimension, d0 in [N^delta, N]; rows of X have norm sqrt(d0).
      delta: delta_0.
      rho: beta_v^2 = d1^-rho.
      beta_w: standard deviation of W0's entries.
      d2: output dimension.
      constant: C(delta).
      repaired: False for the corollary as printed.

    Raises:
      ValueError: d0 is not in [N^delta, N] or delta not in (0, 1); rho is negative or another number is not positive.
    """
    _check_sizes(num_samples, d0, delta)
    _check(positive=dict(beta_w=beta_w, d2=d2, constant=constant), not_negative=dict(rho=rho))
    scale = d2 / (d0 * beta_w**2)
    logarithm = math.log(num_samples) ** 2
    widths = [num_samples, constant * (scale * num_samples**2.5) ** (1 / (1 + rho)) * logarithm]
    if repaired:
        widths.append(constant * (scale * num_samples**1.5) ** (1 / (0.5 + rho)) * logarithm)
    return max(widths)


def path_certificate_width(
    num_samples: float,
    d0: float,
    *,
    delta: float,
    psi: float,
    rho: float,
    beta_w: float,
    d2: int = 1,
    constant: float = 1.0,
) -> float:
    """The width at which Theorem B certifies a random start: C(delta) max(N (psi + log N), [d2 N^2 log(N) / (d0
    beta_w^2)]^(1/(1+rho))).

    Under Assumption 4.1, where Corollary 4.5 has N^2.5 log^2(N) in the brackets: sqrt(2) ||X|| sqrt(L(0)) is of order
    N sqrt(d0 d1 d2 log N) beta_w beta_v by Lemma 4.4, and alpha_0^2 of order d0 d1 beta_w^2 by Theorem 4.3 as
    repaired, which asks for the first of the two widths. Under LeCun's scaling that one decides: order N up to a
    logarithm. It fails with the probability of `failure_probability` with this psi. For the inclusion; descent's
    Theorem C has the same order and larger constants.

    Args:
      num_samples, d0: N and the input dimension, d0 in [N^delta, N]; rows of X have norm sqrt(d0).
      delta: delta_0.
      psi: at least 1, see `failure_probability`.
      rho: beta_v^2 = d1^-rho.
      beta_w: standard deviation of W0's entries.
      d2: output dimension.
      constant: C(delta).

    Raises:
      ValueError: d0 is not in [N^delta, N] or delta not in (0, 1); psi is less than 1, rho is negative or another
        number is not positive.
    """
    _check(positive=dict(beta_w=beta_w, d2=d2, constant=constant), not_negative=dict(rho=rho))
    well_conditioned = theorem_4_3_width(num_samples, d0, delta=delta, psi=psi, constant=constant)
    certified = (d2 * num_samples**2 * math.log(num_samples) / (d0 * beta_w**2)) ** (1 / (1 + rho))
    return max(well_conditioned, constant * certified)


class FailureProbability(NamedTuple):
    """The three terms that Corollary 4.5 and Theorem 5.1 subtract from 1, with unit constants.

    Attributes:
      width: exp(-psi), psi = (d0 / N) [d2 N^2.5 / (d0 beta_w^2)]^(1/(1+rho)): that alpha_0 is too small at this width.
      data: N^2 exp(-N^(delta/2)): that rows of X are too close. Above 1, so that nothing is promised, until N is
        large.
      loss: exp(-d2 log N): that the initial loss is too large.
    """

    width: float
    data: float
    loss: float

    @property
    def success(self) -> float:
        """A lower bound of the probability of convergence; 0 where the terms exceed 1."""
        return max(0.0, 1 - self.width - self.data - self.loss)


def failure_probability(
    num_samples: float, d0: float, *, delta: float, rho: float, beta_w: float, d2: int = 1, psi: float | None = None
) -> FailureProbability:
    """The failure probability of Corollary 4.5 and Theorem 5.1, as printed, with unit constants; with psi given, that
    of `path_certificate_width`.

    Theorem 5.1 is printed without the factor d2 in its first term and without the factor 2 that its proof ends with
    (1 - 2 P(theta_0 not in Q)); both are constants of the order.

    Raises:
      ValueError: as `corollary_4_5_width`, or psi is less than 1.
    """
    _check_sizes(num_samples, d0, delta)
    _check(positive=dict(beta_w=beta_w, d2=d2), not_negative=dict(rho=rho))
    if psi is None:
        psi = d0 / num_samples * (d2 * num_samples**2.5 / (d0 * beta_w**2)) ** (1 / (1 + rho))
    elif not psi >= 1:
        raise ValueError(f"psi must be at least 1, got {psi}")
    return FailureProbability(
        width=math.exp(-psi),
        data=num_samples**2 * math.exp(-(num_samples ** (delta / 2))),
        loss=num_samples ** -float(d2),
    )


def convergence_time(largest_loss: float, target: float, rate: float) -> float:
    """T* of Theorem 5.6: the flow time after which l exp(-gamma t) <= epsilon / 2, max(0, log(2 l / epsilon) / gamma).

    Args:
      largest_loss: l, the supremum of the loss over the starts.
      target: epsilon.
      rate: gamma; alpha_0(0)^2 where a certificate holds, by (12).

    Raises:
      ValueError: a number is not positive.
    """
    _check(positive=dict(target=target, rate=rate), not_negative=dict(largest_loss=largest_loss))
    return max(0.0, math.log(2 * largest_loss / target) / rate) if largest_loss > 0 else 0.0


def num_steps_bound(time: float, num_samples: int, batch_size: int, learning_rate: float) -> int:
    """k* of Theorem 5.6: how many steps of mini-batch descent cover the flow time `time`, ceil(N T* / (b eta)).

    Erratum: the theorem is printed with floor(1 + N T* / (b eta)), the same but where N T* / (b eta) is whole, and its
    proof (Appendix F) takes floor((1 + N T* / b) / eta), up to 1 / eta steps more. A step on b of N samples moves by
    b / N of the flow on average.

    Raises:
      ValueError: the time is negative, the learning rate is not positive, or the batch size is not in [1, N].
    """
    _check(positive=dict(learning_rate=learning_rate), not_negative=dict(time=time))
    if not 1 <= batch_size <= num_samples:
        raise ValueError(f"batch_size must be from 1 to N = {num_samples}, got {batch_size}")
    return math.ceil(num_samples * time / (batch_size * learning_rate))


def theorem_5_1_num_steps(
    num_samples: int,
    d0: int,
    d1: int,
    *,
    delta: float,
    beta_w: float,
    beta_v: float,
    target: float,
    batch_size: int,
    learning_rate: float,
    loss_constant: float = 1.0,
    rate_constant: float = 1.0,
) -> int:
    """(15): k* <= ceil(1 + N / (eta b) max(0, log(C N log(N) d0 d1 beta_w^2 beta_v^2 / epsilon) / (c(delta) d0 d1
    beta_w^2))).

    Args:
      num_samples, d0, d1: N and the sizes of the network.
      delta: delta_0, with d0 in [N^delta, N].
      beta_w, beta_v: standard deviations of the entries of W0 and V0.
      target: epsilon.
      batch_size, learning_rate: b and eta.
      loss_constant, rate_constant: C and c(delta).

    Raises:
      ValueError: d0 is not in [N^delta, N] or delta not in (0, 1); a number is not positive, or the batch size is not
        in [1, N].
    """
    _check_sizes(num_samples, d0, delta)
    _check(
        positive=dict(
            beta_w=beta_w, beta_v=beta_v, target=target, learning_rate=learning_rate,
            loss_constant=loss_constant, rate_constant=rate_constant, d1=d1,
        )
    )  # fmt: skip
    size = loss_constant * num_samples * math.log(num_samples) * d0 * d1 * beta_w**2 * beta_v**2 / target
    time = max(0.0, math.log(size) / (rate_constant * d0 * d1 * beta_w**2)) if size > 0 else 0.0
    return 1 + num_steps_bound(time, num_samples, batch_size, learning_rate)
