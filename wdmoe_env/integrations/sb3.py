"""Stable-Baselines3's ``VecEnv`` over the natively batched environment.

SB3 refuses Gymnasium's ``VectorEnv``; its own protocol has one list of infos, one ``done`` flag, and resets
within the step that ends an episode.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode
from numpy.typing import NDArray

from wdmoe_env.optional import optional
from wdmoe_env.vector_env import WDMoEVectorEnv
from wdmoe_env.vector_info import row_of

with optional("stable-baselines3", extra="sb3"):
    from stable_baselines3.common.vec_env import VecEnv
    from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices, VecEnvObs, VecEnvStepReturn


class SB3VecEnv(VecEnv):
    """SB3's view of a ``WDMoEVectorEnv`` in the mode ``SAME_STEP``.

    Infos carry ``terminal_observation``, ``TimeLimit.truncated`` and ``episode`` (return and length, so that SB3
    logs the mean return without a ``Monitor``).

    Args:
        env: the batched environment.

    Raises:
        ValueError: another autoreset mode.
    """

    def __init__(self, env: WDMoEVectorEnv) -> None:
        if env.autoreset_mode != AutoresetMode.SAME_STEP:
            raise ValueError(f"SB3VecEnv needs autoreset_mode='SAME_STEP', got {env.autoreset_mode.name!r}")
        self.env = env
        self.render_mode = env.render_mode
        super().__init__(env.num_envs, env.single_observation_space, env.single_action_space)
        self._actions: Any = None
        self._seed: int | None = None
        self._return = np.zeros(env.num_envs)
        self._length = np.zeros(env.num_envs, dtype=np.int64)

    def reset(self) -> VecEnvObs:
        """Begin an episode in every environment; takes the seed of ``seed()`` once."""
        observation, info = self.env.reset(seed=self._seed, options=self._batched_options())
        self._seed = None
        self._reset_options()
        self._return[:] = 0.0
        self._length[:] = 0
        self.reset_infos = [row_of(info, n) for n in range(self.num_envs)]
        return observation

    def _batched_options(self) -> dict[str, Any]:
        """The option ``window`` of ``set_options``, which every environment has or none."""
        if not any(self._options):
            return {}
        return {"window": np.array([options.get("window", -1) for options in self._options])}

    def seed(self, seed: int | None = None) -> Sequence[int | None]:
        """Seed the next reset; environment n gets ``seed + n``."""
        self._seed = seed
        return [None if seed is None else seed + n for n in range(self.num_envs)]

    def step_async(self, actions: NDArray[Any]) -> None:
        """Keep the actions (N, ...) for ``step_wait``."""
        self._actions = actions

    def step_wait(self) -> VecEnvStepReturn:
        """Step with the kept actions."""
        observation, rewards, terminated, truncated, info = self.env.step(self._actions)
        done = terminated | truncated
        self._return += rewards
        self._length += 1
        infos = [self._info(info, n, bool(done[n]), bool(truncated[n])) for n in range(self.num_envs)]
        self._return[done] = 0.0
        self._length[done] = 0
        return observation, rewards.astype(np.float32), done, infos

    def _info(self, info: dict[str, Any], n: int, done: bool, truncated: bool) -> dict[str, Any]:
        if not done:
            return {**row_of(info, n), "TimeLimit.truncated": False}
        return {
            **row_of(info["final_info"], n),
            "terminal_observation": info["final_obs"][n],
            "TimeLimit.truncated": truncated,
            "episode": {"r": float(self._return[n]), "l": int(self._length[n]), "t": 0.0},
        }

    def close(self) -> None:
        """End all episodes."""
        self.env.close()

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        """The batched environment's attribute, once per index."""
        return [getattr(self.env, attr_name) for _ in self._get_indices(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        """Set an attribute of the batched environment; it cannot differ between environments."""
        setattr(self.env, attr_name, value)

    def env_method(self, method_name: str, *args: Any, indices: VecEnvIndices = None, **kwargs: Any) -> list[Any]:
        """Call a method of the batched environment; the result stands once per index.

        Args:
            method_name: of the method.
            *args: its arguments.
            indices: environments, ``None`` for all.
            **kwargs: its keywords.
        """
        result = getattr(self.env, method_name)(*args, **kwargs)
        return [result for _ in self._get_indices(indices)]

    def env_is_wrapped(self, wrapper_class: type[gym.Wrapper], indices: VecEnvIndices = None) -> list[bool]:
        """No environment is wrapped."""
        return [False for _ in self._get_indices(indices)]
