"""Train a policy by its reward alone: PPO with ratios, clips and advantages of each token.

Reads top to bottom: settings, network, updates, saving. Every update draws its texts, channels and noise from (seed,
number of the update), so that a killed run which is resumed ends with the weights of one that was not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_

from agents.cells import DELAYS
from agents.experience import Experience, Sample
from agents.token_ppo import Objective, entropy
from train.arguments import Arguments
from train.checkpoint import load_checkpoint, save_checkpoint
from train.environment import architecture_of, make_env, start_from
from train.folder import card, open_run
from train.progress import goes_on, policy_path
from train.sources import source_of
from train.updates import LAST_LEARNING_RATE, LOG_EVERY, learn, share_loss
from wdmoe_env.actions import DECISIONS, PARTS
from wdmoe_env.checks import check_integer
from wdmoe_env.policies.network import TokenSharedNetwork
from wdmoe_env.policies.policy_file import save_policy
from wdmoe_env.relaxed import PRICES
from wdmoe_env.serving.simulator import ServingSimulator
from wdmoe_env.simulator import Simulator

QUALITY_REWARDS = ("latency_quality", "latency_divergence", "serving")
"""Rewards that pay for the text."""


@dataclass(frozen=True, slots=True)
class Settings:
    """Of the optimisation, from ``hyperparameters.yml``; what is not here is of ``agents.token_ppo.Objective``.

    Attributes:
        windows: W of an update; cells where requests are served.
        rollouts: K of each window, on one channel.
        epochs: how often an update goes over its experience.
        minibatches: steps of an epoch, each on some passes.
        learning_rate: Adam's at first; it falls linearly to a twentieth.
        max_grad_norm: to which gradients are clipped.
        entropy_weight: worth of a nat of entropy per text at first; it falls to nothing.
        delay: of requests that are served: "exact" takes those that a block delayed, "expected" those that its queue
            foretells.
        prices: what a pair is said to cost: "slope" is the slope of the block latency at the bandwidth optimum,
            "difference" what the pair alone makes the block longer by.
    """

    windows: int = 8
    rollouts: int = 4
    epochs: int = 3
    minibatches: int = 1
    learning_rate: float = 2e-3
    max_grad_norm: float = 1.0
    entropy_weight: float = 2e-3
    delay: str = DELAYS[0]
    prices: str = PRICES[0]

    def __post_init__(self) -> None:
        """Check what no library will."""
        for name, known in (("delay", DELAYS), ("prices", PRICES)):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}, got {getattr(self, name)!r}")
        check_integer("minibatches", self.minibatches, at_least=1)


class Trainer:
    """A network and all that its updates need.

    Args:
        arguments: of the run.
        settings: of the algorithm.
        simulator: of the training split.
        joint: whether the shares are learned too; where requests are served they are solved.

    Attributes:
        update_steps: environment steps of an update; requests where these are served.

    Raises:
        ValueError, TypeError: an unknown reward, domain, setting or policy to start from.
    """

    def __init__(
        self, arguments: Arguments, settings: dict[str, Any], simulator: Simulator | ServingSimulator, joint: bool
    ) -> None:
        own = {field.name for field in fields(Settings)}
        self.settings = Settings(**{name: value for name, value in settings.items() if name in own})
        quality_weight = arguments.quality_weight if arguments.reward in QUALITY_REWARDS else 0.0
        others = {name: value for name, value in settings.items() if name not in own}
        self.objective = Objective(quality_weight=quality_weight, rollouts=self.settings.rollouts, **others)
        if arguments.serves and not self.objective.pair_prices:
            raise ValueError("pair_prices=false is for windows alone: a pass of requests serves many texts at once")
        self.joint, self.seed = joint and isinstance(simulator, Simulator), arguments.seed
        self.source = source_of(arguments, self.settings, simulator)
        self.update_steps = self.settings.windows * self.settings.rollouts * self.source.steps
        torch.manual_seed(arguments.seed)
        self.network = TokenSharedNetwork(architecture_of(arguments, simulator.sizes))
        start_from(arguments, self.network)
        self.optimizer = torch.optim.Adam(self.network.parameters(), lr=self.settings.learning_rate)

    def update(self, number: int, progress: float) -> dict[str, float]:
        """Gather experience, and go over it a few times.

        Args:
            number: of the update, from which its texts, channels and draws follow.
            progress: part of the run that is over.

        Returns:
            Means over the texts, by name.
        """
        experience = self.experience(number)
        advantages = self.objective.advantages(experience)
        for group in self.optimizer.param_groups:
            group["lr"] = self.settings.learning_rate * max(LAST_LEARNING_RATE, 1.0 - progress)
        entropy_weight, found = self.settings.entropy_weight * (1.0 - progress), []
        parts = minibatches(experience.samples, self.settings.minibatches, np.random.default_rng([self.seed, number]))
        for _ in range(self.settings.epochs):
            for part in parts:
                self.optimizer.zero_grad()
                count = len(experience.mask) / len(parts)
                found.append(self._climb(experience, part, advantages, count, entropy_weight))
                clip_grad_norm_(self.network.parameters(), self.settings.max_grad_norm)
                self.optimizer.step()
        last = found[-len(parts) :]
        return self._figures(experience) | {name: sum(one[name] for one in last) / len(last) for name in last[0]}

    def experience(self, number: int) -> Experience:
        """That of an update."""
        settings, draws = self.settings, np.random.default_rng([self.seed, number])
        windows = self.source.windows(draws, settings.windows)
        noise = torch.Generator().manual_seed(int(draws.integers(2**62)))
        generators = [partial(np.random.default_rng, [self.seed, number, one]) for one in range(settings.windows)]
        return self.source.gather(self.network, generators, windows, noise)

    def _climb(
        self,
        experience: Experience,
        samples: Sequence[Sample],
        advantages: list[Tensor],
        count: float,
        entropy_weight: float,
    ) -> dict[str, float]:
        """Add the gradients of the objective per text, block by block, for the memory of one is enough."""
        of_shares = entropies = 0.0
        for sample in samples:
            logits = self.network.logits_of(sample.inputs)
            randomness = entropy(logits).sum() / count
            worth = self.objective.value(sample, logits, advantages[sample.block]) / count
            loss = -worth - entropy_weight * randomness
            if self.joint:
                choice = experience.choices[sample.block]
                missed = share_loss(self.network, choice.seen, choice.selection, choice.shares)
                loss, of_shares = loss + missed / len(advantages), of_shares + missed.item() / len(advantages)
            torch.autograd.backward(loss)
            entropies += randomness.item()
        return {"entropy": entropies} | ({"share_loss": of_shares} if self.joint else {})

    def _figures(self, experience: Experience) -> dict[str, float]:
        tokens = experience.mask.sum(-1)
        lost = {name: (getattr(experience, name).sum(-1) / tokens).mean() for name in ("added_nll", "divergence")}
        share = self.objective.divergence_share
        text: Any = share * lost["divergence"] + (1.0 - share) * lost["added_nll"]
        measured = {name: value for name, value in experience.measured.items() if name != "reward"}
        reached = experience.measured["reward"] - self.objective.quality_weight * text.item()
        return {"return": reached, **measured, **{name: value.item() for name, value in lost.items()}}

    def save(self, path: Path, timesteps: int) -> None:
        """Write a checkpoint."""
        save_checkpoint(path, self.network, {"optimizer": self.optimizer}, timesteps)

    def load(self, path: Path) -> int:
        """Go on from a checkpoint; returns its environment steps."""
        return load_checkpoint(path, self.network, {"optimizer": self.optimizer})


def minibatches(samples: Sequence[Sample], count: int, generator: np.random.Generator) -> list[list[Sample]]:
    """Parts of the samples, each with all blocks of some passes, the passes of a block joined.

    Args:
        samples: the blocks of each pass together.
        count: parts, at most as many as passes.
        generator: shuffles the passes.
    """
    blocks = 1 + max(sample.block for sample in samples)
    passes = [samples[start : start + blocks] for start in range(0, len(samples), blocks)]
    order = generator.permutation(len(passes))
    parts = np.array_split(order, min(count, len(passes)))
    return [[Sample.joined([passes[n][block] for n in part]) for block in range(blocks)] for part in parts]


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
    checkpoint, steps = open_run(arguments), trainer.update_steps
    done = trainer.load(checkpoint) // steps if arguments.resume else 0
    if goes_on(arguments, settings, done * steps, update_steps=steps):
        results = learn(trainer, arguments, checkpoint, done, steps, 1 if arguments.serves else LOG_EVERY)
        updates = max(done, -(-arguments.timesteps // steps))
        save_policy(
            path,
            trainer.network,
            decision if trainer.joint else "selection",
            card(arguments, settings, updates * steps, {"last_update": results}),
        )
    env.close()
    return path
