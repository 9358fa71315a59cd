"""How a sweep is doing, from its output folder alone: python -m sweeps.status --out=DIR.

Tiles done, failed and pending, the rate and the time left, who is at work, and who wrote what and when. It only reads,
and works while a sweep runs, a study of one's own among them. A folder of several studies has them all.

The exit code is 0 when every tile is done; 1 when results are damaged; 2 when there are none, or a flag is wrong; 3
when tiles are pending and a run is at work; 4 when tiles are pending and none is at work; 5 when moreover some of them
failed. Damaged chunks are seen with --verify, which reads them all; without it only those of the statuses are read.
"""

import argparse
import calendar
import dataclasses
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

from sweeps.runtime import damage, extension, journal
from sweeps.runtime.progress import duration
from sweeps.runtime.store import Store, StoreError, chunk_key
from sweeps.study import UsageError

__all__ = ["State", "look", "main"]

COMPLETE, DAMAGED, USAGE, AT_WORK, INCOMPLETE, FAILED = range(6)
# Seconds that the rate is taken over, and between two looks of --watch.
_WINDOW = 600
_PERIOD = 2
_MOST_LISTED = 20


@dataclasses.dataclass(frozen=True)
class State:
    """What a look at an output folder found.

    Attributes:
      code: the exit code, see the module.
      text: what is printed.
      tiles, done, failed: numbers of tiles, those that failed among those that are not done.
      rate: tiles a second of late, None where it is not known.
      left: seconds until everything is done, as far as is known.
      at_work: (index, count) of the shards whose lock is held.
      damaged: what is damaged, a line each.
    """

    code: int
    text: str
    tiles: int = 0
    done: int = 0
    failed: int = 0
    rate: float | None = None
    left: float | None = None
    at_work: tuple[tuple[int, int], ...] = ()
    damaged: tuple[str, ...] = ()


def look(out: Path, *, verify: bool = False) -> State:
    """What there is in an output folder.

    Args:
      out: the folder.
      verify: whether every chunk is read.

    Raises:
      UsageError: there are no results.
    """
    at_work = journal.shards_at_work(out) if out.is_dir() else []
    try:
        store = Store.open(out / "results.zarr", read_only=True)
    except StoreError as error:
        if (out / "results.zarr").is_dir():
            return State(DAMAGED, f"{error}\n{_REPAIR}", at_work=tuple(at_work), damaged=(str(error),))
        if at_work:
            return State(AT_WORK, "a run is beginning, and there are no results yet", at_work=tuple(at_work))
        if studies := sorted(path.parent for path in out.glob("*/results.zarr")):
            return _together(out, [look(folder, verify=verify) for folder in studies])
        raise UsageError(f"--out: {error}") from error
    return _look(out, store, at_work, verify)


def _together(out: Path, states: Sequence[State]) -> State:
    """The state of several studies in folders of `out`, as python -m sweeps.reproduction has them."""
    worst = next(code for code in (DAMAGED, AT_WORK, FAILED, INCOMPLETE, COMPLETE) if code in [s.code for s in states])
    tiles, done, failed = (sum(getattr(state, name) for state in states) for name in ("tiles", "done", "failed"))
    text = [f"{len(states)} studies in {out}: {done} of {tiles} tiles done", *(f"\n{state.text}" for state in states)]
    at_work = tuple(shard for state in states for shard in state.at_work)
    damaged = tuple(line for state in states for line in state.damaged)
    return State(worst, "\n".join(text), tiles, done, failed, at_work=at_work, damaged=damaged)


_REPAIR = "The sweep's own command with --repair (in Python repair=True) computes that again, and keeps the rest."


def _look(out: Path, store: Store, at_work: Sequence[tuple[int, int]], verify: bool) -> State:
    attributes = store.attributes
    damaged: list[str] = []
    groups: dict[str, tuple[int, int]] = {}
    pending: list[str] = []
    times: list[float] = []
    sessions = journal.sessions(out)
    for group in store.groups:
        try:
            store.check_group(group)
            codes, unreadable = damage.codes(store, group)
            name_of = store.names(group)
            tiles = store.tiles(group)
        except StoreError as error:
            damaged.append(str(error))
            continue
        damaged += [f"{name_of(where)}: status cannot be read" for where in unreadable]
        is_done = [bool(codes[where].all()) for where in tiles]
        groups[group] = (sum(is_done), len(tiles))
        pending += [name_of(where) for where, done in zip(tiles, is_done, strict=True) if not done]
        status = store.array(group, "status")
        for where, done in zip(tiles, is_done, strict=True):
            with suppress(OSError):
                if done:
                    times.append((store.path / group / "status" / chunk_key(status, where)).stat().st_mtime)
    try:
        further = extension.asked(store)
    except StoreError as error:
        further = []
        damaged.append(str(error))
    if further:
        groups["refined"] = (sum(done for _, done in further), len(further))
        pending += [name for name, done in further if not done]
    if verify:
        damaged += [found.what for found in damage.find(store) if found.what not in damaged]
        with suppress(StoreError):  # Said above.
            if (more := extension.beyond(store)) is not None:
                damaged += [f"refined: {found.what}" for found in damage.find(more)]
    num_done, num_tiles = sum(done for done, _ in groups.values()), sum(tiles for _, tiles in groups.values())
    notes = [_Note.read(out, *shard) for shard in at_work]
    waiting = set(pending)
    failed = {entry["tile"]: entry["reason"] for line in [*sessions, *(note.said for note in notes)]
              for entry in line.get("failed", []) if entry.get("tile") in waiting}  # fmt: skip
    rate = _rate(sorted(times), notes)
    left = _left(len(pending) - len(failed), rate, notes)
    code = (
        DAMAGED if damaged else COMPLETE if not pending else AT_WORK if at_work else FAILED if failed else INCOMPLETE
    )  # fmt: skip
    state = State(code, "", num_tiles, num_done, len(failed), rate, left, tuple(at_work), tuple(damaged))
    lines = [
        f"{attributes.get('study', 'sweep')} in {out}, configuration {attributes.get('configuration', '?')}",
        *_progress(state, groups),
        *_who(out, sessions, notes),
        *_listed("failed", [f"{tile}: {reason}" for tile, reason in failed.items()], "The same command tries again."),
        *_listed("damaged", damaged, _REPAIR),
    ]
    if verify and not damaged:
        lines.append("verified: every chunk can be read")
    return dataclasses.replace(state, text="\n".join(lines))


@dataclasses.dataclass(frozen=True)
class _Note:
    """What the running session of a shard says of itself, so many seconds ago."""

    shard: tuple[int, int]
    said: dict[str, Any]
    age: float

    @classmethod
    def read(cls, out: Path, index: int, count: int) -> "_Note":
        return cls((index, count), *journal.note_with_age(out, index, count))

    @property
    def started(self) -> float:
        with suppress(KeyError, ValueError):
            return calendar.timegm(time.strptime(self.said["started"], "%Y-%m-%dT%H:%M:%SZ"))
        return time.time()


def _rate(times: Sequence[float], notes: Sequence[_Note]) -> float | None:
    """Tiles a second in the last minutes of work, from the times of their files."""
    if not times:
        return None
    end = time.time() if notes else times[-1]
    begun = min(note.started for note in notes) if notes else times[0]
    begun = max(begun, end - _WINDOW)
    count = sum(begun <= at <= end for at in times)
    # Without a session that runs, the first of them began nobody knows when.
    count -= 0 if notes else 1
    return count / (end - begun) if count > 0 and end > begun else None


def _left(pending: int, rate: float | None, notes: Sequence[_Note]) -> float | None:
    """What the running sessions expect; otherwise by the rate."""
    expected = [max(note.said["left"] - note.age, 0.0) for note in notes if note.said.get("left") is not None]
    if expected:
        return max(expected)
    return pending / rate if rate and pending else None


def _progress(state: State, groups: dict[str, tuple[int, int]]) -> list[str]:
    parts = [f"{state.done} of {state.tiles} tiles done ({state.done / max(state.tiles, 1):.0%})"]
    if state.failed:
        parts.append(f"{state.failed} failed")
    if waiting := state.tiles - state.done - state.failed:
        parts.append(f"{waiting} pending")
    lines = [", ".join(parts)]
    if len(groups) > 1:
        lines.append(", ".join(f"{group} {done} of {tiles}" for group, (done, tiles) in groups.items()))
    if state.done < state.tiles:
        speed = [] if state.rate is None else [f"{60 * state.rate:.3g} tiles a minute"]
        rest = (
            [] if state.left is None else [f"about {duration(state.left)} left" + " at that rate" * (not state.at_work)]
        )
        lines += [", ".join(speed + rest)] if speed or rest else []
    return lines


def _who(out: Path, sessions: Sequence[dict[str, Any]], notes: Sequence[_Note]) -> list[str]:
    """A line a session, the last ones, and what those that run have in hand."""
    known = {note.shard for note in notes}
    killed = [dict(said, how="killed") for shard, said in journal.notes(out).items() if shard not in known]
    rows = [("started", "ended", "how", "tiles", "host", "shard", "processes", "kernel", "jax", "commit")]
    for line in [*sessions[-_MOST_LISTED:], *killed, *(dict(note.said, how="at work") for note in notes)]:
        jax = line.get("versions", {}).get("jax", "-")
        commit = str(line.get("commit") or "-")
        commit = commit[:9] + "+" * (len(commit) > 9 and commit.endswith("+"))
        named = ("host", "shard", "num_processes", "kernel")
        rows.append((
            str(line.get("started", "-")), str(line.get("ended", "-")), str(line.get("how", "-")),
            str(line.get("tiles", "-")), *(str(line.get(name, "-")) for name in named), jax, commit,
        ))  # fmt: skip
    if len(rows) == 1:
        return []
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    table = ["  ".join(word.ljust(width) for word, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    hands = [
        f"shard {note.shard[0]} of {note.shard[1]} at work, process {note.said.get('pid', '?')} on "
        f"{note.said.get('host', '?')}, in hand: {'; '.join(note.said.get('in_hand', [])) or 'nothing yet'}"
        for note in notes
    ]
    return ["", *table, *hands]


def _listed(what: str, lines: Sequence[str], advice: str) -> list[str]:
    if not lines:
        return []
    more = [f"... and {len(lines) - _MOST_LISTED} more"] if len(lines) > _MOST_LISTED else []
    return ["", f"{what}:", *lines[:_MOST_LISTED], *more, advice]


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """One line."""
        print(f"status: {message}", file=sys.stderr)
        raise SystemExit(USAGE)


def _watch(out: Path, verify: bool) -> State:
    """Looks again and again until no run is at work; on a terminal in one place."""
    from rich.live import Live
    from rich.text import Text

    state = look(out, verify=verify)
    with Live(Text(state.text), auto_refresh=False, vertical_overflow="visible") as live:
        while state.code == AT_WORK or (state.code == DAMAGED and state.at_work):
            time.sleep(_PERIOD)
            state = look(out, verify=verify)
            live.update(Text(state.text), refresh=True)
    return state


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = _Parser(
        prog="python -m sweeps.status",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--out", type=Path, required=True, help="output folder of a sweep")
    parser.add_argument("--verify", action="store_true", help="read every chunk, and list what must be computed again")
    parser.add_argument("--watch", action="store_true", help="look every 2 seconds, until no run is at work any more")
    given = parser.parse_args(argv)
    try:
        if given.watch:
            return _watch(given.out, given.verify).code
        state = look(given.out, verify=given.verify)
        print(state.text)
        return state.code
    except UsageError as error:
        print(f"status: {error}", file=sys.stderr)
        return USAGE
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    raise SystemExit(main())
