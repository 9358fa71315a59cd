"""The event-driven integrator: closed forms, degenerate data, and the faces by which a neuron can leave its kinks."""

import numpy as np
import pytest
from programs import fuzz_inclusion
from support import degenerate, small_step_reference

from relu_sgd import Params, Problem
from relu_sgd.clarke.hull import clarke_hull
from relu_sgd.inclusion import Status, event_driven
from relu_sgd.inclusion._fixed_pattern import training_lines
from relu_sgd.inclusion._kink_faces import Field, continuations


def solve(X, Y, W, V, times, layers="hidden", **keywords):
    arrays = [np.array(array, float) for array in (W, V, X, Y)]
    return event_driven.solve(
        Params(*arrays[:2]), Problem(*arrays[2:]), np.atleast_1d(times), trained_layers=layers, **keywords
    )


def kinds(solution):
    return [(event.sample, event.neuron, event.kind) for event in solution.events]


def test_a_line_of_four_samples_is_crossed_at_once():
    """w_1' = -1 - 2 w_1 up to log(3.5) / 2, where both fields point the same way; then w_1' = -3.2 - 2 w_1."""
    X, Y = [[1, 0], [1, 0], [-1, 0], [-1, 0], [1, 1]], [[-2.6], [1.6], [3.2], [0], [-0.4]]
    found = solve(X, Y, [[1.25], [-1.75]], [[1]], [0.5, 3.0])
    assert found.status == Status.REACHED
    np.testing.assert_allclose([event.time for event in found.events], np.log(3.5) / 2, atol=1e-12)
    assert kinds(found) == [(i, 0, "crossing") for i in range(4)]  # The fifth sample is inactive throughout.
    below = -1.6 * (1 - np.exp(-2 * (3 - np.log(3.5) / 2)))
    np.testing.assert_allclose(found.params.W[:, :, 0], [[-0.5 + 1.75 * np.exp(-1), -1.75], [below, -1.75]], atol=1e-12)
    np.testing.assert_array_equal(found.slopes[1, :, 0], [0, 0, 1, 1, 0])
    np.testing.assert_allclose(found.energy_residual, 0, atol=1e-11)


def test_a_sample_that_met_two_kinks_of_one_line_at_once():
    X, Y = [[1, 0], [1, 0], [-1, 0], [1, 1]], [[-1.4], [-1.6], [1.6], [2.6]]
    found = solve(X, Y, [[0.95], [-0.25]], [[1]], 2.0)
    assert found.status == Status.REACHED
    np.testing.assert_allclose(found.params.W[0, :, 0], [-0.4859, 2.3791], atol=5e-5)
    assert kinds(found) == [(i, 0, kind) for kind in ("entry", "exit") for i in range(3)]


def test_one_sample_on_either_side_of_0():
    """w' = -1 - w down to 0, then w' = -2 - w: both samples cross at log(1.5)."""
    found = solve([[1], [-1]], [[-1], [2]], [[0.5]], [[1]], 3.0)
    assert found.status == Status.REACHED
    assert kinds(found) == [(0, 0, "crossing"), (1, 0, "crossing")]
    np.testing.assert_allclose(found.params.W[0], -2 * (1 - 1.5 * np.exp(-3)), atol=1e-12)


@pytest.mark.parametrize("scale", [0.1, 0.01, 1e-6])
def test_from_near_a_saddle(scale):
    """Along (10, 5) it leaves for the solution w v = (10, 5), and keeps ||w||^2 - v^2."""
    found = solve(np.eye(2), [[10], [5]], scale * np.array([[1], [0.5]]), [[scale]], 5.0, "both")
    assert found.status == Status.REACHED
    np.testing.assert_allclose(found.loss, 0, atol=1e-12)
    np.testing.assert_allclose(found.energy_residual, 0, atol=1e-10)
    W, V = found.params.W[0], found.params.V[0]
    np.testing.assert_allclose(np.sum(W**2) - np.sum(V**2), 0.25 * scale**2, atol=1e-11)


@pytest.mark.parametrize("layers", ["hidden", "both"])
def test_rows_that_are_zero_have_no_kinks(layers):
    rng = np.random.default_rng(0)
    X, Y, W, V = (rng.normal(size=shape) for shape in ((5, 2), (5, 1), (2, 2), (2, 1)))
    X[2] = 0
    with_zero = solve(X, Y, W, V, [0.5, 3.0], layers)
    keep = np.delete(np.arange(5), 2)
    without = solve(X[keep], Y[keep], W, V, [0.5, 3.0], layers)
    assert len(without.events) > 0
    np.testing.assert_allclose(with_zero.params.W, without.params.W, atol=1e-12)
    np.testing.assert_allclose(with_zero.loss, without.loss + 0.5 * Y[2] @ Y[2], atol=1e-12)
    assert [event.sample for event in with_zero.events] == [keep[event.sample] for event in without.events]
    assert not with_zero.slopes[:, 2].any()
    assert not with_zero.sliding[:, 2].any()


def test_nothing_to_learn():
    found = solve(np.zeros((2, 2)), [[1], [2]], [[1], [1]], [[1]], 1.0, "both")
    assert found.status == Status.REACHED
    assert found.loss == pytest.approx(2.5)
    np.testing.assert_array_equal(found.params.W[0], [[1], [1]])


def test_parallel_samples_act_as_one():
    rng = np.random.default_rng(1)
    direction, V = rng.normal(size=3), rng.normal(size=(4, 2))
    X = np.concatenate([np.outer([2.0, 0.5, -1.5, -0.3, 1.0], direction), rng.normal(size=(3, 3)), np.zeros((1, 3))])
    Y, W = rng.normal(size=(9, 2)), rng.normal(size=(3, 4))
    lines = training_lines(X, Y)
    assert len(lines.X) == 5
    assert len(lines.units) == 4
    loss = lambda X, Y, W: 0.5 * np.sum((Y - np.maximum(X @ W, 0) @ V) ** 2)
    gaps = [loss(X, Y, W) - loss(lines.X, lines.Y, W) for W in rng.normal(size=(20, 3, 4))]
    np.testing.assert_allclose(gaps, gaps[0], atol=1e-12)
    np.testing.assert_allclose(
        X,
        np.where(lines.sample_orientation[:, None] == 0, 0, 1)
        * np.linalg.norm(X, axis=1)[:, None]
        * lines.sample_orientation[:, None]
        * lines.units[lines.sample_line],
        atol=1e-14,
    )
    split = solve(np.concatenate([X, X]), np.concatenate([Y, Y]), W, V, 2.0)
    twice = solve(np.sqrt(2) * X, np.sqrt(2) * Y, W, V, 2.0)
    np.testing.assert_allclose(split.params.W, twice.params.W, atol=1e-11)
    assert len(split.events) == 2 * len(twice.events) > 0


def test_a_held_pair_has_slopes_that_add_up_to_1():
    """Both push towards 0: the multiplier r of x and 1 - r of -x hold it, against what the third sample adds."""
    found = solve([[1, 0], [-2, 0], [0.5, 1]], [[-1], [-1], [1]], [[0.2], [0.5]], [[1]], 1.0)
    assert found.status == Status.REACHED
    assert found.sliding[0, :, 0].tolist() == [True, True, False]
    r, other, active = found.slopes[0, :, 0]
    assert active == 1
    assert r + other == pytest.approx(1)
    E = 1 - found.params.W[0, 1, 0]
    assert -r + 2 * other + 0.5 * E == pytest.approx(0, abs=1e-10)


def test_several_neurons_and_lines_in_one_event():
    """Copies of a neuron and orthogonal samples of one size meet their kinks at the same time."""
    W = np.array([[1.0, 1.0], [1.0, 1.0]])
    found = solve(np.eye(2), [[-1], [-1]], W, [[0.5], [0.5]], 10.0)
    assert found.status == Status.REACHED
    assert sorted(kinds(found)) == [(i, j, "entry") for i in range(2) for j in range(2)]
    assert np.ptp([event.time for event in found.events]) < 1e-12
    np.testing.assert_allclose(found.params.W[0], 0, atol=1e-15)


@pytest.mark.parametrize(
    ("X", "Y", "W", "V", "layers", "status"),
    [
        (np.eye(2), [[1], [2]], [[0], [1]], [[0]], "both", Status.BRANCHING),  # V_1' > 0.
        (np.eye(2), [[-1], [2]], [[0], [1]], [[0]], "both", Status.REACHED),  # It is held by a multiplier 0.
        ([[1, 0], [0, 1]], [[1], [2]], [[0], [1]], [[0]], "hidden", Status.REACHED),  # V_1 = 0 for ever.
        ([[1], [-1]], [[0.5], [0.5]], [[0]], [[1]], "hidden", Status.BRANCHING),
        ([[1], [-1]], [[0.5], [-0.5]], [[0]], [[1]], "hidden", Status.REACHED),  # Both push to the right.
        ([[1], [-1]], [[-0.5], [-0.5]], [[0]], [[1]], "hidden", Status.REACHED),  # Both hold it.
        ([[1, 0], [1, 0]], [[1], [-1]], [[0], [1]], [[1]], "hidden", Status.REACHED),  # They cancel.
        ([[1, 0], [1, 0]], [[1], [-0.9]], [[0], [1]], [[1]], "hidden", Status.BRANCHING),  # They do not.
        ([[1, 2], [3, 4]], [[1], [2]], [[0], [0]], [[0]], "both", Status.REACHED),  # A saddle, left by nothing.
    ],
)
def test_starts_on_kinks(X, Y, W, V, layers, status):
    found = solve(X, Y, W, V, 1.0, layers)
    assert found.status == status
    assert found.stopped_at == (1 if status == Status.REACHED else 0)


def test_both_push_to_the_right():
    found = solve([[1], [-1]], [[0.5], [-0.5]], [[0]], [[1]], 1.0)
    np.testing.assert_allclose(found.params.W[0], 0.5 * (1 - np.exp(-1)), atol=1e-12)


def test_what_the_first_order_leaves_open_the_second_decides():
    """On the kink of x_1 = (1, 0) with E_2 = 0, x_2 = (1, 1): no speed and no multiplier, until x_3 = (0, 1) moves w_2.

    Then E_2 becomes negative or positive, and w_1 sinks below its kink, or is held there by a multiplier that grows
    from 0.
    """
    X = np.array([[1.0, 0.0], [1.0, 1.0], [0.0, 1.0]])
    for pull, side in ((1.0, 0), (-1.0, -1)):
        found = solve(X, [[-5.0], [1.0], [1.0 - pull]], [[0.0], [1.0]], [[1.0]], 0.3)
        assert found.status == Status.REACHED
        z = found.params.W[0, 0, 0]
        assert np.sign(np.round(z, 12)) == side
        assert found.sliding[0, 0, 0] == (side == 0)


# Three rows with angles of 120 degrees between them.
STAR = np.stack([np.cos(np.pi * np.array([0, 2, 4]) / 3), np.sin(np.pi * np.array([0, 2, 4]) / 3)], axis=1)


@pytest.mark.parametrize(
    ("X", "Y", "status"),
    [
        (STAR, [-1, -1, -1], Status.REACHED),
        (STAR, [1, 1, 1], Status.BRANCHING),
        ([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]], [1, 1, -1], Status.BRANCHING),
        # A weak pull between strong ones that hold.
        (np.concatenate([STAR, STAR[:1] + 0.05 * STAR[1:2]]), [-1, -1, -1, 0.3], Status.REACHED),
    ],
)
def test_dependent_lines_are_held_where_the_loss_grows_along_all_rays(X, Y, status):
    start, X, Y = Params(np.zeros((2, 1)), np.ones((1, 1))), np.array(X), np.array(Y, float)[:, None]
    assert clarke_hull(start, Problem(X, Y), 0).contains(np.zeros(2))
    found = solve(X, Y, *start, 1.0)
    assert found.status == status
    if status == Status.REACHED:
        np.testing.assert_array_equal(found.params.W[0], 0)
        assert found.sliding.all()


def test_the_product_set_would_rest_where_no_clarke_solution_does():
    """All slopes 0 are in Lemma A.4's set at W = 0, but every cell pulls along x_1: w = 0.4 (1 - exp(-t)) x_1."""
    Y = np.array([[0.4], [-1], [-1]])
    start = Params(np.zeros((2, 1)), np.ones((1, 1)))
    assert not clarke_hull(start, Problem(STAR, Y), 0).contains(np.zeros(2))
    found = solve(STAR, Y, *start, 1.0)
    assert found.status == Status.REACHED
    np.testing.assert_allclose(found.params.W[0, :, 0], 0.4 * (1 - np.exp(-1)) * STAR[0], atol=1e-12)


def critical_points_of_the_plane(field, count=20_000):
    """Of psi where it is negative, on a fine circle, by its one-sided slopes; and whether 0 is in the hull of all
    velocities.
    """
    angles = (np.arange(count) + 0.5) * 2 * np.pi / count
    directions = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    sides = np.sign(directions @ field.units.T)
    velocities = field.free + np.where(sides > 0, field.above, field.below) @ field.units
    psi = -np.sum(directions * velocities, axis=1)
    rise = np.diff(psi, append=psi[:1]) > 0
    turns = np.flatnonzero(rise != np.roll(rise, 1))
    stays = bool((np.max(velocities[:: count // 2000] @ directions[:: count // 2000].T, axis=0) >= 0).all())
    return int(np.sum(psi[turns] < 0)), stays


def test_continuations_are_the_critical_points_in_the_plane():
    rng = np.random.default_rng(3)
    seen = []
    for _ in range(100):
        K = rng.integers(1, 6)
        angles = rng.uniform(0, np.pi, K)
        units = np.stack([np.cos(angles), np.sin(angles)], axis=1)
        below = rng.normal(size=K) * (rng.random(K) < 0.5)
        field = Field(units, rng.normal(size=K), below, (0.5 * rng.normal(size=2)) * (rng.random() < 0.7))
        if K == 1:
            field = field._replace(free=rng.normal() * units[0])  # Within the span of the line.
        leaving, stays = critical_points_of_the_plane(field) if K > 1 else line_points(field)
        found = continuations(field, 1e-9)
        if leaving + stays == 1:
            assert not isinstance(found, Status)
            assert len(found) == 1
            assert bool(np.linalg.norm(found[0].velocity) < 1e-9) == stays
        else:
            # Or a kink without multiplier and speed, which is a tie when nothing but this order is known.
            assert found == Status.BRANCHING or len(found) > 1
        seen.append((min(leaving, 2), stays))
    assert len(set(seen)) == 5  # All that can be: none and staying, one or more with and without.


def line_points(field):
    low, high = (float(field.free @ field.units[0] + side[0]) for side in (field.below, field.above))
    return int(high > 0) + int(low < 0), min(low, high) <= 0 <= max(low, high)


@pytest.mark.parametrize("seed", range(3))
def test_the_order_of_samples_and_their_copies_do_not_matter(seed):
    rng = np.random.default_rng(seed)
    X, Y = rng.normal(size=(6, 3)), rng.normal(size=(6, 1))
    W, V = rng.normal(size=(3, 3)), rng.normal(size=(3, 1))
    # Split samples: x = (3, 4) / 5 of it, labels in the same ratio.
    split_X, split_Y = np.concatenate([0.6 * X, 0.8 * X]), np.concatenate([0.6 * Y, 0.8 * Y])
    order = rng.permutation(12)
    plain = solve(X, Y, W, V, [1.0, 3.0], "both")
    split = solve(split_X[order], split_Y[order], W, V, [1.0, 3.0], "both")
    assert plain.status == split.status == Status.REACHED
    np.testing.assert_allclose(split.params.W, plain.params.W, atol=1e-10)
    assert len(split.events) == 2 * len(plain.events) > 0
    np.testing.assert_allclose(split.slopes, plain.slopes[:, order % 6], atol=1e-8)


def test_what_is_not_finite_any_more_diverges():
    found = solve([[1.0]], [[-1e200]], [[1.0]], [[1e200]], 1.0)
    assert found.status == Status.DIVERGED
    assert not len(found.times)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (dict(W=[[np.nan], [1]]), "W of shape"),
        (dict(X=[[1, np.inf]]), "X of shape"),
        (dict(V=[[1], [1]]), "V"),
        (dict(times=[1.0, 1.0]), "increase"),
        (dict(layers="none"), "trained_layers"),
        (dict(kink_tolerance=-1.0), "kink_tolerance"),
    ],
)
def test_bad_arguments(change, words):
    with pytest.raises(ValueError, match=words):
        solve(**{"X": [[1, 0]], "Y": [[1]], "W": [[1], [1]], "V": [[1]], "times": 1.0, **change})


def test_the_limit_of_events():
    rng = np.random.default_rng(1)
    arrays = [rng.normal(size=shape) for shape in ((10, 3), (10, 1), (3, 4), (4, 1))]
    full = solve(*arrays, 3.0)
    assert full.status == Status.REACHED
    few = solve(*arrays, 3.0, max_events=3)
    assert few.status == Status.MAX_STEPS_REACHED
    assert few.events == full.events[:3]
    assert few.stopped_at == full.events[2].time


def test_small_steps_agree():
    """A part of tests/programs/fuzz_inclusion.py, whose problems are degenerate in every way that it knows."""
    cases = degenerate.cases(60, first=5000)
    references = small_step_reference.solve(cases, 1000)
    counts = dict.fromkeys(Status, 0)
    for seed, (case, reference) in enumerate(zip(cases, references, strict=True)):
        found = fuzz_inclusion.solve_event_driven(case)
        counts[found.status] += 1
        if found.status != Status.REACHED:
            continue
        assert abs(found.energy_residual[-1]) < 1e-9 * (1 + found.loss[0] + reference.path**2), seed
        W, V = (np.asarray(array)[-1] for array in found.params)
        assert fuzz_inclusion.is_wrong(case, reference, W, V) is False, seed
    assert counts[Status.REACHED] + counts[Status.BRANCHING] == len(cases)
    assert counts[Status.REACHED] >= 0.8 * len(cases)
