"""Log-probability and entropy of the network's actions, which policy-gradient algorithms need."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.distributions import Bernoulli, Normal

from wdmoe_env.actions import ActionPart, BandwidthPart, ExpertsPart
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
    log_prob = entropy = distribution.logits.new_zeros(len(actions))
    selection, rest = distribution.own_routing, actions
    for part in distribution.parts:
        of_part, selection, rest = _EVALUATIONS[part](distribution, selection, rest)
        log_prob, entropy = log_prob + of_part.log_prob, entropy + of_part.entropy
    return Evaluated(log_prob, entropy)


def _evaluate_experts(
    distribution: ActionDistribution, selection: Tensor, actions: Tensor
) -> tuple[Evaluated, Tensor, Tensor]:
    seen, num_scores = distribution.seen, distribution.seen.candidates[0].numel()
    chosen = actions[:, :num_scores].view_as(seen.candidates) > 0
    bits: Any = Bernoulli(logits=distribution.logits, validate_args=False)
    log_prob = seen.per_episode(bits.log_prob(seen.at(chosen).float()))
    evaluated = Evaluated(log_prob, seen.per_episode(bits.entropy()))
    return evaluated, chosen | distribution.stranded(chosen), actions[:, num_scores:]


def _evaluate_bandwidth(
    distribution: ActionDistribution, selection: Tensor, actions: Tensor
) -> tuple[Evaluated, Tensor, Tensor]:
    mean, loaded = distribution.network.share_logits(distribution.seen, selection)
    shares: Any = Normal(mean, distribution.network.log_std.exp(), validate_args=False)
    logits, rest = actions[:, : mean.shape[1]], actions[:, mean.shape[1] :]
    log_prob, entropy = ((values * loaded).sum(1) for values in (shares.log_prob(logits), shares.entropy()))
    return Evaluated(log_prob, entropy), selection, rest


_Evaluation = Callable[[ActionDistribution, Tensor, Tensor], tuple[Evaluated, Tensor, Tensor]]
"""(distribution, selection (N, J, E) so far, numbers left) -> that of the part, selection then, numbers left then."""

_EVALUATIONS: dict[type[ActionPart], _Evaluation] = {
    ExpertsPart: _evaluate_experts,
    BandwidthPart: _evaluate_bandwidth,
}
