"""Proximal policy optimisation whose action is that of a token: ratios, clips and advantages are each token's own.

One ratio for all draws of a block is a product of dozens of factors: nearly every sample leaves its clip, and nothing
is learned from it. The draws of a token are two or three.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from agents.credit import BASELINES, costs_to_go, foretold, text_returns
from agents.experience import Experience, Sample, token_log_probs


@dataclass(frozen=True, slots=True)
class Objective:
    """What the learner climbs.

    Attributes:
        quality_weight: cost of a nat of text loss, mean over the tokens of a window.
        rollouts: K of a window.
        clip_range: how far a ratio may leave 1 before its sample is worth nothing more.
        clip: "token", or "block" for one ratio of all tokens of a block, as stock PPO has it.
        price_clip: how far a pair's probability may move before its price is worth nothing more; 1 is no bound. A price
            holds near the policy that drew, so without a bound only few passes over an update are safe.
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
    price_clip: float = 1.0
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
        if not 0.0 < self.price_clip <= 1.0:
            raise ValueError(f"price_clip must be above 0 and at most 1, got {self.price_clip}")
        if self.rollouts < 2:
            raise ValueError(f"rollouts must be at least 2, each a baseline of the others, got {self.rollouts}")
        if self.pair_prices and self.baseline == "group-relative":
            raise ValueError(
                "baseline group-relative goes with pair_prices=false: it divides the whole return by its spread"
            )

    def advantages(self, experience: Experience) -> list[Tensor]:
        """Advantages of the tokens' draws, for each of the I blocks (T, L)."""
        share = self.divergence_share
        costs = share * experience.divergence + (1.0 - share) * experience.added_nll
        decay = self.decay if self.credit == "token" else None
        texts = [
            text_returns(of_block, experience.mask, self.quality_weight, decay)
            for of_block in self._costs_of_blocks(experience, costs)
        ]
        if not self.pair_prices:
            rewards = list(experience.rewards)
            if self.credit == "episode":
                rewards = [torch.stack(rewards).sum(0)] * len(rewards)
            texts = [text + reward[:, None] * experience.mask for text, reward in zip(texts, rewards, strict=True)]
        return [self._compared(text) for text in texts]

    def _costs_of_blocks(self, experience: Experience, costs: Tensor) -> list[Tensor]:
        """Costs (T, L) that the draws of each block are told of."""
        if self.critic == "none":
            return [costs] * len(experience.deviations)
        before = [foretold(one, costs, self.rollouts) for one in experience.deviations]
        return costs_to_go(before, costs, self.trace)

    def _compared(self, returns: Tensor) -> Tensor:
        """Advantages (T, L) of returns (T, L): each rollout against the others of its text."""
        grouped = returns.view(-1, self.rollouts, returns.shape[-1])
        return BASELINES[self.baseline](grouped).view_as(returns)

    def value(self, sample: Sample, logits: Tensor, advantages: Tensor) -> Tensor:
        """Worth of new logits (M,) for the draws of a block up to a constant, a sum over rollouts; it is maximised.

        Args:
            sample: what was drawn, and from what.
            logits: (M,) log-odds of each pair now.
            advantages: (T, L) of the block.
        """
        log_ratio = token_log_probs(sample.inputs, logits, sample.drawn) - sample.log_prob
        if self.clip == "block":
            whole = log_ratio.view(-1, sample.inputs.num_rows).sum(-1, keepdim=True)
            whole = whole.expand(-1, sample.inputs.num_rows).flatten()
            log_ratio = log_ratio - log_ratio.detach() + whole.detach()  # the block's value, the token's slope
        worth = clipped(log_ratio.exp(), sample.of_tokens(advantages), self.clip_range).sum()
        if self.pair_prices:
            moved = 1.0 + logits.sigmoid() - sample.prob  # from 1 on, as a ratio
            worth = worth + clipped(moved, sample.slope, self.price_clip).sum()
        return worth


def clipped(ratio: Tensor, advantage: Tensor, clip_range: float) -> Tensor:
    """PPO's pessimistic surrogate (Schulman et al., arXiv 1707.06347), of each sample; of what is 1 before it moves."""
    return torch.minimum(ratio * advantage, ratio.clamp(1.0 - clip_range, 1.0 + clip_range) * advantage)


def entropy(logits: Tensor) -> Tensor:
    """Entropy (M,) of draws with such log-odds, nats; by the logits, since the slope of p log p is infinite at 0."""
    return functional.softplus(logits) - logits * logits.sigmoid()
