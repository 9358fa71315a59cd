"""The whole paper from one command: python -m sweeps.reproduction --out=DIR [--preset=quick|full].

Every study of the paper runs as the ordinary study that it is, into the folder DIR/KEY; then their stored results are
measured and held against the claims of the paper. DIR gets ledger.json, ledger.csv and index.html. What it takes is
said before it begins. The same command goes on after an interruption; --report_only judges what is stored.
"""

import argparse
import contextlib
import importlib.metadata
import io
import logging as standard_logging
import os
import platform
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from absl import flags, logging

from sweeps.command import app
from sweeps.reproduction import studies
from sweeps.reproduction.ledger import LedgerError
from sweeps.reproduction.studies import KINDS, Planned
from sweeps.runtime import arithmetic, journal, processes, session
from sweeps.runtime.progress import duration
from sweeps.runtime.store import StoreError
from sweeps.study import Execution, TileError, UsageError

__all__ = ["check", "check_folder", "execute", "main", "reproduce"]

FORMATS = ("html", "tex", "markdown", "pdf")
_PERIOD = 15.0


class _Clock:
    """Says from time to time which study is at work and how long all of them take.

    Args:
      out: the folder of all studies.
      expected: key to seconds, of all studies in their order.
      period: seconds between two lines.
    """

    def __init__(self, out: Path, expected: Mapping[str, float], period: float = _PERIOD) -> None:
        self._out, self._expected, self._period = out, dict(expected), period
        self._taken: dict[str, float] = {}
        self._begun = 0.0
        self._key = ""
        self._over = threading.Event()

    def begin(self, key: str) -> None:
        """A study is at work."""
        self._key, self._begun = key, time.monotonic()
        logging.info("%s", self.line())

    def end(self) -> float:
        """It is done; returns the seconds that it took."""
        self._taken[self._key] = time.monotonic() - self._begun
        return self._taken[self._key]

    def left(self) -> float:
        """Seconds until all are done: the forecast of the one at work, and what is expected of the others, as much
        longer or shorter as those before.
        """
        expected, taken = sum(self._expected[key] for key in self._taken), sum(self._taken.values())
        pace = taken / expected if expected > 30 else 1.0
        names = list(self._expected)
        rest = sum(self._expected[key] for key in names[names.index(self._key) + 1 :]) * pace
        note, age = journal.note_with_age(self._out / self._key, 0, 1)
        if (known := note.get("left")) is not None:
            return rest + max(float(known) - age, 0.0)
        return rest + max(self._expected[self._key] * pace - (time.monotonic() - self._begun), 0.0)

    def line(self) -> str:
        """One line."""
        names = list(self._expected)
        place = f"study {names.index(self._key) + 1} of {len(names)} ({self._key})"
        return f"{place}, about {duration(self.left())} left of all"

    def _speak(self) -> None:
        while not self._over.wait(self._period):
            logging.info("%s", self.line())

    def __enter__(self) -> "_Clock":
        threading.Thread(target=self._speak, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()


def check_folder(out: Path) -> None:
    """Refuses a folder that is none, cannot be written, or has neither a ledger nor only folders of the studies: what
    is written there must not replace other files.

    Raises:
      UsageError: see above; nothing was written.
    """
    session.check_folder(out, marks=("ledger.json", *KINDS))
    if out.is_dir() and not (out / "ledger.json").exists():
        foreign = [entry.name for entry in out.iterdir() if entry.name not in KINDS and not journal.is_ours(entry)]
        if foreign:
            raise UsageError(f"--out: {out} holds other things ({min(foreign)}) and no ledger; nothing was written")


def check(out: Path, planned: Sequence[Planned]) -> None:
    """Refuses what `check_folder` does, and results of studies with other flags.

    Raises:
      UsageError: see above; nothing was written.
    """
    check_folder(out)
    for one in planned:
        folder, study = out / one.key, one.study
        if not study.axes():
            session.check_folder(folder, marks=("config.json",))
            session.check_config(study, folder)
            continue
        session.check_folder(folder)
        if not (folder / "results.zarr").exists():
            continue
        there, here = session.open_results(folder).attributes["science"], study.science()
        if different := sorted(name for name in {*there, *here} if there.get(name) != here.get(name)):
            name = different[0]
            raise UsageError(
                f"--out: {folder} holds results of another study or preset: --{name} is {there.get(name)} there and "
                f"{here.get(name)} here; another --out begins anew"
            )


def _announce(planned: Sequence[Planned], expected: Mapping[str, float], out: Path) -> None:
    cores = len(processes.available_cores())
    print(
        f"{len(planned)} studies into {out}, about {duration(sum(expected.values()))} in all on {cores} cores (from "
        "their costs, and what a unit took on a Xeon with AVX-512):"
    )
    for one in planned:
        print(f"  {duration(expected[one.key]) if expected[one.key] else 'done':>8}  {one.key}: {one.title}")
    sys.stdout.flush()


def _run(one: Planned, out: Path, num_processes: int) -> None:
    """One study as its own command runs it, without what that prints: its report.html has it."""
    execution = Execution(out=out / one.key, num_processes=num_processes)
    with app.as_a_program(), contextlib.redirect_stdout(io.StringIO()):
        arithmetic.check(os.environ.get("XLA_FLAGS", ""))
        app.complete(one.study, execution)


def reproduce(out: Path, planned: Sequence[Planned], num_processes: int = 0) -> tuple[str, ...]:
    """Runs what is left of the studies, one after another.

    Args:
      out: the folder of all of them.
      planned: the studies.
      num_processes: see `Execution`.

    Returns:
      A line for every study of which some tiles failed; the others are done.

    Raises:
      UsageError: the folder is refused.
      OSError: it cannot be made.
      SystemExit: a signal asked to stop.
    """
    check(out, planned)
    out.mkdir(parents=True, exist_ok=True)
    expected = {one.key: one.expected(out) for one in planned}
    _announce(planned, expected, out)
    failed = []
    with _Clock(out, expected) as clock:
        for one in planned:
            if not expected[one.key] and (out / one.key / "summary.csv").exists():
                continue
            clock.begin(one.key)
            cpu = sum(os.times()[:4])
            try:
                _run(one, out, num_processes)
            except TileError as error:
                failed.append(f"{one.key}: {error}")
            taken = clock.end()
            logging.info("%s took %s, and %.0f s of CPU", one.key, duration(taken), sum(os.times()[:4]) - cpu)
    return tuple(failed)


def _about(command: str) -> dict[str, str]:
    """What is said of a run as a whole."""
    versions = {name: importlib.metadata.version(name) for name in session.PACKAGES}
    return {
        "Command": command,
        "Machine": f"{len(processes.available_cores())} cores, {platform.machine()}, {platform.system()}",
        "Versions": f"Python {platform.python_version()}, "
        + ", ".join(f"{name} {version}" for name, version in versions.items()),
    }


def _command(science: Mapping[str, Mapping[str, Any]], kinds: Mapping[str, studies.Kind]) -> str:
    """The line that makes what is stored, key to science: that of a preset where all of it is that preset's."""
    for preset in studies.PRESETS:
        if science == {one.key: one.study.science() for one in studies.plan(preset, kinds=kinds)}:
            return f"python -m sweeps.reproduction --preset={preset} --out=DIR"
    return f"those of its {len(science)} studies, which are no whole preset"


def _report(out: Path, planned: Sequence[Planned], kinds: Mapping[str, studies.Kind], formats: Sequence[str]) -> None:
    from sweeps.reproduction import measure, publish  # With plots and tables.

    found = [stored for key in KINDS if (stored := measure.stored(key, out)) is not None]
    for key in KINDS:
        left, runs = measure.unfinished(key, out)
        if left:
            print(f"{key} is not judged: {left:,} of {runs:,} runs are left")
    if not found:
        raise UsageError(f"--out: {out} holds no finished study")
    command = _command({one.key: one.study.science() for one in found}, kinds)
    judged, files = publish.write(out, found, planned, _about(command), formats)
    counts: dict[str, int] = {}
    for one in judged:
        counts[one.verdict.value] = counts.get(one.verdict.value, 0) + 1
    print(f"{len(judged)} claims: " + ", ".join(f"{count} {verdict}" for verdict, count in counts.items()))
    print("\n".join(map(str, files)))


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """One line."""
        print(f"reproduction: {message}", file=sys.stderr)
        raise SystemExit(2)


def _formats(text: str) -> tuple[str, ...]:
    given = tuple(dict.fromkeys(text.split(",")))
    if stray := [name for name in given if name not in FORMATS]:
        raise argparse.ArgumentTypeError(f"{stray[0]!r} is none of {', '.join(FORMATS)}")
    return given


def _whole(text: str) -> int:
    if not text.isascii() or not text.isdecimal() or int(text) > 4096:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 0 to 4096")
    return int(text)


def _folder(text: str) -> Path:
    if not text:
        raise argparse.ArgumentTypeError("names no folder")
    return Path(text).expanduser()


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="python -m sweeps.reproduction",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add: Any = parser.add_argument
    add("--out", type=_folder, required=True, help="output folder: new, empty, or one of an earlier run")
    add("--preset", choices=studies.PRESETS, default="quick", help="quick: coarse grids; full: those of the paper")
    add(
        "--kernel",
        choices=studies.KERNELS,
        default="auto",
        help="what takes the steps of the maps; auto: native where a C++ compiler is there, else xla",
    )
    add(
        "--format",
        type=_formats,
        default=("html",),
        help=f"a comma list of {', '.join(FORMATS)}; ledger.json and ledger.csv are always written",
    )
    add("--num_processes", type=_whole, default=0, help="worker processes; 0 for one per core")
    add("--report_only", action="store_true", help="judge what is stored in --out, and run nothing")
    return parser


def execute(argv: Sequence[str] | None = None, kinds: Mapping[str, studies.Kind] = KINDS) -> int:
    """Reads the flags and runs; returns the exit code: 0, 1 where some tiles failed, 2 for bad input, 130 when it was
    interrupted.

    Raises:
      SystemExit: with 2 after one line for bad flags; with 130 when a signal stopped a study.
    """
    given = _parser().parse_args(argv)
    failed: tuple[str, ...] = ()
    try:
        kernel = "xla" if given.report_only else studies.kernel_here(given.kernel)
        planned = studies.plan(given.preset, kernel, kinds)
        if given.report_only:
            check_folder(given.out)
        else:
            failed = reproduce(given.out, planned, given.num_processes)
        _report(given.out, planned, kinds, given.format)
    except (UsageError, StoreError, LedgerError, OSError) as error:
        print(f"reproduction: {' '.join(str(error).split())}", file=sys.stderr)
        return getattr(error, "exit_code", 2)
    except KeyboardInterrupt:
        print("reproduction: interrupted; the same command goes on", file=sys.stderr)
        return 130
    for line in failed:
        print(f"reproduction: {line}", file=sys.stderr)
    return 1 if failed else 0


def main() -> int:
    """The program: `execute`, with its log on the standard error."""
    os.environ.update(processes.one_thread())  # XLA reads this once.
    flags.FLAGS.mark_as_parsed()  # The logging module looks there.
    logging.use_absl_handler()
    standard_logging.getLogger().setLevel(standard_logging.WARNING)
    logging.get_absl_logger().setLevel(standard_logging.INFO)
    return execute()
