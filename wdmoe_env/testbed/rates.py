"""Links that were measured or recorded, as the gains of a channel: what the observation of a testbed is made of."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from wdmoe_env.config import ChannelConfig, DeviceConfig
from wdmoe_env.physics.channel import Channel
from wdmoe_env.physics.gains import Gains
from wdmoe_env.physics.latency import DOWNLINK, UPLINK, Float, carrier_to_noise_hz, equal_shares, spectral_efficiency
from wdmoe_env.testbed.mahimahi import trace_of_rates, trace_text
from wdmoe_env.testbed.station import testbed_runner
from wdmoe_env.writing import held_folder, write_files

MOST_EFFICIENCY = 100.0
"""Bit/s/Hz that a link may stand for; a faster one counts as so fast."""


class RateGains:
    """Gains under which equal shares of the band give each device its share of a rate that was measured or recorded.

    Args:
        argument: path of the inventory.
        channel: the radio, whose bandwidth the rates are divided by.
        devices: as many as the inventory has.
        num_blocks: blocks I of an episode.

    Raises:
        ValueError, OSError: no such inventory, or another number of devices.
    """

    def __init__(self, argument: str, channel: ChannelConfig, devices: DeviceConfig, num_blocks: int) -> None:
        self._runner = testbed_runner(argument)
        self._channel, self._num_blocks = channel, num_blocks
        count = len(self._runner.links)
        if count != devices.count:
            raise ValueError(f"expected {count} devices, as in the inventory, got {devices.count}")

    def sample(self, generators: Sequence[np.random.Generator]) -> Gains:
        """The links as they are now, the same in every block and episode.

        Args:
            generators: N of them; nothing is drawn.
        """
        recorded = self._runner.pacer.rates_bps()
        rates = np.array([link.rate_bps for link in self._runner.links]).T if recorded is None else recorded
        gains = gains_of_rates(rates, self._channel)
        shape = (self._num_blocks, len(generators), rates.shape[1])
        down, up = (np.broadcast_to(gains[way], shape).copy() for way in (DOWNLINK, UPLINK))
        return Gains(down, up, np.full(shape, np.nan))


def gains_of_rates(rates_bps: Float, channel: ChannelConfig) -> Float:
    """Linear power gains (2, U) under which an equal share of the band gives a device that share of its rate.

    Args:
        rates_bps: (2, U) bit/s of the whole link, downlink and uplink.
        channel: the radio.
    """
    efficiency = np.clip(rates_bps / channel.bandwidth_hz, 1e-6, MOST_EFFICIENCY)
    full_band_snr = np.expm1(efficiency * np.log(2.0)) / rates_bps.shape[1]
    powers = (channel.base_station_power_w, channel.device_power_w)
    unit = [carrier_to_noise_hz(np.ones(1), power, channel.noise_dbm_per_hz) for power in powers]
    return full_band_snr * channel.bandwidth_hz / np.array(unit)


def write_traces(out: Path, devices: int, seed: int, bandwidth_hz: float | None, blocks: int) -> list[str]:
    """Write the channel of an episode as mahimahi files, a downlink and an uplink for each device.

    A file is what the whole band would give its device, so that a share is part of every chance.

    Args:
        out: folder of the files.
        devices: how many.
        seed: of the channel.
        bandwidth_hz: of all devices together; ``None`` is the default's.
        blocks: intervals of the channel.

    Returns:
        The names of the files.

    Raises:
        ValueError, OSError: rates that no file can hold, or a folder that cannot be written.
    """
    channel = ChannelConfig() if bandwidth_hz is None else ChannelConfig(bandwidth_hz=bandwidth_hz)
    drawn = Channel(channel, DeviceConfig(count=devices), blocks).sample([np.random.default_rng(seed)])
    rates = channel.bandwidth_hz * spectral_efficiency(drawn.full_band_snr[:, 0], equal_shares(blocks, devices))
    contents = {}
    for device in range(devices):
        for way, suffix in ((DOWNLINK, "down"), (UPLINK, "up")):
            trace = trace_of_rates(rates[:, way, device], channel.block_interval_s)
            contents[f"device-{device}.{suffix}"] = trace_text(trace).encode()
    with held_folder(out) as folder:
        write_files(folder, contents)
    return list(contents)
