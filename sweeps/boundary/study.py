"""How wide in fact: the width d1*(N, d0) at which half of the networks reach a global minimum.

python -m sweeps.boundary --num_samples=50,100,200 --out=DIR

For every number of samples N, input dimension d0, set-up and condition, networks are trained in groups of 8: the width
is doubled or halved until the boundary is bracketed, and further runs go where they tell most about it. Conditions:
as_written, the paper's half-sum loss at its fixed learning rates, which diverges as N / d0 grows; scaled, where every
run's rate is --rate over the largest eigenvalue of its own Jacobian Gram matrix at the start, and so grows with no N.
A run succeeds, and ends, at the first network with sqrt(2 L) < 2.5e-3 ||Y||, for the squared loss the paper's relative
error; it ends at --steps_per_sample times N steps in any case. DIR gets refined.zarr with all runs, summary.csv and the
figure; the same command goes on after an interruption, and with a larger --row_runs.
"""

import dataclasses
import functools
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array

from relu_sgd import Descent, Params, Problem, Status, approximators
from relu_sgd.network import TrainedLayers
from relu_sgd.proofs.result import Verdict
from sweeps.boundary import allocation
from sweeps.command.parsers import Choice, Number, Several, Sizes, Switch, Whole
from sweeps.protocol import runs
from sweeps.protocol.draw import Run, draw_tile, networks
from sweeps.protocol.presets import CHOICES, Protocol, preset
from sweeps.study import Execution, Made, Metrics, Study, Tile, Timings, UsageError, Variant, flag

__all__ = [
    "CONDITIONS",
    "KERNELS",
    "LOSSES",
    "BoundaryStudy",
    "Start",
    "condition_of",
    "loss_of",
    "measure_start",
    "rescaled",
]

CONDITIONS = {
    "as_written": "learning rate 0.15 (hidden) or 0.002 (both)",
    "scaled": "learning rate --rate / lambda_max of J J^T at the start, of every run its own",
}
LOSSES = {
    "squared": "L = 1/2 sum (y - f)^2",
    "quadratic_hinge": "L = 1/2 sum max(0, 1 - y f)^2, without proofs",
}
KERNELS = {
    "native": "C++ compiled when first used, on a CPU, for the squared loss; another has xla",
    "xla": "the program that JAX compiles",
}
# Two runs of different N share no random numbers: their base seeds are so far apart.
_STRIDE = 1_000_003
_TOLERANCE = 2.5e-3
# Of a product in a step of the native kernel, and of a proof at N = 1: measured on one core with AVX-512.
_SECONDS, _PROOF_SECONDS = 5e-11, 1e-4
# Of a variant's name, after its condition.
_SUFFIXES = {"squared": "", "quadratic_hinge": "_hinge"}


class _Row(NamedTuple):
    """Widths of one variant and d0: counts of successes (a row for every sense) and of runs, over the widths."""

    group: str
    of_d0: int
    num_samples: int
    d0: int
    successes: np.ndarray
    runs: np.ndarray


@dataclasses.dataclass(frozen=True, kw_only=True)
class BoundaryStudy(Study):
    """Networks near the boundary, of every N, d0, set-up and condition; the fields are the flags."""

    name = "boundary"
    reporter = "sweeps.boundary.report:report"
    statuses: ClassVar[Mapping[int, str]] = {**runs.STATUSES, runs.STOPPED[0]: runs.STOPPED[1]}
    allocates: ClassVar[bool] = True
    rule: ClassVar[int] = allocation.VERSION

    num_samples: tuple[int, ...] = flag(Sizes(), "N, increasing and even", (50, 100, 200, 400, 800))
    trained_layers: tuple[TrainedLayers, ...] = flag(
        Several(Choice(CHOICES["trained_layers"])), "set-ups, a comma list of hidden and both", ("hidden",)
    )
    condition: tuple[str, ...] = flag(
        Several(Choice(CONDITIONS)),
        "conditions, a comma list; " + "; ".join(f"{name}: {text}" for name, text in CONDITIONS.items()),
        ("as_written",),
    )
    loss: tuple[str, ...] = flag(
        Several(Choice(LOSSES)),
        "losses, a comma list; " + "; ".join(f"{name}: {text}" for name, text in LOSSES.items()),
        ("squared",),
    )
    d0: tuple[int, ...] = flag(
        Sizes(), "input dimensions; of every N those up to N / 2", (4, 8, 16, 32, 64, 128, 256, 512, 1024)
    )
    widths_per_doubling: int = flag(Whole(1, 16), "widths d1 of the grid per doubling; they are even", 4)
    row_runs: int = flag(
        Whole(16),
        "runs of a row (N, d0) at most, in groups of 8, two a round once the boundary is bracketed; with --prove one "
        "for the boundary by criterion and one for that by proof. A larger number later goes on",
        96,
        decides=False,
    )
    base_seed: int = flag(Whole(0, 2**32 - 1), "random seed of the whole study", 0)
    steps_per_sample: int = flag(
        Whole(1), "steps at most, per sample: 250 are the paper's 50,000 at N = 200", 250, group="training"
    )
    rate: float = flag(
        Number(0, 3.8, low_in=False, high_in=False),
        "of the condition scaled: learning rate times the largest eigenvalue of J J^T at the start. Heavy ball with "
        "momentum 0.9 on a quadratic is stable below 3.8; at 1, as for descent without momentum at 1 / L, the "
        "eigenvalue may grow 3.8 times on the way",
        1.0,
        group="training",
    )
    stop: str = flag(
        Choice(("first_passage", "decided")),
        f"first_passage: {CHOICES['stop']['first_passage']}; decided: {CHOICES['stop']['decided']}",
        "first_passage",
        group="training",
    )
    precision: str = flag(
        Choice(CHOICES["precision"]), "floating-point type of the training", "float32", group="training"
    )
    prove: bool = flag(
        Switch(), "decide the end of every run by a theorem, in float64 (docs/proved_maps.md)", False, group="proofs"
    )
    kernel: str = flag(
        Choice(KERNELS),
        "what takes the steps; results differ by rounding; " + "; ".join(f"{k}: {v}" for k, v in KERNELS.items()),
        "native",
        group="devices",
        decides=False,
    )

    def check(self) -> None:
        """Refuses values that contradict each other.

        Raises:
          UsageError: naming the flag.
        """
        if odd := [size for size in self.num_samples if size % 2]:
            raise UsageError(f"--num_samples: {odd[0]} is odd, and half of the labels are +1")
        if set(self.loss) != {"squared"} and (self.prove or self.stop == "decided"):
            name = "prove" if self.prove else "stop"
            raise UsageError(f"--{name}: theorems are about the squared loss; leave out --loss={','.join(self.loss)}")
        if self.num_samples[0] < 2 * self.d0[0]:
            raise UsageError(f"--num_samples: {self.num_samples[0]} is less than twice the least --d0, {self.d0[0]}")

    def check_code(self) -> None:
        """Tries the kernel that is asked for.

        Raises:
          UsageError: naming the flag.
        """
        for variant in self.variants():
            if (kernel := self._kernel(variant)) != "xla":
                runs.kernel_of(kernel, self.protocol_of(variant), variant.layers)

    def _kernel(self, variant: Variant) -> str:
        return self.kernel if loss_of(variant) == "squared" else "xla"

    def science(self) -> dict[str, Any]:
        """Everything that decides the results; nothing about losses where there is the squared one alone."""
        science = super().science()
        return {name: value for name, value in science.items() if name != "loss" or self.loss != ("squared",)}

    def recorded(self) -> dict[str, Any]:
        """What a session writes down besides: the kernel."""
        return {"kernel": self.kernel}

    def replay(self) -> dict[str, Any]:
        """The values of the flags that repeat the study, to the last bit."""
        return super().replay() | {"row_runs": self.row_runs, "kernel": self.kernel}

    def variants(self) -> tuple[Variant, ...]:
        """Every set-up and N under every condition and loss."""
        return tuple(
            Variant(trained_layers=layers, num_samples=size, name=condition + _SUFFIXES[loss])
            for loss in self.loss
            for condition in self.condition
            for layers in self.trained_layers
            for size in self.num_samples
        )

    def axes(self) -> dict[str, tuple[Any, ...]]:
        """Inputs, and widths up to the largest that any row may have."""
        largest = max(allocation.largest_width(size, d0) for size in self.num_samples for d0 in self._inputs(size))
        d0 = tuple(size for size in self.d0 if 2 * size <= self.num_samples[-1])
        return {"d0": d0, "d1": allocation.widths(int(largest), self.widths_per_doubling)}

    def _inputs(self, num_samples: int) -> tuple[int, ...]:
        return tuple(size for size in self.d0 if 2 * size <= num_samples)

    @property
    def boundary_axis(self) -> str:
        """The width."""
        return "d1"

    @property
    def arithmetic(self) -> str:
        """The precision of the training."""
        return self.precision

    @property
    def allocated_by(self) -> tuple[str, ...]:
        """How runs ended, and what is proved of that."""
        return ("status", "verdict") if self.prove else ("status",)

    def _rows(self, made: Sequence[Made], unit: int) -> Iterator[_Row]:
        """What was made so far of every row that has runs left."""
        places = len(self.allocated_by)
        shape = tuple(map(len, self.axes().values()))
        # By criterion and, where it is asked for, by proof.
        wanted = {"status": Status.CONVERGED, "verdict": Verdict.GLOBAL_MINIMUM}
        successes = {variant.group: np.zeros((places, *shape), int) for variant in self.variants()}
        runs = {group: np.zeros(shape, int) for group in successes}
        for group, cell, found in made:
            runs[group][cell] += unit
            for place, name in enumerate(self.allocated_by):
                successes[group][(place, *cell)] += int(np.sum(found[name] == wanted[name]))
        for variant in self.variants():
            group, size = variant.group, variant.num_samples or 0
            for index, d0 in enumerate(self._inputs(size)):
                row = _Row(group, index, size, d0, successes[group][:, index], runs[group][index])
                if row.runs.sum() + unit <= self.row_runs:
                    yield row

    def allocate(self, made: Sequence[Made], unit: int) -> list[tuple[str, tuple[int, ...]]]:
        """The next runs of every row, from the row's own results alone: so other rows, and a larger --row_runs, change
        nothing about its runs.
        """
        sizes = self.axes()["d1"]
        chosen: list[tuple[str, tuple[int, ...]]] = []
        for row in self._rows(made, unit):
            first, largest = (
                find(row.num_samples, row.d0) for find in (allocation.first_width, allocation.largest_width)
            )
            places = allocation.next_widths(sizes, row.successes, row.runs, unit, first, largest)
            # A round that has no room waits for a larger --row_runs: cut short, it would change what comes after it.
            if row.runs.sum() + unit * len(places) <= self.row_runs:
                chosen += [(row.group, (row.of_d0, place)) for place in places]
        return chosen

    def expected(self, made: Sequence[Made], unit: int) -> list[tuple[str, tuple[int, ...]]]:
        """The rest of every row's runs, at the middle of its widths so far."""
        logs = np.log(self.axes()["d1"])
        found: list[tuple[str, tuple[int, ...]]] = []
        going = {(group, of_d0) for group, (of_d0, _) in self.allocate(made, unit)}
        for row in (row for row in self._rows(made, unit) if (row.group, row.of_d0) in going):
            tried = logs[row.runs > 0]
            middle = tried.mean() if len(tried) else np.log(allocation.first_width(row.num_samples, row.d0))
            cell = (row.of_d0, int(np.argmin(np.abs(logs - middle))))
            found += [(row.group, cell)] * int((self.row_runs - row.runs.sum()) // unit)
        return found

    @property
    def metrics(self) -> Metrics:
        """What is kept of a run."""
        kinds = {name: (kind or np.dtype(self.precision), text) for name, (kind, text) in runs.METRICS.items()}
        own: dict[str, tuple[Any, str]] = {
            name: kinds[name]
            for name in ("converged_at", "relative_error", "best_relative_error", "dead_samples", "steps")
        }
        own |= {
            "dead_at_start": (np.int32, "samples on which no neuron is active at the start"),
            "largest_eigenvalue": (np.float64, "of J J^T at the start, J the Jacobian in the trained weights"),
            "learning_rate": (np.float64, "step size on the half sum of squares"),
            "full_rank_start": (np.int8, "whether J has rank N at the start, up to rounding in float64"),
            "full_rank_end": (np.int8, "the same at the last step; -1 when diverged"),
        }
        if self.prove:
            from sweeps import proving  # Loads solvers.

            own |= {name: proving.METRICS[name] for name in ("verdict", "reason")}
        return {**own, "status": (np.int8, ", ".join(f"{code} {text}" for code, text in self.statuses.items()))}

    def protocol_of(self, variant: Variant) -> Protocol:
        """The protocol of the runs of a variant; under the condition scaled of `rescaled` ones, whose rate is 1."""
        changes: dict[str, Any] = {"learning_rate": 1.0} if condition_of(variant) == "scaled" else {}
        size = variant.num_samples or 0
        return preset(
            "as_written",
            variant.layers,
            num_samples=size,
            num_steps=self.steps_per_sample * size,
            base_seed=(self.base_seed + _STRIDE * size) % 2**32,
            stop=self.stop,
            precision=self.precision,
            **changes,
        )

    def cost(self, tile: Tile) -> float:
        """Seconds, roughly: products of a step times a guess at the steps, which below the boundary are all; and proofs
        of ends.
        """
        size = tile.variant.num_samples or 0
        ((d0,), (d1,)) = tile.axes["d0"], tile.axes["d1"]
        load = d1 / allocation.first_width(size, d0)
        steps = self.steps_per_sample * size / (1 + load**4) + 500
        if self.stop == "decided":
            steps = min(steps, 5_000)
        slower = 1 if self._kernel(tile.variant) == "native" else 5
        training = slower * _SECONDS * (size * (d0 + 8.0) * d1 + 2_000) * steps
        return 0.5 + tile.num_runs * (training + self.prove * _PROOF_SECONDS * size**1.5)

    def run_tile(self, tile: Tile, execution: Execution) -> tuple[dict[str, np.ndarray], Timings]:
        """Trains the networks of a cell on the devices of this process."""
        protocol, layers = self.protocol_of(tile.variant), tile.variant.layers
        begun = time.perf_counter()
        drawn = draw_tile(protocol, tile)
        sizes = networks(tile).tolist()
        starts = [measure_start(drawn, run, d0, d1, layers) for run, (d0, d1, _) in enumerate(sizes)]
        largest = np.array([start.largest_eigenvalue for start in starts])
        rates = np.full(len(starts), protocol.learning_rate)
        if condition_of(tile.variant) == "scaled":
            rates = self.rate / largest
            drawn = rescaled(drawn, rates, layers)
        drawing = time.perf_counter() - begun
        decider = None
        if self.prove or self.stop == "decided":
            from sweeps import proving

            decider = proving.TileProofs(protocol, tile, record=self.prove)
        ends, timings = runs.train_runs(
            protocol,
            layers,
            tile,
            drawn,
            lanes=execution.lanes,
            steps_per_chunk=execution.steps_per_chunk,
            devices=runs.devices_of(execution),
            decider=decider,
            kernel=self._kernel(tile.variant),
            descent=None if loss_of(tile.variant) == "squared" else _hinge_descent(protocol, layers),
        )
        begun = time.perf_counter()
        records = runs.measure_tile(protocol, tile, drawn, ends)
        last = [
            -1 if records["relative_error"][run] == np.inf else
            measure_start(drawn._replace(params=ends.params), run, d0, d1, layers).has_full_rank
            for run, (d0, d1, _) in enumerate(sizes)
        ]  # fmt: skip
        records |= {
            "dead_at_start": np.array([start.dead_samples for start in starts], np.int32),
            "largest_eigenvalue": largest,
            "learning_rate": rates,
            "full_rank_start": np.array([start.has_full_rank for start in starts], np.int8),
            "full_rank_end": np.array(last, np.int8),
        }
        timings |= {"drawing": drawing, "measuring": time.perf_counter() - begun}
        if decider is not None and self.prove:
            records |= decider.records(drawn, ends.params, records["status"])
        if decider is not None:
            timings["proving"] = decider.seconds
        return {name: records[name] for name in self.metrics}, timings


def loss_of(variant: Variant) -> str:
    """The loss of a variant, one of `LOSSES`."""
    return "quadratic_hinge" if (variant.name or "").endswith(_SUFFIXES["quadratic_hinge"]) else "squared"


def condition_of(variant: Variant) -> str:
    """The condition of a variant, one of `CONDITIONS`."""
    return (variant.name or "").removesuffix(_SUFFIXES[loss_of(variant)])


def _is_small(losses: Array, problem: Any) -> Array:
    """sqrt(2 L) / ||Y|| < 2.5e-3, as the relative error is judged: from below a margin reaches 1 in no finite time."""
    return jnp.sqrt(2 * jnp.sum(losses)) < _TOLERANCE * jnp.linalg.norm(problem.Y)


@functools.lru_cache(maxsize=8)  # One object, so that compiled programs are used again.
def _hinge_descent(protocol: Protocol, layers: TrainedLayers) -> Descent:
    return Descent(
        optimizer=optax.sgd(protocol.learning_rate, momentum=protocol.momentum),
        trained_layers=layers,
        losses=approximators.shallow("quadratic_hinge"),
        criterion=_is_small,
    )


@dataclasses.dataclass(frozen=True)
class Start:
    """What is measured of a network, in float64.

    Attributes:
      dead_samples: samples on which no neuron is active.
      largest_eigenvalue: of J J^T, to 24 bits.
      has_full_rank: whether the least one exceeds N eps times that, and so J has rank N.
    """

    dead_samples: int
    largest_eigenvalue: float
    has_full_rank: bool


def measure_start(drawn: Run, run: int, d0: int, d1: int, layers: TrainedLayers) -> Start:
    """Dead samples, and the spectrum of the Jacobian Gram matrix, of one of the stacked runs.

    Args:
      drawn: runs on the host, with the weights that are measured; d2 = 1.
      run: which one.
      d0, d1: its true sizes.
      layers: the trained layers.
    """
    X = np.asarray(drawn.problem.X[run, :, :d0], np.float64)
    W = np.asarray(drawn.params.W[run, :d0, :d1], np.float64)
    v = np.asarray(drawn.params.V[run, :d1, 0], np.float64)
    Z = X @ W
    active = Z > 0
    factor = active * v
    gram = (X @ X.T) * (factor @ factor.T)
    if layers == "both":
        hidden = np.maximum(Z, 0.0)
        gram += hidden @ hidden.T
    values = np.linalg.eigvalsh(gram)
    threshold = len(X) * np.finfo(float).eps * values[-1]
    # Rounded, so that a rate does not depend on the machine.
    return Start(int(np.sum(~active.any(axis=1))), float(np.float32(values[-1])), bool(values[0] > threshold))


def rescaled(drawn: Run, rates: np.ndarray, layers: TrainedLayers) -> Run:
    """Runs whose descent at the rate 1 is that of the given ones at their own rates.

    relu is positively homogeneous: with s = sqrt(rate), W' = W / s and X' = s X leave outputs and losses what they
    are, and a step of size 1 on W' is one of size s^2 on W. With both layers trained V' = V / s and X' = s^2 X.

    Args:
      drawn: runs on the host, stacked.
      rates: of every run.
      layers: the trained layers.
    """
    both = layers == "both"
    s = np.sqrt(rates)[:, None, None]
    (W, V), (X, Y) = drawn.params, drawn.problem
    kind = W.dtype
    params = Params((W / s).astype(kind), (V / s).astype(kind) if both else V)
    return drawn._replace(params=params, problem=Problem((X * (s * s if both else s)).astype(kind), Y))
