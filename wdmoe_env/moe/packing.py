"""Weights packed in half precision where that loses nothing: of an experts module, and of a linear layer.

With few rows a product's time is that of reading its weights. Many checkpoints, "tiny" among them, are stored in half
precision and computed in single precision: packed in half precision their weights are half as long to read, and
FBGEMM widens them in registers, so that the outputs are those of single precision.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn import functional

Packed = dict[str, list[Any]]
"""Name of a layer to the packed weights of each expert."""

Dense = tuple[Any, Any]
"""The packed first layers of all experts, one below the other, and their last layers, side by side."""

Made = TypeVar("Made")

_cache: WeakKeyDictionary[nn.Module, dict[Callable[..., Any], tuple[Any, Any]]] = WeakKeyDictionary()

_LARGE_PRODUCT = 2**20  # multiplications, below which a packed product brings nothing


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
    return _kept(experts, _pack_each)


def packed_dense(experts: Any) -> Dense | None:
    """The same for all experts as one; ``None`` also where a bias or a norm stands between them and their sum."""
    return _kept(experts, _pack_as_one)


def pack_linear_layers(model: nn.Module) -> None:
    """Let the linear layers of a frozen model use packed weights wherever ``run_linear`` can.

    No module is replaced: the model saves and loads as before.
    """
    for module in model.modules():
        # A subclass has a product of its own; so has a layer whose forward was replaced, as accelerate does.
        if type(module) is nn.Linear and "forward" not in vars(module):
            module.forward = partial(run_linear, module)  # type: ignore[method-assign]


def run_linear(layer: nn.Linear, inputs: Tensor) -> Tensor:
    """What a linear layer puts out for inputs (..., features).

    On the CPU, in single precision, without gradients and with weights that are exact in half precision a large product
    is the packed one; any other is torch's own.
    """
    large = inputs.numel() * layer.out_features >= _LARGE_PRODUCT and inputs.is_cpu and not torch.is_grad_enabled()
    if large and inputs.dtype == layer.weight.dtype == torch.float32:
        packed = _kept(layer, _pack_layer)
        if packed is not None:
            return packed_product(inputs, packed)
    return functional.linear(inputs, layer.weight, layer.bias)


def packed_product(inputs: Tensor, packed: Any) -> Tensor:
    """FBGEMM's product of inputs (..., features) with packed weights: kept in half, computed in single precision."""
    outputs: Tensor = torch.ops.quantized.linear_dynamic_fp16.default(inputs, packed)
    return outputs


def _kept(module: nn.Module, make: Callable[[Any], Made]) -> Made:
    """What ``make`` made of a module, made again where one of its parameters has changed since."""
    state = [
        (parameter.data_ptr(), None if parameter.is_inference() else parameter._version)
        for parameter in module._parameters.values()
        if parameter is not None
    ]
    made = _cache.setdefault(module, {})
    if make not in made or made[make][0] != state:
        made[make] = (state, make(module))
    found: Made = made[make][1]
    return found


def _pack_layer(layer: nn.Linear) -> Any:
    return _pack(layer.weight, layer.bias)


def _pack_each(experts: Any) -> Packed | None:
    packed: Packed = {}
    for name in layer_names(experts):
        weights, biases = layer_parameters(experts, name)
        each = [_pack(weight, None if biases is None else biases[expert]) for expert, weight in enumerate(weights)]
        if any(one is None for one in each):
            return None
        packed[name] = each
    return packed


def _pack_as_one(experts: Any) -> Dense | None:
    if experts.has_bias or getattr(experts, "has_post_expert_norm", False):
        return None
    first, last = (layer_parameters(experts, name)[0] for name in layer_names(experts))
    below, beside = _pack(first.flatten(0, 1), None), _pack(last.transpose(0, 1).flatten(1), None)
    return None if below is None or beside is None else (below, beside)


def _pack(weight: Tensor, bias: Tensor | None) -> Any:
    """A weight (outputs, inputs) packed, ``None`` where it cannot be."""
    if not torch.equal(weight.half().to(weight.dtype), weight):
        return None
    try:
        return torch.ops.quantized.linear_prepack_fp16(weight.contiguous(), bias)
    except (AttributeError, RuntimeError):  # a build of torch without FBGEMM, or another quantised engine
        return None
