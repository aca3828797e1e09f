"""An episode of one policy as scenes."""

from __future__ import annotations

from dataclasses import dataclass, replace

import gymnasium as gym

from eval.members import member
from eval.names import short_names
from wdmoe_env.config import EnvConfig
from wdmoe_env.policies import make_policy, reads_hidden_states
from wdmoe_env.rendering.scene import Scene


@dataclass(frozen=True, slots=True)
class Take:
    """What one policy did in an episode.

    Attributes:
        name: of the policy.
        scenes: after each block.
    """

    name: str
    scenes: tuple[Scene, ...]


def takes(policies: tuple[str, ...], config: EnvConfig, window: int, seed: int) -> tuple[Take, ...]:
    """Every policy on the same episode.

    Args:
        policies: names and files as ``make_policy`` takes them.
        config: of the environment, with both decisions in the action.
        window: index of the text within its split.
        seed: of devices, shadowing and fading, and of the policies.

    Raises:
        ValueError, TypeError: a policy, a setting or a file is wrong.
    """
    names = short_names(policies)
    return tuple(
        Take(names[policy] + " (learned)" * member(policy).learned, _scenes(policy, config, window, seed))
        for policy in policies
    )


def _scenes(spec: str, config: EnvConfig, window: int, seed: int) -> tuple[Scene, ...]:
    config = replace(config, observe_hidden_states=reads_hidden_states(spec))
    env = gym.make("wdmoe_env:WDMoE-v0", config=config, render_mode="rgb_array").unwrapped
    policy = make_policy(spec, env, seed)
    observation, _ = env.reset(seed=seed, options={"window": window})
    scenes: list[Scene] = []
    state, terminated = None, False
    while not terminated:
        action, state = policy.predict(observation, state=state, episode_start=not scenes, deterministic=True)
        observation, _, terminated, _, _ = env.step(action)
        scenes.append(env.renderer.scene())  # type: ignore[attr-defined]
    env.close()
    return tuple(scenes)
