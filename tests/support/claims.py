"""A small made-up ledger with every verdict, and studies with what a page must bear: long text, markup, odd numbers."""

import math
from pathlib import Path

import numpy as np
import pandas
from matplotlib.figure import Figure

from sweeps.reproduction.ledger import Entry, Finding, Judged, Measurement, Verdict

AWKWARD = "a < b & c > \"d\" 'e' </script> $x_1$ {{ y }} α₀ ≥ 0, naïve — 漢字"
LONG = "a condition that goes on, " * 60 + "x" * 300


def measurement(name="share", protocol="", value=0.9, low=0.6, high=0.98, counts="9 of 10 runs"):
    return Measurement(name, protocol, value, low, high, counts, "map", "3a9293c3d68a", "float32")


def judged(name, place, verdict, *measurements, section="Appendix A", says="a statement", reason="as measured", **more):
    fields = dict(
        kind="lemma", released="", erratum="", code=("relu_sgd.clarke.subdifferential",), tests=("test_clarke.py",),
        study="map", measurement="share", rule={"quantity": "share", "at_least": 0.5}, out_of_scope="",
    )  # fmt: skip
    entry = Entry(id=name, place=place, section=section, says=says, **(fields | more))
    return Judged(entry, measurements, verdict, reason, f"python -m sweeps.convergence_map --out=DIR # {name}")


JUDGED = (
    judged(
        "figure-2a",
        "Figure 2a",
        Verdict.AS_RELEASED,
        measurement(protocol="as_written", value=0.2, low=0.1, high=0.3),
        measurement(protocol="as_released"),
        section="Section 6",
        kind="figure",
        says="Most networks converge.",
        released="Another loss.",
        erratum="The loss is a mean.",
    ),
    judged("lazy", "Section 6.3", Verdict.FAILS, measurement(value=2.0), section="Section 6", says="Far from lazy."),
    judged("zeros", "Figure 2b", Verdict.UNDECIDED, measurement(value=7.5, low=-math.inf), section="Section 6"),
    judged(
        "theorem-4-3",
        "Theorem 4.3",
        Verdict.HOLDS,
        measurement(value=0.0, low=0.0, high=0.0024, counts="0 of 1,630 runs"),
        section="Section 4",
        says="A width suffices.",
    ),
    judged("lemma-a4", "Lemma A.4", Verdict.HOLDS, measurement(value=-1e-17, low=-1e-17, high=-1e-17, counts="")),
    judged(
        "awkward",
        AWKWARD,
        Verdict.FAILS,
        measurement(value=math.nan, low=math.nan, high=math.nan),
        measurement(value=math.inf, low=1e12, high=math.inf, counts=AWKWARD),
        says=AWKWARD,
        reason=AWKWARD,
    ),
    judged(
        "long",
        "Lemma A.9",
        Verdict.UNDECIDED,
        measurement(value=1234567.0, low=-math.inf, high=math.inf),
        says=LONG,
        reason=LONG,
    ),
    judged("pending", "Figure 4", Verdict.NOT_MEASURED, section="Section 6", reason="There are no results."),
    judged(
        "informal",
        "Theorem 1.1",
        Verdict.NOT_COMPUTABLE,
        section="Section 1",
        study="",
        out_of_scope="Informal: see Corollary 4.5.",
    ),
)


def map_summary(layers=("hidden", "both"), d0=(4, 8, 16), d1=(4, 8, 12, 16, 20)):
    """A map whose probability grows with d0 d1, and its first cell without a run."""
    rows = []
    for name in layers:
        for i, size in enumerate(d0):
            for j, width in enumerate(d1):
                runs = 0 if i == j == 0 else 4
                converged = min(runs, max(0, size * width // 24 - 1))
                share = converged / runs if runs else math.nan
                low, high = (max(0.0, share - 0.4), min(1.0, share + 0.4))
                rows.append(
                    dict(
                        trained_layers=name, d0=size, d1=width, runs=runs, converged=converged, step_limit=0,
                        dead=runs - converged, diverged=0, probability=share, probability_low=low,
                        probability_high=high, proved_global=converged, proved_local=runs - converged, undecided=0,
                    )
                )  # fmt: skip
    return pandas.DataFrame(rows)


def findings(folder: Path):
    """A map with a figure, and a study with neither figure nor name for its configuration."""
    figure = Figure(figsize=(4, 2))
    figure.subplots().plot(np.arange(3.0))
    folder.mkdir(parents=True, exist_ok=True)
    for kind in ("png", "svg"):
        figure.savefig(folder / f"probability.{kind}", dpi=40)
    machine = {"Processor": "a <fast> one", "jax": "0.10.2"}
    command = "python -m sweeps.convergence_map --protocol=as_written --out=DIR"
    table = pandas.DataFrame({"alpha": np.linspace(0, 1, 250), "runs": 3, "text": AWKWARD})
    table.loc[1, "alpha"] = math.nan
    return (
        Finding(
            "map", "The map of Figure 2a", command, "3a9293c3d68a", folder, 33.2, machine,
            ((folder / "probability.svg", "Probability & caption.", "A map with an edge."),), map_summary(),
        ),
        Finding("zeros", AWKWARD, "python -m sweeps.zeros --out=DIR", "", folder, math.nan, {}, (), table),
        Finding("nothing", "Nothing", "python -m sweeps.zeros --out=DIR", "", folder, 0.2, {}, (), None),
    )  # fmt: skip


ABOUT = {"Command": "python -m sweeps.reproduction --out=DIR", "Machine": "2 cores & <more>"}
