"""What the network would do on an observation: the mode of its distribution, or a sample.

The distribution is a masked Bernoulli for each pair of token and expert, then a Gaussian for each share logit.
Actions are those of the flat ``box`` codec: scores of +-1 and logits in [-1, 1]. Shares are drawn given the
selection that they will serve; a device that serves nothing gets none, and no noise.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from wdmoe_env.actions import DECISIONS, LEAST_LOGIT, ActionPart, BandwidthPart, ExpertsPart
from wdmoe_env.config import DecisionKind
from wdmoe_env.policies.features import ObservationTensors
from wdmoe_env.policies.network import TokenSharedNetwork


class ActionDistribution:
    """What the actor would do on an observation.

    Args:
        network: the actor.
        observation: entries (N, ...).
        decision: which parts the action holds, see ``wdmoe_env.actions.DECISIONS``.

    Attributes:
        parts: what the action holds, in the order of a flat action.
        seen: what the network looks at.
        logits: (M,) log-odds of using each candidate pair.
    """

    def __init__(self, network: TokenSharedNetwork, observation: ObservationTensors, decision: DecisionKind) -> None:
        self.network = network
        self.observation = observation
        self.parts = DECISIONS[decision]
        self.seen, self.logits = network.look(observation)

    @property
    def own_routing(self) -> Tensor:
        """(N, J, E) the model's own choice, which runs where the action holds no experts."""
        return self.observation["routed"] > 0.5

    def stranded(self, used: Tensor) -> Tensor:
        """The best expert (N, J, E) of each token that uses none: the one that the environment gives it."""
        return self.seen.best & ~used.any(-1, keepdim=True)

    def act(self, deterministic: bool) -> Tensor:
        """Actions (N, A): the mode, or a sample from torch's generator."""
        drawn, selection = [], self.own_routing
        for part in self.parts:
            numbers, selection = _DRAWS[part](self, selection, deterministic)
            drawn.append(numbers)
        return torch.cat(drawn, dim=1)


def _draw_experts(distribution: ActionDistribution, selection: Tensor, deterministic: bool) -> tuple[Tensor, Tensor]:
    logits = distribution.logits
    used = distribution.seen.spread(logits > 0 if deterministic else torch.rand_like(logits) < logits.sigmoid())
    return (2.0 * used.float() - 1.0).flatten(1), used | distribution.stranded(used)


def _draw_bandwidth(distribution: ActionDistribution, selection: Tensor, deterministic: bool) -> tuple[Tensor, Tensor]:
    network = distribution.network
    mean, loaded = network.share_logits(distribution.seen, selection)
    noise = 0.0 if deterministic else network.log_std.exp() * torch.randn_like(mean)
    return torch.where(loaded, (mean + noise).clamp(LEAST_LOGIT, 1.0), -1.0), selection


_Draw = Callable[[ActionDistribution, Tensor, bool], tuple[Tensor, Tensor]]
"""(distribution, selection (N, J, E) so far, whether its mode) -> numbers of the part (N, size), selection then."""

_DRAWS: dict[type[ActionPart], _Draw] = {ExpertsPart: _draw_experts, BandwidthPart: _draw_bandwidth}
