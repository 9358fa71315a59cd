"""The differential inclusion: closed forms, the event-driven reference, measured orders, audits, statuses."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy.linalg import expm
from scipy.optimize import brentq

from relu_sgd import Params, Problem, descend, inclusion
from relu_sgd.clarke import subdifferential
from relu_sgd.inclusion import Status, event_driven
from relu_sgd.initialization import balanced_sign_output, lecun_output, normal_hidden
from relu_sgd.problem import balanced_labels, sphere_rows

solve = jax.jit(inclusion.solve, static_argnames=("trained_layers", "max_steps", "max_kinks", "stop_at_branching"))


def hidden(params, problem, times, **keywords):
    return solve(params, problem, jnp.asarray(times, float), trained_layers="hidden", **keywords)


def drawn(seed, N, d0, d1, layers):
    keys = jax.random.split(jax.random.key(seed), 4)
    problem = Problem(sphere_rows(keys[0], N, d0), balanced_labels(keys[1], N))
    V = balanced_sign_output(d1) if layers == "hidden" else lecun_output(keys[3], d1)
    return Params(normal_hidden(keys[2], d0, d1), V), problem


def test_a_second_call_compiles_nothing(caplog):
    """Outside of jit."""
    problem = Problem(jnp.eye(2), jnp.ones((2, 1)))
    ends = []
    for V in (1.0, 2.0):
        with jax.log_compiles(bool(ends)):
            ends.append(inclusion.solve(Params(jnp.ones((2, 1)), jnp.full((1, 1), V)), problem, 0.5))
    assert ends[0].loss != ends[1].loss
    assert not [record.message for record in caplog.records if "XLA compilation" in record.message]


class EntryAndExit:
    """One neuron in the plane whose first sample begins to slide and later leaves downwards, in closed form.

    V = 1, x_1 = (1, 0), x_2 = (a, b), x_3 = (0, 1), all active at first. The flow is linear until z_1 = 0; then z_1 is
    held by r_1 = a e_2 / |y_1| until e_2 = 0; from there sample 1 is inactive.
    """

    a, b = 0.6, 0.8
    y = np.array([-1.0, 1.0, 3.0])
    start = np.array([0.3, 0.1])
    final = 3.0

    def __init__(self):
        self.X = np.array([[1.0, 0.0], [self.a, self.b], [0.0, 1.0]])
        self.params = Params(jnp.asarray(self.start)[:, None], jnp.ones((1, 1)))
        self.problem = Problem(jnp.asarray(self.X), jnp.asarray(self.y)[:, None])
        self.entry = brentq(lambda t: self.linear(self.start, [0, 1, 2], t)[0], 1e-9, 1, xtol=1e-15)
        self.w_entry = self.linear(self.start, [0, 1, 2], self.entry)[1]
        rate = self.b**2 + 1
        self.rest = (self.b * self.y[1] + self.y[2]) / rate
        self.exit = self.entry + np.log((self.rest - self.w_entry) / (self.rest - self.y[1] / self.b)) / rate
        self.rate = rate

    def linear(self, start, active, duration):
        X, y = self.X[active], self.y[active]
        fixed = np.linalg.lstsq(X.T @ X, X.T @ y, rcond=None)[0]
        return fixed + expm(-X.T @ X * duration) @ (start - fixed)

    def at(self, t):
        if t <= self.entry:
            return self.linear(self.start, [0, 1, 2], t)
        sliding = np.array(
            [0.0, self.rest + (self.w_entry - self.rest) * np.exp(-self.rate * (min(t, self.exit) - self.entry))]
        )
        return sliding if t <= self.exit else self.linear(sliding, [1, 2], t - self.exit)

    def multiplier(self, t):
        return self.a * (self.y[1] - self.b * self.at(t)[1])


exact = functools.cache(EntryAndExit)


def test_the_closed_form_enters_and_leaves():
    problem = exact()
    assert 0.3 < problem.entry < 0.4 < problem.exit < 0.5
    assert 0 < problem.multiplier(problem.entry + 1e-9) < 1


def errors_of(steps, times, truth, params, problem):
    found = []
    for h in steps:
        solution = hidden(params, problem, times, step_size=h)
        assert solution.status == Status.REACHED
        found.append(max(np.abs(w[:, 0] - truth(t)).max() for w, t in zip(solution.params.W, times, strict=True)))
    return np.array(found)


def order(steps, errors):
    return np.polyfit(np.log(steps), np.log(errors), 1)[0]


def test_order_through_entry_and_exit_is_two():
    problem, steps = exact(), np.array([0.08, 0.04, 0.02, 0.01, 0.005, 0.0025])
    errors = errors_of(steps, [0.4, 0.6, 1.5], problem.at, problem.params, problem.problem)
    assert order(steps, errors) > 2 - 0.15
    assert errors[-1] < 4e-6


def test_the_error_is_what_the_tolerance_says():
    problem, times = exact(), [0.4, 0.6, 1.5]
    errors, tolerances = [], np.array([1e-3, 1e-4, 1e-5, 1e-6])
    for tolerance in tolerances:
        solution = hidden(problem.params, problem.problem, times, tolerance=tolerance)
        assert (np.asarray(solution.estimated_error) <= tolerance * np.asarray(solution.path_length)).all()
        distances = [np.linalg.norm(W[:, 0] - problem.at(t)) for W, t in zip(solution.params.W, times, strict=True)]
        assert (np.array(distances) < 8 * np.asarray(solution.estimated_error)).all()
        errors.append(max(distances) / float(solution.path_length[-1]))
    assert abs(order(tolerances, errors) - 1) < 0.3
    straight = sum(
        np.linalg.norm(problem.at(b) - problem.at(a)) for a, b in itertools.pairwise(np.linspace(0, 1.5, 2001))
    )
    assert float(solution.path_length[-1]) == pytest.approx(straight, rel=1e-5)


def test_order_inside_a_pattern_is_two():
    problem, steps = exact(), np.array([0.05, 0.025, 0.0125, 0.00625])
    before = errors_of(steps, [0.1], problem.at, problem.params, problem.problem)
    assert abs(order(steps, before) - 2) < 0.15
    params = Params(jnp.asarray(problem.at(problem.exit + 0.01))[:, None], jnp.ones((1, 1)))
    after = errors_of(steps, [1.0], lambda t: problem.at(problem.exit + 0.01 + t), params, problem.problem)
    assert abs(order(steps, after) - 2) < 0.15


def test_what_slides_is_held_at_zero_by_its_multiplier():
    problem, times = exact(), [0.2, 0.4, 0.6, 3.0]
    solution = hidden(problem.params, problem.problem, times, tolerance=1e-6)
    assert np.asarray(solution.sliding)[:, 0, 0].tolist() == [problem.entry < t < problem.exit for t in times]
    for t, W, slopes in zip(times, solution.params.W, solution.slopes, strict=True):
        if problem.entry < t < problem.exit:
            assert abs(W[0, 0]) < 1e-15
            assert slopes[0, 0] == pytest.approx(problem.multiplier(t), abs=1e-5)
    assert (int(solution.entries[-1]), int(solution.exits[-1]), int(solution.crossings[-1])) == (1, 1, 0)
    assert int(solution.pattern_changes[-1]) == 1


def test_event_driven_solution_is_exact():
    problem, times = exact(), np.array([0.1, 0.4, 0.6, 1.5, 3.0])
    solution = event_driven.solve(problem.params, problem.problem, times, trained_layers="hidden")
    for t, W, slopes in zip(times, solution.params.W, solution.slopes, strict=True):
        np.testing.assert_allclose(W[:, 0], problem.at(t), atol=1e-9)
        if problem.entry < t < problem.exit:
            assert slopes[0, 0] == pytest.approx(problem.multiplier(t), abs=1e-9)
    assert [(e.kind, e.sample, e.neuron) for e in solution.events] == [("entry", 0, 0), ("exit", 0, 0)]
    np.testing.assert_allclose([e.time for e in solution.events], [problem.entry, problem.exit], atol=1e-9)
    np.testing.assert_allclose(solution.energy_residual, 0, atol=1e-9)


# One neuron on the line, samples +-1, labels -1: w(t) = (1 + w0) exp(-t) - 1 until it is 0, for ever. A second
# coordinate that touches no kink keeps its exponential.
LINE = Problem(jnp.array([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0]]), jnp.array([[-1.0], [-1.0], [3.0]]))
LINE_START = Params(jnp.array([[2.0], [1.0]]), jnp.ones((1, 1)))


def line(t):
    return np.array([3 * np.exp(-t) - 1 if t < np.log(3) else 0.0, 3 - 2 * np.exp(-t)])


@pytest.mark.parametrize("t", [0.5, 1.0, 1.2, 4.0])
def test_the_neuron_on_the_line(t):
    event = event_driven.solve(LINE_START, LINE, np.array([t]), trained_layers="hidden")
    np.testing.assert_allclose(event.params.W[0][:, 0], line(t), atol=1e-9)
    stepped = hidden(LINE_START, LINE, [t], step_size=0.001)
    np.testing.assert_allclose(stepped.params.W[0][:, 0], line(t), atol=1e-5)
    if t > np.log(3):
        assert abs(stepped.params.W[0, 0, 0]) < 1e-12


def test_descent_chatters_where_the_inclusion_rests():
    rate = 0.05
    run = descend(
        LINE_START, LINE, num_steps=200, trained_layers="hidden", optimizer=optax.sgd(rate), measure=lambda p: p.W[0, 0]
    )
    late = np.asarray(run.measurements)[-20:]
    assert 0.1 * rate < np.abs(late).max() <= rate
    assert float(hidden(LINE_START, LINE, [10.0], step_size=rate).params.W[0, 0, 0]) == pytest.approx(0, abs=1e-12)


def test_fixed_pattern_is_a_matrix_exponential():
    """E' = -K E with K = (X X^T) o (M diag(v)^2 M^T), as long as no preactivation meets 0."""
    params, problem = drawn(5, 6, 8, 5, "hidden")
    X, Y, W, V = (np.asarray(a) for a in (*problem, *params))
    M = (X @ W > 0).astype(float)
    K = (X @ X.T) * ((M * V[:, 0] ** 2) @ M.T)
    E = Y - np.maximum(X @ W, 0) @ V
    t = 0.02
    for solution in (
        event_driven.solve(params, problem, np.array([t]), trained_layers="hidden"),
        hidden(params, problem, [t], step_size=t / 512),
    ):
        found = Y - np.maximum(X @ np.asarray(solution.params.W[0]), 0) @ V
        np.testing.assert_allclose(found, expm(-K * t) @ E, atol=1e-9)


@pytest.mark.parametrize(
    ("layers", "seed", "size", "times"),
    [
        ("hidden", 2, (20, 5, 10), [1.0, 5.0, 20.0]),
        ("hidden", 0, (12, 3, 6), [1.0, 5.0]),
        ("both", 2, (12, 4, 6), [0.5, 1.5, 3.0]),
    ],
)
def test_the_two_integrators_agree(layers, seed, size, times):
    params, problem = drawn(seed, *size, layers)
    reference = event_driven.solve(params, problem, np.array(times), trained_layers=layers)
    assert reference.status == Status.REACHED
    assert len(reference.events) >= 3
    np.testing.assert_allclose(reference.energy_residual, 0, atol=1e-11)
    for tolerance in (1e-3, 1e-6):
        solution = solve(params, problem, jnp.array(times), trained_layers=layers, tolerance=tolerance)
        assert solution.status == Status.REACHED
        distance = float(np.abs(solution.params.W - reference.params.W).max())
        assert distance < 5 * tolerance * float(solution.path_length[-1])
    np.testing.assert_array_equal(solution.sliding, reference.sliding)
    np.testing.assert_allclose(solution.slopes, reference.slopes, atol=1e-3)
    np.testing.assert_allclose(solution.loss, reference.loss, rtol=1e-4)
    kinds = [event.kind for event in reference.events]
    # Where a multiplier grazes its bound the stepper may leave and come back; what is left in is the same.
    entries, exits = int(solution.entries[-1]), int(solution.exits[-1])
    assert entries - exits == kinds.count("entry") - kinds.count("exit")
    assert kinds.count("entry") <= entries <= 1.2 * kinds.count("entry") + 1


def test_two_outputs():
    keys = jax.random.split(jax.random.key(1), 4)
    problem = Problem(sphere_rows(keys[0], 10, 4), balanced_labels(keys[1], 10, 2))
    params = Params(normal_hidden(keys[2], 4, 6), lecun_output(keys[3], 6, 2))
    reference = event_driven.solve(params, problem, np.array([1.0, 4.0]), trained_layers="hidden")
    solution = hidden(params, problem, [1.0, 4.0], tolerance=1e-6)
    np.testing.assert_allclose(solution.params.W, reference.params.W, atol=3e-5)
    assert reference.sliding[-1].sum() > 0
    np.testing.assert_array_equal(solution.sliding, reference.sliding)


def test_audits_of_both_layers():
    params, problem = drawn(0, 6, 3, 8, "both")
    times = jnp.linspace(0.1, 3.0, 30)
    coarse = solve(params, problem, times, trained_layers="both", tolerance=1e-2)
    fine = solve(params, problem, times, trained_layers="both", tolerance=1e-6)
    initial = 0.5 * float(jnp.sum((problem.Y - jnp.maximum(problem.X @ params.W, 0) @ params.V) ** 2))
    assert np.abs(fine.energy_residual).max() < 1e-4 * initial
    assert np.abs(coarse.energy_residual).max() > 10 * np.abs(fine.energy_residual).max()
    assert fine.balance_residual.max() < 1e-4
    assert coarse.balance_residual.max() > 10 * fine.balance_residual.max()
    assert (np.asarray(fine.envelope_slack) > -1e-6).all()  # Proposition 2.1
    assert float(fine.envelope_slack[0]) < initial
    assert (np.diff(np.asarray(fine.loss)) < 0).all()


def test_envelope_when_the_output_is_fixed():
    params, problem = drawn(3, 4, 6, 8, "hidden")
    solution = hidden(params, problem, np.linspace(0.05, 2, 40), tolerance=1e-5)
    assert (np.asarray(solution.envelope_slack) > 0).all()
    # The bound is not empty: it falls below the initial loss.
    bound = solution.envelope_slack + solution.loss
    assert float(bound[-1]) < 0.9 * float(bound[0])
    assert np.isnan(solution.balance_residual).all()


def test_velocity_is_the_least_norm_of_the_subdifferential():
    params, problem = drawn(2, 20, 5, 10, "hidden")
    solution = hidden(params, problem, [5.0], tolerance=1e-6)
    there = Params(solution.params.W[0], solution.params.V[0])
    product = subdifferential(there, problem, trained_layers="hidden", tolerance=1e-9)
    assert int((product.sides == 0).sum()) == int(solution.sliding[0].sum()) > 0
    least = jax.jit(lambda p: p.minimum_norm())(product)
    assert float(least.norm) == pytest.approx(float(solution.velocity_norm[0]), rel=1e-8)
    np.testing.assert_allclose(least.slopes, solution.slopes[0], atol=1e-6)


def test_vmap_gives_what_single_runs_give():
    """With steps of one length: adapted ones turn on comparisons that rounding may decide either way."""
    runs = [drawn(seed, 10, 4, 6, "hidden") for seed in range(3)]
    params, problem = jax.tree.map(lambda *leaves: jnp.stack(leaves), *runs)
    batched = jax.jit(jax.vmap(lambda p, q: inclusion.solve(p, q, 3.0, trained_layers="hidden", step_size=0.02)))(
        params, problem
    )
    for index, (p, q) in enumerate(runs):
        alone = hidden(p, q, [3.0], step_size=0.02)
        np.testing.assert_allclose(batched.params.W[index], alone.params.W, atol=1e-10)
        assert int(batched.steps[index]) == int(alone.steps)


def test_padding_changes_nothing():
    params, problem = drawn(1, 10, 4, 6, "both")
    padded = Params(jnp.pad(params.W, ((0, 2), (0, 3))), jnp.pad(params.V, ((0, 3), (0, 0))))
    wide = Problem(jnp.pad(problem.X, ((0, 0), (0, 2))), problem.Y)
    a = solve(params, problem, jnp.array([2.0]), trained_layers="both")
    b = solve(padded, wide, jnp.array([2.0]), trained_layers="both")
    np.testing.assert_allclose(b.params.W[0, :4, :6], a.params.W[0], atol=1e-9)
    assert not np.asarray(b.params.W)[0, 4:].any()
    assert not np.asarray(b.params.W)[0, :, 6:].any()


def test_single_precision():
    params, problem = drawn(2, 20, 5, 10, "hidden")
    single = [jax.tree.map(lambda a: a.astype(jnp.float32), tree) for tree in (params, problem)]
    found = inclusion.solve(*single, jnp.array([5.0], jnp.float32), trained_layers="hidden")
    assert found.loss.dtype == jnp.float32
    assert float(found.loss[0]) == pytest.approx(float(hidden(params, problem, [5.0]).loss[0]), rel=2e-2)


def test_arrays_of_numpy_are_taken_in_the_precision_of_jax(float32):
    params, problem = ([np.asarray(array, np.float64) for array in tree] for tree in drawn(2, 8, 4, 6, "hidden"))
    found = inclusion.solve(Params(*params), Problem(*problem), 0.5, trained_layers="hidden")
    assert found.status == Status.REACHED
    assert found.loss.dtype == jnp.float32


def test_other_things_than_a_network_are_named():
    params, problem = drawn(2, 8, 4, 6, "hidden")
    with pytest.raises(TypeError, match="params must be a Params of W and V, got NoneType"):
        inclusion.solve(None, problem, 1.0)
    with pytest.raises(TypeError, match="problem must be a Problem of X and Y, got Params"):
        inclusion.solve(params, params, 1.0)


def test_statuses():
    params, problem = drawn(2, 20, 5, 10, "hidden")
    assert hidden(params, problem, [20.0], max_steps=5).status == Status.MAX_STEPS_REACHED
    assert hidden(params, problem, [20.0], max_kinks=1).status == Status.KINK_LIMIT
    early = hidden(params, problem, [20.0], relative_error=0.8)
    assert early.status == Status.REACHED
    assert 0 < early.times[0] < 20
    assert 0.7 < np.sqrt(2 * early.loss[0] / 20) < 0.8
    assert hidden(params, problem, [40_000.0], step_size=200.0, stop_at_branching=False).status == Status.DIVERGED


def test_a_repelling_kink_is_reported():
    """W = 0 with c > 0: staying, and following either field, are all solutions."""
    problem = Problem(jnp.array([[1.0], [-1.0]]), jnp.array([[0.5], [0.5]]))
    start = Params(jnp.zeros((1, 1)), jnp.ones((1, 1)))
    stopped = hidden(start, problem, [1.0])
    assert stopped.status == Status.BRANCHING
    assert stopped.branched_at == 0
    assert event_driven.solve(start, problem, np.array([1.0]), trained_layers="hidden").status == Status.BRANCHING
    going_on = hidden(start, problem, [1.0], stop_at_branching=False)
    assert going_on.status == Status.REACHED
    assert going_on.branched_at == 0


def test_a_change_of_an_output_weights_sign_makes_sliding_branch():
    """Both integrators stop at the same time, when V_j is 0 and neuron j has sliding preactivations."""
    params, problem = drawn(19, 20, 5, 10, "both")
    found = solve(params, problem, jnp.array([1.0, 20.0]), trained_layers="both", tolerance=1e-7)
    assert found.status == Status.BRANCHING
    reference = event_driven.solve(params, problem, np.array([1.0, 20.0]))
    assert reference.status == Status.BRANCHING
    assert found.branched_at == pytest.approx(reference.stopped_at, abs=2e-2)  # The end of its step.
    there = Params(found.params.W[-1], found.params.V[-1])
    assert np.abs(there.V).min() < 1e-2
    neuron = int(np.argmin(np.abs(there.V[:, 0])))
    assert int(((np.abs(problem.X @ there.W[:, neuron])) < 1e-9).sum()) > 0


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (dict(times=-1.0), "not negative"),
        (dict(times=np.nan), "finite"),
        (dict(times=jnp.array([1.0, 1.0])), "increase"),
        (dict(times=jnp.zeros((0,))), "at least one"),
        (dict(step_size=0.0), "step_size"),
        (dict(step_size=np.inf), "step_size"),
        (dict(tolerance=1e-17), "eps"),
        (dict(tolerance=np.nan), "eps"),
        (dict(trained_layers="none"), "trained_layers"),
        (dict(max_kinks=0), "max_kinks"),
        (dict(max_kinks=21), "max_kinks"),
        (dict(max_steps=0), "max_steps"),
    ],
)
def test_bad_arguments(change, words):
    params, problem = drawn(2, 20, 5, 10, "hidden")
    with pytest.raises(ValueError, match=words):
        inclusion.solve(params, problem, **{"times": 1.0, **change})


def test_bad_arrays():
    params, problem = drawn(2, 20, 5, 10, "hidden")
    with pytest.raises(ValueError, match=r"X: \(20, 4\)"):
        inclusion.solve(params, Problem(problem.X[:, 1:], problem.Y), 1.0)
    with pytest.raises(ValueError, match=r"W of shape \(5, 10\)"):
        inclusion.solve(params._replace(W=params.W.at[0, 0].set(jnp.nan)), problem, 1.0)
    with pytest.raises(ValueError, match="times must be"):
        event_driven.solve(params, problem, np.array([2.0, 1.0]))


def test_what_slides_stays_once_the_error_is_rounding():
    params, problem = drawn(0, 20, 10, 12, "hidden")
    found = hidden(params, problem, [200.0, 400.0, 20_000.0], max_steps=3000)
    assert found.status == Status.REACHED
    assert np.sqrt(2 * float(found.loss[-1]) / 20) < 1e-8
    assert int(found.sliding[0].sum()) > 0
    np.testing.assert_array_equal(found.sliding[1], found.sliding[2])
