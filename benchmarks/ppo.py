"""Point 4: where the time of PPO goes, with the settings of ``python -m train``."""

from __future__ import annotations

import time
from typing import Any

from stable_baselines3 import PPO

from agents.sb3_policy import TokenSharedPolicy
from benchmarks.table import Row, Settings
from train.arguments import Arguments, hyperparameters
from train.environment import make_env
from wdmoe_env.integrations.sb3 import SB3VecEnv


class ClockedVecEnv(SB3VecEnv):
    """Adds up the time spent in the environment.

    Attributes:
        seconds: time in ``step_wait``.
        steps: environment steps taken.
    """

    seconds = 0.0
    steps = 0

    def step_wait(self) -> Any:
        """Step, and count."""
        began = time.perf_counter()
        result = super().step_wait()
        self.seconds += time.perf_counter() - began
        self.steps += self.num_envs
        return result

    def alone(self, steps: int) -> float:
        """Seconds of some environment steps without a policy, which took the actions last."""
        self.reset()
        actions = self._actions
        self.step(actions)
        began = time.perf_counter()
        for _ in range(steps // self.num_envs):
            self.step(actions)
        return time.perf_counter() - began


class ClockedPPO(PPO):
    """Adds up the time spent on gradients.

    Attributes:
        seconds: time in ``train``.
    """

    seconds = 0.0

    def train(self) -> None:
        """Learn, and count."""
        began = time.perf_counter()
        super().train()
        self.seconds += time.perf_counter() - began


def rows(settings: Settings) -> list[Row]:
    """All rows of the section."""
    shared = {"policy": TokenSharedPolicy, "policy_kwargs": {"decision": "selection"}}
    return [
        *learn(settings, "PPO", **shared),
        *learn(settings, "PPO, SB3's MultiInputPolicy", policy="MultiInputPolicy"),
    ]


def learn(settings: Settings, section: str, **keywords: Any) -> list[Row]:
    """Collect and learn with the settings of ``python -m train`` and a policy."""
    arguments = Arguments(model="micro" if settings.quick else "tiny", reward="latency_quality")
    ppo_settings = hyperparameters("sb3-ppo", arguments.env_id, arguments.reward)
    num_envs = ppo_settings.pop("num_envs")
    env = ClockedVecEnv(make_env(arguments, num_envs))
    algorithm = ClockedPPO(env=env, seed=0, **keywords, **ppo_settings)
    rollout = num_envs * ppo_settings["n_steps"]
    rollouts = 1 if settings.quick else 12
    algorithm.learn(rollout)  # the first allocations
    before = env.alone(rollouts * rollout // 2)
    algorithm._last_obs = env.reset()
    env.seconds, env.steps, algorithm.seconds = 0.0, 0, 0.0
    began = time.perf_counter()
    algorithm.learn(rollouts * rollout, reset_num_timesteps=False)
    total = time.perf_counter() - began
    steps, in_env, in_gradients = env.steps, env.seconds, algorithm.seconds
    collecting = total - in_gradients
    alone = steps / (before + env.alone(steps // 2))
    return [
        Row(section, "time in the environment", 100.0 * in_env / total, "%"),
        Row(section, "time in the policy", 100.0 * (collecting - in_env) / total, "%"),
        Row(section, "time in gradients", 100.0 * in_gradients / total, "%"),
        Row(section, "collecting and learning", steps / total, "1/s"),
        Row(section, "collecting", steps / collecting, "1/s"),
        Row(section, "the environment alone", alone, "1/s"),
        Row(section, "collecting over the environment alone", steps / collecting / alone, "", ">= 0.6"),
    ]
