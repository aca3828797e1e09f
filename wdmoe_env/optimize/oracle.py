"""The best joint decision of a small instance, by exhaustion: the ceiling for every policy."""

from __future__ import annotations

import numpy as np

from wdmoe_env.optimize.moves import repeat_rows
from wdmoe_env.optimize.problem import BlockProblem, Decision
from wdmoe_env.physics.latency import BlockLinks, Bool, Float, device_load, sum_over_tokens, weight_served


def exhaustive_oracle(problem: BlockProblem, max_selections: int = 2_000_000) -> Decision:
    """Best WLR (8) over every selection, each with its optimal shares.

    Latency depends on a selection only through its load, so of all selections with the same load only the one
    that serves most gate weight can be best. Tokens are added one by one, and of the partial selections with
    equal loads only that one is kept; then the shares of every distinct load are solved in one batch.

    Args:
        problem: the blocks; their price is not used. A token that has routed experts uses one or more of these
            and of its candidates.
        max_selections: largest number of selections that is accepted.

    Raises:
        TypeError: a mask is not boolean.
        ValueError: a shape or a value is wrong, or an instance has more selections.
    """
    problem = problem.checked()
    candidates = problem.usable
    count = np.maximum(2.0 ** candidates.sum(axis=-1) - 1.0, 1.0).prod(axis=-1).max(initial=1.0)
    if count > max_selections:
        raise ValueError(
            f"an exhaustive search takes at most {max_selections} selections, got an instance with {count:.0f}"
        )
    best = [_best_of_row(problem, row) for row in range(len(candidates))]
    return problem.with_optimal_shares(np.stack(best))


def _best_of_row(problem: BlockProblem, row: int) -> Bool:
    """Best selection (J, E) of one row."""
    weights, candidates = problem.weights[row], problem.usable[row]
    links = problem.links.row(row)
    selections = _heaviest_per_load(weights, candidates, links)
    times = len(selections)
    copies = BlockProblem(
        repeat_rows(links, times), np.broadcast_to(weights, selections.shape), selections, min_share=problem.min_share
    )
    best: Bool = selections[copies.with_optimal_shares(selections).wlr_per_ms.argmax()]
    return best


def _heaviest_per_load(weights: Float, candidates: Bool, links: BlockLinks) -> Bool:
    """Of the selections with equal load, the one that serves most weight; (M, J, E), one for each load.

    Where weights are read, the load of each expert counts beside that of each device.
    """
    kept = np.zeros((1, *weights.shape), dtype=np.bool_)
    for token, usable in enumerate(candidates):
        options = _non_empty_subsets(usable)
        kept = np.repeat(kept, len(options), axis=0)
        kept[:, token] = np.tile(options, (len(kept) // len(options), 1))
        load = device_load(kept, links)
        key = [load.tokens, load.experts] if links.weights_s is None else [load.tokens, sum_over_tokens(kept)]
        heaviest_first = np.argsort(-weight_served(weights[None], kept), kind="stable")
        _, first = np.unique(np.concatenate(key, axis=-1)[heaviest_first], axis=0, return_index=True)
        kept = kept[heaviest_first[first]]
    return kept


def _non_empty_subsets(usable: Bool) -> Bool:
    """All non-empty subsets (M, E) of the marked experts; the empty one alone where none is marked."""
    (experts,) = np.nonzero(usable)
    numbers = np.arange(1 if len(experts) else 0, 2 ** len(experts))
    subsets = np.zeros((len(numbers), len(usable)), dtype=np.bool_)
    subsets[:, experts] = (numbers[:, None] >> np.arange(len(experts))) & 1
    return subsets
