"""The hook in transformers' registry: every MoE block of a split model comes through here.

A block asks the policy of the context it runs in which experts to use. No policy, as in ordinary use of the
model, means its own routing. The policy is a context variable, so that many forward passes, each in a
greenlet with a context of its own, can share one model.
"""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

from wdmoe_env.moe.experts import ExpertRunner, run_experts
from wdmoe_env.moe.routing import (
    GateScore,
    OwnRouting,
    RelaxedSelection,
    combination_weights,
    fit_gate_score,
    relaxed_weights,
)

_IMPLEMENTATION = "wdmoe"
_ROUTER_NAMES = ("gate", "router")


@dataclass(frozen=True, eq=False)
class BlockInput:
    """What is known at an MoE block before its experts run.

    The tensors are the model's own: read them, do not write into them. Rows are batch x sequence, padding
    included; decode steps of ``generate`` have one row per sequence.

    Attributes:
        index: 0-based number of the MoE block; layers without experts do not count.
        hidden_states: (T, H) what would cross the link.
        gate_probs: (T, E) float32 scores of all experts by the architecture's own rule, softmax or other.
        routed: (T, E) bool, the model's own choice.
    """

    index: int
    hidden_states: Tensor
    gate_probs: Tensor
    routed: Tensor


Policy = Callable[[BlockInput], Tensor | RelaxedSelection | None]
"""Block input to selection (T, E) bool, or one with a gradient, or ``None`` for the model's own routing."""

policy_of_context: ContextVar[Policy | None] = ContextVar("policy_of_context", default=None)
_router_logits: ContextVar[Tensor] = ContextVar("_router_logits")


@dataclass(frozen=True, eq=False)
class _SplitBlock:
    """What the hook must know of a block, kept on its experts module."""

    index: int
    gate_score: GateScore
    runner: ExpertRunner


# A model built from the configuration of a split one inherits the name of the hook, but is not split.
_UNSPLIT = _SplitBlock(-1, torch.sigmoid, run_experts)


def install_hook(model: Any, runner: ExpertRunner, probe_tokens: Tensor) -> tuple[list[Any], int]:
    """Send every MoE block of a model through the policy of its context.

    No module is replaced and no parameter renamed: the model saves and loads as before.

    Args:
        model: a transformers model.
        runner: who runs the experts.
        probe_tokens: (1, T) token ids, run once to see which score the model's own weights follow.

    Returns:
        The experts modules in the order of the blocks, and how many experts the model gives a token.

    Raises:
        ValueError: no MoE block that transformers' experts registry serves, or one without a known router.
    """
    pairs = _experts_and_routers(model)
    if not pairs:
        raise ValueError(
            f"expected a model with MoE blocks served by transformers' experts registry, got {type(model).__name__}"
        )
    modules = [experts for experts, _ in pairs]
    sizes = sorted({experts.num_experts for experts in modules})
    if len(sizes) > 1:
        raise ValueError(f"expected as many experts in every block, got blocks of {sizes} experts")
    for _, router in pairs:
        if _keep_logits not in router._forward_hooks.values():
            router.register_forward_hook(_keep_logits)
    model.set_experts_implementation(_IMPLEMENTATION)
    samples = _observe(model, modules, probe_tokens)
    gate_score = fit_gate_score(samples)
    for index, experts in enumerate(modules):
        experts._split_block = _SplitBlock(index, gate_score, runner)
    return modules, samples[0][1].top_k_index.shape[1]


def _experts_and_routers(model: nn.Module) -> list[tuple[Any, nn.Module]]:
    pairs = []
    for name, module in model.named_modules():
        if hasattr(module, "is_concatenated") and hasattr(module, "_apply_gate"):  # transformers' decorator sets both
            parent = model.get_submodule(name.rpartition(".")[0])
            router = next((getattr(parent, known) for known in _ROUTER_NAMES if hasattr(parent, known)), None)
            if router is None:
                raise ValueError(f"expected a router named {' or '.join(_ROUTER_NAMES)} beside {name}, found none")
            pairs.append((module, router))
    return pairs


def _keep_logits(router: nn.Module, args: Any, output: Any) -> None:
    """Forward hook: a router returns (logits of all experts, chosen weights, chosen experts, ...)."""
    _router_logits.set(output[0])


def _logits(num_experts: int) -> Tensor:
    """The router's last logits, (T, E) float32; extra classes such as "skip" come after the experts."""
    logits = _router_logits.get()
    return logits.reshape(-1, logits.shape[-1])[:, :num_experts].float()


def _observe(model: Any, modules: list[Any], token_ids: Tensor) -> list[tuple[Tensor, OwnRouting]]:
    """Router logits and own routing of every block on some tokens."""
    seen: list[tuple[Tensor, OwnRouting]] = []

    def record(experts: Any, args: tuple[Tensor, Tensor, Tensor]) -> None:
        seen.append((_logits(experts.num_experts), OwnRouting(args[1], args[2], experts.num_experts)))

    handles = [experts.register_forward_pre_hook(record) for experts in modules]
    try:
        model(input_ids=token_ids, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return seen


def _split_experts(experts: Any, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
    """What runs in place of the forward of every experts module."""
    own = OwnRouting(top_k_index, top_k_weights, experts.num_experts)
    routed = own.routed()
    policy = policy_of_context.get()
    block: _SplitBlock = getattr(experts, "_split_block", _UNSPLIT)
    choice = None
    if policy is not None and block is not _UNSPLIT:
        gate_probs = block.gate_score(_logits(experts.num_experts))
        choice = policy(BlockInput(block.index, hidden_states, gate_probs, routed))
    if choice is None:
        return block.runner(experts, hidden_states, routed, own.weights())
    if isinstance(choice, RelaxedSelection):
        weights = relaxed_weights(own, gate_probs, choice.values)
        return block.runner(experts, hidden_states, choice.candidates, weights)
    weights = combination_weights(own, gate_probs, choice.to(routed.device))
    return block.runner(experts, hidden_states, choice, weights)


ALL_EXPERTS_FUNCTIONS.register(_IMPLEMENTATION, _split_experts)
