"""The n-gram model against a naive reading of its formulas."""

from collections import Counter, defaultdict
from functools import cache

import numpy as np
import pytest

from train.language_model.ngram import KneserNey

VOCABULARY = 60
UNSEEN = 59


def corpus(seed: int, documents: int) -> list[list[int]]:
    """Documents of Zipf's law, so that every order has n-grams seen once, twice, three and four times."""
    rng = np.random.default_rng(seed)
    share = 1 / np.arange(1, UNSEEN) ** 1.9
    sizes = rng.integers(1, 40, documents)
    return [[0, *(1 + rng.choice(UNSEEN - 1, size, p=share / share.sum())).tolist()] for size in sizes]


class Naive:
    """Chen and Goodman's formulas, one dictionary look-up at a time."""

    def __init__(self, documents: list[list[int]], order: int) -> None:
        raw: Counter[tuple[int, ...]] = Counter()
        for document in documents:
            for end in range(1, len(document)):
                for length in range(1, min(order, end + 1) + 1):
                    raw[tuple(document[end - length + 1 : end + 1])] += 1
        before = defaultdict(set)
        for gram in raw:
            before[gram[1:]].add(gram[0])
        whole = {gram for gram in raw if len(gram) == order or (gram[0] == 0 and len(gram) > 1)}
        self.a = {gram: raw[gram] if gram in whole else len(before[gram]) for gram in raw}
        self.discounts = [self._discounts(length) for length in range(1, order + 1)]
        self.followers = defaultdict(list)
        for gram, count in self.a.items():
            self.followers[gram[:-1]].append(count)
        self.order = order
        self.prob = cache(self._prob)

    def _discounts(self, length: int) -> list[float]:
        n = Counter(count for gram, count in self.a.items() if len(gram) == length)
        y = n[1] / (n[1] + 2 * n[2])
        return [0.0, *(c - (c + 1) * y * n[c + 1] / n[c] for c in (1, 2, 3))]

    def _prob(self, history: tuple[int, ...], token: int) -> float:
        lower = self.prob(history[1:], token) if history else 1 / (VOCABULARY - 1)
        counts = self.followers[history]
        if not counts:
            return lower
        discount = self.discounts[len(history)]
        freed = sum(discount[min(count, 3)] for count in counts)
        own = self.a.get((*history, token), 0)
        return (own - discount[min(own, 3)] + freed * lower) / sum(counts)


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_probabilities_are_those_of_the_formulas(order: int) -> None:
    training, held_out = corpus(0, 40), [*corpus(1, 5), [0, UNSEEN, 1, UNSEEN, UNSEEN, 2, 1, 1]]
    naive = Naive(training, order)
    assert all(discount > 0 for row in naive.discounts for discount in row[1:])
    fast = KneserNey(np.concatenate(training), VOCABULARY, order).log_prob(np.concatenate(held_out))
    expected = []
    for text in held_out:
        expected.append(np.nan)
        expected += [naive.prob(tuple(text[max(0, i - order + 1) : i]), text[i]) for i in range(1, len(text))]
    real = np.isfinite(expected)
    np.testing.assert_allclose(np.exp(fast)[real], np.array(expected)[real], rtol=1e-10)


@pytest.mark.parametrize("documents", [40, 1])
@pytest.mark.parametrize("history", [(0,), (0, 1), (1, 1, 2, 1), (2, UNSEEN), (UNSEEN,) * 4, (0, UNSEEN, 1, 1)])
def test_probabilities_sum_to_one(history: tuple[int, ...], documents: int) -> None:
    """After seen and unseen histories, and where too few n-grams are there to estimate a discount."""
    model = KneserNey(np.concatenate(corpus(0, documents)), VOCABULARY)
    start = () if history[0] == 0 else (0,)
    logs = [model.log_prob(np.array([*start, *history, token]))[-1] for token in range(1, VOCABULARY)]
    assert np.exp(logs).sum() == pytest.approx(1, abs=1e-12)


def test_keys_must_fit() -> None:
    with pytest.raises(ValueError, match=r"expected V\^order below 2\^63, got 4096\^6"):
        KneserNey(np.arange(10), 4096, 6)
