"""The best joint decision of a small instance, by exhaustion: the ceiling for every policy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from wdmoe_env.optimize.bandwidth import solve_min_max
from wdmoe_env.optimize.moves import repeat_rows
from wdmoe_env.optimize.validate import check_links, check_selection
from wdmoe_env.physics.latency import BlockLinks, Bool, Float, device_load
from wdmoe_env.physics.metric import weight_served, wlr_per_ms


@dataclass(frozen=True, slots=True)
class OracleSolution:
    """The decision of greatest WLR (8).

    Attributes:
        selection: (N, J, E).
        shares: (N, U).
        latency_s: (N,) block latency.
        wlr_per_ms: (N,) objective (8), 0 where nothing is loaded.
    """

    selection: Bool
    shares: Float
    latency_s: Float
    wlr_per_ms: Float


def exhaustive_oracle(
    links: BlockLinks,
    weights: Float,
    routed: Bool,
    candidates: Bool | None = None,
    min_share: float = 0.0,
    max_selections: int = 2_000_000,
) -> OracleSolution:
    """Best WLR (8) over every selection, each with its optimal shares.

    Latency depends on a selection only through its load, so of all selections with the same load only the one
    that serves most gate weight can be best. Tokens are added one by one, and of the partial selections with
    equal loads only that one is kept; then the shares of every distinct load are solved in one batch.

    Args:
        links: the block's links.
        weights: (N, J, E) gate weights.
        routed: (N, J, E) the model's own choice; a row without any is padding and stays empty.
        candidates: (N, J, E) experts that a token may use, the routed ones by default; a token that has
            routed experts uses one or more of its candidates.
        min_share: least share of a loaded device.
        max_selections: largest number of selections that is accepted.

    Raises:
        TypeError: a mask is not boolean.
        ValueError: a shape or a value is wrong, or an instance has more selections.
    """
    batch, _ = check_links(links)
    candidates = routed if candidates is None else candidates
    masks = ("routed", routed), ("candidates", candidates)
    weights, (routed, candidates) = check_selection(links, weights, *masks)
    candidates = candidates & routed.any(axis=-1, keepdims=True)
    count = np.maximum(2.0 ** candidates.sum(axis=-1) - 1.0, 1.0).prod(axis=-1).max(initial=1.0)
    if count > max_selections:
        raise ValueError(
            f"an exhaustive search takes at most {max_selections} selections, got an instance with {count:.0f}"
        )
    best = [_best(links.row(n), weights[n], candidates[n], min_share) for n in range(batch)]
    return OracleSolution(*(np.stack(column) for column in zip(*best, strict=True)))


def _best(links: BlockLinks, weights: Float, candidates: Bool, min_share: float) -> tuple[Any, ...]:
    """Best selection (J, E) of one row, with its shares (U,), latency and ratio."""
    selections = _heaviest_per_load(weights, candidates, links.placement)
    load = device_load(selections, links.placement)
    solution = solve_min_max(repeat_rows(links, len(selections)), load, min_share)
    served = weight_served(weights[None], selections)
    latency = np.where(solution.latency_s > 0, solution.latency_s, np.inf)
    wlr = wlr_per_ms(served, latency)
    top = wlr.argmax()
    return selections[top], solution.shares[top], solution.latency_s[top], wlr[top]


def _heaviest_per_load(weights: Float, candidates: Bool, placement: Float) -> Bool:
    """Of the selections with equal load, the one that serves most weight; (M, J, E), one for each load."""
    kept = np.zeros((1, *weights.shape), dtype=np.bool_)
    for token, usable in enumerate(candidates):
        options = _non_empty_subsets(usable)
        kept = np.repeat(kept, len(options), axis=0)
        kept[:, token] = np.tile(options, (len(kept) // len(options), 1))
        load = device_load(kept, placement)
        key = np.concatenate([load.tokens, load.experts], axis=-1)
        heaviest_first = np.argsort(-weight_served(weights[None], kept), kind="stable")
        _, first = np.unique(key[heaviest_first], axis=0, return_index=True)
        kept = kept[heaviest_first[first]]
    return kept


def _non_empty_subsets(usable: Bool) -> Bool:
    """All non-empty subsets (M, E) of the marked experts; the empty one alone where none is marked."""
    (experts,) = np.nonzero(usable)
    numbers = np.arange(1 if len(experts) else 0, 2 ** len(experts))
    subsets = np.zeros((len(numbers), len(usable)), dtype=np.bool_)
    subsets[:, experts] = (numbers[:, None] >> np.arange(len(experts))) & 1
    return subsets
