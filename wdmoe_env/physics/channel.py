"""The radio channel of whole episodes: path loss, shadowing and fading to gamma / B; design equations (1) to (3)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from wdmoe_env.config import ChannelConfig, DeviceConfig
from wdmoe_env.physics.fading import correlation_root, fading_power, jakes_autocorrelation, num_components
from wdmoe_env.physics.latency import Float, carrier_to_noise_hz
from wdmoe_env.physics.mobility import gauss_markov_positions_m, initial_positions_m
from wdmoe_env.physics.path_loss import SPEED_OF_LIGHT_MPS, path_loss_db, shadowing_std_db


@dataclass(frozen=True, slots=True)
class ChannelTrace:
    """The channels of N episodes in all I blocks.

    Attributes:
        gain: (I, N, U) linear power gain, the same in both directions.
        distance_m: (I, N, U) distance from the base station on the ground.
        full_band_snr: (I, N, 2, U) gamma / B, downlink then uplink.
    """

    gain: Float
    distance_m: Float
    full_band_snr: Float


class Channel:
    """Draws the channels of episodes.

    One shadowing value holds for a device and episode: a device moves far less in an episode than shadowing's
    correlation distance. The Doppler shift is f_d = speed f_c / c, also where devices stand still among moving
    scatterers.

    Args:
        channel: the radio.
        devices: the mobile devices.
        num_blocks: blocks I of an episode.
    """

    def __init__(self, channel: ChannelConfig, devices: DeviceConfig, num_blocks: int) -> None:
        if num_blocks < 1:
            raise ValueError(f"num_blocks must be at least 1, got {num_blocks}")
        self.channel, self.devices, self.num_blocks = channel, devices, num_blocks
        doppler_hz = devices.speed_mps * channel.carrier_hz / SPEED_OF_LIGHT_MPS
        self._root = correlation_root(jakes_autocorrelation(num_blocks, doppler_hz, channel.block_interval_s))
        own_std = shadowing_std_db(channel.path_loss)
        self._shadowing_std_db = own_std if channel.shadowing_std_db is None else channel.shadowing_std_db

    def sample(self, generators: Sequence[np.random.Generator]) -> ChannelTrace:
        """Draw N episodes; row n depends on ``generators[n]`` alone.

        Args:
            generators: one per episode; each advances by the same number of draws in every call.

        Returns:
            The trace of all blocks.
        """
        uniforms, normals = self._draw(generators)
        shadowing, fading, velocity = self._split(normals)
        position = self._positions_m(uniforms, velocity)
        distance = np.linalg.norm(position, axis=-1)
        loss_db = path_loss_db(
            self.channel.path_loss, distance, self.channel.carrier_hz, self.channel.path_loss_exponent
        )
        median = 10.0 ** (-(loss_db + self._shadowing_std_db * shadowing) / 10.0)
        gain = median * fading_power(self.channel, fading, self._root)
        blocks_first = np.broadcast_to(distance, gain.shape)
        return ChannelTrace(gain=gain, distance_m=blocks_first, full_band_snr=self._full_band_snr(gain))

    def _draw(self, generators: Sequence[np.random.Generator]) -> tuple[Float, Float]:
        """Uniforms (N, 2, U) and normals (N, rows, U)."""
        blocks, devices = self.num_blocks, self.devices.count
        rows = 1 + blocks * num_components(self.channel)
        if self.devices.mobility == "gauss_markov":
            rows += 2 * blocks
        uniforms = np.stack([generator.random((2, devices)) for generator in generators])
        return uniforms, np.stack([generator.standard_normal((rows, devices)) for generator in generators])

    def _split(self, normals: Float) -> tuple[Float, Float, Float]:
        """Shadowing (N, U), fading (C, I, N, U) and velocity (I, N, U, 2 or 0) out of normals (N, rows, U)."""
        blocks, components = self.num_blocks, num_components(self.channel)
        fading_end = 1 + blocks * components
        rows_first = normals.swapaxes(0, 1)
        fading = rows_first[1:fading_end].reshape(components, blocks, *rows_first.shape[1:])
        velocity = rows_first[fading_end:].reshape(blocks, -1, *rows_first.shape[1:])
        return rows_first[0], fading, np.moveaxis(velocity, 1, -1)

    def _positions_m(self, uniforms: Float, velocity: Float) -> Float:
        """(I or 1, N, U, 2): one position serves all blocks where devices stand still."""
        start = initial_positions_m(self.devices, uniforms)
        if self.devices.mobility == "static":
            return start[None]
        return gauss_markov_positions_m(self.devices, start, velocity, self.channel.block_interval_s)

    def _full_band_snr(self, gain: Float) -> Float:
        """Return gamma / B with the base station's power down and the device's up; (I, N, U) -> (I, N, 2, U)."""
        powers_w = (self.channel.base_station_power_w, self.channel.device_power_w)
        links = [carrier_to_noise_hz(gain, power, self.channel.noise_dbm_per_hz) for power in powers_w]
        return np.stack(links, axis=-2) / self.channel.bandwidth_hz
