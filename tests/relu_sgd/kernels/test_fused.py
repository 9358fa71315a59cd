"""The Pallas kernel in Pallas' interpreter, and lowered for machines that are not here."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.problems import advanced, arrays, draw

from relu_sgd import Problem, Status
from relu_sgd.kernels import FusedDescent

CRITERION = {"criterion": "relative_error", "tolerance": 0.3}


@pytest.fixture(autouse=True)
def _single(float32):
    pass


@pytest.mark.parametrize(
    ("layers", "sizes", "options"),
    [
        ("hidden", (21, 6, 7, 1), {"momentum": 0.9, "at_zero": 0.3, "stoppable": True}),
        ("both", (13, 3, 18, 2), {"momentum": 0.9, "normalization": "mean"}),
        ("both", (5, 4, 3, 1), {}),
    ],
)
def test_every_field_of_the_state_is_that_of_the_reference(layers, sizes, options):
    N, d0, d1, d2 = sizes
    W, V, X, Y = draw(N, N, d0, d1, d2)
    X[0] = 0.0
    problem, params = arrays(W, V, X, Y, kind=np.float32)
    descent = FusedDescent(0.003, trained_layers=layers, **options, **CRITERION)
    for steps in ((0,), (1,), (9, 30)):
        found, expected = (
            advanced(descent, problem, params, *steps),
            advanced(descent.reference, problem, params, *steps),
        )
        assert jax.tree.structure(found) == jax.tree.structure(expected)
        for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
            assert a.dtype == b.dtype
            np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5)


def test_runs_side_by_side_end_each_by_itself():
    starts = [arrays(*draw(seed, 8, 12, 16), kind=np.float32) for seed in range(3)]
    starts.append(arrays(*draw(3, 8, 12, 16), kind=np.float32))
    starts[3] = (Problem(starts[3][0].X, 1e30 * starts[3][0].Y), starts[3][1])  # Its loss is not finite.
    descent = FusedDescent(0.02, 0.9, **CRITERION)
    follow = lambda one: lambda problem, params: one.result(one.advance_to(one.init(problem, params), 400))
    problems, params = jax.tree.map(lambda *leaves: jnp.stack(leaves), *starts)
    found = jax.jit(jax.vmap(follow(descent)))(problems, params)
    expected = jax.jit(jax.vmap(follow(descent.reference)))(problems, params)
    assert found.status.tolist() == expected.status.tolist() == [*[Status.CONVERGED] * 3, Status.DIVERGED]
    assert len(set(found.steps.tolist())) > 2
    np.testing.assert_array_equal(found.steps, expected.steps)
    never = dataclasses.replace(descent, stop="never", criterion="mean_squared_error", tolerance=1e-3)
    ends = [jax.jit(follow(one))(*starts[0]) for one in (never, never.reference)]
    assert int(ends[0].steps) == 400
    assert 0 < int(ends[0].converged_at) == int(ends[1].converged_at)


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_it_lowers(platform, monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: platform)
    problem, params = arrays(*draw(0, 21, 6, 7), kind=np.float32)
    descent = FusedDescent(0.003, 0.9, **CRITERION)
    advance = jax.jit(jax.vmap(lambda state: descent.advance_to(state, 50)))
    state = jax.tree.map(lambda leaf: leaf[None], descent.init(problem, params))
    name = {"cuda": "__gpu$xla.gpu.triton", "tpu": "tpu_custom_call"}[platform]
    unchecked = [jax.export.DisabledSafetyCheck.custom_call(name)]
    exported = jax.export.export(advance, platforms=[platform], disabled_checks=unchecked)(state)
    assert f"@{name}" in exported.mlir_module()
