"""Who is at work in an output folder, and who was: a lock for every shard, and what its session says of itself.

A session that runs keeps a note beside its lock, rewritten whenever a tile is begun or done. When it ends the note
becomes a line of sessions.jsonl; that of a killed one, when the next session begins.
"""

import json
import os
import platform
import re
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import filelock

from sweeps.study import UsageError

try:
    import fcntl
except ImportError:  # Only the locks of POSIX can be looked at without taking them.
    fcntl = None  # type: ignore[assignment]

__all__ = [
    "Journal",
    "is_ours",
    "locked",
    "note",
    "note_with_age",
    "notes",
    "now",
    "sessions",
    "shards_at_work",
    "write",
]

SESSIONS = "sessions.jsonl"
_LOCK = re.compile(r"\.lock-(\d+)-of-(\d+)")
_NOTE = re.compile(r"\.session-(\d+)-of-(\d+)\.json")
# Whoever looks whether a lock is held has it for a moment.
_PATIENCE = 0.3


def write(path: Path, text: str) -> None:
    """Writes a small file whole or not at all."""
    partial = path.with_name(f"{path.name}.{uuid.uuid4().hex}.partial")
    try:
        partial.write_text(text)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def now() -> str:
    """The time of day, UTC."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def is_ours(entry: Path) -> bool:
    """Whether a file is what a session leaves beside its results."""
    return entry.name.startswith((".lock-", ".session-")) or entry.name.endswith(".partial")


@contextmanager
def locked(folder: Path, shard_index: int = 0, shard_count: int = 1) -> Iterator[None]:
    """The folder, made where there is none, is ours while this lasts, or the shard of it.

    Raises:
      UsageError: another process has it, or shares it among another number of shards; or it cannot be made or written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(folder / f".lock-{shard_index}-of-{shard_count}", timeout=_PATIENCE):
            if others := {count for _, count in shards_at_work(folder)} - {shard_count}:
                raise UsageError(
                    f"--shard_count: {shard_count}, but another run shares {folder} among {min(others)}; wait for its "
                    "end, or take the same number"
                )
            yield
    except filelock.Timeout as error:
        raise UsageError(
            f"--out: another run is writing to {folder}; python -m sweeps.status --out={folder} shows it"
        ) from error
    except OSError as error:
        raise UsageError(f"--out: cannot write to {folder}: {error.strerror or error}") from error


def _is_held(lock: Path) -> bool:
    """Whether some process has a lock; nothing is written."""
    if fcntl is None:
        return False
    try:
        with lock.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return False
    except BlockingIOError:
        return True
    except OSError:  # It was removed, or cannot be read.
        return False


def shards_at_work(out: Path) -> list[tuple[int, int]]:
    """(index, count) of the shards whose lock is held."""
    locks = [(match, entry) for entry in out.iterdir() if (match := _LOCK.fullmatch(entry.name))]
    return sorted((int(match[1]), int(match[2])) for match, entry in locks if _is_held(entry))


def note(out: Path, shard_index: int, shard_count: int) -> dict[str, Any]:
    """What the running session of a shard, or one that was killed, says of itself; empty where there is none."""
    return note_with_age(out, shard_index, shard_count)[0]


def note_with_age(out: Path, shard_index: int, shard_count: int) -> tuple[dict[str, Any], float]:
    """The same, and how many seconds ago."""
    path = _note_path(out, shard_index, shard_count)
    try:
        return json.loads(path.read_text()), max(time.time() - path.stat().st_mtime, 0.0)
    except (OSError, ValueError):
        return {}, 0.0


def notes(out: Path) -> dict[tuple[int, int], dict[str, Any]]:
    """The notes of all shards that left one, by (index, count)."""
    shards = [(int(match[1]), int(match[2])) for entry in out.iterdir() if (match := _NOTE.fullmatch(entry.name))]
    return {shard: note(out, *shard) for shard in sorted(shards)}


def _note_path(out: Path, shard_index: int, shard_count: int) -> Path:
    return out / f".session-{shard_index}-of-{shard_count}.json"


def sessions(out: Path) -> list[dict[str, Any]]:
    """The sessions that ended, in their order; lines that a full disk cut are left out."""
    lines = []
    with suppress(OSError):
        for text in (out / SESSIONS).read_text(errors="replace").splitlines():
            with suppress(ValueError):
                line = json.loads(text)
                if isinstance(line, dict):
                    lines.append(line)
    return lines


def _append(out: Path, line: Mapping[str, Any]) -> None:
    path = out / SESSIONS
    is_cut = path.exists() and path.read_bytes()[-1:] not in (b"", b"\n")
    with path.open("a") as file:
        file.write("\n" * is_cut + json.dumps(line) + "\n")


class Journal:
    """The note of a running session, of a shard whose lock it has; and its line at the end.

    Args:
      out: the output folder.
      shard_index, shard_count: the shard.
      provenance: what is said in any case, "started" among it.
    """

    def __init__(self, out: Path, shard_index: int, shard_count: int, provenance: Mapping[str, Any]) -> None:
        self._out, self._path = out, _note_path(out, shard_index, shard_count)
        self._provenance = {**provenance, "host": platform.node(), "pid": os.getpid()}
        with suppress(OSError, ValueError):
            before = json.loads(self._path.read_text())
            ended = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(self._path.stat().st_mtime))
            _append(out, {**before, "ended": ended, "how": "killed"})
            self._path.unlink()

    def update(self, said: Mapping[str, Any]) -> None:
        """Rewrites the note. A disk that refuses is left to the store to complain of."""
        with suppress(OSError):
            write(self._path, json.dumps({**self._provenance, **said}))

    def end(self, how: str, said: Mapping[str, Any]) -> None:
        """Adds the line, where a tile was done or failed, and removes the note."""
        with suppress(OSError):
            if said.get("tiles") or said.get("failed"):
                _append(self._out, {**self._provenance, **said, "ended": now(), "how": how})
            self._path.unlink(missing_ok=True)
