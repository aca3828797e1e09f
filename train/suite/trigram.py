"""What the language model has to beat: trigrams of words with a cache of the last words."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from wdmoe_env.text.suite import SCORED_PER_BYTE, Item

CACHE_WORDS = 60
CACHE_WEIGHTS = (0.02, 0.05, 0.1, 0.2, 0.3)
_BITS = 21
_PART = re.compile(r"\w+|[^\w\s]")

Ids = NDArray[np.int64]


class CachedTrigram:
    """Interpolated trigrams by absolute discounting, mixed with the frequencies of the last 60 words.

    Words and punctuation marks; case counts. D = n1 / (n1 + 2 n2) per order (Ney, Essen and Kneser 1994).

    Args:
        texts: Training documents.

    Attributes:
        cache_weight: Weight of the cache; ``fit_cache`` chooses it.
    """

    def __init__(self, texts: Iterable[str]) -> None:
        documents = [_PART.findall(text) for text in texts]
        words = sorted({word for document in documents for word in document})
        if len(words) >= 1 << _BITS:
            raise ValueError(f"expected fewer than {1 << _BITS} different words, got {len(words)}")
        self._ids = {word: number for number, word in enumerate(words, start=1)}  # 0: unknown, and before the start
        rows = [np.array([0, 0, *map(self._ids.__getitem__, document)], dtype=np.int64) for document in documents]
        self.cache_weight = CACHE_WEIGHTS[0]
        self._orders = [_Order(np.concatenate([_packed(row, order) for row in rows])) for order in (1, 2, 3)]
        self._size = len(words) + 1

    def log_probs(self, context: Sequence[str], choice: Sequence[str]) -> NDArray[np.float64]:
        """Log-probability of each word of a choice after a context."""
        row = np.array([0, 0, *(self._ids.get(word, 0) for word in (*context, *choice))], dtype=np.int64)
        count = len(choice)
        probs = np.full(count, 1.0 / self._size)
        for number, order in enumerate(self._orders, start=1):
            grams = _packed(row, number)[len(context) :]
            probs = order.interpolated(grams, probs)
        words = [*context, *choice]
        for place in range(count):
            here = len(context) + place
            recent = words[max(0, here - CACHE_WORDS) : here]
            cached = recent.count(words[here]) / len(recent) if recent else 0.0
            probs[place] = (1 - self.cache_weight) * probs[place] + self.cache_weight * cached
        logs: NDArray[np.float64] = np.log(probs)
        return logs

    def fit_cache(self, texts: Iterable[str]) -> None:
        """Choose the cache's weight by the likelihood of other text."""
        parts = [_PART.findall(text) for text in texts]
        totals = {}
        for weight in CACHE_WEIGHTS:
            self.cache_weight = weight
            totals[weight] = sum(self.log_probs(part[:CACHE_WORDS], part[CACHE_WORDS:600]).sum() for part in parts)
        self.cache_weight = max(totals, key=lambda weight: totals[weight])

    def scores(self, item: Item) -> NDArray[np.float64]:
        """Score (4,) of each choice, as the language model is scored: summed, per byte for some formats."""
        context = _PART.findall(item.context)
        sums = np.array([self.log_probs(context, _PART.findall(choice)).sum() for choice in item.choices])
        sizes = [len(choice.encode()) if item.format in SCORED_PER_BYTE else 1 for choice in item.choices]
        return sums / sizes


class _Order:
    """Counts of the n-grams of one order, and of what follows each of their histories."""

    def __init__(self, grams: Ids) -> None:
        self._grams, self._counts = np.unique(grams, return_counts=True)
        histories = self._grams >> _BITS
        self._histories, first, self._followers = np.unique(histories, return_index=True, return_counts=True)
        self._totals = np.add.reduceat(self._counts, first)
        sizes = Counter(self._counts.tolist())
        self._discount = sizes[1] / max(1, sizes[1] + 2 * sizes[2]) or 0.5

    def interpolated(self, grams: Ids, lower: NDArray[np.float64]) -> NDArray[np.float64]:
        """max(c - D, 0) / c(history) + D n(history) / c(history) P_lower; P_lower after an unseen history."""
        count = _found(self._grams, self._counts, grams)
        total = _found(self._histories, self._totals, grams >> _BITS)
        followers = _found(self._histories, self._followers, grams >> _BITS)
        seen = np.maximum(total, 1)
        direct = np.maximum(count - self._discount, 0) / seen
        backoff = np.where(total > 0, self._discount * followers / seen, 1.0)
        return direct + backoff * lower


def _packed(row: Ids, order: int) -> Ids:
    """The n-grams that end at each word after the two marks of the start, as integers."""
    packed = np.zeros(len(row) - 2, dtype=np.int64)
    for back in reversed(range(order)):
        packed = (packed << _BITS) | row[2 - back : len(row) - back]
    return packed


def _found(keys: Ids, values: NDArray[np.int64], wanted: Ids) -> NDArray[np.int64]:
    place = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[place] == wanted, values[place], 0)
