"""Results on disk: xarray over Zarr, one file a chunk, crash-safe.

A store has a group per variant; in a group every metric is an array over the same named dimensions, cut into the same
chunks, one a tile. A tile's metrics are written first and its status last, so a tile counts when its status is there.
Zarr writes a chunk to a temporary file and renames it; a store is built under a temporary name and renamed too.
Killing the program at any moment loses the tiles in flight and nothing else. Checksums tell a damaged chunk from a
good one, and every chunk of a finished tile has its file, so that a deleted one is missed.
"""

import itertools
import math
import os
import shutil
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import zarr
from zarr.codecs import ZstdCodec

from sweeps.study import Metrics

if TYPE_CHECKING:  # Loaded by who reads, not by every worker process.
    import xarray as xr

__all__ = ["Store", "StoreError", "Where", "chunk_key", "one_line"]

_PARTIAL = ".partial"
# Of a chunk, its slice of every dimension.
Where: TypeAlias = tuple[slice, ...]


class StoreError(Exception):
    """A store cannot be used; the message is one line that says why."""


def _fill(dtype: np.dtype) -> Any:
    return dtype.type(np.nan if dtype.kind in "fc" else 0)


def _create_array(group: zarr.Group, name: str, dimensions: Sequence[str], **kwargs: Any) -> zarr.Array[Any]:
    return group.create_array(
        name,
        dimension_names=dimensions,
        compressors=ZstdCodec(level=1, checksum=True),
        config={"write_empty_chunks": True},
        **kwargs,
    )


def chunk_key(array: zarr.Array[Any], where: Where) -> str:
    """The file of a tile's chunk in the folder of an array; what is recorded along a run is in the same chunk."""
    index = [part.start // size for part, size in zip(where, array.chunks, strict=False)]
    return array.metadata.encode_chunk_key((*index, *[0] * (array.ndim - len(where))))


class Store:
    """An open store. Make one with `create` or `open`.

    Attributes:
      path: its folder.
      attributes: what `create` was given.
    """

    def __init__(self, path: Path, root: zarr.Group) -> None:
        self.path = path
        self._root = root
        self.attributes: dict[str, Any] = dict(root.attrs)

    @classmethod
    def create(
        cls,
        path: Path,
        groups: Sequence[str],
        coordinates: Mapping[str, Sequence[float]],
        chunk: Mapping[str, int],
        metrics: Metrics,
        attributes: Mapping[str, Any],
        records: tuple[str, Sequence[int]] | None = None,
    ) -> "Store":
        """A new store in which everything is pending. It appears at `path` whole or not at all.

        Args:
          path: where; must not exist.
          groups: the names of the variants.
          coordinates: the dimensions, in order, with the values along them.
          chunk: the number of values of every dimension in a chunk.
          metrics: what is kept of a run.
          records: a further, last dimension and the values along it, which all metrics but the status have.
          attributes: the store's attributes, repeated on every group; whatever JSON can hold.

        Raises:
          FileExistsError: there is something at `path`.
          StoreError: it cannot be written.
        """
        partial = path.with_name(f"{path.name}.{uuid.uuid4().hex}{_PARTIAL}")
        shape = tuple(len(values) for values in coordinates.values())
        chunks = tuple(max(min(chunk[name], size), 1) for name, size in zip(coordinates, shape, strict=True))
        further = {} if records is None else {records[0]: records[1]}
        along = {dimension: len(values) for dimension, values in further.items()}
        root_attributes = {**attributes, "metrics": list(metrics), "every_chunk": True}
        try:
            root = zarr.create_group(partial, attributes=root_attributes, overwrite=True)
            for name in groups:
                group = root.create_group(name, attributes=dict(attributes))
                for dimension, values in {**coordinates, **further}.items():
                    array = np.asarray(values)
                    if array.dtype.kind == "U":  # Zarr specifies no type for text of a fixed length.
                        array = array.astype(np.dtypes.StringDType())
                    _create_array(group, dimension, [dimension], data=array)
                for metric, (kind, description, *own_shape) in metrics.items():
                    dtype = np.dtype(kind)
                    own = {f"{metric}_{i}": size for i, size in enumerate(own_shape[0] if own_shape else ())}
                    own = {} if metric == "status" else {**along, **own}
                    _create_array(
                        group,
                        metric,
                        [*coordinates, *own],
                        shape=(*shape, *own.values()),
                        chunks=(*chunks, *own.values()),
                        dtype=dtype,
                        fill_value=_fill(dtype),
                        attributes={"description": description},
                    )
            try:
                partial.rename(path)  # Refused when there is a folder with something in it.
            except OSError as error:
                raise FileExistsError(f"{path} exists already") if path.exists() else error from error
        except FileExistsError:
            raise
        except OSError as error:
            raise StoreError(f"cannot write {path}: {error.strerror or error}") from error
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        return cls.open(path)

    @classmethod
    def open(cls, path: Path, *, read_only: bool = False) -> "Store":
        """An existing store.

        Raises:
          StoreError: there is none, or it cannot be read.
        """
        try:
            is_there = path.is_dir()
        except OSError as error:
            raise StoreError(f"cannot read {path}: {error.strerror or error}") from error
        if not is_there:
            raise StoreError(f"there are no results at {path}")
        try:
            return cls(path, zarr.open_group(path, mode="r" if read_only else "r+"))
        except Exception as error:  # Zarr raises many kinds for a damaged store; all mean the same to the caller.
            raise StoreError(f"{path} is damaged or no store: {one_line(error)}") from error

    def clean(self, older_than: float = 0.0) -> None:
        """Removes the temporary files that a killed run left, when they are older than so many seconds; 0 for all."""
        leftovers = []
        # Another shard may remove what it made at any moment, which this walk does not mind.
        for folder, folders, files in os.walk(self.path.parent):
            leftovers += [Path(folder, name) for name in (*folders, *files) if name.endswith(_PARTIAL)]
            folders[:] = [name for name in folders if not name.endswith(_PARTIAL)]
        if not leftovers:
            return
        # By the clock that gave them their times, which is the disk's and not this machine's.
        clock = self.path.parent / f"clock.{uuid.uuid4().hex}{_PARTIAL}"
        clock.touch()
        now = clock.stat().st_mtime
        clock.unlink()
        for leftover in leftovers:
            with suppress(FileNotFoundError):
                if not older_than or now - leftover.stat().st_mtime >= older_than:
                    shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()

    def pending(self, group: str) -> np.ndarray:
        """Which runs have no result yet: an array of booleans over the dimensions.

        Raises:
          StoreError: the group is missing or damaged.
        """
        status = self.array(group, "status")
        if not self.is_begun(group):
            return np.ones(status.shape, bool)
        return self.whole(group, "status") == 0

    def is_begun(self, group: str) -> bool:
        """Whether any chunk of it was finished. Asking for thousands that were not, one by one, takes seconds."""
        return (self.path / group / "status" / "c").exists()

    @property
    def groups(self) -> list[str]:
        """The variants, those whose folder is missing among them."""
        return self.attributes.get("setups") or sorted(self._root.group_keys())

    def dimensions(self, group: str) -> list[str]:
        """The axes of a variant, seeds last.

        Raises:
          StoreError: the group is missing or damaged.
        """
        metadata: Any = self.array(group, "status").metadata
        return list(metadata.dimension_names)

    def values(self, group: str, axis: str) -> np.ndarray:
        """The values along an axis.

        Raises:
          StoreError: the group is missing or damaged.
        """
        array = self.array(group, axis)
        try:
            if self.attributes.get("every_chunk") and len(self.chunk_files(group, axis)) < array.nchunks:
                raise FileNotFoundError("its values are missing")
            return np.asarray(array[...])
        except Exception as error:  # Zarr and its codecs raise many kinds.
            raise StoreError(f"group {group!r} of {self.path} is damaged: {axis}: {one_line(error)}") from error

    def chunk_files(self, group: str, name: str) -> set[str]:
        """The files of all chunks of an array that are there, as `chunk_key` names them."""
        folder = self.path / group / name
        return {path.relative_to(folder).as_posix() for path in (folder / "c").rglob("*") if path.is_file()}

    def whole(self, group: str, name: str) -> np.ndarray:
        """An array of a variant as it is now. Where most chunks are not there they are not asked for: a grid with a few
        runs has hundreds of thousands, and Zarr takes 0.1 ms for each.

        Raises:
          StoreError: the group is missing or damaged.
        """
        array, files = self.array(group, name), self.chunk_files(group, name)
        there = [where for where in self.tiles(group) if chunk_key(array, where) in files]
        try:
            if 2 * len(there) > math.prod(array.cdata_shape):
                return np.asarray(array[...])
            found = np.full(array.shape, array.fill_value, array.dtype)
            for where in there:
                found[where] = array[where]
        except Exception as error:  # Zarr and its codecs raise many kinds.
            raise StoreError(f"group {group!r} of {self.path} is damaged: {one_line(error)}") from error
        return found

    def tiles(self, group: str) -> list[Where]:
        """All chunks of a variant.

        Raises:
          StoreError: the group is missing or damaged.
        """
        status = self.array(group, "status")
        parts = zip(status.shape, status.chunks, strict=True)
        return list(
            itertools.product(*([slice(i, min(i + step, size)) for i in range(0, size, step)] for size, step in parts))
        )

    def names(self, group: str) -> Callable[[Where], str]:
        """From a chunk of a variant to its name in words: hidden, d0 = 4 to 8, seeds 0 to 9.

        Raises:
          StoreError: the group is missing or damaged.
        """
        axes = {name: self.values(group, name).tolist() for name in self.dimensions(group)}

        def name_of(where: Where) -> str:
            words = [group]
            for (name, values), part in zip(axes.items(), where, strict=True):
                first, last = values[part][0], values[part][-1]
                words.append(("seeds " if name == "seed" else f"{name} = ") + f"{first}")
                words[-1] += f" to {last}" * (last != first)
            return ", ".join(words)

        return name_of

    def discard(self, group: str, where: Where) -> None:
        """Makes a tile pending: its chunks are removed, that of the status first.

        Raises:
          StoreError: the disk refuses.
        """
        try:
            for name in sorted(self.attributes["metrics"], key=lambda name: name != "status"):
                key = chunk_key(self.array(group, name), where)
                (self.path / group / name / key).unlink(missing_ok=True)
        except OSError as error:
            raise StoreError(f"cannot write {self.path}: {error.strerror or error}") from error

    def write(self, group: str, where: tuple[slice, ...], records: Mapping[str, np.ndarray]) -> None:
        """Stores the records of one chunk, the status last.

        Args:
          group: the variant.
          where: the chunk's slice of every dimension.
          records: every metric; reshaped to the chunk, with what is recorded along a run last.

        Raises:
          StoreError: the disk refuses.
          ValueError: a metric is missing or unknown.
        """
        metrics = [name for name in self.attributes["metrics"] if name != "status"]
        if set(records) != {*metrics, "status"}:
            raise ValueError(f"expected records of {sorted([*metrics, 'status'])}, got {sorted(records)}")
        shape = tuple(part.stop - part.start for part in where)
        try:
            for name in [*metrics, "status"]:
                array = self.array(group, name)
                along = array.shape[len(where) :]
                # What a damaged store has there would be read first, where a chunk reaches over the edge.
                (self.path / group / name / chunk_key(array, where)).unlink(missing_ok=True)
                array[where + (slice(None),) * len(along)] = np.asarray(records[name]).reshape(shape + along)
        except OSError as error:
            raise StoreError(f"cannot write {self.path}: {error.strerror or error}") from error

    def read(self, group: str) -> "xr.Dataset":
        """All results of a variant, in memory; runs without one have status 0.

        Raises:
          StoreError: the group is missing or damaged.
        """
        import xarray as xr

        try:
            lazy = xr.open_zarr(self.path, group=group, consolidated=False, chunks=None)
            # Values as they are stored: nothing here is encoded.
            stored = {name: lazy[name].copy(data=self.whole(group, str(name))) for name in lazy.data_vars}
            return lazy.assign(stored).load()
        except StoreError:
            raise
        except Exception as error:
            raise StoreError(f"group {group!r} of {self.path} is damaged: {one_line(error)}") from error

    def verify(self, statuses: Sequence[int] | None = (0, 1, 2, 3)) -> None:
        """Reads everything once.

        Args:
          statuses: the codes that a run may have; None for any.

        Raises:
          StoreError: something is missing or damaged, or a run has a status but no metrics.
        """
        from sweeps.runtime import damage

        if found := damage.find(self, statuses):
            more = f", and {len(found) - 1} more" if len(found) > 1 else ""
            raise StoreError(f"{self.path} is damaged: {found[0].what}{more}")

    def check_group(self, group: str) -> None:
        """Reads the metadata of a variant, which its arrays do without.

        Raises:
          StoreError: they are missing or damaged.
        """
        try:
            if not isinstance(self._root[group], zarr.Group):
                raise KeyError(f"{group} is no group")
        except Exception as error:
            raise StoreError(f"group {group!r} of {self.path} is damaged: {one_line(error)}") from error

    def array(self, group: str, name: str) -> zarr.Array[Any]:
        """An array of a variant.

        Raises:
          StoreError: it is missing or damaged.
        """
        try:
            array = self._root[f"{group}/{name}"]
            if not isinstance(array, zarr.Array):
                raise KeyError(f"{name} is no array")
            return array.with_config({"write_empty_chunks": True})
        except Exception as error:
            raise StoreError(f"group {group!r} of {self.path} is damaged: {one_line(error)}") from error


def one_line(error: Exception) -> str:
    """An error's kind and message."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]
