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

Made = TypeVar("Made")

_LARGE_PRODUCT = 2**20  # multiplications, below which a packed product brings nothing

_cache: WeakKeyDictionary[nn.Module, tuple[tuple[Any, ...], Any]] = WeakKeyDictionary()


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
    layers = {name: layer_parameters(experts, name) for name in layer_names(experts)}
    return _kept(experts, [tensor for pair in layers.values() for tensor in pair], partial(_pack_experts, layers))


def pack_linear_layers(model: nn.Module) -> None:
    """Let the linear layers of a frozen model use packed weights wherever ``run_linear`` can.

    No module is replaced: the model saves and loads as before.
    """
    for module in model.modules():
        if type(module) is nn.Linear:  # a subclass has a product of its own
            module.forward = partial(run_linear, module)  # type: ignore[method-assign]


def run_linear(layer: nn.Linear, inputs: Tensor) -> Tensor:
    """What a linear layer puts out for inputs (..., features).

    On the CPU, in single precision, without gradients and with weights that are exact in half precision a large product
    is the packed one; any other is torch's own.
    """
    large = inputs.numel() * layer.out_features >= _LARGE_PRODUCT and inputs.is_cpu and not torch.is_grad_enabled()
    weight, bias = layer.weight, layer.bias
    if large and inputs.dtype == weight.dtype == torch.float32:
        packed = _kept(layer, [weight, bias], partial(_pack, weight, bias))
        if packed is not None:
            outputs: Tensor = torch.ops.quantized.linear_dynamic_fp16.default(inputs, packed)
            return outputs
    return functional.linear(inputs, weight, bias)


def _kept(module: nn.Module, parameters: list[Tensor | None], make: Callable[[], Made]) -> Made:
    """What ``make`` made of the parameters of a module, made again where one of them has changed since."""
    state = tuple(
        (tensor.data_ptr(), None if tensor.is_inference() else tensor._version)
        for tensor in parameters
        if tensor is not None
    )
    kept = _cache.get(module)
    if kept is None or kept[0] != state:
        kept = _cache[module] = (state, make())
    made: Made = kept[1]
    return made


def _pack_experts(layers: dict[str, tuple[Tensor, Tensor | None]]) -> Packed | None:
    packed: Packed = {}
    for name, (weights, biases) in layers.items():
        packed[name] = []
        for expert, weight in enumerate(weights):
            one = _pack(weight, None if biases is None else biases[expert])
            if one is None:
                return None
            packed[name].append(one)
    return packed


def _pack(weight: Tensor, bias: Tensor | None) -> Any:
    """A weight (outputs, inputs) packed, ``None`` where it cannot be."""
    if not torch.equal(weight.half().to(weight.dtype), weight):
        return None
    try:
        return torch.ops.quantized.linear_prepack_fp16(weight.contiguous(), bias)
    except (AttributeError, RuntimeError):  # a build of torch without FBGEMM, or another quantised engine
        return None
