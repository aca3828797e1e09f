"""All pairs of an expert or of a device at once: the moves that a fixed charge asks for.

Where weights are read once a block (5r), dropping one of several pairs of an expert saves nothing of its time, and
adding the first pays for all that could follow. No sequence of single pairs that each help crosses that. So a search
also empties whole experts and devices, whose tokens go to their next best expert, and opens experts for all tokens.
"""

from __future__ import annotations

import numpy as np

from wdmoe_env.optimize.pricing import at_device_of_expert, device_prices
from wdmoe_env.optimize.problem import BlockProblem, Decision
from wdmoe_env.physics.latency import (
    Bool,
    Float,
    any_over_last,
    device_load,
    experts_per_device,
    weight_served,
)


def best_move(problem: BlockProblem, kept: Bool, decision: Decision, single: Bool) -> Bool:
    """Of a single move and all moves of groups the one after which W - price x t is greatest.

    Args:
        problem: the blocks, checked, with their price.
        kept: (N, J, E) pairs that may not be dropped.
        decision: the present one, with its optimal shares.
        single: (N, J, E) the selection after the best move of a single pair.

    Returns:
        (N, J, E), the present selection in a row where nothing moves.
    """
    tried = np.concatenate([single[:, None], *_proposals(problem, kept, decision)], axis=1)
    batch, count = tried.shape[:2]
    moved = (tried != decision.selection[:, None]).any(axis=(2, 3))
    row, proposal = np.nonzero(moved)
    value = np.full((batch, count), -np.inf)
    copies = problem.rows(row)
    trial = copies.with_optimal_shares(tried[row, proposal])
    value[row, proposal] = weight_served(copies.weights, trial.selection) - 1e3 * copies.price * trial.latency_s
    best: Bool = tried[np.arange(batch), value.argmax(axis=1)]
    return best


def _proposals(problem: BlockProblem, kept: Bool, decision: Decision) -> tuple[Bool, Bool]:
    """Selections (N, K, J, E) with an expert or a device emptied, and (N, E, J, E) with an expert opened."""
    links, selection = problem.links, decision.selection
    prices = device_prices(links, device_load(selection, links), decision.bandwidth, problem.price, problem.min_share)
    sending = at_device_of_expert(prices.token, links.placement)[:, None, :]
    worth = problem.weights - prices.of_pairs(links, selection) - sending
    there = at_device_of_expert(experts_per_device(selection, links.placement), links.placement) > 0
    joining = problem.usable & (problem.weights > np.where(there, 0.0, sending))
    experts = np.eye(joining.shape[-1], dtype=np.bool_)[:, None, :]
    opened = selection[:, None] | (joining[:, None] & experts)
    return _emptied(problem, kept, selection, worth), opened


def _emptied(problem: BlockProblem, kept: Bool, selection: Bool, worth: Float) -> Bool:
    """Selections (N, K, J, E) without the pairs of one group each.

    A token that is left without an expert takes the one that is worth most; where it has none, or where a pair of the
    group is kept, the group stays.
    """
    groups = _groups(problem.links.placement, len(selection))[:, :, None, :]
    rest = selection[:, None] & ~groups
    others = problem.usable[:, None] & ~groups
    stranded = any_over_last(selection)[:, None] & ~any_over_last(rest)
    refuge = np.where(others, worth[:, None], -np.inf).argmax(axis=-1)
    moved = rest | (others & stranded[..., None] & (np.arange(rest.shape[-1]) == refuge[..., None]))
    lost = stranded & ~any_over_last(others) | any_over_last(kept[:, None] & groups)
    possible = ~any_over_last(lost)
    return np.where(possible[..., None, None], moved, selection[:, None])


def _groups(placement: Float, batch: int) -> Bool:
    """Experts to be emptied together (N, K, E): each alone, and those of each device where one holds several."""
    experts = placement.shape[-2]
    alone = np.broadcast_to(np.eye(experts, dtype=np.bool_), (batch, experts, experts))
    if not (placement.sum(axis=-2) > 1).any():
        return alone
    held = np.broadcast_to(np.swapaxes(placement, -1, -2) > 0, (batch, placement.shape[-1], experts))
    return np.concatenate([alone, held], axis=1)
