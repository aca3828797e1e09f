"""``WDMoE-Serve-Price-v0``: a cell serves requests, and the agent says before each pass what a millisecond is worth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from wdmoe_env.actions import Decided, ExpertsPart
from wdmoe_env.config import EnvConfig
from wdmoe_env.metrics import blocks_as_one
from wdmoe_env.observations import Block, Sizes
from wdmoe_env.physics.latency import Float
from wdmoe_env.policies.price import (
    PRICE,
    QUEUE_FEATURES,
    PriceCodec,
    num_price_features,
    price_features,
    priced_selection,
    queue_features,
)
from wdmoe_env.price_env import FAR, PriceConfig, PriceFace
from wdmoe_env.serve_env import WDMoEServeEnv, WDMoEServeVectorEnv
from wdmoe_env.serving.metrics import BLOCK_METRICS
from wdmoe_env.serving.process import REWARD, ServingProcess, ServingTransition, serving_config
from wdmoe_env.serving.rollout import PassRollout
from wdmoe_env.serving.simulator import Episode


@dataclass(frozen=True, slots=True)
class ServePriceConfig(PriceConfig):
    """Everything that defines a price environment of a cell: the fields of ``PriceConfig``, with another default.

    Attributes:
        reward: as of ``WDMoEServeEnv``; ``"serving"`` unless given.
    """

    reward: Any = REWARD


class ServePriceProcess(ServingProcess):
    """The decision process of cells whose decision is a price for a pass.

    Args:
        config: the configuration.
    """

    config: ServePriceConfig

    def _faces(self, sizes: Sizes) -> tuple[Any, spaces.Space[Any]]:
        count = sizes.num_blocks if self.config.per_block else 1
        levels = self.config.levels if self.config.action_type == "discrete" else None
        codec = PriceCodec(sizes, self.config.price_per_ms, count, levels)
        numbers = num_price_features(sizes) + QUEUE_FEATURES
        return codec, spaces.Box(-FAR, FAR, (numbers,), dtype=np.float32)

    def step(self, rollout: PassRollout, decided: Decided) -> ServingTransition:
        """Run a pass of n cells at the prices decided.

        Args:
            rollout: a pass that has not begun to run.
            decided: the prices (n, K).
        """
        prices: Float = decided[PRICE]
        steps = []
        while not rollout.done:
            price = prices[:, min(rollout.blocks_done, prices.shape[-1] - 1)]
            steps.append(super().step(rollout, {ExpertsPart.name: priced_selection(rollout.block, price)}))
        reward = np.sum([one.reward for one in steps], axis=0)
        info = blocks_as_one([one.info for one in steps], BLOCK_METRICS)
        return ServingTransition(reward, steps[-1].terminated, steps[-1].truncated, info)

    def _seen(self, block: Block, episodes: Sequence[Episode], row_phase: Float) -> NDArray[np.float32]:
        """What the agents of n cells see before a pass: (n, F); see ``WDMoEServePriceEnv``."""
        features = price_features(block, self.simulator.sizes.num_blocks, self.config.price_per_ms)
        queue = np.stack([episode.cell.queue() for episode in episodes])
        of_queue = queue_features(queue, row_phase, block.token_mask, self._serving.slots)
        return np.concatenate([features, of_queue], axis=-1)


class ServePriceFace(PriceFace):
    """What the environments of a cell whose action is a price have in common, single and batched."""

    def _process_of(self, config: EnvConfig | Mapping[str, Any] | None, keywords: Mapping[str, Any]) -> Any:
        return ServePriceProcess(serving_config(config, keywords, ServePriceConfig))


class WDMoEServePriceEnv(ServePriceFace, WDMoEServeEnv):  # type: ignore[misc]
    """Control of a queue by one number a pass: what a millisecond is worth in gate weight.

    The cell, the requests, the rewards and the info are those of ``WDMoEServeEnv``. A step is a pass, of all its
    blocks: the marginal-price rule chooses the experts at the price, and the shares are solved. Actions are those of
    ``WDMoEPriceEnv``; ``per_block=True`` holds a price for each block. Figures of ``info`` that add up or average over
    blocks are those of the pass.

    The observation is one flat float32 ``Box``: the entries of ``wdmoe_env.policies.price.price_features`` for the
    first block, then those of ``queue_features`` there.

    Args:
        config: a ``ServePriceConfig``, its dict, or nothing.
        render_mode: ``None``: a picture shows one block, and a step runs several.
        **keywords: fields of ``ServePriceConfig``; ``serving`` holds those of ``ServingConfig``.

    Raises:
        ValueError: a render mode, or a setting that is wrong.
    """

    metadata = {"render_modes": []}  # noqa: RUF012 (Gymnasium's own form)

    def __init__(
        self,
        config: EnvConfig | Mapping[str, Any] | None = None,
        render_mode: str | None = None,
        **keywords: Any,
    ) -> None:
        _refuse_rendering(render_mode)
        super().__init__(config, None, **keywords)


class WDMoEServePriceVectorEnv(ServePriceFace, WDMoEServeVectorEnv):  # type: ignore[misc]
    """N cells of one configuration; see ``WDMoEServePriceEnv`` and ``WDMoEServeVectorEnv``.

    Args:
        num_envs: N.
        render_mode: ``None``.
        **keywords: of ``WDMoEServeVectorEnv``, and fields of ``ServePriceConfig``.

    Raises:
        ValueError: a render mode, or a setting that is wrong.
    """

    def __init__(self, num_envs: int = 1, render_mode: str | None = None, **keywords: Any) -> None:
        self._cohorts = []
        _refuse_rendering(render_mode)
        super().__init__(num_envs, **keywords)


def _refuse_rendering(render_mode: str | None) -> None:
    if render_mode is not None:
        raise ValueError(f"expected render_mode None where a step is a pass, got {render_mode!r}")
