"""Which experts serve each token: the paper's rule, and the marginal-price rule that goes beyond it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from wdmoe_env.checks import real_array
from wdmoe_env.optimize.bandwidth import BandwidthSolution, solve_min_max
from wdmoe_env.optimize.moves import best_single_move
from wdmoe_env.optimize.pricing import at_device_of_expert, best_response, device_prices, one_hot
from wdmoe_env.optimize.validate import check_links, check_mask, check_price, check_selection
from wdmoe_env.physics.latency import BlockLinks, Bool, Float, device_load, radio_latency_s
from wdmoe_env.physics.metric import weight_served
from wdmoe_env.physics.reductions import sum_over_last

UNREACHABLE_S = 1e100  # stands for an infinite latency, so that a cosine takes its limit
LEAST_GAIN = 1e-12


def expert_token_latency_s(links: BlockLinks, shares: Float) -> Float:
    """Equation (5) for a token that uses one expert of a device, seen from the experts.

    Args:
        links: the block's links.
        shares: (N, U).

    Returns:
        (N, 1, E) seconds, the same for every token; infinite where the expert's device has no bandwidth.
    """
    return at_device_of_expert(radio_latency_s(links, shares) + links.compute_s, links.placement)[:, None, :]


def gate_latency_similarity(weights: Float, routed: Bool, token_latency_s: Float) -> Float:
    """Cosine, without unit, between a token's gate weights and its latencies over its routed experts.

    Args:
        weights: (N, J, E) gate weights.
        routed: (N, J, E) the model's own choice.
        token_latency_s: (N, J, E) or (N, 1, E) latency of each token at the device of each expert.

    Returns:
        (N, J) in [0, 1]; infinite for a token of which nothing can be dropped (fewer than two routed experts).
    """
    weight = np.where(routed, weights, 0.0)
    latency = np.where(routed, np.minimum(token_latency_s, UNREACHABLE_S), 0.0)
    norms = np.sqrt(_dot(weight, weight)) * np.sqrt(_dot(latency, latency))
    droppable = (sum_over_last(routed) > 1) & (norms > 0)
    dot = _dot(weight, latency)
    return np.divide(dot, norms, out=np.full(dot.shape, np.inf), where=droppable)


def _dot(one: Float, other: Float) -> Float:
    """Inner product over the experts: (N, J, E) twice -> (N, J)."""
    return np.einsum("nje,nje->nj", one, other)


def paper_selection(weights: Float, routed: Bool, token_latency_s: Float, threshold: Float | float) -> Bool:
    """The WDMoE paper's rule as reconstructed: drop the least expert of a token that costs more than it gives.

    Where gate weights and latencies point in different directions (their cosine is at or below the threshold),
    the routed expert of least weight is dropped. Every token keeps at least one expert.

    Args:
        weights: (N, J, E) gate weights.
        routed: (N, J, E) the model's own choice; a row without any is padding and stays empty.
        token_latency_s: (N, J, E) or (N, 1, E), see ``expert_token_latency_s``.
        threshold: (N,) or a number; at 1 every token loses an expert, at 0 none does.

    Returns:
        (N, J, E) selection.

    Raises:
        TypeError: ``routed`` is not boolean, or another array holds no real numbers.
        ValueError: a shape is wrong or the threshold is NaN.
    """
    weights, threshold = real_array("weights", weights), real_array("threshold", threshold)
    routed = check_mask("routed", routed, weights.shape)
    if np.isnan(threshold).any():
        raise ValueError("threshold must be a number or (N,) of numbers, got NaN")
    similarity = gate_latency_similarity(weights, routed, real_array("token_latency_s", token_latency_s))
    drops = similarity <= threshold[..., None]
    least = np.where(routed, weights, np.inf).argmin(axis=-1)
    return routed & ~(drops[..., None] & one_hot(least, weights.shape[-1]))


def marginal_price_selection(
    links: BlockLinks,
    weights: Float,
    routed: Bool,
    price_per_ms: Float | float,
    candidates: Bool | None = None,
    min_share: float = 0.0,
    start: Bool | None = None,
    keep_best: bool = True,
) -> tuple[Bool, Float]:
    """Raise W - price x t over the selection, with optimal shares: local search along marginal prices.

    At the bandwidth optimum the block latency is linearised in the load (``marginal_latency_s``), and every
    token takes the experts that are worth their price: a pair pays for its computing, a token pays once per
    device. The tokens that gain most change first; a round that does not raise the objective is undone and
    repeated with half as many tokens. Where that finds nothing more, the best exact change of a single pair
    is tried (``best_single_move``). So the objective never falls, and at the end no single pair raises it.

    Args:
        links: the block's links.
        weights: (N, J, E) gate weights.
        routed: (N, J, E) the model's own choice; a row without any is padding and stays empty.
        price_per_ms: (N,) or a number, gate weight that a millisecond of block latency is worth.
        candidates: (N, J, E) experts that a token may use besides its routed ones.
        min_share: least share of a loaded device.
        start: (N, J, E) selection to start from, the routed one by default.
        keep_best: whether a token always keeps its routed expert of most weight, as under the paper's rule;
            otherwise it may trade that expert for another.

    Returns:
        selection (N, J, E) and shares (N, U); every token that has routed experts keeps one or more.

    Raises:
        TypeError: a mask is not boolean.
        ValueError: a shape or a value is wrong.
    """
    batch, _ = check_links(links)
    candidates = routed if candidates is None else candidates
    start = routed if start is None else start
    masks = ("routed", routed), ("candidates", candidates), ("start", start)
    weights, (routed, candidates, start) = check_selection(links, weights, *masks)
    tokens = routed.any(axis=-1, keepdims=True)
    candidates = (candidates | routed) & tokens
    if not (start <= candidates).all() or (start.any(axis=-1, keepdims=True) != tokens).any():
        raise ValueError("start must give every token one or more of its candidates, and padding none")
    price = check_price(price_per_ms, batch)
    best = one_hot(np.where(routed, weights, -1.0).argmax(axis=-1), weights.shape[-1])
    problem = _PricedProblem(links, weights, candidates, tokens & best & keep_best, price, min_share)
    selection, bandwidth = problem.search(start | problem.kept)
    return selection, bandwidth.shares


@dataclass(frozen=True, slots=True)
class _PricedProblem:
    """The problem of ``marginal_price_selection``; ``kept`` (N, J, E) marks pairs that may not be dropped."""

    links: BlockLinks
    weights: Float
    candidates: Bool
    kept: Bool
    price_per_ms: Float
    min_share: float

    def score(self, selection: Bool) -> tuple[BandwidthSolution, Float]:
        """Optimal shares of a selection, and its objective (N,)."""
        bandwidth = solve_min_max(self.links, device_load(selection, self.links.placement), self.min_share)
        return bandwidth, weight_served(self.weights, selection) - 1e3 * self.price_per_ms * bandwidth.latency_s

    def response(self, selection: Bool, bandwidth: BandwidthSolution) -> tuple[Bool, Float]:
        """Best selection at the marginal prices, and what each token (N, J) gains by it."""
        load = device_load(selection, self.links.placement)
        prices = device_prices(self.links, load, bandwidth, self.price_per_ms, self.min_share)
        return best_response(prices, self.weights, self.candidates, self.kept, selection, self.links.placement)

    def single_move(self, selection: Bool) -> Bool:
        """The selection after its best exact change of one pair."""
        return best_single_move(
            self.links, self.weights, self.candidates, self.kept, selection, self.price_per_ms, self.min_share
        )

    def rows(self, index: NDArray[np.int64]) -> _PricedProblem:
        """The problem of some rows."""
        links, price = self.links.rows(index), self.price_per_ms[index]
        parts = self.weights[index], self.candidates[index], self.kept[index]
        return _PricedProblem(links, *parts, price, self.min_share)

    def search(self, selection: Bool) -> tuple[Bool, BandwidthSolution]:
        """All rounds, each row at its own pace, from a selection to a local optimum."""
        bandwidth, value = self.score(selection)
        selection = selection.copy()
        part, unfinished = np.ones(len(value)), np.ones(len(value), dtype=np.bool_)
        while unfinished.any():
            rows, trial, changing = self.round(selection, bandwidth, part, unfinished)
            trial_bandwidth, trial_value = self.rows(rows).score(trial)
            better = trial_value > value[rows] + LEAST_GAIN * np.abs(value[rows])
            part[rows] = _next_part(part[rows], better, changing)
            if not changing.any():
                unfinished[rows] = better
            gained = rows[better]
            value[gained], selection[gained] = trial_value[better], trial[better]
            bandwidth.shares[gained] = trial_bandwidth.shares[better]
            bandwidth.latency_s[gained] = trial_bandwidth.latency_s[better]
        return selection, bandwidth

    def round(
        self, selection: Bool, bandwidth: BandwidthSolution, part: Float, unfinished: Bool
    ) -> tuple[NDArray[np.int64], Bool, Float]:
        """Rows that try something, what they try, and how many tokens change; none where it is an exact move."""
        rows = np.flatnonzero(part)
        if rows.size:
            target, gain = self.rows(rows).response(selection[rows], bandwidth.rows(rows))
            changing = np.ceil(part[rows] * (gain > LEAST_GAIN).sum(axis=-1))
            if changing.any():
                return rows, np.where(_greatest(gain, changing)[..., None], target, selection[rows]), changing
        rows = np.flatnonzero(unfinished)
        return rows, self.rows(rows).single_move(selection[rows]), np.zeros(len(rows))


def _next_part(part: Float, better: Bool, changing: Float) -> Float:
    """Share of the willing tokens that change next: doubled by success, halved by failure, 0 after one token's.

    A row that stands at 0 begins again at 1 when an exact move has helped it.
    """
    return np.where(better, np.clip(2.0 * part, 1.0 * (part == 0), 1.0), np.where(changing > 1, part / 2.0, 0.0))


def _greatest(gain: Float, count: Float) -> Bool:
    """Marks the ``count`` (N,) greatest entries of each row of ``gain`` (N, J)."""
    rank = np.argsort(np.argsort(-gain, axis=-1, kind="stable"), axis=-1, kind="stable")
    return rank < count[:, None]
