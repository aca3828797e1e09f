"""Which experts serve each token: the paper's rule, and the marginal-price rule that goes beyond it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from wdmoe_env.checks import real_array
from wdmoe_env.optimize.groups import best_move
from wdmoe_env.optimize.moves import best_single_move
from wdmoe_env.optimize.pricing import at_device_of_expert, best_response, device_prices, one_hot
from wdmoe_env.optimize.problem import BlockProblem, Decision, Index
from wdmoe_env.optimize.validate import check_mask
from wdmoe_env.physics.latency import (
    BlockLinks,
    Bool,
    Float,
    device_load,
    equal_shares,
    expert_reading_s,
    ones,
    radio_latency_s,
    sum_over_tokens,
    weight_served,
)

UNREACHABLE_S = 1e100  # stands for an infinite latency, so that a cosine takes its limit
LEAST_GAIN = 1e-12


def expert_token_latency_s(links: BlockLinks, shares: Float, selection: Bool | None = None) -> Float:
    """Equation (5) for a token that uses one expert of a device, seen from the experts.

    Where weights are read, a token carries its part of its expert's time: max(F / C, W_e / M / n[e]), so that the only
    token of an expert carries its weights.

    Args:
        links: the block's links.
        shares: (N, U).
        selection: (N, J, E) by which n[e] is counted; one token to each expert by default.

    Returns:
        (N, 1, E) seconds, the same for every token; infinite where the expert's device has no bandwidth.
    """
    latency = at_device_of_expert(radio_latency_s(links, shares) + links.compute_s, links.placement)
    if links.weights_s is not None:
        tokens = np.ones_like(latency) if selection is None else np.maximum(sum_over_tokens(selection), 1.0)
        latency = latency + expert_reading_s(links, tokens) / tokens
    return latency[:, None, :]


def gate_latency_similarity(weights: Float, routed: Bool, token_latency_s: Float) -> Float:
    """Cosine, without unit, between a token's gate weights and its latencies over its routed experts.

    Args:
        weights: (N, J, E) gate weights.
        routed: (N, J, E) the model's own choice.
        token_latency_s: (N, J, E) or (N, 1, E) latency of each token at the device of each expert.

    Returns:
        (N, J) in [0, 1]; infinite for a token with fewer than two routed experts, which can drop none.
    """
    weight = np.where(routed, weights, 0.0)
    latency = np.where(routed, np.minimum(token_latency_s, UNREACHABLE_S), 0.0)
    norms = np.sqrt(_dot(weight, weight)) * np.sqrt(_dot(latency, latency))
    droppable = (routed @ ones(routed.shape[-1]) > 1) & (norms > 0)
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


def marginal_price_selection(problem: BlockProblem, start: Bool | None = None, keep_best: bool = True) -> Decision:
    """Raise W - price x t over the selection, with optimal shares: local search along marginal prices.

    At the bandwidth optimum the block latency is linearised in the load (``marginal_latency_s``), and every
    token takes the experts that are worth their price: a pair pays for its computing, a token pays once per
    device. The tokens that gain most change first; a round that does not raise the objective is undone and
    repeated with half as many tokens. Where that finds nothing more, the best exact change of a single pair
    is tried (``best_single_move``). So the objective never falls, and at the end no single pair raises it. Where
    weights are read, whole experts and devices are emptied and opened as well (``best_move``).

    Args:
        problem: the blocks, with their price.
        start: (N, J, E) selection to start from, the routed one by default; where weights are read, the best end of
            all ``starts``.
        keep_best: whether a token always keeps its routed expert of most weight, as under the paper's rule;
            otherwise it may trade that expert for another.

    Raises:
        TypeError: a mask is not boolean.
        ValueError: a shape or a value is wrong.
    """
    problem = problem.checked()
    if start is None and problem.links.weights_s is not None:
        return _better_of(problem, *(marginal_price_search(problem, one, keep_best) for one in starts(problem)))
    start = problem.routed if start is None else check_mask("start", start, problem.weights.shape)
    tokens = problem.routed.any(axis=-1, keepdims=True)
    if not (start <= problem.usable).all() or (start.any(axis=-1, keepdims=True) != tokens).any():
        raise ValueError("start must give every token one or more of its candidates, and padding none")
    return marginal_price_search(problem, start, keep_best)


def starts(problem: BlockProblem) -> tuple[Bool, ...]:
    """Selections (N, J, E) for a search to start from: the routed one, and where weights are read also a sparse one.

    A fixed charge makes many local optima. From the routed experts a search empties some; from each token's fastest
    expert, with its part of the weights at equal shares, it opens some. One of both ends mostly at the best.

    Args:
        problem: the blocks, checked.
    """
    if problem.links.weights_s is None:
        return (problem.routed,)
    latency = expert_token_latency_s(problem.links, equal_shares(*problem.links.compute_s.shape), problem.routed)
    fastest = one_hot(np.where(problem.usable, latency, np.inf).argmin(axis=-1), problem.weights.shape[-1])
    return problem.routed, fastest & problem.routed.any(axis=-1, keepdims=True)


def _better_of(problem: BlockProblem, first: Decision, *others: Decision) -> Decision:
    """Row by row the decision with the greater W - price x t."""
    best = first
    for other in others:
        value = _Search(problem, best.selection).value
        rows = np.flatnonzero(value(other) > value(best))
        best = best.replaced(rows, other.rows(rows))
    return best


def marginal_price_search(problem: BlockProblem, start: Bool, keep_best: bool) -> Decision:
    """``marginal_price_selection`` for a caller that has a checked problem and a valid start (N, J, E).

    Args:
        problem: the blocks, checked.
        start: (N, J, E) selection to start from.
        keep_best: as of ``marginal_price_selection``.
    """
    best = one_hot(np.where(problem.routed, problem.weights, -1.0).argmax(axis=-1), problem.weights.shape[-1])
    kept = problem.routed.any(axis=-1, keepdims=True) & best & keep_best
    return _Search(problem, kept).run(start | kept)


@dataclass(frozen=True, slots=True)
class _Search:
    """The local search of ``marginal_price_selection``.

    Attributes:
        problem: the blocks.
        kept: (N, J, E) pairs that may not be dropped.
    """

    problem: BlockProblem
    kept: Bool

    def value(self, decision: Decision) -> Float:
        """W - price x t (N,)."""
        served = weight_served(self.problem.weights, decision.selection)
        return served - 1e3 * self.problem.price * decision.latency_s

    def response(self, decision: Decision) -> tuple[Bool, Float]:
        """Best selection at the marginal prices, and what each token (N, J) gains by it."""
        problem = self.problem
        load = device_load(decision.selection, problem.links)
        prices = device_prices(problem.links, load, decision.bandwidth, problem.price, problem.min_share)
        return best_response(prices, problem.weights, problem.usable, self.kept, decision.selection, problem.links)

    def rows(self, index: Index) -> _Search:
        """The search in some rows."""
        return _Search(self.problem.rows(index), self.kept[index])

    def run(self, selection: Bool) -> Decision:
        """All rounds, each row at its own pace, from a selection to a local optimum."""
        decision = self.problem.with_optimal_shares(selection)
        value = self.value(decision)
        part, unfinished = np.ones(len(value)), np.ones(len(value), dtype=np.bool_)
        while unfinished.any():
            rows, proposed, changing = self.round(decision, part, unfinished)
            active = self.rows(rows)
            trial = active.problem.with_optimal_shares(proposed)
            trial_value = active.value(trial)
            better = trial_value > value[rows] + LEAST_GAIN * np.abs(value[rows])
            part[rows] = _next_part(part[rows], better, changing)
            if not changing.any():
                unfinished[rows] = better
            gained = rows[better]
            value[gained] = trial_value[better]
            decision = decision.replaced(gained, trial.rows(better))
        return decision

    def round(self, decision: Decision, part: Float, unfinished: Bool) -> tuple[Index, Bool, Float]:
        """Rows that try something, what they try, and how many tokens change; none where it is an exact move."""
        rows = np.flatnonzero(part)
        if rows.size:
            present = decision.rows(rows)
            target, gain = self.rows(rows).response(present)
            changing = np.ceil(part[rows] * (gain > LEAST_GAIN).sum(axis=-1))
            if changing.any():
                return rows, np.where(_greatest(gain, changing)[..., None], target, present.selection), changing
        rows = np.flatnonzero(unfinished)
        problem, kept, present = self.problem.rows(rows), self.kept[rows], decision.rows(rows)
        moved = best_single_move(problem, kept, present.selection)
        if problem.links.weights_s is not None:
            moved = best_move(problem, kept, present, moved)
        return rows, moved, np.zeros(len(rows))


def _next_part(part: Float, better: Bool, changing: Float) -> Float:
    """Share of the willing tokens that change next: doubled by success, halved by failure, 0 after one token's.

    A row that stands at 0 begins again at 1 when an exact move has helped it.
    """
    return np.where(better, np.clip(2.0 * part, 1.0 * (part == 0), 1.0), np.where(changing > 1, part / 2.0, 0.0))


def _greatest(gain: Float, count: Float) -> Bool:
    """Marks the ``count`` (N,) greatest entries of each row of ``gain`` (N, J)."""
    rank = np.argsort(np.argsort(-gain, axis=-1, kind="stable"), axis=-1, kind="stable")
    return rank < count[:, None]
