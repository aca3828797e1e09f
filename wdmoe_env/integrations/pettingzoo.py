"""Tokens as agents of PettingZoo's parallel API, which RLlib and TorchRL take too."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from wdmoe_env.config import EnvConfig
from wdmoe_env.optional import optional
from wdmoe_env.policies.tokens import CHOICE_NAMES, MOST
from wdmoe_env.token_env import TOKEN_REWARD, WDMoETokenEnv

with optional("pettingzoo", extra="pettingzoo"):
    from pettingzoo import ParallelEnv

Token = dict[str, NDArray[np.float32]]


class TokenParallelEnv(ParallelEnv[str, NDArray[np.float32], int]):  # type: ignore[misc, unused-ignore]
    """The tokens of a window as agents ``token_0`` to ``token_{J-1}``, which all act at once.

    Spaces and rewards are those of one token of ``WDMoE-Token-v0``: ``Box`` (F,), ``Discrete(4)``, and
    ``info["token_reward"]``. Every agent is there from the first block to the last. At padding its observation and its
    rewards are 0, and what it chooses is of no effect.

    Args:
        config: a ``TokenConfig``, its dict, or nothing.
        render_mode: as of ``WDMoEEnv``.
        **keywords: fields of ``TokenConfig``.

    Attributes:
        env: the joint environment that this is a face of.
    """

    metadata = {**WDMoETokenEnv.metadata, "name": "wdmoe_token_v0", "is_parallelizable": True}  # noqa: RUF012

    def __init__(
        self, config: EnvConfig | Mapping[str, Any] | None = None, render_mode: str | None = None, **keywords: Any
    ) -> None:
        self.env = WDMoETokenEnv(config, render_mode, **keywords)
        self.render_mode = render_mode
        self.possible_agents = [f"token_{token}" for token in range(self.env.simulator.sizes.num_tokens)]
        self.agents: list[str] = []
        numbers = spaces.flatdim(self.env.observation_space) // len(self.possible_agents)
        self.observation_spaces = {
            name: spaces.Box(-MOST, MOST, (numbers,), np.float32) for name in self.possible_agents
        }
        self.action_spaces = {name: spaces.Discrete(len(CHOICE_NAMES)) for name in self.possible_agents}

    def observation_space(self, agent: str) -> spaces.Space[Any]:
        """The same object for an agent every time."""
        return self.observation_spaces[agent]

    def action_space(self, agent: str) -> spaces.Space[Any]:
        """The same object for an agent every time."""
        return self.action_spaces[agent]

    def reset(
        self, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Token, dict[str, dict[str, Any]]]:
        """Begin an episode; see ``WDMoEEnv.reset``.

        Args:
            seed: of the environment's generator; ``None`` goes on with it.
            options: ``{"window": index}``; others are not read, as PettingZoo's tests ask for.
        """
        window = {name: value for name, value in (options or {}).items() if name == "window"}
        observation, _ = self.env.reset(seed=seed, options=window)
        self.agents = list(self.possible_agents)
        return self._by_agent(observation), {name: {} for name in self.agents}

    def step(
        self, actions: Mapping[str, int]
    ) -> tuple[Token, dict[str, float], dict[str, bool], dict[str, bool], dict[str, dict[str, Any]]]:
        """Run a block.

        Args:
            actions: the choice of every agent.

        Returns:
            Observations, rewards, whether the episode has ended, False (never truncated), and info by agent. The first
            agent's info holds that of the joint environment, under ``"episode_info"``.

        Raises:
            ValueError: an agent without an action.
        """
        if not self.agents:
            return {}, {}, {}, {}, {}
        missing = [name for name in self.agents if name not in actions]
        if missing:
            raise ValueError(f"expected an action of every agent, got none of {', '.join(missing[:3])}")
        choices = np.array([actions[name] for name in self.agents])
        observation, _, ended, _, info = self.env.step(choices)
        agents = self.agents
        rewards = dict(zip(agents, info[TOKEN_REWARD].tolist(), strict=True))
        infos: dict[str, dict[str, Any]] = {name: {} for name in agents}
        infos[agents[0]]["episode_info"] = info
        result = self._by_agent(observation), rewards, dict.fromkeys(agents, ended), dict.fromkeys(agents, False), infos
        if ended:
            self.agents = []
        return result

    def render(self) -> Any:
        """See ``WDMoEEnv.render``."""
        return self.env.render()

    def close(self) -> None:
        """End the episode under way and close the window."""
        self.env.close()

    def _by_agent(self, observation: Any) -> Token:
        rows = observation.reshape(len(self.possible_agents), -1)
        return dict(zip(self.possible_agents, rows, strict=True))


def parallel_env(**keywords: Any) -> TokenParallelEnv:
    """The tokens as agents, as PettingZoo's own environments are made.

    Args:
        **keywords: fields of ``TokenConfig``, and ``render_mode``.
    """
    return TokenParallelEnv(**keywords)
