"""What every optimizer is given, a ``BlockProblem``, and what it gives back, a ``Decision``."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from wdmoe_env.optimize.bandwidth import BandwidthSolution, solve_min_max
from wdmoe_env.optimize.validate import check_links, check_price, check_selection
from wdmoe_env.physics.latency import (
    BlockLinks,
    Bool,
    Float,
    block_latency_s,
    device_latency_s,
    device_load,
    weight_served,
    wlr_per_ms,
)

Index = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class BlockProblem:
    """One MoE block of N episodes, to be decided.

    Attributes:
        links: radio, compute and placement.
        weights: (N, J, E) gate weights.
        routed: (N, J, E) the model's own choice; a row without any is padding and stays empty.
        candidates: (N, J, E) experts that a token may use besides its routed ones; ``None`` adds none.
        price_per_ms: (N,) or a number, the gate weight that a millisecond of block latency is worth. Only the
            marginal-price rule reads it.
        min_share: least bandwidth share of a device that serves a token.
    """

    links: BlockLinks
    weights: Float
    routed: Bool
    candidates: Bool | None = None
    price_per_ms: Float | float = 0.0
    min_share: float = 0.0

    @property
    def usable(self) -> Bool:
        """(N, J, E) experts that a token may use: the candidates once the problem is checked."""
        return self.routed if self.candidates is None else self.candidates

    @property
    def price(self) -> Float:
        """The price as an array: (N,) once the problem is checked."""
        return np.asarray(self.price_per_ms, dtype=np.float64)

    def checked(self) -> BlockProblem:
        """The same problem, checked, with ``candidates`` filled in and ``price_per_ms`` as an array (N,).

        Raises:
            TypeError: a mask is not boolean.
            ValueError: a shape or a value is wrong.
        """
        batch, _ = check_links(self.links)
        masks = ("routed", self.routed), ("candidates", self.usable)
        weights, (routed, candidates) = check_selection(self.links, self.weights, *masks)
        usable = (candidates | routed) & routed.any(axis=-1, keepdims=True)
        return BlockProblem(self.links, weights, routed, usable, check_price(self.price_per_ms, batch), self.min_share)

    def rows(self, index: Index) -> BlockProblem:
        """The problem of some episodes, by indices (n,)."""
        candidates, price = self.candidates, self.price
        return BlockProblem(
            self.links.rows(index),
            self.weights[index],
            self.routed[index],
            None if candidates is None else candidates[index],
            price[index] if price.ndim else price,
            self.min_share,
        )

    def with_optimal_shares(self, selection: Bool) -> Decision:
        """The decision that a selection (N, J, E) becomes with the shares of least block latency."""
        load = device_load(selection, self.links)
        return self._decision(selection, solve_min_max(self.links, load, self.min_share))

    def with_shares(self, selection: Bool, shares: Float) -> Decision:
        """The decision of a selection (N, J, E) and given shares (N, U)."""
        load = device_load(selection, self.links)
        latency_s = block_latency_s(device_latency_s(self.links, load, shares))
        return self._decision(selection, BandwidthSolution(shares, latency_s))

    def _decision(self, selection: Bool, bandwidth: BandwidthSolution) -> Decision:
        # A row of padding has neither weight nor latency; its ratio is 0.
        latency = np.where(bandwidth.latency_s > 0, bandwidth.latency_s, np.inf)
        return Decision(selection, bandwidth, wlr_per_ms(weight_served(self.weights, selection), latency))


@dataclass(frozen=True, slots=True)
class Decision:
    """What an optimizer decided for N blocks, and what it is worth.

    Attributes:
        selection: (N, J, E) experts of each token; every token that has routed experts has one or more.
        bandwidth: shares and block latency.
        wlr_per_ms: (N,) the ratio (8) in 1/ms, 0 where nothing is loaded.
    """

    selection: Bool
    bandwidth: BandwidthSolution
    wlr_per_ms: Float

    @property
    def shares(self) -> Float:
        """(N, U) bandwidth shares, which sum to 1."""
        return self.bandwidth.shares

    @property
    def latency_s(self) -> Float:
        """(N,) block latency in seconds, 0 where nothing is loaded."""
        return self.bandwidth.latency_s

    def rows(self, index: Index | Bool) -> Decision:
        """The decision of some episodes, by indices (n,) or marks (N,)."""
        return Decision(self.selection[index], self.bandwidth.rows(index), self.wlr_per_ms[index])

    def replaced(self, index: Index, other: Decision) -> Decision:
        """This decision with the episodes ``index`` (n,) taken from ``other``, a decision of n episodes."""
        copy = Decision(
            self.selection.copy(), BandwidthSolution(self.shares.copy(), self.latency_s.copy()), self.wlr_per_ms.copy()
        )
        copy.selection[index], copy.wlr_per_ms[index] = other.selection, other.wlr_per_ms
        copy.shares[index], copy.latency_s[index] = other.shares, other.latency_s
        return copy
