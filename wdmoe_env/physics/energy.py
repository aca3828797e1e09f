"""Energy of a block: design equation (12).

A device takes its active power while it computes and its idle power while it waits: for the radio, for its next token
and for the slowest of the others. The radio takes the transmit power of whoever sends while it sends. Both end with the
block, so that the energy of an episode is the sum over its blocks.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from wdmoe_env.config import ChannelConfig, DeviceConfig
from wdmoe_env.physics.compute import device_profiles
from wdmoe_env.physics.heat import busy_s
from wdmoe_env.physics.latency import NO_SHARE, BlockLinks, Float, Load, spectral_efficiency


@dataclass(frozen=True, slots=True)
class Powers:
    """What devices and radio take, W.

    Attributes:
        idle_w: (U,) of a device that waits.
        active_w: (U,) of a device that computes.
        transmit_w: (2,) of the base station's radio down, and of a device's up, while it sends to or from one device.
    """

    idle_w: Float
    active_w: Float
    transmit_w: Float

    @classmethod
    def of(cls, devices: DeviceConfig, channel: ChannelConfig) -> Powers:
        """Powers of the profiles and of the radio.

        Args:
            devices: the mobile devices.
            channel: the radio.

        Raises:
            ValueError: a profile of unknown power.
        """
        profiles = device_profiles(devices)
        for profile in profiles:
            if profile.idle_power_w is None or profile.active_power_w is None:
                raise ValueError(
                    "expected devices of known power, idle and active, to count energy, "
                    f"got profile {profile.name!r}: {profile.power_source}"
                )
        powers = np.array([(one.idle_power_w, one.active_power_w) for one in profiles], dtype=np.float64)
        return cls(powers[:, 0], powers[:, 1], np.array([channel.base_station_power_w, channel.device_power_w]))


def air_time_s(links: BlockLinks, load: Load, shares: Float) -> Float:
    """How long each link is on the air, n[u] L / R[u], down and up.

    Args:
        links: the block's links.
        load: of a selection.
        shares: (N, U) bandwidth shares, positive where there is load.

    Returns:
        (N, 2, U) seconds.
    """
    loaded = load.tokens > 0
    positive = np.where(loaded, np.maximum(shares, NO_SHARE), 1.0)
    one_token = links.payload_s[:, None, None] / (
        positive[:, None] * spectral_efficiency(links.full_band_snr, positive)
    )
    return np.where(loaded, load.tokens, 0.0)[:, None] * one_token


def device_energy_j(powers: Powers, busy: Float, block_latency_s: Float) -> Float:
    """What each device takes in a block: active power x busy time + idle power x the rest.

    Args:
        powers: of the devices.
        busy: (N, U) s in which each computes.
        block_latency_s: (N,) seconds until the slowest has answered.

    Returns:
        (N, U) J.
    """
    return powers.active_w * busy + powers.idle_w * (block_latency_s[:, None] - busy)


def radio_energy_j(powers: Powers, air_s: Float) -> Float:
    """What sending to and from each device takes in a block: transmit power x air time.

    Args:
        powers: of the radio.
        air_s: (N, 2, U) seconds on the air, down and up.

    Returns:
        (N, U) J.
    """
    return (powers.transmit_w[:, None] * air_s).sum(axis=-2)


def block_energy_j(
    powers: Powers, links: BlockLinks, load: Load, shares: Float, block_latency_s: Float
) -> tuple[Float, Float]:
    """Energy of each device and of its radio in a block.

    Args:
        powers: of devices and radio.
        links: the block's links.
        load: of a selection.
        shares: (N, U) bandwidth shares.
        block_latency_s: (N,) seconds until the slowest has answered.

    Returns:
        (N, U) J of the devices, and (N, U) J of the radio.
    """
    of_devices = device_energy_j(powers, busy_s(links, load), block_latency_s)
    return of_devices, radio_energy_j(powers, air_time_s(links, load, shares))
