"""Devices that slow down as they get hot; design equation (15).

Heat h is 0 for a device that has long been idle and 1 for one that has long been computing. It is deterministic: what a
policy sends where decides who gets hot.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from wdmoe_env.config import DeviceConfig
from wdmoe_env.physics.latency import BlockLinks, Float, Load, sum_over_tokens_s


def initial_heat(devices: DeviceConfig, batch: int) -> Float | None:
    """Heat (N, U) of N episodes at their start; ``None`` where devices do not slow down."""
    if devices.hot_speed_factor == 1.0:
        return None
    return np.full((batch, devices.count), devices.initial_heat)


def later_heat(devices: DeviceConfig, heat: Float, busy_s: Float, idle_s: Float) -> Float:
    """Heat after a while of computing and then a while of waiting; both go exponentially, with the time constant H.

        h' = (1 - (1 - h) exp(-busy / H)) exp(-idle / H)

    Args:
        devices: with ``heat_time_s``, H.
        heat: (N, U) before.
        busy_s: (N, U) time of computing, in s.
        idle_s: (N, U) time of waiting after it, in s.

    Returns:
        (N, U).
    """
    warmed: Float = 1.0 - (1.0 - heat) * np.exp(-busy_s / devices.heat_time_s)
    return warmed * np.exp(-idle_s / devices.heat_time_s)


def speed_factor(devices: DeviceConfig, heat: Float) -> Float:
    """Speed over that of a cool device: 1 up to the heat at which throttling begins, then down in a straight line.

        v = 1 - (1 - v_hot) max(0, h - h_0) / (1 - h_0)

    Args:
        devices: with ``hot_speed_factor``, v_hot, and ``throttling_heat``, h_0.
        heat: (N, U) from 0 to 1.

    Returns:
        (N, U).
    """
    above = np.maximum(heat - devices.throttling_heat, 0.0) / (1.0 - devices.throttling_heat)
    return 1.0 - (1.0 - devices.hot_speed_factor) * above


def slowed(links: BlockLinks, factor: Float) -> BlockLinks:
    """The links of devices that compute and read weights at a part (N, U) of their speed; the radio is as before."""
    weights_s = None if links.weights_s is None else links.weights_s / factor
    return replace(links, compute_s=links.compute_s / factor, weights_s=weights_s)


def busy_s(links: BlockLinks, load: Load) -> Float:
    """Time (N, U) that each device computes, in s: equation (6) without the radio."""
    return sum_over_tokens_s(links, load, np.zeros_like(load.tokens))
