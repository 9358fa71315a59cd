"""Where gradient flow ends with orthogonal rows: against the inclusion's own solutions, descent and simulation."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from relu_sgd import Params, Problem, descend, proofs
from relu_sgd.theory import orthogonal


def drawn(N, d0, d1, seed, *, balanced=True):
    """Orthogonal rows, of norms 1 where `balanced`, and else norms, labels and output weights of any size, some 0."""
    rng = np.random.default_rng(seed)
    X = np.linalg.qr(rng.normal(size=(d0, N)))[0].T
    y, v = np.resize([1.0, -1.0], N), np.resize([1.0, -1.0], d1) / np.sqrt(d1)
    if not balanced:
        X *= rng.uniform(0.7, 1.5, size=(N, 1))
        y, v = (values * rng.uniform(0.7, 1.5, size=len(values)) for values in (y, v))
        y[0], v[-1] = 0.0, 0.0
    return X, y, rng.normal(size=(d0, d1)) / np.sqrt(d0), v


def euler(X, y, W, v, step, num_steps):
    """Explicit Euler on sign patterns, in plain NumPy: a step size that vanishes gives the flow."""
    W = W.copy()
    for _ in range(num_steps):
        Z = X @ W
        W += step * X.T @ (np.outer(y - np.maximum(Z, 0) @ v, v) * (Z > 0))
    return 0.5 * np.sum((y - np.maximum(X @ W, 0) @ v) ** 2)


@pytest.mark.parametrize("balanced", [True, False])
def test_the_limit_of_the_flow(balanced):
    limits = []
    for seed in range(12):
        problem = drawn(6, 7, 4 + 4 * (seed % 2), seed, balanced=balanced)
        limits.append(orthogonal.flow_limit_loss(*problem))
        assert euler(*problem, step=0.03, num_steps=8_000) == pytest.approx(limits[-1], abs=1e-6)
    # Starts of both kinds are among them.
    assert min(limits) == 0 < max(limits)


def test_ends_of_descent_are_proved_minima_of_that_loss():
    """Heavy ball at rate 0.15, the paper's, ends there too: momentum carries no sample across."""
    verdicts = set()
    for seed in range(6):
        X, y, W, v = drawn(12, 16, 6, seed)
        problem = Problem(jnp.asarray(X, jnp.float32), jnp.asarray(y[:, None], jnp.float32))
        start = Params(jnp.asarray(W, jnp.float32), jnp.asarray(v[:, None], jnp.float32))
        end = descend(start, problem, optimizer=optax.sgd(0.15, momentum=0.9), num_steps=1_000, trained_layers="hidden")
        limit = orthogonal.flow_limit_loss(X, y, W, v)
        assert float(end.loss) == pytest.approx(limit, abs=1e-3)
        double = lambda pair: type(pair)(*(np.asarray(part, np.float64) for part in pair))
        proof = proofs.decide(double(end.params), double(problem))
        assert proof.loss[0] - 1e-5 <= limit <= proof.loss[1] + 1e-5
        verdicts.add((proof.verdict, limit > 0))
    assert verdicts == {(proofs.Verdict.LOCAL_MINIMUM, True), (proofs.Verdict.GLOBAL_MINIMUM, False)}


def test_probability_against_simulation():
    N, d1, starts = 8, 6, 4_000
    rng = np.random.default_rng(0)
    X, y, _, v = drawn(N, N, d1, 0)
    v[1] = 2.0  # Four positive weights, two negative.
    supported = [not orthogonal.is_unsupported(X, y, rng.normal(size=(N, d1)), v).any() for _ in range(starts)]
    expected = orthogonal.success_probability(y, v)
    assert expected == pytest.approx((1 - 2.0**-4) ** 4 * (1 - 2.0**-2) ** 4)
    assert abs(np.mean(supported) - expected) < 4 * np.sqrt(expected * (1 - expected) / starts)
    assert orthogonal.success_probability(np.resize([1.0, -1.0], 50), np.resize([1.0, -1.0], 12)) == pytest.approx(
        (1 - 2.0**-6) ** 50
    )
    assert orthogonal.success_probability(y, np.abs(v)) == 0
    assert orthogonal.success_probability(np.abs(y), np.abs(v)) == pytest.approx((1 - 2.0**-6) ** 8)


def test_lists_and_rows_rounded_to_single_precision():
    X, y, W, v = drawn(20, 25, 4, 1)
    limit = orthogonal.flow_limit_loss(X, y, W, v)
    assert orthogonal.flow_limit_loss(X.astype(np.float32), y, W, v) == limit > 0
    assert orthogonal.flow_limit_loss(*(part.tolist() for part in (X, y, W, v))) == limit


def test_what_is_refused():
    X, y, W, v = drawn(4, 5, 6, 0)
    with pytest.raises(ValueError, match="orthogonal"):
        orthogonal.flow_limit_loss(X + 0.1, y, W, v)
    with pytest.raises(ValueError, match="preactivation is 0"):
        orthogonal.flow_limit_loss(X, y, np.zeros_like(W), v)
    with pytest.raises(ValueError, match="need X"):
        orthogonal.is_unsupported(X, y[:3], W, v)
    with pytest.raises(ValueError, match="not finite"):
        orthogonal.success_probability(y, v * np.nan)
