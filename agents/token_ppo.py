"""Proximal policy optimisation whose action is that of a token: ratios, clips and advantages are each token's own.

One ratio for all draws of a block is a product of dozens of factors: nearly every sample leaves its clip, and nothing
is learned from it. The draws of a token are two or three.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from agents.credit import BASELINES, costs_to_go, foretold, text_returns
from agents.experience import Choice, Experience, token_log_probs
from wdmoe_env.policies.network import TokenSharedNetwork


@dataclass(frozen=True, slots=True)
class Objective:
    """What the learner climbs.

    Attributes:
        quality_weight: cost of a nat of text loss, mean over the tokens of a window.
        rollouts: K of a window.
        clip_range: how far a ratio may leave 1 before its sample is worth nothing more.
        clip: "token", or "block" for one ratio of all tokens of a block, as stock PPO has it.
        credit: "token" tells a token its own and later losses, "episode" the whole return.
        decay: weight of the next token's loss in a token's credit; of the one after it the square, and so on.
        baseline: a name of ``agents.credit.BASELINES``.
        pair_prices: whether a block's reward is followed by its slope in every pair; else it joins the returns.
        divergence_share: part of the text's loss that is the divergence; the rest is the added NLL.
        critic: "deviation" foretells a loss, block by block, from how far the hidden state has come from the own
            routing's, which the learner sees and the policy does not; "none" waits for the loss itself.
        trace: lambda of the critic's advantages: 1 trusts the loss at the end alone, 0 the critic alone.
    """

    quality_weight: float
    rollouts: int
    clip_range: float = 0.2
    clip: str = "token"
    credit: str = "token"
    decay: float = 0.8
    baseline: str = "leave-one-out"
    pair_prices: bool = True
    divergence_share: float = 1.0
    critic: str = "deviation"
    trace: float = 0.8

    def __post_init__(self) -> None:
        for name, known in (
            ("clip", ("token", "block")),
            ("credit", ("token", "episode")),
            ("baseline", tuple(BASELINES)),
            ("critic", ("deviation", "none")),
            ("pair_prices", (True, False)),
        ):
            if getattr(self, name) not in known:
                listed = ", ".join(map(str, known))
                raise ValueError(f"{name} must be one of {listed}, got {getattr(self, name)!r}")
        if self.rollouts < 2:
            raise ValueError(f"rollouts must be at least 2, each a baseline of the others, got {self.rollouts}")
        if self.pair_prices and self.baseline == "group-relative":
            raise ValueError(
                "baseline group-relative goes with pair_prices=false: it divides the whole return by its spread"
            )

    def advantages(self, experience: Experience) -> list[Tensor]:
        """Advantages (N, J) of the tokens' draws in every block."""
        share = self.divergence_share
        costs = share * experience.divergence + (1.0 - share) * experience.added_nll
        decay = self.decay if self.credit == "token" else None
        texts = [
            text_returns(of_block, experience.mask, self.quality_weight, decay)
            for of_block in self._costs_of_blocks(experience, costs)
        ]
        if not self.pair_prices:
            rewards = [choice.reward for choice in experience.choices]
            if self.credit == "episode":
                rewards = [torch.stack(rewards).sum(0)] * len(rewards)
            texts = [text + reward[:, None] * experience.mask for text, reward in zip(texts, rewards, strict=True)]
        return [self._compared(text) for text in texts]

    def _costs_of_blocks(self, experience: Experience, costs: Tensor) -> list[Tensor]:
        """Costs (N, J) that the draws of each block are told of."""
        deviations = [choice.deviation for choice in experience.choices]
        if self.critic == "none":
            return [costs] * len(deviations)
        return costs_to_go([foretold(one, costs, self.rollouts) for one in deviations], costs, self.trace)

    def _compared(self, returns: Tensor) -> Tensor:
        """Advantages (N, J) of returns (N, J): each rollout against the others of its window."""
        grouped = returns.view(-1, self.rollouts, returns.shape[-1])
        return BASELINES[self.baseline](grouped).view_as(returns)

    def value(self, choice: Choice, logits: Tensor, advantages: Tensor) -> Tensor:
        """Worth of new logits (M,) for the draws of a block, mean over rollouts; what is maximised.

        Args:
            choice: what was drawn, and from what.
            logits: (M,) log-odds of each pair now.
            advantages: (N, J).
        """
        log_ratio = token_log_probs(choice.seen, logits, choice.drawn) - choice.log_prob
        if self.clip == "block":
            whole = log_ratio.view_as(advantages).sum(-1, keepdim=True).expand_as(advantages).flatten()
            log_ratio = log_ratio - log_ratio.detach() + whole.detach()  # the block's value, the token's slope
        worth = clipped(log_ratio.exp(), advantages.flatten(), self.clip_range).sum()
        if self.pair_prices:
            worth = worth + (choice.slope * logits.sigmoid()).sum()
        return worth / len(advantages)


def clipped(ratio: Tensor, advantage: Tensor, clip_range: float) -> Tensor:
    """PPO's pessimistic surrogate (Schulman et al., arXiv 1707.06347), of each sample."""
    return torch.minimum(ratio * advantage, ratio.clamp(1.0 - clip_range, 1.0 + clip_range) * advantage)


def entropy(logits: Tensor) -> Tensor:
    """Entropy (M,) of draws with such log-odds, nats; by the logits, since the slope of p log p is infinite at 0."""
    return functional.softplus(logits) - logits * logits.sigmoid()


def part_of(experience: Experience, network: TokenSharedNetwork, block: int) -> tuple[Choice, Tensor]:
    """A block of the experience, and the network's logits (M,) for it now, with gradients."""
    choice = experience.choices[block]
    read = network.reader(choice.seen.observation, choice.seen.candidates) if network.reader is not None else None
    return choice, network.expert_logits(choice.seen, read)


def worth(
    objective: Objective,
    network: TokenSharedNetwork,
    experience: Experience,
    advantages: Sequence[Tensor],
    entropy_weight: float,
) -> Tensor:
    """The objective summed over the blocks, with the entropy of the draws."""
    total = torch.zeros(())
    for block, of_block in enumerate(advantages):
        choice, logits = part_of(experience, network, block)
        total = total + objective.value(choice, logits, of_block)
        total = total + entropy_weight * entropy(logits).sum() / len(of_block)
    return total
