"""Mean return of anything that acts, and of the reference: what each integration is measured by."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from typing import Any

import gymnasium as gym
import numpy as np

from wdmoe_env.config import EnvConfig
from wdmoe_env.policies import make_policy
from wdmoe_env.policies.rules import DEFAULT_PRICE_PER_MS

FIXED_ACTIONS = np.linspace(-1.0, 1.0, 11)
FIXED_THRESHOLDS = (0.5, 0.6, 0.7, 0.8, 0.9, 0.97)

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
    """What an agent has to beat on the episodes of ``mean_return``.

    Args:
        env: ``WDMoE-Price-v0`` with one price a block, or ``WDMoE-Token-v0``, wrapped or not.
        episodes: how many.
        seed: episode n has the seed ``seed + n``.

    Returns:
        The mean return of the own routing at optimal shares, ``vanilla-optimal``, and that of the best fixed rule: of
        ``marginal-price`` at eleven prices and the paper's ``wdmoe`` at six thresholds, the best on these very
        episodes.
    """
    config = env.unwrapped.config  # type: ignore[attr-defined]
    shared = {one.name: getattr(config, one.name) for one in fields(EnvConfig)}
    plain = {name: value for name, value in shared.items() if name not in ("decision", "action_type")}
    batch: Any = gym.make_vec("wdmoe_env:WDMoE-Selection-v0", num_envs=episodes, **plain).unwrapped
    middle = getattr(config, "price_per_ms", DEFAULT_PRICE_PER_MS)
    prices = [f"marginal-price:{middle * 10.0**action}" for action in FIXED_ACTIONS]
    thresholds = [f"wdmoe:{threshold}" for threshold in FIXED_THRESHOLDS]
    own, *fixed = (_rule_return(batch, name, seed) for name in ("vanilla-optimal", *prices, *thresholds))
    return own, max(fixed)


def _rule_return(batch: Any, name: str, seed: int) -> float:
    policy = make_policy(name, batch)
    return _batched_return(batch, lambda observation: policy.predict(observation)[0], seed)


def _batched_return(envs: Any, act: Act, seed: int) -> float:
    """Mean return of the first episodes of a batch."""
    observation, _ = envs.reset(seed=seed)
    total, done = np.zeros(envs.num_envs), np.zeros(envs.num_envs, dtype=bool)
    while not done.all():
        observation, rewards, terminated, truncated, _ = envs.step(act(observation))
        total += rewards
        done = terminated | truncated
    return float(total.mean())
