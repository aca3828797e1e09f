"""An n-gram model of the same tokens: what the language model has to beat."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Tokens = NDArray[np.integer]

DOCUMENT_START = 0
"""Token that begins every document; it stands nowhere else and is never predicted."""

FALLBACK_DISCOUNTS = (0.5, 1.0, 1.5)
"""D1, D2 and D3+ where a tiny corpus has no n-gram seen once, twice or three times."""

_KEY_BITS = 63


class KneserNey:
    """Interpolated modified Kneser-Ney (Chen and Goodman 1999, section 3).

    P(w | h) = (a(hw) - D(a(hw))) / a(h) + gamma(h) P(w | h without its oldest token), down to 1 / (V - 1). Here a is
    the count for the highest order and for n-grams that begin a document, and else the number of different tokens
    that precede the n-gram; a(h) sums a(hw) over w; D is 0, D1, D2 or D3+ for a of 0, 1, 2 or more, estimated per
    order from the numbers of n-grams with a = 1 to 4; gamma(h) is what the discounts leave over. An unseen h backs
    off whole. No n-gram crosses the beginning of a document.

    Args:
        tokens: (T,) training tokens, every document begun by ``DOCUMENT_START``.
        vocabulary: number of different tokens, V.
        order: longest n-gram.

    Raises:
        ValueError: n-grams of this order do not fit 63 bits.
    """

    def __init__(self, tokens: Tokens, vocabulary: int, order: int = 5) -> None:
        if vocabulary**order >= 2**_KEY_BITS:
            raise ValueError(f"expected V^order below 2^{_KEY_BITS}, got {vocabulary}^{order}")
        self._vocabulary = vocabulary
        self._orders: list[_Order] = []
        longer: NDArray[np.int64] | None = None
        for length in range(order, 0, -1):
            keys, counts = np.unique(_keys(tokens, vocabulary, length), return_counts=True)
            if longer is not None:
                keys, counts = _continuations(keys, counts, longer, vocabulary, length)
            self._orders.insert(0, _Order.of(keys, counts, vocabulary))
            longer = keys

    def log_prob(self, tokens: Tokens) -> NDArray[np.float64]:
        """Return ln P(token i | at most order - 1 tokens before it in its document), (T,); NaN where one begins.

        Args:
            tokens: (T,) documents in a row, each begun by ``DOCUMENT_START``.
        """
        wide = np.asarray(tokens, dtype=np.int64)
        place = np.arange(len(wide)) - _document_starts(wide)
        probs = np.where(wide == DOCUMENT_START, np.nan, 1.0 / (self._vocabulary - 1))
        keys = np.zeros(len(wide), dtype=np.int64)
        for back, order in enumerate(self._orders):
            inside = place >= back
            keys[inside] += wide[np.flatnonzero(inside) - back] * self._vocabulary**back
            probs[inside] = order.interpolate(keys[inside], probs[inside], self._vocabulary)
        logs: NDArray[np.float64] = np.log(probs)
        return logs


@dataclass(frozen=True)
class _Order:
    """The n-grams of one length; a history is an n-gram without its last token.

    Attributes:
        keys: (n,) the n-grams as numbers of base V, sorted.
        kept: (n,) a - D(a).
        histories: (m,) sorted.
        totals: (m,) a(h).
        freed: (m,) gamma(h).
    """

    keys: NDArray[np.int64]
    kept: NDArray[np.float64]
    histories: NDArray[np.int64]
    totals: NDArray[np.int64]
    freed: NDArray[np.float64]

    @classmethod
    def of(cls, keys: NDArray[np.int64], counts: NDArray[np.int64], vocabulary: int) -> _Order:
        discount = np.array([0.0, *_discounts(counts)])[np.minimum(counts, 3)]
        histories, first = np.unique(keys // vocabulary, return_index=True)
        totals = np.add.reduceat(counts, first)
        return cls(keys, counts - discount, histories, totals, np.add.reduceat(discount, first) / totals)

    def interpolate(self, keys: NDArray[np.int64], lower: NDArray[np.float64], vocabulary: int) -> NDArray[np.float64]:
        """Probabilities (T,) of n-grams (T,), given those of one order lower."""
        row, seen = _find(self.histories, keys // vocabulary)
        place, present = _find(self.keys, keys)
        direct = np.where(present, self.kept[place], 0.0) / self.totals[row]
        return np.where(seen, direct + self.freed[row] * lower, lower)


def _keys(tokens: Tokens, vocabulary: int, length: int) -> NDArray[np.int64]:
    """All n-grams of a length that predict a token of a document, in order."""
    wide = np.asarray(tokens, dtype=np.int64)
    inside = np.arange(len(wide)) - _document_starts(wide) >= max(1, length - 1)
    keys = np.zeros(max(0, len(wide) - length + 1), dtype=np.int64)
    for offset in range(length):
        keys = keys * vocabulary + wide[offset : offset + len(keys)]
    return keys[inside[length - 1 :]]


def _document_starts(tokens: NDArray[np.int64]) -> NDArray[np.int64]:
    """Where each token's document begins, (T,)."""
    position = np.where(tokens == DOCUMENT_START, np.arange(len(tokens)), 0)
    starts: NDArray[np.int64] = np.maximum.accumulate(position)
    return starts


def _continuations(
    keys: NDArray[np.int64], counts: NDArray[np.int64], longer: NDArray[np.int64], vocabulary: int, length: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The n-grams and their a: different left neighbours, or the count where a document begins."""
    inner, neighbours = np.unique(longer % vocabulary**length, return_counts=True)
    begins = keys // vocabulary ** (length - 1) == DOCUMENT_START if length > 1 else np.zeros(len(keys), dtype=bool)
    merged = np.concatenate([inner, keys[begins]])
    order = np.argsort(merged, kind="stable")
    return merged[order], np.concatenate([neighbours, counts[begins]])[order]


def _discounts(counts: NDArray[np.int64]) -> tuple[float, float, float]:
    """D1, D2 and D3+ (Chen and Goodman 1999, equation 17)."""
    n1, n2, n3, n4 = (np.count_nonzero(counts == count) for count in (1, 2, 3, 4))
    if not (n1 and n2 and n3):
        return FALLBACK_DISCOUNTS
    y = n1 / (n1 + 2 * n2)
    found = (1 - 2 * y * n2 / n1, 2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3)
    return found if min(found) >= 0 else FALLBACK_DISCOUNTS


def _find(table: NDArray[np.int64], keys: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Place of each key in a sorted table, and whether it is there."""
    place = np.minimum(np.searchsorted(table, keys), len(table) - 1)
    return place, table[place] == keys
