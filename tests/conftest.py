"""Tests run in float64 unless they say otherwise, on one CPU device per core at most."""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import jaxtyping
import pytest
from hypothesis import settings
from support import annotations

# Types and shapes in the annotations are checked at every call, in whatever is imported after this.
jaxtyping.install_import_hook(annotations.CHECKED, f"{annotations.__name__}.{annotations.check.__name__}")

jax.config.update("jax_enable_x64", True)
settings.register_profile("ci", deadline=None, max_examples=30, derandomize=True)
settings.load_profile("ci")


@pytest.fixture(scope="module", autouse=True)
def _compilation(request):
    """Most tests compile far more than they run, so XLA may leave its costly passes out."""
    as_processes_do = any(map(request.node.get_closest_marker, ("compiled_in_full", "compiled_alike")))
    jax.config.update("jax_disable_most_optimizations", not as_processes_do)


@pytest.fixture(scope="module", autouse=True)
def _promotion(request):
    """Who uses the core may be strict about ranks and types, so it is tested so; functions of a user's own, in sweeps,
    examples and docs, mostly meet JAX's defaults.
    """
    is_core = request.path.relative_to(request.config.rootpath).parts[1] == "relu_sgd"
    jax.config.update("jax_numpy_rank_promotion", "raise" if is_core else "allow")
    jax.config.update("jax_numpy_dtype_promotion", "strict" if is_core else "standard")


@pytest.fixture(autouse=True)
def _types(request):
    """What a test passes wrongly on purpose meets the function's own refusal, not its annotation's."""
    jaxtyping.config.update("jaxtyping_disable", request.node.get_closest_marker("wrong_types") is not None)


@pytest.fixture
def float32():
    """The default precision of JAX, for one test."""
    jax.config.update("jax_enable_x64", False)
    yield
    jax.config.update("jax_enable_x64", True)
