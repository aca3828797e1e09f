"""Stable-Baselines3's ``VecEnv`` over the natively batched environment.

SB3 refuses Gymnasium's ``VectorEnv``; its own protocol has one list of infos, one ``done`` flag, and resets
within the step that ends an episode.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv, VectorWrapper
from numpy.typing import NDArray

from wdmoe_env.checks import check_keys
from wdmoe_env.optional import optional
from wdmoe_env.vector_info import row_of

with optional("stable-baselines3", extra="sb3"):
    from stable_baselines3.common.vec_env import VecEnv
    from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices, VecEnvObs, VecEnvStepReturn


class SB3VecEnv(VecEnv):
    """SB3's view of a ``WDMoEVectorEnv`` in the mode ``SAME_STEP``, with Gymnasium's vector wrappers around it or not.

    Infos carry ``terminal_observation``, ``TimeLimit.truncated`` and ``episode`` (return and length, so that SB3
    logs the mean return without a ``Monitor``). Rewards and returns are those that the wrappers give.

    Args:
        env: the batched environment.

    Raises:
        ValueError: another autoreset mode.
        TypeError: not a batched environment.
    """

    def __init__(self, env: VectorEnv[Any, Any, Any]) -> None:
        if not isinstance(env, VectorEnv):
            raise TypeError(f"SB3VecEnv takes the batched environment of gymnasium.make_vec, got {type(env).__name__}")
        mode = env.metadata.get("autoreset_mode")
        if mode != AutoresetMode.SAME_STEP:
            raise ValueError(f"SB3VecEnv needs autoreset_mode='SAME_STEP', got {getattr(mode, 'name', mode)!r}")
        self.env: Any = env  # callers ask for what only the batched environment has, such as its simulator
        super().__init__(env.num_envs, env.single_observation_space, env.single_action_space)
        self.metadata = {**env.metadata, **self.metadata}
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

    def set_options(self, options: list[dict[str, Any]] | dict[str, Any] | None = None) -> None:
        """Options of the next reset: ``{"window": index}`` for every environment, or a list with one for each.

        Raises:
            ValueError: another option, or a window for some environments and not for all.
        """
        super().set_options(options)
        given, self._options = self._options, [{} for _ in range(self.num_envs)]
        for one in given:
            check_keys("options", one, ("window",))
        if len(given) != self.num_envs or len({len(one) for one in given}) > 1:
            raise ValueError(
                f"expected options of {self.num_envs} environments, with window indices in all of them or in none, "
                f"got {options!r}"
            )
        self._options = given

    def _batched_options(self) -> dict[str, Any]:
        if not any(self._options):
            return {}
        return {"window": np.array([options["window"] for options in self._options])}

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
        cut = truncated & ~terminated  # where SB3 adds the value of what would have followed
        infos = [self._info(info, n, bool(done[n]), bool(cut[n])) for n in range(self.num_envs)]
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

    def get_images(self) -> Sequence[NDArray[np.uint8] | None]:
        """A picture (720, 1120, 3) of each environment, under the render mode ``rgb_array``."""
        frames: Sequence[NDArray[np.uint8] | None] = self.env.render() or ()
        return frames

    def _layers(self) -> Iterator[VectorEnv[Any, Any, Any]]:
        """The batched environment's wrappers from the outside in, and at last itself."""
        layer = self.env
        while isinstance(layer, VectorWrapper):
            yield layer
            layer = layer.env
        yield layer

    def _holder(self, name: str) -> VectorEnv[Any, Any, Any]:
        """The outermost layer that has an attribute; the environment itself where none has."""
        return next((layer for layer in self._layers() if hasattr(layer, name)), self.env.unwrapped)

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        """The batched environment's attribute, once per index."""
        value = getattr(self._holder(attr_name), attr_name)
        return [value for _ in self._get_indices(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        """Set an attribute of the batched environment; it cannot differ between environments."""
        setattr(self._holder(attr_name), attr_name, value)

    def env_method(self, method_name: str, *args: Any, indices: VecEnvIndices = None, **kwargs: Any) -> list[Any]:
        """Call a method of the batched environment; the result stands once per index.

        Args:
            method_name: of the method.
            *args: its arguments.
            indices: environments, ``None`` for all.
            **kwargs: its keywords.
        """
        result = getattr(self._holder(method_name), method_name)(*args, **kwargs)
        return [result for _ in self._get_indices(indices)]

    def env_is_wrapped(self, wrapper_class: type[gym.Wrapper], indices: VecEnvIndices = None) -> list[bool]:
        """Whether a wrapper of that class is around the batched environment."""
        wrapped = any(isinstance(layer, wrapper_class) for layer in self._layers())
        return [wrapped for _ in self._get_indices(indices)]
