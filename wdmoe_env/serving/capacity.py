"""What a channel sustains: requests a second of a queue that is never empty, under own routing with optimal shares.

A cell with a bad channel is overloaded by arrivals that a good one hardly notes. So a load is given in units of what
the episode's own channel sustains: S slots that are always taken finish S requests in the mean number of passes of a
request, and a pass takes the sum of its blocks' latencies. That sum is the mean over a few passes of text tokens, drawn
once for all episodes, at times spread over the channel.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from wdmoe_env.optimize.bandwidth import solve_min_max
from wdmoe_env.physics.latency import Bool, Float, device_load
from wdmoe_env.rollout.rollout import Radio, World
from wdmoe_env.serving.arrivals import Draws
from wdmoe_env.serving_config import ServingConfig

PASSES = 32
"""Passes that the estimate is a mean over."""

_SEED = 20_260_101  # of the passes, which are the same for every episode


class Capacity:
    """Estimates what channels sustain.

    Args:
        world: what all episodes share.
        serving: slots and chunks.
        draws: how long requests are.
        routed: (I, M, E) own routing of some tokens of the text.
    """

    def __init__(self, world: World, serving: ServingConfig, draws: Draws, routed: Bool) -> None:
        self._world, self._serving = world, serving
        likely, self.passes_per_request = draws.rows_of_passes()
        generator = np.random.default_rng(_SEED)
        counts = generator.choice(len(likely), size=(PASSES, serving.slots), p=likely) + 1
        rows = counts.sum(axis=-1)
        most, tokens = int(rows.max()), routed.shape[1]
        drawn = generator.integers(tokens, size=(PASSES, most))
        self._selection = routed[:, drawn] & (np.arange(most) < rows[:, None])[..., None]

    def of(self, full_band_snr: Float) -> float:
        """Requests a second that one episode's channel sustains.

        Args:
            full_band_snr: (X, 2, U) of its channel, in the order of time.
        """
        at = np.arange(PASSES) * len(full_band_snr) // PASSES
        pass_s = len(self._selection) * self._serving.base_station_ms * 1e-3
        for block, selection in enumerate(self._selection):
            links = links_at(self._world, full_band_snr[at], block).conditions[0].links
            load = device_load(selection, links)
            pass_s += float(solve_min_max(links, load, self._world.config.min_share).latency_s.mean())
        return self._serving.slots / (self.passes_per_request * pass_s)


def links_at(world: World, full_band_snr: Float, block: int) -> Radio:
    """Links of n episodes at some times, and what equal shares give on them, as of an episode of one block.

    Args:
        world: what all episodes share.
        full_band_snr: (n, 2, U) gamma / B of each.
        block: number of the block, which says where its experts are.
    """
    return Radio.of(replace(world, placement=world.placement[block : block + 1]), full_band_snr[None])
