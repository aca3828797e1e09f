"""Who runs which experts on which tokens: the seam behind which experts may live elsewhere.

All strategies compute the same sum and differ in order and speed, and run every expert on exactly the tokens that were
sent to it. Anything with the signature ``ExpertRunner`` can take the place of ``run_experts``, for instance one that
sends the rows to other hosts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial, reduce
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.activations import ACT2FN
from transformers.integrations import moe

from wdmoe_env.moe.helper import share, workers
from wdmoe_env.moe.packing import Packed, has_one_thread_product, layer_names, layer_parameters, packed_half

ExpertRunner = Callable[[Any, Tensor, Tensor, Tensor], Tensor]
"""(experts module, hidden states (T, H), selection (T, E) bool, weights (T, E)) -> outputs (T, H).

Two threads may call it at once, see ``lanes``.
"""

_Linear = Callable[[str, Tensor], Tensor]
"""(name of a fused layer, inputs) -> outputs."""

_Product = Callable[[str, int, Tensor], Tensor]
"""(name of a fused layer, expert, inputs of that expert) -> outputs."""

_Run = Callable[[Tensor, "list[int]"], Tensor]
"""(inputs (R, H) in the order of the experts, rows of each expert) -> outputs (R, H)."""

_GROUPED_MAX_TOKENS = 96  # above, a product for each expert is faster than one grouped product
_BY_LAYER_MAX_TOKENS = 256  # for each worker; above, what a layer puts out no longer stays in a core's cache
_HELPERS_PART = 0.46  # of the rows; less than half, since it wakes up while the other part is under way
_USUAL_GATE = getattr(moe, "_default_apply_gate", None)  # of experts that declare no other: gate and up side by side
_SILU = (nn.SiLU, type(ACT2FN["silu"]))


def run_experts(experts: Any, hidden_states: Tensor, selection: Tensor, weights: Tensor) -> Tensor:
    """Weighted sum of the selected experts' outputs, per token.

    Args:
        experts: an experts module of transformers: the fused weights of the E experts of one block.
        hidden_states: (T, H) input of the block.
        selection: (T, E) bool; a token may have any number of experts, none included. Best on the CPU, wherever the
            model is: its rows are listed there.
        weights: (T, E) weight of each expert's output; read only where selected.

    Returns:
        (T, H); zero for a token without expert.
    """
    return STRATEGIES[choose_strategy(experts, hidden_states)](experts, hidden_states, selection, weights)


def choose_strategy(experts: Any, hidden_states: Tensor) -> str:
    """Name of the fastest strategy for a block's input (T, H), as measured in ``docs/performance.md``."""
    tokens, weight = len(hidden_states), experts.down_proj
    # Products that torch has for inference on a CPU in single precision, without a derivative.
    inference = hidden_states.is_cpu and not torch.is_grad_enabled()
    single = hidden_states.dtype == weight.dtype == torch.float32
    if inference and single and packed_half(experts) is not None:
        by_layer = tokens <= _BY_LAYER_MAX_TOKENS * workers() and torch.get_num_threads() == 1
        return "packed" if by_layer and has_one_thread_product() else "packed_slices"
    if tokens <= _GROUPED_MAX_TOKENS and _can_group(weight, hidden_states):
        return "grouped"
    return "onednn" if inference and single and hasattr(torch.ops.mkldnn, "_linear_pointwise") else "slices"


def run_expert(experts: Any, expert: int, hidden_states: Tensor) -> Tensor:
    """Output (T, H) of one expert on tokens (T, H), unweighted."""
    return _feed_forward(experts, hidden_states, _layers_of(expert, _stock(experts)))


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


def _by_expert(
    products: Callable[[Any], _Product], experts: Any, hidden_states: Tensor, selection: Tensor, weights: Tensor
) -> Tensor:
    """One gather and one add for all experts; each runs from its first layer to its last on a slice of the rows."""
    product = products(experts)

    def run(inputs: Tensor, counts: list[int]) -> Tensor:
        outputs = [
            _feed_forward(experts, part, _layers_of(expert, product))
            for expert, part in enumerate(torch.split_with_sizes(inputs, counts))
            if counts[expert]
        ]
        return torch.cat(outputs) if outputs else inputs

    return _weighted_sum(run, hidden_states, selection, weights)


def _packed(experts: Any, hidden_states: Tensor, selection: Tensor, weights: Tensor) -> Tensor:
    """The first layer of all experts, one activation, and their last layer: with few rows, calls are what counts."""
    packed = _packed_layers(experts)

    def run(inputs: Tensor, counts: list[int]) -> Tensor:
        return _feed_forward(experts, inputs, lambda name, inputs: packed[name].products(inputs, counts))

    return _weighted_sum(run, hidden_states, selection, weights)


def _grouped(experts: Any, hidden_states: Tensor, selection: Tensor, weights: Tensor) -> Tensor:
    """Torch's grouped matrix product in place of a loop over slices."""

    def run(inputs: Tensor, counts: list[int]) -> Tensor:
        each = torch.tensor(counts, device=inputs.device)
        ends = each.cumsum(dim=0, dtype=torch.int32)

        def linear(name: str, inputs: Tensor) -> Tensor:
            weight, bias = layer_parameters(experts, name)
            outputs = functional.grouped_mm(inputs, weight.transpose(-2, -1), offs=ends)
            return outputs if bias is None else outputs + bias.repeat_interleave(each, dim=0, output_size=len(inputs))

        return _feed_forward(experts, inputs, linear)

    return _weighted_sum(run, hidden_states, selection, weights)


def _layers_of(expert: int, product: _Product) -> _Linear:
    """The layers of one expert."""
    return lambda name, inputs: product(name, expert, inputs)


def _stock(experts: Any) -> _Product:
    """Torch's own product."""

    def product(name: str, expert: int, inputs: Tensor) -> Tensor:
        weight, bias = layer_parameters(experts, name)
        return functional.linear(inputs, weight[expert], None if bias is None else bias[expert])

    return product


def _onednn(experts: Any) -> _Product:
    """The product of oneDNN, which torch itself takes for half precision alone; on AMD it is faster than MKL's."""

    def product(name: str, expert: int, inputs: Tensor) -> Tensor:
        weight, bias = layer_parameters(experts, name)
        bias = None if bias is None else bias[expert]
        outputs: Tensor = torch.ops.mkldnn._linear_pointwise(inputs, weight[expert], bias, "none", [], "")
        return outputs

    return product


def _packed_product(experts: Any) -> _Product:
    """FBGEMM's product with weights kept in half precision, computed in single precision."""
    packed = _packed_layers(experts)
    return lambda name, expert, inputs: packed[name].weights[expert].product(inputs)


def _packed_layers(experts: Any) -> Packed:
    packed = packed_half(experts)
    if packed is None:
        raise ValueError("expected experts whose weights are exact in half precision")
    return packed


STRATEGIES: dict[str, ExpertRunner] = {
    "loop": _loop,
    "slices": partial(_by_expert, _stock),
    "grouped": _grouped,
    "onednn": partial(_by_expert, _onednn),
    "packed": _packed,
    "packed_slices": partial(_by_expert, _packed_product),
}


def _weighted_sum(run: _Run, hidden_states: Tensor, selection: Tensor, weights: Tensor) -> Tensor:
    """Sum (T, H) of the weighted outputs of each token; each thread there is runs and adds a part of the rows."""
    parts = _Rows.of(selection, hidden_states.device).parts(workers())
    return reduce(torch.add, share([partial(part.weighted_sum, run, hidden_states, weights) for part in parts]))


@dataclass(frozen=True, slots=True)
class _Rows:
    """Selected pairs in the order of their experts.

    Attributes:
        token: (R,) token of each row.
        pair: (R,) index of each row in a flattened (T, E) matrix.
        counts: rows of each of the E experts.
    """

    token: Tensor
    pair: Tensor
    counts: list[int]

    @classmethod
    def of(cls, selection: Tensor, device: torch.device) -> _Rows:
        """List a selection (T, E) on the CPU, so that no device has to be waited for."""
        by_expert = selection.numpy(force=True).T
        expert, token = by_expert.nonzero()
        rows = np.empty((2, len(token)), dtype=np.int64)  # one array, since it may have to be sent to a device
        rows[0], rows[1] = token, token * len(by_expert) + expert
        on_device = torch.from_numpy(rows).to(device)
        return cls(on_device[0], on_device[1], np.bincount(expert, minlength=len(by_expert)).tolist())

    def parts(self, number: int) -> list[_Rows]:
        """All rows, or a part for this thread and one for its helper; an expert may have rows in both."""
        if number == 1:
            return [self]
        cut = round(len(self.token) * (1.0 - _HELPERS_PART))
        ends = accumulate(self.counts)
        before = [min(count, max(0, cut - end + count)) for count, end in zip(self.counts, ends, strict=True)]
        after = [count - taken for count, taken in zip(self.counts, before, strict=True)]
        sides = zip((slice(None, cut), slice(cut, None)), (before, after), strict=True)
        return [_Rows(self.token[rows], self.pair[rows], counts) for rows, counts in sides]

    def weighted_sum(self, run: _Run, hidden_states: Tensor, weights: Tensor) -> Tensor:
        """Sum (T, H) over these rows of what the experts make of hidden states (T, H), by weights (T, E)."""
        outputs = run(hidden_states.index_select(0, self.token), self.counts)
        weighted = (outputs * weights.take(self.pair)[:, None]).to(hidden_states.dtype)
        return torch.zeros_like(hidden_states).index_add_(0, self.token, weighted)


def _feed_forward(experts: Any, inputs: Tensor, linear: _Linear) -> Tensor:
    """One or many experts on rows (T, H), of any layout that transformers' experts modules declare."""
    first, last = layer_names(experts)
    outputs = linear(last, _activated(experts, linear(first, inputs)))
    return experts.post_expert_norm(outputs) if getattr(experts, "has_post_expert_norm", False) else outputs


def _activated(experts: Any, hidden: Tensor) -> Tensor:
    """What the first layer (..., 2I or I) put out, after the activation: (..., I); ``hidden`` may be written over."""
    if _is_swiglu(experts) and not torch.is_grad_enabled():
        gate, up = hidden.chunk(2, dim=-1)
        return functional.silu(gate, inplace=True) * up  # in place, so that less memory passes through the caches
    activated: Tensor = experts._apply_gate(hidden) if experts.has_gate else experts.act_fn(hidden)
    return activated


def _is_swiglu(experts: Any) -> bool:
    """Whether a SiLU gates the experts in transformers' usual way."""
    return experts.has_gate and type(experts)._apply_gate is _USUAL_GATE and isinstance(experts.act_fn, _SILU)


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
