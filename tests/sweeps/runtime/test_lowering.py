"""What a sweep compiles, lowered for machines that are not here: for CUDA and TPU, without a collective, without a word
to the host, in full precision.
"""

import functools
import re

import jax
import jax.numpy as jnp
import pytest
from support.launchers import sized
from support.runs import small

from sweeps.protocol import runs as protocol_runs
from sweeps.protocol.draw import draw_run, draw_tile
from sweeps.runtime import engine

pytestmark = pytest.mark.usefixtures("float32")

TILE = sized("hidden", (3, 4), (4, 6), 2)
COLLECTIVES = ("all_reduce", "all_gather", "all_to_all", "collective", "reduce_scatter", "all-reduce", "all-gather")
HOST = ("callback", "infeed", "outfeed", "send", "recv")


def lowered(platform, function, *arguments):
    """The program's StableHLO."""
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(jnp.shape(leaf), jnp.result_type(leaf)), arguments)
    return jax.export.export(jax.jit(function), platforms=[platform])(*shapes).mlir_module()


def on_one_device(function):
    """As the engine maps it."""
    mesh = engine._mesh(jax.devices()[:1])
    return jax.shard_map(function, mesh=mesh, in_specs=engine.LANES, out_specs=engine.LANES, check_vma=False)


def check(text, *, products=True):
    dots = re.findall(r"stablehlo\.dot_general.*", text)
    assert bool(dots) == products
    for dot in dots:
        assert "precision = [HIGHEST, HIGHEST]" in dot, dot
    assert "bf16" not in text
    assert "tf32" not in text.lower()
    operations = set(re.findall(r"stablehlo\.\w+|@[\w.$-]+", text))
    for word in (*COLLECTIVES, *HOST):
        assert not [name for name in operations if word in name], word


@pytest.fixture(params=["cuda", "tpu"])
def platform(request):
    return request.param


@pytest.mark.parametrize(
    ("layers", "options"),
    [
        ("hidden", {}),
        ("both", {"batch_size": 3, "relu_at_zero": "random"}),
        ("hidden", {"relu_at_zero": "minimum_norm"}),
        ("hidden", {"stop": "decided"}),
    ],
)
def test_chunks_of_descent(platform, layers, options):
    protocol = small(precision="float32", **options)
    descent = protocol_runs.descent_of(protocol, layers)
    starts = protocol_runs.starts_of(draw_tile(protocol, TILE))
    states = jax.eval_shape(jax.vmap(engine.begin(descent)), engine.raw(starts))
    check(lowered(platform, on_one_device(engine.chunk(descent, 100, 1_000)), states))


def test_the_inclusion(platform):
    jax.config.update("jax_enable_x64", True)
    protocol = small(dynamics="inclusion", criterion="relative_error")
    follow = protocol_runs.follow_inclusion(protocol, "hidden")
    runs = draw_tile(protocol, TILE)
    check(lowered(platform, on_one_device(jax.vmap(follow)), runs))


def test_draws_and_measurements(platform):
    protocol = small(precision="float32")
    runs = draw_tile(protocol, TILE)
    keys = jnp.zeros((3,), jnp.int32)
    check(lowered(platform, lambda run: draw_run(protocol, run, (4, 6)), keys), products=False)
    descent = protocol_runs.descent_of(protocol, "hidden")
    follow = lambda start: protocol_runs._end_of(descent.result(descent.init(start.problem, start.params)))
    one = jax.tree.map(lambda leaf: leaf[0], runs)
    ends = jax.eval_shape(follow, one)
    check(lowered(platform, functools.partial(protocol_runs.measure_run, protocol), one, ends))
