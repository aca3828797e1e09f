"""Paired statistics: bootstrap intervals, interquartile means and McNemar's test, the same resamples for every policy.

All intervals are two-sided 95 % percentile intervals of the bootstrap (Efron 1979): of n episodes, n are drawn
with replacement, the statistic is computed on them, and this is repeated; the interval lies between the 2.5 %
and the 97.5 % quantile. Every policy ran the same episodes, so a resample draws the same episodes for both sides of
a difference or a ratio: what the policies share, such as a slow channel, cancels.

Where a setting has S training seeds, a resample draws S of them with replacement too, for every setting anew (the
stratified bootstrap of Agarwal et al. 2021). What comes out holds for another training and for other episodes. With
one seed only the episodes vary.

Reference:
    Agarwal, Schwarzer, Castro, Courville, Bellemare: Deep Reinforcement Learning at the Edge of the Statistical
    Precipice. NeurIPS 2021, arXiv 2108.13264.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import comb
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eval.members import Setting

Float = NDArray[np.float64]
Summary = dict[str, Any]
"""Statistics as the JSON of a results folder holds them."""

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
        clusters: (n,) number of the cluster of each unit, such as its document: whole clusters are drawn, since units
            of one are alike. ``None`` draws the units themselves.

    Attributes:
        multiplicity: (R, n), how often each unit was drawn.

    Raises:
        ValueError: no unit.
    """

    def __init__(
        self,
        count: int,
        generator: np.random.Generator,
        resamples: int = RESAMPLES,
        clusters: NDArray[np.int64] | None = None,
    ) -> None:
        if count < 1:
            raise ValueError(f"expected at least one episode to resample, got {count}")
        self.count = count
        if clusters is None:
            self.multiplicity = multiplicities(resamples, count, generator)
            self._drawn: Float | int = count
        else:
            names, cluster = np.unique(clusters, return_inverse=True)
            self.multiplicity = multiplicities(resamples, len(names), generator)[:, cluster]
            self._drawn = self.multiplicity.sum(axis=1, dtype=np.float64)  # documents differ in their windows

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
        means: Float = np.concatenate(sums) / self._drawn
        return means


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


def interquartile_mean(scores: Float, weights: Float | None = None) -> Float:
    """Means (R,) of the middle half of scores that count as often as their weights say.

    A score on the border of the middle half counts with the part of it that lies within, so that the mean is a
    continuous function of the weights; where a quarter of their sum is a whole number, it is the 25 % trimmed mean.

    Args:
        scores: (M,).
        weights: (R, M), at least 0 and with a positive sum; ``None`` counts every score once, with R = 1.
    """
    order = np.argsort(scores, kind="stable")
    counted = np.ones((1, len(scores))) if weights is None else weights[:, order]
    below = np.cumsum(counted, axis=1)
    total = below[:, -1:]
    within = np.clip(below, total / 4, 3 * total / 4) - np.clip(below - counted, total / 4, 3 * total / 4)
    return np.einsum("rm,m->r", within, scores[order]) / (total[:, 0] / 2)


SEEDED_RESAMPLES = 2_000
"""Of seeds and episodes together."""


class SeededBootstrap:
    """Resamples of the seeds of each setting and of the episodes of all.

    Args:
        settings: whose seeds are drawn.
        count: episodes n.
        generator: draws the resamples, all at once.
        resamples: R.
        clusters: (n,) of the episodes, as of ``PairedBootstrap``.
    """

    def __init__(
        self,
        settings: Sequence[Setting],
        count: int,
        generator: np.random.Generator,
        resamples: int = SEEDED_RESAMPLES,
        clusters: NDArray[np.int64] | None = None,
    ) -> None:
        self.episodes = PairedBootstrap(count, generator, resamples, clusters)
        self._seeds = {
            setting: multiplicities(resamples, len(setting.seeds), generator) / len(setting.seeds)
            for setting in settings
        }

    def mean(self, setting: Setting, runs: Float) -> Interval:
        """Mean of runs (S, n) over seeds and episodes."""
        return interval_of(runs.mean(), self.resampled_means(setting, runs))

    def resampled_means(self, setting: Setting, runs: Float) -> Float:
        """Means (R,) of runs (S, n)."""
        of_seeds = np.stack([self.episodes.resampled_means(run) for run in runs], axis=1)
        return np.einsum("rs,rs->r", self._seeds[setting], of_seeds)

    def interquartile_mean(self, setting: Setting, runs: Float) -> Interval:
        """Interquartile mean of runs (S, n) over seeds and episodes."""
        rows = max(1, DRAWS_PER_CHUNK // runs.size)
        seeds, episodes = self._seeds[setting], self.episodes.multiplicity
        chunks = [slice(at, at + rows) for at in range(0, len(seeds), rows)]
        resampled = [
            interquartile_mean(runs.ravel(), (seeds[c, :, None] * episodes[c, None, :]).reshape(-1, runs.size))
            for c in chunks
        ]
        return interval_of(interquartile_mean(runs.ravel())[0], np.concatenate(resampled))

    def shares_above(self, setting: Setting, runs: Float, levels: Float) -> tuple[Float, Float, Float]:
        """Share (T,) of runs (S, n) above each level, the performance profile, with its 95 % band."""
        intervals = [self.mean(setting, (runs > level).astype(np.float64)) for level in levels]
        low, high = (np.array([getattr(one, side) for one in intervals]) for side in ("low", "high"))
        return np.array([one.mean for one in intervals]), low, high
