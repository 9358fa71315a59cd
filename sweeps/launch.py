"""What launchers share: the output folder, progress, signals, and the loop over tiles."""

import collections
import dataclasses
import functools
import importlib.metadata
import json
import logging as standard_logging
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags, logging

from relu_sgd import _draws as draws
from sweeps import arithmetic, patched, plan, processes, settings
from sweeps.engine import Timings
from sweeps.forecast import Forecast
from sweeps.plan import Tile
from sweeps.progress import Progress, Stopping, duration
from sweeps.protocol import fingerprint
from sweeps.settings import Execution, FlagTable, UsageError
from sweeps.store import Metrics, Store, StoreError

__all__ = [
    "Launcher",
    "Sweep",
    "complete",
    "configuration_of",
    "configure_jax",
    "execute",
    "main",
    "open_results",
    "science_of",
    "train",
]

PACKAGES = ("jax", "jaxlib", "optax", "numpy", "xarray", "zarr")

# From a tile and what `configure_jax` needs to its records and timings; a module-level function, so that it can be sent to
# another process.
RunTile = Callable[[Tile], tuple[dict[str, np.ndarray], Timings]]


@dataclasses.dataclass(frozen=True)
class Sweep:
    """What a launcher hands over.

    Attributes:
      protocol_name: of the preset, "" for none.
      flags: the flag file that repeats the sweep, without the block.
      science: everything that decides the results, by flag.
      setups: their names, a group of the store each.
      d0, d1, num_seeds: the grid.
      precision: "float32" or "float64".
      metrics: what is kept of a run.
      run_tile: trains a tile.
      axes: what d0 and d1 are called in the store.
      cost: of a tile, roughly, in any unit: see `forecast`.
      records: what all metrics but the status are recorded along, and the values there.
    """

    protocol_name: str
    flags: str
    science: dict[str, Any]
    setups: tuple[str, ...]
    d0: tuple[float, ...]
    d1: tuple[float, ...]
    num_seeds: int
    precision: str
    metrics: Metrics
    run_tile: RunTile
    axes: tuple[str, str] = ("d0", "d1")
    cost: Callable[[Tile], float] = plan.cost
    records: tuple[str, tuple[int, ...]] | None = None


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
        flags_line = next((line for line in lines if line.startswith(("flags", "Features"))), "")
        return fingerprint({"features": sorted(flags_line.split())})
    except OSError:
        return fingerprint({"processor": platform.processor()})


def _commit() -> str:
    """The commit of this code, with "+" when there are changes; "" outside a repository."""
    here = Path(__file__).parent
    try:
        commit = subprocess.run(
            ["git", "-C", here, "rev-parse", "HEAD"], capture_output=True, text=True, check=True
        ).stdout.strip()
        changes = subprocess.run(
            ["git", "-C", here, "status", "--porcelain", "--untracked-files=no"],
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""
    return commit + ("+" if changes else "")


def _write(path: Path, text: str) -> None:
    """Writes a small file whole or not at all."""
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    partial.write_text(text)
    partial.replace(path)


@contextmanager
def _locked(folder: Path, shard_index: int, shard_count: int) -> Iterator[None]:
    """The folder is ours while this lasts, or the shard of it."""
    try:
        import fcntl
    except ImportError:  # Not a POSIX system: nothing to lock with.
        yield
        return
    with (folder / f".lock-{shard_index}-of-{shard_count}").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise UsageError(f"--out: another run is writing to {folder}") from error
        yield


def _is_ours(entry: Path) -> bool:
    return entry.name.startswith(".lock-") or entry.name.endswith(".partial")


def open_results(out: Path) -> Store:
    """The finished or unfinished results in an output folder, to read.

    Raises:
      UsageError: there are none, or they are damaged.
    """
    try:
        return Store.open(out / "results.zarr", read_only=True)
    except StoreError as error:
        raise UsageError(f"--out: {error}") from error


def _check_folder(out: Path) -> None:
    if out.exists() and not out.is_dir():
        raise UsageError(f"--out: {out} is not a folder")
    if out.is_dir() and not (out / "results.zarr").exists():
        foreign = [entry.name for entry in out.iterdir() if not _is_ours(entry)]
        if foreign:
            raise UsageError(
                f"--out: {out} holds other things ({min(foreign)}) and no results of a sweep; nothing was written"
            )
    folder = out
    while not folder.exists():
        folder = folder.parent
    if not os.access(folder, os.W_OK | os.X_OK):
        raise UsageError(f"--out: cannot write to {folder}")


def configuration_of(science: dict[str, Any]) -> str:
    """A short name for everything that decides the results, the version of the draws included."""
    return fingerprint({**science, "draws": draws.VERSION})


def _check_same(store: Store, science: dict[str, Any], block: tuple[int, int] | None, out: Path) -> None:
    there = store.attributes.get("science")
    if not isinstance(there, dict):
        raise UsageError(f"--out: {out / 'results.zarr'} is no store of a sweep")
    if there != science:
        names = sorted(name for name in {*there, *science} if there.get(name) != science.get(name))
        different = "; ".join(
            f"--{name} is {_short(there.get(name))} there and {_short(science.get(name))} here" for name in names
        )
        raise UsageError(f"--out: the results in {out} are of another sweep: {different}")
    if store.attributes.get("draws") != draws.VERSION:
        raise UsageError(
            f"--out: the results in {out} were begun with other draws of data and weights, by another version of this code"
        )
    if block is not None and list(block) != store.attributes["block"]:
        raise UsageError(
            f"--block: {block[0]}x{block[1]}, but the results in {out} are in blocks of "
            f"{'x'.join(map(str, store.attributes['block']))}"
        )


def _short(value: Any) -> str:
    text = ",".join(map(str, value)) if isinstance(value, list) else str(value)
    return text if len(text) <= 40 else f"{text[:25]}...{text[-10:]}"


def _open_store(sweep: Sweep, execution: Execution) -> Store:
    out = execution.out
    path = out / "results.zarr"
    try:
        if not path.exists():
            block = execution.block or plan.default_block(sweep.d0, sweep.d1)
            attributes = {
                "science": sweep.science,
                "draws": draws.VERSION,
                "configuration": configuration_of(sweep.science),
                "protocol": sweep.protocol_name,
                "setups": list(sweep.setups),
                "block": list(block),
            }
            rows, columns = sweep.axes
            sizes = {rows: sweep.d0, columns: sweep.d1, "seed": range(sweep.num_seeds)}
            chunk = {rows: block[0], columns: block[1], "seed": sweep.num_seeds}
            with suppress(FileExistsError):  # Another shard was quicker.
                Store.create(path, sweep.setups, sizes, chunk, sweep.metrics, attributes, sweep.records)
        store = Store.open(path)
        _check_same(store, sweep.science, execution.block, out)
        store.verify()
    except StoreError as error:
        raise UsageError(f"--out: {error}") from error
    return store


def _peak_memory(num_processes: int) -> int:
    """MiB that the largest process of this sweep held at its peak; 0 where the system does not say."""
    try:
        import resource
    except ImportError:
        return 0
    who = resource.RUSAGE_SELF if num_processes == 1 else resource.RUSAGE_CHILDREN
    peak = resource.getrusage(who).ru_maxrss
    return round(peak / (2**20 if sys.platform == "darwin" else 2**10))


def _describe(store: Store, execution: Execution, num_processes: int) -> dict[str, Any]:
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
        "shard": f"{execution.shard_index} of {execution.shard_count}",
    }


def train(sweep: Sweep, execution: Execution) -> Store:
    """Trains every pending tile of this run's shard, and returns the store.

    Raises:
      UsageError: the output folder is foreign, of another sweep, damaged, in use or not writable; nothing was written.
      SystemExit: a signal asked to stop, and the tiles in hand are stored.
    """
    _check_folder(execution.out)
    patched.check()
    num_processes = execution.num_processes
    if execution.num_devices:
        try:
            jax.config.update("jax_num_cpu_devices", execution.num_devices)
        except RuntimeError as error:
            raise UsageError(f"--num_devices: {error}") from error
    if num_processes != 1 and jax.default_backend() != "cpu":
        if num_processes:
            raise UsageError(f"--num_processes: {num_processes} processes cannot share a {jax.default_backend()}")
        num_processes = 1
    num_processes = num_processes or len(processes.available_cores())
    out = execution.out
    if (out / "results.zarr").exists():
        _check_same(open_results(out), sweep.science, execution.block, out)
    out.mkdir(parents=True, exist_ok=True)
    with _locked(out, execution.shard_index, execution.shard_count):
        store = _open_store(sweep, execution)
        # Another shard may be writing: leave what is fresh.
        store.clean(older_than=0 if execution.shard_count == 1 else 3600)
        block = tuple(store.attributes["block"])
        _write(out / "config.json", json.dumps(store.attributes, indent=2) + "\n")
        _write(out / "run.flagfile", f"{sweep.flags}--block={block[0]}x{block[1]}\n")
        tiles = plan.cut(sweep.setups, sweep.d0, sweep.d1, sweep.num_seeds, block)
        pending = {setup: store.pending(setup) for setup in sweep.setups}
        mine = plan.share(tiles, execution.shard_index, execution.shard_count, sweep.cost)
        todo = [tile for tile in mine if pending[tile.setup][tile.slices].any()]
        session = _describe(store, execution, num_processes)
        logging.info("%d of %d tiles to do, %d processes", len(todo), len(mine), num_processes)
        _run_tiles(sweep, execution, store, mine, todo, num_processes, session)
    return store


def science_of(chosen: Any) -> tuple[dict[str, Any], str]:
    """What a dataclass whose fields are flags says, as JSON holds it, and as the flag file that repeats it."""
    science = {
        name: list(value) if isinstance(value, tuple) else value for name, value in dataclasses.asdict(chosen).items()
    }
    text = lambda value: ",".join(map(str, value)) if isinstance(value, list) else str(value)
    return science, "".join(f"--{name}={text(value)}\n" for name, value in science.items())


def complete(
    sweep: Sweep, execution: Execution, report: Callable[[Store], None], *, block: tuple[int, int] = (1, 1)
) -> None:
    """Does what is pending and reports; with --figures_only, reports on what there is.

    Args:
      sweep: what is to be done.
      execution: where and how.
      report: writes figures and tables from the store, and prints.
      block: cells of a tile in a new store, unless a flag says otherwise.

    Raises:
      UsageError: see `train`, or from the report.
    """
    if execution.figures_only:
        report(open_results(execution.out))
        return
    if execution.block is None and not (execution.out / "results.zarr").exists():
        execution = dataclasses.replace(execution, block=block)
    store = train(sweep, execution)
    if any(store.pending(setup).any() for setup in sweep.setups):
        print("this shard is done; others are not, so no figure yet (--figures_only draws it at any time)")
        return
    report(store)


def _run_tiles(
    sweep: Sweep,
    execution: Execution,
    store: Store,
    mine: Sequence[Tile],
    todo: Sequence[Tile],
    num_processes: int,
    session: dict[str, Any],
) -> None:
    spent: dict[str, float] = collections.defaultdict(float)
    num_processes = max(1, min(num_processes, len(todo)))
    initialize = functools.partial(configure_jax, sweep.precision, execution.compilation_cache)
    run_tile = sweep.run_tile
    if num_processes > 1:
        run_tile = functools.partial(patched.checked, run_tile, patched.fingerprints())
    begun = time.monotonic()
    forecast = Forecast(todo, sweep.cost, num_processes)
    progress = Progress(len(mine), len(mine) - len(todo), forecast)
    done = 0
    try:
        with Stopping() as stopping:
            for tile, (records, timings) in processes.map_unordered(
                run_tile,
                forecast.order(time.monotonic),
                num_processes,
                initialize,
                lambda: stopping.asked,
                progress.tick,
            ):
                before = time.perf_counter()
                store.write(tile.setup, tile.slices, records)
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
            f"--out: cannot write to {execution.out}: {error.strerror or error}; the same command goes on where it stopped"
        ) from error
    finally:
        progress.close()
        seconds = time.monotonic() - begun
        if done:
            session |= {"tiles": done, "seconds": round(seconds, 3)}
            session |= {f"{part}_seconds": round(value, 3) for part, value in spent.items()}
            session |= {"peak_memory_mib": _peak_memory(num_processes)}
            with (execution.out / "sessions.jsonl").open("a") as file:
                file.write(json.dumps(session) + "\n")
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


@dataclasses.dataclass(frozen=True)
class Launcher:
    """A command of its own.

    Attributes:
      name: for messages.
      help: what it does.
      read: from the parsed flags to settings; raises UsageError.
      run: from the settings to results; raises UsageError.
      flag_modules: the modules whose flags are its own, for --help.
      own_flags: flags that exist for this launcher alone, besides those of execution and of `flag_modules`.
    """

    name: str
    help: str
    read: Callable[[flags.FlagValues], Any]
    run: Callable[[Any], None]
    flag_modules: tuple[str, ...]
    own_flags: FlagTable = dataclasses.field(default_factory=dict)

    def flag_values(self) -> flags.FlagValues:
        """The flags that this launcher knows."""
        # Another launcher in the same process may have flags of the same names, so these get a place of their own.
        values = flags.FlagValues()
        for module, known in flags.FLAGS.flags_by_module_dict().items():
            if module in (settings.__name__, *self.flag_modules) or not module.startswith("sweeps."):
                for flag in known:
                    values[flag.name] = flag
                    values.register_flag_by_module(module, flag)
        settings.define(self.own_flags, values, f"sweeps.{self.name}")
        return values


def execute(launcher: Launcher, argv: Sequence[str]) -> None:
    """Parses the flags and runs.

    Args:
      launcher: the command.
      argv: the words of the command line, the program first.

    Raises:
      SystemExit: with status 2 after one line on the standard error, when the input is bad; with 0 after --help.
    """
    values = launcher.flag_values()
    if {"--help", "-help", "-h", "--helpshort", "--helpfull"} & set(argv[1:]):
        described = "".join(values.module_help(module) for module in launcher.flag_modules)
        print(f"{launcher.help.strip()}\n{described}")
        raise SystemExit(0)
    try:
        left = values(argv)
        if len(left) > 1:
            raise UsageError(f"{left[1]!r} is not a flag; flags begin with --")
        flags.FLAGS.mark_as_parsed()  # The logging module looks there.
        arithmetic.check(os.environ.get("XLA_FLAGS", ""))
        launcher.run(launcher.read(values))
    except (flags.Error, UsageError, StoreError, UnicodeDecodeError) as error:
        where = {StoreError: "--out: ", UnicodeDecodeError: "--flagfile: "}.get(type(error), "")
        print(f"{launcher.name}: {where}{' '.join(str(error).split())}", file=sys.stderr)
        raise SystemExit(2) from None


def main(launcher: Launcher) -> None:
    """The entry point of a launcher: `execute` on the command line, with its log on the standard error."""
    # A network trains on one core; splitting its small products over threads costs more than it gains. XLA reads this
    # once, before its first program; what the user has set stays.
    if "xla_cpu_multi_thread_eigen" not in os.environ.get("XLA_FLAGS", ""):
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_cpu_multi_thread_eigen=false".strip()
    # Workers, which read this when they load NumPy, are pinned to a core each: threads of BLAS would fight for it.
    for library in ("OPENBLAS", "OMP", "MKL"):
        os.environ.setdefault(f"{library}_NUM_THREADS", "1")
    logging.use_absl_handler()
    # Our own progress, and from everybody else only what is worth a warning.
    standard_logging.getLogger().setLevel(standard_logging.WARNING)
    logging.get_absl_logger().setLevel(standard_logging.INFO)
    try:
        try:
            execute(launcher, sys.argv)
        finally:
            sys.stdout.flush()
    except (
        BrokenPipeError
    ):  # Who reads has seen enough, as `head` does. The interpreter would complain when it closes the pipe.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        print(f"{launcher.name}: interrupted; the same command goes on", file=sys.stderr)
        raise SystemExit(130) from None
