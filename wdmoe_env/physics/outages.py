"""Devices that are away for a while, and what then takes the place of their experts; design equation (14)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from wdmoe_env.config import DeviceConfig
from wdmoe_env.physics.branch import OUTAGES, branch_uniforms
from wdmoe_env.physics.latency import Bool, Float


def sample_availability(
    devices: DeviceConfig, interval_s: float, generators: Sequence[np.random.Generator], num_blocks: int
) -> Bool | None:
    """Which devices are there, (I, N, U); ``None`` where none is ever away.

    Args:
        devices: with the mean times of being there and away.
        interval_s: from one block to the next, in s.
        generators: N of them, which are not advanced; row n depends on ``generators[n]`` alone.
        num_blocks: blocks I.
    """
    if not devices.outage_mean_s:
        return None
    uniforms = branch_uniforms(generators, OUTAGES, (num_blocks, devices.count))
    available = np.empty(uniforms.shape, dtype=np.bool_)
    for block, drawn in enumerate(uniforms):
        before = available[block - 1] if block else None
        available[block] = later_availability(devices, before, interval_s, drawn)
    return available


def later_availability(devices: DeviceConfig, available: Bool | None, elapsed_s: float, uniforms: Float) -> Bool:
    """Equation (14): one step of a Markov chain in continuous time with two states, there and away.

    With the mean times u there and a away, a device is there with probability p = u / (u + a) in the long run, and what
    it was decays as r = exp(-elapsed (1/u + 1/a)): it is there with probability p + (1 - p) r if it was, and with
    p - p r if it was not.

    Args:
        devices: with ``uptime_mean_s`` and ``outage_mean_s``, the latter above 0.
        available: (N, U) which devices were there; ``None`` at the start, which is drawn from the long run.
        elapsed_s: since then, in s.
        uniforms: (N, U) in [0, 1).

    Returns:
        (N, U) which devices are there.
    """
    up, away = devices.uptime_mean_s, devices.outage_mean_s
    share = up / (up + away)
    if available is None:
        return uniforms < share
    kept = math.exp(-elapsed_s * (1.0 / up + 1.0 / away))
    chance: Float = np.where(available, share + (1.0 - share) * kept, share * (1.0 - kept))
    return uniforms < chance


def experts_present(available: Bool, placement: Float) -> Bool:
    """Experts (N, E) whose device is there.

    Args:
        available: (N, U) devices that are there.
        placement: (N, E, U) or (E, U), 1 where a device holds an expert.
    """
    held: Bool = (placement @ available[..., None].astype(np.float64))[..., 0] > 0
    return held


def next_best(selection: Bool, gate_probs: Float, present: Bool) -> tuple[Bool, NDArray[np.int64]]:
    """A selection in which each expert that is away gave its place to the next best one that is there.

    The next best is the most probable expert that is there and that the token does not use yet. Where there are not
    enough of them, the token has fewer experts; where no expert is there, it has none.

    Args:
        selection: (N, J, E) experts chosen.
        gate_probs: (N, J, E) scores of all experts.
        present: (N, E) experts that are there.

    Returns:
        The selection (N, J, E), and how many of the chosen experts (N,) were away.
    """
    there = np.broadcast_to(present[:, None], selection.shape)
    away = selection & ~there
    rows = np.nonzero(away.any(axis=-1))
    changed = selection & there
    open_to = there[rows] & ~changed[rows]
    order = np.argsort(-np.where(open_to, gate_probs[rows], -np.inf), axis=-1, kind="stable")
    rank = np.argsort(order, axis=-1, kind="stable")
    changed[rows] |= open_to & (rank < away[rows].sum(axis=-1, keepdims=True))
    return changed, away.sum(axis=(1, 2))
