"""Train a policy with PPO from Stable-Baselines3 on the natively batched environment.

Reads top to bottom: environment, algorithm, learning, saving. A killed run goes on with ``--resume`` from its last
checkpoint, with new episodes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback

from agents.policy_file import save_policy
from agents.sb3_policy import TokenSharedPolicy
from train.arguments import Arguments
from train.checkpoint import load_checkpoint, save_checkpoint
from train.environment import architecture_of, make_env, start_from
from train.folder import card, curves, open_run
from wdmoe_env.integrations.sb3 import SB3VecEnv


class Checkpoints(BaseCallback):
    """Writes a checkpoint after the first rollout past every ``every`` environment steps."""

    def __init__(self, path: Path, every: int) -> None:
        super().__init__()
        self.path = path
        self.every = every
        self._saved_at = 0

    def _on_rollout_start(self) -> None:
        if self.num_timesteps - self._saved_at >= self.every:
            policy = self.model.policy
            save_checkpoint(self.path, policy, {"optimizer": policy.optimizer}, self.num_timesteps)
            self._saved_at = self.num_timesteps

    def _on_step(self) -> bool:
        return True


def train_ppo(arguments: Arguments, settings: dict[str, Any]) -> Path:
    """Train, and save the policy.

    Args:
        arguments: of the run.
        settings: PPO's, and ``num_envs``.

    Returns:
        Path of the policy's weights; the JSON lies beside it.

    Raises:
        ValueError, TypeError, OSError: see ``train.agent.train``.
    """
    ppo_settings = dict(settings)
    env = SB3VecEnv(make_env(arguments, ppo_settings.pop("num_envs")))
    decision = env.env.config.decision
    policy_settings = {"decision": decision, "architecture": architecture_of(arguments, env.env.simulator.sizes)}
    algorithm = PPO(TokenSharedPolicy, env, seed=arguments.seed, policy_kwargs=policy_settings, **ppo_settings)
    policy: Any = algorithm.policy
    start_from(arguments, policy.network)

    checkpoint = open_run(arguments, settings)
    if arguments.resume:
        algorithm.num_timesteps = load_checkpoint(checkpoint, policy, {"optimizer": policy.optimizer})
        env.seed(arguments.seed + algorithm.num_timesteps)
    log = curves(Path(arguments.out), algorithm.num_timesteps)
    algorithm.set_logger(log)
    try:
        algorithm.learn(
            max(arguments.timesteps - algorithm.num_timesteps, 0),
            callback=Checkpoints(checkpoint, arguments.checkpoint_every),
            reset_num_timesteps=not arguments.resume,
            progress_bar=arguments.progress,
        )
    finally:
        log.close()
    save_checkpoint(checkpoint, policy, {"optimizer": policy.optimizer}, algorithm.num_timesteps)
    returns = [episode["r"] for episode in algorithm.ep_info_buffer or ()]
    result = {"final_mean_return": np.mean(returns).item() if returns else None}
    path = Path(arguments.out, "policy.safetensors")
    save_policy(path, policy.network, decision, card(arguments, settings, algorithm.num_timesteps, result))
    env.close()
    return path
