"""Who runs which experts on which tokens: the seam behind which experts may live elsewhere.

Every expert runs on exactly the tokens that were sent to it. All strategies compute the same sum and differ
in order and speed. Anything with the signature ``ExpertRunner`` can take the place of ``run_experts``, for
instance one that sends the rows to other hosts.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

ExpertRunner = Callable[[Any, Tensor, Tensor, Tensor], Tensor]
"""(experts module, hidden states (T, H), selection (T, E) bool, weights (T, E)) -> outputs (T, H)."""

_Linear = Callable[[str, Tensor], Tensor]
"""(name of a fused parameter, inputs) -> outputs."""

_GROUPED_MAX_TOKENS = 256  # above, each expert fills a matrix product of its own


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
    return STRATEGIES[choose_strategy(experts, hidden_states)](experts, hidden_states, selection, weights)


def choose_strategy(experts: Any, hidden_states: Tensor) -> str:
    """Name of the fast strategy for a block's input (T, H)."""
    few = len(hidden_states) <= _GROUPED_MAX_TOKENS
    return "grouped" if few and _can_group(experts.down_proj, hidden_states) else "slices"


def run_expert(experts: Any, expert: int, hidden_states: Tensor) -> Tensor:
    """Output (T, H) of one expert on tokens (T, H), unweighted."""

    def linear(name: str, inputs: Tensor) -> Tensor:
        weight, bias = _parameters(experts, name)
        return functional.linear(inputs, weight[expert], None if bias is None else bias[expert])

    return _feed_forward(experts, hidden_states, linear)


def expert_widths(experts: Any) -> tuple[int, int]:
    """Width of an expert's input and output, and width inside it."""
    outer, inner = experts.down_proj.shape[1:]
    return (inner, outer) if experts.is_transposed else (outer, inner)


def _loop(experts: Any, hidden_states: Tensor, selection: Tensor, weights: Tensor) -> Tensor:
    """One gather, one expert, one weighted add at a time: the plain reading of the definition."""
    outputs = torch.zeros_like(hidden_states)
    for expert in range(selection.shape[1]):
        tokens = selection[:, expert].nonzero().flatten()
        if len(tokens):
            weighted = run_expert(experts, expert, hidden_states[tokens]) * weights[tokens, expert, None]
            outputs.index_add_(0, tokens, weighted.to(outputs.dtype))
    return outputs


def _slices(experts: Any, hidden_states: Tensor, selection: Tensor, weights: Tensor) -> Tensor:
    """One gather and one add for all experts; each expert works on a contiguous slice of the rows."""
    expert_of_row, token_of_row = selection.t().nonzero(as_tuple=True)
    slices = torch.split(hidden_states[token_of_row], selection.sum(dim=0).tolist())
    outputs = [run_expert(experts, expert, rows) for expert, rows in enumerate(slices) if len(rows)]
    rows = torch.cat(outputs) if outputs else hidden_states[:0]
    return _combine(hidden_states, rows, token_of_row, weights[token_of_row, expert_of_row])


def _grouped(experts: Any, hidden_states: Tensor, selection: Tensor, weights: Tensor) -> Tensor:
    """Torch's grouped matrix product in place of a loop over slices."""
    expert_of_row, token_of_row = selection.t().nonzero(as_tuple=True)
    ends = selection.sum(dim=0).cumsum(dim=0, dtype=torch.int32)

    def linear(name: str, inputs: Tensor) -> Tensor:
        weight, bias = _parameters(experts, name)
        outputs = functional.grouped_mm(inputs, weight.transpose(-2, -1), offs=ends)
        return outputs if bias is None else outputs + bias[expert_of_row]

    rows = _feed_forward(experts, hidden_states[token_of_row], linear)
    return _combine(hidden_states, rows, token_of_row, weights[token_of_row, expert_of_row])


STRATEGIES: dict[str, ExpertRunner] = {"loop": _loop, "slices": _slices, "grouped": _grouped}


def _combine(hidden_states: Tensor, rows: Tensor, token_of_row: Tensor, weight_of_row: Tensor) -> Tensor:
    weighted = rows * weight_of_row[:, None]
    return torch.zeros_like(hidden_states).index_add_(0, token_of_row, weighted.to(hidden_states.dtype))


def _feed_forward(experts: Any, inputs: Tensor, linear: _Linear) -> Tensor:
    """One or many experts on rows (T, H), of any layout that transformers' experts modules declare."""
    if experts.has_gate:
        hidden = experts._apply_gate(linear("gate_up_proj", inputs))
    else:
        hidden = experts.act_fn(linear("up_proj", inputs))
    outputs = linear("down_proj", hidden)
    return experts.post_expert_norm(outputs) if getattr(experts, "has_post_expert_norm", False) else outputs


def _can_group(weight: Tensor, hidden_states: Tensor) -> bool:
    """Whether torch's grouped product takes the operands: present, on the CPU, of one type, 16-byte aligned."""
    strides = [size * weight.element_size() for size in weight.shape[1:]]
    return (
        hasattr(functional, "grouped_mm")
        and hidden_states.device.type == "cpu"
        and hidden_states.dtype == weight.dtype
        and weight.dtype in (torch.float32, torch.bfloat16, torch.float16)
        and all(address % 16 == 0 for address in (weight.data_ptr(), *strides))
    )


def _parameters(experts: Any, name: str) -> tuple[Tensor, Tensor | None]:
    """Weight (E, outputs, inputs) and bias (E, outputs) of a fused layer."""
    weight = getattr(experts, name)
    bias = getattr(experts, f"{name}_bias") if experts.has_bias else None
    return weight.transpose(-2, -1) if experts.is_transposed else weight, bias
