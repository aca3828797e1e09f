"""Episodes as Minari's buffers.

Minari's own ``DataCollector`` needs JAX to append a step; whole episodes need nothing.
"""

from __future__ import annotations

from typing import Any

import gymnasium as gym

from wdmoe_env.integrations.returns import Act
from wdmoe_env.optional import optional

with optional("minari", extra="minari"):
    from minari.data_collector import EpisodeBuffer


def record(env: gym.Env[Any, Any], act: Act, episodes: int, seed: int = 0) -> list[EpisodeBuffer]:
    """Run episodes and keep them, for ``minari.create_dataset_from_buffers``.

    Args:
        env: a single environment with the box action, wrapped or not.
        act: called at every step.
        episodes: how many.
        seed: episode n has the seed ``seed + n``, which the dataset holds.

    Returns:
        One buffer an episode: T steps, T + 1 observations.
    """
    return [_episode(env, act, number, seed + number) for number in range(episodes)]


def _episode(env: gym.Env[Any, Any], act: Act, number: int, seed: int) -> EpisodeBuffer:
    observation, _ = env.reset(seed=seed)
    buffer = EpisodeBuffer(
        id=number, seed=seed, observations={name: [observation[name]] for name in observation}, actions=[]
    )
    done = False
    while not done:
        buffer.actions.append(act(observation))
        observation, reward, terminated, truncated, _ = env.step(buffer.actions[-1])
        for name, value in observation.items():
            buffer.observations[name].append(value)
        buffer.rewards.append(reward)
        buffer.terminations.append(terminated)
        buffer.truncations.append(truncated)
        done = terminated or truncated
    return buffer
