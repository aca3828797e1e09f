"""``WDMoE-Serve-Token-v0``: a cell serves requests, and each token of a pass is an agent with a reward of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from wdmoe_env.actions import Decided, ExpertsPart
from wdmoe_env.config import EnvConfig
from wdmoe_env.metrics import REWARD_TERMS
from wdmoe_env.observations import Block, Sizes
from wdmoe_env.physics.latency import Float
from wdmoe_env.policies.tokens import CHOICES, MOST, TokenCodec, num_token_features, selection_of, token_features
from wdmoe_env.process import Info
from wdmoe_env.serve_env import WDMoEServeEnv, WDMoEServeVectorEnv
from wdmoe_env.serving.process import QUALITY_TERMS, REWARD, ServingProcess, ServingTransition, serving_config
from wdmoe_env.serving.rollout import PassRollout
from wdmoe_env.serving.simulator import Episode
from wdmoe_env.token_env import TOKEN_REWARD, TokenConfig, TokenFace, decayed

QUEUE_FEATURES = 3


@dataclass(frozen=True, slots=True)
class ServeTokenConfig(TokenConfig):
    """Everything that defines a token environment of a cell: the fields of ``TokenConfig``, with another reward.

    Attributes:
        reward: ``"serving"`` or ``"serving_divergence"``, see ``WDMoEServeEnv``.
    """

    _REWARDS: ClassVar[tuple[str, ...]] = tuple(QUALITY_TERMS)

    reward: Any = REWARD


class ServeTokenProcess(ServingProcess):
    """The decision process of cells whose decision is a choice of each token.

    Args:
        config: the configuration.
    """

    config: ServeTokenConfig

    def _faces(self, sizes: Sizes) -> tuple[Any, spaces.Space[Any]]:
        of_token = num_token_features(sizes, self.config.observe_hidden_states) + QUEUE_FEATURES
        return TokenCodec(sizes), spaces.Box(-MOST, MOST, (sizes.num_tokens * of_token,), dtype=np.float32)

    def step(self, rollout: PassRollout, decided: Decided) -> ServingTransition:
        """Run a block of n cells under the choices decided; ``info`` has the reward of each token.

        Args:
            rollout: a pass that has not ended.
            decided: the choices (n, J).
        """
        mask = rollout.token_mask
        transition = super().step(rollout, {ExpertsPart.name: selection_of(rollout.block, decided[CHOICES])})
        lost = rollout.row_divergence if self._compares else rollout.row_added_nll
        reward = self._token_reward(transition.info, lost)
        transition.info[TOKEN_REWARD] = np.where(mask, reward, 0.0)
        return transition

    def _token_reward(self, info: Info, lost: Float) -> Float:
        """Reward (n, J) of each token in a block, by what each lost (n, J), in nats.

        A token pays for its pairs, at their marginal price, as many times as requests wait for it; and in the last
        block for its own loss of quality and, by ``credit_decay``, that of the later tokens of its request in the pass.
        """
        terms, serving = info[REWARD_TERMS], self._serving
        elapsed_ms = terms["block_latency_ms"] + serving.base_station_ms
        waiting = terms["time_in_system_ms"] / np.where(elapsed_ms > 0.0, elapsed_ms, np.inf)
        time = waiting[:, None] * terms["token_price_ms"] / serving.latency_scale_ms
        loss = decayed(lost.reshape(-1, serving.chunk), self.config.credit_decay).reshape(lost.shape)
        return -time - self.config.quality_weight * loss

    def _seen(self, block: Block, episodes: Sequence[Episode], row_phase: Float) -> NDArray[np.float32]:
        """What the tokens of n cells see now: (n, J x F), 0 where there is none; see ``WDMoEServeTokenEnv``."""
        features = token_features(block, self.simulator.sizes.num_blocks)
        queue = np.stack([episode.cell.queue() for episode in episodes])
        of_cell = np.stack((np.log1p(queue[:, 0]), queue[:, 1] / self._serving.slots), axis=-1)
        cells = np.broadcast_to(of_cell[:, None], (*row_phase.shape, 2))
        further = np.concatenate([row_phase[..., None], np.minimum(cells, MOST)], axis=-1)
        seen = np.where(block.token_mask[..., None], further, 0.0).astype(np.float32)
        return np.concatenate([features, seen], axis=-1).reshape(len(features), -1)


class ServeTokenFace(TokenFace):
    """What the environments of a cell whose action is a choice of each token have in common, single and batched."""

    def _process_of(self, config: EnvConfig | Mapping[str, Any] | None, keywords: Mapping[str, Any]) -> Any:
        return ServeTokenProcess(serving_config(config, keywords, ServeTokenConfig))


class WDMoEServeTokenEnv(ServeTokenFace, WDMoEServeEnv):  # type: ignore[misc]
    """Tokens as agents in a cell that serves requests.

    The cell, the requests, the reward and the info are those of ``WDMoEServeEnv``, the actions those of
    ``WDMoETokenEnv``; a step is a block. The observation is one flat float32 ``Box``: for each of the J rows the
    entries of ``wdmoe_env.policies.tokens.token_features``, then whether it is a token of an answer, ln(1 + requests
    that wait), and requests that run over the slots. ``info["token_reward"]`` (J,) holds a reward for each row, 0 at
    padding: minus its pairs' marginal price times the number of requests in the system, over ``latency_scale_ms``; at
    the end of a pass less ``quality_weight`` x its loss of quality and, by ``credit_decay``, that of the later tokens
    of its request in the pass.

    ``wdmoe_env.integrations.token_vec`` has the rows as N x J environments of Stable-Baselines3.

    Args:
        config: a ``ServeTokenConfig``, its dict, or nothing.
        render_mode: as of ``WDMoEEnv``.
        **keywords: fields of ``ServeTokenConfig``; ``serving`` holds those of ``ServingConfig``.
    """


class WDMoEServeTokenVectorEnv(ServeTokenFace, WDMoEServeVectorEnv):  # type: ignore[misc]
    """N cells of one configuration; see ``WDMoEServeTokenEnv`` and ``WDMoEServeVectorEnv``."""
