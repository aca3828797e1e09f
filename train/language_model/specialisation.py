"""Whether experts specialise: what a domain loses with its own experts, against what the others lose."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from train.language_model.held_out import HeldOut, token_losses
from wdmoe_env.moe.hook import BlockInput, ExpertChooser
from wdmoe_env.moe.split import SplitModel

LOST_EXPERTS = 3


@dataclass(frozen=True)
class Specialisation:
    """What the loss of a domain's most used experts costs.

    Attributes:
        experts: (block, expert) of the lost ones, most used first.
        own: Added loss on the domain, nats per token.
        others: Mean over the other domains of the added loss, nats per token.
    """

    experts: list[tuple[int, int]]
    own: float
    others: float


def specialisations(
    model: SplitModel, text: HeldOut, own_losses: NDArray[np.float64], counts: dict[str, NDArray[np.int64]]
) -> dict[str, Specialisation]:
    """Take each domain's most used experts from the selection.

    Args:
        model: The split model.
        text: Held-out windows.
        own_losses: (windows, context) of own routing.
        counts: Assignments of each domain, (blocks, experts).
    """
    found = {}
    own = domain_means(text, own_losses)
    for domain in text.sizes:
        experts = most_used(counts[domain])
        label = f"without the experts of {domain}"
        losses = domain_means(text, token_losses(model, text, without(experts, model), label))
        added = {other: losses[other] - own[other] for other in text.sizes}
        others = [value for other, value in added.items() if other != domain]
        found[domain] = Specialisation(experts, added[domain], float(np.mean(others)))
    return found


def domain_means(text: HeldOut, losses: NDArray[np.float64]) -> dict[str, float]:
    """Mean loss per token of each domain, in nats."""
    rows = {domain: text.domains == domain for domain in text.sizes}
    return {domain: float(losses[row].sum() / text.real[row].sum()) for domain, row in rows.items()}


def most_used(counts: NDArray[np.int64]) -> list[tuple[int, int]]:
    """The (block, expert) pairs with the most assignments of counts (blocks, experts)."""
    first = np.argsort(-counts, axis=None, kind="stable")[:LOST_EXPERTS]
    return [(int(block), int(expert)) for block, expert in np.transpose(np.unravel_index(first, counts.shape))]


def without(experts: list[tuple[int, int]], model: SplitModel) -> ExpertChooser:
    """Own routing less some experts; a token that loses all of a block gets its most probable remaining one."""
    lost = torch.zeros(model.num_blocks, model.num_experts, dtype=torch.bool)
    lost[tuple(torch.tensor(experts).T)] = True

    def policy(block: BlockInput) -> Tensor:
        gone = lost[block.index].to(block.routed.device)
        selection = block.routed & ~gone
        best = block.gate_probs.masked_fill(gone, -1).argmax(dim=-1, keepdim=True)
        alone = torch.zeros_like(selection).scatter_(1, best, True)
        return torch.where(selection.any(dim=-1, keepdim=True), selection, alone)

    return policy
