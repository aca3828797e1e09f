"""Tokens as agents: the choices that a token has, what it sees, and what it is to blame for.

All tokens of all episodes share one policy, so a decision on a block of any size is one small decision many times over.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from wdmoe_env.checks import real_array
from wdmoe_env.observations import Block, Sizes
from wdmoe_env.optimize.bandwidth import min_max_bandwidth
from wdmoe_env.optimize.pricing import device_prices, one_hot, pair_prices
from wdmoe_env.physics.latency import Bool, Float, device_load, sum_over_tokens_s

CHOICES = "choices"
"""Name of what an action decides, (N, J): a choice of each token."""

CHOICE_NAMES = ("own routing", "best alone", "best and third", "second alone")

RANKED = 3
FEATURES_OF_TOKEN = 3 * RANKED + 8
MOST = 10.0
"""Features are cut there; few come near it."""


@dataclass(frozen=True, slots=True)
class Ranked:
    """The experts that a token's choices are made of.

    The best and the second are the routed experts of most weight. The third is the most probable one of those that are
    not routed: the third of a model that routes to two. Where a model has too few experts, it is the best again.

    Attributes:
        experts: (N, J, 3) indices of best, second and third.
    """

    experts: NDArray[np.int64]

    @classmethod
    def of(cls, block: Block) -> Ranked:
        """Those of N blocks."""
        count = block.routed.shape[-1]
        order = np.argsort(-(block.gate_probs + 2e3 * block.routed), axis=-1, kind="stable")
        top_k = block.routed.sum(axis=-1)
        second = np.minimum(1, count - 1)
        third = np.where(top_k < count, np.minimum(np.maximum(top_k, second), count - 1), 0)
        places = np.stack((np.zeros_like(third), np.full_like(third, second), third), axis=-1)
        return cls(np.take_along_axis(order, places, axis=-1))

    def at(self, values: Float) -> Float:
        """(N, J, 3) of values (N, J, E)."""
        return np.take_along_axis(values, self.experts, axis=-1)

    def selection(self, block: Block, choices: NDArray[np.int64]) -> Bool:
        """Selection (N, J, E) of the choices (N, J) of the tokens of a block; padding has none."""
        best, second, third = (one_hot(self.experts[..., rank], block.routed.shape[-1]) for rank in range(RANKED))
        chosen = np.select(
            [(choices == one)[..., None] for one in range(len(CHOICE_NAMES))],
            [block.routed, best, best | third, second],
            default=False,
        )
        return np.asarray(chosen & block.token_mask[..., None])


def selection_of(block: Block, choices: NDArray[np.int64]) -> Bool:
    """Selection (N, J, E) of the choices (N, J) of the tokens of a block; padding has none."""
    return Ranked.of(block).selection(block, choices)


class TokenCodec:
    """Translates between actions, ``MultiDiscrete``, and choices; both directions take leading batch axes.

    Args:
        sizes: J, E and U.

    Attributes:
        sizes: as given.
        space: action space of a single environment.
    """

    def __init__(self, sizes: Sizes) -> None:
        self.sizes = sizes
        self.space: spaces.Space[Any] = spaces.MultiDiscrete([len(CHOICE_NAMES)] * sizes.num_tokens)

    def encode(self, choices: Any) -> NDArray[np.int64]:
        """Actions of choices (..., J).

        Raises:
            ValueError: another number of tokens, or no numbers of choices.
            TypeError: no real numbers.
        """
        return self._checked(CHOICES, choices, np.shape(choices)[:-1])

    def decode(self, action: Any, batch: tuple[int, ...] = ()) -> dict[str, NDArray[Any]]:
        """Choices (..., J) of an action, by the name ``CHOICES``.

        Args:
            action: of the action space, with leading axes.
            batch: these axes, ``()`` or ``(N,)``.

        Raises:
            ValueError: another shape, or no numbers of choices.
            TypeError: no real numbers.
        """
        return {CHOICES: self._checked("action", action, batch)}

    def decode_one(self, action: Any) -> dict[str, NDArray[Any]]:
        """Choices (1, J) of an action without leading axes; see ``decode``."""
        return {name: value[None] for name, value in self.decode(action).items()}

    def batch_of(self, action: Any) -> tuple[int, ...]:
        """Leading axes of an action."""
        return np.shape(action)[:-1]

    def _checked(self, name: str, value: Any, batch: tuple[int, ...]) -> NDArray[np.int64]:
        numbers, expected = real_array(name, value), (*batch, self.sizes.num_tokens)
        if numbers.shape != expected:
            raise ValueError(f"expected {name} of shape {expected}, got {numbers.shape}")
        if not np.isin(numbers, range(len(CHOICE_NAMES))).all():
            raise ValueError(f"expected {name} of whole numbers from 0 to {len(CHOICE_NAMES) - 1}, got other values")
        return numbers.astype(np.int64)


def num_token_features(sizes: Sizes, hidden_states: bool = False) -> int:
    """Numbers that ``token_features`` gives for a token."""
    return FEATURES_OF_TOKEN + sizes.num_blocks + (sizes.hidden_size if hidden_states else 0)


def token_features(block: Block, num_blocks: int) -> NDArray[np.float32]:
    """What each token sees of a block, scaled to about one; 0 at padding.

    In this order: gate weights of its best, second and third expert; the router's scores of these; what they cost at
    the margin under the own routing, in units of the block's latency over its tokens; the logarithm of the second's
    weight over its cost; the ranks within the window of the second's weight, of its cost and of that ratio, from 0 to
    1; the place of the token in the window, from 0 to 1; the own routing's optimal latency over that at equal shares,
    and in seconds as a logarithm to base 10, plus 2; 1 as the mark of a token; which block it is (I, one of them 1);
    the hidden state over its root mean square (H), where it is observed.

    Args:
        block: N episodes.
        num_blocks: I.

    Returns:
        (N, J, F), see ``num_token_features``.
    """
    mask, links = block.token_mask, block.links
    batch, tokens = mask.shape
    load = device_load(block.routed, links)
    optimum = min_max_bandwidth(links, load)
    prices = device_prices(links, load, optimum, np.ones(batch), 0.0)  # at one a millisecond: milliseconds
    ranked = Ranked.of(block)
    t_ms = np.where(load.tokens.any(axis=-1), 1e3 * optimum.latency_s, 1.0)
    equal_ms = 1e3 * sum_over_tokens_s(links, load, block.unit_latency_s).max(axis=-1)
    weights = ranked.at(block.weights)
    cost = ranked.at(pair_prices(prices, block.routed, links)) * (mask.sum(axis=-1) / t_ms)[:, None, None]
    ratio = np.log(np.maximum(weights[..., 1], 1e-6) / np.maximum(cost[..., 1], 1e-6))
    over_equal = np.divide(t_ms, equal_ms, out=np.ones(batch), where=equal_ms > 0)
    of_window = (over_equal, np.log10(t_ms) - 1.0, np.ones(batch))  # log10 of seconds, plus 2
    which = np.rint(block.index * num_blocks)[:, None] == np.arange(num_blocks)
    columns = [
        weights,
        ranked.at(block.gate_probs),
        cost,
        ratio[..., None],
        *(_rank(values, mask)[..., None] for values in (weights[..., 1], cost[..., 1], ratio)),
        np.broadcast_to(np.linspace(0.0, 1.0, tokens)[:, None], (batch, tokens, 1)),
        np.broadcast_to(np.stack(of_window, axis=-1)[:, None], (batch, tokens, len(of_window))),
        np.broadcast_to(which[:, None], (batch, tokens, num_blocks)),
    ]
    if block.hidden_states is not None:
        hidden = np.asarray(block.hidden_states, dtype=np.float64)
        columns.append(hidden / np.sqrt(np.maximum((hidden**2).mean(axis=-1, keepdims=True), 1e-12)))
    features = np.concatenate(columns, axis=-1, dtype=np.float64)
    return np.where(mask[..., None], np.clip(features, -MOST, MOST), 0.0).astype(np.float32)


def _rank(values: Float, mask: Bool) -> Float:
    """Rank of each token's value (N, J) within its window, 0 for the least and 1 for the greatest; padding is last."""
    order = np.argsort(np.argsort(np.where(mask, values, np.inf), axis=-1, kind="stable"), axis=-1, kind="stable")
    return order / np.maximum(mask.sum(axis=-1, keepdims=True) - 1, 1)
