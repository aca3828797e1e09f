"""Layers of an experts module, and its weights packed in half precision where that loses nothing.

With few rows an expert's time is that of reading its weights. Many checkpoints, "tiny" among them, are stored in half
precision and computed in single precision: packed in half precision their weights are half as long to read, and
FBGEMM widens them in registers, so that the outputs are those of single precision.
"""

from __future__ import annotations

from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

Packed = dict[str, list[Any]]
"""Name of a layer to the packed weights of each expert."""

_cache: WeakKeyDictionary[Any, tuple[tuple[Any, ...], Packed | None]] = WeakKeyDictionary()


def layer_names(experts: Any) -> tuple[str, str]:
    """The fused layers of an experts module, first and last."""
    return ("gate_up_proj" if experts.has_gate else "up_proj"), "down_proj"


def layer_parameters(experts: Any, name: str) -> tuple[Tensor, Tensor | None]:
    """Weight (E, outputs, inputs) and bias (E, outputs) of a fused layer."""
    weight = getattr(experts, name)
    bias = getattr(experts, f"{name}_bias") if experts.has_bias else None
    return weight.transpose(-2, -1) if experts.is_transposed else weight, bias


def packed_half(experts: Any) -> Packed | None:
    """The packed layers, ``None`` where a weight is not exact in half precision or torch cannot pack here.

    Packed once and kept beside the module, half its size; again where a parameter has changed since.
    """
    parameters = [tensor for name in layer_names(experts) for tensor in layer_parameters(experts, name)]
    state = tuple(
        (tensor.data_ptr(), None if tensor.is_inference() else tensor._version)
        for tensor in parameters
        if tensor is not None
    )
    kept = _cache.get(experts)
    if kept is None or kept[0] != state:
        kept = _cache[experts] = (state, _pack(experts))
    return kept[1]


def _pack(experts: Any) -> Packed | None:
    packed: Packed = {}
    try:
        for name in layer_names(experts):
            weights, biases = layer_parameters(experts, name)
            packed[name] = []
            for expert, weight in enumerate(weights):
                if not torch.equal(weight.half().to(weight.dtype), weight):
                    return None
                bias = None if biases is None else biases[expert]
                packed[name].append(torch.ops.quantized.linear_prepack_fp16(weight.contiguous(), bias))
    except (AttributeError, RuntimeError):  # a build of torch without FBGEMM, or another quantised engine
        return None
    return packed
