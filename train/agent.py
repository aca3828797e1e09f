"""Train a policy with PPO from Stable-Baselines3 on the natively batched environment.

Reads top to bottom: arguments, environment, algorithm, learning, saving. A killed run goes on with
``--resume`` from its last checkpoint, with new episodes.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import yaml
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Logger, make_output_format

from agents.files import write_whole
from agents.learned import save_policy
from agents.sb3_policy import TokenSharedPolicy
from train.checkpoint import load_checkpoint, save_checkpoint
from wdmoe_env.checks import check_integer
from wdmoe_env.integrations.sb3 import SB3VecEnv

# What a run may not change half-way.
SAME_ON_RESUME = ("env_id", "model", "reward", "quality_weight", "num_tokens")
HYPERPARAMETERS = Path(__file__).parent / "hyperparameters.yml"


@dataclass(frozen=True, slots=True)
class Arguments:
    """What to train; each field is a flag of ``python -m train``."""

    env_id: str = field(default="WDMoE-Selection-v0", metadata={"help": "environment id"})
    model: str = field(default="tiny", metadata={"help": "language model: tiny, micro, or a checkpoint folder"})
    reward: str = field(default="wlr", metadata={"help": "wlr, wlr_device or latency_quality"})
    quality_weight: float = field(default=10.0, metadata={"help": "cost of a nat of added NLL in latency_quality"})
    num_tokens: int = field(default=32, metadata={"help": "tokens of a window"})
    timesteps: int = field(default=100_000, metadata={"help": "environment steps (blocks), over all environments"})
    seed: int = field(default=0, metadata={"help": "seed of weights, episodes and actions"})
    out: str = field(default="runs/ppo", metadata={"help": "run folder: policy, curves, checkpoint, arguments"})
    checkpoint_every: int = field(default=10_240, metadata={"help": "environment steps between checkpoints"})
    resume: bool = field(default=False, metadata={"help": "go on from the checkpoint in the run folder"})
    progress: bool = field(default=True, metadata={"help": "show a progress bar"})


class Checkpoints(BaseCallback):
    """Writes a checkpoint after the first rollout past every ``every`` environment steps."""

    def __init__(self, path: Path, every: int) -> None:
        super().__init__()
        self.path = path
        self.every = every
        self._saved_at = 0

    def _on_rollout_start(self) -> None:
        if self.num_timesteps - self._saved_at >= self.every:
            save_checkpoint(self.path, self.model.policy, self.num_timesteps)
            self._saved_at = self.num_timesteps

    def _on_step(self) -> bool:
        return True


def train(arguments: Arguments) -> Path:
    """Train, and save the policy.

    Returns:
        Path of the policy's weights; the JSON lies beside it.

    Raises:
        ValueError, TypeError, OSError: an argument is wrong, the run folder is in use, or it holds no checkpoint of
            this run to resume.
    """
    settings = hyperparameters(arguments.env_id, arguments.reward)
    run = Path(arguments.out)
    checkpoint = run / "checkpoint.safetensors"
    check_integer("timesteps", arguments.timesteps, at_least=1)
    check_integer("checkpoint_every", arguments.checkpoint_every, at_least=1)
    check_integer("seed", arguments.seed, at_least=0)
    _check_folder(run, checkpoint, arguments)

    env = SB3VecEnv(make_env(arguments, settings["num_envs"]))
    ppo_settings = {name: value for name, value in settings.items() if name != "num_envs"}
    decision = env.env.config.decision
    algorithm = PPO(TokenSharedPolicy, env, seed=arguments.seed, policy_kwargs={"decision": decision}, **ppo_settings)
    if arguments.resume:
        algorithm.num_timesteps = load_checkpoint(checkpoint, algorithm.policy)
        env.seed(arguments.seed + algorithm.num_timesteps)
    write_whole(run / "arguments.json", (json.dumps(dataclasses.asdict(arguments), indent=2) + "\n").encode())

    curves = logger(run, algorithm.num_timesteps)
    algorithm.set_logger(curves)
    try:
        algorithm.learn(
            max(arguments.timesteps - algorithm.num_timesteps, 0),
            callback=Checkpoints(checkpoint, arguments.checkpoint_every),
            reset_num_timesteps=not arguments.resume,
            progress_bar=arguments.progress,
        )
    finally:
        curves.close()
    save_checkpoint(checkpoint, algorithm.policy, algorithm.num_timesteps)
    returns = [episode["r"] for episode in algorithm.ep_info_buffer or ()]
    card = {
        "family": "ppo",
        "env_id": arguments.env_id,
        "timesteps": algorithm.num_timesteps,
        "final_mean_return": np.mean(returns).item() if returns else None,
        "arguments": dataclasses.asdict(arguments),
        "hyperparameters": settings,
    }
    network: Any = algorithm.policy.network
    save_policy(run / "policy.safetensors", network, decision, card)
    env.close()
    return run / "policy.safetensors"


def logger(run: Path, timesteps: int) -> Logger:
    """Curves as CSV and for TensorBoard; those of a resumed run lie beside the earlier ones."""
    suffix = f"-{timesteps}" if timesteps else ""
    return Logger(str(run), [make_output_format(name, str(run), suffix) for name in ("csv", "tensorboard")])


def make_env(arguments: Arguments, num_envs: int) -> Any:
    """The batched environment over the training split."""
    return gym.make_vec(
        f"wdmoe_env:{arguments.env_id}",
        num_envs=num_envs,
        autoreset_mode="SAME_STEP",
        model=arguments.model,
        num_tokens=arguments.num_tokens,
        reward=arguments.reward,
        quality_weight=arguments.quality_weight,
        split="train",
    )


def hyperparameters(env_id: str, reward: str) -> dict[str, Any]:
    """PPO's settings for an environment id and a reward, from ``hyperparameters.yml``.

    Raises:
        ValueError: there are none; the known ones are listed.
    """
    table = yaml.safe_load(HYPERPARAMETERS.read_text())
    if env_id not in table:
        raise ValueError(f"env_id must be one of {', '.join(table)}, got {env_id!r}")
    if reward not in table[env_id]:
        raise ValueError(f"reward must be one of {', '.join(table[env_id])}, got {reward!r}")
    return dict(table[env_id][reward])


def _check_folder(run: Path, checkpoint: Path, arguments: Arguments) -> None:
    """Refuse a run folder in use, and one to resume that holds no checkpoint or that of another run."""
    if not arguments.resume:
        if checkpoint.exists():
            raise ValueError(f"{run} holds a run already: pass --resume to go on with it, or another --out")
        return
    if not checkpoint.is_file():
        raise ValueError(f"expected a checkpoint to resume in {checkpoint}, but there is none")
    began = json.loads((run / "arguments.json").read_text())
    for name in SAME_ON_RESUME:
        if began.get(name) != getattr(arguments, name):
            raise ValueError(f"{run} was begun with {name}={began.get(name)!r}, got {getattr(arguments, name)!r}")
