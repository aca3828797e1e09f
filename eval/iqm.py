"""The interquartile mean: the mean of the middle half of the scores (Agarwal et al. 2021, arXiv 2108.13264)."""

from __future__ import annotations

import numpy as np

from eval.statistics import Float


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
