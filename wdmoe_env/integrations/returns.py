"""Mean return of anything that acts, and of the reference: what each integration is measured by."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np

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
