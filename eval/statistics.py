"""Paired statistics: bootstrap intervals with the same resamples for every policy, and McNemar's test.

All intervals are two-sided 95 % percentile intervals of the bootstrap (Efron 1979): of n episodes, n are drawn
with replacement, the statistic is computed on them, and this is repeated; the interval lies between the 2.5 %
and the 97.5 % quantile. Every policy ran the same episodes, so a resample draws the same episodes for both sides of
a difference or a ratio: what the policies share, such as a slow channel, cancels.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import comb

import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.float64]

RESAMPLES = 10_000
CONFIDENCE = 0.95

# Draws held at a time, which bounds the memory for any number of episodes.
DRAWS_PER_CHUNK = 2_000_000


@dataclass(frozen=True, slots=True)
class Interval:
    """A statistic and its 95 % interval.

    Attributes:
        mean: the statistic on the episodes themselves.
        low: 2.5 % quantile of its bootstrap distribution.
        high: 97.5 % quantile.
    """

    mean: float
    low: float
    high: float


class PairedBootstrap:
    """Resamples of n units, shared by all statistics that are asked of it.

    Args:
        count: units n, such as episodes.
        generator: draws the resamples, all at once.
        resamples: R, how many.

    Attributes:
        multiplicity: (R, n), how often each unit was drawn.

    Raises:
        ValueError: no unit.
    """

    def __init__(self, count: int, generator: np.random.Generator, resamples: int = RESAMPLES) -> None:
        if count < 1:
            raise ValueError(f"expected at least one episode to resample, got {count}")
        self.count = count
        self.multiplicity = multiplicities(resamples, count, generator)

    def mean(self, values: Float) -> Interval:
        """The mean of values (n,)."""
        return interval_of(values.mean(), self.resampled_means(values))

    def mean_difference(self, values: Float, reference: Float) -> Interval:
        """The mean of values minus the mean of reference, both (n,) on the same units."""
        return self.mean(values - reference)

    def ratio_of_means(self, values: Float, reference: Float) -> Interval:
        """The mean of values over the mean of reference, both (n,) on the same units; reference is positive."""
        return interval_of(
            values.mean() / reference.mean(), self.resampled_means(values) / self.resampled_means(reference)
        )

    def resampled_means(self, values: Float) -> Float:
        """Means (R,) of values (n,) on every resample.

        Summed without BLAS, so that equal values give equal bits on any machine and number of threads.
        """
        rows = max(1, DRAWS_PER_CHUNK // self.count)
        chunks = range(0, len(self.multiplicity), rows)
        sums = [np.einsum("rn,n->r", self.multiplicity[at : at + rows].astype(np.float64), values) for at in chunks]
        return np.concatenate(sums) / self.count


def mcnemar_p(lost: int, gained: int) -> float:
    """Exact two-sided p of McNemar's test (1947): under no difference the discordant pairs fall either way alike.

    Args:
        lost: pairs of which the reference alone is right.
        gained: pairs of which the other alone is right.
    """
    pairs = lost + gained
    tail = sum(comb(pairs, k) for k in range(min(lost, gained) + 1))
    return min(1.0, 2 * tail / 2**pairs)


def multiplicities(resamples: int, count: int, generator: np.random.Generator) -> NDArray[np.uint16]:
    """How often each of ``count`` units was drawn in ``count`` draws with replacement, (resamples, count)."""
    rows = max(1, DRAWS_PER_CHUNK // count)
    sizes = [min(rows, resamples - start) for start in range(0, resamples, rows)]
    return np.concatenate([_draw(size, count, generator) for size in sizes])


def _draw(resamples: int, count: int, generator: np.random.Generator) -> NDArray[np.uint16]:
    """How often each unit was drawn, (resamples, count)."""
    drawn = generator.integers(count, size=(resamples, count)) + count * np.arange(resamples)[:, None]
    return np.bincount(drawn.ravel(), minlength=resamples * count).reshape(resamples, count).astype(np.uint16)


def interval_of(statistic: float, resampled: Float) -> Interval:
    """A statistic with the interval that its values (R,) on the resamples span."""
    tail = (1.0 - CONFIDENCE) / 2.0
    low, high = np.quantile(resampled, [tail, 1.0 - tail])
    return Interval(float(statistic), float(low), float(high))
