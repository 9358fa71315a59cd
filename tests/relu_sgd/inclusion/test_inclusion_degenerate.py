"""The inclusion's stepper where kinks coincide: samples on one line, zero rows, starts on kinks and near saddles."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from programs import fuzz_inclusion
from support import degenerate, small_step_reference
from support.degenerate import Case

from relu_sgd import Params, Problem, inclusion
from relu_sgd.inclusion import Status
from relu_sgd.inclusion._lines import merge


def case(X, Y, W, V, trained_layers, final_time):
    arrays = [np.array(array, float) for array in (W, V, X, Y)]
    return Case(*arrays, trained_layers, final_time, True)


# Crosses at log(3.5) / 2 where four samples of one line meet their kinks and both fields point the same way.
LINE_OF_FOUR = case(
    [[1, 0], [1, 0], [-1, 0], [-1, 0], [1, 1]],
    [[-2.6], [1.6], [3.2], [0], [-0.4]],
    [[1.25], [-1.75]],
    [[1]],
    "hidden",
    3,
)
ENTRY_AND_EXIT = case(
    [[1, 0], [1, 0], [-1, 0], [1, 1]], [[-1.4], [-1.6], [1.6], [2.6]], [[0.95], [-0.25]], [[1]], "hidden", 2
)
BOTH_SIDES_OF_0 = case([[1], [-1]], [[-1], [2]], [[0.5]], [[1]], "hidden", 3)
CASES = [
    (LINE_OF_FOUR, Status.REACHED, [[-1.6 * (1 - np.exp(-2 * (3 - np.log(3.5) / 2)))], [-1.75]]),
    (ENTRY_AND_EXIT, Status.REACHED, [[-0.485888], [2.379089]]),
    (BOTH_SIDES_OF_0, Status.REACHED, [[-2 * (1 - 1.5 * np.exp(-3))]]),
    # V_1 = 0 and V_1' > 0: x_1 begins to repel at once, resting at its kink.
    (case(np.eye(2), [[1], [2]], [[0], [1]], [[0]], "both", 1), Status.BRANCHING, None),
    (case(np.eye(2), [[-1], [2]], [[0], [1]], [[0]], "both", 1), Status.REACHED, None),
    (case([[1], [-1]], [[0.5], [0.5]], [[0]], [[1]], "hidden", 1), Status.BRANCHING, None),
    (case([[1], [-1]], [[0.5], [-0.5]], [[0]], [[1]], "hidden", 1), Status.REACHED, [[0.5 * (1 - np.exp(-1))]]),
    (case([[1], [-1]], [[-0.5], [-0.5]], [[0]], [[1]], "hidden", 1), Status.REACHED, [[0]]),
    (case([[1, 0], [1, 0]], [[1], [-1]], [[0], [1]], [[1]], "hidden", 1), Status.REACHED, [[0], [1]]),
    (case([[1, 0], [0, 0]], [[-1], [3]], [[1], [1]], [[1]], "hidden", 1), Status.REACHED, [[0], [1]]),
    # Three lines in a plane that attract and repel, at W = 0: the velocity is open.
    (case([[1, 0], [0, 1], [1, 1]], [[-1], [-1], [1]], [[0], [0]], [[1]], "hidden", 1), Status.UNDECIDED, None),
    # From W_j = 0, where opposite rays pull; and a sample that would cross only because it has crossed.
    (degenerate.case(687), Status.REACHED, None),
    (degenerate.case(1046), Status.REACHED, None),
    # Neurons that arrive at W_j = 0: they rest there, or cannot tell.
    (degenerate.case(245), Status.REACHED, None),
    (degenerate.case(261), Status.REACHED, None),
    (degenerate.case(402), Status.UNDECIDED, None),
    # A line whose kink repels, and on one side of it the velocity vanishes but for rounding.
    (degenerate.case(2659), Status.BRANCHING, None),
    # One neuron that leaves a saddle, V and W near 0: errors grow by a factor of 300 within the time.
    (degenerate.case(679), Status.UNDECIDED, None),
    *(
        (case(np.eye(2), [[10], [5]], scale * np.array([[1], [0.5]]), [[scale]], "both", 1), Status.REACHED, None)
        for scale in (0.1, 0.01, 1e-4)
    ),
]  # fmt: skip


@pytest.mark.parametrize("tolerance", [1e-2, 1e-4])
def test_named_cases(tolerance):
    """Against closed forms, and against the event-driven integrator where there is none here."""
    ends = fuzz_inclusion.stepper_ends([problem for problem, *_ in CASES], tolerance, batch=30)
    for index, ((problem, status, W), end) in enumerate(zip(CASES, ends, strict=True)):
        assert end.status == status, index
        reference = fuzz_inclusion.event_driven_end(problem)
        assert reference.status in (status, Status.BRANCHING, Status.REACHED), index
        if status == Status.REACHED:
            assert reference.status == status, index
            way = np.linalg.norm(reference.W - problem.W)
            np.testing.assert_allclose(end.W, reference.W, atol=3 * tolerance * way + 1e-12, err_msg=str(index))
            np.testing.assert_allclose(end.V, reference.V, atol=3 * tolerance * way + 1e-12, err_msg=str(index))
        if W is not None:
            np.testing.assert_allclose(reference.W, W, atol=1e-6, err_msg=str(index))


@pytest.mark.parametrize("tolerance", [1e-4, 1e-6])
def test_the_estimated_error_grows_along_the_solution(tolerance):
    problem = degenerate.case(679)
    times = np.linspace(0.5, problem.final_time, 6)
    exact = fuzz_inclusion.solve_event_driven(problem, times).params
    solution = inclusion.solve(
        Params(problem.W, problem.V),
        Problem(problem.X, problem.Y),
        times,
        trained_layers="both",
        tolerance=tolerance,
        stop_at_branching=False,
    )
    distances = np.hypot(*(np.linalg.norm(a - b, axis=(1, 2)) for a, b in zip(solution.params, exact, strict=True)))
    assert distances[-1] > 100 * tolerance * solution.path_length[-1]
    ratios = np.asarray(solution.estimated_error) / distances
    assert ratios.min() > 0.7
    assert ratios.max() < 2
    assert 1 < solution.branched_at < 3


def test_no_wrong_solution():
    """A part of tests/programs/fuzz_inclusion.py: what is reached is what small steps and events reach."""
    cases = degenerate.cases(60, first=5000)
    references = small_step_reference.solve(cases, 1000)
    counts = dict.fromkeys(Status, 0)
    for seed, (problem, reference, end) in enumerate(
        zip(cases, references, fuzz_inclusion.stepper_ends(cases, 1e-4, batch=30), strict=True)
    ):
        counts[end.status] += 1
        if end.status != Status.REACHED:
            continue
        exact = fuzz_inclusion.event_driven_end(problem)
        if exact.status == Status.REACHED:
            apart = max(np.abs(end.W - exact.W).max(), np.abs(end.V - exact.V).max())
            assert apart < 20 * 1e-4 * fuzz_inclusion.size(problem, reference), seed
        assert fuzz_inclusion.is_wrong(problem, reference, end.W, end.V, 20 * 1e-4) is not True, seed
    assert counts[Status.REACHED] >= 0.75 * len(cases)
    assert counts[Status.REACHED] + counts[Status.BRANCHING] + counts[Status.UNDECIDED] == len(cases)


def test_merging():
    rng = np.random.default_rng(1)
    direction = rng.normal(size=3)
    lone = rng.normal(size=(2, 3))
    X = np.concatenate([np.outer([2.0, 0.5, -1.5, -0.3, 1.0], direction), np.zeros((1, 3)), lone])
    Y, V = rng.normal(size=(8, 2)), rng.normal(size=(4, 2))
    lines = jax.jit(merge)(Problem(jnp.asarray(X), jnp.asarray(Y)))
    assert lines.first.tolist() == [0, 0, 2, 2, 0, 5, 6, 7]
    assert lines.multiplicity.tolist() == [3, 0, 2, 0, 0, 0, 1, 1]
    assert lines.opposite.tolist() == [2, 8, 0, 8, 8, 8, 8, 8]
    assert lines.leads.tolist() == [True, False, False, False, False, False, True, True]
    np.testing.assert_array_equal(lines.problem.X[6:], lone)
    np.testing.assert_allclose(np.linalg.norm(lines.problem.X[0]), np.sqrt(5.25) * np.linalg.norm(direction))
    assert float(lines.ratio[0] * lines.ratio[2]) == pytest.approx(1)
    loss = lambda X, Y, W: 0.5 * np.sum((Y - np.maximum(X @ W, 0) @ V) ** 2)
    for W in rng.normal(size=(5, 3, 4)):
        assert loss(X, Y, W) - loss(*map(np.asarray, lines.problem), W) == pytest.approx(float(lines.offset))


def test_generic_samples_stay_what_they_are():
    rng = np.random.default_rng(0)
    X, Y = rng.normal(size=(30, 4)), rng.normal(size=(30, 1))
    X[1] = X[0] + 1e-12 * rng.normal(size=4)  # Near, and told apart.
    lines = merge(Problem(jnp.asarray(X), jnp.asarray(Y)))
    np.testing.assert_array_equal(lines.problem.X, X)
    np.testing.assert_array_equal(lines.problem.Y, Y)
    assert lines.leads.all()
    assert float(lines.offset) == 0
    assert (np.asarray(lines.opposite) == 30).all()


def test_copies_of_samples_have_their_slopes_and_losses():
    (found,) = fuzz_inclusion.stepper_solutions([LINE_OF_FOUR], 1e-4, batch=30)
    exact = fuzz_inclusion.solve_event_driven(LINE_OF_FOUR)
    np.testing.assert_allclose(found.slopes[0, :5, :1], exact.slopes[0], atol=1e-3)
    assert float(found.loss[0]) == pytest.approx(exact.loss[0], rel=1e-3)
    assert int(found.crossings[0]) == len(exact.events) == 4
