"""Path loss, shadowing and fading of whole episodes; design equations (1) and (2)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from wdmoe_env.config import ChannelConfig, DeviceConfig
from wdmoe_env.physics.fading import (
    continued_root,
    correlation_root,
    fading_power,
    jakes_autocorrelation,
    num_components,
)
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
        later_blocks: blocks that follow those of an episode; see ``longer``.

    Raises:
        ValueError: powers, noise, bandwidth and path loss that leave no ratio which a radio can have.
    """

    def __init__(self, channel: ChannelConfig, devices: DeviceConfig, num_blocks: int, later_blocks: int = 0) -> None:
        check_link_budget(channel, devices)
        self._channel, self._devices = channel, devices
        self._num_blocks, self._later_blocks = num_blocks, later_blocks
        doppler_hz = devices.speed_mps * channel.carrier_hz / SPEED_OF_LIGHT_MPS
        correlation = jakes_autocorrelation(num_blocks + later_blocks, doppler_hz, channel.block_interval_s)
        self._root = continued_root(correlation, num_blocks) if later_blocks else correlation_root(correlation)
        self._shadowing_std_db = _shadowing_std_db(channel)
        self._moving = devices.mobility == "gauss_markov"
        self._components = num_components(channel)

    def longer(self, passes: int) -> StatisticalGains:
        """The same channel over several passes of I blocks; the first is an episode of this source, draw for draw."""
        return StatisticalGains(self._channel, self._devices, self._num_blocks, (passes - 1) * self._num_blocks)

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
        """Uniforms (N, 2, U) and normals (N, rows, U), one row for each of ``_rows``."""
        count, devices = len(generators), self._devices.count
        uniforms, normals = np.empty((count, 2, devices)), np.empty((count, sum(self._rows()), devices))
        for generator, uniform, normal in zip(generators, uniforms, normals, strict=True):
            generator.random(out=uniform)
            generator.standard_normal(out=normal)
        return uniforms, normals

    def _rows(self) -> list[int]:
        """Rows of normals: shadowing; fading and velocity of an episode's blocks; the same of the blocks after it."""
        blocks, later, moving = self._num_blocks, self._later_blocks, 2 * self._moving
        drawn_anew = blocks + later if later else 0  # see ``continued_root``
        return [1, self._components * blocks, moving * blocks, self._components * drawn_anew, moving * later]

    def _split(self, normals: Float) -> tuple[Float, Float, Float]:
        """Shadowing (N, U), fading (C, X, N, U) and velocity (0 or I, N, U, 2) out of normals (N, rows, U)."""
        rows = normals.swapaxes(0, 1)
        batch = rows.shape[1:]
        shadowing, fading, velocity, later_fading, later_velocity = np.split(rows, np.cumsum(self._rows())[:-1])
        components = [part.reshape(self._components, -1, *batch) for part in (fading, later_fading) if part.size]
        whole = np.concatenate(components, axis=1) if components else fading.reshape(0, 0, *batch)
        velocities = np.concatenate([velocity, later_velocity]).reshape(-1, 2, *batch)
        return shadowing[0], whole, velocities.transpose(0, 2, 3, 1)

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
