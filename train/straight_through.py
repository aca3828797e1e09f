"""Train a selection straight through the model: no reward, but the gradient of latency and text themselves."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_

from agents.distribution import ActionDistribution
from agents.features import Observation
from agents.network import TokenSharedNetwork
from wdmoe_env.relaxed import Draw, RelaxedEpisodes, relaxed_episodes
from wdmoe_env.simulator import Simulator


@dataclass(frozen=True, slots=True)
class Settings:
    batch_size: int = 32
    learning_rate: float = 2e-3
    max_grad_norm: float = 1.0
    divergence_share: float = 0.5


def draw(network: TokenSharedNetwork, observation: Observation, generator: torch.Generator) -> Draw:
    """A selection drawn from the network's probabilities."""
    distribution = ActionDistribution(network, observation, "selection")
    candidates = distribution.seen.candidates
    probs = distribution.logits.sigmoid() * candidates
    return Draw(torch.rand(probs.shape, generator=generator) < probs, probs, candidates)


def objective(episodes: RelaxedEpisodes, reward: str, quality_weight: float, settings: Settings) -> Tensor:
    if reward == "wlr":
        returns = sum(block.gate_weight_served / block.latency_ms for block in episodes.blocks)
    else:
        loss = settings.divergence_share * episodes.divergence + (1 - settings.divergence_share) * episodes.added_nll
        if reward == "ms":
            cost = sum(block.latency_ms for block in episodes.blocks) / 18.0
        else:
            cost = sum(block.latency_ms / block.vanilla_latency_ms for block in episodes.blocks)
        returns = -cost - quality_weight * loss
    return -torch.as_tensor(returns).mean()


def update(
    network: TokenSharedNetwork,
    optimizer: torch.optim.Optimizer,
    simulator: Simulator,
    settings: Settings,
    objective_of: tuple[str, float],
    seed: int,
    step: int,
) -> RelaxedEpisodes:
    """Take one step; returns its episodes."""
    generators = [np.random.default_rng([seed, step, episode]) for episode in range(settings.batch_size)]
    noise = torch.Generator().manual_seed(int(np.random.default_rng([seed, step]).integers(2**62)))
    episodes = relaxed_episodes(simulator, generators, lambda seen: draw(network, seen, noise))
    optimizer.zero_grad()
    loss = objective(episodes, *objective_of, settings)
    torch.autograd.backward(loss)
    clip_grad_norm_(network.parameters(), settings.max_grad_norm)
    optimizer.step()
    return episodes
