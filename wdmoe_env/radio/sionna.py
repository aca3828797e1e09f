"""Fading from Sionna's channel models, ``channel="sionna:tdl-a"`` and the like; the extra ``sionna`` brings them.

Path loss and shadowing are those of the environment's own source; Sionna gives the power gain of unit mean on top.
A frequency-selective channel becomes one gain per block and device: the mean of |H(f)|^2 over the band.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from threading import Lock
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from wdmoe_env.checks import check_choice
from wdmoe_env.config import ChannelConfig, DeviceConfig
from wdmoe_env.optional import optional
from wdmoe_env.physics.gains import Gains
from wdmoe_env.physics.latency import Float
from wdmoe_env.physics.statistical import StatisticalGains

MODELS = ("rayleigh", *(f"{family}-{profile}" for family in ("tdl", "cdl") for profile in "abcde"))
"""Rayleigh block fading, and the models of TR 38.901 with a tapped or a clustered delay line."""

_CPU = "cpu"
_SEEDS = 2**32  # torch's Mersenne Twister reads no more of a seed
_LENT = Lock()


class SionnaGains:
    """Gains whose fading Sionna draws.

    Each episode's generator gives one seed beside what path loss and shadowing draw, and each episode is a call of
    its own, so that it does not depend on the others.

    Args:
        model: one of ``MODELS``.
        channel: the radio; ``fading`` and its parameters are not read.
        devices: the mobile devices; ``speed_mps`` sets the Doppler shift.
        num_blocks: blocks I of an episode.

    Raises:
        ValueError: no such model.
        ImportError: Sionna is not installed.
    """

    def __init__(self, model: str, channel: ChannelConfig, devices: DeviceConfig, num_blocks: int) -> None:
        check_choice("channel source 'sionna:MODEL'", model, MODELS)
        self._large_scale = StatisticalGains(replace(channel, fading="none"), devices, num_blocks)
        self._paths = _Paths(model, channel, devices, num_blocks)
        self._band_root = band_root(self._paths.draw(seed=0)[1], channel.bandwidth_hz)

    def sample(self, generators: Sequence[np.random.Generator]) -> Gains:
        """Draw N episodes; see ``GainSource``."""
        large_scale = self._large_scale.sample(generators)
        power = np.stack([self._power(int(generator.integers(_SEEDS))) for generator in generators], axis=1)
        gain = large_scale.gain * power
        return Gains(gain, gain, large_scale.distance_m)

    def _power(self, seed: int) -> Float:
        """Power gain of unit mean (I, U)."""
        amplitudes, _ = self._paths.draw(seed)
        return np.square(np.abs(self._band_root @ amplitudes)).sum(axis=1)


def band_root(delays_s: Float, bandwidth_hz: float) -> Float:
    """Matrix R (ranks, P) with which |R a|^2 is the mean of |H(f)|^2 over the band, exactly.

    H(f) is the sum over paths of a[p] exp(-2 pi i f tau[p]), so the mean over a band around 0 is a^H S a with
    S[p, q] = sinc(B (tau[p] - tau[q])); R is a root of S.

    Args:
        delays_s: (P,) delays of the paths.
        bandwidth_hz: B.
    """
    values, vectors = np.linalg.eigh(np.sinc(bandwidth_hz * np.subtract.outer(delays_s, delays_s)))
    kept = values > 1e-12 * values[-1]
    return (vectors[:, kept] * np.sqrt(values[kept])).T


class _Paths:
    """One of Sionna's models between a base station and devices of one antenna each.

    Its models draw from one generator of the process, which is seeded for a draw and then put back.
    """

    def __init__(self, model: str, channel: ChannelConfig, devices: DeviceConfig, num_blocks: int) -> None:
        self._config, self._model = _sionna_model(model, channel, devices.speed_mps)
        self._shape = (devices.count, -1, num_blocks)
        # Rayleigh block fading is the same in all steps of a call: each block is a link of its own.
        self._links, self._steps = devices.count, num_blocks
        if model == "rayleigh":
            self._links, self._steps = devices.count * num_blocks, 1
        self._rate_hz = 1.0 / channel.block_interval_s if channel.block_interval_s else np.inf

    def draw(self, seed: int) -> tuple[NDArray[np.complex128], Float]:
        """Amplitudes (I, P, U) and delays (P,) in seconds of the paths."""
        with self._seeded(seed):
            amplitudes, delays = self._model(self._links, self._steps, self._rate_hz)
        return amplitudes.numpy().reshape(self._shape).transpose(2, 1, 0), delays[0, 0, 0].numpy()

    @contextmanager
    def _seeded(self, seed: int) -> Iterator[None]:
        with _LENT:
            generator = self._config.torch_rng(_CPU)
            state = generator.get_state()
            generator.manual_seed(seed)
            try:
                yield
            finally:
                generator.set_state(state)


def _sionna_model(model: str, channel: ChannelConfig, speed_mps: float) -> tuple[Any, Any]:
    """Sionna's settings and a model of its own, in float64 on the CPU."""
    with _torch_unchanged(), optional("sionna-no-rt", extra="sionna"):
        from sionna.phy import config
        from sionna.phy.channel import RayleighBlockFading
        from sionna.phy.channel.tr38901 import CDL, TDL, Antenna
    place = {"precision": "double", "device": _CPU}
    if model == "rayleigh":
        return config, RayleighBlockFading(num_rx=1, num_rx_ant=1, num_tx=1, num_tx_ant=1, **place)
    family, _, profile = model.upper().partition("-")
    of_profile = {"delay_spread": channel.delay_spread_s, "carrier_frequency": channel.carrier_hz, **place}
    speeds = {"min_speed": speed_mps, "max_speed": speed_mps}
    if family == "TDL":
        return config, TDL(profile, **of_profile, **speeds)
    antenna = Antenna("single", "V", "omni", channel.carrier_hz, **place)
    return config, CDL(profile, ut_array=antenna, bs_array=antenna, direction="downlink", **of_profile, **speeds)


@contextmanager
def _torch_unchanged() -> Iterator[None]:
    """Sionna seeds torch's generators at random when it is imported."""
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        yield
