"""What the network would do on an observation: the mode of its distribution, or a sample.

The distribution is a masked Bernoulli for each pair of token and expert, then a Gaussian for each share logit.
Actions are those of the flat ``box`` codec: scores of +-1 and logits in [-1, 1]. Shares are drawn given the
selection that they will serve; a device that serves nothing gets none, and no noise.
"""

from __future__ import annotations

import torch
from torch import Tensor

from wdmoe_env.actions import LEAST_LOGIT
from wdmoe_env.config import DecisionKind
from wdmoe_env.policies.features import Observation
from wdmoe_env.policies.network import TokenSharedNetwork


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
