"""What is damaged of a store, tile by tile, and its metadata made anew."""

import json
import shutil
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import zarr

from sweeps.runtime.store import Store, StoreError, Where, chunk_key

__all__ = ["Damage", "codes", "find", "mend"]

# What decides how an array's chunks are found and read.
_LAYOUT = ("node_type", "shape", "data_type", "chunk_grid", "chunk_key_encoding", "fill_value", "dimension_names")


class Damage(NamedTuple):
    """Something that is missing or cannot be read.

    Attributes:
      group: the variant.
      where: the tile; None when it is no tile but the metadata, or values along an axis.
      what: one line that names it.
    """

    group: str
    where: Where | None
    what: str


def find(store: Store, statuses: Sequence[int] | None = None) -> list[Damage]:
    """Reads everything once; what is missing or damaged.

    Args:
      store: the store.
      statuses: the codes that a run may have; None for any.
    """
    return [damage for group in store.groups for damage in _find(store, group, statuses)]


def _find(store: Store, group: str, statuses: Sequence[int] | None) -> Iterator[Damage]:
    metrics = [name for name in store.attributes.get("metrics", []) if name != "status"]
    try:
        store.check_group(group)
        name_of, sizes = store.names(group), [store.values(group, name).size for name in store.dimensions(group)]
        status, arrays = store.array(group, "status"), {name: store.array(group, name) for name in metrics}
        for name, array in {"status": status, **arrays}.items():
            if list(array.shape[: len(sizes)]) != sizes or array.chunks[: len(sizes)] != status.chunks:
                raise StoreError(f"group {group!r} of {store.path} is damaged: {name} does not fit its axes")
        found, unreadable = codes(store, group)
    except StoreError as error:
        yield Damage(group, None, str(error))
        return
    for where in unreadable:
        yield Damage(group, where, f"{name_of(where)}: status cannot be read")
    done = found != 0
    begun = [where for where in store.tiles(group) if done[where].any()] if done.any() else []
    if statuses is not None and not np.isin(found, statuses).all():
        known = ", ".join(map(str, statuses))
        foreign = [where for where in begun if not np.isin(found[where], statuses).all()]
        yield from (Damage(group, where, f"{name_of(where)}: a status is none of {known}") for where in foreign)
    for name, array in arrays.items() if begun else ():
        files = store.chunk_files(group, name) if store.attributes.get("every_chunk") else None
        whole = _whole(store, group, name)
        # A float that was never written is NaN.
        checked = array.dtype.kind == "f" and not store.attributes.get("nan_allowed", False)
        if whole is not None and checked:
            checked = bool(np.isnan(whole[done]).any())
        for where in begun:
            if files is not None and chunk_key(array, where) not in files:
                yield Damage(group, where, f"{name_of(where)}: {name} is missing")
            elif (part := whole[where] if whole is not None else _values(array, where)) is None:
                yield Damage(group, where, f"{name_of(where)}: {name} cannot be read")
            elif checked and np.isnan(part[done[where]]).any():
                yield Damage(group, where, f"{name_of(where)}: {name} is missing for finished runs")


def codes(store: Store, group: str) -> tuple[np.ndarray, list[Where]]:
    """The statuses of a variant, 0 where they cannot be read, and the tiles where that is so.

    Raises:
      StoreError: the group is missing or damaged.
    """
    status = store.array(group, "status")
    if not store.is_begun(group):
        return np.zeros(status.shape, status.dtype), []
    if (whole := _whole(store, group, "status")) is not None:
        return whole, []
    found, unreadable = np.zeros(status.shape, status.dtype), []
    for where in store.tiles(group):
        if (part := _values(status, where)) is None:
            unreadable.append(where)
        else:
            found[where] = part
    return found, unreadable


def _read(array: zarr.Array[Any], where: Any = ...) -> np.ndarray:
    return np.asarray(array[where])


def _values(array: zarr.Array[Any], where: Any) -> np.ndarray | None:
    """What a part of an array holds, None where it cannot be read."""
    try:
        return _read(array, where)
    except Exception:
        return None


def _whole(store: Store, group: str, name: str) -> np.ndarray | None:
    """What an array holds, None where it cannot be read."""
    try:
        return store.whole(group, name)
    except Exception:
        return None


def mend(path: Path, template: Path) -> list[str]:
    """Replaces metadata of a store, and values along its axes, that are missing or not those of another store.

    Args:
      path: the store.
      template: another one, of the same study and tiles, in which everything is pending.

    Returns:
      What was replaced.

    Raises:
      OSError: the disk refuses.
    """
    replaced = []
    for source in sorted(template.rglob("zarr.json")):
        name = source.parent.relative_to(template)
        here, there = json.loads(source.read_text()), _metadata(path / name)
        is_axis = here["node_type"] == "array" and here["dimension_names"] == [name.name]
        if here["node_type"] == "group":
            is_same = there.get("node_type") == "group" and all(
                there.get("attributes", {}).get(key) == value for key, value in here["attributes"].items()
            )
        else:
            is_same = all(there.get(key) == here[key] for key in _LAYOUT) and (
                not is_axis or _same_values(path / name, source.parent)
            )
        if not is_same:
            for file in [path for path in source.parent.rglob("*") if path.is_file()] if is_axis else [source]:
                _replace(file, path / file.relative_to(template))
            replaced.append(f"{name}/zarr.json" if name.parts else "zarr.json")
    return replaced


def _metadata(folder: Path) -> dict[str, Any]:
    """zarr.json of a folder; empty where Zarr cannot open it."""
    try:
        zarr.open(folder, mode="r")
        return json.loads((folder / "zarr.json").read_text())
    except Exception:
        return {}


def _same_values(one: Path, other: Path) -> bool:
    try:
        return np.array_equal(_read(zarr.open_array(one, mode="r")), _read(zarr.open_array(other, mode="r")))
    except Exception:
        return False


def _replace(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f"{target.name}.{uuid.uuid4().hex}.partial")
    shutil.copyfile(source, partial)
    partial.replace(target)
