"""The cheapest experts of a token that have enough of its gate probability: a covering knapsack, solved exactly."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from wdmoe_env.physics.latency import Bool, Float

MOST_ENUMERATED = 8
"""Experts up to which all subsets are listed, 255 at most; above, each token is a branch and bound."""
ROUNDING = 1e-12  # relative, by which a sum of probabilities may miss what is wanted


def cheapest_cover(costs: Float, probs: Float, wanted: Float, most: NDArray[np.int64]) -> Bool:
    """Minimise the sum of c[e] q[e] over the sets with sum of p[e] q[e] >= wanted, of at least 1 and at most D experts.

    Args:
        costs: (N, E) of each expert, positive.
        probs: (N, J, E); an expert of probability 0 is not used.
        wanted: (N, J) probability; where no set of D experts has it, the D most probable ones are taken.
        most: (N, J) D, experts of a token at most; a token of 0 stays empty.

    Returns:
        (N, J, E).
    """
    # What can be had at all: that of the D most probable experts.
    ranked = np.cumsum(-np.sort(-probs, axis=-1), axis=-1)
    reach = np.take_along_axis(ranked, np.maximum(most - 1, 0)[..., None], axis=-1)[..., 0]
    least = np.minimum(wanted, reach) * (1.0 - ROUNDING)
    solve = _by_enumeration if probs.shape[-1] <= MOST_ENUMERATED else _by_branch_and_bound
    return solve(costs, probs, least, most) & (most > 0)[..., None]


def _by_enumeration(costs: Float, probs: Float, least: Float, most: NDArray[np.int64]) -> Bool:
    experts = probs.shape[-1]
    subsets = ((np.arange(1, 2**experts)[:, None] >> np.arange(experts)) & 1).astype(np.float64)
    sizes = subsets.sum(axis=-1)
    total, useless = probs @ subsets.T, (probs <= 0).astype(np.float64) @ subsets.T
    allowed = (total >= least[..., None]) & (sizes <= most[..., None]) & (useless == 0)
    price = np.where(allowed, (costs @ subsets.T)[:, None], np.inf)
    chosen: Bool = subsets[price.argmin(axis=-1)] > 0
    return chosen & allowed.any(axis=-1, keepdims=True)


def _by_branch_and_bound(costs: Float, probs: Float, least: Float, most: NDArray[np.int64]) -> Bool:
    chosen = np.zeros(probs.shape, dtype=np.bool_)
    for row, token in zip(*np.nonzero(most), strict=True):
        usable = np.flatnonzero(probs[row, token])
        cost, prob = costs[row, usable], probs[row, token, usable]
        order = np.argsort(cost / prob, kind="stable")
        found = _Search(cost[order].tolist(), prob[order].tolist()).best(
            float(least[row, token]), int(most[row, token])
        )
        chosen[row, token, usable[order[found]]] = True
    return chosen


class _Search:
    """Depth first over the experts in order of cost for probability, with or without each.

    The bound is that of the fractional problem: the rest of what is wanted at the rates of the next experts in order.

    Args:
        cost: of each expert.
        prob: of each.
    """

    def __init__(self, cost: list[float], prob: list[float]) -> None:
        self.cost, self.prob = cost, prob
        self.least_cost, self.found = np.inf, list[int]()

    def best(self, wanted: float, most: int) -> list[int]:
        """The cheapest set, as places in order."""
        self._visit(0, wanted, most, 0.0, [])
        return self.found

    def _visit(self, place: int, wanted: float, most: int, paid: float, chosen: list[int]) -> None:
        if wanted <= 0 and chosen:
            if paid < self.least_cost:
                self.least_cost, self.found = paid, chosen
            return
        if place == len(self.cost) or not most or paid + self._bound(place, wanted) >= self.least_cost:
            return
        self._visit(place + 1, wanted - self.prob[place], most - 1, paid + self.cost[place], [*chosen, place])
        self._visit(place + 1, wanted, most, paid, chosen)

    def _bound(self, place: int, wanted: float) -> float:
        total = 0.0
        for cost, prob in zip(self.cost[place:], self.prob[place:], strict=True):
            if wanted <= prob:
                return total + cost * max(wanted, 0.0) / prob
            total, wanted = total + cost, wanted - prob
        return float(np.inf)
