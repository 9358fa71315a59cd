"""The law of the boundary: the width d1*(N, d0) at which half of the networks succeed, from counts over (N, d0, d1).

A model has a law of d1*, with parameters, and

    P(success) = alive(N, d1) / (1 + exp(-b (log d1 - log d1*))),    b = exp(s) (N / 200)^w d1*^v,

where alive is 1, or the probability that no sample is dead, exp(-N 2^(-k d1)). Models are data (`MODELS`). Here they
are fitted to counts by maximum likelihood, as if they were exact; `scatter` fits and compares them as what they are.
Nothing is fitted to boundaries that were themselves fitted.
"""

import dataclasses
import functools
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import numpy as np
from scipy import optimize, special, stats

if TYPE_CHECKING:
    import pandas

__all__ = [
    "MODELS",
    "REFERENCE_SIZE",
    "TRANSITIONS",
    "Counts",
    "Estimate",
    "Fit",
    "Line",
    "Model",
    "Parameter",
    "Scores",
    "candidates",
    "crossing",
    "expected_deviance",
    "fit",
    "intervals",
    "k_of_ratio",
    "leave_out_rows",
    "leave_out_sizes",
    "line",
    "log_likelihood",
    "logit_of",
    "regime",
    "saturated",
]

LEAST = 1e-200  # Of -log P, so that the logit of P is finite.
REFERENCE_SIZE = 200.0  # N at which exp(s) is the slope, where v = 0.


class Counts(NamedTuple):
    """Cells of one set-up, one each in arrays of equal length.

    Attributes:
      num_samples, d0, d1: N, inputs and width.
      runs, successes: counts.
      parameters: that a neuron trains: d0, and one more for a trained output layer.
    """

    num_samples: np.ndarray
    d0: np.ndarray
    d1: np.ndarray
    runs: np.ndarray
    successes: np.ndarray
    parameters: np.ndarray

    @classmethod
    def of(cls, table: "pandas.DataFrame", successes: str = "converged") -> Self:
        """The cells with runs of one set-up's table: columns trained_layers, num_samples, d0, d1, runs and `successes`.

        Raises:
          ValueError: a count is not between 0 and the runs.
        """
        table = table[(table["runs"] > 0) & table[successes].notna()]
        names = ("num_samples", "d0", "d1", "runs", successes)
        n, d0, d1, runs, count = (table[name].to_numpy(float) for name in names)
        if not ((count >= 0) & (count <= runs)).all():
            raise ValueError(f"counts of {successes} must lie between 0 and the runs")
        return cls(n, d0, d1, runs, count, d0 + (table["trained_layers"] == "both").to_numpy(float))

    def take(self, cells: np.ndarray) -> Self:
        """Some of the cells, by a mask or by their places."""
        return type(self)(*(column[cells] for column in self))

    @property
    def rows(self) -> np.ndarray:
        """The number of every cell's row; a row is a pair (N, d0)."""
        return np.unique(np.stack([self.num_samples, self.d0], 1), axis=0, return_inverse=True)[1].ravel()


class Parameter(NamedTuple):
    """Of a law. One that is positive is fitted by its logarithm.

    Attributes:
      name: in the formula.
      start: where the fit begins.
      positive: whether it is.
      scale: of the fitted number's normal law about the start, which is wide: it keeps those finite, and sane where
        rows are few, of which the counts say little.
    """

    name: str
    start: float
    positive: bool = True
    scale: float = 10.0

    def inner(self, value: float) -> float:
        """The number that is fitted."""
        return float(np.log(value)) if self.positive else value

    def outer(self, number: float) -> float:
        """The parameter."""
        if not self.positive:
            return float(number)
        with np.errstate(over="ignore"):
            return float(np.exp(number))


C, A, B = Parameter("c", 1.0, scale=3.0), Parameter("a", 1.0, scale=1.0), Parameter("b", 1.0, scale=1.0)
FLOOR, LOGS, CORNER = Parameter("f", 5.0, scale=3.0), Parameter("g", 1.0, scale=3.0), Parameter("p", 3.0, scale=2.0)
K, Q = Parameter("k", 0.7, scale=1.0), Parameter("q", 1.0, scale=1.0)
S = Parameter("s", 2.0, positive=False)
W, V = (Parameter(name, 0.0, positive=False, scale=1.0) for name in "wv")

# How steep the transition is; the last is what laws are compared with, so that its form decides nothing.
TRANSITIONS: Mapping[str, tuple[Parameter, ...]] = {
    "constant": (S,),
    "power of N": (S, W),
    "power of d1*": (S, V),
    "powers of N and d1*": (S, W, V),
}


@dataclasses.dataclass(frozen=True)
class Model:
    """A law of the boundary.

    Attributes:
      name: of the model.
      formula: of d1*, and of P where a sample may be dead.
      parameters: of the law.
      width: from their values, N, d0 and the parameters of a neuron to d1*.
      alive: from N, d0 and their values to k of exp(-N 2^(-k d1)); None where no sample is dead.
    """

    name: str
    formula: str
    parameters: tuple[Parameter, ...]
    width: Callable[..., np.ndarray]
    alive: Callable[..., np.ndarray | float] | None = None


def _model(name: str, formula: str, parameters: Sequence[Parameter], width: Any, alive: Any = None) -> Model:
    return Model(name, formula, tuple(parameters), width, alive)


def k_of_ratio(ratio: Any, q: float) -> Any:
    """The k of exp(-N 2^(-k d1)), 1 - 1 / (2 + q N / d0), from N / d0: 1/2 where rows are as good as orthogonal
    (`relu_sgd.theory.orthogonal`), and 1 where only samples that are dead at the start are so at the end. An
    observation, not a theorem.
    """
    return 1 - 1 / (2 + q * ratio)


_OF_RATIO = "[1 - 1 / (2 + q N / d0)]"
_ALIVE = "P = exp(-N 2^(-{k} d1)) / (1 + (d1 / d1*)^-b), d1* = {law}"
# A width takes N, d0 and the parameters of a neuron, and then the law's own parameters by name.
MODELS: tuple[Model, ...] = (
    _model("counting d0", "N / d0", (), lambda n, d0, m: n / d0),
    _model("counting parameters", "N / parameters of a neuron", (), lambda n, d0, m: n / m),
    # A neuron's scale changes nothing where its output weight undoes it.
    _model("counting directions", "N / (d0 - 1)", (), lambda n, d0, m: n / np.maximum(d0 - 1, 1)),
    _model("proportional", "c N / d0", (C,), lambda n, d0, m, c: c * n / d0),
    _model("directions", "c N / (d0 - 1)", (C,), lambda n, d0, m, c: c * n / np.maximum(d0 - 1, 1)),
    _model("power", "c (N / d0)^a", (C, A), lambda n, d0, m, c, a: c * (n / d0) ** a),
    _model("exponents", "c N^a d0^-b", (C, A, B), lambda n, d0, m, c, a, b: c * n**a * d0**-b),
    _model("proportional + constant", "c N / d0 + f", (C, FLOOR), lambda n, d0, m, c, f: c * n / d0 + f),
    _model("proportional + log", "c N / d0 + g log2 N", (C, LOGS), lambda n, d0, m, c, g: c * n / d0 + g * np.log2(n)),
    _model(
        "power + log",
        "c (N / d0)^a + g log2 N",
        (C, A, LOGS),
        lambda n, d0, m, c, a, g: c * (n / d0) ** a + g * np.log2(n),
    ),
    _model(
        "counting, corner",
        "((N / d0)^p + (g log2 N)^p)^(1/p)",
        (LOGS, CORNER),
        lambda n, d0, m, g, p: np.exp(np.logaddexp(p * np.log(n / d0), p * np.log(g * np.log2(n))) / p),
    ),
    _model(
        "corner",
        "((c N / d0)^p + (g log2 N)^p)^(1/p)",
        (C, LOGS, CORNER),
        lambda n, d0, m, c, g, p: np.exp(np.logaddexp(p * np.log(c * n / d0), p * np.log(g * np.log2(n))) / p),
    ),
    _model(
        "no dead sample, proportional",
        _ALIVE.format(k="1", law="c N / d0"),
        (C,),
        lambda n, d0, m, c: c * n / d0,
        lambda n, d0, c: 1.0,
    ),
    _model(
        "no dead sample, directions",
        _ALIVE.format(k="1", law="c N / (d0 - 1)"),
        (C,),
        lambda n, d0, m, c: c * n / np.maximum(d0 - 1, 1),
        lambda n, d0, c: 1.0,
    ),
    _model(
        "dead samples, directions",
        _ALIVE.format(k="k", law="c N / (d0 - 1)"),
        (C, K),
        lambda n, d0, m, c, k: c * n / np.maximum(d0 - 1, 1),
        lambda n, d0, c, k: k,
    ),
    _model(
        "dead samples, exponents",
        _ALIVE.format(k="k", law="c N^a d0^-b"),
        (C, A, B, K),
        lambda n, d0, m, c, a, b, k: c * n**a * d0**-b,
        lambda n, d0, c, a, b, k: k,
    ),
    _model(
        "no dead sample of one sign, proportional",
        _ALIVE.format(k="1/2", law="c N / d0"),
        (C,),
        lambda n, d0, m, c: c * n / d0,
        lambda n, d0, c: 0.5,
    ),
    _model(
        "dead samples, proportional",
        _ALIVE.format(k="k", law="c N / d0"),
        (C, K),
        lambda n, d0, m, c, k: c * n / d0,
        lambda n, d0, c, k: k,
    ),
    _model(
        "dead samples, power",
        _ALIVE.format(k="k", law="c (N / d0)^a"),
        (C, A, K),
        lambda n, d0, m, c, a, k: c * (n / d0) ** a,
        lambda n, d0, c, a, k: k,
    ),
    _model(
        "dying samples, proportional",
        _ALIVE.format(k=_OF_RATIO, law="c N / d0"),
        (C, Q),
        lambda n, d0, m, c, q: c * n / d0,
        lambda n, d0, c, q: k_of_ratio(n / d0, q),
    ),
    _model(
        "dying samples, directions",
        _ALIVE.format(k=_OF_RATIO, law="c N / (d0 - 1)"),
        (C, Q),
        lambda n, d0, m, c, q: c * n / np.maximum(d0 - 1, 1),
        lambda n, d0, c, q: k_of_ratio(n / d0, q),
    ),
    _model(
        "dying samples, exponents",
        _ALIVE.format(k=_OF_RATIO, law="c N^a d0^-b"),
        (C, A, B, Q),
        lambda n, d0, m, c, a, b, q: c * n**a * d0**-b,
        lambda n, d0, c, a, b, q: k_of_ratio(n / d0, q),
    ),
)  # fmt: skip


def candidates(counts: Counts, models: Sequence[Model] = MODELS) -> tuple[Model, ...]:
    """The models that differ for these counts: parameters of a neuron are d0 where the hidden layer is trained."""
    same = (counts.parameters == counts.d0).all()
    return tuple(model for model in models if not (same and model.name == "counting parameters"))


class Fit(NamedTuple):
    """A model, fitted.

    Attributes:
      model: the law.
      transition: the parameters of its steepness.
      inner: the numbers that were fitted, of `parameters` in their order.
      information: Fisher's, of these numbers; with scatter as the fit has seen it.
      log_likelihood: of the counts, without the weak prior; with scatter its integral.
      deviance: of the counts from the model; with scatter from its likeliest rows.
      penalized: the log likelihood with the parameters' own laws, which is as large as can be.
    """

    model: Model
    transition: tuple[Parameter, ...]
    inner: np.ndarray
    information: np.ndarray
    log_likelihood: float
    deviance: float
    penalized: float

    @property
    def parameters(self) -> tuple[Parameter, ...]:
        """Of law and transition."""
        return self.model.parameters + self.transition

    @property
    def values(self) -> dict[str, float]:
        """The parameters by name."""
        return {p.name: p.outer(number) for p, number in zip(self.parameters, self.inner, strict=True)}

    def law(self, num_samples: Any, d0: Any, parameters: Any = None) -> np.ndarray:
        """The law's d1*. With an `alive` P is below 1/2 there; see `boundary`."""
        own = [p.outer(number) for p, number in zip(self.model.parameters, self.inner, strict=False)]
        n, d0 = np.asarray(num_samples, float), np.asarray(d0, float)
        return self.model.width(n, d0, d0 if parameters is None else np.asarray(parameters, float), *own)

    def probability(self, counts: Counts) -> np.ndarray:
        """P(success) of cells."""
        return special.expit(_logit(self.model, self.transition, self.inner, counts))

    def boundary(self, num_samples: Any, d0: Any, parameters: Any = None) -> np.ndarray:
        """The width at which P is 1/2."""
        n, d0 = np.broadcast_arrays(np.asarray(num_samples, float), np.asarray(d0, float))
        if self.model.alive is None:
            return self.law(n, d0, parameters)
        m = d0 if parameters is None else np.broadcast_to(np.asarray(parameters, float), d0.shape)
        low, high = np.full(n.shape, -2.0), np.full(n.shape, 20.0)
        for _ in range(60):  # P grows with d1.
            middle = (low + high) / 2
            cells = Counts(n, d0, np.exp(middle), np.ones_like(n), np.zeros_like(n), m)
            above = _logit(self.model, self.transition, self.inner, cells) > 0
            low, high = np.where(above, low, middle), np.where(above, middle, high)
        return np.exp((low + high) / 2)


class Line(NamedTuple):
    """P(success) of cells, as a straight logit in log d1 times the probability that no sample is dead.

    Attributes:
      center: log d1* of the law.
      slope: b.
      log_alive: log of that probability; None where it is 1.
    """

    center: np.ndarray
    slope: np.ndarray
    log_alive: np.ndarray | None

    def logit(self, counts: Counts, shift: Any = 0.0) -> np.ndarray:
        """The logit of P(success), cell by cell; no overflow, whatever the numbers.

        Args:
          counts: the cells that the line was made for.
          shift: added to log d1*.
        """
        return logit_of(self.slope * (np.log(counts.d1) - self.center - shift), self.log_alive)


def logit_of(u: np.ndarray, log_alive: np.ndarray | None) -> np.ndarray:
    """The logit of exp(log_alive) / (1 + exp(-u)); u where no sample may be dead."""
    if log_alive is None:
        return u
    log_p = np.minimum(log_alive - np.logaddexp(0.0, -u), -LEAST)
    return log_p - np.log(-np.expm1(log_p))


def line(model: Model, transition: Sequence[Parameter], inner: np.ndarray, counts: Counts) -> Line:
    """A model at its inner numbers.

    Args:
      model: the law.
      transition: parameters of the steepness, and others that it does not use.
      inner: the fitted numbers, of the law and then of the transition.
      counts: the cells.
    """
    known = model.parameters + tuple(transition)
    values = [p.outer(min(max(number, -40.0), 40.0)) for p, number in zip(known, inner, strict=True)]
    own, steep = (
        values[: len(model.parameters)],
        dict(zip((p.name for p in transition), values[-len(transition) :], strict=True)),
    )
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        width = model.width(counts.num_samples, counts.d0, counts.parameters, *own)
        center = np.log(np.clip(np.nan_to_num(width, nan=1e100), 1e-100, 1e100))
    slope = (
        steep["s"] + steep.get("w", 0.0) * np.log(counts.num_samples / REFERENCE_SIZE) + steep.get("v", 0.0) * center
    )
    alive = None
    if model.alive is not None:
        alive = -counts.num_samples * 2.0 ** (-model.alive(counts.num_samples, counts.d0, *own) * counts.d1)
    return Line(center, np.exp(np.clip(slope, -20, 20)), alive)


def _logit(model: Model, transition: Sequence[Parameter], inner: np.ndarray, counts: Counts) -> np.ndarray:
    return line(model, transition, inner, counts).logit(counts)


def log_likelihood(eta: np.ndarray, counts: Counts) -> np.ndarray:
    """Of every cell's counts, without binomial coefficients, from the logits of P."""
    return counts.successes * eta - counts.runs * np.logaddexp(0.0, eta)


def saturated(counts: Counts) -> np.ndarray:
    """The log likelihood of the shares themselves."""
    failures = counts.runs - counts.successes
    return special.xlogy(counts.successes, counts.successes / counts.runs) + special.xlogy(
        failures, failures / counts.runs
    )


def expected_deviance(probability: np.ndarray, counts: Counts) -> float:
    """The mean deviance of counts drawn from these probabilities: what a cell adds is about 1 where counts are large,
    and nothing where all runs fail or succeed for certain.
    """
    total = 0.0
    for runs in np.unique(counts.runs):
        k = np.arange(runs + 1)
        p = np.clip(probability[counts.runs == runs, None], 1e-300, 1 - 1e-16)
        best = special.xlogy(k, k / runs) + special.xlogy(runs - k, (runs - k) / runs)
        deviance = 2 * (best - special.xlogy(k, p) - special.xlog1py(runs - k, -p))
        total += float((stats.binom.pmf(k, runs, p) * deviance).sum())
    return total


def fit(
    model: Model,
    counts: Counts,
    *,
    transition: str = "powers of N and d1*",
    start: np.ndarray | None = None,
    fixed: Mapping[int, float] | None = None,
) -> Fit:
    """The parameters of the largest likelihood, by Fisher scoring in a trust region.

    Args:
      model: the law.
      counts: its cells.
      transition: of `TRANSITIONS`.
      start: inner numbers to begin with.
      fixed: inner numbers that stay, by their place among the parameters.

    Raises:
      ValueError: there is no cell, or no such transition.
    """
    if transition not in TRANSITIONS:
        raise ValueError(f"transition must be one of {', '.join(TRANSITIONS)}, got {transition!r}")
    if not len(counts.runs):
        raise ValueError("a law needs at least one cell with runs")
    steep = TRANSITIONS[transition]
    known = model.parameters + steep
    origin = np.array([p.inner(p.start) for p in known])
    weight = np.array([1 / p.scale**2 for p in known])
    begin = origin.copy() if start is None else np.array(start, float)
    for place, number in (fixed or {}).items():
        begin[place] = number
    free = [place for place in range(len(known)) if place not in (fixed or {})]

    logit = lambda inner: _logit(model, steep, inner, counts)

    def whole(numbers: np.ndarray) -> np.ndarray:
        inner = begin.copy()
        inner[free] = numbers
        return inner

    @functools.lru_cache(maxsize=4)
    def derivatives(key: bytes) -> tuple[float, np.ndarray, np.ndarray]:
        """Minus the log likelihood with the prior, its gradient, and Fisher's information."""
        numbers = np.frombuffer(key)
        eta = logit(whole(numbers))
        step = 1e-5
        jacobian = np.stack(
            [
                (logit(whole(numbers + move)) - logit(whole(numbers - move))) / (2 * step)
                for move in step * np.eye(len(free))
            ],
            axis=1,
        )
        p = special.expit(eta)
        away = (numbers - origin[free]) * weight[free]
        value = -log_likelihood(eta, counts).sum() + 0.5 * float(away @ (numbers - origin[free]))
        gradient = -jacobian.T @ (counts.successes - counts.runs * p) + away
        information = (jacobian.T * (counts.runs * p * (1 - p))) @ jacobian + np.diag(weight[free])
        return value, gradient, information

    at = lambda numbers: derivatives(np.ascontiguousarray(numbers, float).tobytes())
    numbers = begin[free]
    if free:
        numbers = optimize.minimize(
            lambda x: at(x)[0],
            numbers,
            jac=lambda x: at(x)[1],
            hess=lambda x: at(x)[2],
            method="trust-exact",
            options={"gtol": 1e-3, "maxiter": 200},
        ).x
    inner = whole(numbers)
    likelihoods = log_likelihood(logit(inner), counts)
    information = at(numbers)[2] if free else np.zeros((0, 0))
    deviance = 2 * float((saturated(counts) - likelihoods).sum())
    penalized = float(likelihoods.sum() - 0.5 * weight @ (inner - origin) ** 2)
    return Fit(model, steep, inner, information, float(likelihoods.sum()), deviance, penalized)


class Estimate(NamedTuple):
    """A parameter of a fitted model.

    Attributes:
      name: of the parameter.
      value: its estimate.
      low, high: interval from the profile of the likelihood; without scatter the law is taken as exact. 0 or infinity
        where it does not end, NaN where nobody asked for it.
      rows_low, rows_high: percentiles from whole rows (N, d0) drawn anew: what the law misses counts too. NaN without.
    """

    name: str
    value: float
    low: float
    high: float
    rows_low: float
    rows_high: float


def intervals(
    found: Fit,
    counts: Counts,
    *,
    level: float = 0.95,
    num_resamples: int = 400,
    seed: int = 0,
    again: Callable[..., Fit] | None = None,
    leave_out: Collection[str] = (),
) -> tuple[Estimate, ...]:
    """Every parameter with its two intervals.

    Args:
      found: a fit with all parameters free, to these counts.
      counts: its cells.
      level: coverage of the intervals.
      num_resamples: of the rows.
      seed: of the resamples.
      again: what made the fit, from counts, `start` and `fixed`; None for `fit`.
      leave_out: names of parameters whose intervals nobody asks for: NaN.
    """
    if again is None:
        transition = next(name for name, parameters in TRANSITIONS.items() if parameters == found.transition)
        again = functools.partial(fit, found.model, transition=transition)
    drop = stats.chi2.ppf(level, 1)
    deviation = np.sqrt(np.diag(np.linalg.inv(found.information)))
    drawn = np.array(
        [again(counts.take(cells), start=found.inner).inner for cells in _resampled(counts, num_resamples, seed)]
    ).reshape(num_resamples, len(found.inner))
    estimates = []
    for place, parameter in enumerate(found.parameters):
        ends = [np.nan, np.nan] if parameter.name in leave_out else []
        for side in (-1, 1) if not ends else ():
            # Every fit begins where the nearest one ended.
            excess = lambda number, place=place: (
                2 * (found.penalized - again(counts, start=found.inner, fixed={place: number}).penalized) - drop
            )
            end = crossing(excess, found.inner[place], side * max(deviation[place], 1e-6))
            ends.append(parameter.outer(end))
        tail = (1 - level) / 2
        around = np.quantile(drawn[:, place], [tail, 1 - tail]) if num_resamples else np.full(2, np.nan)
        rows_low, rows_high = (parameter.outer(number) for number in around)
        estimates.append(
            Estimate(parameter.name, parameter.outer(found.inner[place]), ends[0], ends[1], rows_low, rows_high)
        )
    return tuple(estimates)


def crossing(excess: Callable[[float], float], start: float, step: float) -> float:
    """Where a function that is negative at `start` passes 0, in steps that double; infinite where it does not."""
    near, far = start, start + 1.5 * step
    for _ in range(7):
        if excess(far) > 0:
            return float(optimize.brentq(excess, near, far, xtol=1e-3 * abs(step)))
        near, far = far, far + 2 * (far - start)
    return float(np.copysign(np.inf, step))


def _resampled(counts: Counts, number: int, seed: int) -> Iterator[np.ndarray]:
    """Places of cells, of as many rows as there are, drawn with replacement."""
    rows = counts.rows
    members = [np.flatnonzero(rows == row) for row in range(rows.max() + 1)]
    generator = np.random.default_rng(seed)
    for _ in range(number):
        yield np.concatenate([members[row] for row in generator.integers(len(members), size=len(members))])


class Scores(NamedTuple):
    """How well models foresee what was left out, the best first.

    Attributes:
      names: of the models.
      score: log likelihood of the counts that were left out, a run (in nats, the larger the better; binomial
        coefficients are left out).
      behind: by how much the sum over all runs falls short of the best model's.
      standard_error: of that difference, over rows (N, d0).
      margin: half of the difference's 95 percent interval, by Student's t; NaN of one row.
      is_behind: whether the difference exceeds it; where not, the model is not told apart from the best.
      rows: how many were left out, in turn or together.
      runs: that they have.
    """

    names: tuple[str, ...]
    score: np.ndarray
    behind: np.ndarray
    standard_error: np.ndarray
    margin: np.ndarray
    is_behind: np.ndarray
    rows: int
    runs: int


def leave_out_rows(counts: Counts) -> list[np.ndarray]:
    """Masks of what is left out: every row (N, d0) in turn."""
    rows = counts.rows
    return [rows == row for row in range(rows.max() + 1)]


def leave_out_sizes(counts: Counts, largest: int = 1) -> list[np.ndarray]:
    """Masks of what is left out: the largest N, and in turn as many of the next, each foreseen from smaller ones."""
    sizes = np.unique(counts.num_samples)
    return [counts.num_samples >= size for size in sizes[-largest:][::-1]] if len(sizes) > largest else []


def regime(num_samples: np.ndarray, d0: np.ndarray) -> np.ndarray:
    """What the width of a row should be decided by: "counting" where N / d0 is above 2 log2 N, "floor" where it is
    below log2 N / 2, "between" elsewhere.
    """
    ratio = np.asarray(num_samples, float) / np.asarray(d0, float) / np.log2(num_samples)
    return np.where(ratio > 2, "counting", np.where(ratio < 0.5, "floor", "between"))
