"""Latencies by the clock in the place of the simulated ones, where a runner measures."""

from __future__ import annotations

import numpy as np

from wdmoe_env.actions import Plan
from wdmoe_env.metrics import BlockResult
from wdmoe_env.moe.measuring import BlockPace, Measurement
from wdmoe_env.physics import latency
from wdmoe_env.physics.latency import DOWNLINK, UPLINK


def pace_of(plan: Plan, result: BlockResult, bandwidth_hz: float, overhead_s: float = 0.0) -> BlockPace:
    """What the simulator expects of a block of one episode.

    Args:
        plan: what will run.
        result: what the simulator makes of it.
        bandwidth_hz: B.
        overhead_s: seconds of the result that are neither radio nor compute, for each device with work.

    Raises:
        ValueError: a batch of episodes.
    """
    if len(plan.shares) != 1:
        raise ValueError(f"expected one episode at a time where latency is measured, got {len(plan.shares)}")
    links, shares, tokens = plan.block.conditions.links, plan.shares[0], plan.load.tokens[0]
    loaded = tokens > 0
    share = np.where(loaded, shares, 1.0)
    efficiency = latency.spectral_efficiency(links.full_band_snr, share[None])[0]
    seconds = np.where(loaded, tokens * links.payload_s[0] / (share * efficiency), 0.0)
    placement = links.placement if links.placement.ndim == 2 else links.placement[0]
    return BlockPace(
        downlink_s=seconds[DOWNLINK],
        uplink_s=seconds[UPLINK],
        compute_s=np.maximum(result.device_latency_s[0] - seconds.sum(axis=0) - overhead_s, 0.0) * loaded,
        tokens=tokens,
        shares=shares,
        placement=placement,
        payload_bits=float(links.payload_s[0] * bandwidth_hz),
        bandwidth_hz=bandwidth_hz,
    )


def clocked(plan: Plan, result: BlockResult, measurement: Measurement, num_tokens: int) -> BlockResult:
    """The result of a block of one episode by the clock; what was not served counts as not chosen.

    Args:
        plan: what was to run.
        result: what the simulator made of it.
        measurement: of the block.
        num_tokens: of the episode.
    """
    block = plan.block
    selection = plan.selection & measurement.served[None]
    load = latency.device_load(selection, block.links)
    device_s = np.where(load.tokens > 0, measurement.device_latency_s[None], 0.0)
    block_s = np.array([measurement.block_latency_s])
    weight = latency.device_weight_served(block.weights, selection, block.links.placement)
    served = weight.sum(axis=-1)
    lost = plan.selection & ~selection
    return result._replace(
        selection=selection,
        tokens=load.tokens,
        device_latency_s=device_s,
        block_latency_s=block_s,
        gate_weight_served=served,
        gate_weight_kept=served / num_tokens,
        wlr=latency.wlr_per_ms(served, block_s),
        wlr_device=latency.wlr_device_per_ms(weight, device_s),
        latency_ratio=latency.latency_ratio(block_s, result.vanilla_latency_s),
        unserved_pairs=lost.sum(axis=(1, 2)),
        simulated_latency_s=result.block_latency_s,
    )
