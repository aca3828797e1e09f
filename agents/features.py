"""What the network looks at: scale-free figures of every token-expert pair and of every device."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn

from agents.draft import Draft, balanced_shares, first_drafts, priced
from wdmoe_env.observations import Block, decode_observation

Observation = dict[str, Tensor]

PAIR_FEATURES = 19
DEVICE_FEATURES = 13
TINY = 1e-6
LARGEST_LOG = 5.0


@dataclass(frozen=True, slots=True)
class Features:
    """What is known of an observation, given a draft of the selection.

    Attributes:
        observation: entries (N, ...).
        block: the same, decoded.
        candidates: (N, J, E) bool, pairs that the actor decides on.
        routed: (N, J, E) bool, the model's own choice.
        best: (N, J, E) bool, each token's most probable expert, which is used where no other is.
        own: prices at the model's own routing.
        first: prices at the first draft, near the best weight-to-latency ratio.
        draft: prices at the draft.
    """

    observation: Observation
    block: Block
    candidates: Tensor
    routed: Tensor
    best: Tensor
    own: Draft
    first: Draft
    draft: Draft

    @classmethod
    def of(cls, observation: Observation, extra_experts: int = 0) -> Self:
        """Features at the first draft.

        Args:
            observation: entries (N, ...).
            extra_experts: of each token, so many of its most probable experts beside its routed ones are candidates.
        """
        probs, routed = observation["gate_probs"], observation["routed"]
        chosen = routed > 0.5
        candidates = chosen if not extra_experts else chosen | _most_probable(probs * (1 - routed), extra_experts)
        candidates = candidates & (observation["token_mask"][..., None] > 0.5)
        best = nn.functional.one_hot((probs * routed).argmax(-1), probs.shape[-1]).bool() & chosen
        block = decode_observation({name: value.cpu().numpy() for name, value in observation.items()})
        own, first = first_drafts(block, candidates.cpu().numpy())
        return cls(observation, block, candidates, chosen, best, own, first, first)

    def redrafted(self, used: Tensor) -> Self:
        """Features at a draft of one's own, (N, J, E) from 0 to 1."""
        return replace(self, draft=priced(self.block, used.detach().double().cpu().numpy()))

    def balanced_shares(self, selection: Tensor) -> Tensor:
        """(N, U) shares near the optimum for a selection (N, J, E)."""
        return _tensor(balanced_shares(self.block, selection.cpu().numpy() > 0.5), self.observation["gate_probs"])

    def work_ms(self) -> Tensor:
        """(N, U) latency of each device under the model's own routing at equal shares."""
        seen = self.observation
        return (seen["routed"] @ seen["placement"]).sum(1) * (seen["unit_latency"] + seen["compute_latency"])

    def tokens(self) -> Tensor:
        """(N, 1) number of tokens."""
        return self.observation["token_mask"].sum(-1, keepdim=True).clamp_min(1.0)

    def pairs(self) -> Tensor:
        """(N, J, E, PAIR_FEATURES): the token, its weights, the expert's price, and one against the other."""
        seen, one = self.observation, torch.ones(())
        probs, routed, placement, block = (seen[name] for name in ("gate_probs", "routed", "placement", "block"))
        weight = probs / (probs * routed).sum(-1, keepdim=True).clamp_min(TINY)
        best_weight = (weight * self.best).sum(-1, keepdim=True)
        own_cost = self._cost(self.own)[:, None]
        own_latency = _tensor(self.own.latency_ms, probs)[:, None]
        of_drafts = []
        for draft in (self.first, self.draft):
            cost = self._cost(draft)[:, None]
            value = _tensor(draft.ratio * draft.latency_ms, probs)[:, None, None] / self.tokens()[..., None]
            of_drafts += [log_ratio(cost, one), log_ratio(weight, value * cost), _tensor(draft.used, probs)]
        # Whether the token is sent to the expert's device anyway.
        beside = ((routed @ placement) @ placement.mT - routed > 0.5).float()
        columns = [
            probs,
            weight.clamp_max(2.0),
            routed,
            self.best.float(),
            best_weight.clamp_max(1.0),
            log_ratio(best_weight, weight),
            beside,
            torch.linspace(0.0, 1.0, probs.shape[1], device=probs.device)[None, :, None],
            block[:, None],
            (block == 0).float()[:, None],
            log_ratio(own_cost, one),
            log_ratio(own_latency, self.work_ms().max(-1, keepdim=True).values)[:, None],
            log_ratio(weight, own_cost),
            *of_drafts,
        ]
        return torch.stack([column.expand_as(probs) for column in columns], dim=-1)

    def devices(self) -> Tensor:
        """(N, U, DEVICE_FEATURES): what a device is asked for by the own routing and the draft, and at what price."""
        seen, work = self.observation, self.work_ms()
        placement, tokens = seen["placement"], self.tokens()
        token_ms = seen["unit_latency"] + seen["compute_latency"]
        load, own_price = (seen["routed"] @ placement).sum(1), _tensor(self.own.price_ms, work)
        of_drafts = []
        for draft in (self.first, self.draft):
            served, price = (_tensor(draft.used, work) @ placement).sum(1), _tensor(draft.price_ms, work)
            paid = price * served / _tensor(draft.latency_ms, work)[:, None]
            of_drafts += [served / tokens, paid, log_ratio(price, own_price)]
        columns = [
            work / work.sum(-1, keepdim=True).clamp_min(TINY),
            work / work.max(-1, keepdim=True).values.clamp_min(TINY),
            load / tokens,
            own_price * load / _tensor(self.own.latency_ms, work)[:, None],
            *of_drafts,
            log_ratio(token_ms, token_ms.mean(-1, keepdim=True)),
            seen["spectral_efficiency"].mean(1) / 10.0,
            seen["compute_latency"] / token_ms.clamp_min(TINY),
        ]
        return torch.stack(columns, dim=-1)

    def _cost(self, prices: Draft) -> Tensor:
        """(N, E) part of a block's latency that a token on the expert costs, times the number of tokens."""
        placement = self.observation["placement"]
        relative = _tensor(prices.price_ms / prices.latency_ms[:, None], placement) * self.tokens()
        return (placement @ relative[..., None])[..., 0]


def log_ratio(above: Tensor, below: Tensor) -> Tensor:
    """Logarithm of a ratio, bounded."""
    return (above.clamp_min(TINY) / below.clamp_min(TINY)).log().clamp(-LARGEST_LOG, LARGEST_LOG)


def _most_probable(probs: Tensor, count: int) -> Tensor:
    """Marks (N, J, E) the ``count`` largest probabilities of each token."""
    index = probs.topk(min(count, probs.shape[-1]), dim=-1).indices
    return torch.zeros_like(probs).scatter(-1, index, 1.0) > 0.5


def _tensor(values: Any, like: Tensor) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32)).to(like.device)
