"""Tokens as environments of Stable-Baselines3: a ``VecEnv`` of N x J, whose algorithm trains one policy of a token."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from numpy.typing import NDArray

from wdmoe_env.optional import optional
from wdmoe_env.policies.tokens import CHOICE_NAMES, MOST

with optional("stable-baselines3", extra="sb3"):
    from stable_baselines3.common.vec_env import VecEnv
    from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices, VecEnvObs, VecEnvStepReturn


class TokenVecEnv(VecEnv):
    """SB3's view of the tokens of a batched ``WDMoE-Token-v0`` in the mode ``SAME_STEP``.

    Environment n x J + j is token j of episode n. Each has the reward of its token. Padding is an environment like the
    others, with observations and rewards of 0.

    Args:
        env: of ``gymnasium.make_vec("wdmoe_env:WDMoE-Token-v0", ..., autoreset_mode="SAME_STEP")``.

    Raises:
        ValueError: another autoreset mode, or an environment without rewards of tokens.
        TypeError: not a batched environment.
    """

    def __init__(self, env: VectorEnv[Any, Any, Any]) -> None:
        if not isinstance(env, VectorEnv):
            raise TypeError(
                f"TokenVecEnv takes the batched environment of gymnasium.make_vec, got {type(env).__name__}"
            )
        if not isinstance(env.single_action_space, spaces.MultiDiscrete):
            raise ValueError(
                f"TokenVecEnv takes WDMoE-Token-v0, got an environment of actions {env.single_action_space}"
            )
        mode = env.metadata.get("autoreset_mode")
        if mode != AutoresetMode.SAME_STEP:
            raise ValueError(f"TokenVecEnv needs autoreset_mode='SAME_STEP', got {getattr(mode, 'name', mode)!r}")
        self.env: Any = env
        tokens = len(env.single_action_space.nvec)
        self._shape = env.num_envs, tokens
        numbers = spaces.flatdim(env.single_observation_space) // tokens
        token_space = spaces.Box(-MOST, MOST, (numbers,), dtype=np.float32)
        super().__init__(env.num_envs * tokens, token_space, spaces.Discrete(len(CHOICE_NAMES)))
        self.metadata = {**env.metadata, **self.metadata}
        self._actions: Any = None
        self._seed: int | None = None
        self._return = np.zeros(self.num_envs)
        self._length = np.zeros(self.num_envs, dtype=np.int64)

    def reset(self) -> VecEnvObs:
        """Begin an episode in every environment; takes the seed of ``seed()`` once."""
        observation, _ = self.env.reset(seed=self._seed)
        self._seed = None
        self._return[:] = 0.0
        self._length[:] = 0
        self.reset_infos = [{} for _ in range(self.num_envs)]
        return self._by_token(observation)

    def seed(self, seed: int | None = None) -> Sequence[int | None]:
        """Seed the next reset; episode n gets ``seed + n``."""
        self._seed = seed
        return [None if seed is None else seed + n // self._shape[1] for n in range(self.num_envs)]

    def step_async(self, actions: NDArray[Any]) -> None:
        """Keep the actions (N x J,) for ``step_wait``."""
        self._actions = actions

    def step_wait(self) -> VecEnvStepReturn:
        """Step with the kept actions."""
        observation, _, terminated, truncated, info = self.env.step(np.reshape(self._actions, self._shape))
        ended = terminated | truncated
        reward = self._rewards(info, ended)
        self._return += reward
        self._length += 1
        done = np.repeat(ended, self._shape[1])
        infos: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
        for n in np.flatnonzero(ended).tolist():
            cut = bool(truncated[n] and not terminated[n])  # where SB3 adds the value of what would have followed
            for j, last in enumerate(info["final_obs"][n].reshape(self._shape[1], -1)):
                infos[n * self._shape[1] + j] = self._final_info(n * self._shape[1] + j, last, cut)
        self._return[done] = 0.0
        self._length[done] = 0
        return self._by_token(observation), reward.astype(np.float32), done, infos

    def _rewards(self, info: dict[str, Any], ended: NDArray[np.bool_]) -> NDArray[np.float64]:
        reward = np.zeros(self._shape)
        if not ended.all():
            reward[~ended] = info["token_reward"][~ended]
        if ended.any():
            reward[ended] = info["final_info"]["token_reward"][ended]
        return reward.ravel()

    def _final_info(self, index: int, last: NDArray[np.float32], cut: bool) -> dict[str, Any]:
        episode = {"r": float(self._return[index]), "l": int(self._length[index]), "t": 0.0}
        return {"terminal_observation": last, "TimeLimit.truncated": cut, "episode": episode}

    def _by_token(self, observation: NDArray[np.float32]) -> NDArray[np.float32]:
        return observation.reshape(self.num_envs, -1)

    def close(self) -> None:
        """End all episodes."""
        self.env.close()

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        """The batched environment's attribute, once per index."""
        value = getattr(self.env.unwrapped, attr_name)
        return [value for _ in self._get_indices(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        """Set an attribute of the batched environment; it cannot differ between tokens."""
        setattr(self.env.unwrapped, attr_name, value)

    def env_method(self, method_name: str, *args: Any, indices: VecEnvIndices = None, **kwargs: Any) -> list[Any]:
        """Call a method of the batched environment; the result stands once per index.

        Args:
            method_name: of the method.
            *args: its arguments.
            indices: environments, ``None`` for all.
            **kwargs: its keywords.
        """
        result = getattr(self.env.unwrapped, method_name)(*args, **kwargs)
        return [result for _ in self._get_indices(indices)]

    def env_is_wrapped(self, wrapper_class: type[gym.Wrapper], indices: VecEnvIndices = None) -> list[bool]:
        """No wrapper of single environments is around the batched one."""
        return [False for _ in self._get_indices(indices)]
