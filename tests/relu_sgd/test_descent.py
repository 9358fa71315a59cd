"""`descend` against the NumPy reference, in both set-ups and with every option."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from support import numpy_reference as reference
from support.problems import draw

from relu_sgd import (
    Descent,
    Evaluation,
    Params,
    Problem,
    Status,
    approximators,
    descend,
    gradient_norm_below,
    loss,
    relative_error_below,
)
from relu_sgd.clarke import selections
from relu_sgd.descent import mean_loss_below, mean_squared_error_below, paper_optimizer

pytestmark = pytest.mark.compiled_in_full


def run(arrays, **options):
    W, V, X, Y = map(jnp.asarray, arrays)
    return jax.jit(functools.partial(descend, **options))(Params(W, V), Problem(X, Y))


def assert_close(found, expected, tolerance=1e-10):
    scale = np.linalg.norm(expected)
    assert np.linalg.norm(np.asarray(found) - expected) <= tolerance * scale


@pytest.mark.parametrize("trained_layers", ["hidden", "both"])
@pytest.mark.parametrize("normalization", ["half_sum", "mean"])
@pytest.mark.parametrize("d2", [1, 3])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_equals_the_reference_for_a_thousand_steps(trained_layers, normalization, d2, momentum):
    arrays = draw(d2=d2)
    options = dict(num_steps=1000, normalization=normalization, trained_layers=trained_layers)
    found = run(arrays, optimizer=optax.sgd(0.004, momentum=momentum), **options)
    W, V, steps, _ = reference.descend(*arrays, learning_rate=0.004, momentum=momentum, **options)
    assert_close(found.params.W, W)
    assert_close(found.params.V, V)
    assert found.steps == steps == 1000
    assert found.status == Status.MAX_STEPS_REACHED
    np.testing.assert_allclose(found.loss, reference.half_sum(W, V, *arrays[2:]), rtol=1e-10)
    assert found.best_loss <= found.loss


@pytest.mark.parametrize("trained_layers", ["hidden", "both"])
def test_mini_batches_equal_the_reference_on_the_same_batches(trained_layers):
    arrays, key, num_steps, batch_size = draw(), jax.random.key(7), 1000, 6
    batches = [
        np.asarray(jax.random.permutation(jax.random.fold_in(key, step), 20)[:batch_size]) for step in range(num_steps)
    ]
    assert all(len(set(batch)) == batch_size for batch in batches)
    options = dict(num_steps=num_steps, trained_layers=trained_layers)
    found = run(arrays, optimizer=optax.sgd(0.01, momentum=0.9), batch_size=batch_size, key=key, **options)
    W, V, _, _ = reference.descend(*arrays, learning_rate=0.01, momentum=0.9, batches=batches, **options)
    assert_close(found.params.W, W)
    assert_close(found.params.V, V)


@pytest.mark.parametrize("trained_layers", ["hidden", "both"])
def test_mini_batch_gradients_are_b_over_n_times_the_full_one_on_average(trained_layers):
    """Section 5: E dL^b = (b / N) dL, entry by entry within five standard errors, over 4,000 draws of 5
    of 20 samples.
    """
    W, V, X, Y = draw()
    params, problem = jax.tree.map(jnp.asarray, (Params(W, V), Problem(X, Y)))
    whole = Descent(optax.sgd(1.0), trained_layers=trained_layers)
    part = dataclasses.replace(whole, batch_size=5)

    def gradient(descent, key):
        return jax.tree.leaves(descent.advance_to(descent.init(problem, params, key), 0).gradient)

    full = gradient(whole, None)
    keys = jax.random.split(jax.random.key(0), 4000)
    drawn = jax.jit(jax.vmap(lambda key: gradient(part, key)))(keys)
    for expected, found in zip(full, drawn, strict=True):
        error = found.std(axis=0) / np.sqrt(len(keys))
        deviation = np.abs(found.mean(axis=0) - expected * 5 / 20) / np.where(error > 0, error, 1)
        assert deviation.max() < 5
        assert np.sqrt(np.mean(deviation[np.asarray(error) > 0] ** 2)) < 1.7


def test_mini_batches_draw_every_sample_equally_often_and_afresh():
    arrays, key = draw(), jax.random.key(3)
    descent = Descent(optax.sgd(0.1), batch_size=5)
    batches = jax.vmap(lambda step: jax.random.permutation(jax.random.fold_in(key, step), 20)[:5])(jnp.arange(4000))
    counts = np.bincount(np.asarray(batches).ravel(), minlength=20)
    assert np.abs(counts - 1000).max() < 5 * np.sqrt(4000 * 0.25 * 0.75)
    # The average mini-batch gradient is b / N times the full one, within its standard error.
    W, V, X, Y = map(jnp.asarray, arrays)
    params, problem = Params(W, V), Problem(X, Y)
    start = lambda seed: descent.init(problem, params, jax.random.key(seed))
    states = jax.vmap(lambda seed: descent.advance_to(start(seed), 0))(jnp.arange(2000))
    assert (states.step == 0).all()
    gradients = np.asarray(states.gradient.W)
    error = gradients.std(axis=0, ddof=1) / np.sqrt(len(gradients))
    expected = 5 / 20 * reference.gradients(*arrays, 0.0)[0]
    assert (np.abs(gradients.mean(axis=0) - expected) <= 5 * error + 1e-12).all()


@pytest.mark.parametrize("at_zero", [0.0, 0.5, 1.0, "array"])
def test_slope_at_zero_is_used(at_zero):
    """Neurons that start at 0 sit on the kink of every sample at the first step."""
    W, V, X, Y = draw()
    W[:, ::2] = 0
    if at_zero == "array":
        at_zero = np.random.default_rng(1).uniform(size=(20, 8))
    options = dict(num_steps=1000, trained_layers="hidden", at_zero=at_zero)
    found = run((W, V, X, Y), optimizer=optax.sgd(0.02), **options)
    expected = reference.descend(W, V, X, Y, learning_rate=0.02, **options)[0]
    assert_close(found.params.W, expected)
    other = reference.descend(W, V, X, Y, learning_rate=0.02, **{**options, "at_zero": 0.25})[0]
    assert np.linalg.norm(other - expected) > 1e-3


def test_slope_at_zero_follows_its_samples_into_mini_batches():
    W, V, X, Y = draw()
    W[:, ::2] = 0
    slopes, key = np.random.default_rng(1).uniform(size=(20, 8)), jax.random.key(0)
    batch = np.asarray(jax.random.permutation(jax.random.fold_in(key, 0), 20)[:4])
    found = run((W, V, X, Y), num_steps=1, optimizer=optax.sgd(0.1), at_zero=slopes, batch_size=4, key=key)
    expected = reference.descend(W, V, X, Y, num_steps=1, learning_rate=0.1, at_zero=slopes, batches=[batch])
    assert_close(found.params.W, expected[0])


@pytest.mark.parametrize("stop", ["first_passage", "never"])
def test_first_passage(stop):
    arrays = draw(num_samples=6, d0=6, d1=40)
    options = dict(num_steps=3000, trained_layers="hidden")
    found = run(
        arrays, optimizer=optax.sgd(0.05, momentum=0.9), criterion=relative_error_below(0.1), stop=stop, **options
    )
    W, _, steps, converged_at = reference.descend(
        *arrays, learning_rate=0.05, momentum=0.9, tolerance=0.1, stop=stop, **options
    )
    assert 0 < converged_at < 3000
    assert found.converged_at == converged_at
    assert found.steps == steps
    assert found.status == Status.CONVERGED
    assert_close(found.params.W, W)


def test_first_passage_sees_the_start_and_the_last_step():
    arrays = draw(num_samples=6, d0=6, d1=40)
    options = dict(
        optimizer=optax.sgd(0.05, momentum=0.9), criterion=relative_error_below(0.1), trained_layers="hidden"
    )
    passage = int(run(arrays, num_steps=3000, **options).steps)
    assert run(arrays, num_steps=passage, **options).status == Status.CONVERGED
    short = run(arrays, num_steps=passage - 1, **options)
    assert (short.status, short.converged_at) == (Status.MAX_STEPS_REACHED, -1)
    solved = run(arrays, num_steps=10, **{**options, "criterion": relative_error_below(1e3)})
    assert (solved.status, solved.steps, solved.converged_at) == (Status.CONVERGED, 0, 0)


def test_never_judges_the_last_network():
    """A network that met the criterion once and lost it has not converged, but says when it did."""
    arrays = draw(num_samples=6, d0=6, d1=40)
    start = np.sqrt(2 * reference.half_sum(*arrays)) / np.sqrt(6)
    found = run(
        arrays, num_steps=4, optimizer=optax.sgd(-0.5), criterion=relative_error_below(1.0001 * start), stop="never"
    )
    assert (found.status, found.converged_at, found.steps) == (Status.MAX_STEPS_REACHED, 0, 4)


def test_released_criterion_is_relative_error_0_188_at_200_samples():
    Y = np.where(np.arange(200) % 2, 1.0, -1.0)[:, None]
    problem = Problem(jnp.ones((200, 1)), jnp.asarray(Y))
    for error, expected in ((0.1879, True), (0.1881, False)):
        losses = 0.5 * (error * Y[:, 0]) ** 2
        assert bool(mean_squared_error_below(2.5e-3)(losses, problem)) == expected


@pytest.mark.parametrize("stop", ["first_passage", "never"])
def test_divergence_is_a_status(stop):
    found = run(draw(), num_steps=1000, optimizer=optax.sgd(50.0), criterion=relative_error_below(1e-3), stop=stop)
    assert found.status == Status.DIVERGED
    assert found.steps < 1000
    assert np.isfinite(found.best_loss)


def test_paper_optimizer():
    arrays = draw()
    for layers, rate in (("hidden", 0.15), ("both", 0.002)):
        found = run(arrays, num_steps=5, trained_layers=layers)
        W, V, _, _ = reference.descend(*arrays, num_steps=5, learning_rate=rate, momentum=0.9, trained_layers=layers)
        assert_close(found.params.W, W)
        assert_close(found.params.V, V)
    assert paper_optimizer("both") is not None


def test_measurements_are_of_the_steps_they_name():
    arrays = draw()
    problem = Problem(*map(jnp.asarray, arrays[2:]))
    options = dict(optimizer=optax.sgd(0.01, momentum=0.9), trained_layers="both")
    found = run(
        arrays, num_steps=10, measure=lambda params: {"loss": loss(params, problem)}, measure_every=4, **options
    )
    np.testing.assert_array_equal(found.measured_at, [0, 4, 8])
    for step, value in zip(found.measured_at, found.measurements["loss"], strict=True):
        W, V, _, _ = reference.descend(*arrays, num_steps=int(step), learning_rate=0.01, momentum=0.9)
        np.testing.assert_allclose(value, reference.half_sum(W, V, *arrays[2:]), rtol=1e-10)
    assert found.steps == 10
    assert_close(found.params.W, reference.descend(*arrays, num_steps=10, learning_rate=0.01, momentum=0.9)[0])


def test_an_interrupted_descent_goes_on_bit_for_bit():
    W, V, X, Y = map(jnp.asarray, draw())
    problem, key = Problem(X, Y), jax.random.key(2)
    descent = Descent(optax.adam(0.01), batch_size=7)
    advance_to = jax.jit(descent.advance_to)
    start = descent.init(problem, Params(W, V), key)
    assert (start.step, bool(start.evaluated), int(descent.result(start).status)) == (0, False, Status.PENDING)
    whole = advance_to(start, 100)
    parts = advance_to(advance_to(advance_to(start, 0), 37), 100)
    assert whole.step == 100
    jax.tree.map(np.testing.assert_array_equal, whole._replace(key=None), parts._replace(key=None))
    # There already: nothing happens.
    jax.tree.map(np.testing.assert_array_equal, whole._replace(key=None), advance_to(parts, 60)._replace(key=None))


def test_vmap_over_seeds_equals_single_runs():
    draws = [draw(seed) for seed in range(3)]
    stacked = [jnp.stack(leaves) for leaves in zip(*draws, strict=True)]
    options = dict(
        num_steps=400,
        optimizer=optax.sgd(0.05, momentum=0.9),
        criterion=relative_error_below(0.3),
        trained_layers="hidden",
    )
    together = jax.jit(jax.vmap(lambda W, V, X, Y: descend(Params(W, V), Problem(X, Y), **options)))(*stacked)
    for index, arrays in enumerate(draws):
        alone = run(arrays, **options)
        assert alone.steps == together.steps[index]
        assert alone.status == together.status[index]
        assert_close(together.params.W[index], alone.params.W, 1e-9)


def test_reverse_mode_equals_forward_mode_and_finite_differences():
    W, V, X, Y = map(jnp.asarray, draw())

    def final(rate, differentiable):
        return descend(
            Params(W, V), Problem(X, Y), num_steps=20, optimizer=optax.sgd(rate), differentiable=differentiable
        ).loss

    with pytest.raises(ValueError, match=r"Reverse-mode differentiation does not work for lax\.while_loop"):
        jax.grad(final)(0.01, False)
    reverse = jax.grad(final)(0.01, True)
    forward = jax.jvp(lambda rate: final(rate, False), (0.01,), (1.0,))[1]
    difference = (final(0.01 + 1e-6, False) - final(0.01 - 1e-6, False)) / 2e-6
    np.testing.assert_allclose(reverse, forward, rtol=1e-9)
    np.testing.assert_allclose(reverse, difference, rtol=1e-5)


EXTRA_ARGUMENTS = {
    "lbfgs": optax.lbfgs,
    "polyak_sgd": lambda: optax.polyak_sgd(0.05),
    "reduce_on_plateau": lambda: optax.chain(
        optax.sgd(0.03), optax.contrib.reduce_on_plateau(factor=0.5, patience=5, accumulation_size=2)
    ),
    "backtracking": lambda: optax.chain(optax.sgd(1.0), optax.scale_by_backtracking_linesearch(20)),
    "noisy_sgd": lambda: optax.noisy_sgd(0.02, key=jax.random.key(0)),
    "accumulated": lambda: optax.MultiSteps(optax.adam(0.02), 2),
    "schedule_free": lambda: optax.contrib.schedule_free_sgd(0.02),
}


@pytest.mark.parametrize("name", list(EXTRA_ARGUMENTS))
@pytest.mark.parametrize("trained_layers", ["hidden", "both"])
def test_optimizers_that_want_the_objective_train(name, trained_layers):
    arrays = draw()
    before = reference.half_sum(*arrays)
    found = run(arrays, num_steps=60, optimizer=EXTRA_ARGUMENTS[name](), trained_layers=trained_layers)
    assert found.steps == 60
    assert found.loss < 0.7 * before
    if trained_layers == "hidden":
        np.testing.assert_array_equal(found.params.V, arrays[1])


def test_polyak_sgd_equals_its_formula_on_the_mini_batches():
    """The step is min(max_learning_rate, value / ||gradient||^2) times the gradient, both of the batch of the step."""
    W, V, X, Y = draw()
    key, rate = jax.random.key(5), 0.4
    options = dict(num_steps=15, optimizer=optax.polyak_sgd(rate), batch_size=4, key=key, normalization="sample_mean")
    found = run((W, V, X, Y), **options)
    steps = []
    for step in range(15):
        rows = np.asarray(jax.random.permutation(jax.random.fold_in(key, step), 20)[:4])
        gradients = [g / 4 for g in reference.gradients(W, V, X[rows], Y[rows], 0.0)]
        value = reference.half_sum(W, V, X[rows], Y[rows]) / 4
        steps.append(min(rate, value / sum(np.sum(g**2) for g in gradients)))
        W, V = W - steps[-1] * gradients[0], V - steps[-1] * gradients[1]
    assert_close(found.params.W, W)
    assert_close(found.params.V, V)
    assert 0 < sum(step < rate for step in steps) < 15


def test_optimizers_that_cannot_be_used_say_so():
    wants_more = optax.GradientTransformationExtraArgs(lambda _: (), lambda g, s, p=None, *, hessian, **_: (g, s))
    for optimizer, words in [
        (optax.lookahead(optax.sgd(0.1), 5, 0.5), "optax.lookahead"),
        (optax.chain(optax.identity(), optax.lookahead(optax.sgd(0.1), 5, 0.5)), "optax.lookahead"),
        (wants_more, "hessian"),
    ]:
        with pytest.raises(ValueError, match=words):
            run(draw(), num_steps=2, optimizer=optimizer)


@pytest.mark.parametrize("optimizer", [optax.adam, optax.polyak_sgd])
def test_reverse_mode_does_not_see_the_step_that_is_thrown_away(optimizer):
    """At theta_0 the optimizer is asked before there is a gradient; with one of 0 its derivative would be 0 / 0."""
    W, V, X, Y = map(jnp.asarray, draw())
    final = lambda rate: (
        descend(Params(W, V), Problem(X, Y), num_steps=5, optimizer=optimizer(rate), differentiable=True).loss
    )
    difference = (final(0.01 + 1e-6) - final(0.01 - 1e-6)) / 2e-6
    np.testing.assert_allclose(jax.grad(final)(0.01), difference, rtol=1e-4)


def of_own(function):
    """An own loss: from theta and the rows of X and Y that are asked for."""

    def losses(problem, *, at_zero=0.0):
        def of(params, samples=None):
            X, Y = problem if samples is None else (problem.X[samples], problem.Y[samples])
            return function(Y - jnp.maximum(X @ params.W, 0) @ params.V)

        return of

    return losses


def ignores_samples(problem, *, at_zero=0.0):
    return lambda params, samples=None: of_own(lambda E: jnp.sum(E**2, axis=1))(problem)(params)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(losses=of_own(jnp.sum)), r"losses of 20 samples must be floats of shape \(20,\), got .*shape=\(\)"),
        (dict(losses=of_own(lambda E: E**2)), r"shape \(20,\), got .*\(20, 1\)"),
        (dict(losses=of_own(lambda E: jnp.sum(E > 0, axis=1))), "floats"),
        (dict(losses=lambda problem: None), r"losses\(problem, \*, at_zero\) -> \(theta, samples=None\) -> N floats"),
        (dict(losses=lambda outputs, labels: None), r"a loss\(outputs, labels\) goes through approximators.shallow"),
        (dict(losses=lambda problem, *, at_zero: lambda params: jnp.zeros(20)), r"signature \(theta, samples=None\)"),
        (dict(losses=lambda problem, *, at_zero: 0.0), r"signature \(theta, samples=None\)"),
        (dict(losses=ignores_samples, batch_size=4, key=jax.random.key(0)), r"of 4 samples .* \(4,\), got .*\(20,\)"),
        (dict(losses=ignores_samples, normalization="mean"), "sample_mean"),
        (dict(criterion=lambda losses, problem: losses < 1), "one truth value"),
        (dict(criterion=lambda losses, problem: jnp.sum(losses)), "one truth value"),
    ],
)
def test_losses_and_criteria_of_ones_own_that_are_not_what_they_should_be(options, message):
    W, V, X, Y = map(jnp.asarray, draw())
    with pytest.raises(ValueError, match=message):
        descend(Params(W, V), Problem(X, Y), num_steps=1, optimizer=optax.sgd(0.1), **options)


def test_a_stopping_rule_sees_the_whole_state():
    """It ends a run at the first step at which it holds, theta_0 included; a success is a success all the same."""
    W, V, X, Y = map(jnp.asarray, draw())
    problem, options = Problem(X, Y), dict(num_steps=50, optimizer=optax.sgd(0.02))
    go = lambda **more: descend(Params(W, V), problem, **options, **more)
    path = go(measure=lambda params: jnp.max(jnp.abs(problem.Y - jnp.maximum(X @ params.W, 0) @ params.V)))
    bound = float(path.measurements[2])
    assert (path.measurements[:2] > bound).all()
    worst = lambda state: jnp.max(state.losses) <= 0.5 * bound**2 * (1 + 1e-9)
    end = go(stopping_rule=worst)
    assert (end.status, end.steps, end.converged_at) == (Status.STOPPED, 2, -1)
    assert (go(stopping_rule=lambda state: state.step == 3).steps) == 3
    assert (go(stopping_rule=lambda state: state.params.W[0, 0] == W[0, 0]).steps) == 0
    assert (go(stopping_rule=lambda state: jnp.sum(state.problem.Y) > 100).status) == Status.MAX_STEPS_REACHED
    both = go(stopping_rule=worst, criterion=relative_error_below(1e3), stop="never")
    assert (both.status, both.steps, both.converged_at) == (Status.CONVERGED, 2, 0)
    for tolerance in (0, -1.0):
        with pytest.raises(ValueError, match="must be positive"):
            gradient_norm_below(tolerance)


def test_an_objective_that_is_no_sum_over_samples():
    """A quartic without a problem, to its minimum; and with one, the paper's loss."""
    quartic = lambda theta: jnp.sum((theta["a"] ** 2 - 2) ** 2)
    end = descend(
        {"a": jnp.asarray([1.0, -3.0])}, objective=quartic, num_steps=1000, optimizer=optax.sgd(0.01),
        stopping_rule=gradient_norm_below(1e-10),
    )  # fmt: skip
    assert end.status == Status.STOPPED
    np.testing.assert_allclose(end.params["a"], [2**0.5, -(2**0.5)], rtol=1e-10)
    W, V, X, Y = map(jnp.asarray, draw())
    options = dict(num_steps=30, optimizer=optax.lbfgs(), trained_layers="hidden")
    whole = descend(Params(W, V), Problem(X, Y), objective=loss, **options)
    assert_close(whole.params.W, run(draw(), **options).params.W)
    np.testing.assert_array_equal(whole.params.V, V)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(objective=lambda theta: theta), "must return one float"),
        (dict(objective=lambda theta: jnp.int32(1)), "must return one float"),
        (dict(objective=lambda theta, problem: jnp.sum(theta)), "must take theta"),
        (dict(objective=jnp.sum, batch_size=2, key=jax.random.key(0)), "leave out batch_size"),
        (dict(objective=jnp.sum, normalization="mean"), "leave out normalization"),
        (dict(objective=jnp.sum, at_zero=0.5), "leave out at_zero"),
        (dict(objective=jnp.sum, losses=lambda problem, *, at_zero: None), "leave out losses"),
        (dict(objective=jnp.sum, trained_layers="hidden"), "needs Params"),
        (dict(objective=2.0), "objective must be a function"),
        (dict(), "needs a problem"),
        (dict(objective=jnp.sum, stopping_rule=lambda state: state.params < 0), "stopping rule must return one truth"),
        (dict(objective=jnp.sum, stopping_rule=lambda state: 0.5), "stopping rule must return one truth"),
        (dict(objective=jnp.sum, stopping_rule=1e-3), "stopping_rule must be a function"),
        (dict(objective=jnp.sum, criterion=1e-3), "criterion must be a function"),
        (dict(objective=jnp.sum, criterion=lambda losses, problem: 0.5), "one truth value"),
        (dict(objective=jnp.sum, criterion=relative_error_below(0.1)), "the criterion must do with 2 arguments"),
        (dict(objective=jnp.sum, criterion=relative_error_below), "the criterion must do with 2 arguments"),
        (dict(objective=jnp.sum, stopping_rule=lambda state, step: True), "the stopping rule must do with 1 arguments"),
        (dict(objective=jnp.sum, optimizer="sgd"), "optimizer must be one of optax"),
        (dict(at_zero="random"), "at_zero must be a number"),
        (dict(objective=jnp.sum, kernel=lambda problem, key: lambda theta, k: (0.0, theta)), "Evaluation"),
        (
            dict(objective=jnp.sum, kernel=lambda _, key: lambda theta, k: Evaluation(theta[0], theta[0], theta[:1])),
            "Evaluation",
        ),
    ],
)  # fmt: skip
def test_objectives_rules_and_kernels_that_are_not_what_they_should_be(options, message):
    with pytest.raises(ValueError, match=message):
        descend(jnp.ones(3), num_steps=1, **(dict(optimizer=optax.sgd(0.1)) | options))
    with pytest.raises(ValueError, match="give one"):
        descend(jnp.ones(3), num_steps=1, objective=jnp.sum)


@pytest.mark.parametrize("batch_size", [None, 6])
def test_a_descent_takes_over_from_another(batch_size):
    """By its own rules, as if it had run from the start; and an interruption changes no bit."""
    W, V, X, Y = map(jnp.asarray, draw())
    key = None if batch_size is None else jax.random.key(3)
    plain = Descent(optax.sgd(0.02, momentum=0.9), batch_size=batch_size)
    change = functools.partial(dataclasses.replace, plain)
    first = change(stopping_rule=lambda state: state.step >= 2)
    state = first.advance_to(first.init(Problem(X, Y), Params(W, V), key), 50)
    assert (state.step, first.result(state).status) == (2, Status.STOPPED)
    level = float(plain.result(plain.advance_to(plain.init(Problem(X, Y), Params(W, V), key), 9)).loss)
    for second, steps, status in (
        (plain, 9, Status.MAX_STEPS_REACHED),
        (change(stopping_rule=lambda state: state.step >= 5), 5, Status.STOPPED),
        (change(stopping_rule=lambda state: jnp.abs(state.losses.sum() - level) < 1e-12 * level), 9, Status.STOPPED),
        (change(criterion=lambda losses, problem: jnp.sum(losses) > 0), 2, Status.CONVERGED),
    ):
        end = second.result(second.advance_to(second.take_over(state), 9))
        assert (end.steps, end.status) == (steps, status)
        whole = plain.result(plain.advance_to(plain.init(Problem(X, Y), Params(W, V), key), steps))
        np.testing.assert_array_equal(end.params.W, whole.params.W)
        assert float(end.loss) == float(whole.loss)


def test_a_loop_of_fixed_length_makes_as_many_updates():
    W, V, X, Y = map(jnp.asarray, draw())
    descent = Descent(optax.sgd(0.02))
    start = descent.init(Problem(X, Y), Params(W, V))
    for state in (start, descent.advance_to(start, 0)):
        assert descent.advance_to(state, 100, fixed_length=5).step == 5
        assert descent.advance_to(state, 3, fixed_length=5).step == 3


@pytest.mark.parametrize("batch_size", [None, 6])
def test_a_kernel_of_ones_own_in_place_of_automatic_differentiation(batch_size):
    def kernel(problem, key):
        def evaluate(params, step):
            E = jnp.maximum(problem.X @ params.W, 0) @ params.V - problem.Y
            losses = 0.5 * jnp.sum(E**2, axis=1)
            rows = jnp.arange(20) if key is None else jax.random.permutation(jax.random.fold_in(key, step), 20)[:6]
            X, E = problem.X[rows], E[rows]
            D = jnp.where(X @ params.W > 0, E @ params.V.T, 0)
            gradient = Params(X.T @ D, jnp.maximum(X @ params.W, 0).T @ E)
            return Evaluation(jnp.sum(losses[rows]), gradient, losses)

        return evaluate

    key = None if batch_size is None else jax.random.key(3)
    options = dict(num_steps=50, optimizer=optax.sgd(0.02, momentum=0.9), batch_size=batch_size, key=key)
    by_hand, automatic = run(draw(), kernel=kernel, **options), run(draw(), **options)
    assert_close(by_hand.params.W, automatic.params.W)
    np.testing.assert_allclose(by_hand.loss, automatic.loss, rtol=1e-10)


def test_arrays_of_numpy_are_welcome():
    W, V, X, Y = draw()
    options = dict(num_steps=20, optimizer=optax.sgd(0.02), batch_size=6, key=jax.random.key(0))
    for more in ({}, {"at_zero": selections.random()}, {"losses": approximators.shallow()}):
        found = descend(Params(W, V), Problem(X, Y), **options, **more)
        assert_close(found.params.W, run((W, V, X, Y), **options).params.W)


def test_a_loss_of_ones_own():
    squared = of_own(lambda E: 0.5 * jnp.sum(E**2, axis=1))
    options = dict(num_steps=20, optimizer=optax.sgd(0.02), batch_size=6, key=jax.random.key(0))
    assert_close(run(draw(), losses=squared, **options).params.W, run(draw(), **options).params.W)
    W, V, X, Y = map(jnp.asarray, draw())
    with pytest.raises(ValueError, match="give one"):
        descend(Params(W, V), Problem(X, Y), num_steps=1, losses=squared)


@pytest.mark.parametrize("criterion", [mean_loss_below, relative_error_below, mean_squared_error_below])
def test_a_criterion_that_can_never_hold(criterion):
    for tolerance in (0, -1.0, np.nan, np.inf, None, "0.1", [0.1]):
        with pytest.raises(ValueError, match="must be positive"):
            criterion(tolerance)
    assert jax.jit(lambda t: criterion(t)(jnp.zeros(3), Problem(jnp.ones((3, 1)), jnp.ones((3, 1)))))(0.1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(num_steps=-1), "num_steps"),
        (dict(num_steps=2.5), "num_steps must be a whole number, got 2.5"),
        (dict(num_steps=1, batch_size=2.5, key=jax.random.key(0)), "batch_size must be a whole number"),
        (dict(num_steps=1, batch_size=True, key=jax.random.key(0)), "batch_size must be a whole number, got True"),
        (dict(num_steps=1, measure=lambda params: 0, measure_every=1.5), "measure_every must be a whole number"),
        (dict(num_steps=1, normalization="sum"), "normalization"),
        (dict(num_steps=1, trained_layers="output"), "trained_layers"),
        (dict(num_steps=1, stop="soon"), "stop"),
        (dict(num_steps=1, batch_size=0), "batch_size"),
        (dict(num_steps=1, batch_size=21, key=jax.random.key(0)), "21 exceeds .* N = 20"),
        (dict(num_steps=1, batch_size=2), "key"),
        (dict(num_steps=1, at_zero=1.5), r"\[0, 1\]"),
        (dict(num_steps=1, measure=lambda params: 0, measure_every=0), "measure_every"),
    ],
)
def test_bad_options(options, message):
    W, V, X, Y = map(jnp.asarray, draw())
    with pytest.raises(ValueError, match=message):
        descend(Params(W, V), Problem(X, Y), **options)


@pytest.mark.parametrize("criterion", [relative_error_below, mean_squared_error_below])
@pytest.mark.parametrize("losses", [approximators.shallow("hinge"), of_own(lambda E: jnp.sum(jnp.abs(E), axis=1))])
def test_criteria_of_squared_errors_are_for_the_squared_loss(criterion, losses):
    W, V, X, Y = map(jnp.asarray, draw())
    descend_on = functools.partial(
        descend, Params(W, V), Problem(X, jnp.sign(Y)), num_steps=1, optimizer=optax.sgd(0.1), criterion=criterion(0.1)
    )
    with pytest.raises(ValueError, match=r"squared errors, for the squared loss alone.*mean_loss_below"):
        descend_on(losses=losses)
    assert descend_on(losses=approximators.shallow()).steps == 1


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (dict(params=None), "params must be a Params of W and V, got NoneType"),
        (dict(params=(1.0, 2.0)), "params must be a Params of W and V, got tuple"),
        (dict(params=Params([[1.0]], [[1.0]])), r"params\.W must be an array, got list"),
        (dict(params=Params(jnp.ones((6, 8), int), jnp.ones((8, 1), int))), "weights must be floats, got int"),
        (dict(params=None, losses=approximators.deep([3])), "params must be theta_0, a pytree of arrays, got None"),
        (dict(problem=(jnp.ones((20, 6)), jnp.ones((20, 1)))), "problem must be a Problem of X and Y, got tuple"),
        (dict(problem="data"), "problem must be a Problem of X and Y, got str"),
        (dict(problem=(1, 2), losses=approximators.shallow()), "problem must be a Problem of X and Y, got tuple"),
        (dict(key=3), r"key must be one random key, as jax\.random\.key\(0\), got 3"),
        (dict(key=3, batch_size=2), "key must be one random key"),
        (dict(key=jax.random.split(jax.random.key(0), 2)), r"got an array key<fry>\(2,\)"),
    ],
)
def test_arguments_of_another_kind_are_named_in_one_line(changed, message):
    W, V, X, Y = map(jnp.asarray, draw())
    arguments = dict(params=Params(W, V), problem=Problem(X, Y), num_steps=1, optimizer=optax.sgd(0.1)) | changed
    with pytest.raises(TypeError, match=message) as raised:
        descend(**arguments)
    assert "\n" not in str(raised.value)


def test_shapes_that_do_not_fit_are_named():
    W, V, X, Y = map(jnp.asarray, draw())
    with pytest.raises(ValueError, match=r"Y: \(20, 2\).*V: \(8, 1\)"):
        descend(Params(W, V), Problem(X, jnp.ones((20, 2))), num_steps=1)
