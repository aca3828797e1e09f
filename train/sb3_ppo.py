"""Stock PPO from Stable-Baselines3, one ratio for a whole action, on the natively batched environment.

Reads top to bottom: environment, algorithm, learning, saving. A killed run goes on with ``--resume`` from its last
checkpoint, with new episodes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from stable_baselines3 import PPO

from agents.sb3_policy import TokenSharedPolicy
from train.arguments import Arguments
from train.checkpoint import load_checkpoint, save_checkpoint
from train.environment import architecture_of, make_env, start_from
from train.folder import card, open_run
from train.progress import goes_on, policy_path
from train.sb3 import learn
from wdmoe_env.integrations.sb3 import SB3VecEnv
from wdmoe_env.policies.policy_file import save_policy


def train_sb3_ppo(arguments: Arguments, settings: dict[str, Any]) -> Path:
    """Train, and save the policy.

    Args:
        arguments: of the run.
        settings: PPO's, and ``num_envs``.

    Returns:
        Path of the policy's weights; the JSON lies beside it.

    Raises:
        ValueError, TypeError, OSError: see ``train.agent.train``.
    """
    ppo_settings, path = dict(settings), policy_path(arguments)
    env = SB3VecEnv(make_env(arguments, ppo_settings.pop("num_envs")))
    decision = env.env.config.decision
    policy_settings = {"decision": decision, "architecture": architecture_of(arguments, env.env.simulator.sizes)}
    algorithm = PPO(TokenSharedPolicy, env, seed=arguments.seed, policy_kwargs=policy_settings, **ppo_settings)
    policy: Any = algorithm.policy
    start_from(arguments, policy.network)

    checkpoint, optimizers = open_run(arguments), {"optimizer": policy.optimizer}
    if arguments.resume:
        algorithm.num_timesteps = load_checkpoint(checkpoint, policy, optimizers)
        env.seed(arguments.seed + algorithm.num_timesteps)
    if goes_on(arguments, settings, algorithm.num_timesteps, update_steps=env.num_envs * algorithm.n_steps):
        result = learn(
            algorithm, arguments, lambda: save_checkpoint(checkpoint, policy, optimizers, algorithm.num_timesteps)
        )
        save_policy(path, policy.network, decision, card(arguments, settings, algorithm.num_timesteps, result))
    env.close()
    return path
