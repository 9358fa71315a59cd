"""A convergence map killed at random moments, its parent and single workers in turns; it ends as if nothing had been.

`python tests/programs/kill_sweeps.py 24` trains a small map undisturbed, and another in which so many SIGKILLs fall.
After every kill of the parent all that is stored is read. At the end both stores are compared, file by file.
"""

import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT)]

from sweeps.runtime import journal
from sweeps.runtime.store import Store

FLAGS = (
    "--d0=2:12:2", "--d1=4:16:4", "--block=1x1", "--num_seeds=2", "--num_samples=20", "--num_steps=2000",
    "--trained_layers=hidden", "--num_processes=2",
)  # fmt: skip


def start(out, cache):
    return subprocess.Popen(
        [sys.executable, "-m", "sweeps.convergence_map", f"--out={out}", f"--compilation_cache={cache}", *FLAGS],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
    )


def workers(process):
    """The processes that a program has started, other than Python's own helper."""
    try:
        pids = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        return [int(pid) for pid in pids if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    except FileNotFoundError:
        return []


def files(out):
    root = out / "results.zarr"
    return {path.relative_to(root): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def main(wanted):
    generator, kills, restarts = random.Random(0), {"parent": 0, "worker": 0}, 0
    with tempfile.TemporaryDirectory() as folder:
        cache, whole, out = (Path(folder) / name for name in ("cache", "whole", "out"))
        begun = time.monotonic()
        _, log = (first := start(whole, cache)).communicate()
        assert first.returncode == 0, log
        seconds = min(time.monotonic() - begun, 20.0)  # So that most kills fall while tiles are done.
        while sum(kills.values()) < wanted:
            process, what = start(out, cache), "worker" if kills["worker"] <= kills["parent"] else "parent"
            time.sleep(generator.uniform(0.1, 0.7) * seconds)
            if process.poll() is not None:  # It was done before: some of it is to be done again.
                assert process.returncode == 0, process.communicate()[1]
                process.communicate()
                store = Store.open(out / "results.zarr")
                for tile in generator.sample(store.tiles("hidden"), 12):
                    store.discard("hidden", tile)
                restarts += 1
                continue
            if what == "worker" and (known := workers(process)):
                os.kill(generator.choice(known), 9)
                kills[what] += 1
                time.sleep(generator.uniform(0.0, 0.2) * seconds)
            process.kill()
            process.communicate()
            kills["parent"] += 1
            if (out / "results.zarr").exists():
                Store.open(out / "results.zarr").verify()
            print(
                f"{kills}, {sum(line['tiles'] for line in journal.sessions(out)) if out.exists() else 0} tiles",
                flush=True,
            )
        _, log = (last := start(out, cache)).communicate()
        assert last.returncode == 0, log
        assert files(out) == files(whole)
        assert not list(out.rglob("*.partial"))
        print(f"{kills} kills, {restarts} times begun anew; {len(files(out))} files are the same to the bit")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 24)
