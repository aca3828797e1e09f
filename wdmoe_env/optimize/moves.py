"""Single pairs added to or dropped from a selection, each scored at its own exact bandwidth optimum.

Marginal prices misjudge a change that is not small: a device's last token, or a compute-bound device. Block
latency depends on a pair only through its expert's device and whether the token goes there anyway, so that
one pair per expert and kind of move, the one of most or least weight, stands for all.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from wdmoe_env.optimize.bandwidth import solve_min_max
from wdmoe_env.optimize.pricing import at_device_of_expert
from wdmoe_env.optimize.problem import BlockProblem
from wdmoe_env.physics.latency import (
    BlockLinks,
    Bool,
    Float,
    Load,
    device_load,
    expert_reading_s,
    experts_per_device,
    sum_over_tokens,
    weight_served,
)


def best_single_move(problem: BlockProblem, kept: Bool, selection: Bool) -> Bool:
    """The addition or removal of one pair after which W - price x t is greatest.

    Args:
        problem: the blocks, checked, with their price.
        kept: (N, J, E) pairs that may not be dropped.
        selection: (N, J, E) the present choice; no token loses its last expert.

    Returns:
        (N, J, E), unchanged in a row without a move.
    """
    weights, placement = problem.weights, problem.links.placement
    batch = len(weights)
    served = weight_served(weights, selection)
    value = np.full(batch, -np.inf)
    token, expert = np.zeros(batch, dtype=np.intp), np.zeros(batch, dtype=np.intp)
    rows, price = np.arange(batch), 1e3 * problem.price[:, None]
    for allowed, gain, tokens_moved, experts_moved in _kinds(
        weights, problem.usable & ~selection, selection & ~kept, selection, placement
    ):
        ranked = np.where(allowed, gain, -np.inf)
        best_token = ranked.argmax(axis=1)
        latency = _latency_after(problem, selection, np.any(allowed, axis=1), tokens_moved, experts_moved)
        scores = served[:, None] + ranked.max(axis=1) - price * latency
        best_expert = scores.argmax(axis=-1)
        better = scores[rows, best_expert] > value
        value = np.where(better, scores[rows, best_expert], value)
        expert = np.where(better, best_expert, expert)
        token = np.where(better, best_token[rows, best_expert], token)
    moved = selection.copy()
    moved[rows, token, expert] ^= np.isfinite(value)
    return moved


def _kinds(
    weights: Float, addable: Bool, droppable: Bool, selection: Bool, placement: Float
) -> Iterator[tuple[Bool, Float, int, int]]:
    """The kinds of move that exist: pairs allowed, weight gained, and tokens and pairs added to the device."""
    at_device = at_device_of_expert(experts_per_device(selection, placement), placement)
    droppable = droppable & (selection.sum(axis=-1, keepdims=True) > 1)
    kinds = (
        (droppable & (at_device == 1), -weights, -1, -1),
        (droppable & (at_device > 1), -weights, 0, -1),
        (addable & (at_device == 0), weights, 1, 1),
        (addable & (at_device > 0), weights, 0, 1),
    )
    return (kind for kind in kinds if kind[0].any())


def _latency_after(
    problem: BlockProblem, selection: Bool, movable: Bool, tokens_moved: int, experts_moved: int
) -> Float:
    """Optimal block latency (N, E) after the move at the device of each expert, where it is movable (N, E)."""
    links = problem.links
    batch, devices = links.compute_s.shape
    load = device_load(selection, links)
    change = links.placement * movable[..., None]
    experts, reading = change.shape[1], None
    if load.reading_s is not None:
        count = sum_over_tokens(selection)
        more = expert_reading_s(links, np.maximum(count + experts_moved, 0.0)) - expert_reading_s(links, count)
        reading = np.maximum(load.reading_s[:, None] + more[..., None] * change, 0.0).reshape(-1, devices)
    moved = Load(
        (load.tokens[:, None] + tokens_moved * change).reshape(-1, devices),
        (load.experts[:, None] + experts_moved * change).reshape(-1, devices),
        reading,
    )
    return solve_min_max(repeat_rows(links, experts), moved, problem.min_share).latency_s.reshape(batch, experts)


def repeat_rows(links: BlockLinks, times: int) -> BlockLinks:
    """Links of a batch in which each row stands ``times`` times in a row."""
    placement = links.placement
    return BlockLinks(
        np.repeat(links.full_band_snr, times, axis=0),
        np.repeat(links.payload_s, times),
        np.repeat(links.compute_s, times, axis=0),
        placement if placement.ndim == 2 else np.repeat(placement, times, axis=0),
        None if links.weights_s is None else np.repeat(links.weights_s, times, axis=0),
    )
