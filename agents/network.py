"""A token-shared actor and critic: one small network for every token-expert pair and one for every device.

No weight depends on the number of tokens, experts or devices. The actor starts near the model's own routing
and near shares in proportion to each device's work, so that learning begins from ``vanilla``, not from noise.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from wdmoe_env.actions import LOGIT_SCALE

Observation = dict[str, Tensor]

PAIR_FEATURES = 10
DEVICE_FEATURES = 5
WORK_FEATURES = 2
# Log-odds of keeping a routed expert before any training: 0.88.
KEEP_LOG_ODDS = 2.0
# Standard deviation of share logits before any training: shares jitter by about 20 %.
INITIAL_LOG_STD = -3.0
# Logit of the busiest device's share: shares are relative, and noise has room below the bound of 1.
BUSIEST_LOGIT = 0.8
_TINY = 1e-6


@dataclass(frozen=True, slots=True)
class Features:
    """Features of an observation.

    Attributes:
        pairs: (N, J, E, PAIR_FEATURES).
        optional: (N, J, E) bool, pairs that the actor may drop: routed, but not the token's best.
        best: (N, J, E) bool, each token's most probable expert, which is always kept.
        work_ms: (N, U) latency of each device under the model's own routing at equal shares.
    """

    pairs: Tensor
    optional: Tensor
    best: Tensor
    work_ms: Tensor


def features(observation: Observation) -> Features:
    """Scale-free features of the pairs: what a gate weight is worth against what it costs.

    The last one is the logarithm of an expert's share of all gate weight over its device's share of all
    latency: the quantity that a marginal-price rule compares with its price, to first order.
    """
    probs, routed = observation["gate_probs"], observation["routed"]
    placement, mask = observation["placement"], observation["token_mask"]
    token_ms = observation["unit_latency"] + observation["compute_latency"]
    weight = probs / (probs * routed).sum(-1, keepdim=True).clamp_min(_TINY)
    best = nn.functional.one_hot((probs * routed).argmax(-1), probs.shape[-1]) * mask[..., None]
    work = (routed @ placement).sum(1) * token_ms
    total = work.sum(-1, keepdim=True).clamp_min(_TINY)
    cost = _at_experts(placement, token_ms / total)
    share_of_weight = weight / mask.sum(-1).clamp_min(1.0)[:, None, None]
    position = torch.linspace(0.0, 1.0, probs.shape[1], device=probs.device).expand_as(mask)
    block = observation["block"]
    columns = [
        probs,
        weight.clamp_max(2.0),
        routed,
        best,
        _per_pair(_at_experts(placement, work / total), probs),
        _per_pair((cost.clamp_min(_TINY)).log() / 4.0, probs),
        position[..., None].expand_as(probs),
        _per_pair(block, probs),
        _per_pair((block == 0).float(), probs),
        ((share_of_weight.clamp_min(_TINY) / cost[:, None].clamp_min(_TINY)).log() / 4.0).clamp(-3.0, 3.0),
    ]
    pairs = torch.stack([column.expand_as(probs) for column in columns], dim=-1)
    return Features(pairs, (routed > 0.5) & (best < 0.5), best > 0.5, work)


def _at_experts(placement: Tensor, per_device: Tensor) -> Tensor:
    """Device values (N, U) at the experts they hold, (N, E)."""
    return (placement @ per_device[..., None])[..., 0]


def _per_pair(per_expert: Tensor, like: Tensor) -> Tensor:
    """(N, E) or (N, 1) spread over tokens, (N, J, E)."""
    return per_expert[:, None, :].expand_as(like)


class TokenSharedNetwork(nn.Module):
    """Actor and critic.

    Args:
        width: of the hidden layers.
    """

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.width = width
        self.pair_body = _mlp(PAIR_FEATURES, width, width)
        self.pair_head = _small(nn.Linear(width, 1))
        self.device_net = nn.Sequential(_mlp(DEVICE_FEATURES, width, width), _small(nn.Linear(width, 1)))
        self.log_std = nn.Parameter(torch.full((1,), INITIAL_LOG_STD))
        self.value_net = nn.Sequential(_mlp(PAIR_FEATURES + WORK_FEATURES, width, width), nn.Linear(width, 1))

    def expert_logits(self, seen: Features) -> Tensor:
        """Log-odds (N, J, E) of keeping each pair; those of pairs that are not optional are 0 and do not count."""
        chosen = KEEP_LOG_ODDS + self.pair_head(self.pair_body(seen.pairs[seen.optional]))[..., 0]
        return torch.zeros_like(seen.pairs[..., 0]).masked_scatter(seen.optional, chosen)

    def share_logits(self, observation: Observation, seen: Features, selection: Tensor) -> tuple[Tensor, Tensor]:
        """Mean logits (N, U) of the shares for the selection (N, J, E) that they will serve, and who is loaded (N, U).

        The base is a share in proportion to the work of each device at equal shares.
        """
        per_token = selection.to(observation["placement"].dtype) @ observation["placement"]
        load = (per_token > 0).to(per_token.dtype).sum(1)
        compute_ms = per_token.sum(1) * observation["compute_latency"]
        work = load * observation["unit_latency"] + compute_ms
        relative = (work / work.max(-1, keepdim=True).values.clamp_min(_TINY)).clamp_min(_TINY)
        base = (BUSIEST_LOGIT + relative.log() / LOGIT_SCALE).clamp_min(-BUSIEST_LOGIT)
        efficiency = observation["spectral_efficiency"] / 10.0
        columns = [
            base,
            efficiency[:, 0],
            efficiency[:, 1],
            compute_ms / work.clamp_min(_TINY),
            load / load.sum(-1, keepdim=True).clamp_min(1.0),
        ]
        return base + self.device_net(torch.stack(columns, dim=-1))[..., 0], load > 0

    def value(self, seen: Features) -> Tensor:
        """State values (N,) from the mean features of optional pairs and the devices' work."""
        optional = seen.optional[..., None].to(seen.pairs.dtype)
        pooled = (seen.pairs * optional).sum((1, 2)) / optional.sum((1, 2)).clamp_min(1.0)
        work = torch.stack([seen.work_ms.sum(-1), seen.work_ms.max(-1).values], dim=-1)
        values: Tensor = self.value_net(torch.cat([pooled, work.clamp_min(_TINY).log()], dim=-1))[..., 0]
        return values


def _mlp(inputs: int, width: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, width), nn.Tanh(), nn.Linear(width, outputs), nn.Tanh())


def _small(layer: nn.Linear) -> nn.Linear:
    """A last layer that adds almost nothing before training."""
    nn.init.normal_(layer.weight, std=1e-2)
    nn.init.zeros_(layer.bias)
    return layer
