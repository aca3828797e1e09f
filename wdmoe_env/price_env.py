"""``WDMoE-Price-v0``: one number a step, the price of a millisecond, and the marginal-price rule does the rest."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import numpy as np
from gymnasium import spaces

from wdmoe_env.actions import Decided, ExpertsPart
from wdmoe_env.checks import check_integer, check_number
from wdmoe_env.config import ActionType, DecisionKind, EnvConfig
from wdmoe_env.env import WDMoEEnv
from wdmoe_env.metrics import blocks_as_one
from wdmoe_env.observations import Sizes
from wdmoe_env.physics.latency import Float
from wdmoe_env.policies.price import PRICE, PriceCodec, num_price_features, price_features, priced_selection
from wdmoe_env.policies.rules import DEFAULT_PRICE_PER_MS
from wdmoe_env.process import DecisionProcess, Observer, Seen, Transition, without_requests
from wdmoe_env.rollout.rollout import Rollout
from wdmoe_env.vector_env import WDMoEVectorEnv

FAR = 1e3
"""Bound of the observation. Nothing comes near it: libraries ask for finite bounds."""


@dataclass(frozen=True, slots=True)
class PriceConfig(EnvConfig):
    """Everything that defines a price environment: the fields of ``EnvConfig``, and these.

    Attributes:
        decision: ``"selection"``, which the price decides; the shares are solved.
        reward: as of ``EnvConfig``; ``"latency_divergence"`` unless given.
        action_type: ``"box"`` (numbers from -1 to 1) or ``"discrete"`` (``levels`` prices).
        price_per_ms: price of the action 0, gate weight per millisecond, 1e-9 to 1e9.
        per_block: whether an action holds a price for each of the I blocks and a step is a whole pass.
        levels: number of discrete prices, 2 to 10,001.

    Raises:
        ValueError: a field is out of its range.
        TypeError: a field of another type.
    """

    _ACTION_TYPES: ClassVar[tuple[str, ...]] = ("box", "discrete")

    decision: DecisionKind = "selection"
    reward: Any = "latency_divergence"
    action_type: ActionType = "box"
    price_per_ms: float = DEFAULT_PRICE_PER_MS
    per_block: bool = False
    levels: int = 11

    def __post_init__(self) -> None:
        """Check every field, and make it Python's own."""
        EnvConfig.__post_init__(self)
        if self.decision != "selection":
            raise ValueError(f"decision must be 'selection', which the price decides, got {self.decision!r}")
        number = check_number("price_per_ms", self.price_per_ms, at_least=1e-9, at_most=1e9)
        object.__setattr__(self, "price_per_ms", number)
        object.__setattr__(self, "levels", check_integer("levels", self.levels, at_least=2, at_most=10_001))
        if not isinstance(self.per_block, bool):
            raise TypeError(f"per_block must be a bool, got {self.per_block!r}")


class PriceProcess(DecisionProcess):
    """The decision process whose decision is a price.

    Args:
        config: the configuration.
    """

    config: PriceConfig

    def _faces(self, sizes: Sizes) -> tuple[Any, spaces.Space[Any], Observer]:
        count = sizes.num_blocks if self.config.per_block else 1
        levels = self.config.levels if self.config.action_type == "discrete" else None
        codec = PriceCodec(sizes, self.config.price_per_ms, count, levels)
        space = spaces.Box(-FAR, FAR, (num_price_features(sizes),), dtype=np.float32)
        return codec, space, partial(price_features, num_blocks=sizes.num_blocks, middle=self.config.price_per_ms)

    def step(self, rollout: Rollout, decided: Decided, seen: Seen | None = None, observed: bool = True) -> Transition:
        """Run a block, or under ``per_block`` the whole pass, at the prices decided.

        Args:
            rollout: N episodes that have not ended.
            decided: the prices (N, K).
            seen: is told of each block.
            observed: whether the next observation is wanted.
        """
        prices: Float = decided[PRICE]
        steps, count = [], prices.shape[-1]
        for block in range(count):
            decided = {ExpertsPart.name: priced_selection(rollout.block, prices[:, block])}
            steps.append(super().step(rollout, decided, seen, observed and block == count - 1))
        reward = np.sum([one.reward for one in steps], axis=0)
        return Transition(steps[-1].observation, reward, rollout.done, blocks_as_one([one.info for one in steps]))


class PriceFace:
    """What the environments whose action is a price have in common, single and batched."""

    codec: Any

    def _process_of(self, config: EnvConfig | Mapping[str, Any] | None, keywords: Mapping[str, Any]) -> Any:
        return PriceProcess(without_requests(PriceConfig.make(config, **keywords)))

    def encode_action(self, price_per_ms: Any) -> Any:
        """Action of prices (..., K); see ``PriceCodec.encode``."""
        return self.codec.encode(price_per_ms)

    def decode_action(self, action: Any) -> Any:
        """Prices (..., K) of an action; see ``PriceCodec.decode``."""
        return self.codec.decode(action, self.codec.batch_of(action))[PRICE]


class WDMoEPriceEnv(PriceFace, WDMoEEnv):  # type: ignore[misc]
    """What is a millisecond worth? One number a block, for any algorithm of any library.

    The process, the channels, the texts, the rewards and the info are those of ``WDMoEEnv``. The action is the price of
    a millisecond of block latency in gate weight; the marginal-price rule chooses the experts at that price, and the
    shares are solved. So the line of ``marginal-price:PRICE`` is what every fixed action gives.

    ``Box(-1, 1, (1,))``: the action a is the price ``price_per_ms`` x 10^a, from 0.07 to 7 with the default 0.7.
    ``action_type="discrete"`` is ``Discrete(levels)``, evenly spaced in a. ``per_block=True`` holds a price for each of
    the I blocks, and a step is a whole pass: ``Box(-1, 1, (I,))`` or ``MultiDiscrete``.

    The observation is one flat float32 ``Box``, scaled to about one; its entries stand at
    ``wdmoe_env.policies.price.price_features``. The reward is ``"latency_divergence"`` unless another one is named.

    Under ``per_block`` the figures of ``info`` that add up or average over blocks are those of the pass, and the
    others those of its last block.

    Args:
        config: a ``PriceConfig``, its dict, or nothing.
        render_mode: as of ``WDMoEEnv``.
        **keywords: fields of ``PriceConfig``.
    """


class WDMoEPriceVectorEnv(PriceFace, WDMoEVectorEnv):  # type: ignore[misc]
    """N price environments of one configuration; see ``WDMoEPriceEnv`` and ``WDMoEVectorEnv``."""
