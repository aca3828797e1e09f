"""The radio channel of whole episodes: gains of a source to gamma / B; design equation (3)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from wdmoe_env.config import ChannelConfig, DeviceConfig
from wdmoe_env.physics.gains import Gains
from wdmoe_env.physics.latency import DOWNLINK, UPLINK, Float, carrier_to_noise_hz
from wdmoe_env.physics.sources import gain_source


@dataclass(frozen=True, slots=True, kw_only=True)
class ChannelTrace(Gains):
    """The channels of N episodes in all I blocks.

    Attributes:
        gain: (I, N, U) linear power gain of the downlink.
        uplink_gain: (I, N, U) of the uplink.
        distance_m: (I, N, U) distance from the base station on the ground, NaN where it is not known.
        full_band_snr: (I, N, 2, U) gamma / B, downlink then uplink.
    """

    full_band_snr: Float


class Channel:
    """Draws the channels of episodes.

    Args:
        channel: the radio; its ``source`` gives the gains, its powers and bandwidth hold for every source.
        devices: the mobile devices.
        num_blocks: blocks I of an episode.

    Raises:
        ValueError, OSError: no block, or what the source of gains raises.
    """

    def __init__(self, channel: ChannelConfig, devices: DeviceConfig, num_blocks: int) -> None:
        if num_blocks < 1:
            raise ValueError(f"num_blocks must be at least 1, got {num_blocks}")
        self.channel, self.devices, self.num_blocks = channel, devices, num_blocks
        self.source = gain_source(channel, devices, num_blocks)

    def sample(self, generators: Sequence[np.random.Generator]) -> ChannelTrace:
        """Draw N episodes; row n depends on ``generators[n]`` alone.

        Args:
            generators: one per episode.

        Returns:
            The trace of all blocks.

        Raises:
            ValueError: the source gave gains of another shape.
        """
        gains = self.source.sample(generators)
        shape = (self.num_blocks, len(generators), self.devices.count)
        if gains.gain.shape != shape:
            got = gains.gain.shape
            raise ValueError(f"expected gains of shape {shape} from the source {self.channel.source!r}, got {got}")
        return ChannelTrace(
            gain=gains.gain,
            uplink_gain=gains.uplink_gain,
            distance_m=gains.distance_m,
            full_band_snr=self._full_band_snr(gains),
        )

    def _full_band_snr(self, gains: Gains) -> Float:
        """Return gamma / B (I, N, 2, U) with the base station's power down and the device's up."""
        radio, links = self.channel, np.empty((*gains.gain.shape[:-1], 2, gains.gain.shape[-1]))
        links[..., DOWNLINK, :] = carrier_to_noise_hz(gains.gain, radio.base_station_power_w, radio.noise_dbm_per_hz)
        links[..., UPLINK, :] = carrier_to_noise_hz(gains.uplink_gain, radio.device_power_w, radio.noise_dbm_per_hz)
        return links / radio.bandwidth_hz


def check_channel(channel: ChannelConfig, devices: DeviceConfig) -> None:
    """Refuse what a source of gains would refuse, before a model tells how many blocks an episode has.

    Raises:
        ValueError, OSError: what the source of gains raises.
    """
    gain_source(channel, devices, num_blocks=1)
