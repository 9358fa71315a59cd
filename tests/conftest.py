"""Tests run in float64 unless they say otherwise, on one CPU device per core at most."""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import pytest
from hypothesis import settings

jax.config.update("jax_enable_x64", True)
# The tests compile far more than they run. The launchers' own processes, which some tests start, compile as they do for users.
jax.config.update("jax_disable_most_optimizations", True)
settings.register_profile("ci", deadline=None, max_examples=30, derandomize=True)
settings.load_profile("ci")


@pytest.fixture
def float32():
    """The default precision of JAX, for one test."""
    jax.config.update("jax_enable_x64", False)
    yield
    jax.config.update("jax_enable_x64", True)
