"""Train a policy straight through the model: not by its reward, but by the gradient of what the reward is made of.

Reads top to bottom: settings, simulator, network, updates, saving. Every update draws its episodes and its noise from
(seed, number of the update), so that a killed run which is resumed ends with the weights of one that was not.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional
from torch.nn.utils import clip_grad_norm_

from train.arguments import Arguments
from train.checkpoint import load_checkpoint, save_checkpoint
from train.environment import architecture_of, make_env, start_from
from train.folder import card, open_run
from train.progress import goes_on, policy_path
from train.updates import LAST_LEARNING_RATE, learn, share_loss, terms_of, windows_without
from wdmoe_env.actions import DECISIONS, PARTS, BandwidthPart, ExpertsPart, settled_plan
from wdmoe_env.metrics import RewardFunction, reward_function
from wdmoe_env.policies.distribution import ActionDistribution
from wdmoe_env.policies.features import Features, ObservationTensors
from wdmoe_env.policies.network import TokenSharedNetwork
from wdmoe_env.policies.policy_file import save_policy
from wdmoe_env.policies.registry import named_rule
from wdmoe_env.relaxed import Draw, RelaxedEpisodes, observation_tensors, relaxed_episodes
from wdmoe_env.simulator import Simulator

Generators = list[np.random.Generator]


@dataclass(frozen=True, slots=True)
class Settings:
    """Of the optimisation, from ``hyperparameters.yml``.

    Attributes:
        batch_size: episodes in an update.
        learning_rate: Adam's at first; it falls linearly to a twentieth.
        max_grad_norm: to which gradients are clipped.
        divergence_share: part of the text's loss that is the divergence from the own routing's predictions, which is
            less noisy than the added NLL that makes up the rest.
        entropy_weight: worth of a nat of entropy per episode at first, so that no pair is given up before it is known;
            it falls to nothing.
        imitation_updates: so many updates imitate a rule before the gradient of the reward takes over.
        imitated_rule: its name.
    """

    batch_size: int
    learning_rate: float
    max_grad_norm: float
    divergence_share: float
    entropy_weight: float
    imitation_updates: int = 0
    imitated_rule: str = "fractional"


class Actor:
    """Draws selections from a network, and keeps what its losses need.

    Args:
        network: what is trained.
        noise: the source of the draws.

    Attributes:
        seen: features and selection of every block.
        entropy: mean over episodes of the entropy of all draws, nats.
    """

    def __init__(self, network: TokenSharedNetwork, noise: torch.Generator) -> None:
        self.network = network
        self.noise = noise
        self.seen: list[tuple[Features, Tensor]] = []
        self.entropy = torch.zeros(())

    def __call__(self, observation: ObservationTensors) -> Draw:
        """Draw for a block."""
        distribution = ActionDistribution(self.network, observation, "selection")
        seen, logits = distribution.seen, distribution.logits
        probs = seen.spread(logits.sigmoid())
        used = torch.rand(probs.shape, generator=self.noise) < probs
        # By the logits: the slope of p log p is infinite where a probability is 0 or 1 to the last bit.
        entropy = functional.softplus(logits) - logits * logits.sigmoid()
        self.entropy = self.entropy + seen.per_episode(entropy).mean()
        self.seen.append((seen, used | distribution.stranded(used)))
        return Draw(used, probs, seen.candidates)


class Trainer:
    """A network and all that its updates need.

    Args:
        arguments: of the run.
        settings: of the optimisation.
        simulator: of the training split.
        joint: whether the shares are learned too.

    Raises:
        ValueError: an unknown reward, domain or policy to start from.
    """

    def __init__(self, arguments: Arguments, settings: Settings, simulator: Simulator, joint: bool) -> None:
        self.settings = settings
        self.simulator = simulator
        self.joint = joint
        self.seed = arguments.seed
        self.reward = reward_function(arguments.reward, arguments.quality_weight)
        self.rule = named_rule(settings.imitated_rule)
        self.windows = windows_without(simulator, arguments.without_domains)
        torch.manual_seed(arguments.seed)
        self.network = TokenSharedNetwork(architecture_of(arguments, simulator.sizes))
        start_from(arguments, self.network)
        self.optimizer = torch.optim.Adam(self.network.parameters(), lr=settings.learning_rate)

    def update(self, number: int, progress: float) -> dict[str, float]:
        """Take one step down the gradient.

        Args:
            number: of the update, from which its episodes and draws follow.
            progress: part of the run that is over.

        Returns:
            Means over the episodes, by name.
        """
        size, draws = self.settings.batch_size, np.random.default_rng([self.seed, number])
        generators = [np.random.default_rng([self.seed, number, episode]) for episode in range(size)]
        windows = self.windows[draws.integers(len(self.windows), size=size)]
        noise = torch.Generator().manual_seed(int(draws.integers(2**62)))
        if number < self.settings.imitation_updates:
            loss, values = self._imitation(generators, windows)
        else:
            entropy_weight = self.settings.entropy_weight * (1.0 - progress)
            loss, values = self._gradient(generators, windows, noise, entropy_weight)
        for group in self.optimizer.param_groups:
            group["lr"] = self.settings.learning_rate * max(LAST_LEARNING_RATE, 1.0 - progress)
        self.optimizer.zero_grad()
        torch.autograd.backward(loss)
        clip_grad_norm_(self.network.parameters(), self.settings.max_grad_norm)
        self.optimizer.step()
        return {name: value.item() for name, value in values.items()}

    def _imitation(self, generators: Generators, windows: NDArray[np.int64]) -> tuple[Tensor, dict[str, Tensor]]:
        """Cross-entropy with a rule's selection on the rule's own episodes."""
        rollout, losses = self.simulator.start(generators, windows), []
        while not rollout.done:
            selection, shares = self.rule(rollout.block)
            seen, logits = self.network.look(observation_tensors(rollout.block))
            target = seen.at(torch.from_numpy(selection)).float()
            losses.append(functional.binary_cross_entropy_with_logits(logits, target))
            decided = {ExpertsPart.name: selection, BandwidthPart.name: shares}
            rollout.step(settled_plan(rollout.block, decided, self.simulator.config.min_share))
        loss = torch.stack(losses).mean()
        return loss, {"imitation_loss": loss}

    def _gradient(
        self, generators: Generators, windows: NDArray[np.int64], noise: torch.Generator, entropy_weight: float
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Minus the mean return of the episodes that the network's draws lead to."""
        actor = Actor(self.network, noise)
        episodes = relaxed_episodes(self.simulator, generators, actor, windows)
        returns = episode_returns(episodes, self.reward, self.settings.divergence_share).mean()
        missed = self._missed_shares(actor, episodes) if self.joint else torch.zeros(())
        loss = missed - returns - entropy_weight * actor.entropy
        latency, vanilla = (
            sum(getattr(block, name) for block in episodes.blocks) for name in ("latency_ms", "vanilla_latency_ms")
        )
        values = {
            "return": returns,
            "latency_ratio": (latency / vanilla).mean(),
            "added_nll": episodes.added_nll.mean(),
            "divergence": episodes.divergence.mean(),
            "entropy": actor.entropy,
        }
        return loss, values | ({"share_loss": missed} if self.joint else {})

    def save(self, path: Path, timesteps: int) -> None:
        """Write a checkpoint."""
        save_checkpoint(path, self.network, {"optimizer": self.optimizer}, timesteps)

    def load(self, path: Path) -> int:
        """Go on from a checkpoint; returns its environment steps."""
        return load_checkpoint(path, self.network, {"optimizer": self.optimizer})

    def _missed_shares(self, actor: Actor, episodes: RelaxedEpisodes) -> Tensor:
        """Mean over the blocks of the loss in the shares."""
        losses = [
            share_loss(self.network, features, selection, block.shares)
            for (features, selection), block in zip(actor.seen, episodes.blocks, strict=True)
        ]
        return torch.stack(losses).mean()


def episode_returns(episodes: RelaxedEpisodes, reward: RewardFunction, divergence_share: float) -> Tensor:
    """Returns (N,) of the environment's reward, the text's loss being partly its divergence."""
    lost = divergence_share * episodes.divergence + (1.0 - divergence_share) * episodes.added_nll
    returns = torch.zeros_like(lost)
    for index, block in enumerate(episodes.blocks):
        last = index + 1 == len(episodes.blocks)
        returns = returns + reward(terms_of(block, lost if last else torch.zeros_like(lost)))
    return returns


def train_straight_through(arguments: Arguments, settings: dict[str, Any]) -> Path:
    """Train, and save the policy.

    Args:
        arguments: of the run.
        settings: fields of ``Settings``.

    Returns:
        Path of the policy's weights; the JSON lies beside it.

    Raises:
        ValueError, TypeError, OSError: see ``train.agent.train``.
    """
    chosen, path = Settings(**settings), policy_path(arguments)
    env = make_env(arguments, chosen.batch_size).unwrapped
    decision = env.config.decision
    trainer = Trainer(arguments, chosen, env.simulator, joint=DECISIONS[decision] == PARTS)
    checkpoint = open_run(arguments)
    steps = chosen.batch_size * env.simulator.sizes.num_blocks
    done = trainer.load(checkpoint) // steps if arguments.resume else 0
    if goes_on(arguments, settings, done * steps, update_steps=steps):
        results = learn(trainer, arguments, checkpoint, done, steps)
        updates = max(done, -(-arguments.timesteps // steps))
        save_policy(
            path, trainer.network, decision, card(arguments, settings, updates * steps, {"last_update": results})
        )
    env.close()
    return path
