"""Draws of odd sizes, padded and traced in other ways than one, and their digest: for this process or
one of its own.
"""

import hashlib

import jax
import jax.numpy as jnp
import numpy as np

from relu_sgd import initialization, problem

# (d0, d1), and the padded (d0, d1).
SHAPES = (((5, 7), (16, 8)), ((3, 33), (3, 64)), ((1, 1), (9, 2)), ((13, 6), (21, 6)))
NUM_SAMPLES = 33


def laws(key, d0, d1, padded=(None, None)):
    """Everything that has rounding in it: by name, what `SHAPES` leaves of it."""
    p0, p1 = {"padded_d0": padded[0]}, {"padded_d1": padded[1]}
    return {
        "sphere": problem.sphere_rows(key, NUM_SAMPLES, d0, jnp.sqrt(jnp.asarray(d0, float)), **p0),
        "hidden": initialization.lecun_hidden(key, d0, d1, **p0, **p1),
        "output": initialization.uniform_output(key, d1, 2, **p1),
    }


def true_part(drawn, d0, d1):
    """The arrays without their padding, which must be 0."""
    sizes = {"sphere": (NUM_SAMPLES, d0), "hidden": (d0, d1), "output": (d1, 2)}
    cut = {name: np.asarray(drawn[name])[:rows, :columns] for name, (rows, columns) in sizes.items()}
    for name, array in cut.items():
        assert np.count_nonzero(drawn[name]) == np.count_nonzero(array) == array.size, name
    return cut


def keys():
    return jax.random.split(jax.random.key(7), len(SHAPES))


def together():
    """All shapes in one program: padded to the largest, with traced sizes, mapped over keys."""
    sizes = jnp.asarray([sizes for sizes, _ in SHAPES])
    drawn = jax.jit(jax.vmap(lambda key, size: laws(key, *size, padded=(24, 64))))(keys(), sizes)
    return [
        true_part(jax.tree.map(lambda leaf, index=index: leaf[index], drawn), *sizes)
        for index, (sizes, _) in enumerate(SHAPES)
    ]


def digest(drawn):
    """Of all bits, in the order of `SHAPES`."""
    found = hashlib.sha256()
    for arrays in drawn:
        for name in sorted(arrays):
            found.update(name.encode() + arrays[name].tobytes())
    return found.hexdigest()[:16]


def assert_same(one, other):
    for name in one:
        np.testing.assert_array_equal(one[name], other[name], err_msg=name)


if __name__ == "__main__":
    for precision in ("float32", "float64"):
        jax.config.update("jax_enable_x64", precision == "float64")
        drawn = together()
        size = SHAPES[1][0][0]
        radius = jnp.sqrt(jnp.asarray(size, float))
        alone = jax.jit(lambda size=size, radius=radius: problem.sphere_rows(keys()[1], NUM_SAMPLES, size, radius))()
        np.testing.assert_array_equal(alone, drawn[1]["sphere"])
        print(precision, digest(drawn))
