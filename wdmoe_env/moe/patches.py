"""What transformers' experts registry does not serve: taken all the same by a patch of the instance, or refused.

An instance keeps its parameters and gets a subclass of its own class, with what transformers' decorator would have
added. So the model saves and loads as before.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

Hook = Callable[[Any, Tensor, Tensor, Tensor], Tensor]
"""(experts module, hidden states (T, H), chosen experts (T, k), their weights (T, k)) -> outputs (T, H)."""


class _Registered:
    """An experts module with the usual fused parameters and the usual call, only without the decorator."""

    has_gate, has_bias, has_post_expert_norm = True, False, False
    is_concatenated, is_transposed = True, False
    hook: Callable[[Tensor, Tensor, Tensor], Tensor]

    def forward(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        return self.hook(hidden_states, top_k_index, top_k_weights)


class _WithIdentityExperts(_Registered):
    """Expert numbers past the last network hand the token back as it is: that needs no device and stays here."""

    _parameters: dict[str, Any]
    num_routed_experts: int
    act_fn: Callable[[Tensor], Tensor]

    @property
    def num_experts(self) -> int:
        return self.num_routed_experts

    @property
    def gate_up_proj(self) -> Tensor:
        weight: Tensor = self._parameters["gate_up_proj"][: self.num_experts]  # the rest is never read
        return weight

    def _apply_gate(self, gate_up: Tensor) -> Tensor:
        gate, up = gate_up.chunk(2, dim=-1)
        return self.act_fn(gate) * up

    def forward(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        network = top_k_index < self.num_experts
        # A choice without a network is counted as another of the token's own, or the first, and weighs nothing.
        any_own = top_k_index.gather(1, network.int().argmax(dim=1, keepdim=True))
        index = torch.where(network, top_k_index, any_own.where(any_own < self.num_experts, 0))
        outputs = super().forward(hidden_states, index, top_k_weights * network)
        returned = (top_k_weights * ~network).sum(dim=1, keepdim=True)
        return outputs + (hidden_states * returned).to(outputs.dtype)


_PATCHES: dict[str, type[_Registered]] = {
    "Step3p7Experts": _Registered,
    "LongcatFlashExperts": _WithIdentityExperts,
}

_UNSERVED = {
    "dbrx": "its router returns logits alone, and the weights of its experts stand below each other in flat matrices",
    "llama4": "it scales an expert's input in place of its output, and sends every token to every expert",
    "jetmoe": "its attention is a mixture of experts too, and neither has an experts module",
    "doge": "its experts are rows of an embedding that is searched by product keys",
    "switch_transformers": "it is an encoder-decoder whose experts drop the tokens above a capacity",
    "nllb-moe": "it is an encoder-decoder whose experts drop the tokens above a capacity",
    "vitpose_backbone": "its experts are chosen by data set, without a router",
    "qwen3_omni_moe_talker": "it goes on from the hidden states of another model, not from tokens",
}


def served_experts(model: nn.Module) -> dict[str, Any]:
    """The experts modules of a model that can be split, by their names in it."""
    # Transformers' decorator sets both attributes, and so does a patch.
    modules = model.named_modules()
    return {name: one for name, one in modules if hasattr(one, "is_concatenated") and hasattr(one, "_apply_gate")}


def patch_undecorated(model: nn.Module, hook: Hook | None = None) -> None:
    """Give the experts modules that only lack transformers' decorator what it would have added.

    Args:
        model: a transformers model.
        hook: what their forward is to be; ``None`` where they are not going to run.
    """
    for module in model.modules():
        kind: Any = type(module)
        patch: Any = _PATCHES.get(kind.__name__)
        if patch is not None:
            module.__class__ = _patched(kind, patch, hook)


@cache
def _patched(kind: Any, patch: Any, hook: Hook | None) -> Any:
    return type(f"Split{kind.__name__}", (patch, kind), {"hook": hook})


def check_unquantised(experts: Any, name: str) -> None:
    """Refuse experts whose weights are not plain numbers.

    Raises:
        ValueError: quantised experts.
    """
    for parameter in experts.parameters():
        if not parameter.is_floating_point() or parameter.element_size() < 2:
            kind = f"{type(experts).__name__} of {parameter.dtype}"
            raise ValueError(f"expected experts in float32, bfloat16 or float16, got quantised ones: {name} is {kind}")


def check_served(model: Any, num_blocks: int) -> None:
    """Refuse a model that cannot be split, with the reason where it is known.

    Args:
        model: a transformers model.
        num_blocks: how many of its blocks can be split.

    Raises:
        ValueError: none, or a model that the split cannot run.
    """
    reason = _UNSERVED.get(str(model.config.model_type).removesuffix("_text"))
    if num_blocks and reason is None:
        return
    if any(parameter.element_size() < 2 for parameter in model.parameters()):
        reason = "its weights are quantised"
    wanted = "expected a model with MoE blocks served by transformers' experts registry"
    raise ValueError(f"{wanted}, got {type(model).__name__}" + (f": {reason}" if reason else ""))
