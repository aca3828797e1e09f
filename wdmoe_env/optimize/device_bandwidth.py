"""Shares that maximise the device form of the weight-to-latency ratio, for a fixed selection.

Each term W[u] / t[u] is concave and increasing in its share: a rate is, and the inverse of a sum of inverses
keeps both. So the optimum equalises the derivatives (water-filling): at a price of bandwidth each device takes
the share at which its derivative meets the price, and the price is the one at which the shares sum to 1.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from wdmoe_env.optimize.curves import LatencyCurves, shares_with_sum_one, without_rounding
from wdmoe_env.optimize.validate import (
    DEVICE_FORM_RANGES,
    check_links,
    check_load,
    check_min_share,
    check_served_weight,
)
from wdmoe_env.physics.latency import BlockLinks, Bool, Float, Load

LEAST_SHARE = 1e-26  # the derivative is infinite at 0, yet so slowly that an optimal share may be any number
TOLERANCE = 1e-11  # of the logarithm of a share
MAX_ITERATIONS = 100


def wlr_device_bandwidth(links: BlockLinks, load: Load, served_weight: Float, min_share: float = 0.0) -> Float:
    """Maximise sum over loaded u of W[u] / t[u] over the bandwidth shares.

    Beware: the block ends when its slowest device has answered, and this optimum starves slow devices.

    Args:
        links: the block's links, a batch of N: ``full_band_snr`` from 1e-30 to 1e30, ``payload_s`` from 1e-30 to 1e12,
            ``compute_s`` from 0 to 1e12.
        load: (N, U) tokens and token-expert pairs of each device; each is 0 or from 1e-9 to 1e9.
        served_weight: (N, U) gate weight W[u] that each device serves, 0 or from 1e-20 to 1e20.
        min_share: least share of a loaded device.

    Returns:
        (N, U) shares, summing to 1; 0 for a device without load, uniform where nothing is loaded. A loaded
        device that serves no weight gets the least share, which may be 0.

    Raises:
        TypeError: ``served_weight`` holds no real numbers.
        ValueError: a shape or a value is wrong, or ``min_share`` is too large for the loaded devices.
    """
    check_links(links, DEVICE_FORM_RANGES)
    check_load(links, load, DEVICE_FORM_RANGES)
    served_weight = check_served_weight(served_weight, links, DEVICE_FORM_RANGES)
    loaded = load.tokens > 0
    min_share = check_min_share(min_share, loaded)
    idle = ~loaded.any(axis=-1, keepdims=True)
    minimum = np.where(loaded, min_share, 0.0)
    earning = loaded & (served_weight > 0)
    # A row in which nothing earns is solved as if everything did, then overwritten.
    solved = earning | ~earning.any(axis=-1, keepdims=True)
    load = Load(np.where(loaded, load.tokens, 1.0), load.experts)
    returns = _Returns(LatencyCurves.of(links, load), np.where(earning, served_weight, 1.0))
    budget = 1.0 - np.where(solved, 0.0, minimum).sum(axis=-1, keepdims=True)
    wanted = np.where(earning, _water_fill(returns, solved, budget, min_share), 0.0)
    return without_rounding(shares_with_sum_one(wanted, minimum, loaded | idle))


@dataclass(frozen=True, slots=True)
class _Returns:
    """W[u] / t[u] of every device as a function of ln share, through its derivative in the share."""

    curves: LatencyCurves
    weight: Float

    def derivative(self, log_share: Float) -> tuple[Float, Float]:
        """d(W / t) / d share, and the derivative of its logarithm in ln share; both (N, U)."""
        shares = np.exp(log_share)
        excess, fall = self.curves.excess(shares)
        latency = self.curves.floor_s + excess
        log_slope = self.curves.fall_slope(shares) / fall - 1.0 + 2.0 * fall / latency
        return self.weight * fall / (shares * latency**2), log_slope


def _water_fill(returns: _Returns, solved: Bool, budget: Float, min_share: float) -> Float:
    """Shares (N, U) at the price of bandwidth at which those of the marked devices sum to the budget (N, 1)."""
    low = np.full(solved.shape, np.log(max(min_share, LEAST_SHARE)))
    high = np.maximum(np.log(budget), low)
    at_low, at_high = returns.derivative(low)[0], returns.derivative(high)[0]
    log_share = np.maximum(high - np.log(solved.sum(axis=-1, keepdims=True)), low)

    def excess_share(log_price: Float) -> tuple[Float, Float]:
        """How far the shares at a price exceed the budget, relative, and its slope; (N, 1)."""
        nonlocal log_share
        price = np.exp(log_price)
        bracket = np.where(at_high >= price, high, low), np.where(at_low <= price, low, high)

        def premium(log_share: Float) -> tuple[Float, Float]:
            derivative, log_slope = returns.derivative(log_share)
            return derivative / price - 1.0, derivative / price * log_slope

        log_share = _decreasing_root(premium, *bracket, log_share)
        share = np.where(solved, np.exp(log_share), 0.0)
        free = (at_low > price) & (at_high < price)
        slope = np.where(free, share / returns.derivative(log_share)[1], 0.0)
        return share.sum(axis=-1, keepdims=True) / budget - 1.0, slope.sum(axis=-1, keepdims=True) / budget

    # The price is at least that of one device with the whole budget, at most that of equal parts.
    equal = returns.derivative(log_share)[0]
    lowest, highest = (np.log(np.where(solved, price, 0.0).max(axis=-1, keepdims=True)) for price in (at_high, equal))
    _decreasing_root(excess_share, lowest, highest, highest)
    return np.exp(log_share)


def _decreasing_root(function: Callable[[Float], tuple[Float, Float]], low: Float, high: Float, start: Float) -> Float:
    """Root of a decreasing function given with its slope: Newton, or the middle of the bracket where it leaves it."""
    x = np.clip(start, low, high)
    for _ in range(MAX_ITERATIONS):
        value, slope = function(x)
        low, high = np.where(value > 0, x, low), np.where(value < 0, x, high)
        newton = x - np.divide(value, slope, out=np.zeros_like(x), where=slope < 0)
        moved = np.where((newton >= low) & (newton <= high), newton, 0.5 * (low + high))
        if (np.abs(moved - x) <= TOLERANCE).all():
            return moved
        x = moved
    return x
