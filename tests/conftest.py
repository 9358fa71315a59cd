"""Tests run in float64 unless they say otherwise, on one CPU device per core at most."""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import pytest
from hypothesis import settings

jax.config.update("jax_enable_x64", True)
settings.register_profile("ci", deadline=None, max_examples=30, derandomize=True)
settings.load_profile("ci")


<<<<<<< HEAD
# Where the very program counts that users run: the steps of a descent, draws to the bit, a whole sweep. The other tests compile
# far more than they run, so XLA may leave its costly passes out.
COMPILED_IN_FULL = {
    "test_convergence_map",
    "test_descent",
    "test_draws",
    "test_engine",
    "test_network",
    "test_sweep_limits",
}


=======
>>>>>>> main
@pytest.fixture(scope="module", autouse=True)
def _compilation(request):
    """Most tests compile far more than they run, so XLA may leave its costly passes out."""
    in_full = request.node.get_closest_marker("compiled_in_full") is not None
    jax.config.update("jax_disable_most_optimizations", not in_full)


@pytest.fixture
def float32():
    """The default precision of JAX, for one test."""
    jax.config.update("jax_enable_x64", False)
    yield
    jax.config.update("jax_enable_x64", True)
