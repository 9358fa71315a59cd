"""What is measured from the stored results of the studies: numbers with intervals and counts, for the ledger's rules.

`QUANTITIES` maps a name to the studies that it is read from and to a function of one of them. Intervals cover 95
percent: Wilson's for shares of runs, Student's for means over cells or runs. Where the runs of a cell share their data
the cell is the unit, of which most runs must agree. Every set-up is measured by itself; along training, every width.
"""

import json
import math
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas
import xarray as xr

from relu_sgd import Status
from relu_sgd.proofs import Verdict
from sweeps.inclusion_limit.report import fitted_rate
from sweeps.protocol.presets import relative_tolerances
from sweeps.reporting.statistics import interval, mean_interval
from sweeps.reproduction.ledger import Measurement
from sweeps.reproduction.studies import kind_of, protocol_of
from sweeps.runtime import extension, session
from sweeps.step_counts.report import fits
from sweeps.step_counts.report import summarize as summarize_steps
from sweeps.study import Results, Study, UsageError
from sweeps.trajectories.report import pattern_freezes
from sweeps.trajectories.study import FIGURE_3
from sweeps.width_bounds.tables import tables as width_tables

__all__ = ["QUANTITIES", "Stored", "measure", "stored", "unfinished"]

# Half an order of magnitude: what lies above is nearer to ten than to one.
ORDER = math.sqrt(10)
_DRAWS = 2000


class Stored(NamedTuple):
    """The finished results of a study.

    Attributes:
      key: of the study.
      study: with its flags, as the results say.
      results: variant to dataset; nothing where the study has no store.
      folder: where they are.
      configuration: the short name of what decides them.
    """

    key: str
    study: Any
    results: Results
    folder: Path
    configuration: str


class Found(NamedTuple):
    """A value with its interval; `low` and `high` are `value` where it is exact.

    Attributes:
      value, low, high: numbers.
      counts: how many of what.
      setup: of which networks, where a study has several.
    """

    value: float
    low: float
    high: float
    counts: str
    setup: str = ""


class Quantity(NamedTuple):
    """How a number is read off.

    Attributes:
      keys: the studies.
      find: of one of them.
    """

    keys: tuple[str, ...]
    find: Callable[[Stored], Iterable[Found]]


QUANTITIES: dict[str, Quantity] = {}
_MAPS = ("map_as_written", "map_as_released")
_TRAJECTORIES = ("trajectories_as_written", "trajectories_as_released")


def _quantity(*keys: str) -> Callable[[Callable[[Stored], Iterable[Found]]], Callable[[Stored], Iterable[Found]]]:
    def keep(find: Callable[[Stored], Iterable[Found]]) -> Callable[[Stored], Iterable[Found]]:
        QUANTITIES[find.__name__] = Quantity(keys, find)
        return find

    return keep


def stored(key: str, out: Path) -> Stored | None:
    """The results of a study in the folder DIR/key; None where there are none, or some are pending.

    Raises:
      UsageError: they are damaged, or of another study.
    """
    folder, kind = out / key, kind_of(key)
    if not (folder / "results.zarr").exists():
        if not (folder / "config.json").exists():
            return None
        try:
            config = json.loads((folder / "config.json").read_text())
            if config.pop("launcher") != kind.name:
                raise UsageError(f"--out: the results in {folder} are not of {kind.name}")
            study: Study = kind.from_science({"science": config})
        except (OSError, ValueError, KeyError, AttributeError) as error:
            raise UsageError(f"--out: {folder / 'config.json'} cannot be read: {error}") from error
        return None if study.axes() else Stored(key, study, {}, folder, session.configuration_of(study.science()))
    store = session.open_results(folder)
    study = kind.from_science(store.attributes)
    if any(left.any() for left in session.pending(study, store).values()):
        return None  # `unfinished` says how many.
    session.verify(study, store)
    results = {variant: extension.read(store, variant.group) for variant in study.variants()}
    return Stored(key, study, results, folder, store.attributes["configuration"])


def unfinished(key: str, out: Path) -> tuple[int, int]:
    """How many runs of a study in the folder DIR/key are pending, and of how many; (0, 0) where there is no store.

    Raises:
      UsageError: it is damaged, or of another study.
    """
    if not (out / key / "results.zarr").exists():
        return 0, 0
    store = session.open_results(out / key)
    left = session.pending(kind_of(key).from_science(store.attributes), store).values()
    return sum(int(mask.sum()) for mask in left), sum(mask.size for mask in left)


def measure(found: Iterable[Stored]) -> tuple[Measurement, ...]:
    """Every quantity of every study that there are results of."""
    measured = []
    for one in found:
        protocol, precision = protocol_of(one.study), one.study.arithmetic
        for name, quantity in QUANTITIES.items():
            if one.key in quantity.keys:
                for value, low, high, counts, setup in quantity.find(one):
                    measured.append(
                        Measurement(
                            name=name,
                            protocol=protocol,
                            value=float(value),
                            low=float(low),
                            high=float(high),
                            counts=counts,
                            study=one.key,
                            configuration=one.configuration,
                            precision=precision,
                            setup=setup,
                        )
                    )
        if one.key == "statements":
            measured += _statements(one)
    return tuple(measured)


def _statements(one: Stored) -> Iterator[Measurement]:
    """How many problems violate a statement; of one that allows failures, the share that does."""
    (data,) = one.results.values()
    allowed, violated, trials = (data[name].values for name in ("allowed", "violated", "trials"))
    for index, name in enumerate(data["statement"].values):
        count, total = int(violated[index].sum()), int(trials[index].sum())
        if not total:
            continue
        low, high = interval(count, total)
        value, counts = float(count), f"{count:,} of {total:,} problems"
        counts += "" if count else f"; at most a share of {high:.2g}"
        if allowed[index].max() > 0:
            value, counts = count / total, f"{count:,} of {total:,} trials"
        else:
            low = high = value
        yield Measurement(
            str(name), "", value, low, high, counts, one.key, one.configuration, one.study.arithmetic
        )  # fmt: skip


# Shares.


def _share(mask: np.ndarray, of: np.ndarray, what: str, *, shared: bool = False) -> Found:
    """The share of `mask` among `of`, both over d0, d1 and seeds; of data sets where the runs of a cell share them."""
    if shared:
        runs, agree = of.sum(axis=-1), (mask & of).sum(axis=-1)
        count, total = int((2 * agree[runs > 0] > runs[runs > 0]).sum()), int((runs > 0).sum())
        what = f"data sets, in most of their {what}"
    else:
        count, total = int((mask & of).sum()), int(of.sum())
    if not total:
        return Found(math.nan, math.nan, math.nan, f"0 of 0 {what}")
    return Found(count / total, *interval(count, total), f"{count:,} of {total:,} {what}")


def _each(one: Stored, find: Callable[[xr.Dataset], Found]) -> Iterator[Found]:
    """The value of every set-up."""
    for variant, data in one.results.items():
        yield find(data)._replace(setup=variant.group)


# Figure 2.


def _load(data: xr.Dataset) -> np.ndarray:
    """d0 d1 / N of every cell, with an axis for the seeds."""
    return (np.outer(data["d0"].values, data["d1"].values) / data.attrs["science"]["num_samples"])[..., None]


def _converged_at(one: Stored, chosen: Callable[[np.ndarray], np.ndarray]) -> Iterator[Found]:
    def find(data: xr.Dataset) -> Found:
        status = data["status"].values
        asked = (status != Status.PENDING) & chosen(_load(data))
        found = _share(one.study.succeeded(data), asked, "runs", shared=one.study.data_sharing == "cell")
        diverged = asked & (status == Status.DIVERGED)
        dead = asked & ~one.study.succeeded(data) & ~diverged & (data["dead_samples"].values > 0)
        why = ((diverged, "diverged"), (dead, "ended with a dead sample"))
        more = "".join(f", {int(mask.sum()):,} runs {name}" for mask, name in why if mask.any())
        return found._replace(counts=found.counts + more)

    return _each(one, find)


@_quantity(*_MAPS)
def converged_below_edge(one: Stored) -> Iterator[Found]:
    """The share of runs with d0 d1 < N that converge."""
    return _converged_at(one, lambda load: load < 1)


@_quantity(*_MAPS)
def converged_above_edge(one: Stored) -> Iterator[Found]:
    """The share of runs with d0 d1 >= N that converge."""
    return _converged_at(one, lambda load: load >= 1)


@_quantity(*_MAPS)
def converged_far_above_edge(one: Stored) -> Iterator[Found]:
    """The share of runs with d0 d1 >= 4 N that converge."""
    return _converged_at(one, lambda load: load >= 4)


def _contested(one: Stored) -> np.ndarray | None:
    """Success with the hidden layer trained minus that with both, paired by run: cells x seeds, of the cells in which
    not all runs of both set-ups end alike; None without both set-ups.
    """
    by_layers = {variant.trained_layers: data for variant, data in one.results.items()}
    if set(by_layers) != {"hidden", "both"}:
        return None
    hidden, both = (one.study.succeeded(by_layers[name]).astype(float) for name in ("hidden", "both"))
    total = (hidden + both).sum(axis=-1)
    return np.asarray((hidden - both)[(total > 0) & (total < 2 * hidden.shape[-1])])


@_quantity(*_MAPS)
def setup_difference(one: Stored) -> Iterator[Found]:
    """The probability with the hidden layer trained minus that with both, mean over the contested cells."""
    if (differences := _contested(one)) is not None:
        value, low, high = mean_interval(differences.mean(axis=-1))
        excluded = ", 0 is excluded" if low > 0 or high < 0 else ""
        yield Found(value, low, high, f"{len(differences):,} cells where runs end differently{excluded}")


@_quantity(*_MAPS)
def setup_difference_size(one: Stored) -> Iterator[Found]:
    """The root mean square of the difference over the contested cells, so that cells of either sign do not cancel;
    less the variance that so many runs have by chance.
    """
    differences = _contested(one)
    if differences is not None and differences.shape[-1] > 1:
        by_chance = differences.var(axis=-1, ddof=1) / differences.shape[-1]
        squares = mean_interval(differences.mean(axis=-1) ** 2 - by_chance)
        value, low, high = np.sqrt(np.clip(squares, 0, None))
        yield Found(value, low, high, f"{len(differences):,} cells where runs end differently")


def _zeros(one: Stored, layers: str) -> np.ndarray:
    """The mean number of zeros of the runs of every cell that converge; NaN where none does, or without the set-up."""
    for variant, data in one.results.items():
        if variant.trained_layers == layers:
            with np.errstate(invalid="ignore"):
                converged = one.study.succeeded(data)
                total = np.where(converged, data["numerical_zeros"].values, 0).sum(axis=-1)
                return np.asarray(total / np.where(converged.any(axis=-1), converged.sum(axis=-1), np.nan)).ravel()
    return np.full(1, np.nan)


def _mean_zeros(one: Stored, layers: str) -> Iterator[Found]:
    zeros = _zeros(one, layers)
    if (cells := int(np.isfinite(zeros).sum())) > 0:
        value, low, high = mean_interval(zeros)
        if not value:  # No zero at all has no spread: the end of Poisson's exact interval for as many runs as cells.
            high = -math.log(0.025) / cells
        yield Found(value, max(low, 0.0), high, f"{cells:,} cells with converged runs")


@_quantity(*_MAPS)
def zeros_hidden(one: Stored) -> Iterator[Found]:
    """Preactivations below 1e-8 at convergence, hidden layer trained: mean over the cells."""
    return _mean_zeros(one, "hidden")


@_quantity(*_MAPS)
def zeros_both(one: Stored) -> Iterator[Found]:
    """The same, both layers trained."""
    return _mean_zeros(one, "both")


def _ends(zeros: np.ndarray) -> tuple[float, float]:
    """The least and the largest mean number of zeros that half of the error allows: Student's interval over the cells,
    or the end of Poisson's exact one where there is no zero.
    """
    if not zeros.any():
        return 0.0, -math.log(0.0125) / len(zeros)
    _, low, high = mean_interval(zeros, 0.975)
    return max(low, 0.0), high


@_quantity(*_MAPS)
def zeros_ratio(one: Stored) -> Iterator[Found]:
    """How many times as many zeros there are with the hidden layer trained; bootstrap over the cells, where one set-up
    has no zeros the ends of both means. Resamples without any zero leave it open.
    """
    hidden, both = _zeros(one, "hidden"), _zeros(one, "both")
    if hidden.shape != both.shape:
        return
    kept = np.isfinite(hidden) & np.isfinite(both)
    hidden, both = hidden[kept], both[kept]
    if len(hidden) < 2:
        return
    counts = f"{len(hidden):,} cells in which runs of both set-ups converge"
    with np.errstate(divide="ignore", invalid="ignore"):
        value = hidden.sum() / both.sum()
        if not (hidden.any() and both.any()):
            (least, most), (least_both, most_both) = _ends(hidden), _ends(both)
            yield Found(value, least / most_both, most / least_both if least_both else math.inf, counts)
            return
        drawn = np.random.default_rng(0).integers(len(hidden), size=(_DRAWS, len(hidden)))
        ratios = hidden[drawn].sum(axis=1) / both[drawn].sum(axis=1)
    open_ = np.isnan(ratios).any()
    low, high = (math.nan,) * 2 if open_ else np.quantile(ratios, (0.025, 0.975), method="inverted_cdf")
    yield Found(value, low, high, counts)


def _zeros_at_least(one: Stored, least: int) -> Iterator[Found]:
    return _each(
        one,
        lambda data: _share(
            data["numerical_zeros"].values >= least,
            one.study.succeeded(data),
            "converged runs",
            shared=one.study.data_sharing == "cell",
        ),
    )


@_quantity(*_MAPS)
def any_zeros(one: Stored) -> Iterator[Found]:
    """The share of converged runs with a zero or more."""
    return _zeros_at_least(one, 1)


@_quantity(*_MAPS)
def many_zeros(one: Stored) -> Iterator[Found]:
    """The share of converged runs with two zeros or more, where several linear regions meet."""
    return _zeros_at_least(one, 2)


@_quantity("map_as_written")
def success_at_local_minimum(one: Stored) -> Iterator[Found]:
    """The share of runs that meet the criterion beside a proved local minimum of positive loss."""
    if one.study.prove:
        yield from _each(
            one,
            lambda data: _share(
                data["verdict"].values == Verdict.LOCAL_MINIMUM, one.study.succeeded(data), "runs that meet it"
            ),
        )


@_quantity("map_as_written")
def failure_at_global_minimum(one: Stored) -> Iterator[Found]:
    """The share of runs that miss the criterion after all steps beside a proved global minimum."""
    if one.study.prove:
        yield from _each(
            one,
            lambda data: _share(
                data["verdict"].values == Verdict.GLOBAL_MINIMUM,
                data["status"].values == Status.MAX_STEPS_REACHED,
                "runs that miss it",
            ),
        )


# Figure 3.


def _trained(one: Stored, find: Callable[[xr.Dataset], np.ndarray]) -> Iterator[Found]:
    """The share of the networks for which something holds, of every set-up and width; `find` is NaN where it has no
    meaning. For a network that diverges it does not hold. Where the networks share their data they are one. A study
    without Figure 3's largest width leaves open what it would show.
    """
    for variant, data in one.results.items():
        for j, d1 in enumerate(data["d1"].values):
            cell = data.isel(d0=0, d1=j)
            status = cell["status"].values
            holds = np.asarray(find(cell.isel(seed=np.flatnonzero(status == 1))), float)
            diverged = int((status == 3).sum())
            mask = np.concatenate([holds[np.isfinite(holds)] > 0, np.zeros(diverged, bool)])
            shared = one.study.data_sharing == "cell"
            found = _share(mask, np.ones_like(mask), "networks", shared=shared)
            more = f", {diverged:,} of the networks diverged" if diverged else ""
            yield found._replace(counts=found.counts + more, setup=f"{variant.group}, d1 = {d1}")
        if max(data["d1"].values) < (largest := max(FIGURE_3["d1"])):
            setup = f"{variant.group}, d1 = {largest}"
            yield Found(math.nan, math.nan, math.nan, "a width of the paper that was not run", setup)


def _criterion(one: Stored) -> float:
    """The protocol's criterion, as a relative error."""
    return relative_tolerances(one.study.num_samples)[one.study.protocol]


def _freezes(cell: xr.Dataset) -> np.ndarray:
    words = (cell[f"pattern_fingerprint_{half}"].values for half in ("high", "low"))
    return pattern_freezes(cell["step"].values, *words)


@_quantity(*_TRAJECTORIES)
def trajectory_succeeds(one: Stored) -> Iterator[Found]:
    """The share of networks whose last error meets the protocol's criterion."""
    return _trained(one, lambda cell: cell["relative_error"].values[:, -1] < _criterion(one))


@_quantity(*_TRAJECTORIES)
def zeros_stay(one: Stored) -> Iterator[Found]:
    """The share of networks with numerical zeros in the last record."""
    return _trained(one, lambda cell: cell["numerical_zeros"].values[:, -1] > 0)


@_quantity(*_TRAJECTORIES)
def pattern_moves_after_success(one: Stored) -> Iterator[Found]:
    """The share of networks whose activation pattern still changes after the first record that meets the criterion."""

    def find(cell: xr.Dataset) -> np.ndarray:
        met = cell["relative_error"].values < _criterion(one)
        first = cell["step"].values[np.argmax(met, axis=-1)]
        return np.where(met.any(axis=-1), _freezes(cell) > first, np.nan)

    return _trained(one, find)


@_quantity(*_TRAJECTORIES)
def pattern_settles(one: Stored) -> Iterator[Found]:
    """The share of networks whose activation pattern rests before the last record."""
    return _trained(one, lambda cell: _freezes(cell) < cell["step"].values[-1])


@_quantity(*_TRAJECTORIES)
def pattern_moves_late(one: Stored) -> Iterator[Found]:
    """The share of networks whose activation pattern still changes after nine tenths of the steps."""
    return _trained(one, lambda cell: _freezes(cell) > 0.9 * cell["step"].values[-1])


@_quantity(*_TRAJECTORIES)
def zeros_confined(one: Stored) -> Iterator[Found]:
    """The share of networks whose numerical zeros, in the second half of the records, are never none and vary by a
    factor of 2 at most.
    """

    def find(cell: xr.Dataset) -> np.ndarray:
        zeros = cell["numerical_zeros"].values[:, cell.sizes["step"] // 2 :]
        return np.asarray((zeros.min(axis=-1) > 0) & (zeros.max(axis=-1) <= 2 * zeros.min(axis=-1)))

    return _trained(one, find)


@_quantity(*_TRAJECTORIES)
def settling_by_width(one: Stored) -> Iterator[Found]:
    """How many times as late the pattern rests at one end of the widths as at the other, whichever is later, at least
    1: mean of the logarithms over the seeds. Pairs that both move to the end say nothing; without Figure 3's largest
    width the factor may be larger.
    """
    for variant, data in one.results.items():
        cells = [data.isel(d0=0, d1=index) for index in (0, -1)]
        if data.sizes["d1"] < 2:
            continue
        last = data["step"].values[-1]
        rests = [np.where(cell["status"].values == 1, _freezes(cell), np.nan).astype(float) for cell in cells]
        unknown = (rests[0] == last) & (rests[1] == last)
        logs = np.where(unknown, np.nan, np.log(rests[1] / rests[0]))
        value, low, high = mean_interval(logs)
        if low <= 0 <= high:
            low, high = 0.0, max(-low, high)
        elif high < 0:
            low, high = -high, -low
        known, widths = int(np.isfinite(logs).sum()), data["d1"].values[[0, -1]]
        high = high if widths[1] >= max(FIGURE_3["d1"]) else math.inf
        counts = f"{known} pairs of networks at d1 = {widths[0]} and {widths[1]}"
        yield Found(math.exp(abs(value)), math.exp(low), math.exp(high), counts, variant.group)


def _over_loss(one: Stored, name: str, factor: float) -> Iterator[Found]:
    """The share of networks in which, in the median record, a change is so many times that of the loss, both relative;
    of the records with an error above rounding.
    """

    def find(cell: xr.Dataset) -> np.ndarray:
        loss, change, error = (cell[part].values for part in ("relative_loss_change", name, "relative_error"))
        kept = (error > 1000 * np.finfo(error.dtype).eps) & (loss > 0)
        ratios = np.divide(change, loss, out=np.full_like(change, np.nan), where=kept)
        medians = np.array([np.median(row[np.isfinite(row)]) if np.isfinite(row).any() else np.nan for row in ratios])
        return np.where(np.isfinite(medians), medians > factor, np.nan)

    return _trained(one, find)


def _meant(one: Stored) -> str:
    """The differential that the text names, and the one that the released code computes."""
    return "relative_jacobian_change" if one.study.protocol == "as_written" else "relative_gradient_change"


@_quantity(*_TRAJECTORIES)
def differential_far_above_loss(one: Stored) -> Iterator[Found]:
    """The share of networks whose differential changes by an order of magnitude more than the loss: the Jacobian DY of
    the text as written, the gradient of the loss as released.
    """
    return _over_loss(one, _meant(one), ORDER)


@_quantity(*_TRAJECTORIES)
def differential_above_loss(one: Stored) -> Iterator[Found]:
    """The share of networks whose differential changes more than the loss; in either meaning as above."""
    return _over_loss(one, _meant(one), 1.0)


@_quantity(*_TRAJECTORIES)
def jacobian_above_loss(one: Stored) -> Iterator[Found]:
    """The share of networks whose Jacobian DY changes more than the loss, whatever the protocol."""
    return _over_loss(one, "relative_jacobian_change", 1.0)


# Figure 1.


def _curves(one: Stored) -> Iterator[tuple[str, pandas.DataFrame]]:
    """The two readings of (9), each with a row per alpha."""
    table = pandas.read_csv(one.folder / "summary.csv")
    for variant, part in table.groupby("variant", sort=False):
        yield f"(9) {variant}", part


_BLOWS_UP = "blows_up"


@_quantity("comparison")
def blow_up_threshold(one: Stored) -> Iterator[Found]:
    """The alpha below which solutions of (9) as printed blow up."""
    for setup, part in _curves(one):
        if setup == "(9) as printed":
            bounded, blown = (part["alpha"][part["outcome"] == outcome] for outcome in ("bounded", _BLOWS_UP))
            low, high = blown.max(), bounded.min()
            yield Found((low + high) / 2, low, high, f"between two of {len(part)} solutions", setup)


@_quantity("comparison")
def explosions_under_10(one: Stored) -> Iterator[Found]:
    """How many solutions blow up although (10) holds, in either reading of (9)."""
    for setup, part in _curves(one):
        certified = part[part["left_side_10"] < 1]
        if len(certified):
            count = int((certified["outcome"] == _BLOWS_UP).sum())
            left = f"{certified['left_side_10'].min():.3f} to {certified['left_side_10'].max():.3f}"
            counts = f"{count} of {len(certified)} solutions with a left side of {left}"
            yield Found(count, count, count, counts, setup)


@_quantity("comparison")
def largest_over_bound(one: Stored) -> Iterator[Found]:
    """The largest y of the bounded solutions over Lemma 3.3's bound 2 a / alpha^2."""
    for setup, part in _curves(one):
        bounded = part[part["outcome"] == "bounded"]
        value = float((bounded["largest_y"] / bounded["bound"]).max())
        yield Found(value, value, value, f"{len(bounded)} bounded solutions", setup)


# Sections 4 and 5.


@_quantity("inclusion")
def order_of_descent(one: Stored) -> Iterator[Found]:
    """The fitted power of the step size with which descent tends to the inclusion, runs with a unique solution."""
    sizes, rates, branched = np.array(one.study.step_sizes), [], 0
    for data in one.results.values():
        done = data["status"].values == 1
        distances = np.stack([data[f"distance_{k}"].values[done] for k in range(len(sizes))], axis=-1)
        unique = data["branched_at"].values[done] > one.study.horizon
        branched += int((~unique).sum())
        rates += [fitted_rate(sizes, row) for row in distances[unique]]
    known = np.array(rates, float)
    more = f", {branched} others branch" if branched else ""
    yield Found(*mean_interval(known), f"{int(np.isfinite(known).sum())} runs{more}")


@_quantity("inclusion")
def zeros_that_slide(one: Stored) -> Iterator[Found]:
    """The share of the zeros of descent, at its least rate, that the inclusion holds at 0: mean over the runs."""
    last, shares = len(one.study.long_rates) - 1, []
    for data in one.results.values():
        done = data["status"].values == 1
        zeros, both = (data[f"{name}_{last}"].values[done].astype(float) for name in ("zeros", "zeros_that_slide"))
        shares += list((both[zeros > 0] / zeros[zeros > 0]).ravel())
    value, low, high = mean_interval(np.array(shares, float))
    yield Found(value, max(low, 0.0), min(high, 1.0), f"{len(shares)} runs with zeros")


@_quantity("step_counts")
def exponent_of_steps(one: Stored) -> Iterator[Found]:
    """The fitted power of eta b that the steps to the least epsilon are proportional to."""
    shapes = fits(summarize_steps(one.study, one.results))
    rows = shapes[shapes["shape"].str.startswith("steps")]
    rows = rows[rows["at"] == f"epsilon = {min(one.study.epsilon):g}"]
    for _, row in rows.iterrows():
        yield Found(row["value"], row["low"], row["high"], f"{row['points']} pairs of eta and b")


@_quantity("step_counts")
def growth_of_slope(one: Stored) -> Iterator[Found]:
    """How many times as many steps a factor of epsilon costs at the end as it did before, the largest over eta and b,
    mean over the starts: 1 for a linear rate, more for a slower one.
    """
    logs = -np.log(np.array(one.study.epsilon))
    if len(logs) < 3:
        return
    for variant, data in one.results.items():
        steps = np.stack([data[f"steps_{index}"].values for index in range(len(logs))], axis=-1).astype(float)
        slopes = np.diff(np.where(steps < 0, np.nan, steps), axis=-1) / np.diff(logs)
        with np.errstate(divide="ignore", invalid="ignore"):
            growth = np.max(slopes[..., -1] / slopes[..., -2], axis=(0, 1))
        value, low, high = mean_interval(growth)
        pairs, known = steps.shape[0] * steps.shape[1], int(np.isfinite(growth).sum())
        yield Found(value, low, high, f"{known} starts, each with {pairs} pairs of eta and b", variant.group)


@_quantity("step_counts")
def reaches_epsilon(one: Stored) -> Iterator[Found]:
    """The share of starts from which descent gets below the least epsilon with every eta and b."""
    for variant, data in one.results.items():
        status = data["status"].values
        found = _share((status == 1).all(axis=(0, 1)), (status != 0).all(axis=(0, 1)), "starts")
        pairs = status.shape[0] * status.shape[1]
        yield found._replace(counts=f"{found.counts}, each with {pairs} pairs of eta and b", setup=variant.group)


@_quantity("widths")
def exponent_of_certified_width(one: Stored) -> Iterator[Found]:
    """The fitted power of N with which the width that (10) certifies grows, LeCun's scaling: the largest over delta."""
    (results,) = one.results.values()
    if "lecun" not in one.study.scaling:
        return
    exponents = width_tables(results, one.study)[1]
    rows = exponents[(exponents["scaling"] == "lecun") & (exponents["condition"] == "(10)")].dropna()
    if len(rows):
        row = rows.loc[rows["exponent"].idxmax()]
        counts = f"N from {min(one.study.num_samples):,} to {row['largest_num_samples']:,}, d0 = N^{row['delta']:g}"
        yield Found(row["exponent"], row["exponent_low"], row["exponent_high"], counts)


def _alpha_ratios(one: Stored, multiple: str) -> np.ndarray:
    (results,) = one.results.values()
    ratios = results[f"alpha_ratio_{multiple}N"].values.ravel()
    return np.asarray(ratios[np.isfinite(ratios)])


@_quantity("widths")
def alpha_at_n(one: Stored) -> Iterator[Found]:
    """alpha_0 / (beta_w sqrt(d1 lambda(X))) at d1 = N, mean over the runs; Lemma C.1 promises 1/2."""
    ratios = _alpha_ratios(one, "1")
    yield Found(*mean_interval(ratios), f"{len(ratios)} runs")


@_quantity("widths")
def alpha_at_4n(one: Stored) -> Iterator[Found]:
    """The same at d1 = 4 N."""
    ratios = _alpha_ratios(one, "4")
    yield Found(*mean_interval(ratios), f"{len(ratios)} runs")


def _table_1(one: Stored) -> pandas.DataFrame:
    table = pandas.read_csv(one.folder / "table_1.csv", keep_default_na=False)
    return table[table["in_table_1"]]


@_quantity("widths")
def narrower_in_table_1(one: Stored) -> Iterator[Found]:
    """How many of Table 1's other results for ReLU ask for less at some N and delta, up to logarithms and constants."""
    table = _table_1(one)
    table = table[table["relu"]]
    is_ours = table["result"].str.startswith("Polaczyk")
    widths = table.merge(table[is_ours], on=["num_samples", "delta"], suffixes=("", "_ours"))
    less = widths[widths["width_with_unit_constant"] < widths["width_with_unit_constant_ours"]]
    count, total = less["result"].nunique(), table[~is_ours]["result"].nunique()
    deltas = ", ".join(f"{delta:g}" for delta in one.study.delta)
    yield Found(count, count, count, f"{count} of {total} results at delta = {deltas}")


@_quantity("widths")
def misprints_in_table_1(one: Stored) -> Iterator[Found]:
    """How many rows of Table 1 print something else than the works that they cite say."""
    table = _table_1(one)
    rows = table.groupby("result")["note"].first()
    count = int(rows.str.startswith("Table 1 prints").sum())
    yield Found(count, count, count, f"{count} of {len(rows)} rows")
