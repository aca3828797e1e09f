"""The hook in transformers' registry: every MoE block of a split model comes through here.

A block asks the policy of the context it runs in which experts to use. No policy, as in ordinary use of the
model, means its own routing. The policy is a context variable, so that many forward passes, each in a
greenlet with a context of its own, can share one model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

from wdmoe_env.moe.blank import reason_of
from wdmoe_env.moe.finite import clues
from wdmoe_env.moe.patches import check_served, check_unquantised, patch_undecorated, served_experts
from wdmoe_env.moe.routing import (
    GateScore,
    OwnRouting,
    RelaxedSelection,
    combination_weights,
    fit_gate_score,
    relaxed_weights,
)
from wdmoe_env.moe.runner import UNREACHABLE, ExpertAnswer, ExpertCall, ExpertRunner, Service, run_experts

_IMPLEMENTATION = "wdmoe"
_ROUTER_NAMES = ("gate", "router")
_TOP_K_NAMES = ("num_experts_per_tok", "moe_topk", "moe_top_k", "top_k_experts")  # experts per token, in configurations


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


ExpertChooser = Callable[[BlockInput], Tensor | RelaxedSelection | None]
"""Block input to selection (T, E) bool, or one with a gradient, or ``None`` for the model's own routing."""

policy_of_context: ContextVar[ExpertChooser | None] = ContextVar("policy_of_context", default=None)
service_of_context: ContextVar[Service | None] = ContextVar("service_of_context", default=None)
_probing: ContextVar[bool] = ContextVar("_probing", default=False)
_router_logits: ContextVar[Tensor] = ContextVar("_router_logits")


@contextmanager
def under(policy: ExpertChooser | None, service: Service | None = None) -> Iterator[None]:
    """A context whose policy is this one, and whose experts are served by this one."""
    chosen, served = policy_of_context.set(policy), service_of_context.set(service)
    try:
        yield
    finally:
        policy_of_context.reset(chosen)
        service_of_context.reset(served)


@dataclass(frozen=True, eq=False)
class _SplitBlock:
    """What the hook must know of a block, kept on its experts module."""

    index: int
    gate_score: GateScore
    runner: ExpertRunner


def install_hook(model: Any, runner: ExpertRunner, probe_tokens: Tensor) -> tuple[list[Any], int]:
    """Send every MoE block of a model through the policy of its context.

    No module is replaced and no parameter renamed: the model saves and loads as before.

    Args:
        model: a transformers model; its experts may be without weights, on torch's meta device.
        runner: who runs the experts of a pass that names no runner.
        probe_tokens: (1, T) token ids, run once, without the experts, to see which score the model's own weights
            follow.

    Returns:
        The experts modules that text meets, in its order, and how many experts the model gives a token.

    Raises:
        ValueError: no MoE block that can be split, one without a known router, one with quantised
            weights, or one that cannot run.
    """
    patch_undecorated(model, _split_experts)
    pairs = _experts_and_routers(model)
    check_served(model, len(pairs))
    modules = [experts for experts, _ in pairs]
    sizes = sorted({experts.num_experts for experts in modules})
    if len(sizes) > 1:
        raise ValueError(f"expected as many experts in every block, got blocks of {sizes} experts")
    for _, router in pairs:
        keep = _keep_scaled_probs if hasattr(router, "per_expert_scale") else _keep_logits
        if keep not in router._forward_hooks.values():
            router.register_forward_hook(keep)
    model.set_experts_implementation(_IMPLEMENTATION)
    with without_experts():
        seen = _probe(model, modules, probe_tokens)
    gate_score = fit_gate_score([sample for sample in seen.values() if len(sample[0])])
    blocks = list(seen)
    for index, experts in enumerate(blocks):
        experts._split_block = _SplitBlock(index, gate_score, runner)
    return blocks, seen[blocks[0]][1].top_k_index.shape[1]


def _experts_and_routers(model: nn.Module) -> list[tuple[Any, nn.Module]]:
    pairs = []
    for name, experts in served_experts(model).items():
        parent = model.get_submodule(name.rpartition(".")[0])
        router = next((getattr(parent, known) for known in _ROUTER_NAMES if hasattr(parent, known)), None)
        if router is None:
            raise ValueError(f"expected a router named {' or '.join(_ROUTER_NAMES)} beside {name}, found none")
        check_unquantised(experts, name)
        pairs.append((experts, router))
    return pairs


def _keep_logits(router: nn.Module, args: Any, output: Any) -> None:
    """Forward hook: a router returns (logits of all experts, chosen weights, chosen experts, ...)."""
    _router_logits.set(output[0])


def _keep_scaled_probs(router: Any, args: Any, output: Any) -> None:
    """Forward hook: Gemma's router returns probabilities, and scales the weight of each expert on top."""
    _router_logits.set(output[0] * router.per_expert_scale)


def _probe(model: Any, modules: list[Any], token_ids: Tensor) -> dict[Any, tuple[Tensor, OwnRouting]]:
    """What ``_observe`` sees.

    Raises:
        ValueError: the model cannot run, or sends no token to an expert.
    """
    count = token_ids.shape[1]
    try:
        seen = _observe(model, modules, token_ids)
    except Exception as error:  # whatever a configuration that does not fit leads a model to raise
        raise ValueError(f"a pass over {count} tokens fails: {reason_of(error)}{_top_k(model, modules)}") from error
    if not any(len(logits) for logits, _ in seen.values()):
        reason = _top_k(model, modules) or clues(model)
        raise ValueError(f"expected finite gate weights for one of {count} tokens at least, got none{reason}")
    return seen


def _top_k(model: Any, modules: list[Any]) -> str:
    """What the configuration says of the experts per token, where that cannot be."""
    config, num_experts = model.config.get_text_config(), modules[0].num_experts
    named = ((name, getattr(config, name, None)) for name in _TOP_K_NAMES)
    wrong = [f"{name} is {k}" for name, k in named if isinstance(k, int) and not 0 < k <= num_experts]
    return f" ({wrong[0]}, of {num_experts} experts)" if wrong else ""


def _observe(model: Any, modules: list[Any], token_ids: Tensor) -> dict[Any, tuple[Tensor, OwnRouting]]:
    """Experts modules that some tokens meet, each with the router's logits and the own routing of these tokens."""
    seen: dict[Any, tuple[Tensor, OwnRouting]] = {}

    def record(experts: Any, args: tuple[Tensor, Tensor, Tensor]) -> None:
        logits = _router_logits.get()
        logits = logits.reshape(-1, logits.shape[-1]).float()  # of the classes past the experts too, if there are any
        total = args[2].sum(dim=1)
        weighted = (total != 0) & total.isfinite()  # a token that skips the experts shows nothing of their score
        seen[experts] = (logits[weighted], OwnRouting(args[1][weighted], args[2][weighted], experts.num_experts))

    handles = [experts.register_forward_pre_hook(record) for experts in modules]
    try:
        model(input_ids=token_ids, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return seen


@contextmanager
def without_experts() -> Iterator[None]:
    """A context in which all experts answer zeros: enough to see what the rest of a model does."""
    token = _probing.set(True)
    try:
        yield
    finally:
        _probing.reset(token)


def _split_experts(experts: Any, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
    """What runs in place of the forward of every experts module."""
    if _probing.get():
        return torch.zeros_like(hidden_states)
    own = OwnRouting(top_k_index, top_k_weights, experts.num_experts)
    routed = own.routed()
    policy = policy_of_context.get()
    block: _SplitBlock | None = getattr(experts, "_split_block", None)
    if block is None:  # a model built from the configuration of a split one inherits the name of the hook alone
        return run_experts(experts, hidden_states, routed, own.weights())
    choice = None
    if policy is not None:
        logits = _router_logits.get()  # extra classes such as "skip" come after the experts
        gate_probs = block.gate_score(logits.reshape(-1, logits.shape[-1])[:, : experts.num_experts].float())
        choice = policy(BlockInput(block.index, hidden_states, gate_probs, routed))
    if choice is None:
        selection, weights = routed, own.weights()
    elif isinstance(choice, RelaxedSelection):
        selection, weights = choice.candidates, relaxed_weights(own, gate_probs, choice.values, choice.usable)
    else:
        selection, weights = choice, combination_weights(own, gate_probs, choice.to(routed.device))
    service = service_of_context.get()
    runner = block.runner if service is None or service.runner is None else service.runner
    sequences, bits = ((), 16) if service is None else (service.sequences, service.link_bits)
    return _serve(runner, ExpertCall(block.index, hidden_states, selection, weights, sequences, bits), service)


def _serve(runner: ExpertRunner, call: ExpertCall, service: Service | None) -> Tensor:
    """Outputs (T, H) of a block by whoever runs its experts.

    A row goes on with what was served of it. Its weights are scaled to the sum that they had over all that was
    selected, which is the rule of ``combination_weights``. A row of which nothing was served gets zeros, so that the
    residual stream alone goes on.

    Args:
        runner: runs the experts.
        call: what to run.
        service: is told what was not served; ``None`` where nobody asks.

    Raises:
        ValueError: an answer of another shape or type.
    """
    try:
        answer = runner.run(call)
    except UNREACHABLE:
        answer = ExpertAnswer(torch.zeros_like(call.hidden_states), torch.zeros(call.selection.shape, dtype=torch.bool))
    if service is not None:
        service.timings_s = answer.timings_s
        service.unserved_pairs = np.zeros(len(service.sequences), dtype=np.int64)
    outputs, like = answer.outputs, call.hidden_states
    if answer.served is None and outputs.shape == like.shape and outputs.dtype == like.dtype:
        return outputs
    _check_answer(answer, call)
    if answer.served is None:
        return outputs
    served = answer.served.to(call.selection.device) & call.selection
    if service is not None:
        unserved = (call.selection & ~served).sum(dim=1).numpy(force=True)
        service.unserved_pairs = unserved.reshape(max(1, len(service.sequences)), -1).sum(axis=1)
    return _scaled(outputs, call, served)


def _scaled(outputs: Tensor, call: ExpertCall, served: Tensor) -> Tensor:
    """Outputs (T, H) of what was served, as if it had the weight of all that was selected."""
    weights = call.weights
    selected, served = call.selection.to(weights.device), served.to(weights.device)
    whole, part = (weights.where(pairs, 0.0).sum(dim=1, keepdim=True) for pairs in (selected, served))
    scale = torch.where((served == selected).all(dim=1, keepdim=True), 1.0, whole / part).to(outputs.dtype)
    return (outputs * scale).where(served.any(dim=1, keepdim=True) & (part != 0.0), 0.0)


def _check_answer(answer: ExpertAnswer, call: ExpertCall) -> None:
    outputs, served, like = answer.outputs, answer.served, call.hidden_states
    if outputs.shape != like.shape or outputs.dtype != like.dtype:
        wanted, got = ((one.dtype, tuple(one.shape)) for one in (like, outputs))
        raise ValueError(
            f"expected a runner's outputs to be {wanted[0]} of shape {wanted[1]}, got {got[0]} of {got[1]}"
        )
    if served is not None and (served.dtype != torch.bool or served.shape != call.selection.shape):
        wanted_shape = tuple(call.selection.shape)
        raise ValueError(
            f"expected a runner's served to be a bool tensor of shape {wanted_shape}, "
            f"got {served.dtype} of {tuple(served.shape)}"
        )


ALL_EXPERTS_FUNCTIONS.register(_IMPLEMENTATION, _split_experts)
