"""Both integrators of the inclusion against small steps, on many small problems of which half are degenerate.

`python tests/programs/fuzz_inclusion.py --count=2000` prints how often each ended how, and every problem on which a
solution that was reached is not that of the small steps, where those can be trusted, or on which the two integrators
differ.
"""

import argparse
import collections
import functools
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

sys.path[:0] = [str(Path(__file__).parents[2]), str(Path(__file__).parents[1])]

from support import degenerate, small_step_reference
from support.degenerate import Case
from support.small_step_reference import Reference

from relu_sgd import Params, Problem, inclusion
from relu_sgd.inclusion import Status, event_driven
from relu_sgd.inclusion.event_driven import EventDrivenSolution


class End(NamedTuple):
    """How an integration ended: a status, the time, and the weights (NaN where the final time was not reached)."""

    status: Status
    stopped_at: float
    W: np.ndarray
    V: np.ndarray


def solve_event_driven(case: Case, times: np.ndarray | None = None) -> EventDrivenSolution:
    """At the final time, unless others are given."""
    times = np.array([case.final_time]) if times is None else times
    return event_driven.solve(
        Params(case.W, case.V), Problem(case.X, case.Y), times, trained_layers=case.trained_layers
    )


def event_driven_end(case: Case) -> End:
    found = solve_event_driven(case)
    if not len(found.times):
        return End(found.status, found.stopped_at, np.full_like(case.W, np.nan), np.full_like(case.V, np.nan))
    return End(found.status, found.stopped_at, np.asarray(found.params.W[-1]), np.asarray(found.params.V[-1]))


@functools.cache
def _stepper(layers: str) -> Callable:
    """Compiled once for all problems of a set-up, which are padded to one shape."""
    import jax

    solve = functools.partial(inclusion.solve, trained_layers=layers, max_steps=20_000)
    # One after the other: side by side all would take the steps of the slowest.
    return jax.jit(lambda runs, tolerance: jax.lax.map(lambda run: solve(*run, tolerance=tolerance), runs))


def stepper_solutions(cases: Sequence[Case], tolerance: float, batch: int = 100) -> list[inclusion.Solution]:
    """Every problem's solution at its final time, in arrays that are still padded."""
    import jax

    solutions: dict[int, inclusion.Solution] = {}
    for layers in ("hidden", "both"):
        chosen = [index for index, case in enumerate(cases) if case.trained_layers == layers]
        for start in range(0, len(chosen), batch):
            few = chosen[start : start + batch]
            filled = few + few[:1] * (batch - len(few))
            W, V, X, Y = small_step_reference.padded([cases[index] for index in filled])
            times = np.array([[cases[index].final_time] for index in filled])
            found = jax.device_get(_stepper(layers)((Params(W, V), Problem(X, Y), times), tolerance))
            for row, index in enumerate(few):
                solutions[index] = jax.tree.map(lambda leaf, row=row: leaf[row], found)
    return [solutions[index] for index in range(len(cases))]


def stepper_ends(cases: Sequence[Case], tolerance: float, batch: int = 100) -> list[End]:
    """What `stepper_solutions` end with."""
    return [
        End(
            Status(int(found.status)),
            float(found.times[-1]),
            found.params.W[-1, : case.W.shape[0], : case.W.shape[1]],
            found.params.V[-1, : case.V.shape[0], : case.V.shape[1]],
        )
        for case, found in zip(cases, stepper_solutions(cases, tolerance, batch), strict=True)
    ]


def size(case: Case, reference: Reference) -> float:
    """What errors are relative to: the path and the start."""
    return reference.path + float(np.linalg.norm(case.W) + np.linalg.norm(case.V))


def distance(case: Case, reference: Reference, W: np.ndarray, V: np.ndarray) -> float:
    """Between final weights, relative to `size`."""
    return float(max(np.abs(W - reference.W).max(), np.abs(V - reference.V).max()) / size(case, reference))


def promise(case: Case, reference: Reference) -> float:
    """What small steps promise: a few times their own differences; infinite where these are large."""
    relative = reference.uncertainty / size(case, reference)
    return np.inf if relative > 0.02 else 5 * relative + 1e-4


def is_wrong(case: Case, reference: Reference, W: np.ndarray, V: np.ndarray, allowed: float = 0.0) -> bool | None:
    """Whether a solution differs from small steps by more than they promise and is allowed; None if they promise
    nothing.

    Small steps that happen to agree with each other may still be too long: where in doubt, shorter ones decide.
    """
    for finer in (1, 8, 32):
        if finer > 1:
            reference = small_step_reference.solve([case], small_step_reference.NUM_STEPS * finer)[0]
        if distance(case, reference, W, V) <= promise(case, reference) + allowed < np.inf:
            return False
    return True if np.isfinite(promise(case, reference)) else None


def is_solution(case: Case, num_segments: int = 30) -> bool:
    """Whether small steps from anywhere on the event-driven solution follow it for a while.

    Where a preactivation is held at 0 and the field on one side all but vanishes, small steps stay there, off by their
    own length, long after the solution has left: they agree with each other and are wrong, but not from a start on the
    solution.
    """
    times = np.linspace(0, case.final_time, num_segments + 1)
    found = solve_event_driven(case, times)
    W, V = (np.asarray(array) for array in found.params)
    pieces = [case._replace(W=w, V=v, final_time=times[1]) for w, v in zip(W[:-1], V[:-1], strict=True)]
    references = small_step_reference.solve(pieces)
    whole = np.linalg.norm(W[0]) + np.linalg.norm(V[0]) + sum(reference.path for reference in references)
    gaps = [
        max(np.abs(w - reference.W).max(), np.abs(v - reference.V).max()) - 5 * reference.uncertainty
        for w, v, reference in zip(W[1:], V[1:], references, strict=True)
    ]
    return max(gaps) <= 1e-5 * whole and max(reference.uncertainty for reference in references) <= 1e-3 * whole


def report(
    name: str, cases: Sequence[Case], references: Sequence[Reference], ends: Sequence[End], first: int, allowed: float
):
    """Prints what one integrator did; returns the seeds of wrong answers."""
    wrong, compared = [], 0
    counts: dict[str, collections.Counter] = {"generic": collections.Counter(), "degenerate": collections.Counter()}
    for seed, (case, reference, end) in enumerate(zip(cases, references, ends, strict=True), first):
        counts["degenerate" if case.degenerate else "generic"][end.status.name] += 1
        if end.status == Status.REACHED:
            verdict = is_wrong(case, reference, end.W, end.V, allowed)
            if verdict is not False and name == "events" and is_solution(case):
                verdict = False
            compared += verdict is not None
            if verdict is None:
                print(f"{name}, seed {seed}: REACHED, but small steps part by {reference.branch_gap:.2g}")
            elif verdict:
                print(
                    f"{name}, seed {seed}: REACHED, but off by "
                    f"{distance(case, reference, end.W, end.V):.2g} of the path"
                )
                wrong.append(seed)
        elif end.status != Status.BRANCHING or reference.branch_gap < 1e-3 * size(case, reference):
            print(f"{name}, seed {seed}: {end.status.name} at {end.stopped_at:.4f}, where small steps agree")
    print(f"{name}: { ({kind: dict(count) for kind, count in counts.items()}) }; {compared} compared, wrong: {wrong}")
    return wrong


def main() -> None:
    """The whole comparison."""
    import jax

    jax.config.update("jax_enable_x64", True)
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=2000, help="problems")
    parser.add_argument("--first", type=int, default=0, help="seed of the first one")
    parser.add_argument("--tolerance", type=float, default=1e-4, help="of the stepper")
    parser.add_argument("--allowed", type=float, default=1e-2, help="the stepper's error, as a share of the path")
    parser.add_argument("--only", choices=("events", "stepper"), help="one of the integrators")
    arguments = parser.parse_args()
    cases = degenerate.cases(arguments.count, arguments.first)

    def timed(name: str, work: Callable):
        began = time.perf_counter()
        result = work()
        print(f"{name}: {time.perf_counter() - began:.0f} s", flush=True)
        return result

    references = timed("small steps", lambda: small_step_reference.solve(cases))
    found = {}
    if arguments.only != "stepper":
        found["events"] = timed("events", lambda: [event_driven_end(case) for case in cases])
        report("events", cases, references, found["events"], arguments.first, 0.0)
    if arguments.only != "events":
        found["stepper"] = timed("stepper", lambda: stepper_ends(cases, arguments.tolerance))
        report("stepper", cases, references, found["stepper"], arguments.first, arguments.allowed)
    if len(found) == 2:
        for seed, (case, reference, a, b) in enumerate(
            zip(cases, references, *found.values(), strict=True), arguments.first
        ):
            if a.status == b.status == Status.REACHED:
                apart = max(np.abs(a.W - b.W).max(), np.abs(a.V - b.V).max()) / size(case, reference)
                if apart > arguments.allowed:
                    print(f"seed {seed}: both REACHED, {apart:.2g} of the path apart")
            elif a.status != b.status:
                print(
                    f"seed {seed}: events {a.status.name} at {a.stopped_at:.4f}, "
                    f"stepper {b.status.name} at {b.stopped_at:.4f}"
                )


if __name__ == "__main__":
    main()
