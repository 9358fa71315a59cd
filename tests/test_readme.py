"""The README's example runs as printed, and its commands name flags that exist."""

import re
from pathlib import Path

from sweeps import protocol_settings, settings

README = (Path(__file__).parent.parent / "README.md").read_text()


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


def test_flags_exist():
    known = {
        *protocol_settings._PROTOCOL_FLAGS,
        *settings.EXECUTION_FLAGS,
        "protocol",
        "trained_layers",
        "out",
        "block",
    }
    known |= {"interval", "figures_only", "compilation_cache", "flagfile", "help"}
    known |= {"seconds", "rounds", "inclusion", "sizes", "tolerances"}  # Of scripts/benchmark.
    known |= {"num_seeds", "step_sizes", "long_steps"}  # Of sweeps.inclusion_limit.
    assert set(re.findall(r"--(\w+)", README)) <= known
