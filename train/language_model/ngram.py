"""Unigram and bigram models of the same tokens: what the language model has to beat."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Tokens = NDArray[np.integer]


class Unigram:
    """Token frequencies, discounted so that unseen tokens keep some probability.

    Args:
        tokens: Training tokens.
        vocabulary: Number of different tokens, V.
    """

    def __init__(self, tokens: Tokens, vocabulary: int) -> None:
        self.probs = _discounted(np.bincount(tokens, minlength=vocabulary))

    def log_prob(self, previous: Tokens, following: Tokens) -> NDArray[np.float64]:
        """Return ln P(following); ``previous`` plays no part."""
        logs: NDArray[np.float64] = np.log(self.probs)[following]
        return logs


class Bigram:
    """Interpolated Kneser-Ney bigrams (Kneser and Ney 1995; Chen and Goodman 1999).

    P(w | v) = max(c(v,w) - D, 0) / c(v) + D n(v) / c(v) Q(w), where n(v) counts the
    different followers of v, Q(w) is the discounted share of different predecessors,
    and D = n1 / (n1 + 2 n2) from the numbers of bigrams seen once and twice.

    Args:
        tokens: Training tokens, in order.
        vocabulary: Number of different tokens, V.
    """

    def __init__(self, tokens: Tokens, vocabulary: int) -> None:
        self._vocabulary = vocabulary
        wide = np.asarray(tokens, dtype=np.int64)
        self._pairs, self._counts = np.unique(wide[:-1] * vocabulary + wide[1:], return_counts=True)
        first, second = np.divmod(self._pairs, vocabulary)
        self._discount = _discount(self._counts)
        self._context = np.bincount(first, weights=self._counts, minlength=vocabulary)
        followers = np.bincount(first, minlength=vocabulary)
        seen = np.maximum(self._context, 1)
        self._backoff = np.where(self._context > 0, self._discount * followers / seen, 1.0)
        self._continuation = _discounted(np.bincount(second, minlength=vocabulary))

    def log_prob(self, previous: Tokens, following: Tokens) -> NDArray[np.float64]:
        """Return ln P(following | previous), elementwise."""
        previous, following = np.asarray(previous, dtype=np.int64), np.asarray(following, dtype=np.int64)
        pair = previous * self._vocabulary + following
        place = np.minimum(np.searchsorted(self._pairs, pair), len(self._pairs) - 1)
        count = np.where(self._pairs[place] == pair, self._counts[place], 0)
        direct = np.maximum(count - self._discount, 0) / np.maximum(self._context[previous], 1)
        logs: NDArray[np.float64] = np.log(direct + self._backoff[previous] * self._continuation[following])
        return logs


def _discounted(counts: NDArray[np.integer]) -> NDArray[np.float64]:
    """Return probabilities by absolute discounting, the freed mass spread evenly over the vocabulary."""
    discount = _discount(counts)
    kept = np.maximum(counts - discount, 0)
    return (kept + discount * np.count_nonzero(counts) / len(counts)) / counts.sum()


def _discount(counts: NDArray[np.integer]) -> float:
    once, twice = np.count_nonzero(counts == 1), np.count_nonzero(counts == 2)
    return once / (once + 2 * twice) if once and twice else 0.5
