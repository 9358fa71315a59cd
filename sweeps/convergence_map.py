"""The probability that gradient descent finds a global minimum, over (d0, d1): Figure 2 of the paper.

python -m sweeps.convergence_map --protocol=as_written --out=DIR

trains every network of the grid, in every set-up, and leaves DIR/results.zarr, DIR/summary.csv and DIR/figures. The same
command goes on after an interruption.
"""

import functools
from collections.abc import Callable

import jax
import numpy as np
from absl import logging

from sweeps import experiment, launch, plan, protocol_settings
from sweeps.engine import Timings
from sweeps.launch import Launcher, Sweep
from sweeps.plan import Tile
from sweeps.protocol import Protocol, for_setup, parts_of, science, setups
from sweeps.protocol_settings import Settings, flagfile
from sweeps.settings import Execution
from sweeps.store import Store


def run_tile(
    protocol: Protocol, lanes: int, steps_per_chunk: int, num_devices: int, tile: Tile
) -> tuple[dict[str, np.ndarray], Timings]:
    """Trains the networks of a tile on the devices of this process.

    Args:
      protocol: of the sweep.
      lanes, steps_per_chunk, num_devices: see `settings.Execution`.
      tile: what to train.

    Returns:
      The records of its runs, and the seconds that went into each part of the work.
    """
    result = experiment.train_tile(
        for_setup(protocol, tile.setup),
        parts_of(tile.setup)[0],
        tile,
        lanes=lanes,
        steps_per_chunk=steps_per_chunk,
        devices=jax.local_devices()[: num_devices or None],
    )
    jax.clear_caches()  # No other tile has this one's shape: let its program go, or memory grows with the sweep.
    return result


def cost_of(num_samples: int, num_steps: int) -> Callable[[Tile], float]:
    """How long the runs of a tile take, in any unit: a step's cost times a guess at the steps.

    Networks with d0 d1 far below N cannot fit their labels and take every step, and those far above it take a few
    hundred; in between, which is about where half of them converge, the share of all steps falls as a power of d0 d1 / N.
    """

    def cost(tile: Tile) -> float:
        load = np.outer(tile.d0, tile.d1) / (1.1 * num_samples)
        return plan.cost(tile) * float(np.mean(np.minimum(num_steps, 300 + num_steps / (1 + load**4))))

    return cost


def _report(store: Store, execution: Execution) -> None:
    # Imported here, because worker processes import this module, and plots and tables would keep them seconds.
    from sweeps.report import report

    report(store, execution.out, execution.interval)


def run(chosen: Settings) -> None:
    """The whole sweep: train what is pending, then draw what there is."""
    protocol, layers, execution = chosen.protocol, chosen.trained_layers, chosen.execution
    if execution.figures_only:
        _report(launch.open_results(execution.out), execution)
        return
    precision = np.dtype(protocol.precision)
    takes_every_step = protocol.stop == "never" or protocol.dynamics == "inclusion"
    sweep = Sweep(
        protocol_name=protocol.name,
        flags=flagfile(protocol.name, science(protocol, layers)),
        science=science(protocol, layers),
        setups=setups(protocol, layers),
        d0=protocol.d0,
        d1=protocol.d1,
        num_seeds=protocol.num_seeds,
        precision=protocol.precision,
        metrics={name: (kind or precision, text) for name, (kind, text) in experiment.metrics(protocol).items()},
        run_tile=functools.partial(
            run_tile, protocol, execution.lanes, execution.steps_per_chunk, execution.num_devices
        ),
        cost=plan.cost if takes_every_step else cost_of(protocol.num_samples, protocol.num_steps),
    )
    store = launch.train(sweep, execution)
    if any(store.pending(setup).any() for setup in setups(protocol, layers)):
        logging.info("this shard is done; others are not, so no figures yet (--figures_only draws them at any time)")
        return
    _report(store, execution)


LAUNCHER = Launcher(
    "convergence_map", __doc__, protocol_settings.read, run, ("sweeps.protocol_settings", "sweeps.settings")
)

if __name__ == "__main__":
    launch.main(LAUNCHER)
