"""Tokens as environments: a Gymnasium ``VectorEnv`` of N x J, whose algorithm trains one policy of a token."""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium import spaces
from gymnasium.vector import VectorEnv, VectorWrapper
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from wdmoe_env.policies.tokens import CHOICE_NAMES, MOST

Step = tuple[NDArray[np.float32], NDArray[np.float64], NDArray[np.bool_], NDArray[np.bool_], dict[str, Any]]


class TokenVectorEnv(VectorWrapper):
    """Each token of a batched ``WDMoE-Token-v0`` as an environment of its own.

    Environment n x J + j is token j of episode n: ``Box`` (F,), ``Discrete(4)``, and the reward of its token. All
    tokens of an episode begin and end together. Padding is an environment like the others, with observations and
    rewards of 0. The autoreset mode is that of the batch. ``SB3VecEnv`` takes it as it takes the batch.

    Args:
        env: of ``gymnasium.make_vec("wdmoe_env:WDMoE-Token-v0", ...)``, or of ``WDMoE-Serve-Token-v0``.

    Raises:
        ValueError: an environment without rewards of tokens.
        TypeError: not a batched environment.
    """

    def __init__(self, env: VectorEnv[Any, Any, Any]) -> None:
        if not isinstance(env, VectorEnv):
            raise TypeError(
                f"TokenVectorEnv takes the batched environment of gymnasium.make_vec, got {type(env).__name__}"
            )
        if not isinstance(env.single_action_space, spaces.MultiDiscrete):
            raise ValueError(
                f"TokenVectorEnv takes WDMoE-Token-v0, got an environment of actions {env.single_action_space}"
            )
        super().__init__(env)
        self.autoreset_mode = env.metadata["autoreset_mode"]
        tokens = len(env.single_action_space.nvec)
        self._shape = env.num_envs, tokens
        numbers = spaces.flatdim(env.single_observation_space) // tokens
        self.single_observation_space = spaces.Box(-MOST, MOST, (numbers,), dtype=np.float32)
        self.single_action_space = spaces.Discrete(len(CHOICE_NAMES))
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self.action_space = batch_space(self.single_action_space, self.num_envs)

    @property
    def num_envs(self) -> int:  # type: ignore[override]
        """N x J."""
        return self._shape[0] * self._shape[1]

    @property
    def unwrapped(self) -> TokenVectorEnv:
        """Itself: the batch below has another number of environments, and libraries ask the unwrapped one for it."""
        return self

    def reset(
        self, *, seed: Any = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """Begin episodes.

        Args:
            seed: of the batch, one number or N: the tokens of an episode share its generator.
            options: those of the batch; a ``reset_mask`` has an entry for each token, and the tokens of an episode must
                have the same.

        Returns:
            Observations (N x J, F) of the first blocks, and no info.

        Raises:
            ValueError: a mask that names some tokens of an episode and not all.
        """
        if options is not None and options.get("reset_mask") is not None:
            options = {**options, "reset_mask": self._of_episodes(options["reset_mask"])}
        observation, _ = self.env.reset(seed=seed, options=options)
        return self._by_token(observation), {}

    def _of_episodes(self, reset_mask: Any) -> NDArray[np.bool_]:
        mask = np.asarray(reset_mask, dtype=bool)
        if mask.shape != (self.num_envs,):
            raise ValueError(f"reset_mask must have the shape ({self.num_envs},), got {mask.shape}")
        by_episode = mask.reshape(self._shape)
        if (by_episode.any(axis=1) != by_episode.all(axis=1)).any():
            raise ValueError("reset_mask must name all tokens of an episode or none, got some of one")
        return np.asarray(by_episode.all(axis=1))

    def step(self, actions: Any) -> Step:
        """Run a block under the choices (N x J,) of the tokens.

        ``info`` holds ``final_obs`` under ``SAME_STEP`` and nothing else: the batch's own info is of episodes.

        Args:
            actions: of all tokens.

        Returns:
            Observations (N x J, F); rewards, whether the episode ended, whether it was cut, each (N x J,); and info.
        """
        observation, _, terminated, truncated, info = self.env.step(np.reshape(actions, self._shape))
        of_tokens = self._ends(info["final_obs"], info["_final_obs"]) if "final_obs" in info else {}
        ended, cut = (np.repeat(flags, self._shape[1]) for flags in (terminated, truncated))
        return self._by_token(observation), self._rewards(info), ended, cut, of_tokens

    def _rewards(self, info: dict[str, Any]) -> NDArray[np.float64]:
        """Rewards (N x J,); 0 for an episode that this step only began."""
        reward = np.zeros(self._shape)
        for part in (info, info.get("final_info", {})):
            if "token_reward" in part:
                ran = part["_token_reward"]
                reward[ran] = part["token_reward"][ran]
        return reward.ravel()

    def _ends(self, last: NDArray[Any], ended: NDArray[np.bool_]) -> dict[str, Any]:
        """The last observation of each token whose episode ended."""
        rows = np.full(self._shape, None, dtype=object)
        for n in np.flatnonzero(ended):
            for j, row in enumerate(last[n].reshape(self._shape[1], -1)):
                rows[n, j] = row
        mask = np.repeat(ended, self._shape[1])
        return {"final_obs": rows.ravel(), "_final_obs": mask, "final_info": {}, "_final_info": mask}

    def _by_token(self, observation: NDArray[np.float32]) -> NDArray[np.float32]:
        return observation.reshape(self.num_envs, -1)
