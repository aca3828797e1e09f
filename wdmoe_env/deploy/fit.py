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


def experts_that_fit(devices: DeviceConfig, deployment: DeploymentConfig) -> NDArray[np.int64]:
    """How many experts of any blocks each device has memory for, (U,).

    Args:
        devices: their profiles.
        deployment: widths of an expert and the bits of its weights.

    Raises:
        ValueError: see ``device_profiles``.
    """
    return (usable_memory_bytes(devices) // deployment.expert_weight_bytes).astype(np.int64)


def check_memory(placement: Float, devices: DeviceConfig, deployment: DeploymentConfig) -> None:
    """Refuse a placement that does not fit: equation (10), the sum of W_e over the experts of u <= usable memory of u.

    Args:
        placement: (I, E, U) 1 where a device holds an expert.
        devices: their profiles.
        deployment: widths of an expert and the bits of its weights.

    Raises:
        ValueError: a device has less memory than its experts need; the message holds the bytes of both.
    """
    held, room = placement.sum(axis=(0, 1)), usable_memory_bytes(devices)
    needed = held * deployment.expert_weight_bytes
    short = np.flatnonzero(needed > room)
    if short.size:
        first = short[0]
        raise ValueError(
            f"placement must fit the memory of every device, but device {first} "
            f"({device_profiles(devices)[first].name}) has {room[first]:,.0f} bytes for experts and its "
            f"{held[first]:.0f} experts need {needed[first]:,.0f} ({deployment.expert_weight_bytes:,.0f} each at "
            f"{deployment.weight_bits:g} bits); fewer weight_bits or placement='auto' may help"
        )
