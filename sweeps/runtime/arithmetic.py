"""What would decide results besides flags and code: options of JAX and XLA that the environment may set.

A configuration hash stands for one set of results. So what can be pinned is pinned, whatever JAX_* variables say; what
breaks the arithmetic is refused; the rest, which may change last digits as another machine may, is recorded.
"""

import re
from typing import Any

import jax
from jaxtyping import Array, Key, UInt32

from sweeps.study import UsageError

__all__ = ["check", "key", "pin", "recorded", "wrap"]

# The generator of random numbers, part of the science: its bits are the same on all devices.
GENERATOR = "threefry2x32"

PINNED: dict[str, Any] = {
    "jax_default_prng_impl": GENERATOR,
    "jax_random_seed_offset": 0,
    "jax_threefry_partitionable": True,
    "jax_default_matmul_precision": "highest",
    # Stricter rules would not change a result, but refuse functions of a user's own.
    "jax_numpy_dtype_promotion": "standard",
    "jax_numpy_rank_promotion": "allow",
    "jax_disable_jit": False,
}


def key(seed: int) -> Key[Array, ""]:
    """The key that all keys of a sweep are folded from."""
    return jax.random.key(seed, impl=GENERATOR)


def wrap(data: UInt32[Array, "2"]) -> Key[Array, ""]:
    """A key again, from its raw data."""
    return jax.random.wrap_key_data(data, impl=GENERATOR)


def pin(precision: str) -> None:
    """Sets the options of JAX that decide results, in this process."""
    for name, value in {**PINNED, "jax_enable_x64": precision == "float64"}.items():
        jax.config.update(name, value)


def check(xla_flags: str) -> None:
    """Refuses arithmetic in which a diverged run would not be seen.

    Raises:
      UsageError: XLA may assume that there is no NaN.
    """
    if re.search(r"--xla_cpu_enable_fast_math(?!=(false|0))(\s|=|$)", xla_flags):
        raise UsageError("XLA_FLAGS: with --xla_cpu_enable_fast_math XLA assumes that there is no NaN; unset it")


def recorded(xla_flags: str) -> dict[str, Any]:
    """What may change last digits of a run: XLA's flags, and how far it optimizes."""
    options = ("jax_optimization_level", "jax_disable_most_optimizations")
    return {"xla_flags": xla_flags, **{name: str(jax.config.values[name]) for name in options}}
