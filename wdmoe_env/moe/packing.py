"""Weights packed in half precision where that loses nothing: of an experts module, and of a linear layer.

With few rows a product's time is that of reading its weights. Many checkpoints, "tiny" among them, are stored in half
precision and computed in single precision: packed in half precision their weights are half as long to read, and
FBGEMM widens them in registers, so that the outputs are those of single precision.

Torch has two ways to that product. The one for quantised layers uses all threads and takes 7 us to be called, since a
packed object is handed over. The older one takes 1 us and one thread. Torch calls it deprecated: where it is gone, the
other does its work.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import cache, cached_property
from typing import Any, Generic, TypeVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn import functional

Packed = dict[str, "PackedLayer"]
"""Name of a fused layer to its packed weights."""

Made = TypeVar("Made")

_LARGE_PRODUCT = 2**21  # multiplications, from which threads are worth the longer call


class PackedWeight:
    """A weight (outputs, inputs) that is exact in half precision, packed when it is first used.

    Args:
        weight: (O, I) with the outputs O and the inputs I.
        bias: (O,), ``None`` where there is none.

    Attributes:
        bias: (O,), as given.
        num_outputs: O.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self._weight, self.bias, self.num_outputs = weight.contiguous(), bias, len(weight)
        self._one_thread = has_one_thread_product()

    @cached_property
    def _for_one_thread(self) -> Tensor:
        packed: Tensor = torch.fbgemm_pack_gemm_matrix_fp16(self._weight)
        return packed

    @cached_property
    def _for_threads(self) -> Any:
        return torch.ops.quantized.linear_prepack_fp16(self._weight, self.bias)

    def product(self, inputs: Tensor) -> Tensor:
        """What the layer puts out for inputs (..., features)."""
        size = inputs.numel() * self.num_outputs
        if not self._one_thread or (size >= _LARGE_PRODUCT and torch.get_num_threads() > 1):
            outputs: Tensor = torch.ops.quantized.linear_dynamic_fp16.default(inputs, self._for_threads)
            return outputs
        outputs = torch.fbgemm_linear_fp16_weight_fp32_activation(inputs, self._for_one_thread, self.bias)
        return outputs


class PackedLayer:
    """A fused layer of packed weights, one for each expert.

    Args:
        weights: in the order of the experts.

    Attributes:
        weights: as given.
    """

    def __init__(self, weights: list[PackedWeight]) -> None:
        self.weights = weights

    @cached_property
    def _for_one_thread(self) -> list[tuple[Tensor, Tensor | None]]:
        return [(weight._for_one_thread, weight.bias) for weight in self.weights]

    def products(self, inputs: Tensor, counts: list[int]) -> Tensor:
        """What the experts put out, each on its rows of inputs (R, features), on one thread: (R, num_outputs).

        Args:
            inputs: (R, features) rows in the order of the experts.
            counts: rows of each.
        """
        outputs = inputs.new_empty(sum(counts), self.weights[0].num_outputs)
        rows = zip(torch.split_with_sizes(inputs, counts), torch.split_with_sizes(outputs, counts), strict=True)
        calls = zip(counts, rows, self._for_one_thread, strict=True)
        # Listed before the first call: after each, Python's lock may be with another thread, so little should need it.
        for part, into, weight, bias in [(*both, *packed) for count, both, packed in calls if count]:
            torch.fbgemm_linear_fp16_weight_fp32_activation(part, weight, bias, into)
        return outputs


@cache
def has_one_thread_product() -> bool:
    """Whether torch has the product that is quick to call."""
    with warnings.catch_warnings():  # torch warns at the first call alone
        warnings.simplefilter("ignore")
        try:
            one = torch.zeros(1, 1)
            torch.fbgemm_linear_fp16_weight_fp32_activation(one, torch.fbgemm_pack_gemm_matrix_fp16(one), None)
        except (AttributeError, RuntimeError):
            return False
    return True


@cache
def _can_pack() -> bool:
    """Whether torch was built with FBGEMM, and uses it for quantised layers."""
    try:
        torch.ops.quantized.linear_prepack_fp16(torch.zeros(1, 1), None)
    except (AttributeError, RuntimeError):
        return False
    return True


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

    Packed once for each kind of product and kept beside the module, half its size; again where a parameter has changed.
    """
    kept = _of_experts.get(experts)
    if kept is None:
        kept = _of_experts.setdefault(experts, _Kept(_pack_each))
    return kept.of(experts)


def pack_linear_layers(model: nn.Module) -> None:
    """Let the linear layers of a frozen model use packed weights wherever ``PackedForward`` can.

    No module is replaced: the model saves and loads as before.
    """
    for module in model.modules():
        # A subclass has a product of its own; so has a layer whose forward was replaced, as accelerate does.
        if type(module) is nn.Linear and "forward" not in vars(module):
            module.forward = PackedForward(module)  # type: ignore[method-assign, assignment]


class PackedForward:
    """What a linear layer puts out for inputs (..., features).

    On the CPU, in single precision, without gradients and with weights that are exact in half precision the product is
    the packed one; any other is torch's own.

    Args:
        layer: the layer; its weights may change.
    """

    def __init__(self, layer: nn.Linear) -> None:
        self._layer, self._kept = layer, _Kept(_pack_layer)

    def __call__(self, inputs: Tensor) -> Tensor:
        """Outputs (..., O) of inputs (..., features)."""
        if inputs.is_cpu and inputs.dtype == torch.float32 and not torch.is_grad_enabled():
            packed = self._kept.of(self._layer)
            if packed is not None:
                return packed.product(inputs)
        return functional.linear(inputs, self._layer.weight, self._layer.bias)

    def __reduce__(self) -> tuple[type[PackedForward], tuple[nn.Linear]]:
        """Copy and pickle without what was packed."""
        return PackedForward, (self._layer,)


class _Kept(Generic[Made]):
    """What ``make`` made of a module, made again where one of its parameters has changed since."""

    def __init__(self, make: Callable[[Any], Made]) -> None:
        self._make = make
        self._last: tuple[list[tuple[int, int | None]], Made] | None = None

    def of(self, module: nn.Module) -> Made:
        state = [
            (parameter.data_ptr(), None if parameter.is_inference() else parameter._version)
            for parameter in module._parameters.values()
            if parameter is not None
        ]
        last = self._last  # read once: two threads may be here
        if last is None or last[0] != state:
            last = self._last = (state, self._make(module))
        return last[1]


_of_experts: WeakKeyDictionary[nn.Module, _Kept[Packed | None]] = WeakKeyDictionary()


def _pack_layer(layer: nn.Linear) -> PackedWeight | None:
    return _pack(layer.weight, layer.bias)


def _pack_each(experts: Any) -> Packed | None:
    packed: Packed = {}
    for name in layer_names(experts):
        weights, biases = layer_parameters(experts, name)
        each = [_pack(weight, None if biases is None else biases[expert]) for expert, weight in enumerate(weights)]
        exact = [one for one in each if one is not None]
        if len(exact) < len(each):
            return None
        packed[name] = PackedLayer(exact)
    return packed


def _pack(weight: Tensor, bias: Tensor | None) -> PackedWeight | None:
    """A weight (outputs, inputs) to pack, ``None`` where it cannot be."""
    single = weight.is_cpu and weight.dtype == torch.float32
    exact = single and _can_pack() and torch.equal(weight.half().float(), weight)
    return PackedWeight(weight, bias) if exact else None
