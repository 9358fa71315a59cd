"""The README's example runs as printed, and its commands name flags that exist."""

import re
from pathlib import Path

from launchers import STUDIES

from sweeps.command import app

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def test_example(capsys, float32):
    (code,) = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    exec(compile(code, "README.md", "exec"), {})
    (promised,) = re.findall(r"It prints `(.*)`\.", README)
    numbers = [float(number) for number in re.findall(r"\d+", promised)]
    printed = capsys.readouterr().out.strip()
    found = [float(number) for number in re.findall(r"\d+", printed)]
    assert re.sub(r"\d+", "", printed) == re.sub(r"\d+", "", promised)
    # Rounding differs between processors, and trajectories amplify it.
    assert abs(found[0] - numbers[0]) <= 10
    assert abs(found[-1] / numbers[-1] - 1) < 0.2


def test_commands_name_flags_that_exist():
    """A command's flags are those of its launcher or script; flags named in the text exist somewhere."""
    known = {name: set(app.flag_values(study)) | {"help", "flagfile"} for name, study in STUDIES.items()}
    known["benchmark"] = set(re.findall(r'"--(\w+)"', (ROOT / "scripts" / "benchmark").read_text()))
    for name, words in re.findall(r"(?:sweeps\.|scripts/)(\w+)((?:\s+--\w+(?:=[^\s`]+)?)+)", README):
        if name in known:
            assert set(re.findall(r"--(\w+)", words)) <= known[name], name
    assert set(re.findall(r"--(\w+)", README)) <= set().union(*known.values())
