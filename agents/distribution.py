"""Log-probability and entropy of the network's actions, which policy-gradient algorithms need."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.distributions import Bernoulli, Normal

from wdmoe_env.policies.distribution import ActionDistribution


@dataclass(frozen=True, slots=True)
class Evaluated:
    """What an algorithm asks of N actions.

    Attributes:
        log_prob: (N,) log-probability, nats.
        entropy: (N,) entropy of the distribution, nats.
    """

    log_prob: Tensor
    entropy: Tensor


def evaluate(distribution: ActionDistribution, actions: Tensor) -> Evaluated:
    """Log-probability and entropy of actions.

    Args:
        distribution: of the observations that the actions were taken on.
        actions: (N, A) of the flat ``box`` codec.
    """
    seen, network, decision = distribution.seen, distribution.network, distribution.decision
    num_scores = seen.candidates[0].numel() if decision != "bandwidth" else 0
    log_prob = distribution.logits.new_zeros(len(actions))
    entropy = distribution.logits.new_zeros(len(actions))
    selection = distribution.observation["routed"] > 0.5
    if decision != "bandwidth":
        selection = actions[:, :num_scores].view_as(seen.candidates) > 0
        bits: Any = Bernoulli(logits=distribution.logits, validate_args=False)
        log_prob = log_prob + seen.per_episode(bits.log_prob(seen.at(selection).float()))
        entropy = entropy + seen.per_episode(bits.entropy())
        selection = selection | distribution.stranded(selection)
    if decision != "selection":
        mean, loaded = network.share_logits(seen, selection)
        shares: Any = Normal(mean, network.log_std.exp(), validate_args=False)
        log_prob = log_prob + (shares.log_prob(actions[:, num_scores:]) * loaded).sum(1)
        entropy = entropy + (shares.entropy() * loaded).sum(1)
    return Evaluated(log_prob, entropy)
