"""The actor's distribution: a masked Bernoulli per token and expert, then a Gaussian per share logit.

Actions are those of the flat ``box`` codec: scores of +-1 and logits in [-1, 1]. Shares are drawn given the
selection that they will serve; a device that serves nothing gets none, and no noise.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Bernoulli, Normal

from agents.features import Observation
from agents.network import TokenSharedNetwork
from wdmoe_env.actions import LEAST_LOGIT
from wdmoe_env.config import DecisionKind


@dataclass(frozen=True, slots=True)
class Evaluated:
    """Log-probability and entropy (N,) of actions."""

    log_prob: Tensor
    entropy: Tensor


class ActionDistribution:
    """What the actor would do on an observation.

    Args:
        network: the actor.
        observation: entries (N, ...).
        decision: which halves the action holds.
    """

    def __init__(self, network: TokenSharedNetwork, observation: Observation, decision: DecisionKind) -> None:
        self.network = network
        self.observation = observation
        self.decision = decision
        self.seen, self.logits = network.look(observation)

    def stranded(self, used: Tensor) -> Tensor:
        """The best expert (N, J, E) of each token that uses none: the one that the environment gives it."""
        return self.seen.best & ~used.any(-1, keepdim=True)

    def act(self, deterministic: bool) -> Tensor:
        """Actions (N, A): the mode, or a sample from torch's generator."""
        parts = []
        selection = self.observation["routed"] > 0.5
        if self.decision != "bandwidth":
            used = self.logits > 0 if deterministic else torch.rand_like(self.logits) < self.logits.sigmoid()
            used = self.seen.spread(used)
            selection = used | self.stranded(used)
            parts.append((2.0 * used.float() - 1.0).flatten(1))
        if self.decision != "selection":
            mean, loaded = self.network.share_logits(self.seen, selection)
            noise = 0.0 if deterministic else self.network.log_std.exp() * torch.randn_like(mean)
            parts.append(torch.where(loaded, (mean + noise).clamp(LEAST_LOGIT, 1.0), -1.0))
        return torch.cat(parts, dim=1)

    def evaluate(self, actions: Tensor) -> Evaluated:
        """Log-probability and entropy of actions (N, A)."""
        num_scores = self.seen.candidates[0].numel() if self.decision != "bandwidth" else 0
        log_prob = self.logits.new_zeros(len(actions))
        entropy = self.logits.new_zeros(len(actions))
        selection = self.observation["routed"] > 0.5
        if self.decision != "bandwidth":
            selection = actions[:, :num_scores].view_as(self.seen.candidates) > 0
            bits: Any = Bernoulli(logits=self.logits, validate_args=False)
            log_prob = log_prob + self.seen.per_episode(bits.log_prob(self.seen.at(selection).float()))
            entropy = entropy + self.seen.per_episode(bits.entropy())
            selection = selection | self.stranded(selection)
        if self.decision != "selection":
            mean, loaded = self.network.share_logits(self.seen, selection)
            shares: Any = Normal(mean, self.network.log_std.exp(), validate_args=False)
            log_prob = log_prob + (shares.log_prob(actions[:, num_scores:]) * loaded).sum(1)
            entropy = entropy + (shares.entropy() * loaded).sum(1)
        return Evaluated(log_prob, entropy)
