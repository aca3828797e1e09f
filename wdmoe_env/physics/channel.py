"""The radio channel of whole episodes: gains of a source to gamma / B; design equation (3)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass

import numpy as np

from wdmoe_env.checks import FLOAT64, real_array, shown
from wdmoe_env.config import ChannelConfig, DeviceConfig
from wdmoe_env.physics.gains import Gains
from wdmoe_env.physics.knowledge import observed_snr, sample_errors_db
from wdmoe_env.physics.latency import DOWNLINK, UPLINK, Bool, Float, carrier_to_noise_hz
from wdmoe_env.physics.outages import sample_availability
from wdmoe_env.physics.sources import gain_source

# Of the whole band: beyond, an observation in float32 holds no spectral efficiency that stands for it.
LEAST_SNR, MOST_SNR = 1e-44, 1e32

MOST_BLOCKS = 512
"""Of a channel over several passes: the correlation of its fading is a matrix of so many rows and columns."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChannelTrace(Gains):
    """The channels of N episodes in all I blocks.

    Attributes:
        gain: (I, N, U) linear power gain of the downlink.
        uplink_gain: (I, N, U) of the uplink.
        distance_m: (I, N, U) distance from the base station on the ground, NaN where it is not known.
        full_band_snr: (I, N, 2, U) gamma / B, downlink then uplink.
        available: (I, N, U) True where the device is there; ``None`` where none is ever away.
        observed_snr: (I, N, 2, U) what the base station takes for ``full_band_snr``; ``None`` where it knows that.
    """

    full_band_snr: Float
    available: Bool | None = None
    observed_snr: Float | None = None

    def of_pass(self, number: int, num_blocks: int) -> ChannelTrace:
        """The I blocks of a pass of a channel that goes on; after the last one, the first comes again.

        Args:
            number: of the pass, from 0.
            num_blocks: blocks I of a pass.
        """
        start = number * num_blocks % len(self.gain)
        here = slice(start, start + num_blocks)
        return ChannelTrace(
            gain=self.gain[here],
            uplink_gain=self.uplink_gain[here],
            distance_m=self.distance_m[here],
            full_band_snr=self.full_band_snr[here],
            available=None if self.available is None else self.available[here],
            observed_snr=None if self.observed_snr is None else self.observed_snr[here],
        )


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

    def longer(self) -> Channel:
        """The channel of the same devices over as many passes of I blocks as ``MOST_BLOCKS`` hold, one at least.

        Its first pass is an episode of this channel, draw for draw, where the source has a method ``longer``, as the
        statistical and the recorded one do. Another source is made anew for all blocks. One that has fewer is asked
        for half as many passes, and so on.
        """
        passes = max(1, MOST_BLOCKS // self.num_blocks)
        own = getattr(self.source, "longer", None)
        if own is not None:
            going_on = copy(self)
            going_on.source, going_on.num_blocks = own(passes), passes * self.num_blocks
            return going_on
        while passes > 1:
            try:
                return Channel(self.channel, self.devices, passes * self.num_blocks)
            except ValueError:
                passes //= 2
        return self

    def sample(self, generators: Sequence[np.random.Generator]) -> ChannelTrace:
        """Draw N episodes; row n depends on ``generators[n]`` alone.

        Args:
            generators: one per episode.

        Returns:
            The trace of all blocks.

        Raises:
            TypeError: the source gave no ``Gains``, or gains that are no real numbers.
            ValueError: the source gave gains of another shape, gains that are not finite or not above 0, negative
                distances, or gains that lead to a signal-to-noise ratio which no radio has.
        """
        available = sample_availability(self.devices, self.channel.block_interval_s, generators, self.num_blocks)
        errors_db = sample_errors_db(self.channel, generators, self.num_blocks, self.devices.count)
        gains = self._of_episodes(self.source.sample(generators), len(generators))
        snr = self._full_band_snr(gains)
        # Gains that are 0, negative, infinite or NaN lead out of the range too.
        low, high = snr.min(initial=math.inf), snr.max(initial=0.0)
        if not (low >= LEAST_SNR and high <= MOST_SNR):
            raise ValueError(self._what_is_wrong(gains, low, high))
        return ChannelTrace(
            gain=gains.gain,
            uplink_gain=gains.uplink_gain,
            distance_m=gains.distance_m,
            full_band_snr=snr,
            available=available,
            observed_snr=observed_snr(self.channel, snr, errors_db, LEAST_SNR, MOST_SNR),
        )

    def _of_episodes(self, gains: Gains, count: int) -> Gains:
        """What a source gave, as float64, where it is of N episodes."""
        if not isinstance(gains, Gains):
            raise TypeError(f"expected Gains from {self._name}, got {shown(gains)}")
        shape = (self.num_blocks, count, self.devices.count)
        gain = self._array("gains", gains.gain, shape)
        same = gains.uplink_gain is gains.gain
        uplink_gain = gain if same else self._array("uplink gains", gains.uplink_gain, shape)
        distance_m = self._array("distances", gains.distance_m, shape)
        if (distance_m < 0.0).any():  # NaN stands for one that is not known
            raise ValueError(f"expected distances of at least 0 or NaN from {self._name}, got {distance_m.min():g}")
        return Gains(gain, uplink_gain, distance_m)

    def _array(self, name: str, value: Float, shape: tuple[int, ...]) -> Float:
        if type(value) is not np.ndarray or value.dtype is not FLOAT64:  # to make the name takes longer than to look
            value = real_array(f"{name} from {self._name}", value)
        if value.shape != shape:
            raise ValueError(f"expected {name} of shape {shape} from {self._name}, got {value.shape}")
        return value

    @property
    def _name(self) -> str:
        return f"the source {self.channel.source!r}"

    def _full_band_snr(self, gains: Gains) -> Float:
        """Return gamma / B (I, N, 2, U) with the base station's power down and the device's up."""
        radio, links = self.channel, np.empty((*gains.gain.shape[:-1], 2, gains.gain.shape[-1]))
        down, up = radio.base_station_power_w, radio.device_power_w
        with np.errstate(over="ignore"):
            links[..., DOWNLINK, :] = carrier_to_noise_hz(gains.gain, down, radio.noise_dbm_per_hz)
            links[..., UPLINK, :] = carrier_to_noise_hz(gains.uplink_gain, up, radio.noise_dbm_per_hz)
            return links / radio.bandwidth_hz

    def _what_is_wrong(self, gains: Gains, low: float, high: float) -> str:
        """Why the signal-to-noise ratio, from ``low`` to ``high``, is out of its range."""
        for name, value in (("gains", gains.gain), ("uplink gains", gains.uplink_gain)):
            wrong = np.argwhere(~((value > 0.0) & (value < math.inf)))
            if len(wrong):
                block, _, device = wrong[0]
                came = f"{value[tuple(wrong[0])]:g} for device {device} in block {block}"
                return f"expected finite {name} above 0 from {self._name}, got {came}"
        return (
            f"expected a signal-to-noise ratio from {LEAST_SNR:g} to {MOST_SNR:g} over the whole band, got {low:g} to "
            f"{high:g}: the gains from {self._name} do not fit the channel's powers, noise and bandwidth"
        )


def check_channel(channel: ChannelConfig, devices: DeviceConfig) -> None:
    """Refuse what a source of gains would refuse, before a model tells how many blocks an episode has.

    Raises:
        ValueError, OSError: what the source of gains raises.
    """
    gain_source(channel, devices, num_blocks=1)
