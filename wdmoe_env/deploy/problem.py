"""Where experts should be: the expected block latency of a placement under sampled routing, and a bound below it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from wdmoe_env.optimize.bandwidth import solve_min_max
from wdmoe_env.physics.latency import LOG_2, BlockLinks, Bool, Float, device_load

Table = NDArray[np.int64]
"""Device of each expert, (I, E)."""

ROWS_AT_ONCE = 1024
"""Blocks that are solved at a time, which bounds the memory."""

HALVINGS = 60


@dataclass(frozen=True, slots=True)
class PlacementProblem:
    """Routing of S windows through I blocks, and the devices that are to hold the experts.

    Every window counts alike. Links are typical ones, and the same in every block; shares are optimal.

    Attributes:
        routed: (I, S, J, E) the model's own choice.
        full_band_snr: (2, U) gamma / B, downlink then uplink.
        payload_s: L / B, seconds.
        compute_s: (U,) seconds of one expert on one token.
        weights_s: (U,) seconds of reading the weights of an expert; ``None`` where reading counts nothing.
        capacity: (U,) experts of all blocks that each device has room for; at least one each.

    Raises:
        ValueError: there is not room for all experts, or there are fewer experts than devices.
    """

    routed: Bool
    full_band_snr: Float
    payload_s: float
    compute_s: Float
    weights_s: Float | None
    capacity: Table

    def __post_init__(self) -> None:
        """Check that a placement exists."""
        blocks, _, _, experts = self.routed.shape
        if self.capacity.min() < 1 or self.capacity.sum() < blocks * experts:
            raise ValueError(
                f"expected memory for {blocks} blocks of {experts} experts and for one on each device, got devices "
                f"with room for {self.capacity.sum()} in all and for {self.capacity.min()} at least"
            )
        if blocks * experts < self.num_devices:
            raise ValueError(f"expected an expert for each of {self.num_devices} devices, got {blocks * experts}")

    @property
    def num_devices(self) -> int:
        """U."""
        return len(self.compute_s)

    @property
    def popularity(self) -> Float:
        """(I, E) mean number of tokens that go to an expert in a window."""
        mean: Float = self.routed.sum(axis=2).mean(axis=1)
        return mean

    def block_latency_s(self, block: int, tables: Table, placed: Bool | None = None) -> Float:
        """Mean block latency (C,) in s over the windows, of C ways to place the experts of one block.

        Args:
            block: which one.
            tables: (C, E) device of each expert.
            placed: (E,) experts that count; ``None`` is all.
        """
        samples = self.routed.shape[1]
        at_once = max(1, ROWS_AT_ONCE // samples)
        parts = [
            self._latency_s(block, tables[start : start + at_once], placed) for start in range(0, len(tables), at_once)
        ]
        return np.concatenate(parts)

    def latency_s(self, table: Table) -> float:
        """Sum over the blocks of the mean block latency in s of a placement (I, E)."""
        return float(sum(self.block_latency_s(block, row[None])[0] for block, row in enumerate(table)))

    def _latency_s(self, block: int, tables: Table, placed: Bool | None) -> Float:
        routed = self.routed[block] if placed is None else self.routed[block] & placed
        selection = np.tile(routed, (len(tables), 1, 1))
        links = self._links(np.repeat(np.eye(self.num_devices)[tables], len(routed), axis=0))
        solved = solve_min_max(links, device_load(selection, links), 0.0)
        return solved.latency_s.reshape(len(tables), len(routed)).mean(axis=1)

    def _links(self, placement: Float) -> BlockLinks:
        batch, devices = len(placement), self.num_devices

        def rows(values: Float) -> Float:
            return np.broadcast_to(values, (batch, *values.shape))

        return BlockLinks(
            full_band_snr=rows(self.full_band_snr),
            payload_s=np.full(batch, self.payload_s),
            compute_s=np.broadcast_to(self.compute_s, (batch, devices)),
            placement=placement,
            weights_s=None if self.weights_s is None else rows(self.weights_s),
        )

    def lower_bound_s(self) -> float:
        """No placement that fits has a lower ``latency_s``: here each window may place every pair anew, in parts.

        With k experts a token at most, a device that computes x pairs is sent x / k tokens at least. So with share b it
        gets through 1 / (radio(b) + k c) tokens a second, which is concave in b, where c is what a pair takes: compute,
        and at least its part of reading the weights of an expert that as many tokens use as use any. The sum of these
        rates is maximised over the shares, and bounded from above there by its tangent plane. Besides, the weights of
        every used expert have to be read whole by one device.
        """
        loads = self.routed.sum(axis=2).reshape(-1, self.routed.shape[-1])
        pairs, most = loads.sum(axis=-1), loads.max(axis=-1)
        each = self.routed.sum(axis=-1).max(axis=-1).ravel()
        cost = np.broadcast_to(self.compute_s, (len(pairs), self.num_devices))
        reading = np.zeros(len(pairs))
        if self.weights_s is not None:
            cost = np.maximum(cost, self.weights_s / np.maximum(most, 1)[:, None])
            reading = self._reading_s((loads > 0).sum(axis=-1))
        tokens = pairs / np.maximum(each, 1)
        bound = np.maximum(tokens / self._most_tokens_per_s(np.maximum(each, 1)[:, None] * cost), reading)
        return float(bound.sum() / self.routed.shape[1])

    def _reading_s(self, used: Table) -> Float:
        """Least time (N,) of reading the weights of so many experts (N,) of a block, each on one device with room."""
        assert self.weights_s is not None
        rooms = np.minimum(self.capacity, self.routed.shape[-1])
        ends = [one * np.arange(1, room + 1) for one, room in zip(self.weights_s, rooms, strict=True)]
        least: Float = np.sort(np.concatenate([np.zeros(1), *ends]))
        return least[used]

    def _most_tokens_per_s(self, cost_s: Float) -> Float:
        """Upper bounds (N,) of the tokens a second that all devices get through, at ``cost_s`` (N, U) for each."""
        low, high = np.full((len(cost_s), 1), -70.0), np.full((len(cost_s), 1), 70.0)
        for _ in range(HALVINGS):  # of the logarithm of what a share is worth
            middle = 0.5 * (low + high)
            spends = self._shares(np.exp(middle), cost_s).sum(axis=-1, keepdims=True) > 1.0
            low, high = np.where(spends, middle, low), np.where(spends, high, middle)
        shares = self._shares(np.exp(high), cost_s)
        shares = shares / shares.sum(axis=-1, keepdims=True)
        rate, slope = self._rate(shares, cost_s)
        return rate.sum(axis=-1) + slope.max(axis=-1) - (slope * shares).sum(axis=-1)

    def _shares(self, worth: Float, cost_s: Float) -> Float:
        """Shares (N, U) at which the rate of each device grows by ``worth`` (N, 1) a share, or the least or all."""
        low, high = np.full(cost_s.shape, -70.0), np.zeros(cost_s.shape)
        for _ in range(HALVINGS):
            middle = 0.5 * (low + high)
            more = self._rate(np.exp(middle), cost_s)[1] > worth
            low, high = np.where(more, middle, low), np.where(more, high, middle)
        return np.exp(high)

    def _rate(self, shares: Float, cost_s: Float) -> tuple[Float, Float]:
        """Tokens a second (N, U) of each device, and their slope by the share."""
        ratio = self.full_band_snr / shares[:, None]
        bits = shares[:, None] * np.log1p(ratio) / LOG_2
        bits_slope = (np.log1p(ratio) - ratio / (1.0 + ratio)) / LOG_2
        radio = self.payload_s * (1.0 / bits).sum(axis=1)
        fall = self.payload_s * (bits_slope / bits**2).sum(axis=1)
        rate = 1.0 / (radio + cost_s)
        return rate, rate**2 * fall
