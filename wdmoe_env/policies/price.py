"""A price as the decision: what a millisecond of block latency is worth in gate weight.

The marginal-price rule makes a selection of a price, so one number decides on a block of any size. This module has what
an agent sees of a block when it chooses the price, and the ladder from actions to prices.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from wdmoe_env.checks import real_array
from wdmoe_env.observations import Block, Sizes
from wdmoe_env.optimize.bandwidth import min_max_bandwidth
from wdmoe_env.optimize.pricing import device_prices, pair_prices
from wdmoe_env.physics.latency import Float, device_load, sum_over_tokens_s
from wdmoe_env.policies.rules import marginal_price

PRICE = "price_per_ms"
"""Name of what a price action decides, (N, K): one price, or one for each block of a pass."""

SPAN = math.log(10.0)
"""A price at the end of the range is ten times the one in the middle, or a tenth of it."""

QUANTILES = np.linspace(0.1, 0.9, 9)
FEATURES_OF_BLOCK = 4
QUEUE_FEATURES = 6
MOST_OF_QUEUE = 10.0
"""What a cell's queue is told by is cut there."""
FURTHEST = 2.0
"""Break-even prices beyond twice the range of actions are cut there: all of them are out of reach."""


class PriceCodec:
    """Translates between actions and prices; both directions take leading batch axes.

    An action a in [-1, 1] stands for the price middle x exp(SPAN a). Discrete actions are evenly spaced in a.

    Args:
        sizes: J, E and U.
        middle: price of the action 0, gate weight per millisecond.
        count: K, prices of an action.
        levels: number of discrete prices; ``None`` takes actions from a ``Box``.

    Attributes:
        sizes: as given.
        space: action space of a single environment.
    """

    def __init__(self, sizes: Sizes, middle: float, count: int = 1, levels: int | None = None) -> None:
        self.sizes, self._middle, self._count, self._levels = sizes, middle, count, levels
        self._shape = () if levels is not None and count == 1 else (count,)
        self.space: spaces.Space[Any] = spaces.Box(-1.0, 1.0, (count,), dtype=np.float32)
        if levels is not None:
            self.space = spaces.MultiDiscrete([levels] * count) if self._shape else spaces.Discrete(levels)

    def encode(self, price_per_ms: Any) -> NDArray[Any]:
        """Actions of prices (..., K), or of one price for all; prices out of range are cut, and discrete ones rounded.

        Args:
            price_per_ms: (..., K) above 0, or a number.

        Raises:
            ValueError: another shape, or a price that is not above 0.
            TypeError: no real numbers.
        """
        prices = real_array(PRICE, price_per_ms)
        prices = np.broadcast_to(prices, (*prices.shape[:-1], self._count))
        if not (np.isfinite(prices) & (prices > 0)).all():
            raise ValueError(f"expected {PRICE} above 0, got {prices.min():g}")
        action = np.clip(np.log(prices / self._middle) / SPAN, -1.0, 1.0)
        if self._levels is None:
            return action.astype(np.float32)
        chosen = np.rint((action + 1.0) / 2.0 * (self._levels - 1)).astype(np.int64)
        return chosen if self._shape else np.asarray(chosen[..., 0])

    def decode(self, action: Any, batch: tuple[int, ...] = ()) -> dict[str, NDArray[Any]]:
        """Prices (..., K) of an action, by the name ``PRICE``; numbers beyond -1 and 1 are cut.

        Args:
            action: of the action space, with leading axes.
            batch: these axes, ``()`` or ``(N,)``.

        Raises:
            ValueError: another shape, NaN, or no number of a discrete price.
            TypeError: no real numbers.
        """
        numbers = real_array("action", action)
        if numbers.shape != (*batch, *self._shape):
            raise ValueError(f"expected action of shape {(*batch, *self._shape)}, got {numbers.shape}")
        if not np.isfinite(numbers).all():
            raise ValueError("expected action without NaN or infinity, got such values")
        if self._levels is not None:
            if ((numbers != np.rint(numbers)) | (numbers < 0) | (numbers >= self._levels)).any():
                raise ValueError(f"expected action of whole numbers from 0 to {self._levels - 1}, got {numbers}")
            numbers = 2.0 * numbers.reshape(*batch, self._count) / (self._levels - 1) - 1.0
        return {PRICE: self._middle * np.exp(SPAN * np.clip(numbers, -1.0, 1.0))}

    def decode_one(self, action: Any) -> dict[str, NDArray[Any]]:
        """Prices (1, K) of an action without leading axes; see ``decode``."""
        return {name: value[None] for name, value in self.decode(action).items()}

    def batch_of(self, action: Any) -> tuple[int, ...]:
        """Leading axes of an action."""
        shape = np.shape(action)
        return shape[: max(len(shape) - len(self._shape), 0)]


def num_price_features(sizes: Sizes) -> int:
    """Numbers that ``price_features`` gives for a block."""
    return FEATURES_OF_BLOCK + sizes.num_blocks + len(QUANTILES) + 2 * sizes.num_devices


def price_features(block: Block, num_blocks: int, middle: float) -> NDArray[np.float32]:
    """What an agent sees of a block when it chooses a price, scaled to about one.

    In this order: which block it is (I, one of them 1); tokens over J; the own routing's optimal latency t in seconds
    as a logarithm to base 10, plus 2; t over that at equal shares; what leaving out every token's weaker experts saves
    of t at the margin; quantiles from 10 to 90 % of the actions at which a token's weaker expert is just worth its
    price; each device's share of the tokens (U), and of the latency at the margin (U).

    Args:
        block: N episodes.
        num_blocks: I.
        middle: price of the action 0, gate weight per millisecond.

    Returns:
        (N, F), see ``num_price_features``.
    """
    links, routed, batch = block.links, block.routed, len(block.index)
    load = device_load(routed, links)
    optimum = min_max_bandwidth(links, load)
    prices = device_prices(links, load, optimum, np.ones(batch), 0.0)  # at one a millisecond: milliseconds
    pair_ms = pair_prices(prices, routed, links)
    busy = load.tokens.any(axis=-1)
    t_ms = np.where(busy, 1e3 * optimum.latency_s, 1.0)
    equal_ms = 1e3 * sum_over_tokens_s(links, load, block.unit_latency_s).max(axis=-1)
    weaker = routed & (np.where(routed, block.weights, -1.0).argmax(axis=-1)[..., None] != np.arange(routed.shape[-1]))
    count = max(block.token_mask.shape[-1], 1)
    of_block = (
        block.token_mask.mean(axis=-1),
        np.where(busy, np.log10(t_ms) - 1.0, 0.0),  # log10 of seconds, plus 2
        np.divide(t_ms, equal_ms, out=np.ones(batch), where=equal_ms > 0),
        (pair_ms * weaker).sum(axis=(1, 2)) / t_ms,
    )
    # After the last block the index is I, and no block is marked.
    which = np.rint(block.index * num_blocks)[:, None] == np.arange(num_blocks)
    at_device = load.tokens * prices.token + load.experts * prices.expert
    columns = (
        which,
        np.stack(of_block, axis=-1),
        _break_even(block.weights, pair_ms, weaker, middle),
        load.tokens / count,
        at_device / t_ms[:, None],
    )
    return np.concatenate(columns, axis=-1, dtype=np.float32, casting="same_kind")


def queue_features(queue: Float, row_phase: Float, token_mask: NDArray[np.bool_], slots: int) -> NDArray[np.float32]:
    """What an agent sees of a cell's queue when it chooses a price for a pass, scaled to about one.

    In this order: ln(1 + requests that wait); that number over the slots; requests that run over the slots; age of the
    oldest in s; ln(1 + arrivals in the last second); share of the tokens that are of an answer.

    Args:
        queue: (N, 4) of the observation.
        row_phase: (N, J) of the observation.
        token_mask: (N, J) True where there is a token.
        slots: S of a cell.

    Returns:
        (N, 6).
    """
    columns = (
        np.log1p(queue[:, 0]),
        np.minimum(queue[:, 0] / slots, MOST_OF_QUEUE),
        queue[:, 1] / slots,
        np.minimum(queue[:, 2] / 1e3, MOST_OF_QUEUE),
        np.log1p(queue[:, 3]),
        row_phase.sum(axis=-1) / np.maximum(token_mask.sum(axis=-1), 1),
    )
    return np.stack(columns, axis=-1).astype(np.float32)


def _break_even(weights: Float, pair_ms: Float, weaker: NDArray[np.bool_], middle: float) -> Float:
    """Quantiles (N, Q) of the actions at which a token's weaker experts are just worth their price."""
    least = 1e-9
    action = np.log(np.maximum(weights, least) / np.maximum(pair_ms, least) / middle) / SPAN
    action = np.where(weaker, np.clip(action, -FURTHEST, FURTHEST), np.inf)
    ordered = np.sort(action.reshape(len(action), -1), axis=-1)
    count = weaker.sum(axis=(1, 2))
    place = np.floor(QUANTILES * np.maximum(count - 1, 0)[:, None]).astype(np.int64)
    return np.where(count[:, None] > 0, np.take_along_axis(ordered, place, axis=-1), 0.0)


def priced_selection(block: Block, price_per_ms: Float) -> NDArray[np.bool_]:
    """Selection (N, J, E) of the marginal-price rule at prices (N,) per millisecond."""
    selection, _ = marginal_price(block, price_per_ms)
    return selection
