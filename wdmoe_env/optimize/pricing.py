"""What each token should use when every device has its price: the linear problem inside the marginal-price rule.

With prices fixed, the objective splits into one small problem per token, solved exactly here: take a device
if the experts on it that are worth their computing together pay for sending the token there.

Where weights are read, an expert's time is a fixed charge: its first pair brings the reading, its last one takes it
away, and those between cost what computing exceeds reading by, mostly nothing (``pair_seconds``).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from wdmoe_env.optimize.bandwidth import (
    BandwidthSolution,
    first_token_latency_s,
    marginal_latency_s,
    solve_min_max,
)
from wdmoe_env.physics.latency import (
    BlockLinks,
    Bool,
    Float,
    Load,
    at_expert,
    expert_reading_s,
    experts_per_device,
    reading_s,
    sum_over_tokens,
)


@dataclass(frozen=True, slots=True)
class DevicePrices:
    """Gate weight that a unit of load costs.

    Attributes:
        token: (N, U) per token sent.
        expert: (N, U) per token-expert pair computed.
        second: (N, U) per second that the device is busy otherwise.
    """

    token: Float
    expert: Float
    second: Float

    def of_pairs(self, links: BlockLinks, selection: Bool) -> Float:
        """What each pair's computing costs, (N, 1, E) or (N, J, E): by being there, or by coming to a selection.

        Args:
            links: the block's links.
            selection: (N, J, E) that the prices are of.
        """
        if links.weights_s is None:
            return at_device_of_expert(self.expert, links.placement)[:, None, :]
        second = at_device_of_expert(self.second, links.placement)[:, None, :]
        last, further = pair_seconds(links, sum_over_tokens(selection))
        return second * np.where(selection, last[:, None, :], further[:, None, :])


def pair_seconds(links: BlockLinks, expert_tokens: Float) -> tuple[Float, Float]:
    """What an expert's time (5r) shrinks by with its last pair, and grows by with a further one.

    Args:
        links: the block's links, with ``weights_s``.
        expert_tokens: (N, E) n[e], tokens of each expert.

    Returns:
        Both (N, E) in seconds: f(n) - f(n - 1), 0 where there is no pair, and f(n + 1) - f(n), with
        f(n) = max(n F / C, W_e / M) for n > 0 and f(0) = 0.
    """
    compute_s = at_expert(links.compute_s, links.placement)

    def time_s(tokens: Float) -> Float:
        return tokens * compute_s + expert_reading_s(links, tokens)

    now = time_s(expert_tokens)
    return now - time_s(np.maximum(expert_tokens - 1.0, 0.0)), time_s(expert_tokens + 1.0) - now


def pair_differences_s(
    links: BlockLinks, load: Load, latency_s: Float, selection: Bool, wanted: Bool, min_share: float
) -> Float:
    """What each pair makes a block longer by, at shares that are optimal with it and without it.

    A price is the slope of the block latency. Where few tokens come, or weights are read, a whole pair is no small
    change: as it goes, another device ends the block. So the shares are solved anew for each.

    Args:
        links: the block's links.
        load: of the selection.
        latency_s: (N,) block latency at the optimum of ``min_max_bandwidth`` for it.
        selection: (N, J, E) what is used.
        wanted: (N, J, E) pairs that are asked for.
        min_share: least share of a loaded device.

    Returns:
        (N, J, E) seconds, 0 where not wanted: what leaving out a pair that is used saves, and what another one adds.
    """
    beside = at_device_of_expert(experts_per_device(selection, links.placement), links.placement) - selection > 0
    expert_tokens, found = sum_over_tokens(selection), np.zeros(selection.shape)
    for used, sign in ((True, -1.0), (False, 1.0)):
        for alone, tokens in ((True, sign), (False, 0.0)):  # the token leaves the device, or comes to it, with its pair
            asked = wanted & (selection == used) & (beside != alone)
            row, expert = np.nonzero(asked.any(axis=1))
            if row.size:
                changed = _changed_load(links, load, expert_tokens, (row, expert), tokens, sign)
                ends_s = solve_min_max(links.rows(row), changed, min_share).latency_s
                of_expert = np.zeros((len(selection), selection.shape[-1]))
                of_expert[row, expert] = sign * (ends_s - latency_s[row])
                found = np.where(asked, of_expert[:, None], found)
    return found


def _changed_load(
    links: BlockLinks,
    load: Load,
    expert_tokens: Float,
    pairs: tuple[NDArray[np.int64], NDArray[np.int64]],
    tokens: float,
    experts: float,
) -> Load:
    """Loads (M, U) of rows whose expert has a pair more or less: ``pairs`` are M rows and experts."""
    row, expert = pairs
    placement = np.broadcast_to(links.placement, (len(expert_tokens), *links.placement.shape[-2:]))
    at = np.arange(len(row)), placement.argmax(axis=-1)[row, expert]
    changed = load.rows(row)  # by indices, so that it is a copy
    changed.tokens[at] += tokens
    changed.experts[at] += experts
    if links.weights_s is None:
        return changed
    after = expert_tokens[row]
    after[np.arange(len(row)), expert] += experts
    return Load(changed.tokens, changed.experts, reading_s(links.rows(row), after))


def device_prices(
    links: BlockLinks, load: Load, bandwidth: BandwidthSolution, price_per_ms: Float, min_share: float
) -> DevicePrices:
    """Marginal block latency of each device at the bandwidth optimum of a load, times the price.

    Args:
        links: the block's links.
        load: of a selection.
        bandwidth: the optimum of ``min_max_bandwidth`` for it.
        price_per_ms: (N,) gate weight per millisecond.
        min_share: least share of a loaded device.
    """
    token_s, expert_s, blame = marginal_latency_s(links, load, bandwidth)
    idle = np.flatnonzero((load.tokens == 0).any(axis=-1))
    if idle.size:
        token_s[idle] += first_token_latency_s(links.rows(idle), load.rows(idle), bandwidth.rows(idle), min_share)
    scale = 1e3 * price_per_ms[:, None]
    return DevicePrices(scale * token_s, scale * expert_s, scale * blame)


def at_device_of_expert(values: Float, placement: Float) -> Float:
    """Values (N, ..., E) at the experts of values (N, ..., U) of devices: each expert has its device's."""
    device = np.broadcast_to(placement.argmax(axis=-1), (len(values), placement.shape[-2]))
    device = device.reshape(len(values), *(1,) * (values.ndim - 2), -1)
    return np.take_along_axis(values, device, axis=-1)


def pair_prices(prices: DevicePrices, selection: Bool, links: BlockLinks) -> Float:
    """What each pair of token and expert costs at the margin, given the other experts of the same token.

    A pair pays for its computing. It pays for sending the token too, where no other expert of the token is on its
    device. So for a pair that is used this is what leaving it out saves, and for another one what it would add.

    Args:
        prices: of the devices.
        selection: (N, J, E) what is used.
        links: the block's links.

    Returns:
        (N, J, E), in the unit of the prices.
    """
    beside = at_device_of_expert(experts_per_device(selection, links.placement), links.placement) - selection
    token = at_device_of_expert(prices.token, links.placement)[:, None, :]
    return prices.of_pairs(links, selection) + np.where(beside > 0, 0.0, token)


def token_prices(prices: DevicePrices, selection: Bool, links: BlockLinks) -> Float:
    """What all experts of a token cost together at the margin.

    Where shares are optimal and no weights are read, these add up to the block latency over the tokens: that is
    homogeneous of degree 1 in the load, so Euler's theorem holds.

    Args:
        prices: of the devices.
        selection: (N, J, E) what is used.
        links: the block's links.

    Returns:
        (N, J), in the unit of the prices.
    """
    reached = experts_per_device(selection, links.placement) > 0
    sent: Float = np.where(reached, prices.token[:, None, :], 0.0).sum(axis=-1)
    return sent + np.where(selection, prices.of_pairs(links, selection), 0.0).sum(axis=-1)


def best_response(
    prices: DevicePrices, weights: Float, candidates: Bool, kept: Bool, selection: Bool, links: BlockLinks
) -> tuple[Bool, Float]:
    """The selection of greatest net value at fixed prices, and what each token gains by changing to it.

    Args:
        prices: of the devices.
        weights: (N, J, E) gate weights.
        candidates: (N, J, E) experts to choose from; a token without any stays empty.
        kept: (N, J, E) candidates that stay whatever they cost.
        selection: (N, J, E) the present choice.
        links: the block's links.

    Returns:
        selection (N, J, E), one or more experts for each token that has candidates, and gain (N, J) >= 0.
    """
    placement = links.placement
    net = np.where(candidates, weights - prices.of_pairs(links, selection), -np.inf)
    worth = (net > 0) | kept
    device_value = np.where(worth, net, 0.0) @ placement - prices.token[:, None, :]
    value_here = at_device_of_expert(device_value, placement)
    best = worth & ((value_here > 0) | _beside(kept, placement))
    # A token that no device is worth takes the least bad one: an expert, and those beside it that pay.
    forced = one_hot((np.minimum(net, 0.0) + value_here).argmax(axis=-1), net.shape[-1])
    least_bad = (forced | (worth & _beside(forced, placement))) & candidates
    best = np.where(best.any(axis=-1, keepdims=True), best, least_bad)
    gain = _net_value(best, net, prices, placement) - _net_value(selection, net, prices, placement)
    return best, np.maximum(gain, 0.0)


def one_hot(index: NDArray[np.intp], size: int) -> Bool:
    """(...,) indices as (..., size) marks."""
    return np.arange(size) == index[..., None]


def _beside(selection: Bool, placement: Float) -> Bool:
    """Marks (N, J, E) the experts on a device that the selection reaches for the same token."""
    return at_device_of_expert(experts_per_device(selection, placement), placement) > 0


def _net_value(selection: Bool, net: Float, prices: DevicePrices, placement: Float) -> Float:
    """Value (N, J) of each token's experts less the price of the devices that it reaches."""
    reached = experts_per_device(selection, placement) > 0
    paid: Float = np.where(reached, prices.token[:, None, :], 0.0).sum(axis=-1)
    return np.where(selection, net, 0.0).sum(axis=-1) - paid
