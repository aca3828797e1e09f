"""Train a policy by its reward alone: PPO with ratios, clips and advantages of each token.

Reads top to bottom: settings, simulator, network, updates, saving. Every update draws its windows, channels and noise
from (seed, number of the update), so that a killed run which is resumed ends with the weights of one that was not.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_

from agents.experience import BlockReward, Experience, gather
from agents.token_ppo import Objective, entropy, part_of
from train.arguments import Arguments
from train.checkpoint import load_checkpoint, save_checkpoint
from train.environment import architecture_of, make_env, start_from
from train.folder import card, open_run
from train.progress import goes_on, policy_path
from train.updates import LAST_LEARNING_RATE, learn, share_loss, terms_of, windows_without
from wdmoe_env.actions import DECISIONS, PARTS
from wdmoe_env.metrics import reward_function
from wdmoe_env.policies.network import TokenSharedNetwork
from wdmoe_env.policies.policy_file import save_policy
from wdmoe_env.relaxed import RelaxedBlock
from wdmoe_env.simulator import Simulator

QUALITY_REWARDS = ("latency_quality", "latency_divergence")
"""Rewards that pay for the text."""


@dataclass(frozen=True, slots=True)
class Settings:
    """Of the optimisation, from ``hyperparameters.yml``; what is not here is of ``agents.token_ppo.Objective``.

    Attributes:
        windows: W of an update.
        rollouts: K of each window, on one channel.
        epochs: how often an update goes over its experience.
        learning_rate: Adam's at first; it falls linearly to a twentieth.
        max_grad_norm: to which gradients are clipped.
        entropy_weight: worth of a nat of entropy per episode at first; it falls to nothing.
    """

    windows: int = 8
    rollouts: int = 4
    epochs: int = 3
    learning_rate: float = 2e-3
    max_grad_norm: float = 1.0
    entropy_weight: float = 2e-3


class Trainer:
    """A network and all that its updates need.

    Args:
        arguments: of the run.
        settings: of the algorithm.
        simulator: of the training split.
        joint: whether the shares are learned too.

    Raises:
        ValueError, TypeError: an unknown reward, domain, setting or policy to start from.
    """

    def __init__(self, arguments: Arguments, settings: dict[str, Any], simulator: Simulator, joint: bool) -> None:
        own = {field.name for field in fields(Settings)}
        self.settings = Settings(**{name: value for name, value in settings.items() if name in own})
        quality_weight = arguments.quality_weight if arguments.reward in QUALITY_REWARDS else 0.0
        others = {name: value for name, value in settings.items() if name not in own}
        self.objective = Objective(quality_weight=quality_weight, rollouts=self.settings.rollouts, **others)
        self.simulator, self.joint, self.seed = simulator, joint, arguments.seed
        self.reward = block_reward(arguments)
        self.windows = windows_without(simulator, arguments.without_domains)
        torch.manual_seed(arguments.seed)
        self.network = TokenSharedNetwork(architecture_of(arguments, simulator.sizes))
        start_from(arguments, self.network)
        self.optimizer = torch.optim.Adam(self.network.parameters(), lr=self.settings.learning_rate)

    def update(self, number: int, progress: float) -> dict[str, float]:
        """Gather experience, and go over it a few times.

        Args:
            number: of the update, from which its windows, channels and draws follow.
            progress: part of the run that is over.

        Returns:
            Means over the episodes, by name.
        """
        experience = self.experience(number)
        advantages = self.objective.advantages(experience)
        for group in self.optimizer.param_groups:
            group["lr"] = self.settings.learning_rate * max(LAST_LEARNING_RATE, 1.0 - progress)
        for _ in range(self.settings.epochs):
            self.optimizer.zero_grad()
            figures = self._climb(experience, advantages, self.settings.entropy_weight * (1.0 - progress))
            clip_grad_norm_(self.network.parameters(), self.settings.max_grad_norm)
            self.optimizer.step()
        return self._figures(experience) | figures

    def experience(self, number: int) -> Experience:
        """That of an update."""
        settings, draws = self.settings, np.random.default_rng([self.seed, number])
        windows = self.windows[draws.integers(len(self.windows), size=settings.windows)]
        noise = torch.Generator().manual_seed(int(draws.integers(2**62)))
        generators = [partial(np.random.default_rng, [self.seed, number, one]) for one in range(settings.windows)]
        return gather(self.network, self.simulator, generators, windows, settings.rollouts, self.reward, noise)

    def _climb(self, experience: Experience, advantages: list[Tensor], entropy_weight: float) -> dict[str, float]:
        """Add the gradients of the objective, block by block, for the memory of one is enough."""
        of_shares = entropies = 0.0
        for block, of_block in enumerate(advantages):
            choice, logits = part_of(experience, self.network, block)
            randomness = entropy(logits).sum() / len(of_block)
            loss = -self.objective.value(choice, logits, of_block) - entropy_weight * randomness
            if self.joint:
                missed = share_loss(self.network, choice.seen, choice.selection, choice.shares)
                loss, of_shares = loss + missed / len(advantages), of_shares + missed.item() / len(advantages)
            torch.autograd.backward(loss)
            entropies += randomness.item()
        return {"entropy": entropies} | ({"share_loss": of_shares} if self.joint else {})

    def _figures(self, experience: Experience) -> dict[str, float]:
        tokens = experience.mask.sum(-1)
        lost = {name: (getattr(experience, name).sum(-1) / tokens).mean() for name in ("added_nll", "divergence")}
        reward, latency, vanilla = (
            sum(getattr(choice, name) for choice in experience.choices)
            for name in ("reward", "latency_ms", "vanilla_latency_ms")
        )
        share = self.objective.divergence_share
        text = share * lost["divergence"] + (1.0 - share) * lost["added_nll"]
        values: dict[str, Any] = {
            "return": reward.mean() - self.objective.quality_weight * text,
            "latency_ratio": (latency / vanilla).mean(),
            **lost,
        }
        return {name: value.item() for name, value in values.items()}

    def save(self, path: Path, timesteps: int) -> None:
        """Write a checkpoint."""
        save_checkpoint(path, self.network, {"optimizer": self.optimizer}, timesteps)

    def load(self, path: Path) -> int:
        """Go on from a checkpoint; returns its environment steps."""
        return load_checkpoint(path, self.network, {"optimizer": self.optimizer})


def block_reward(arguments: Arguments) -> BlockReward:
    """The environment's reward of a block before its last, where no text is lost yet.

    Raises:
        ValueError: an unknown reward.
    """
    function = reward_function(arguments.reward, arguments.quality_weight)

    def reward(block: RelaxedBlock) -> Tensor:
        rewards: Any = function(terms_of(block, torch.zeros_like(block.latency_ms)))
        return rewards

    return reward


def train_ppo(arguments: Arguments, settings: dict[str, Any]) -> Path:
    """Train, and save the policy.

    Args:
        arguments: of the run.
        settings: fields of ``Settings`` and of ``agents.token_ppo.Objective``.

    Returns:
        Path of the policy's weights; the JSON lies beside it.

    Raises:
        ValueError, TypeError, OSError: see ``train.agent.train``.
    """
    env = make_env(arguments, 1).unwrapped
    decision, path = env.config.decision, policy_path(arguments)
    trainer = Trainer(arguments, settings, env.simulator, joint=DECISIONS[decision] == PARTS)
    checkpoint = open_run(arguments)
    steps = trainer.settings.windows * trainer.settings.rollouts * env.simulator.sizes.num_blocks
    done = trainer.load(checkpoint) // steps if arguments.resume else 0
    if goes_on(arguments, settings, done * steps, update_steps=steps):
        results = learn(trainer, arguments, checkpoint, done, steps)
        updates = max(done, -(-arguments.timesteps // steps))
        save_policy(
            path, trainer.network, decision, card(arguments, settings, updates * steps, {"last_update": results})
        )
    env.close()
    return path
