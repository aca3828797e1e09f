"""Stock SAC from Stable-Baselines3 on the flat Box action: a baseline that knows nothing of tokens and devices.

A run resumed with ``--resume`` has its networks and optimizers back, and fills its replay buffer anew.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from stable_baselines3 import SAC
from torch import nn

from train.arguments import Arguments
from train.checkpoint import load_checkpoint, save_checkpoint
from train.environment import make_env
from train.folder import card, open_run
from train.progress import goes_on, policy_path
from train.sb3 import learn
from wdmoe_env.integrations.sb3 import SB3VecEnv
from wdmoe_env.policies.policy_file import save_flat_policy


class Learned(nn.Module):
    """Everything that SAC learns: its networks, and the weight of its entropy."""

    def __init__(self, algorithm: SAC) -> None:
        super().__init__()
        self.networks = algorithm.policy
        self.register_buffer("log_ent_coef", algorithm.log_ent_coef)


def train_sac(arguments: Arguments, settings: dict[str, Any]) -> Path:
    """Train, and save the policy.

    Args:
        arguments: of the run.
        settings: SAC's, and ``num_envs``.

    Returns:
        Path of the policy's weights; the JSON lies beside it.

    Raises:
        ValueError, TypeError, OSError: see ``train.agent.train``.
    """
    if arguments.hidden_states or arguments.extra_experts or arguments.start or arguments.without_domains:
        raise ValueError(
            "algorithm sac takes none of hidden_states, extra_experts, start and without_domains: its action is the "
            "flat Box over all experts"
        )
    sac_settings = dict(settings)
    env = SB3VecEnv(make_env(arguments, sac_settings.pop("num_envs")))
    algorithm = SAC("MultiInputPolicy", env, seed=arguments.seed, **sac_settings)
    checkpoint, path = open_run(arguments), policy_path(arguments)
    if arguments.resume:
        load(checkpoint, algorithm)
        env.seed(arguments.seed + algorithm.num_timesteps)
    train_freq: Any = algorithm.train_freq
    if goes_on(arguments, settings, algorithm.num_timesteps, update_steps=env.num_envs * train_freq.frequency):
        result = learn(algorithm, arguments, lambda: save(checkpoint, algorithm))
        actor: Any = algorithm.policy.actor
        layers = [*(layer for layer in actor.latent_pi if isinstance(layer, nn.Linear)), actor.mu]
        save_flat_policy(path, layers, card(arguments, settings, algorithm.num_timesteps, result))
    env.close()
    return path


def load(path: Path, algorithm: Any) -> None:
    """Go on from a checkpoint; before SAC has gathered its first steps, it moves nothing."""
    algorithm.num_timesteps = load_checkpoint(
        path, Learned(algorithm), optimizers(algorithm), first_update=algorithm.learning_starts
    )


def save(path: Path, algorithm: Any) -> None:
    """Write a checkpoint."""
    save_checkpoint(path, Learned(algorithm), optimizers(algorithm), algorithm.num_timesteps)


def optimizers(algorithm: Any) -> dict[str, torch.optim.Optimizer]:
    """SAC's three, by name."""
    return {
        "actor": algorithm.actor.optimizer,
        "critic": algorithm.critic.optimizer,
        "entropy": algorithm.ent_coef_optimizer,
    }
