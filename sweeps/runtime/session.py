"""One session of a study: its output folder, the lock on it, where results come from, and the loop over tiles."""

import collections
import functools
import hashlib
import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
import sys
import time
import uuid
from collections.abc import Mapping, Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import logging

from relu_sgd import _draws as draws
from sweeps.runtime import arithmetic, attempts, damage, extension, patched, processes, tiles
from sweeps.runtime.attempts import Failure
from sweeps.runtime.journal import Journal, is_ours, locked, now, write
from sweeps.runtime.progress import Forecast, Progress, Stopping, duration
from sweeps.runtime.store import Store, StoreError
from sweeps.study import Execution, Study, Tile, TileError, Timings, UsageError, Variant, flags_of

__all__ = [
    "REPAIR",
    "check_folder",
    "configuration_of",
    "configure_jax",
    "fingerprint",
    "locked",
    "open_results",
    "pending",
    "train",
    "verify",
    "write",
]

# So many failures and no success end a session.
_HOPELESS = 8
# Seconds of a round of allocated runs that are done in this process.
_SHORT = 10
# What to do when the disk refuses.
_ROOM = "make room or leave to write; all finished tiles are kept, and the same command goes on where it stopped"
# What to do about a damaged store.
REPAIR = "; the sweep's own command with --repair makes it anew (in Python repair=True), and keeps the rest"

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


def open_results(out: Path, *, flag: str = "out") -> Store:
    """The finished or unfinished results in an output folder, to read.

    Raises:
      UsageError: there are none, or they are damaged; it names the flag that the folder comes from.
    """
    try:
        store = Store.open(out / "results.zarr", read_only=True)
    except StoreError as error:
        hint = REPAIR if flag == "out" and os.path.isdir(out / "results.zarr") else ""
        raise UsageError(f"--{flag}: {error}{hint}") from error
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
            foreign = [entry.name for entry in out.iterdir() if not is_ours(entry)]
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


def _check_same(known: Mapping[str, Any], study: Study, block: Sequence[int] | None, out: Path) -> None:
    """Refuses results, whose store has these attributes, of another study, science, version of the draws, or tiles."""
    there, here = known["science"], study.science()
    if known.get("study", study.name) != study.name:
        raise UsageError(f"--out: the results in {out} are of {known['study']}, not of {study.name}")
    if there != here:
        names = sorted(name for name in {*there, *here} if there.get(name) != here.get(name))
        for name in names:
            _check_source(name, there.get(name), here.get(name), out)
        different = "; ".join(
            f"--{name} is {_short(there.get(name))} there and {_short(here.get(name))} here" for name in names
        )
        raise UsageError(f"--out: the results in {out} are of another sweep: {different}")
    if known.get("draws") != draws.VERSION:
        raise UsageError(
            f"--out: the results in {out} were begun with other draws of data and weights, by another version of this "
            "code"
        )
    if block is not None and list(block) != known["block"]:
        raise UsageError(
            f"--block: {'x'.join(map(str, block))}, but the results in {out} are in blocks of "
            f"{'x'.join(map(str, known['block']))}"
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


def _create(study: Study, block: Sequence[int], path: Path) -> Store:
    """A new store.

    Raises:
      FileExistsError: another shard was quicker.
      StoreError: it cannot be written.
    """
    axes, seeds, science = study.axes(), study.seeds(), study.science()
    groups = [variant.group for variant in study.variants()]
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
    return Store.create(path, groups, sizes, chunk, study.metrics, attributes, study.records)


def _remembered(study: Study, out: Path) -> dict[str, Any]:
    """What a folder says of its results, where the store itself may be damaged: what agrees with the study, if any."""
    found = []
    for path in (out / "results.zarr" / "zarr.json", out / "config.json", *out.glob("results.zarr/*/zarr.json")):
        with suppress(OSError, ValueError, AttributeError):
            known = json.loads(path.read_text())
            known = known.get("attributes", known)
            if isinstance(known.get("science"), dict) and isinstance(known.get("block"), list):
                found.append(known)
    if not found:
        raise UsageError(
            f"--repair: nothing in {out} says any more which sweep its results are of; another --out begins anew"
        )
    return next((known for known in found if known["science"] == study.science()), found[0])


def _mend(study: Study, execution: Execution) -> None:
    """Makes missing and damaged metadata anew.

    Raises:
      UsageError: the results are of another study, or nothing says of which.
      StoreError: the disk refuses.
    """
    out = execution.out
    known = _remembered(study, out)
    _check_same(known, study, execution.block, out)
    template = out / f"results.zarr.{uuid.uuid4().hex}.partial"
    try:
        _create(study, known["block"], template)
        for name in damage.mend(out / "results.zarr", template):
            logging.warning("made anew: results.zarr/%s", name)
    except OSError as error:
        raise StoreError(f"cannot write {out}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(template, ignore_errors=True)


def _open_store(study: Study, execution: Execution) -> Store:
    out = execution.out
    path = out / "results.zarr"
    try:
        if not path.exists():
            with suppress(FileExistsError):  # Another shard was quicker.
                _create(study, execution.block or study.default_block(), path)
        elif execution.repair:
            _mend(study, execution)
        store = Store.open(path)
        _check_same(store.attributes, study, execution.block, out)
        extension.check_rule(study, store)
        if execution.repair:
            # What was refined is computed again by the same command, which has --refine, or which allocates its runs.
            more = extension.beyond(store, read_only=False) if execution.refine or study.allocates else None
            for part in (store, *([more] if more is not None else [])):
                for found in damage.find(part, (0, *study.statuses)):
                    if found.where is not None:
                        logging.warning("computed again: %s", found.what)
                        part.discard(found.group, found.where)
    except StoreError as error:
        raise UsageError(f"--out: {error}") from error
    verify(study, store)
    return store


def verify(study: Study, store: Store) -> None:
    """Reads all results once.

    Raises:
      UsageError: some are damaged; it says what to do.
    """
    try:
        store.verify((0, *study.statuses))
    except StoreError as error:
        raise UsageError(f"--out: {error}{REPAIR}") from error


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
        "started": now(),
        "configuration": store.attributes["configuration"],
        "commit": _commit(),
        "python": platform.python_version(),
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
        "device": jax.local_devices()[0].device_kind,
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
      TileError: some tiles could not be computed.
      SystemExit: a signal asked to stop.
    """
    check_folder(execution.out)
    patched.check()
    axes, seeds, block = study.axes(), study.seeds(), execution.block
    if block is not None and len(block) not in (len(axes), len(axes) + 1):
        raise UsageError(f"--block: {'x'.join(map(str, block))} does not fit the axes {', '.join(axes)} (and seeds)")
    study.check_block(block or study.default_block())
    if execution.refine:
        extension.check(study)
    if study.allocates and execution.shard_count > 1:
        raise UsageError(
            f"--shard_count: {execution.shard_count} shards cannot do {study.name}, whose next runs need the results "
            "of all before them"
        )
    num_processes = _count_processes(execution)
    out = execution.out
    if (out / "results.zarr").exists() and not execution.repair:
        known = open_results(out)
        _check_same(known.attributes, study, block, out)
        extension.check_rule(study, known)
    with jax.enable_x64(study.arithmetic == "float64"):
        study.check_code()
    with locked(out, execution.shard_index, execution.shard_count):
        store = _open_store(study, execution)
        # Another shard may be writing: leave what is fresh.
        store.clean(older_than=0 if execution.shard_count == 1 else 3600)
        block = tuple(store.attributes["block"])
        write(out / "config.json", json.dumps(store.attributes, indent=2) + "\n")
        if flags_of(study):
            further = 0 if study.allocates else max(execution.refine, extension.num_runs(store))
            write(out / "run.flagfile", study.flagfile(block, further))
        grid = tiles.cut(study.variants(), axes, seeds, block)
        left = pending(study, store)
        mine = tiles.share(grid, execution.shard_index, execution.shard_count, study.cost)
        todo = [tile for tile in mine if left[tile.variant][tile.slices({**axes, "seed": seeds})].any()]
        provenance = _provenance(study, store, execution, num_processes)
        if not study.allocates:
            logging.info("%d of %d tiles to do, %d processes", len(todo), len(mine), num_processes)
            run_tiles(study, execution, store, mine, todo, num_processes, provenance)
        if execution.refine or study.allocates:

            def run(further: Store, seeds: range, units: Sequence[Tile]) -> None:
                # Processes take seconds to start, every round anew.
                is_short = study.allocates and sum(map(study.cost, units)) < _SHORT
                run_tiles(study, execution, further, units, units, 1 if is_short else num_processes, provenance, seeds)

            if (more := extension.beyond(store)) is not None:
                verify(study, more)
            if study.allocates:
                extension.allocate(study, store, run, num_processes)
            else:
                extension.refine(study, store, execution.refine, run)
    return store


def _run_tile(study: Study, execution: Execution, tile: Tile) -> tuple[dict[str, np.ndarray], Timings]:
    return study.run_tile(tile, execution)


def _is_allowed(study: Study, tile: Tile) -> bool:
    """Whether a study runs tiles of this shape."""
    try:
        study.check_block(tile.shape)
    except UsageError:
        return False
    return True


class _Session:
    """What a session has done so far, and its journal."""

    def __init__(self, journal: Journal, num_to_do: int, num_processes: int) -> None:
        self._journal, self._num_to_do, self._num_processes = journal, num_to_do, num_processes
        self._begun = time.monotonic()
        self.done = 0
        self.failed: dict[Tile, Failure] = {}
        self.spent: dict[str, float] = collections.defaultdict(float)

    @property
    def is_hopeless(self) -> bool:
        """Whether tile after tile fails, as it does when a function of one's own has an error."""
        return not self.done and len(self.failed) >= max(_HOPELESS, 2 * self._num_processes)

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._begun

    def _said(self) -> dict[str, Any]:
        return {
            "tiles": self.done,
            "seconds": round(self.seconds, 3),
            **{f"{part}_seconds": round(value, 3) for part, value in self.spent.items()},
            "peak_memory_mib": _peak_memory(self._num_processes),
            "failed": [
                {"tile": attempts.name_of(tile), "reason": failure.reason, "details": failure.details}
                for tile, failure in self.failed.items()
            ],
        }

    def tell(self, left: float | None, in_hand: Sequence[Tile]) -> None:
        """Rewrites the note."""
        more = {"to_do": self._num_to_do, "left": left, "in_hand": [attempts.name_of(tile) for tile in in_hand]}
        self._journal.update(self._said() | more)

    def end(self, how: str) -> None:
        """Writes the line, and says where the time went."""
        said = self._said()
        self._journal.end(how, {name: value for name, value in said.items() if value or name != "failed"})
        if self.done:
            whole = sum(self.spent.values())
            logging.info(
                "%d tiles in %s: %s",
                self.done,
                duration(self.seconds),
                ", ".join(f"{name} {value:.1f} s ({value / whole:.1%})" for name, value in self.spent.items()),
            )
        left = self._num_to_do - self.done
        if how == "stopped":
            logging.warning("stopped with %d tiles to do; the same command goes on", left)


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
      UsageError: no worker starts, or the disk refuses.
      TileError: some tiles could not be computed.
      SystemExit: a signal asked to stop.
    """
    axes = {**study.axes(), "seed": study.seeds() if seeds is None else seeds}
    num_processes = max(1, min(num_processes, len(todo)))
    initialize = functools.partial(configure_jax, study.arithmetic, execution.compilation_cache)
    run = functools.partial(_run_tile, study, execution)
    if num_processes > 1:
        run = functools.partial(patched.checked, run, patched.fingerprints())
    elif todo:
        patched.check_here()
    session = _Session(
        Journal(execution.out, execution.shard_index, execution.shard_count, provenance), len(todo), num_processes
    )
    forecast = Forecast(todo, study.cost, num_processes)
    progress = Progress(len(mine), len(mine) - len(todo), forecast)
    work = attempts.Work(
        forecast.order(time.monotonic),
        functools.partial(_is_allowed, study),
        lambda: session.tell(progress.left, work.in_hand),
    )
    how = "failed"

    def leave() -> None:
        progress.close()
        session.end("stopped")
        os._exit(130)

    # Where this process computes it hears no signal; and it is not ours to end when somebody types into it.
    hears_nothing = num_processes == 1 and hasattr(sys.modules["__main__"], "__file__")
    try:
        with (
            Stopping(leave if hears_nothing else None) as stopping,
            closing(
                processes.map_unordered(
                    functools.partial(attempts.attempt, run),
                    work,
                    num_processes,
                    initialize,
                    lambda: stopping.asked or session.is_hopeless,
                    progress.tick,
                )
            ) as outcomes,
        ):
            session.tell(None, ())
            for part, outcome in outcomes:
                if (decided := work.resolve(part, outcome)) is None:
                    continue
                tile, result = decided
                if isinstance(result, Failure):
                    logging.error("failed: %s: %s", attempts.name_of(tile), result.reason)
                    session.failed[tile] = result
                    progress.failed(tile)
                    continue
                records, timings = result
                before = time.perf_counter()
                store.write(tile.variant.group, tile.slices(axes), records)
                session.spent["storing"] += time.perf_counter() - before
                for name, seconds in timings.items():
                    session.spent[name] += seconds
                session.done += 1
                progress.update(tile, timings)
                session.tell(progress.left, work.in_hand)
        how = "done" if session.done + len(session.failed) == len(todo) else "stopped"
    except processes.WorkerError as error:
        raise UsageError(f"--num_processes: {error}") from error
    except StoreError as error:
        raise UsageError(f"--out: {error}; {_ROOM}") from error
    finally:
        progress.close()
        session.end(how)
    if stopping.asked and how == "stopped":
        raise SystemExit(130)
    if session.failed:
        raise _tile_error(session, execution.out, len(todo))


def _tile_error(session: _Session, out: Path, num_to_do: int) -> TileError:
    tile, failure = next(iter(session.failed.items()))
    what = "fewer --num_processes leave each more memory; " if failure.out_of_memory else ""
    error = TileError(
        f"{len(session.failed)} of {num_to_do} tiles failed, the first at {attempts.name_of(tile)}: {failure.reason}; "
        f"{session.done} are stored. {what}{out / 'sessions.jsonl'} says more, and the same command tries again"
    )
    cause = failure.error or (RuntimeError(f"in a worker process:\n{failure.details}") if failure.details else None)
    error.__cause__ = cause
    return error
