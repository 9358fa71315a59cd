"""Which element of the subdifferential descent takes: fixed, random and minimum-norm slopes."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from relu_sgd import Descent, Params, Problem, descend, loss
from relu_sgd.clarke import selections
from relu_sgd.initialization import balanced_sign_output, normal_hidden
from relu_sgd.problem import balanced_labels, sphere_rows

# At W = 0 sample -1 pulls one way with slope 0 and sample 1 the other way with slope 1.
PROBLEM = Problem(jnp.array([[1.0], [-1.0]]), jnp.array([[1.0], [-0.5]]))
START = Params(jnp.zeros((1, 1)), jnp.ones((1, 1)))


def one_step(at_zero, seed=0, **keywords):
    return descend(
        START, PROBLEM, num_steps=1, optimizer=optax.sgd(1.0), trained_layers="hidden", at_zero=at_zero,
        key=jax.random.key(seed), **keywords,
    ).params.W.item()  # fmt: skip


def test_every_selection_takes_its_own_element():
    # The step is r_1 * 1 - r_2 * (-0.5) * ... = r_1 + 0.5 r_2.
    assert one_step(0.0) == 0
    assert one_step(1.0) == 1.5
    assert one_step(0.5) == 0.75
    assert one_step(selections.minimum_norm()) == pytest.approx(0, abs=1e-12)
    drawn = [one_step(selections.random(), seed) for seed in range(5)]
    assert len(set(drawn)) == 5
    assert 0 < min(drawn) < max(drawn) < 1.5


def test_minimum_norm_balances_opposite_pulls():
    problem = Problem(jnp.array([[1.0], [2.0], [-1.0]]), jnp.array([[1.0], [-1.0], [0.25]]))
    # Elements r_1 - 2 r_2 - r_3 / 4 reach 0 with r in the box; relu'(0) = 1 gives -1.25.
    ends = descend(
        START, problem, num_steps=1, optimizer=optax.sgd(1.0), trained_layers="hidden",
        at_zero=selections.minimum_norm(), key=jax.random.key(0),
    )  # fmt: skip
    assert ends.params.W.item() == pytest.approx(0, abs=1e-12)
    too_small = descend(
        START, problem, num_steps=1, optimizer=optax.sgd(1.0), trained_layers="hidden",
        at_zero=selections.minimum_norm(max_kinks=1), key=jax.random.key(0),
    )  # fmt: skip
    # Sample 0 has room, samples 1 and 2 get 1/2: the least norm with room for r_1 alone ignores them.
    assert too_small.params.W.item() == pytest.approx(-1.125, abs=1e-12)


def generic(dtype=float):
    keys = jax.random.split(jax.random.key(3), 3)
    problem = Problem(sphere_rows(keys[0], 20, 5), balanced_labels(keys[1], 20))
    return Params(normal_hidden(keys[2], 5, 8), balanced_sign_output(8)), problem


@pytest.mark.parametrize("selection", [selections.random(), selections.minimum_norm()])
@pytest.mark.parametrize("batch_size", [None, 7])
def test_off_the_kinks_a_selection_changes_nothing_but_the_batches(selection, batch_size):
    params, problem = generic()
    keywords = dict(num_steps=50, optimizer=optax.sgd(0.01, momentum=0.9), key=jax.random.key(1), batch_size=batch_size)
    chosen = descend(params, problem, at_zero=selection, **keywords)
    assert chosen.loss < loss(params, problem)
    if batch_size is None:
        fixed = descend(params, problem, **keywords)
        np.testing.assert_allclose(chosen.params.W, fixed.params.W, atol=1e-12)


@pytest.mark.parametrize("selection", [selections.random(), selections.minimum_norm()])
def test_a_selection_trains_on_the_mini_batches_of_a_fixed_slope(selection):
    """Off the kinks all slopes are the same, so that the same key gives the same run, to rounding."""
    params, problem = generic()
    keywords = dict(num_steps=50, optimizer=optax.sgd(0.01), key=jax.random.key(1), batch_size=7)
    chosen = descend(params, problem, at_zero=selection, **keywords)
    fixed = descend(params, problem, at_zero=0, **keywords)
    np.testing.assert_allclose(chosen.params.W, fixed.params.W, atol=1e-12)
    np.testing.assert_allclose(chosen.loss, fixed.loss, rtol=1e-12)
    other = descend(params, problem, at_zero=0, **{**keywords, "key": jax.random.key(2)})
    assert np.abs(other.params.W - fixed.params.W).max() > 1e-3


def test_random_slopes_are_independent_of_the_mini_batches():
    """In threefry fold_in(key, i) is split(key)[i]: slopes must not be drawn from a key that a permutation uses."""
    seen = []

    def spy(params, problem, key):
        seen.append(key)
        return jnp.where(problem.X @ params.W > 0, 1.0, 0.0)

    params, problem = generic()
    descent = Descent(optax.sgd(0.01), batch_size=7, at_zero=spy)
    key = jax.random.key(4)
    used = set()
    for step in range(30):
        descent.evaluator(problem, key)(params, jnp.int32(step))
        batch = jax.random.fold_in(key, step)
        for made in (batch, *jax.random.split(batch), *jax.random.split(jax.random.split(batch)[0])):
            used.add(tuple(np.asarray(jax.random.key_data(made)).tolist()))
    drawn = {tuple(np.asarray(jax.random.key_data(key)).tolist()) for key in seen}
    assert len(drawn) == 30
    assert not drawn & used


def test_a_line_search_sees_the_selection():
    params, problem = generic()
    for selection in (selections.random(), selections.minimum_norm()):
        end = descend(params, problem, num_steps=10, optimizer=optax.lbfgs(), at_zero=selection, key=jax.random.key(0))
        assert end.loss < 0.5 * loss(params, problem)


def test_random_slopes_do_not_depend_on_padding():
    slopes = selections.random()
    narrow = slopes(
        Params(jnp.zeros((2, 3)), jnp.ones((3, 1))), Problem(jnp.ones((4, 2)), jnp.ones((4, 1))), jax.random.key(0)
    )
    wide = slopes(
        Params(jnp.zeros((2, 5)), jnp.ones((5, 1))), Problem(jnp.ones((4, 2)), jnp.ones((4, 1))), jax.random.key(0)
    )
    np.testing.assert_array_equal(wide[:, :3], narrow)
    assert len(np.unique(wide)) == wide.size


def test_a_selection_needs_a_key_and_room():
    with pytest.raises(ValueError, match="needs a key"):
        descend(START, PROBLEM, num_steps=1, at_zero=selections.random())
    with pytest.raises(ValueError, match="exceeds the number of samples"):
        descend(START, PROBLEM, num_steps=1, at_zero=selections.random(), batch_size=3, key=jax.random.key(0))
    with pytest.raises(ValueError, match="max_kinks"):
        selections.minimum_norm(0)
