"""Rates, latencies and gate weights of one MoE block; design equations (3) to (8), and (5r).

Everything that bandwidth shares can change is written in two normalised quantities, so that the same
functions serve the simulator, the optimizers and a policy that sees only an observation:

    full_band_snr = gamma / B    SNR were the whole band the device's
    payload_s     = L / B        time of one hidden state at 1 bit/s/Hz over the whole band

which turns L / R[u] with R[u] = b[u] B log2(1 + gamma[u] / (b[u] B)) into
payload_s / (b[u] log2(1 + full_band_snr[u] / b[u])).

Sums over tokens, experts and devices are products with ones: NumPy reduces an axis of eight one row at a time, and a
product gives the same sums, to their rounding, several times faster.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from wdmoe_env.checks import FLOAT64, real_array

Float = NDArray[np.float64]
Bool = NDArray[np.bool_]

DOWNLINK, UPLINK = 0, 1
LOG_2 = math.log(2.0)
NO_SHARE = 1e-200


class _Arrays:
    """A frozen dataclass whose fields become float64 arrays."""

    __slots__ = ()
    _prefix: ClassVar[str] = ""
    _optional: ClassVar[tuple[str, ...]] = ()  # fields that may be ``None``
    __match_args__: ClassVar[tuple[str, ...]]  # of a dataclass, the names of its fields

    def __post_init__(self) -> None:
        """Make every field a float64 array, where it is none yet."""
        for name in self.__match_args__:
            value = getattr(self, name)
            if value is None and name in self._optional:
                continue
            if type(value) is not np.ndarray or value.dtype is not FLOAT64:
                object.__setattr__(self, name, real_array(self._prefix + name, value))


@dataclass(frozen=True, slots=True)
class BlockLinks(_Arrays):
    """Radio and compute of U devices that hold E experts during one block, for a batch of N episodes.

    Lists and arrays of any real kind become float64.

    Attributes:
        full_band_snr: (N, 2, U) gamma / B, downlink then uplink.
        payload_s: (N,) L / B, seconds.
        compute_s: (N, U) F / C, seconds per token and expert.
        placement: (N, E, U) or (E, U), 1 where device u holds expert e.
        weights_s: (N, U) W_e / M of (5r), seconds in which the weights of one expert are read; ``None`` where reading
            counts nothing.

    Raises:
        TypeError: a field is masked, or holds no real numbers.
        ValueError: a field's rows differ in length.
    """

    full_band_snr: Float
    payload_s: Float
    compute_s: Float
    placement: Float
    weights_s: Float | None = None
    _optional: ClassVar[tuple[str, ...]] = ("weights_s",)

    @property
    def num_devices(self) -> int:
        """U."""
        return self.compute_s.shape[-1]

    def row(self, n: int) -> BlockLinks:
        """Episode n as a batch of one."""
        return self.rows(slice(n, n + 1))

    def rows(self, index: slice | NDArray[np.int64]) -> BlockLinks:
        """Some of the episodes, by a slice or indices (n,)."""
        placement = self.placement if self.placement.ndim == 2 else self.placement[index]
        weights_s = None if self.weights_s is None else self.weights_s[index]
        return BlockLinks(self.full_band_snr[index], self.payload_s[index], self.compute_s[index], placement, weights_s)


@dataclass(frozen=True, slots=True)
class Load(_Arrays):
    """What a selection asks of each device.

    Lists and arrays of any real kind become float64.

    Attributes:
        tokens: (N, U) n[u], tokens that the device serves.
        experts: (N, U) token-expert pairs that it computes; above ``tokens`` where a token uses two of its experts.
        reading_s: (N, U) what reading its experts' weights takes beyond computing, see ``reading_s``; ``None`` is 0.

    Raises:
        TypeError: a field is masked, or holds no real numbers.
        ValueError: a field's rows differ in length.
    """

    tokens: Float
    experts: Float
    reading_s: Float | None = None

    _prefix: ClassVar[str] = "load."
    _optional: ClassVar[tuple[str, ...]] = ("reading_s",)

    def row(self, n: int) -> Load:
        """That of episode n as a batch of one."""
        return self.rows(slice(n, n + 1))

    def rows(self, index: slice | NDArray[np.int64]) -> Load:
        """The load of some episodes, by a slice or indices (n,)."""
        reading = None if self.reading_s is None else self.reading_s[index]
        return Load(self.tokens[index], self.experts[index], reading)


def carrier_to_noise_hz(gain: Float, power_w: float, noise_dbm_per_hz: float) -> Float:
    """gamma[u] = P g[u] / N0, equation (3).

    Args:
        gain: linear power gain, any shape.
        power_w: transmit power in W.
        noise_dbm_per_hz: noise power spectral density in dBm/Hz.

    Returns:
        C/N0 in Hz, shape of ``gain``.
    """
    return power_w * gain / 10.0 ** ((noise_dbm_per_hz - 30.0) / 10.0)


def spectral_efficiency(full_band_snr: Float, shares: Float) -> Float:
    """log2(1 + gamma / (b B)), the bit/s/Hz within a device's share.

    Args:
        full_band_snr: (..., 2, U).
        shares: (..., U), positive.

    Returns:
        (..., 2, U) bit/s/Hz.
    """
    return np.log1p(full_band_snr / shares[..., None, :]) / LOG_2


def radio_latency_s(links: BlockLinks, shares: Float) -> Float:
    """L / R_dl + L / R_ul, the radio part of equation (5) under the rate of equation (4).

    Args:
        links: the block's links.
        shares: (N, U) bandwidth shares; a share of zero, or so small that a ratio to it overflows, gives an infinite
            latency.

    Returns:
        (N, U) seconds per token.
    """
    if type(shares) is not np.ndarray or shares.dtype is not FLOAT64:
        shares = real_array("shares", shares)
    positive = np.where(shares > NO_SHARE, shares, 1.0)
    efficiency = spectral_efficiency(links.full_band_snr, positive)
    return np.where(shares > NO_SHARE, both_ways_s(efficiency, links.payload_s, positive), np.inf)


def both_ways_s(efficiency: Float, payload_s: Float, shares: Float) -> Float:
    """L / R_dl + L / R_ul of links whose spectral efficiency is known.

    Args:
        efficiency: (..., 2, U) bit/s/Hz under these shares.
        payload_s: (...,) L / B, seconds.
        shares: (..., U), positive.

    Returns:
        (..., U) seconds per token.
    """
    with np.errstate(divide="ignore"):
        per_bit = 1.0 / efficiency[..., DOWNLINK, :] + 1.0 / efficiency[..., UPLINK, :]
    return payload_s[..., None] * per_bit / shares


def experts_per_device(selection: Bool, placement: Float) -> Float:
    """x[j, u]: how many of token j's selected experts device u holds.

    Args:
        selection: (N, J, E).
        placement: (N, E, U) or (E, U).

    Returns:
        (N, J, U).
    """
    return np.asarray(selection).astype(np.float64) @ placement


def device_load(selection: Bool, links: BlockLinks) -> Load:
    """What a selection (N, J, E) asks of each device: tokens, token-expert pairs, and the reading of weights."""
    per_token = np.asarray(selection).astype(np.float64) @ links.placement  # as of experts_per_device
    every = ones(per_token.shape[-2])
    tokens, experts = every @ np.minimum(per_token, 1.0), every @ per_token
    if links.weights_s is None:
        return Load(tokens, experts)
    return Load(tokens, experts, reading_s(links, sum_over_tokens(np.asarray(selection))))


def reading_s(links: BlockLinks, expert_tokens: Float, used: Float | None = None) -> Float:
    """What reading weights takes beyond computing: the sum over used experts of max(W_e / M - n[e] F / C, 0).

    So ``n F / C + reading_s`` is max(n F / C, W_e / M) summed over a device's used experts, equation (5r): the weights
    of an expert are read once a block, however few tokens come, and computing overlaps with reading.

    Args:
        links: the block's links, with ``weights_s``.
        expert_tokens: (N, E) n[e], tokens of each expert.
        used: (N, E) from 0 to 1, how much of an expert's reading counts; 1 for each that has tokens by default.

    Returns:
        (N, U) seconds.

    Raises:
        ValueError: the links have no ``weights_s``.
    """
    beyond = expert_reading_s(links, expert_tokens, used)
    total: Float = (beyond[:, None] @ links.placement)[:, 0]
    return total


def expert_reading_s(links: BlockLinks, expert_tokens: Float, used: Float | None = None) -> Float:
    """What each expert adds to ``reading_s``.

    Args:
        links: the block's links, with ``weights_s``.
        expert_tokens: (N, E) n[e], tokens of each expert.
        used: (N, E), see ``reading_s``.

    Returns:
        (N, E) seconds.

    Raises:
        ValueError: the links have no ``weights_s``.
    """
    if links.weights_s is None:
        raise ValueError("expected links with weights_s, the time of reading an expert's weights, got None")
    used = np.asarray(expert_tokens > 0, dtype=np.float64) if used is None else used
    weights_s, compute_s = (at_expert(value, links.placement) for value in (links.weights_s, links.compute_s))
    return np.maximum(used * weights_s - expert_tokens * compute_s, 0.0)


def at_expert(values: Float, placement: Float) -> Float:
    """Values (N, U) of devices at the experts that they hold, (N, E); placement (N, E, U) or (E, U)."""
    found: Float = (placement @ values[..., None])[..., 0]
    return found


def device_latency_s(links: BlockLinks, load: Load, shares: Float) -> Float:
    """t[u], equation (6): the sum of equation (5) over the tokens that each device serves, or of (5r) with weights.

    The state crosses the link once per token, however many of its experts the device holds.

    Args:
        links: the block's links.
        load: of a selection.
        shares: (N, U) bandwidth shares.

    Returns:
        (N, U) seconds; 0 for a device without load, infinite for a loaded one without bandwidth.
    """
    radio = radio_latency_s(links, shares)
    return sum_over_tokens_s(links, load, np.where(load.tokens > 0, radio, 0.0))


def sum_over_tokens_s(links: BlockLinks, load: Load, radio_s: Float) -> Float:
    """Equation (6) where the radio latency of one token (N, U) is known and finite; returns (N, U) seconds."""
    computed = load.tokens * radio_s + load.experts * links.compute_s
    return computed if load.reading_s is None else computed + load.reading_s


def token_latency_s(links: BlockLinks, selection: Bool, shares: Float) -> Float:
    """t[j, u], equation (5), zero where device u does not serve token j; reading weights belongs to no token.

    Args:
        links: the block's links.
        selection: (N, J, E).
        shares: (N, U).

    Returns:
        (N, J, U) seconds.
    """
    per_token = experts_per_device(selection, links.placement)
    radio = radio_latency_s(links, shares)[..., None, :]
    return np.where(per_token > 0, radio + per_token * links.compute_s[..., None, :], 0.0)


def block_latency_s(device_latency: Float) -> Float:
    """t, equation (7): attention of the next layer waits for the slowest device; (N, U) s -> (N,) s."""
    return device_latency.max(axis=-1)


def equal_shares(batch: int, num_devices: int) -> Float:
    """(N, U) of 1 / U: the bandwidth of the reference policy."""
    return np.full((batch, num_devices), 1.0 / num_devices)


def gate_weights(gate_probs: Float, routed: Bool) -> Float:
    """w[j, e] = p[j, e] / sum over the routed p: the routed ones of a token sum to 1.

    An expert that was not routed has a weight too, on the same scale.

    Args:
        gate_probs: (N, J, E) scores of all experts.
        routed: (N, J, E) the model's own choice.

    Returns:
        (N, J, E); rows without a routed expert (padding) are zero.
    """
    total = (gate_probs * routed) @ ones(routed.shape[-1])
    return gate_probs / np.where(total > 0, total, np.inf)[..., None]


def weight_served(weights: Float, selection: Bool) -> Float:
    """W: the gate weight that the selected experts serve, summed over tokens; (N, J, E) twice -> (N,)."""
    return (ones(weights.shape[-2]) @ (weights * selection)) @ ones(weights.shape[-1])


def device_weight_served(weights: Float, selection: Bool, placement: Float) -> Float:
    """W[u] (N, U): the gate weight that each device's selected experts serve.

    Args:
        weights: (N, J, E) gate weights.
        selection: (N, J, E).
        placement: (N, E, U) or (E, U).
    """
    of_experts = (ones(weights.shape[-2]) @ (weights * selection))[..., None, :]
    return (of_experts @ placement)[..., 0, :]


def latency_ratio(block_latency: Float, vanilla_latency: Float) -> Float:
    """T over that of the own routing at equal shares, (N,) s twice -> (N,); 1 where all are away and neither waits."""
    waits = vanilla_latency > 0.0
    return np.where(waits, block_latency, 1.0) / np.where(waits, vanilla_latency, 1.0)


def wlr_per_ms(served: Float, block_latency: Float) -> Float:
    """W / t, equation (8).

    Args:
        served: (N,) gate weight served.
        block_latency: (N,) seconds.

    Returns:
        (N,) in 1/ms.
    """
    return served / (1e3 * block_latency)


def wlr_device_per_ms(device_weight: Float, device_latency: Float) -> Float:
    """Sum over loaded devices of W[u] / t[u], the device form beside equation (8).

    Shares can game it: starving slow devices raises it while attention waits longer.

    Args:
        device_weight: (N, U) gate weight that each device serves.
        device_latency: (N, U) seconds, 0 where a device has no load.

    Returns:
        (N,) in 1/ms.
    """
    return (device_weight / np.where(device_latency > 0, 1e3 * device_latency, np.inf)).sum(axis=-1)


@lru_cache(maxsize=64)
def ones(size: int) -> Float:
    """Ones (X,) of a size X, kept since making them takes as long as a product with them."""
    vector = np.ones(size)
    vector.flags.writeable = False
    return vector


def sum_over_tokens(values: NDArray[Any]) -> Float:
    """Sums (..., X) of values, or counts of flags, (..., J, X)."""
    total: Float = ones(values.shape[-2]) @ values
    return total


def any_over_last(flags: Bool) -> Bool:
    """Whether any of flags (..., X) is set, (...): a product of booleans is the "or" of "and"s."""
    found: Bool = flags @ np.ones(flags.shape[-1], dtype=np.bool_)
    return found
