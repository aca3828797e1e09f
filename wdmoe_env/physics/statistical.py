"""Path loss, shadowing and fading of whole episodes; design equations (1) and (2)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from wdmoe_env.config import ChannelConfig, DeviceConfig
from wdmoe_env.physics.fading import correlation_root, fading_power, jakes_autocorrelation, num_components
from wdmoe_env.physics.gains import Gains
from wdmoe_env.physics.latency import Float, carrier_to_noise_hz
from wdmoe_env.physics.mobility import gauss_markov_positions_m, initial_distances_m, initial_positions_m, ring_m
from wdmoe_env.physics.path_loss import SPEED_OF_LIGHT_MPS, path_loss_db, shadowing_std_db

# Of the signal-to-noise ratio over the whole band, shadowing included; wide enough that fading stays within what an
# observation can hold.
LEAST_SNR_DB, MOST_SNR_DB = -250.0, 280.0
SHADOWING_DEVIATIONS = 6.0


class StatisticalGains:
    """The environment's own source, ``"statistical"``.

    One shadowing value holds for a device and episode: a device moves far less in an episode than shadowing's
    correlation distance. The Doppler shift is f_d = speed f_c / c, also where devices stand still among moving
    scatterers.

    Args:
        channel: the radio.
        devices: the mobile devices.
        num_blocks: blocks I of an episode.

    Raises:
        ValueError: powers, noise, bandwidth and path loss that leave no ratio which a radio can have.
    """

    def __init__(self, channel: ChannelConfig, devices: DeviceConfig, num_blocks: int) -> None:
        check_link_budget(channel, devices)
        self._channel, self._devices, self._num_blocks = channel, devices, num_blocks
        doppler_hz = devices.speed_mps * channel.carrier_hz / SPEED_OF_LIGHT_MPS
        self._root = correlation_root(jakes_autocorrelation(num_blocks, doppler_hz, channel.block_interval_s))
        self._shadowing_std_db = _shadowing_std_db(channel)
        self._moving = devices.mobility == "gauss_markov"
        self._fading_rows = num_blocks * num_components(channel)

    def sample(self, generators: Sequence[np.random.Generator]) -> Gains:
        """Draw N episodes; see ``GainSource``. Each generator advances by the same number of draws in every call."""
        uniforms, normals = self._draw(generators)
        shadowing, fading, velocity = self._split(normals)
        distance = self._distances_m(uniforms, velocity)
        loss_db = path_loss_db(
            self._channel.path_loss, distance, self._channel.carrier_hz, self._channel.path_loss_exponent
        )
        median = 10.0 ** (-(loss_db + self._shadowing_std_db * shadowing) / 10.0)
        gain = median * fading_power(self._channel, fading, self._root)
        return Gains(gain, gain, np.repeat(distance, len(gain) // len(distance), axis=0))

    def _draw(self, generators: Sequence[np.random.Generator]) -> tuple[Float, Float]:
        """Uniforms (N, 2, U) and normals (N, rows, U): shadowing, fading, velocity."""
        count, devices = len(generators), self._devices.count
        rows = 1 + self._fading_rows + 2 * self._num_blocks * self._moving
        uniforms, normals = np.empty((count, 2, devices)), np.empty((count, rows, devices))
        for generator, uniform, normal in zip(generators, uniforms, normals, strict=True):
            generator.random(out=uniform)
            generator.standard_normal(out=normal)
        return uniforms, normals

    def _split(self, normals: Float) -> tuple[Float, Float, Float]:
        """Shadowing (N, U), fading (C, I, N, U) and velocity (0 or I, N, U, 2) out of normals (N, rows, U)."""
        first, blocks, fading_end = normals.swapaxes(0, 1), self._num_blocks, 1 + self._fading_rows
        batch = first.shape[1:]
        fading = first[1:fading_end].reshape(-1, blocks, *batch)
        velocity = first[fading_end:].reshape(-1, 2, *batch).transpose(0, 2, 3, 1)
        return first[0], fading, velocity

    def _distances_m(self, uniforms: Float, velocity: Float) -> Float:
        """(I or 1, N, U): one distance serves all blocks where devices stand still."""
        if not self._moving:
            return initial_distances_m(self._devices, uniforms[:, 0])[None]
        start, interval_s = initial_positions_m(self._devices, uniforms), self._channel.block_interval_s
        positions = gauss_markov_positions_m(self._devices, start, velocity, interval_s)
        return np.sqrt(np.square(positions).sum(axis=-1))


def check_link_budget(channel: ChannelConfig, devices: DeviceConfig) -> None:
    """Refuse a channel whose path loss leaves a signal-to-noise ratio that no radio has.

    The ratio over the whole band, in the median over fading and up to six standard deviations of shadowing off it,
    must be from -250 dB to 280 dB for the nearest and for the farthest device, in both directions.

    Args:
        channel: the radio.
        devices: the mobile devices.

    Raises:
        ValueError: it is not.
    """
    fixed = None if devices.mobility == "gauss_markov" else devices.distances_m
    ends = ring_m(devices) if fixed is None else (min(fixed), max(fixed))
    loss_db = path_loss_db(channel.path_loss, np.array(ends), channel.carrier_hz, channel.path_loss_exponent)
    powers_w = channel.base_station_power_w, channel.device_power_w
    at_transmitter = [carrier_to_noise_hz(np.ones(1), power, channel.noise_dbm_per_hz)[0] for power in powers_w]
    budget_db = 10.0 * np.log10(np.array(at_transmitter) / channel.bandwidth_hz)
    spread_db = SHADOWING_DEVIATIONS * _shadowing_std_db(channel)
    low_db, high_db = budget_db.min() - loss_db.max() - spread_db, budget_db.max() - loss_db.min() + spread_db
    if low_db < LEAST_SNR_DB or high_db > MOST_SNR_DB:
        raise ValueError(
            f"powers, noise, bandwidth, carrier, path loss, shadowing and distances must leave a signal-to-noise ratio "
            f"from {LEAST_SNR_DB:g} to {MOST_SNR_DB:g} dB, got {low_db:.0f} to {high_db:.0f} dB"
        )


def _shadowing_std_db(channel: ChannelConfig) -> float:
    """The radio's own, or else that of its path-loss law."""
    return shadowing_std_db(channel.path_loss) if channel.shadowing_std_db is None else channel.shadowing_std_db
