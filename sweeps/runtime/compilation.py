"""Programs that run for less time than they take to compile."""

import functools

import jax

__all__ = ["compile_quickly"]


@functools.cache
def _options(backend: str) -> dict[str, str | bool]:
    """Compiler options with which this version of XLA compiles sooner, at the price of slower loops; none where it has
    none.
    """
    options: dict[str, str | bool] = {"xla_cpu_use_fusion_emitters": False} if backend == "cpu" else {}
    try:
        jax.jit(lambda x: x + 1).lower(0.0).compile(compiler_options=options or None)
    except jax.errors.JaxRuntimeError:  # "No such compile option"
        return {}
    return options


def compile_quickly(lowered: jax.stages.Lowered) -> jax.stages.Compiled:
    """A program that runs once or twice, compiled sooner; its matrix products are the same."""
    return lowered.compile(compiler_options=_options(jax.default_backend()) or None)
