"""Resamples of training seeds and episodes together: the stratified bootstrap of Agarwal et al. 2021, paired.

Of a setting's S training seeds, S are drawn with replacement, for every setting anew; of the n episodes, n are drawn
once for all policies. What comes out holds for another training and for other episodes, and what all policies share
cancels in a ratio. With one seed only the episodes vary.

Reference:
    Agarwal, Schwarzer, Castro, Courville, Bellemare: Deep Reinforcement Learning at the Edge of the Statistical
    Precipice. NeurIPS 2021, arXiv 2108.13264.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from eval.iqm import interquartile_mean
from eval.members import Setting
from eval.statistics import DRAWS_PER_CHUNK, Float, Interval, PairedBootstrap, interval_of, multiplicities

RESAMPLES = 2_000


class SeededBootstrap:
    """Resamples of the seeds of each setting and of the episodes of all.

    Args:
        settings: whose seeds are drawn.
        count: episodes n.
        generator: draws the resamples, all at once.
        resamples: R.
    """

    def __init__(
        self, settings: Sequence[Setting], count: int, generator: np.random.Generator, resamples: int = RESAMPLES
    ) -> None:
        self.episodes = PairedBootstrap(count, generator, resamples)
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
