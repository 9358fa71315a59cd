"""One session of a study: its output folder, the lock on it, where results come from, and the loop over tiles."""

import collections
import functools
import hashlib
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import filelock
import jax
import numpy as np
from absl import logging

from relu_sgd import _draws as draws
from sweeps.runtime import arithmetic, extension, patched, processes, tiles
from sweeps.runtime.progress import Forecast, Progress, Stopping, duration
from sweeps.runtime.store import Store, StoreError
from sweeps.study import Execution, Study, Tile, Timings, UsageError, Variant, flags_of

__all__ = [
    "check_folder",
    "configuration_of",
    "configure_jax",
    "fingerprint",
    "open_results",
    "pending",
    "train",
    "write",
]

PACKAGES = ("jax", "jaxlib", "optax", "numpy", "xarray", "zarr")


def fingerprint(science: Mapping[str, Any]) -> str:
    """Twelve hexadecimal digits that name a configuration: SHA-256 of its canonical JSON."""
    return hashlib.sha256(json.dumps(science, sort_keys=True).encode()).hexdigest()[:12]


def configuration_of(science: Mapping[str, Any]) -> str:
    """A short name for everything that decides the results, the version of the draws included."""
    return fingerprint({**science, "draws": draws.VERSION})


def configure_jax(precision: str, compilation_cache: str) -> None:
    """The arithmetic of this process, and where it keeps its compiled programs ("" for nowhere)."""
    arithmetic.pin(precision)
    if compilation_cache:
        # Compiled code holds the processor's own instructions: a home folder shared by different machines needs a
        # folder for each kind.
        folder = Path(compilation_cache).expanduser() / f"{platform.machine()}-{_processor()}"
        jax.config.update("jax_compilation_cache_dir", str(folder))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        features = next((line for line in lines if line.startswith(("flags", "Features"))), "")
        return fingerprint({"features": sorted(features.split())})
    except OSError:
        return fingerprint({"processor": platform.processor()})


def _commit() -> str:
    """The commit of this code, with "+" when there are changes; "" outside a repository."""

    def git(*words: str) -> str:
        command = ["git", "-C", str(Path(__file__).parent), *words]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return git("rev-parse", "HEAD") + ("+" if git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.CalledProcessError):
        return ""


def write(path: Path, text: str) -> None:
    """Writes a small file whole or not at all."""
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    partial.write_text(text)
    partial.replace(path)


@contextmanager
def locked(folder: Path, shard_index: int = 0, shard_count: int = 1) -> Iterator[None]:
    """The folder, made where there is none, is ours while this lasts, or the shard of it.

    Raises:
      UsageError: another process has it, or it cannot be made or written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(folder / f".lock-{shard_index}-of-{shard_count}", blocking=False):
            yield
    except filelock.Timeout as error:
        raise UsageError(f"--out: another run is writing to {folder}") from error
    except OSError as error:
        raise UsageError(f"--out: cannot write to {folder}: {error.strerror or error}") from error


def _is_ours(entry: Path) -> bool:
    return entry.name.startswith(".lock-") or entry.name.endswith(".partial")


def open_results(out: Path, *, flag: str = "out") -> Store:
    """The finished or unfinished results in an output folder, to read.

    Raises:
      UsageError: there are none, or they are damaged; it names the flag that the folder comes from.
    """
    try:
        store = Store.open(out / "results.zarr", read_only=True)
    except StoreError as error:
        raise UsageError(f"--{flag}: {error}") from error
    if not isinstance(store.attributes.get("science"), dict):
        raise UsageError(f"--{flag}: {out / 'results.zarr'} is no store of a sweep")
    return store


def check_folder(out: Path, *, marks: Sequence[str] = ("results.zarr",)) -> None:
    """Refuses an output folder that is none, cannot be written, or holds other things and none of the `marks`.

    Raises:
      UsageError: see above.
    """
    try:
        if out.exists() and not out.is_dir():
            raise UsageError(f"--out: {out} is not a folder")
        if out.is_dir() and not any((out / mark).exists() for mark in marks):
            foreign = [entry.name for entry in out.iterdir() if not _is_ours(entry)]
            if foreign:
                raise UsageError(
                    f"--out: {out} holds other things ({min(foreign)}) and no results of a sweep; nothing was written"
                )
    except OSError as error:
        raise UsageError(f"--out: cannot use {out}: {error.strerror or error}") from error
    folder = out
    while not folder.exists():
        folder = folder.parent
    if not os.access(folder, os.W_OK | os.X_OK):
        raise UsageError(f"--out: cannot write to {folder}")


def _check_same(store: Store, study: Study, block: Sequence[int] | None, out: Path) -> None:
    there, here = store.attributes["science"], study.science()
    if store.attributes.get("study", study.name) != study.name:
        raise UsageError(f"--out: the results in {out} are of {store.attributes['study']}, not of {study.name}")
    if there != here:
        names = sorted(name for name in {*there, *here} if there.get(name) != here.get(name))
        for name in names:
            _check_source(name, there.get(name), here.get(name), out)
        different = "; ".join(
            f"--{name} is {_short(there.get(name))} there and {_short(here.get(name))} here" for name in names
        )
        raise UsageError(f"--out: the results in {out} are of another sweep: {different}")
    if store.attributes.get("draws") != draws.VERSION:
        raise UsageError(
            f"--out: the results in {out} were begun with other draws of data and weights, by another version of this "
            "code"
        )
    if block is not None and list(block) != store.attributes["block"]:
        raise UsageError(
            f"--block: {'x'.join(map(str, block))}, but the results in {out} are in blocks of "
            f"{'x'.join(map(str, store.attributes['block']))}"
        )


def _check_source(name: str, there: Any, here: Any, out: Path) -> None:
    """Refuses code that has the name of that which made the results, and another hash."""
    parts = [value if isinstance(value, list) else [value] for value in (there, here)]
    for old, new in zip(*parts, strict=False):
        before, _, old_hash = str(old).partition("@")
        now, _, new_hash = str(new).partition("@")
        if before == now and old_hash and old != new:
            raise UsageError(
                f"--{name}: {now} was edited since the results in {out} were begun (the hash of its source was "
                f"{old_hash}, and is {new_hash}); another --out begins anew"
            )


def _config_of(study: Study) -> str:
    return json.dumps({"launcher": study.name, **study.science()}, indent=2) + "\n"


def check_config(study: Study, out: Path) -> None:
    """Refuses the folder of a study without a store, when it holds what other flags left.

    Raises:
      UsageError: it does.
    """
    try:
        config = out / "config.json"
        if config.exists() and config.read_text() != _config_of(study):
            raise UsageError(f"--out: {out} holds results of other flags; nothing was written")
    except OSError as error:
        raise UsageError(f"--out: cannot use {out}: {error.strerror or error}") from error


def write_config(study: Study, out: Path) -> None:
    """What `check_config` reads, written last."""
    write(out / "config.json", _config_of(study))


def _short(value: Any) -> str:
    text = ",".join(map(str, value)) if isinstance(value, list) else str(value)
    return text if len(text) <= 40 else f"{text[:25]}...{text[-10:]}"


def _open_store(study: Study, execution: Execution) -> Store:
    out = execution.out
    path = out / "results.zarr"
    groups = [variant.group for variant in study.variants()]
    try:
        if not path.exists():
            axes, seeds, science = study.axes(), study.seeds(), study.science()
            block = execution.block or study.default_block()
            attributes = {
                "study": study.name,
                "science": science,
                "draws": draws.VERSION,
                "configuration": configuration_of(science),
                "protocol": study.protocol_name,
                "setups": groups,
                "nan_allowed": study.nan_allowed,
                "block": list(block),
            }
            sizes = {**axes, "seed": seeds}
            chunk = dict(zip(sizes, [*block, len(seeds)], strict=False))
            with suppress(FileExistsError):  # Another shard was quicker.
                Store.create(path, groups, sizes, chunk, study.metrics, attributes, study.records)
        store = Store.open(path)
        _check_same(store, study, execution.block, out)
        store.verify((0, *study.statuses))
    except StoreError as error:
        raise UsageError(f"--out: {error}") from error
    return store


def _peak_memory(num_processes: int) -> int:
    """MiB that the largest process of this session held at its peak; 0 where the system does not say."""
    try:
        import resource
    except ImportError:
        return 0
    who = resource.RUSAGE_SELF if num_processes == 1 else resource.RUSAGE_CHILDREN
    peak = resource.getrusage(who).ru_maxrss
    return round(peak / (2**20 if sys.platform == "darwin" else 2**10))


def _provenance(study: Study, store: Store, execution: Execution, num_processes: int) -> dict[str, Any]:
    return {
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "configuration": store.attributes["configuration"],
        "commit": _commit(),
        "python": platform.python_version(),
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
        "device": jax.devices()[0].device_kind,
        "num_devices": len(jax.local_devices()) if num_processes == 1 else 1,
        "num_processes": num_processes,
        **arithmetic.recorded(os.environ.get("XLA_FLAGS", "")),
        "lanes": execution.lanes or "by size",
        "steps_per_chunk": execution.steps_per_chunk,
        **study.recorded(),
        "shard": f"{execution.shard_index} of {execution.shard_count}",
    }


def _count_processes(execution: Execution) -> int:
    """How many processes train, after the devices of this one are set up."""
    if execution.num_devices:
        try:
            jax.config.update("jax_num_cpu_devices", execution.num_devices)
        except RuntimeError as error:
            raise UsageError(f"--num_devices: {error}") from error
    if execution.num_processes != 1 and jax.default_backend() != "cpu":
        if execution.num_processes:
            raise UsageError(
                f"--num_processes: {execution.num_processes} processes cannot share a {jax.default_backend()}"
            )
        return 1
    return execution.num_processes or len(processes.available_cores())


def pending(study: Study, store: Store) -> dict[Variant, np.ndarray]:
    """Which runs of every variant have no result yet."""
    return {variant: store.pending(variant.group) for variant in study.variants()}


def train(study: Study, execution: Execution) -> Store:
    """Runs every pending tile of this session's shard, and returns the store.

    Raises:
      UsageError: the output folder is foreign, of another study, damaged, in use or not writable; nothing was written.
      SystemExit: a signal asked to stop, and the tiles in hand are stored.
    """
    check_folder(execution.out)
    patched.check()
    axes, seeds, block = study.axes(), study.seeds(), execution.block
    if block is not None and len(block) not in (len(axes), len(axes) + 1):
        raise UsageError(f"--block: {'x'.join(map(str, block))} does not fit the axes {', '.join(axes)} (and seeds)")
    study.check_block(block or study.default_block())
    if execution.refine:
        extension.check(study)
    num_processes = _count_processes(execution)
    out = execution.out
    if (out / "results.zarr").exists():
        _check_same(open_results(out), study, block, out)
    with jax.enable_x64(study.arithmetic == "float64"):
        study.check_code()
    with locked(out, execution.shard_index, execution.shard_count):
        store = _open_store(study, execution)
        # Another shard may be writing: leave what is fresh.
        store.clean(older_than=0 if execution.shard_count == 1 else 3600)
        block = tuple(store.attributes["block"])
        write(out / "config.json", json.dumps(store.attributes, indent=2) + "\n")
        if flags_of(study):
            write(out / "run.flagfile", study.flagfile(block, max(execution.refine, extension.num_runs(store))))
        grid = tiles.cut(study.variants(), axes, seeds, block)
        left = pending(study, store)
        mine = tiles.share(grid, execution.shard_index, execution.shard_count, study.cost)
        todo = [tile for tile in mine if left[tile.variant][tile.slices({**axes, "seed": seeds})].any()]
        provenance = _provenance(study, store, execution, num_processes)
        logging.info("%d of %d tiles to do, %d processes", len(todo), len(mine), num_processes)
        run_tiles(study, execution, store, mine, todo, num_processes, provenance)
        if execution.refine:

            def run(more: Store, seeds: range, units: Sequence[Tile]) -> None:
                run_tiles(study, execution, more, units, units, num_processes, provenance, seeds)

            extension.refine(study, store, execution.refine, run)
    return store


def _run_tile(study: Study, execution: Execution, tile: Tile) -> tuple[dict[str, np.ndarray], Timings]:
    return study.run_tile(tile, execution)


def run_tiles(
    study: Study,
    execution: Execution,
    store: Store,
    mine: Sequence[Tile],
    todo: Sequence[Tile],
    num_processes: int,
    provenance: dict[str, Any],
    seeds: range | None = None,
) -> None:
    """The loop over tiles, and a line in sessions.jsonl.

    The store holds the runs of `seeds`, the study's own unless they are given.

    Raises:
      UsageError: a worker died, or the disk refuses.
      SystemExit: a signal asked to stop.
    """
    spent: dict[str, float] = collections.defaultdict(float)
    axes = {**study.axes(), "seed": study.seeds() if seeds is None else seeds}
    num_processes = max(1, min(num_processes, len(todo)))
    initialize = functools.partial(configure_jax, study.arithmetic, execution.compilation_cache)
    run = functools.partial(_run_tile, study, execution)
    if num_processes > 1:
        run = functools.partial(patched.checked, run, patched.fingerprints())
    elif todo:
        patched.check_here()
    begun = time.monotonic()
    forecast = Forecast(todo, study.cost, num_processes)
    progress = Progress(len(mine), len(mine) - len(todo), forecast)
    done = 0
    try:
        with Stopping() as stopping:
            for tile, (records, timings) in processes.map_unordered(
                run, forecast.order(time.monotonic), num_processes, initialize, lambda: stopping.asked, progress.tick
            ):
                before = time.perf_counter()
                store.write(tile.variant.group, tile.slices(axes), records)
                spent["storing"] += time.perf_counter() - before
                for part, seconds in timings.items():
                    spent[part] += seconds
                done += 1
                progress.update(tile, timings)
    except BrokenProcessPool as error:
        raise UsageError("a worker process died (out of memory?); the same command goes on where it stopped") from error
    except StoreError as error:
        raise UsageError(f"--out: {error}; the same command goes on where it stopped") from error
    except OSError as error:
        raise UsageError(
            f"--out: cannot write to {execution.out}: {error.strerror or error}; the same command goes on where it "
            "stopped"
        ) from error
    finally:
        progress.close()
        seconds = time.monotonic() - begun
        if done:
            line = {
                **provenance,
                "tiles": done,
                "seconds": round(seconds, 3),
                **{f"{part}_seconds": round(value, 3) for part, value in spent.items()},
                "peak_memory_mib": _peak_memory(num_processes),
            }
            with (execution.out / "sessions.jsonl").open("a") as file:
                file.write(json.dumps(line) + "\n")
    if done:
        whole = sum(spent.values())
        logging.info(
            "%d tiles in %s: %s",
            done,
            duration(seconds),
            ", ".join(f"{name} {value:.1f} s ({value / whole:.1%})" for name, value in spent.items()),
        )
    if done < len(todo):
        logging.warning("stopped with %d tiles to do; the same command goes on", len(todo) - done)
        raise SystemExit(130)
