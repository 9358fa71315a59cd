"""Deep networks and other losses: formulas, finite differences, and that the paper's network is the first instance."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from relu_sgd import Params, Problem, Status, approximators, descend, mean_loss_below, measurements, zero_loss

ONE_HOT = np.eye(3)[[0, 2, 1, 1, 0, 2]]


def draw(seed=0, N=6, d0=4, d1=8, d2=1):
    rng = np.random.default_rng(seed)
    signs = np.where(rng.uniform(size=(N, d2)) < 0.5, -1.0, 1.0)
    return Params(rng.normal(size=(d0, d1)), rng.normal(size=(d1, d2)) / d1**0.5), Problem(
        rng.normal(size=(N, d0)), signs
    )


@pytest.mark.parametrize("options", [{}, {"batch_size": 3}, {"trained_layers": "hidden"}])
def test_the_shallow_network_is_the_first_instance(options):
    params, problem = jax.tree.map(jnp.asarray, draw())
    run = lambda **more: descend(
        params, problem, num_steps=40, optimizer=optax.sgd(0.02, momentum=0.5), key=jax.random.key(1), **options, **more
    )
    default, general = run(), run(losses=approximators.shallow().sample_losses)
    for one, other in zip(jax.tree.leaves(default), jax.tree.leaves(general), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-10)


def test_one_hidden_layer_in_flax_is_the_shallow_network():
    params, problem = draw(d2=2)
    approximator = approximators.deep([8], 2)
    tree = {"params": {"Dense_0": {"kernel": params.W}, "Dense_1": {"kernel": params.V}}}
    first = approximators.shallow()
    np.testing.assert_allclose(approximator.predict(tree, problem), first.predict(params, problem), rtol=1e-12)
    np.testing.assert_allclose(approximator.preactivations(tree, problem), problem.X @ params.W, rtol=1e-12)
    losses = approximator.sample_losses(problem)(tree)
    np.testing.assert_allclose(losses, first.sample_losses(problem)(params), rtol=1e-12)
    np.testing.assert_allclose(
        losses, 0.5 * np.sum((problem.Y - np.maximum(problem.X @ params.W, 0) @ params.V) ** 2, 1)
    )


def test_losses_by_their_formulas():
    rng = np.random.default_rng(0)
    outputs, signs = 2 * rng.normal(size=(6, 3)), np.where(rng.uniform(size=(6, 3)) < 0.5, -1.0, 1.0)
    expected = {
        "squared": 0.5 * np.sum((signs - outputs) ** 2, axis=1),
        "hinge": np.sum(np.maximum(0, 1 - signs * outputs), axis=1),
        "quadratic_hinge": np.sum(np.maximum(0, 1 - signs * outputs) ** 2 / 2, axis=1),
        "logistic": np.sum(np.log1p(np.exp(-signs * outputs)), axis=1),
    }
    for name, values in expected.items():
        np.testing.assert_allclose(approximators.LOSSES[name](outputs, signs), values, rtol=1e-10)
    softmax = np.exp(outputs) / np.exp(outputs).sum(axis=1, keepdims=True)
    found = approximators.LOSSES["cross_entropy"](outputs, ONE_HOT)
    np.testing.assert_allclose(found, -np.log((softmax * ONE_HOT).sum(axis=1)), rtol=1e-10)


@pytest.mark.parametrize("loss", list(approximators.LOSSES))
def test_gradients_of_a_deep_network_by_finite_differences(loss):
    problem = Problem(draw()[1].X, ONE_HOT if loss == "cross_entropy" else draw(d2=3)[1].Y)
    approximator = approximators.deep([5, 4, 6], 3, loss=loss, use_bias=True)
    params = approximator.init(jax.random.key(0), problem)
    assert all(leaf.dtype == jnp.float64 for leaf in jax.tree.leaves(params))
    flat, unravel = jax.flatten_util.ravel_pytree(params)
    flat = flat + 0.1 * jax.random.normal(jax.random.key(1), flat.shape)  # Biases of 0 put dead samples on the kinks.
    total = jax.jit(lambda theta: jnp.sum(approximator.sample_losses(problem)(unravel(theta))))
    gradient = jax.grad(total)(flat)
    for index in range(0, len(flat), 7):
        step = jnp.zeros_like(flat).at[index].set(1e-6)
        assert gradient[index] == pytest.approx(float(total(flat + step) - total(flat - step)) / 2e-6, abs=1e-6)


def test_the_slope_at_zero_is_that_of_every_layer():
    """With zero inputs and no biases every preactivation is exactly 0: the Jacobian in the input is at_zero^depth
    times a product.
    """
    problem = Problem(jnp.zeros((1, 3)), jnp.ones((1, 1)))
    approximator = approximators.deep([4, 5, 6])
    params = approximator.init(jax.random.key(0), problem)
    kernels = [params["params"][f"Dense_{i}"]["kernel"] for i in range(4)]
    for slope in (0.0, 0.5, 1.0):
        by_input = jax.jacobian(lambda X, s=slope: approximator.predict_inputs(params, X, s))(problem.X)
        product = np.linalg.multi_dot(kernels) * slope**3
        np.testing.assert_allclose(by_input[0, :, 0, :].T, product, atol=1e-14)


def test_measurements_of_a_deep_network():
    problem = draw(N=20)[1]
    approximator = approximators.deep([5, 7])
    before, after = (approximator.init(jax.random.key(seed), problem) for seed in (0, 1))
    old, new = (np.asarray(approximator.preactivations(params, problem)) for params in (before, after))
    assert old.shape == (20, 12)
    of = dict(preactivations_of=approximator.preactivations)
    assert measurements.pattern_changes(before, after, problem, **of) == int(np.sum((old > 0) != (new > 0)))
    assert measurements.numerical_zeros(before, problem, 0.3, **of) == int(np.sum(np.abs(old) < 0.3))
    assert measurements.dead_samples(before, problem, **of) == int(np.sum(~(old > 0).any(axis=1)))
    assert measurements.dead_neurons(before, problem, **of) == int(np.sum(~(old > 0).any(axis=0)))
    error = measurements.relative_error(before, problem, predict_of=approximator.predict)
    outputs = np.asarray(approximator.predict(before, problem))
    assert error == pytest.approx(np.linalg.norm(problem.Y - outputs) / np.linalg.norm(problem.Y))
    prints = [measurements.pattern_fingerprint(params, problem, **of) for params in (before, after)]
    assert (prints[0] != prints[1]).any()


def test_depth_3_hinge_loss_mini_batches_32_seeds():
    """Nearly every seed separates few samples with margin 1."""
    approximator = approximators.deep([16, 16, 16], loss="hinge")

    def run(seed):
        data, labels, weights, batches = jax.random.split(jax.random.key(seed), 4)
        X = jax.random.normal(data, (12, 8))
        problem = Problem(X, jnp.where(jax.random.bernoulli(labels, shape=(12, 1)), 1.0, -1.0))
        end = descend(
            approximator.init(weights, problem),
            problem,
            num_steps=1000,
            optimizer=optax.sgd(0.02),
            batch_size=4,
            key=batches,
            normalization="sample_mean",
            criterion=mean_loss_below(1e-3),
            losses=approximator,
        )
        return end.status, end.steps, end.loss, approximator.predict(end.params, problem) * problem.Y

    status, steps, loss, margins = jax.jit(jax.vmap(run))(jnp.arange(32))
    done = status == 1
    assert done.sum() >= 29  # A network may die or be slow.
    assert (loss[done] < 12e-3).all()
    assert (margins[done] > 0.9).all()
    assert len(np.unique(steps)) > 10


@pytest.mark.parametrize("batch_size", [None, 2])
def test_descent_tends_to_the_flow_as_the_step_shrinks(batch_size):
    """Theorem 5.6 for a deep network and the logistic loss: the sup-distance to a reference with a far smaller step,
    on the time scale N / b.
    """
    problem = jax.tree.map(jnp.asarray, draw(N=8)[1])
    approximator = approximators.deep([6, 6, 6], loss="logistic")
    params = approximator.init(jax.random.key(3), problem)
    scale = 1 if batch_size is None else 8 / batch_size

    def path(step_size, batch_size, key):
        every = round(0.1 * (1 if batch_size is None else scale) / step_size)
        return descend(
            params, problem, num_steps=10 * every, optimizer=optax.sgd(step_size), batch_size=batch_size, key=key,
            losses=approximator, measure=lambda p: p, measure_every=every,
        ).measurements  # fmt: skip

    reference = jax.jit(lambda: path(0.0005, None, None))()
    sizes = (0.1, 0.05, 0.025) if batch_size is None else (0.1, 0.0125)
    distances = []
    for size in sizes:
        keys = jax.random.split(jax.random.key(0), 1 if batch_size is None else 8)
        paths = jax.jit(jax.vmap(lambda key, s=size: path(s, batch_size, key)))(keys)
        moved = [
            jnp.sum((a - b[None]) ** 2, axis=tuple(range(2, a.ndim)))
            for a, b in zip(jax.tree.leaves(paths), jax.tree.leaves(reference), strict=True)
        ]
        distances.append(float(jnp.sqrt(sum(moved)).max(axis=1).mean()))
    rate = np.polyfit(np.log(sizes), np.log(distances), 1)[0]
    # First order for the full batch; the noise of mini-batches is of the order of the root of the step.
    assert (rate > 0.8) if batch_size is None else (0.3 < rate < 0.8), (rate, distances)


@pytest.mark.parametrize("batch_size", [None, 4])
@pytest.mark.parametrize("shape", [(), (8,), (10, 8), (10, 1), (1, 8)])
def test_slopes_at_zero_for_every_sample_and_neuron(batch_size, shape):
    """As the default network takes them, also where a mini-batch needs its own rows."""
    (W, V), problem = draw(N=10)
    params = Params(jnp.asarray(W).at[:, ::2].set(0), jnp.asarray(V))
    slopes = np.random.default_rng(0).uniform(size=shape)
    options = dict(num_steps=2, optimizer=optax.sgd(0.1), batch_size=batch_size, key=jax.random.key(0), at_zero=slopes)
    problem = jax.tree.map(jnp.asarray, problem)
    default, general = (
        descend(params, problem, **options, **more) for more in ({}, {"losses": approximators.shallow()})
    )
    np.testing.assert_allclose(general.params.W, default.params.W, rtol=1e-10)
    assert np.abs(default.params.W[:, ::2]).max() > 0


def test_labels_that_a_loss_is_not_for():
    X, key = np.ones((6, 4)), jax.random.key(0)
    half = np.full((6, 2), 0.5)
    for loss, Y, words in [
        ("squared", np.ones((6, 3)), r"of one shape, got \(6, 2\) and \(6, 3\)"),
        ("squared", np.ones((6, 1)), "of one shape"),
        ("squared", np.ones((1, 2)), "of one shape"),
        ("hinge", half, "labels of hinge"),
        ("logistic", 2 * np.ones((6, 2)), "labels of logistic"),
        ("cross_entropy", np.ones((6, 2)), "labels of cross_entropy"),
        ("cross_entropy", np.tile([1.5, -0.5], (6, 1)), "labels of cross_entropy"),
    ]:
        it = approximators.deep([4], 2, loss=loss)
        for batch_size in (None, 3):
            with pytest.raises(ValueError, match=words):
                descend(
                    it.init(key, Problem(X, half)), Problem(X, Y), num_steps=1, optimizer=optax.sgd(0.1), losses=it,
                    batch_size=batch_size, key=key,
                )  # fmt: skip
    one = approximators.deep([4], 1, loss="cross_entropy")
    with pytest.raises(ValueError, match="two at least"):
        one.sample_losses(Problem(X, np.ones((6, 1))))
    soft = approximators.deep([4], 2, loss="cross_entropy")
    assert np.isfinite(soft.sample_losses(Problem(X, half))(soft.init(key, Problem(X, half)))).all()
    # Traced labels cannot be seen, their shape can.
    with pytest.raises(ValueError, match="of one shape"):
        jax.jit(lambda Y: soft.sample_losses(Problem(X, Y))(soft.init(key, Problem(X, Y))))(np.ones((6, 3)))


def test_a_deep_network_with_a_loss_and_an_initializer_of_ones_own():
    problem = jax.tree.map(jnp.asarray, draw()[1])
    cubic = lambda outputs, labels: jnp.sum(jnp.abs(labels - outputs) ** 3, axis=1)
    it = approximators.deep([5, 4], loss=cubic, initializer=jax.nn.initializers.orthogonal(2.0))
    theta = it.init(jax.random.key(0), problem)
    kernel = theta["params"]["Dense_1"]["kernel"]
    np.testing.assert_allclose(kernel.T @ kernel, 4 * np.eye(4), atol=1e-12)
    before = np.sum(np.abs(problem.Y - it.predict(theta, problem)) ** 3)
    np.testing.assert_allclose(jnp.sum(it.sample_losses(problem)(theta)), before)
    assert descend(theta, problem, num_steps=30, optimizer=optax.sgd(1e-3), losses=it).loss < before
    for wrong in (lambda outputs, labels: jnp.sum(outputs), lambda outputs, labels: outputs - labels):
        with pytest.raises(ValueError, match=r"of shape \(6,\)"):
            losses = approximators.deep([5], loss=wrong)
            descend(
                losses.init(jax.random.key(0), problem), problem, num_steps=1, optimizer=optax.sgd(1), losses=losses
            )


def test_the_quadratic_hinge_reaches_zero_and_stops_there():
    problem = jax.tree.map(jnp.asarray, draw()[1])
    it = approximators.deep([16, 16], loss="quadratic_hinge", use_bias=True)
    theta = it.init(jax.random.key(1), problem)
    end = descend(theta, problem, num_steps=5000, optimizer=optax.adam(0.01), losses=it, stopping_rule=zero_loss)
    assert end.status == Status.STOPPED
    assert end.loss == 0
    assert 0 < end.steps < 5000
    assert (it.predict(end.params, problem) * problem.Y >= 1).all()


def test_mean_squared_error_of_a_deep_network():
    problem = jax.tree.map(jnp.asarray, draw(d2=2)[1])
    it = approximators.deep([5], 2)
    theta = it.init(jax.random.key(0), problem)
    end = descend(theta, problem, num_steps=1, optimizer=optax.sgd(0.1), losses=it, normalization="mean")
    gradient = jax.grad(lambda theta: jnp.mean((it.predict(theta, problem) - problem.Y) ** 2))(theta)
    jax.tree.map(lambda a, b, g: np.testing.assert_allclose(a, b - 0.1 * g, atol=1e-12), end.params, theta, gradient)
    with pytest.raises(ValueError, match="sample_mean"):
        hinge = approximators.deep([5], 2, loss="hinge")
        descend(theta, problem, num_steps=1, optimizer=optax.sgd(0.1), losses=hinge, normalization="mean")


def test_bad_input():
    for call, words in [
        (lambda: approximators.deep([]), "widths"),
        (lambda: approximators.deep([4, 0]), "widths"),
        (lambda: approximators.deep([4], 0), "num_outputs"),
        (lambda: approximators.deep([4], loss="mine"), "loss must be one of"),
        (lambda: approximators.shallow("mine"), "loss must be one of"),
        (lambda: approximators.shallow(lambda outputs: outputs), r"signature loss\(outputs, labels\)"),
        (lambda: approximators.deep([2], loss=lambda *, outputs: outputs), r"signature loss\(outputs, labels\)"),
        (lambda: approximators.deep([4], loss=["hinge"]), "loss must be one of"),
        (lambda: approximators.deep([4], initializer="normal"), "initializer must be a function"),
        (
            lambda: approximators.Approximator(lambda theta, X, _: X).preactivations(None, draw()[1]),
            "preactivations_of",
        ),
        (lambda: approximators.deep([4.5]), "widths must be a whole number"),
        (lambda: approximators.deep([4], 1.5), "num_outputs must be a whole number"),
        (lambda: approximators.shallow().init(jax.random.key(0), draw()[1]), "no initializer"),
        (lambda: approximators.shallow().sample_losses(draw()[1], at_zero=np.ones((3, 8))), "N = 6 rows"),
        (lambda: approximators.shallow().sample_losses(draw()[1], at_zero=np.ones((1, 6, 8))), "N = 6 rows"),
        (lambda: descend(None, draw()[1], num_steps=1, losses=approximators.deep([4])), "give one"),
    ]:
        with pytest.raises(ValueError, match=words):
            call()
    params, problem = draw()
    approximator = approximators.deep([4])
    with pytest.raises(ValueError, match="needs Params"):
        descend(
            approximator.init(jax.random.key(0), problem),
            problem,
            num_steps=1,
            trained_layers="hidden",
            optimizer=optax.sgd(0.1),
            losses=approximator,
        )
    with pytest.raises(ValueError, match="selection of slopes"):
        descend(
            params,
            problem,
            num_steps=1,
            optimizer=optax.sgd(0.1),
            at_zero=lambda *_: 0,
            losses=approximators.shallow().sample_losses,
        )
