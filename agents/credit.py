"""Credit: what a token's choice is told of the costs that came of it, where K rollouts share a window and a channel.

The rollouts differ by their draws alone, so that each is a baseline of the others. A token answers for its own loss
and, less and less, for the losses of later tokens, which read it through attention.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

SMALLEST_SPREAD = 1e-6
"""Below this, the returns of a group are alike, and a group-relative advantage is 0."""

SMALLEST_SQUARES = 1e-12
"""Least sum of squares that a factor is fitted to: below it nothing has deviated."""

Baseline = Callable[[Tensor], Tensor]
"""From returns (W, K, ...) to advantages of the same shape."""


def leave_one_out(returns: Tensor) -> Tensor:
    """Each return less the mean of the other rollouts' (RLOO, Ahmadian et al., arXiv 2402.14740).

    Args:
        returns: (W, K, ...) of K rollouts of W windows, K of at least 2.

    Returns:
        K / (K - 1) times the return less the mean over all K, which is the same.
    """
    count = returns.shape[1]
    return count / (count - 1) * (returns - returns.mean(1, keepdim=True))


def group_relative(returns: Tensor) -> Tensor:
    """Each return less the mean of its group, over the group's spread (GRPO, Shao et al., arXiv 2402.03300).

    Args:
        returns: (W, K, ...) of K rollouts of W windows, K of at least 2.

    Returns:
        Advantages of the same shape; 0 where all of a group are alike.
    """
    spread = returns.std(1, keepdim=True)
    return torch.where(
        spread > SMALLEST_SPREAD,
        (returns - returns.mean(1, keepdim=True)) / spread.clamp_min(SMALLEST_SPREAD),
        0.0,
    )


BASELINES: dict[str, Baseline] = {"leave-one-out": leave_one_out, "group-relative": group_relative}
"""By the name that a setting gives."""


def with_later_tokens(costs: Tensor, decay: float) -> Tensor:
    """Each token's own cost and those of later tokens, decayed.

    Args:
        costs: (..., J), 0 at padding.
        decay: weight of the next token's cost, of the one after it the square, and so on.

    Returns:
        (..., J) the sum over k of decay**k times the cost of token j + k.
    """
    sums, carried = torch.empty_like(costs), torch.zeros_like(costs[..., 0])
    for token in reversed(range(costs.shape[-1])):
        carried = costs[..., token] + decay * carried
        sums[..., token] = carried
    return sums


def text_returns(costs: Tensor, mask: Tensor, weight: float, decay: float | None) -> Tensor:
    """What each token's choice is told of the text's loss.

    Args:
        costs: (..., J) loss of each token, nats.
        mask: (..., J) True where there is a token.
        weight: of the loss of a window, which is the mean over its tokens.
        decay: of the later tokens' losses; ``None`` tells every token the loss of the whole window.

    Returns:
        (..., J), 0 at padding.
    """
    per_token = -weight * costs * mask / mask.sum(-1, keepdim=True)
    told = per_token.sum(-1, keepdim=True).expand_as(costs) if decay is None else with_later_tokens(per_token, decay)
    return told * mask


def foretold(deviations: Tensor, costs: Tensor, rollouts: int) -> Tensor:
    """The part of each token's loss that its deviation foretells: the deviation times a factor of the block.

    Loss is near its minimum at the model's own routing, so that it grows with the square of what the hidden state
    differs by. The factor is fitted to the differences within windows, by least squares.

    Args:
        deviations: (N, J) mean squares of the differences, before a block's draws.
        costs: (N, J) losses after the last block.
        rollouts: K; those of a window stand together.
    """
    within = [_within_windows(values, rollouts) for values in (deviations, costs)]
    factor = (within[0] * within[1]).sum() / within[0].square().sum().clamp_min(SMALLEST_SQUARES)
    return factor * deviations


def _within_windows(values: Tensor, rollouts: int) -> Tensor:
    grouped = values.view(-1, rollouts, values.shape[-1])
    return grouped - grouped.mean(1, keepdim=True)


def costs_to_go(foretold_costs: Sequence[Tensor], costs: Tensor, trace: float) -> list[Tensor]:
    """What the draws of each block add to a token's loss, as the critic sees it come (GAE, arXiv 1506.02438).

    Args:
        foretold_costs: I of (N, J), before the draws of each block.
        costs: (N, J) after the last.
        trace: lambda; 1 gives the loss less what was foretold before the block.

    Returns:
        I of (N, J).
    """
    after, carried, found = costs, torch.zeros_like(costs), []
    for before in reversed(foretold_costs):
        carried = after - before + trace * carried
        found.append(carried)
        after = before
    return found[::-1]
