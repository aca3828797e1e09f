"""What the network looks at: scale-free figures of every token-expert pair and of every device."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

Observation = dict[str, Tensor]

PAIR_FEATURES = 13
DEVICE_FEATURES = 9
TINY = 1e-6


@dataclass(frozen=True, slots=True)
class Features:
    """Features of an observation.

    Attributes:
        pairs: (N, J, E, PAIR_FEATURES).
        devices: (N, U, DEVICE_FEATURES).
        candidates: (N, J, E) bool, pairs that the actor decides on.
        routed: (N, J, E) bool, the model's own choice.
        best: (N, J, E) bool, each token's most probable expert, which is used where no other is.
        work_ms: (N, U) latency of each device under the model's own routing at equal shares.
    """

    pairs: Tensor
    devices: Tensor
    candidates: Tensor
    routed: Tensor
    best: Tensor
    work_ms: Tensor


def features(observation: Observation, extra_experts: int = 0) -> Features:
    """Scale-free features: what a gate weight is worth against what it costs.

    Args:
        observation: entries (N, ...).
        extra_experts: of each token, so many of its most probable experts beside its routed ones are candidates.
    """
    probs, routed = observation["gate_probs"], observation["routed"]
    placement, mask = observation["placement"], observation["token_mask"]
    chosen = routed > 0.5
    weight = probs / (probs * routed).sum(-1, keepdim=True).clamp_min(TINY)
    best = one_hot((probs * routed).argmax(-1), probs) & chosen
    load = routed @ placement
    token_ms = observation["unit_latency"] + observation["compute_latency"]
    work = load.sum(1) * token_ms
    total = work.sum(-1, keepdim=True).clamp_min(TINY)
    cost = at_experts(placement, token_ms / total)
    served = (weight * routed) @ placement
    share_of_weight = weight / mask.sum(-1).clamp_min(1.0)[:, None, None]
    best_weight = (weight * best).sum(-1, keepdim=True)
    position = torch.linspace(0.0, 1.0, probs.shape[1], device=probs.device).expand_as(mask)
    block = observation["block"]
    # Whether the token is sent to the expert's device anyway.
    beside = ((load @ placement.mT) - routed > 0.5).float()
    columns = [
        probs,
        weight.clamp_max(2.0),
        routed,
        best.float(),
        best_weight.clamp_max(1.0),
        beside,
        _per_pair(at_experts(placement, work / total), probs),
        _per_pair(cost.clamp_min(TINY).log() / 4.0, probs),
        position[..., None],
        _per_pair(block, probs),
        _per_pair((block == 0).float(), probs),
        _log_ratio(share_of_weight, cost[:, None]),
        _log_ratio(best_weight / weight.clamp_min(TINY), torch.ones_like(weight)),
    ]
    candidates = chosen if not extra_experts else chosen | _most_probable(probs * (1 - routed), extra_experts)
    return Features(
        pairs=torch.stack([column.expand_as(probs) for column in columns], dim=-1),
        devices=_device_features(observation, load.sum(1), served.sum(1), work),
        candidates=candidates & (mask[..., None] > 0.5),
        routed=chosen,
        best=best,
        work_ms=work,
    )


def _device_features(observation: Observation, load: Tensor, served: Tensor, work: Tensor) -> Tensor:
    """(N, U, DEVICE_FEATURES): what a device is asked for under the own routing, and what it would bring."""
    total, most = work.sum(-1, keepdim=True).clamp_min(TINY), work.max(-1, keepdim=True).values.clamp_min(TINY)
    token_ms = observation["unit_latency"] + observation["compute_latency"]
    weight_share = served / served.sum(-1, keepdim=True).clamp_min(TINY)
    columns = [
        work / total,
        work / most,
        (total / most / work.shape[-1]).expand_as(work),
        load / load.sum(-1, keepdim=True).clamp_min(1.0),
        weight_share,
        _log_ratio(weight_share, work / total),
        _log_ratio(token_ms, token_ms.mean(-1, keepdim=True)),
        observation["spectral_efficiency"].mean(1) / 10.0,
        observation["compute_latency"] / token_ms.clamp_min(TINY),
    ]
    return torch.stack(columns, dim=-1)


def one_hot(index: Tensor, like: Tensor) -> Tensor:
    """Indices (...) as bool marks (..., E) of the last axis of ``like``."""
    return nn.functional.one_hot(index, like.shape[-1]).bool()


def at_experts(placement: Tensor, per_device: Tensor) -> Tensor:
    """Device values (N, U) at the experts they hold, (N, E)."""
    return (placement @ per_device[..., None])[..., 0]


def _most_probable(probs: Tensor, count: int) -> Tensor:
    """Marks (N, J, E) the ``count`` largest probabilities of each token."""
    index = probs.topk(min(count, probs.shape[-1]), dim=-1).indices
    return torch.zeros_like(probs).scatter(-1, index, 1.0) > 0.5


def _per_pair(per_expert: Tensor, like: Tensor) -> Tensor:
    """(N, E) or (N, 1) spread over tokens, (N, J, E)."""
    return per_expert[:, None, :].expand_as(like)


def _log_ratio(above: Tensor, below: Tensor) -> Tensor:
    """Logarithm of a ratio, scaled and bounded."""
    return ((above.clamp_min(TINY) / below.clamp_min(TINY)).log() / 4.0).clamp(-3.0, 3.0)
