"""The hash of code of one's own, where it has no file."""

import os
import subprocess
import sys

from support import ROOT

PROGRAM = """
from sweeps.runtime import sources
space = {"__name__": "typed"}
exec("def f(x):\\n    return x in {'one', 'two', 'three', 'four', 'five'}", space)
print(sources.source_hash(space["f"]))
"""


def test_the_hash_of_code_without_a_file_is_the_same_in_every_process():
    def printed(seed):
        environment = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(ROOT)}
        return subprocess.check_output([sys.executable, "-c", PROGRAM], env=environment, text=True)

    hashes = {printed(seed) for seed in "1234"}
    assert len(hashes) == 1
    assert len(hashes.pop().strip()) == 12
