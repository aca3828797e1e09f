"""Mean return of anything that acts, and of the reference: what each integration is measured by."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from typing import Any

import gymnasium as gym
import numpy as np

from wdmoe_env.config import EnvConfig

FIXED_ACTIONS = np.linspace(-1.0, 1.0, 11)

Act = Callable[[Any], Any]
"""An observation of a single environment to an action."""


def mean_return(env: gym.Env[Any, Any], act: Act, episodes: int = 32, seed: int = 0) -> float:
    """Mean over episodes of the sum of rewards; the same episodes for the same seed, whoever acts.

    Args:
        env: a single environment, wrapped or not.
        act: called at every step.
        episodes: how many.
        seed: episode n has the seed ``seed + n``.
    """
    total = 0.0
    for episode in range(episodes):
        observation, _ = env.reset(seed=seed + episode)
        done = False
        while not done:
            observation, reward, terminated, truncated, _ = env.step(act(observation))
            total += float(reward)
            done = terminated or truncated
    return total / episodes


def vanilla(env: gym.Env[Any, Any]) -> Act:
    """The reference of every table: the model's own routing at equal shares.

    Args:
        env: an environment of this package whose observations are as they come, a dict.
    """
    devices = env.unwrapped.config.devices.count  # type: ignore[attr-defined]
    shares = np.full(devices, 1.0 / devices)
    encode = env.unwrapped.encode_action  # type: ignore[attr-defined]
    return lambda observation: encode(observation["routed"] > 0, shares)


def lines_of_rules(env: gym.Env[Any, Any], episodes: int = 32, seed: int = 0) -> tuple[float, float]:
    """What a price agent has to beat, on the episodes of ``mean_return``.

    Args:
        env: ``WDMoE-Price-v0`` with one price a block, wrapped or not.
        episodes: how many.
        seed: episode n has the seed ``seed + n``.

    Returns:
        The mean return of the own routing at optimal shares, ``vanilla-optimal``, and of the best fixed price, the best
        of eleven actions from -1 to 1 on these very episodes: the line of the rule ``marginal-price:PRICE``.
    """
    config = env.unwrapped.config  # type: ignore[attr-defined]
    shared = {one.name: getattr(config, one.name) for one in fields(EnvConfig)}
    left_out = {"decision", "action_type"}
    plain = {name: value for name, value in shared.items() if name not in left_out}
    own: Any = gym.make_vec("wdmoe_env:WDMoE-Selection-v0", num_envs=episodes, **plain)
    routed = _batched_return(own, lambda observation: own.unwrapped.encode_action(observation["routed"] > 0), seed)
    price = gym.make_vec("wdmoe_env:WDMoE-Price-v0", num_envs=episodes, price_per_ms=config.price_per_ms, **plain)
    fixed = [np.full((episodes, 1), action, dtype=np.float32) for action in FIXED_ACTIONS]
    return routed, max(_batched_return(price, lambda _, action=action: action, seed) for action in fixed)  # type: ignore[misc]


def _batched_return(envs: Any, act: Act, seed: int) -> float:
    """Mean return of the first episodes of a batch."""
    observation, _ = envs.reset(seed=seed)
    total, done = np.zeros(envs.num_envs), np.zeros(envs.num_envs, dtype=bool)
    while not done.all():
        observation, rewards, terminated, truncated, _ = envs.step(act(observation))
        total += rewards
        done = terminated | truncated
    return float(total.mean())
