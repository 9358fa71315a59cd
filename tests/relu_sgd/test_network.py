"""Network, loss and Jacobian Gram matrix against the NumPy reference and automatic differentiation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads
from support import numpy_reference as reference
from support.problems import draw

from relu_sgd import Params, Problem, hidden_layer, jacobian_gram, loss, preactivations, predict, sample_losses
from relu_sgd.proofs import decide
from relu_sgd.theory.certificate import certificate
from relu_sgd.theory.conditions import board

pytestmark = pytest.mark.compiled_in_full


def jax_arrays(arrays, dtype=np.float64):
    W, V, X, Y = (jnp.asarray(array, dtype) for array in arrays)
    return Params(W, V), Problem(X, Y)


@pytest.mark.parametrize("d2", [1, 3])
@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float32, 1e-5), (np.float64, 1e-13)])
def test_forward_and_loss(d2, dtype, tolerance):
    W, V, X, Y = draw(d2=d2)
    params, problem = jax_arrays((W, V, X, Y), dtype)
    Z, H, predictions = reference.forward(W, V, X)
    for found, expected in (
        (preactivations(params, problem), Z),
        (hidden_layer(params, problem), H),
        (predict(params, problem), predictions),
    ):
        assert found.dtype == dtype
        np.testing.assert_allclose(found, expected, rtol=tolerance, atol=tolerance)
    half = reference.half_sum(W, V, X, Y)
    np.testing.assert_allclose(loss(params, problem), half, rtol=tolerance)
    np.testing.assert_allclose(
        loss(params, problem, normalization="mean"), ((Y - predictions) ** 2).mean(), rtol=tolerance
    )
    losses = sample_losses(problem)(params)
    np.testing.assert_allclose(losses, 0.5 * ((Y - predictions) ** 2).sum(axis=1), rtol=10 * tolerance)
    np.testing.assert_allclose(
        sample_losses(problem)(params, jnp.array([3, 1])), losses[np.array([3, 1])], rtol=tolerance
    )


@pytest.mark.parametrize("d2", [1, 3])
@pytest.mark.parametrize("at_zero", [0.0, 0.5, 1.0])
def test_gradients(d2, at_zero):
    W, V, X, Y = draw(d2=d2)
    W[:, 0] = 0  # A neuron on the kink of every sample.
    params, problem = jax_arrays((W, V, X, Y))
    found = jax.grad(loss)(params, problem, at_zero=at_zero)
    expected = reference.gradients(W, V, X, Y, at_zero)
    np.testing.assert_allclose(found.W, expected[0], atol=1e-12)
    np.testing.assert_allclose(found.V, expected[1], atol=1e-12)
    assert np.abs(found.W[:, 0]).max() > 0 or at_zero == 0


def test_gradient_equals_finite_differences():
    params, problem = jax_arrays(draw())
    gradient = jax.grad(loss)(params, problem)
    direction = Params(*(jnp.asarray(np.random.default_rng(1).normal(size=leaf.shape)) for leaf in params))
    along = lambda step: loss(jax.tree.map(lambda a, b: a + step * b, params, direction), problem)
    slope = sum(jnp.vdot(a, b) for a, b in zip(gradient, direction, strict=True))
    np.testing.assert_allclose((along(1e-6) - along(-1e-6)) / 2e-6, slope, rtol=1e-7)


@pytest.mark.parametrize("d2", [1, 3])
@pytest.mark.parametrize("trained_layers", ["hidden", "both"])
@pytest.mark.parametrize("at_zero", [0.0, 0.5])
def test_jacobian_gram(d2, trained_layers, at_zero):
    W, V, X, Y = draw(num_samples=7, d2=d2)
    W[:, 0] = 0
    params, problem = jax_arrays((W, V, X, Y))
    J = reference.jacobian(W, V, X, at_zero, trained_layers)
    found = jacobian_gram(params, problem, trained_layers=trained_layers, at_zero=at_zero)
    np.testing.assert_allclose(found, J @ J.T, atol=1e-12)
    if at_zero == 0:  # A second formula: the Jacobian of predict by automatic differentiation.
        leaves = jax.jacrev(predict)(params, problem)
        leaves = leaves[:1] if trained_layers == "hidden" else leaves
        J = jnp.concatenate([leaf.reshape(7 * d2, -1) for leaf in leaves], axis=1)
        np.testing.assert_allclose(found, J @ J.T, atol=1e-12)


def test_everything_batches():
    params, problem = jax_arrays(draw())
    batch = jax.tree.map(lambda leaf: jnp.stack([leaf, 2 * leaf]), params)
    for function in (predict, loss, jacobian_gram):
        found = jax.vmap(function, in_axes=(0, None))(batch, problem)
        np.testing.assert_allclose(found[0], function(params, problem), rtol=1e-12)


@pytest.mark.wrong_types
@pytest.mark.parametrize("function", [preactivations, predict, loss, jacobian_gram, certificate, board, decide])
def test_arguments_of_another_kind_are_named(function):
    params, problem = Params(jnp.ones((4, 3)), jnp.ones((3, 1))), Problem(jnp.ones((5, 4)), jnp.ones((5, 1)))
    with pytest.raises(TypeError, match="params must be a Params of W and V, got NoneType"):
        function(None, problem)
    with pytest.raises(TypeError, match="problem must be a Problem of X and Y, got tuple"):
        function(params, tuple(problem))


@pytest.mark.parametrize("function", [preactivations, predict, loss, jacobian_gram])
def test_shapes_that_do_not_fit_are_named(function):
    W, V, X, Y = map(jnp.asarray, draw())
    for params, problem in (
        (Params(W[:-1], V), Problem(X, Y)),
        (Params(W, V[:-1]), Problem(X, Y)),
        (Params(W, V), Problem(X, Y[:-1])),
        (Params(W, jnp.ones((8, 2))), Problem(X, Y)),
        (Params(W, V[:, 0]), Problem(X, Y)),
    ):
        with pytest.raises(ValueError, match=r"need X: N x d0.*got X: \(20, 5\)"):
            function(params, problem)


@pytest.mark.wrong_types
def test_bad_options():
    params, problem = jax_arrays(draw())
    with pytest.raises(ValueError, match="normalization"):
        loss(params, problem, normalization="sum")
    with pytest.raises(ValueError, match="trained_layers"):
        jacobian_gram(params, problem, trained_layers="output")


@pytest.mark.parametrize("d0", [5, 8, 16])
def test_derivatives_by_weights_and_data(d0):
    """Whether the gradient's product reads X in rows depends on d0; derivatives of either order must not."""
    params, problem = jax_arrays(draw(d0=d0))
    objective = lambda W, V, X: loss(Params(W, V), Problem(X, problem.Y))
    check_grads(
        objective, (*params, problem.X), order=2, modes=("fwd", "rev"), atol=1e-3, rtol=1e-5
    )  # Entries are of order 100.
