"""Runs beyond a store's own seeds: what is spent where, that it resumes to the same bytes, and what is refused."""

import collections
import dataclasses
import itertools
import json
import re
import shutil
from typing import ClassVar

import jax
import numpy as np
import pytest
import zarr

from sweeps import status
from sweeps.command.parsers import Sizes, Whole
from sweeps.runtime import extension, session
from sweeps.runtime.store import Store, StoreError
from sweeps.study import Execution, Study, UsageError, Variant, flag

D1 = (2, 4, 8, 16, 32, 64)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Known(Study):
    """Runs that succeed with a known probability, 1/2 at d1 = 40 / d0."""

    name = "known"
    reporter = "none:none"
    statuses: ClassVar = {1: "success", 2: "failure"}
    boundary_axis = "d1"
    interrupted: ClassVar[dict] = {}

    d0: tuple[int, ...] = flag(Sizes(), "", (2, 4, 8))
    num_seeds: int = flag(Whole(1), "", 4)

    def variants(self):
        return Variant(name="a"), Variant(name="b")

    def axes(self):
        return {"d1": D1, "d0": self.d0}

    def default_block(self):
        return 4, 2

    @property
    def metrics(self):
        return {"uniform": (np.float64, "what decides"), "status": (np.int8, "how it ended")}

    def run_tile(self, tile, execution):
        if self.interrupted.get("left") == 0:
            raise KeyboardInterrupt
        if "left" in self.interrupted:
            self.interrupted["left"] -= 1
        if tile.within is not None:  # Of the block that the cell is in, which a program is made for.
            blocks = {"d1": [D1[:4], D1[4:]], "d0": [self.d0[:2], self.d0[2:]]}
            for name, values in tile.axes.items():
                assert tile.within[name] == next(block for block in blocks[name] if values[0] in block)
        uniform = np.empty(tile.shape)
        for index, cell in zip(np.ndindex(*tile.shape[:-1]), tile.cells(), strict=True):
            for place, seed in enumerate(tile.seeds):
                uniform[(*index, place)] = np.random.default_rng([cell["d0"], cell["d1"], seed]).random()
        load = np.outer(tile.axes["d1"], tile.axes["d0"]) / (40 if tile.variant.name == "a" else 80)
        succeeds = uniform < (load**3 / (1 + load**3))[..., None]
        return {"uniform": uniform, "status": np.where(succeeds, 1, 2).astype(np.int8)}, {"running": 0.0}


@pytest.fixture(autouse=True)
def _restore():
    yield
    Known.interrupted.clear()
    jax.config.update("jax_enable_x64", True)


def train(out, refine=0, num_seeds=4, repair=False):
    execution = Execution(out=out, num_processes=1, compilation_cache="", refine=refine, repair=repair)
    return session.train(Known(num_seeds=num_seeds), execution)


def files(folder):
    return {path.relative_to(folder): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def rounds(out):
    return json.loads((out / "refined.zarr" / "zarr.json").read_text())["attributes"]["rounds"]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    out = tmp_path_factory.mktemp("base") / "out"
    train(out)
    return out


@pytest.fixture(scope="module")
def refined(tmp_path_factory, base):
    out = tmp_path_factory.mktemp("refined") / "out"
    shutil.copytree(base, out)
    train(out, refine=300)
    return out


def test_runs_are_spent_near_one_half_and_are_those_of_more_seeds(base, refined, tmp_path):
    assert not (base / "refined.zarr").exists()
    assert files(base / "results.zarr") == files(refined / "results.zarr")
    store = Store.open(refined / "results.zarr", read_only=True)
    assert extension.num_runs(store) == 296  # Of 8 runs each.
    assert len(rounds(refined)) > 2
    more = train(tmp_path / "more", num_seeds=4 + 8 * 13)
    spent = 0
    for group, product in (("a", 40), ("b", 80)):
        found, other = extension.read(store, group), more.read(group)
        done = (found["status"] != 0).values
        assert done[..., :4].all()
        assert found["seed"].size <= other["seed"].size
        for name in ("uniform", "status"):
            np.testing.assert_array_equal(
                found[name].values[done], other[name].values[..., : found["seed"].size][done], strict=True
            )
        further = done.sum(-1) - 4
        spent += further.sum()
        load = np.outer(D1, (2, 4, 8)) / product
        near = np.abs(np.log(load)) < 1
        assert further[near].sum() > 0.85 * further.sum()
        # In a cell the seeds follow each other without a gap.
        np.testing.assert_array_equal(np.diff(done.astype(int), axis=-1).clip(min=0), 0)
    assert spent == 296


def test_wherever_it_is_interrupted_it_ends_in_the_same_bytes(base, refined, tmp_path, monkeypatch):
    resize = zarr.Array.resize
    for tiles, resizes in [(0, None), (11, None), (None, 2), (None, 7)]:
        out = tmp_path / f"{tiles}-{resizes}"
        shutil.copytree(base, out)
        left = [resizes]

        def broken(array, shape, left=left):
            left[0] -= 1
            if left[0] == 0:
                raise KeyboardInterrupt
            resize(array, shape)

        with monkeypatch.context() as patch:
            if tiles is None:
                patch.setattr(zarr.Array, "resize", broken)
            else:
                Known.interrupted["left"] = tiles
            with pytest.raises(KeyboardInterrupt):
                train(out, refine=300)
        Known.interrupted.clear()
        assert files(out / "refined.zarr") != files(refined / "refined.zarr")
        train(out, refine=300)
        assert files(out / "refined.zarr") == files(refined / "refined.zarr")
        assert files(out / "results.zarr") == files(refined / "results.zarr")


def test_a_larger_budget_goes_on_to_what_it_would_have_been(base, refined, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(base, out)
    for budget in (40, 120, 300):
        train(out, refine=budget)
        assert sum(map(len, rounds(out))) == budget // 8
    assert files(out / "refined.zarr") == files(refined / "refined.zarr")
    train(out, refine=80)  # Was spent before.
    train(out)
    assert files(out / "refined.zarr") == files(refined / "refined.zarr")


def test_what_was_deleted_is_made_again(refined, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(refined, out)
    chunk = max((out / "refined.zarr" / "a" / "status" / "c").rglob("0"))
    chunk.unlink()
    assert len(extension.asked(Store.open(out / "results.zarr"))) == 300 // 8
    state = status.look(out)
    assert (state.code, state.tiles - state.done) == (status.INCOMPLETE, 1)
    train(out, refine=300)
    assert status.look(out).code == status.COMPLETE
    assert files(out / "refined.zarr") == files(refined / "refined.zarr")
    chunk.write_bytes(chunk.read_bytes()[:-3])
    with pytest.raises(StoreError, match="damaged"):
        extension.read(Store.open(out / "results.zarr"), "a")
    with pytest.raises(UsageError, match=r"refined.zarr is damaged: a, .*: status cannot be read.*--repair"):
        train(out, refine=300)
    seen = status.look(out, verify=True)
    assert seen.code == 1
    assert re.fullmatch(r"refined: a, d1 = .*: status cannot be read", *seen.damaged)
    train(out, refine=300, repair=True)
    assert files(out / "refined.zarr") == files(refined / "refined.zarr")
    assert status.look(out, verify=True).code == 0


def test_it_ends_by_itself_where_nothing_is_to_be_known(tmp_path, monkeypatch):
    monkeypatch.setattr(Known, "variants", lambda self: (Variant(name="a"),))
    monkeypatch.setattr(Known, "axes", lambda self: {"d1": (1, 2), "d0": (2,)})  # Far below the boundary.
    train(tmp_path / "out", refine=4000)
    assert sum(map(len, rounds(tmp_path / "out"))) < 10


def test_what_is_refused(refined, base, tmp_path, monkeypatch):
    with pytest.raises(UsageError, match="--refine: contradicts --shard_count=2"):
        Execution(out=tmp_path, refine=8, shard_count=2)
    with monkeypatch.context() as patch:
        patch.setattr(Known, "boundary_axis", "")
        with pytest.raises(UsageError, match="--refine: known has no axis"):
            train(tmp_path / "none", refine=8)
        patch.setattr(Known, "boundary_axis", "d0")
        with pytest.raises(UsageError, match="--refine: needs at least two values of d0"):
            session.train(
                Known(d0=(2,)), Execution(out=tmp_path / "none", num_processes=1, compilation_cache="", refine=8)
            )
    assert not (tmp_path / "none").exists()
    train(tmp_path / "other", num_seeds=5)
    shutil.copytree(refined / "refined.zarr", tmp_path / "other" / "refined.zarr")
    with pytest.raises(StoreError, match="other results"):
        extension.read(Store.open(tmp_path / "other" / "results.zarr"), "a")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Allocated(Known):
    """All of whose runs are allocated: every cell of a row has 8 until one succeeds in half of them, two times over."""

    name = "allocated"
    allocates = True

    def expected(self, made, unit):
        return [("a", (0, 0))]

    def allocate(self, made, unit):
        count = {(group, cell): int((found["status"] == 1).sum()) for group, cell, found in made}
        runs = collections.Counter((group, cell) for group, cell, _ in made)
        chosen = []
        for group, row in itertools.product("ab", range(len(self.d0))):
            for place in range(len(D1)):
                cell = (place, row)
                if runs[group, cell] < 2:
                    chosen.append((group, cell))
                    break
                if 2 * count[group, cell] >= unit:
                    break
        return chosen


def allocated(out, **execution):
    return session.train(Allocated(d0=(4,)), Execution(out=out, num_processes=1, compilation_cache="", **execution))


def test_a_study_allocates_all_its_runs(tmp_path):
    """Interrupted, or with chunks that are gone, it ends in the same bytes."""
    store = allocated(tmp_path / "once")
    assert store.pending("a").size == 0
    assert len(rounds(tmp_path / "once")) > 2
    assert extension.num_runs(store) == 8 * sum(map(len, rounds(tmp_path / "once")))
    for group in "ab":
        found = extension.read(store, group)
        done = (found["status"] != 0).values.sum(-1)
        assert set(np.unique(done)) <= {0, 16}
        np.testing.assert_array_equal(np.diff(done, axis=0).clip(min=0), 0)  # None is left out.
        assert done[0].all()
    assert status.look(tmp_path / "once").code == status.COMPLETE
    out = tmp_path / "twice"
    Known.interrupted["left"] = 5
    with pytest.raises(KeyboardInterrupt):
        allocated(out)
    Known.interrupted.clear()
    assert status.look(out).code == status.INCOMPLETE
    allocated(out)
    assert files(out / "refined.zarr") == files(tmp_path / "once" / "refined.zarr")
    next(path for path in (out / "refined.zarr" / "b" / "uniform" / "c").rglob("*") if path.is_file()).unlink()
    with pytest.raises(UsageError, match="--repair"):
        allocated(out)
    allocated(out, repair=True)
    assert files(out / "refined.zarr") == files(tmp_path / "once" / "refined.zarr")
    with pytest.raises(UsageError, match="--shard_count: 2 shards cannot do allocated"):
        allocated(tmp_path / "none", shard_count=2)
