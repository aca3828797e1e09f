"""Device latency as a function of its bandwidth share, split into a floor and an excess.

The latency of equation (6) falls in the share b towards a floor that no bandwidth can pass: compute, and a
radio whose rate saturates at full_band_snr / ln 2 when noise fills a wide band. The part above it,

    excess(b) = sum over both links of n payload_s ln2 / snr * (y / ln(1 + y) - 1),    y = snr / b,

is nearly 1 / b at every SNR: its logarithm falls in ln b with a slope between -1 and -0.81. Solvers work
on ln excess against ln b, where a tangent is a good model everywhere, and never on differences of latencies.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from wdmoe_env.physics.latency import BlockLinks, Float, Load

LN2 = float(np.log(2.0))
SMALL = 1e-4  # below, y / ln(1 + y) - 1 cancels and three terms of its series are exact to 1e-13


@dataclass(frozen=True, slots=True)
class LatencyCurves:
    """Latency of each device against its share: ``floor_s + excess(share)``.

    Attributes:
        full_band_snr: (2, N, U) gamma / B.
        scale_s: (2, N, U) radio latency of the load at infinite bandwidth, per link.
        floor_s: (N, U) the latency that no share can pass.
    """

    full_band_snr: Float
    scale_s: Float
    floor_s: Float

    @classmethod
    def of(cls, links: BlockLinks, load: Load) -> LatencyCurves:
        """Curves of equation (6) for a load, with the reading of weights in the floor; flat zero where nothing is."""
        snr = links.full_band_snr.swapaxes(0, 1)
        scale_s = LN2 * load.tokens * links.payload_s[:, None] / snr
        floor_s = load.experts * links.compute_s + np.add(*scale_s)
        return cls(snr, scale_s, floor_s if load.reading_s is None else floor_s + load.reading_s)

    def excess(self, shares: Float) -> tuple[Float, Float]:
        """Latency above the floor and its fall.

        Args:
            shares: (N, U), positive.

        Returns:
            excess and -d excess / d ln share, both (N, U) seconds.
        """
        y, ratio = self._ratio(shares)
        above_one, fall = ratio - 1.0, ratio - ratio * ratio / (1.0 + y)
        if y.min(initial=np.inf) < SMALL:
            small, y = y < SMALL, np.minimum(y, SMALL)  # the series of a large y, which is not taken, would overflow
            above_one = np.where(small, y * (1 / 2 - y / 12 + y * y / 24), above_one)
            fall = np.where(small, y * (1 / 2 - y / 6 + y * y / 8), fall)
        return np.add(*(self.scale_s * above_one)), np.add(*(self.scale_s * fall))

    def _ratio(self, shares: Float) -> tuple[Float, Float]:
        """SNR per share y = snr / b, and y / ln(1 + y); both (2, N, U)."""
        y = self.full_band_snr / shares
        return y, y / np.log1p(y)


def device_sum(values: Float) -> Float:
    """(N, U) -> (N, 1), without the wrapper of ``values.sum``, which costs as much as the sum of a small batch."""
    total: Float = np.add.reduce(values, axis=-1, keepdims=True)
    return total


def without_rounding(shares: Float) -> Float:
    """Shares (N, U) whose sum's distance from 1, some 1e-16, is put on the largest, where it changes latency least."""
    rows, largest = np.arange(len(shares)), shares.argmax(axis=-1)
    shares[rows, largest] += 1.0 - shares.sum(axis=-1)
    return shares


def episodes_innermost(values: Float) -> Float:
    """The same (N, ..., U), laid out in memory so that numpy reduces over devices quickly.

    It does so along the innermost axis or by adding whole vectors of that axis, which should be the longer one.
    """
    if len(values) <= values.shape[-1]:
        return values
    axes = range(values.ndim)
    return np.ascontiguousarray(values.transpose(*axes[1:], 0)).transpose(-1, *axes[:-1])
