"""The two integrators of the inclusion against small steps, on many problems of which half are degenerate.

`python tests/fuzz_inclusion.py --count=2000` prints how often each ended how, and every problem on which a solution that was
reached is not the one of the small steps, where those can be trusted.
"""

import collections
import time

import degenerate
import numpy as np
import small_step_reference
from degenerate import Case
from small_step_reference import Reference

from relu_sgd import Params, Problem, event_driven
from relu_sgd.event_driven import EventDrivenSolution
from relu_sgd.inclusion import Status


def solve_event_driven(case: Case) -> EventDrivenSolution:
    return event_driven.solve(
        Params(case.W, case.V), Problem(case.X, case.Y), np.array([case.final_time]), trained_layers=case.trained_layers
    )


def distance(case: Case, solution, reference: Reference) -> float:
    """Between final weights, relative to the path and the start."""
    W, V = np.asarray(solution.params.W[-1]), np.asarray(solution.params.V[-1])
    size = reference.path + np.linalg.norm(case.W) + np.linalg.norm(case.V)
    return float(max(np.abs(W - reference.W).max(), np.abs(V - reference.V).max()) / size)


def promise(case: Case, reference: Reference) -> float:
    """What small steps promise: a few times their own differences. Infinite where different starts lead elsewhere."""
    size = reference.path + np.linalg.norm(case.W) + np.linalg.norm(case.V)
    return np.inf if reference.uncertainty > 0.03 * size else float(5 * reference.uncertainty / size + 1e-4)


def main() -> None:
    """The whole comparison."""
    import argparse

    import jax

    jax.config.update("jax_enable_x64", True)
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=2000, help="problems")
    parser.add_argument("--first", type=int, default=0, help="seed of the first one")
    parser.add_argument("--num_steps", type=int, default=2000, help="of the small steps, the longer of them")
    arguments = parser.parse_args()
    cases = degenerate.cases(arguments.count, arguments.first)
    began = time.perf_counter()
    references = small_step_reference.solve(cases, arguments.num_steps)
    print(f"small steps: {time.perf_counter() - began:.0f} s", flush=True)
    statuses: dict[bool, collections.Counter] = {False: collections.Counter(), True: collections.Counter()}
    trusted, wrong, worst_energy = 0, [], 0.0
    began = time.perf_counter()
    for seed, (case, reference) in enumerate(zip(cases, references, strict=True), arguments.first):
        start = time.perf_counter()
        try:
            solution = solve_event_driven(case)
        except Exception as error:
            print(f"seed {seed}: {type(error).__name__}: {error}")
            wrong.append(seed)
            continue
        taken = time.perf_counter() - start
        if taken > 5:
            print(f"seed {seed}: {taken:.1f} s, {len(solution.events)} events, {solution.status.name}")
        statuses[case.degenerate][solution.status.name] += 1
        bound = promise(case, reference)
        unique = reference.branch_gap < 1e-5
        if solution.status != Status.REACHED:
            if not case.degenerate or solution.status != Status.BRANCHING:
                print(f"seed {seed}: {solution.status.name} at {solution.stopped_at:.4f}; small steps unique: {unique}")
            elif unique:
                print(f"seed {seed}: {solution.status.name} at {solution.stopped_at:.4f}, small steps do not branch")
            continue
        worst_energy = max(worst_energy, abs(float(solution.energy_residual[-1])))
        found = distance(case, solution, reference)
        if np.isinf(bound):
            print(f"seed {seed}: REACHED, small steps spread: {reference.branch_gap:.2g}, {reference.uncertainty:.2g}")
            continue
        trusted += 1
        if not found <= bound:
            print(f"seed {seed}: REACHED but off by {found:.2g} of the path, promised {bound:.2g}")
            wrong.append(seed)
    print(f"events: {time.perf_counter() - began:.0f} s")
    for is_degenerate, counts in statuses.items():
        print("degenerate" if is_degenerate else "generic", dict(counts))
    print(f"{trusted} reached and compared, {len(wrong)} wrong: {wrong}; energy residual at most {worst_energy:.1e}")


if __name__ == "__main__":
    main()
