"""Whether the experts that a device holds fit its memory; design equation (10)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from wdmoe_env.config import DeploymentConfig, DeviceConfig
from wdmoe_env.physics.compute import device_profiles
from wdmoe_env.physics.latency import Float


def usable_memory_bytes(devices: DeviceConfig) -> Float:
    """What experts may fill of each device's memory, (U,) bytes, by its profile.

    Raises:
        ValueError: see ``device_profiles``.
    """
    return np.array([profile.usable_memory_bytes for profile in device_profiles(devices)])


def experts_that_fit(memory_bytes: Float, deployment: DeploymentConfig, num_blocks: int) -> NDArray[np.int64]:
    """How many experts of any running blocks each device has memory for, (U,).

    Args:
        memory_bytes: (U,) what experts may fill, as ``usable_memory_bytes``.
        deployment: widths of an expert, the bits of its weights, and the blocks that are deployed.
        num_blocks: I of the running model.
    """
    return (memory_bytes // deployment.held_weight_bytes(num_blocks)).astype(np.int64)


def check_memory(placement: Float, devices: DeviceConfig, deployment: DeploymentConfig) -> None:
    """Refuse a placement that does not fit: equation (10), the sum of W_e over the experts of u <= usable memory of u.

    Args:
        placement: (I, E, U) 1 where a device holds an expert.
        devices: their profiles.
        deployment: widths of an expert, the bits of its weights, and the blocks that are deployed.

    Raises:
        ValueError: a device has less memory than its experts need; the message holds the bytes of both.
    """
    held, room = placement.sum(axis=(0, 1)), usable_memory_bytes(devices)
    each = deployment.held_weight_bytes(len(placement))
    needed = held * each
    short = np.flatnonzero(needed > room)
    if short.size:
        first, blocks = short[0], deployment.num_blocks
        stands = "" if blocks is None else f", where {len(placement)} blocks stand for {blocks}"
        raise ValueError(
            f"placement must fit the memory of every device, but device {first} "
            f"({device_profiles(devices)[first].name}) has {room[first]:,.0f} bytes for experts and its "
            f"{held[first]:.0f} experts need {needed[first]:,.0f} ({each:,.0f} each at "
            f"{deployment.weight_bits:g} bits{stands}); fewer weight_bits or placement='auto' may help"
        )
