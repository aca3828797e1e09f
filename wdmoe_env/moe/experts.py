"""Who runs which experts on which tokens: the seam behind which experts may live elsewhere.

``run_experts`` runs every expert on exactly the tokens that were sent to it. All strategies compute the same
sum in another order; ``choose_strategy`` picks the fast one. Anything with the signature ``ExpertRunner``
can take the place of ``run_experts``, for instance one that sends the rows to other hosts.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

ExpertRunner = Callable[[Any, Tensor, Tensor, Tensor], Tensor]
"""(experts module, hidden states (T, H), selection (T, E) bool, weights (T, E)) -> outputs (T, H)."""

_PADDED_MAX_TOKENS = 512  # above, the rows of zeros cost more than the calls saved


def run_experts(experts: Any, hidden_states: Tensor, selection: Tensor, weights: Tensor) -> Tensor:
    """Weighted sum of the selected experts' outputs, per token.

    Args:
        experts: an experts module of transformers: the fused weights of the E experts of one block.
        hidden_states: (T, H) input of the block.
        selection: (T, E) bool; a token may have any number of experts, none included.
        weights: (T, E) weight of each expert's output; read only where selected.

    Returns:
        (T, H); zero for a token without expert.
    """
    return STRATEGIES[choose_strategy(selection)](experts, hidden_states, selection, weights)


def choose_strategy(selection: Tensor) -> str:
    """Name of the fast strategy for a selection (T, E).

    Few large calls win while there are few tokens, unless most experts would idle (a decode step with many
    experts); many tokens fill one matrix product per expert.
    """
    num_tokens, num_experts = selection.shape
    return "padded" if num_experts <= 2 * num_tokens <= 2 * _PADDED_MAX_TOKENS else "slices"


def run_expert(experts: Any, expert: int, hidden_states: Tensor) -> Tensor:
    """Output (T, H) of one expert on tokens (T, H), unweighted."""
    return _feed_forward(experts, hidden_states, lambda parameter: parameter[expert])


def expert_widths(experts: Any) -> tuple[int, int]:
    """Width of an expert's input and output, and width inside it."""
    outer, inner = experts.down_proj.shape[1:]
    return (inner, outer) if experts.is_transposed else (outer, inner)


def _loop(experts: Any, hidden_states: Tensor, selection: Tensor, weights: Tensor) -> Tensor:
    """One gather, one expert, one weighted add at a time: the plain reading of the definition."""
    outputs = torch.zeros_like(hidden_states)
    for expert in range(selection.shape[1]):
        tokens = selection[:, expert].nonzero().flatten()
        if tokens.numel():
            weighted = run_expert(experts, expert, hidden_states[tokens]) * weights[tokens, expert, None]
            outputs.index_add_(0, tokens, weighted.to(outputs.dtype))
    return outputs


def _slices(experts: Any, hidden_states: Tensor, selection: Tensor, weights: Tensor) -> Tensor:
    """One gather and one add for all experts; each expert works on a contiguous slice of the rows."""
    expert_of_row, token_of_row = selection.t().nonzero(as_tuple=True)
    counts = selection.sum(dim=0).tolist()
    slices = hidden_states[token_of_row].split(counts)
    rows = [run_expert(experts, expert, rows) for expert, rows in enumerate(slices) if len(rows)]
    outputs = torch.zeros_like(hidden_states)
    if not rows:
        return outputs
    weighted = torch.cat(rows) * weights[token_of_row, expert_of_row, None]
    return outputs.index_add_(0, token_of_row, weighted.to(outputs.dtype))


def _padded(experts: Any, hidden_states: Tensor, selection: Tensor, weights: Tensor) -> Tensor:
    """One batched product over all experts, each expert's rows padded to the longest."""
    expert_of_row, token_of_row = selection.t().nonzero(as_tuple=True)
    counts = selection.sum(dim=0)
    starts = counts.cumsum(dim=0) - counts
    slot_of_row = torch.arange(len(token_of_row), device=counts.device) - starts[expert_of_row]
    padded = hidden_states.new_zeros(len(counts), int(counts.max()), hidden_states.shape[-1])
    padded[expert_of_row, slot_of_row] = hidden_states[token_of_row]
    rows = _feed_forward(experts, padded, lambda parameter: parameter)[expert_of_row, slot_of_row]
    weighted = rows * weights[token_of_row, expert_of_row, None]
    return torch.zeros_like(hidden_states).index_add_(0, token_of_row, weighted.to(hidden_states.dtype))


STRATEGIES: dict[str, ExpertRunner] = {"loop": _loop, "slices": _slices, "padded": _padded}


def _feed_forward(experts: Any, hidden_states: Tensor, pick: Callable[[Tensor], Tensor]) -> Tensor:
    """One expert on (T, H), or all E on (E, T, H), of any layout that transformers' experts modules declare."""
    if experts.has_gate:
        hidden = experts._apply_gate(_linear(experts, "gate_up_proj", hidden_states, pick))
    else:
        hidden = experts.act_fn(_linear(experts, "up_proj", hidden_states, pick))
    outputs = _linear(experts, "down_proj", hidden, pick)
    return experts.post_expert_norm(outputs) if getattr(experts, "has_post_expert_norm", False) else outputs


def _linear(experts: Any, name: str, inputs: Tensor, pick: Callable[[Tensor], Tensor]) -> Tensor:
    weight = pick(getattr(experts, name))
    bias = pick(getattr(experts, f"{name}_bias")) if experts.has_bias else None
    weight = weight.transpose(-2, -1) if experts.is_transposed else weight
    if weight.dim() == 2:
        return functional.linear(inputs, weight, bias)
    outputs = torch.bmm(inputs, weight.transpose(-2, -1))
    return outputs if bias is None else outputs + bias[:, None]
