"""Runs beyond a store's own seeds, of some of its cells: what --refine adds, and all runs of a study that allocates
them itself (`Study.allocates`), whose store has no seeds of its own.

They are in a store of their own, refined.zarr beside results.zarr, with the same groups, dimensions and metrics and the
seeds that follow. Its attribute "rounds" says which runs were asked for, and in what order: all others stay pending;
"rule", of a study that allocates its runs, by which version of its rule.
A store that was never refined has none beside it, and results.zarr is the same with one and without.

A round is decided from the results of all rounds before it, and of nothing else, and recorded before it is run. So an
interrupted refinement goes on to the same runs, and a larger budget to those that it would have had from the start. It
has half as many runs as there are so far: few rounds, in each of which there is something to do for every process.
Smaller ones hardly choose better (docs/refinement.md).
"""

import collections
import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import zarr
from absl import logging

from relu_sgd.dynamics import Status
from sweeps import refinement
from sweeps.runtime.progress import duration
from sweeps.runtime.store import Store, StoreError
from sweeps.study import Made, Study, Tile, UsageError

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["UNIT", "allocate", "asked", "beyond", "check", "check_rule", "num_runs", "read", "refine"]

# From the grid and the runs so far to the rounds with what is to be run next; as they were when that is all.
_Following: TypeAlias = Callable[["_Grid", Store], list[list[dict[str, Any]]]]

# Runs that a chosen cell has at once: as many as a processor trains side by side.
UNIT = 8
# Of the runs so far, the share that a round adds.
_GROWTH = 0.5


def check(study: Study) -> None:
    """Refuses a study without a boundary to refine.

    Raises:
      UsageError: naming --refine.
    """
    axis = study.boundary_axis
    if not axis:
        raise UsageError(f"--refine: {study.name} has no axis along which a probability of success grows")
    sizes = study.axes()[axis]
    if len(sizes) < 2 or min(sizes) <= 0 or list(sizes) != sorted(sizes):
        raise UsageError(f"--refine: needs at least two values of {axis}, positive and increasing")


def beyond(store: Store, *, read_only: bool = True) -> Store | None:
    """The runs beyond those of a store; None where there are none.

    Raises:
      StoreError: they are damaged, or of another store.
    """
    path = store.path.with_name("refined.zarr")
    if not path.exists():
        return None
    more = Store.open(path, read_only=read_only)
    same = all(more.attributes.get(name) == store.attributes.get(name) for name in ("study", "configuration", "block"))
    if not same or not isinstance(more.attributes.get("rounds"), list):
        raise StoreError(
            f"{path} is damaged, or has the runs of other results than {store.path.name} beside it; when it is deleted "
            "the same command makes it again"
        )
    return more


def check_rule(study: Study, store: Store) -> None:
    """Refuses to go on with runs that were allocated by another version of the rule: they would follow from none.

    Raises:
      UsageError: see above; or they are damaged, or of another store.
    """
    try:
        more = beyond(store) if study.allocates else None
    except StoreError as error:
        raise UsageError(f"--out: {error}") from error
    if more is not None and more.attributes.get("rule") != study.rule:
        raise UsageError(
            f"--out: the runs in {more.path} were allocated by another rule than this code's, of version {study.rule}; "
            "they can be reported (--figures_only), and another --out begins anew"
        )


def num_runs(store: Store) -> int:
    """How many runs were asked for beyond those of a store."""
    more = beyond(store)
    return 0 if more is None else UNIT * sum(map(len, more.attributes["rounds"]))


def asked(store: Store) -> list[tuple[str, bool]]:
    """The groups of runs that were asked for beyond those of a store: their names, and whether they are done.

    Raises:
      StoreError: they are damaged; a chunk that is counts as one that is not done.
    """
    more, found = beyond(store), []
    if more is None:
        return []
    for unit in (unit for made in more.attributes["rounds"] for unit in made):
        group, place = unit["variant"], []
        for axis in more.dimensions(group):
            values = more.values(group, axis).tolist()
            wanted = range(*unit["seeds"]) if axis == "seed" else [unit["cell"][axis]]
            known = [values.index(value) for value in wanted if value in values]
            place.append(slice(known[0], known[-1] + 1) if known else slice(0, 0))
        try:
            codes = np.asarray(more.array(group, "status")[tuple(place)])
        except (OSError, RuntimeError, ValueError):  # As Zarr and its codecs raise for a damaged chunk.
            codes = np.zeros(UNIT)
        cell = ", ".join(f"{axis} = {value}" for axis, value in unit["cell"].items())
        name = f"{group}, {cell}, seeds {unit['seeds'][0]} to {unit['seeds'][1] - 1}"
        found.append((name, codes.size == UNIT and bool(codes.all())))
    return found


def read(store: Store, group: str) -> "xr.Dataset":
    """All results of a variant, those beyond the store's own seeds among them: runs that there are none of have status
    0.

    Raises:
      StoreError: something is missing or damaged.
    """
    results, more = store.read(group), beyond(store)
    if more is None:
        return results
    import xarray as xr

    return xr.concat([results, more.read(group)], "seed", join="exact", combine_attrs="override")


def _create(study: Study, store: Store) -> Store:
    seeds = study.seeds()
    grid = {**study.axes(), "seed": range(seeds.stop, seeds.stop + UNIT)}
    attributes = {name: value for name, value in store.attributes.items() if name != "metrics"} | {"rounds": []}
    if study.allocates:
        attributes["rule"] = study.rule
    # A tile is a chunk here too: a cell.
    chunk = dict.fromkeys(study.axes(), 1) | {"seed": UNIT}
    path = store.path.with_name("refined.zarr")
    groups = [variant.group for variant in study.variants()]
    return Store.create(path, groups, grid, chunk, study.metrics, attributes, study.records)


def _grow(more: Store, study: Study, seeds: range) -> None:
    """Room for some seeds, more or as many as there are; what is new is pending."""
    root, place = zarr.open_group(more.path, mode="r+"), len(study.axes())
    for _, group in root.groups():
        for name in study.metrics:
            array = group[name]
            assert isinstance(array, zarr.Array)
            array.resize((*array.shape[:place], len(seeds), *array.shape[place + 1 :]))
        coordinate = group["seed"]
        assert isinstance(coordinate, zarr.Array)
        coordinate.resize((len(seeds),))
        coordinate[:] = np.asarray(seeds)


class _Grid:
    """The cells of all variants in rows along the boundary's axis."""

    def __init__(self, study: Study, block: Sequence[int]) -> None:
        self._variants, self._block = study.variants(), block
        self._axes = study.axes()
        self._names = list(self._axes)
        self._place = self._names.index(study.boundary_axis)
        self._groups = {variant.group: index for index, variant in enumerate(self._variants)}
        self.sizes = self._axes[study.boundary_axis]

    def rows(self, counts: Sequence[np.ndarray]) -> np.ndarray:
        """Counts over the axes, a variant each, as rows."""
        return np.moveaxis(np.stack(counts), 1 + self._place, -1).reshape(-1, len(self.sizes))

    def unit(self, row: int, cell: int) -> dict[str, Any]:
        """A choice as it is recorded, without its seeds."""
        others = [len(values) for name, values in self._axes.items() if name != self._names[self._place]]
        variant, *index = map(int, np.unravel_index(row, (len(self._variants), *others)))
        index.insert(self._place, cell)
        return self.cell(self._variants[variant].group, index)

    def cell(self, group: str, index: Sequence[int]) -> dict[str, Any]:
        """A cell as it is recorded, from its place among the axes."""
        values = {name: self._axes[name][i] for name, i in zip(self._names, index, strict=True)}
        return {"variant": group, "cell": values}

    def index(self, unit: Mapping[str, Any]) -> tuple[int, ...]:
        """Where the cell of a unit is among the axes."""
        return tuple(self._axes[name].index(unit["cell"][name]) for name in self._names)

    def tile(self, unit: Mapping[str, Any]) -> Tile:
        """A unit as it is run: with the programs of the block that its cell is in."""
        within = {}
        for (name, values), at, size in zip(self._axes.items(), self.index(unit), self._block, strict=False):
            within[name] = values[at - at % size :][:size]
        cell = {name: (value,) for name, value in unit["cell"].items()}
        return Tile(self._variants[self._groups[unit["variant"]]], cell, range(*unit["seeds"]), within)


def _key(unit: Mapping[str, Any]) -> tuple[Any, ...]:
    """Which cell a unit is of."""
    return (unit["variant"], *unit["cell"].values())


def _counts(
    study: Study, grid: _Grid, store: Store, more: Store, rounds: Sequence[Sequence[Mapping[str, Any]]]
) -> tuple[np.ndarray, np.ndarray]:
    """Successes and runs so far, rows x sizes: of the store, and of some rounds."""
    successes, runs = {}, {}
    found = {}
    for variant in study.variants():
        own = store.read(variant.group)
        successes[variant.group] = study.succeeded(own).sum(-1)
        runs[variant.group] = (own["status"].values != Status.PENDING).sum(-1)
        further = more.read(variant.group)
        found[variant.group] = study.succeeded(further), further["status"].values != Status.PENDING
    first = study.seeds().stop
    for unit in (unit for made in rounds for unit in made):
        group, cell = unit["variant"], grid.index(unit)
        seeds = slice(unit["seeds"][0] - first, unit["seeds"][1] - first)
        successes[group][cell] += found[group][0][cell][seeds].sum()
        runs[group][cell] += found[group][1][cell][seeds].sum()
    return grid.rows(list(successes.values())), grid.rows(list(runs.values()))


def _following(study: Study, grid: _Grid, store: Store, more: Store, limit: int) -> list[list[dict[str, Any]]]:
    """The rounds with what is to be run next: the rest of the last one, or a new one; as they were when that is all.

    Args:
      study, grid, store, more: what there is.
      limit: of the units of all rounds together.
    """
    rounds = more.attributes["rounds"]
    room = limit - sum(map(len, rounds))
    if room <= 0:
        return rounds
    # A budget may have cut the last round short: what it is, its own results do not change.
    for kept in ([rounds[:-1]] if rounds else []) + [rounds]:
        successes, runs = _counts(study, grid, store, more, kept)
        size = max(1, math.ceil(_GROWTH * runs.sum() / UNIT))
        begun = rounds[len(kept) :]
        made = begun[0] if begun else []
        if len(made) >= size:
            continue
        units: list[dict[str, Any]] = []
        taken = collections.Counter(_key(unit) for earlier in kept for unit in earlier)
        for row, cell in refinement.allocate(grid.sizes, successes, runs, size, UNIT):
            unit = grid.unit(row, cell)
            start = study.seeds().stop + UNIT * taken[_key(unit)]
            taken[_key(unit)] += 1
            units.append({**unit, "seeds": [start, start + UNIT]})
        if new := units[len(made) :][:room]:
            return [*kept, [*made, *new]]
    return rounds


def refine(study: Study, store: Store, budget: int, run: Callable[[Store, range, Sequence[Tile]], None]) -> None:
    """Spends runs beyond the store's own, up to `budget` with those that were spent before.

    Args:
      study: whose results they are.
      store: with nothing pending; otherwise nothing is done.
      budget: runs; as many whole units as it has room for.
      run: does some tiles whose runs are of so many seeds, and writes their results to the store that it is given.

    Raises:
      StoreError: results are damaged.
      SystemExit: `run` was asked to stop.
    """
    if any(store.pending(variant.group).any() for variant in study.variants()):
        logging.warning("--refine: some runs of the grid are missing, and nothing was refined")
        return
    more = _in_rounds(study, store, run, lambda grid, more: _following(study, grid, store, more, budget // UNIT))
    if (made := sum(map(len, more.attributes["rounds"]))) < budget // UNIT:
        text = "%d of %d further runs were made: no other would tell more of a boundary inside the grid"
        logging.info(text, UNIT * made, budget)


def allocate(
    study: Study, store: Store, run: Callable[[Store, range, Sequence[Tile]], None], num_processes: int
) -> None:
    """All runs of a study that allocates them itself, round after round; how long they take is said before each.

    Args:
      study: whose results they are; its cost is in seconds.
      store: without seeds of its own.
      run: as for `refine`.
      num_processes: that it works with.

    Raises:
      StoreError: results are damaged.
      SystemExit: `run` was asked to stop.
    """
    spent = {"seconds": 0.0, "cost": 0.0}

    def timed(more: Store, seeds: range, tiles: Sequence[Tile]) -> None:
        begun = time.monotonic()
        run(more, seeds, tiles)
        spent["seconds"] += time.monotonic() - begun
        spent["cost"] += sum(map(study.cost, tiles))

    def following(grid: _Grid, more: Store) -> list[list[dict[str, Any]]]:
        made = _made(study, grid, more)
        rest = [grid.tile({**grid.cell(*place), "seeds": [0, UNIT]}) for place in study.expected(made, UNIT)]
        if rest:
            rate = spent["seconds"] / spent["cost"] if spent["cost"] else 1 / num_processes
            expected = duration(rate * sum(map(study.cost, rest)))
            known = "as it has gone so far" if spent["cost"] else "as measured elsewhere"
            logging.info("about %d groups of %d runs to come, about %s %s", len(rest), UNIT, expected, known)
        return _allocated(study, grid, more, made)

    _in_rounds(study, store, timed, following)


def _made(study: Study, grid: "_Grid", more: Store) -> list[Made]:
    """All runs so far, with what decides about the next."""
    made: list[Made] = []
    for unit in (unit for earlier in more.attributes["rounds"] for unit in earlier):
        group, cell = unit["variant"], grid.index(unit)
        where: Any = (*cell, slice(*unit["seeds"]))
        found = {name: np.asarray(more.array(group, name)[where]) for name in study.allocated_by}
        made.append((group, cell, found))
    return made


def _allocated(study: Study, grid: "_Grid", more: Store, made: Sequence[Made]) -> list[list[dict[str, Any]]]:
    """The rounds, with the one that a study asks for next."""
    rounds = more.attributes["rounds"]
    taken = collections.Counter(_key(unit) for earlier in rounds for unit in earlier)
    new = []
    for place in study.allocate(made, UNIT):
        unit = grid.cell(*place)
        start = UNIT * taken[_key(unit)]
        taken[_key(unit)] += 1
        new.append({**unit, "seeds": [start, start + UNIT]})
    return [*rounds, new] if new else rounds


def _in_rounds(
    study: Study, store: Store, run: Callable[[Store, range, Sequence[Tile]], None], following: _Following
) -> Store:
    """Does what is asked for, and asks for more, until that is all."""
    more = beyond(store, read_only=False) or _create(study, store)
    grid, first = _Grid(study, store.attributes["block"]), study.seeds().stop
    while True:
        rounds = more.attributes["rounds"]
        units = [unit for made in rounds for unit in made]
        seeds = range(first, max([first + UNIT, *(unit["seeds"][1] for unit in units)]))
        _grow(more, study, seeds)
        more = Store.open(more.path)
        left = {variant.group: more.pending(variant.group) for variant in study.variants()}
        where = {**study.axes(), "seed": seeds}
        tiles = [(tile, left[tile.variant.group][tile.slices(where)].any()) for tile in map(grid.tile, units)]
        if todo := [tile for tile, is_left in tiles if is_left]:
            logging.info("round %d: %d groups of %d runs", len(rounds), len(todo), UNIT)
            run(more, seeds, todo)
        more.verify((0, *study.statuses))
        if (next_rounds := following(grid, more)) == rounds:
            return more
        zarr.open_group(more.path, mode="r+").attrs["rounds"] = next_rounds
        more = Store.open(more.path)
