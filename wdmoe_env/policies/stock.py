"""Policies that stock algorithms learned on the price and token environments, acting in any id that selects experts.

Each is a perceptron over the features of its environment, with tanh between its layers.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from wdmoe_env.actions import ActionCodec, ExpertsPart, settled_plan
from wdmoe_env.observations import Block, decode_observation
from wdmoe_env.physics.latency import Bool, Float
from wdmoe_env.policies.network import check_outputs
from wdmoe_env.policies.policy import ObservationMapping, State, StatelessPolicy, batched, first
from wdmoe_env.policies.price import PRICE, PriceCodec, price_features, priced_selection, queue_features
from wdmoe_env.policies.tokens import selection_of, token_features


def tanh_perceptron(sizes: list[int]) -> nn.Sequential:
    """Linear layers of these sizes with tanh between them, as Stable-Baselines3's ``MlpPolicy`` has."""
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(sizes):
        layers += [nn.Linear(inputs, outputs), nn.Tanh()]
    return nn.Sequential(*layers[:-1])


class StockPolicy(StatelessPolicy):
    """Acts with a perceptron over features of a block.

    Args:
        network: from features to outputs.
        codec: of the environment that it acts in.
        num_blocks: I of the environment that it learned in, which must be that of the one that it acts in.
        hidden_size: H where it reads hidden states, else 0.
    """

    def __init__(self, network: nn.Module, codec: ActionCodec, num_blocks: int, hidden_size: int = 0) -> None:
        super().__init__(codec)
        self.network, self.num_blocks, self.hidden_size = network, num_blocks, hidden_size

    @abstractmethod
    def selection(self, block: Block, deterministic: bool) -> Bool:
        """Experts (N, J, E) of a block of N episodes.

        Args:
            block: of N episodes.
            deterministic: whether to take the most probable choice.
        """

    def actions(self, batch: dict[str, Any], deterministic: bool) -> Any:
        """Actions of N observations; see ``StatelessPolicy.actions``.

        Args:
            batch: entries (N, ...).
            deterministic: whether to take the most probable choices.

        Raises:
            ValueError: it reads hidden states and there are none; see ``outputs_of``.
        """
        block = decode_observation(batch)
        if self.hidden_size and block.hidden_states is None:
            raise ValueError("expected an observation with hidden_states, which this policy reads, got one without")
        if not self.hidden_size:
            block = replace(block, hidden_states=None)
        return at_solved_shares(self.codec, block, self.selection(block, deterministic))


def at_solved_shares(codec: ActionCodec, block: Block, selection: Bool) -> Any:
    """Actions of a selection (N, J, E) of a block, at the shares that are best for what the environment will run."""
    plan = settled_plan(block, {ExpertsPart.name: selection}, min_share=0.0)
    return codec.encode(plan.selection, plan.shares)


def outputs_of(network: nn.Module, features: NDArray[np.float32]) -> Tensor:
    """Outputs (..., O) of a network on features (..., F).

    Raises:
        ValueError: another number of features, or outputs that are not finite.
    """
    expected = next(network.parameters()).shape[1]
    if features.shape[-1] != expected:
        raise ValueError(f"this policy reads {expected} numbers, got {features.shape[-1]}: another environment's")
    with torch.no_grad():
        return check_outputs(network(torch.from_numpy(features)), "outputs")


class TokenPolicy(StockPolicy):
    """Chooses for each token by the logits of its choices; see ``wdmoe_env.policies.tokens``."""

    def selection(self, block: Block, deterministic: bool) -> Bool:
        """See ``StockPolicy.selection``; (N, J, E).

        Args:
            block: of N episodes.
            deterministic: whether to take the most probable choice.
        """
        logits = outputs_of(self.network, token_features(block, self.num_blocks))
        if deterministic:
            return selection_of(block, logits.argmax(-1).numpy())
        drawn = logits.softmax(-1).flatten(0, 1).multinomial(1)
        return selection_of(block, drawn.reshape(logits.shape[:-1]).numpy())


class PricePolicy(StockPolicy):
    """Chooses the price of a millisecond; see ``wdmoe_env.policies.price``.

    Args:
        network: from features to an action.
        codec: of the environment that it acts in.
        num_blocks: I.
        middle: price of the action 0, gate weight per millisecond.
    """

    def __init__(self, network: nn.Module, codec: ActionCodec, num_blocks: int, middle: float) -> None:
        super().__init__(network, codec, num_blocks)
        self._prices, self._middle = PriceCodec(codec.sizes, middle), middle

    def selection(self, block: Block, deterministic: bool) -> Bool:
        """See ``StockPolicy.selection``; (N, J, E). The action of greatest density is taken in any case.

        Args:
            block: of N episodes.
            deterministic: of no effect.
        """
        action = outputs_of(self.network, price_features(block, self.num_blocks, self._middle)).numpy()
        return priced_selection(block, self._prices.decode(action, (len(action),))[PRICE][:, 0])


class PassPricePolicy:
    """Chooses prices of a millisecond for a pass of a cell that serves requests: one, or one for each block.

    The state is these prices. See ``wdmoe_env.serve_price_env``.

    Args:
        network: from features to an action of K prices; the last of them holds for all further blocks.
        codec: of the environment that it acts in.
        num_blocks: I.
        middle: price of the action 0, gate weight per millisecond.
        slots: S of the cell that it learned in.
    """

    def __init__(self, network: nn.Module, codec: ActionCodec, num_blocks: int, middle: float, slots: int) -> None:
        self.network, self.codec, self.num_blocks = network, codec, num_blocks
        *_, last = (layer for layer in network.modules() if isinstance(layer, nn.Linear))
        self._prices, self._middle, self._slots = PriceCodec(codec.sizes, middle, last.out_features), middle, slots

    def predict(
        self,
        observation: ObservationMapping,
        state: State = None,
        episode_start: Any = None,
        deterministic: bool = True,
    ) -> tuple[Any, State]:
        """Actions of observations, at the prices of greatest density in any case; see ``Policy``.

        Raises:
            ValueError: the observation has no queue; see ``batched`` and ``outputs_of``.
        """
        batch, single = batched(observation, self.codec)
        if "queue" not in batch:
            raise ValueError(
                "expected an observation with a queue, which this policy reads, got one without: it learned to serve "
                "requests, as in WDMoE-Serve-v0"
            )
        block = replace(decode_observation(batch), hidden_states=None)
        begins, prices = block.index == 0, None if state is None else np.array(state[0])
        if episode_start is not None:
            begins = begins | np.asarray(episode_start, dtype=bool)
        if prices is None or begins.any():
            chosen = self._prices_of(block, batch)
            prices = chosen if prices is None else np.where(begins[:, None], chosen, prices)
        number = np.minimum(np.rint(block.index * self.num_blocks).astype(np.int64), prices.shape[-1] - 1)
        selection = priced_selection(block, prices[np.arange(len(number)), number])
        actions = at_solved_shares(self.codec, block, selection)
        return (first(actions) if single else actions), (prices,)

    def _prices_of(self, block: Block, batch: dict[str, Any]) -> Float:
        """Prices (N, K) for passes of which these are the first blocks."""
        queue, phase = (np.asarray(batch[name], dtype=np.float64) for name in ("queue", "row_phase"))
        of_queue = queue_features(queue, phase, block.token_mask, self._slots)
        features = np.concatenate([price_features(block, self.num_blocks, self._middle), of_queue], axis=-1)
        action = outputs_of(self.network, features).numpy()
        prices: Float = self._prices.decode(action, (len(action),))[PRICE]
        return prices
