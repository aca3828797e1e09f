"""Min-max bandwidth: the shares that end a block soonest, equation (7), and what a token then costs.

Writing T for the block latency, each loaded device needs a share ``b[u](T)``, the root of a convex decreasing
function, and the optimum is the T at which these sum to 1. Both are found together by a Newton iteration
on the logarithms of ``LatencyCurves``. Convexity of latency in the share gives a lower bound of T at every
iterate, so that the iteration stops on a certificate: slowest device against bound.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from wdmoe_env.optimize.curves import LatencyCurves, device_sum, episodes_innermost, without_rounding
from wdmoe_env.optimize.validate import check_links, check_load, check_min_share
from wdmoe_env.physics.latency import (
    BlockLinks,
    Bool,
    Float,
    Load,
    block_latency_s,
    device_latency_s,
    radio_latency_s,
)

RELATIVE_GAP = 1e-13
MAX_ITERATIONS = 200  # 3 are usual; the worst of 110,000 adversarial instances took 15
STEEPEST = 1.25  # above 1 / 0.81, the largest -d ln share / d ln excess
FIRST_TOKEN_ITERATIONS = 4  # leaves about 1 % of the share
TINY = 1e-60
LEAST_SHARE = 1e-90  # of an iterate: so little that it changes no sum, and enough that no square overflows
AT_OPTIMUM = 1e-9  # relative slack up to which a device counts as one that ends the block


@dataclass(frozen=True, slots=True)
class BandwidthSolution:
    """Shares and the block latency that they give.

    Attributes:
        shares: (N, U), summing to 1; 0 for a device without load, uniform where nothing is loaded.
        latency_s: (N,) block latency, 0 where nothing is loaded.
    """

    shares: Float
    latency_s: Float

    def rows(self, index: NDArray[np.int64] | Bool) -> BandwidthSolution:
        """The solution of some rows, by indices (n,) or marks (N,)."""
        return BandwidthSolution(self.shares[index], self.latency_s[index])


def min_max_bandwidth(links: BlockLinks, load: Load, min_share: float = 0.0) -> BandwidthSolution:
    """Minimise the block latency max over u of t[u] over the bandwidth shares, exactly.

    The lower level of the bilevel problem (9).

    Args:
        links: the block's links, a batch of N, in the ranges of ``wdmoe_env.optimize.validate.check_links``.
        load: (N, U) tokens and token-expert pairs of each device, each 0 or from 1e-30 to 1e30, and the reading of
            weights, a constant of each device.
        min_share: least share of a loaded device.

    Returns:
        The optimum, within 1e-13 of its certified lower bound.

    Raises:
        ValueError: a shape is wrong, a value is out of its range, or ``min_share`` is too large for the loaded devices.
        RuntimeError: the bound was not reached; no input within the ranges is known to cause it.
    """
    check_links(links)
    check_load(links, load)
    return solve_min_max(links, load, min_share)


def solve_min_max(links: BlockLinks, load: Load, min_share: float) -> BandwidthSolution:
    """``min_max_bandwidth`` for a caller that has checked the links and counted the load itself.

    Args:
        links: the block's links, a batch of N.
        load: (N, U) tokens and token-expert pairs of each device.
        min_share: least share of a loaded device.

    Raises:
        ValueError: ``min_share`` is too large for the loaded devices.
        RuntimeError: the bound was not reached; no input within the ranges is known to cause it.
    """
    snr, compute_s = episodes_innermost(links.full_band_snr), episodes_innermost(links.compute_s)
    links = BlockLinks(snr, links.payload_s, compute_s, links.placement)
    reading = None if load.reading_s is None else episodes_innermost(load.reading_s)
    load = Load(episodes_innermost(load.tokens), episodes_innermost(load.experts), reading)
    loaded = load.tokens > 0
    min_share = check_min_share(min_share, loaded)
    idle = ~loaded.any(axis=-1, keepdims=True)
    # A device without load gets the curve of one token, which keeps its numbers finite; ``active`` rules it
    # out, except in a row without any load, which is solved all the same and then overwritten.
    tokens = np.where(loaded, load.tokens, 1.0)
    curves = LatencyCurves.of(links, Load(tokens, load.experts, load.reading_s))
    minimum = np.where(loaded, max(min_share, LEAST_SHARE), LEAST_SHARE)
    shares = _Problem.of(curves, loaded | idle, minimum).solve(tokens)
    shares = np.where(idle, 1.0 / links.num_devices, without_rounding(shares))
    latency_s = block_latency_s(device_latency_s(links, load, shares))
    return BandwidthSolution(np.ascontiguousarray(shares), latency_s)


def marginal_latency_s(links: BlockLinks, load: Load, solution: BandwidthSolution) -> tuple[Float, Float, Float]:
    """How much the optimal block latency grows per unit of load.

    Where the devices that end the block share its bandwidth, ``t[u](b[u], n[u]) = T`` and sum of b[u] = const
    give dT = sum of a[u] dt[u] at fixed shares, with a[u] proportional to 1 / |dt[u] / db[u]| and summing to 1.
    A device that is faster than T, because it holds the least share, has price 0. So has a device without
    load: its first token needs next to no share at the margin (see ``first_token_latency_s``).

    Args:
        links: the block's links.
        load: the load that ``solution`` was solved for.
        solution: the optimum of ``min_max_bandwidth``.

    Returns:
        token price dT/dn[u] in seconds per token, expert price dT/dc[u] in seconds per token-expert pair, and blame
        a[u], the price of a second that a device is busy otherwise, such as with reading weights; each (N, U).
    """
    sensitivity = _bandwidth_sensitivity(links, load, solution)
    total = sensitivity.sum(axis=-1, keepdims=True)
    blame = np.divide(sensitivity, total, out=np.zeros_like(sensitivity), where=total > 0)
    radio = radio_latency_s(links, np.where(blame > 0, solution.shares, 1.0))
    return blame * radio, blame * links.compute_s, blame


def first_token_latency_s(links: BlockLinks, load: Load, solution: BandwidthSolution, min_share: float = 0.0) -> Float:
    """About how much the optimal block latency grows when a device without load gets one token of one expert.

    The share that the device needs to end with the others, at the price of bandwidth -dT/d(total share), and
    whatever even the whole band could not bring it under T. First order in the share. The token carries the reading of
    its expert's weights.

    Args:
        links: the block's links.
        load: the load that ``solution`` was solved for.
        solution: the optimum of ``min_max_bandwidth``.
        min_share: least share of a loaded device.

    Returns:
        (N, U) seconds, 0 for a device that has load.
    """
    one = np.ones_like(load.tokens)
    reading = None if links.weights_s is None else np.maximum(links.weights_s - links.compute_s, 0.0)
    alone = Load(one, one, reading)
    curves = LatencyCurves.of(links, alone)
    target = solution.latency_s[:, None]
    shares = one
    for _ in range(FIRST_TOKEN_ITERATIONS):
        excess, fall = curves.excess(shares)
        room = np.clip(target - curves.floor_s, TINY, None)
        shares = np.clip(shares * (excess / room) ** (excess / fall), TINY, 1.0)
    late = np.maximum(device_latency_s(links, alone, one) - target, 0.0)
    sensitivity = _bandwidth_sensitivity(links, load, solution).sum(axis=-1, keepdims=True)
    price = np.divide(1.0, sensitivity, out=np.zeros_like(sensitivity), where=sensitivity > 0)
    return np.where(load.tokens > 0, 0.0, late + price * np.maximum(shares, min_share))


def _bandwidth_sensitivity(links: BlockLinks, load: Load, solution: BandwidthSolution) -> Float:
    """-db[u]/dT of the devices that end the block, 0 for the others; (N, U) in 1/s."""
    latency = device_latency_s(links, load, solution.shares)
    ends_block = (load.tokens > 0) & (latency >= (1.0 - AT_OPTIMUM) * solution.latency_s[:, None])
    shares = np.where(ends_block, solution.shares, 1.0)
    _, fall = LatencyCurves.of(links, load).excess(shares)
    return np.divide(shares, fall, out=np.zeros_like(shares), where=ends_block)


@dataclass(frozen=True, slots=True)
class _Problem:
    """Make all active devices that are above their least share end at the same time.

    With ``above`` = latency - the highest floor, a small difference of large numbers never arises.

    Attributes:
        curves: latency against share.
        active: (N, U) devices that get a share.
        minimum: (N, U) least shares.
        spare: (N, 1) share to give beyond them.
        highest_floor: (N, 1) s.
        gap: (N, U) the highest floor less the device's own, s; infinite for a device that is not active.
    """

    curves: LatencyCurves
    active: Bool
    minimum: Float
    spare: Float
    highest_floor: Float
    gap: Float

    @classmethod
    def of(cls, curves: LatencyCurves, active: Bool, minimum: Float) -> _Problem:
        """The problem of some curves."""
        floor = np.where(active, curves.floor_s, -np.inf)
        highest = floor.max(axis=-1, keepdims=True)
        return cls(curves, active, minimum, 1.0 - device_sum(minimum), highest, highest - floor)

    def solve(self, guess: Float) -> Float:
        """Optimal shares (N, U); the better their proportion is guessed, the sooner."""
        tangent = self.tangent(guess * self.active)
        # No device ends sooner than with the whole band, where its excess is at least its share of what it is now.
        bound = (tangent.shares * tangent.excess - self.gap).max(axis=-1, keepdims=True)
        target = tangent.step(tangent.step(bound))
        for _ in range(MAX_ITERATIONS):
            tangent = self.tangent(tangent.wanted(target) - self.minimum)
            above = tangent.excess - self.gap
            slowest = above.max(axis=-1, keepdims=True)
            may_grow = (tangent.shares > self.minimum) | (above >= np.minimum(bound, slowest))
            bound = np.maximum(bound, tangent.lower_bound(above, may_grow & self.active))
            if (slowest - bound <= RELATIVE_GAP * (self.highest_floor + slowest)).all():
                return tangent.shares * self.active
            target = tangent.step(bound)
        raise RuntimeError(f"min_max_bandwidth did not reach its optimum in {MAX_ITERATIONS} iterations")

    def tangent(self, wanted: Float) -> _Tangent:
        """The tangent where the devices hold their least shares and divide the rest in a proportion (N, U)."""
        part = self.spare / np.maximum(device_sum(wanted), TINY)
        shares = np.where(self.active, self.minimum + part * wanted, 1.0)
        return _Tangent(self, shares, *self.curves.excess(shares))


@dataclass(frozen=True, slots=True)
class _Tangent:
    """ln excess as a linear function of ln share at an iterate; fields (N, U) but for the problem.

    Attributes:
        problem: what is being solved.
        shares: the iterate; 1 for a device that is not active.
        excess: latency above each device's floor, s.
        fall: -d excess / d ln share, s.
    """

    problem: _Problem
    shares: Float
    excess: Float
    fall: Float

    def lower_bound(self, above: Float, free: Bool) -> Float:
        """No shares end the block sooner, (N, 1): duality, with the weights that give the free devices equal slopes.

        Every device above its least share must be free, and the slowest is.
        """
        weight = free * self.shares / self.fall
        return device_sum(weight * np.where(free, above, 0.0)) / device_sum(weight)

    def wanted(self, above: Float) -> Float:
        """The share (N, U), at least the least one, with which each device ends at ``above`` (N, 1)."""
        to_go = self.excess / (above + self.problem.gap)
        return np.maximum(self.shares * to_go ** (self.excess / self.fall), self.problem.minimum)

    def step(self, above: Float) -> Float:
        """Newton's step (N, 1) from below towards the ``above`` at which the shares sum to 1.

        Under the tangents, the sum of shares to the power -1 / STEEPEST is concave in T and almost linear, so that
        a step from below goes far and not beyond.
        """
        wanted = self.wanted(above)
        total = device_sum(wanted)
        slope = (wanted > self.problem.minimum) * wanted * self.excess / (self.fall * (above + self.problem.gap))
        step = STEEPEST * total * (total ** (1.0 / STEEPEST) - 1.0)
        return above + np.maximum(step / np.maximum(device_sum(slope), TINY), 0.0)
