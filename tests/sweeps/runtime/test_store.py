"""The store: whole or not at all, chunk by chunk, and honest about damage."""

import concurrent.futures
import shutil
import threading

import numpy as np
import pytest
import xarray as xr
import zarr

from sweeps.runtime.store import Store, StoreError

METRICS = {
    "relative_error": (np.float32, "an error"),
    "steps": (np.int32, "a count"),
    "status": (np.int8, "0 pending, 1 converged, 2 step limit, 3 diverged"),
}
COORDINATES = {"d0": (2, 4, 6), "d1": (10, 20), "seed": range(2)}
FIRST = (slice(0, 2), slice(0, 2), slice(0, 2))
LAST = (slice(2, 3), slice(0, 2), slice(0, 2))


def records(cells, status=1):
    return {
        "relative_error": np.arange(cells, dtype=np.float32),
        "steps": 10 * np.arange(cells),
        "status": np.full(cells, status),
    }


@pytest.fixture
def store(tmp_path):
    return Store.create(
        tmp_path / "results.zarr",
        ["hidden"],
        COORDINATES,
        {"d0": 2, "d1": 2, "seed": 2},
        METRICS,
        {"science": {"N": 3}},
    )


def test_a_new_store_is_pending_and_readable_with_xarray(store):
    assert store.pending("hidden").all()
    with xr.open_zarr(store.path, group="hidden", consolidated=False) as results:
        assert dict(results.sizes) == {"d0": 3, "d1": 2, "seed": 2}
        np.testing.assert_array_equal(results["d0"], [2, 4, 6])
        assert results.attrs == {"science": {"N": 3}}
        assert results["status"].dtype == np.int8
        assert results["steps"].dtype == np.int32
        assert results["relative_error"].dtype == np.float32
        assert results["status"].attrs["description"] == METRICS["status"][1]


def test_a_chunk_comes_back(store):
    store.write("hidden", FIRST, records(8))
    results = Store.open(store.path).read("hidden")
    np.testing.assert_array_equal(results["relative_error"].values[FIRST].ravel(), np.arange(8))
    np.testing.assert_array_equal(results["steps"].values[FIRST].ravel(), 10 * np.arange(8))
    np.testing.assert_array_equal(store.pending("hidden"), results["status"].values == 0)
    assert store.pending("hidden").sum() == 4
    store.verify()
    store.write("hidden", LAST, records(4, 3))
    assert not store.pending("hidden").any()


def test_of_what_is_recorded_along_runs_only_the_chunks_that_are_there_are_read(tmp_path):
    sizes = {"d0": range(9), "d1": range(9), "seed": range(2)}
    metrics = {"loss": (np.float64, "at every record"), "status": METRICS["status"]}
    store = Store.create(
        tmp_path / "r.zarr", ["a"], sizes, {"d0": 1, "d1": 2, "seed": 2}, metrics, {}, ("record", [0, 10, 20])
    )
    where = (slice(4, 5), slice(8, 9), slice(0, 2))  # The last chunk of d1 is cut off.
    store.write("a", where, {"loss": np.arange(6.0), "status": np.ones(2)})
    loss = store.whole("a", "loss")
    assert loss.shape == (9, 9, 2, 3)
    np.testing.assert_array_equal(loss[where], np.arange(6.0).reshape(1, 1, 2, 3))
    np.testing.assert_array_equal(loss, store.array("a", "loss")[...])
    assert np.count_nonzero(store.whole("a", "status")) == 2
    store.verify()


def test_of_a_grid_with_few_runs_only_their_chunks_are_read(tmp_path, monkeypatch):
    """Zarr asks the disk for every chunk of what it is told to read."""
    sizes = {"d0": range(30), "d1": range(30), "seed": range(2)}
    store = Store.create(tmp_path / "r.zarr", ["hidden"], sizes, {"d0": 1, "d1": 1, "seed": 2}, METRICS, {})
    cells = [(slice(i, i + 1), slice(j, j + 1), slice(0, 2)) for i, j in ((3, 4), (29, 0))]
    for place, where in enumerate(cells):
        store.write("hidden", where, records(2, 1 + place))
    direct = {name: np.asarray(store.array("hidden", name)[...]) for name in METRICS}
    asked, getitem = [], zarr.Array.__getitem__
    monkeypatch.setattr(
        zarr.Array, "__getitem__", lambda array, key: asked.append((array.basename, key)) or getitem(array, key)
    )
    for name, values in direct.items():
        np.testing.assert_array_equal(store.whole("hidden", name), values)
    np.testing.assert_array_equal(store.pending("hidden"), direct["status"] == 0)
    assert len(asked) == 2 * (len(METRICS) + 1)
    store.verify()
    assert {name for name, key in asked if key is ...} == set(sizes)
    results = store.read("hidden")
    for name, values in direct.items():
        np.testing.assert_array_equal(results[name], values)
        assert results[name].attrs["description"] == METRICS[name][1]
    chunk = next(path for path in (store.path / "hidden" / "steps" / "c").rglob("*") if path.is_file())
    chunk.write_bytes(b"damaged")
    with pytest.raises(StoreError, match="steps cannot be read"):
        store.verify()


def test_status_is_written_last(store, monkeypatch):
    """A run killed between two writes leaves the tile pending."""
    written = []
    original = Store.array

    def failing(self, group, name):
        written.append(name)
        if len(written) == len(METRICS):
            raise KeyboardInterrupt
        return original(self, group, name)

    monkeypatch.setattr(Store, "array", failing)
    with pytest.raises(KeyboardInterrupt):
        store.write("hidden", FIRST, records(8))
    monkeypatch.undo()
    assert written[-1] == "status"
    assert store.pending("hidden").all()
    store.verify()


def test_create_never_overwrites(store):
    with pytest.raises(FileExistsError, match="exists already"):
        Store.create(store.path, ["hidden"], COORDINATES, {"d0": 2, "d1": 2, "seed": 2}, METRICS, {})
    assert list(store.path.parent.iterdir()) == [store.path]


def test_leftovers_are_removed(store):
    (store.path / "hidden" / "0.123.partial").write_text("x")
    partial = store.path.parent / "results.zarr.999.partial"
    shutil.copytree(store.path, partial)
    store.clean(older_than=3600)
    assert partial.exists()
    store.clean()
    assert not list(store.path.parent.rglob("*.partial"))
    store.verify()


def test_what_another_shard_makes_and_removes_meanwhile_is_left_to_it(store):
    """Shards that begin together make a store each, and keep one."""
    over = threading.Event()

    def begin_again_and_again():
        other = store.path.parent / "results.zarr.999.partial"
        while not over.is_set():
            (other / "hidden" / "status").mkdir(parents=True)
            shutil.rmtree(other)

    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        other = pool.submit(begin_again_and_again)
        try:
            for _ in range(300):
                store.clean(older_than=3600)
        finally:
            over.set()
        other.result()


@pytest.mark.parametrize(
    "damage", ["truncated chunk", "missing metric", "missing array", "metadata", "missing group", "foreign status"]
)
def test_damage_is_told(store, damage):
    store.write("hidden", FIRST, records(8))
    chunk = store.path / "hidden" / "relative_error" / "c" / "0" / "0" / "0"
    if damage == "truncated chunk":
        chunk.write_bytes(chunk.read_bytes()[:-3])
    elif damage == "missing metric":
        chunk.unlink()
    elif damage == "missing array":
        shutil.rmtree(store.path / "hidden" / "steps")
    elif damage == "metadata":
        (store.path / "hidden" / "steps" / "zarr.json").write_text("{")
    elif damage == "missing group":
        shutil.rmtree(store.path / "hidden" / "status")
    else:
        store.write("hidden", FIRST, records(8, 7))
    with pytest.raises(StoreError, match=r"damaged") as error:
        found = Store.open(store.path)
        found.verify()
        found.pending("hidden")
    assert "\n" not in str(error.value)


def test_no_store(tmp_path):
    with pytest.raises(StoreError, match="no results"):
        Store.open(tmp_path / "results.zarr")
    (tmp_path / "results.zarr").mkdir()
    with pytest.raises(StoreError, match="damaged or no store"):
        Store.open(tmp_path / "results.zarr")


def test_records_must_be_complete(store):
    with pytest.raises(ValueError, match="expected records of"):
        store.write("hidden", FIRST, {"status": np.ones(8)})
