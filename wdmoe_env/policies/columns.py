"""Scale-free figures of every candidate pair and of every device, as columns for the network.

The order of the columns belongs to the files of trained networks.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from wdmoe_env.physics.latency import Bool, Float
from wdmoe_env.policies.draft import Draft
from wdmoe_env.policies.pairs import Pairs

Columns = list[NDArray[Any]]

PAIR_FEATURES = 19
DEVICE_FEATURES = 13
SERVING_FEATURES = 7
# Places among the columns of pairs.
ROUTED, BEST = 2, 3
TINY = 1e-6
LARGEST_LOG = 5.0
# Where requests are served, these are about 1 at a load near 1.
QUEUE_SCALES = np.log1p([4.0, 4.0, 1000.0, 10.0])


def columns_of_pairs(pairs: Pairs, best: Bool, own: Draft) -> Columns:
    """Thirteen columns (M,): the token, its weights, and the expert's price at the model's own routing.

    Args:
        pairs: M of N blocks.
        best: (N, J, E) each token's most probable expert.
        own: prices at the own routing.
    """
    block, weight, first_block = pairs.block, pairs.weight, pairs.block.index == 0
    is_routed, is_best = pairs.at(block.routed), pairs.at(best)
    best_weight = pairs.of_token(weight * is_best)
    # Whether the token is sent to the expert's device anyway.
    beside = pairs.of_delivery(is_routed) - is_routed > 0.5
    position = np.linspace(0.0, 1.0, block.token_mask.shape[1])
    cost, slowest_ms = _cost(pairs, own), work_ms(pairs, own).max(axis=-1)
    return [
        pairs.at(block.gate_probs),
        np.minimum(weight, 2.0),
        is_routed,
        is_best,
        np.minimum(best_weight, 1.0),
        log_ratio(best_weight, weight),
        beside,
        position[pairs.token % len(position)],
        block.index[pairs.episode],
        first_block[pairs.episode],
        log_ratio(cost, 1.0),
        log_ratio(own.latency_ms, slowest_ms)[pairs.episode],
        log_ratio(weight, cost),
    ]


def columns_of_pairs_in(pairs: Pairs, draft: Draft) -> Columns:
    """Three columns (M,): the expert's price in a draft, the weight against it, and how much of the pair is used."""
    worth = log_ratio(pairs.weight, draft.ratio[pairs.episode] * draft.pair_price_ms)
    return [log_ratio(_cost(pairs, draft), 1.0), worth, draft.used]


def columns_of_devices(pairs: Pairs, own: Draft) -> tuple[Columns, Columns]:
    """Four columns (N, U) of what the own routing asks of a device, and three of the device itself."""
    links, work = pairs.block.links, work_ms(pairs, own)
    token_ms = 1e3 * (pairs.block.unit_latency_s + links.compute_s)
    asked = [
        work / np.maximum(work.sum(axis=-1, keepdims=True), TINY),
        work / np.maximum(work.max(axis=-1, keepdims=True), TINY),
        own.served / _tokens(pairs),
        _paid(own),
    ]
    device = [
        log_ratio(token_ms, token_ms.mean(axis=-1, keepdims=True)),
        pairs.block.spectral_efficiency.mean(axis=1) / 10.0,
        1e3 * links.compute_s / np.maximum(token_ms, TINY),
    ]
    return asked, device


def columns_of_devices_in(pairs: Pairs, own: Draft, draft: Draft) -> Columns:
    """Three columns (N, U): what a draft asks of a device, and at what price."""
    return [draft.served / _tokens(pairs), _paid(draft), log_ratio(draft.price_ms, own.price_ms)]


def columns_of_serving(pairs: Pairs, own: Draft, queue: Float, row_phase: Float) -> Columns:
    """Seven columns (M,) where requests are served: the four of the queue, the row's phase, rows, and block latency.

    The other columns are free of scale. What a millisecond is worth is not: it is waited for by all who are there.

    Args:
        pairs: M of N blocks.
        own: prices at the model's own routing.
        queue: (N, 4) of the observation.
        row_phase: (N, J) of the observation.
    """
    of_cell = [*(np.log1p(np.maximum(queue, 0.0)) / QUEUE_SCALES).T]
    size = [log_ratio(_tokens(pairs)[:, 0], 8.0), log_ratio(own.latency_ms, 10.0)]
    columns = [column[pairs.episode] for column in (*of_cell, *size)]
    return [*columns[:4], row_phase.ravel()[pairs.token], *columns[4:]]


def work_ms(pairs: Pairs, own: Draft) -> Float:
    """(N, U) latency of each device under the model's own routing at equal shares, were every pair sent by itself."""
    links = pairs.block.links
    work = 1e3 * own.served * (pairs.block.unit_latency_s + links.compute_s)
    reading = None if links.weights_s is None else pairs.load(own.used).reading_s
    return work if reading is None else work + 1e3 * reading


def log_ratio(above: Any, below: Any) -> Float:
    """Bounded logarithm (M, ...) of the ratio of two arrays of one shape (M, ...), or of an array and a number."""
    return np.clip(np.log(np.maximum(above, TINY) / np.maximum(below, TINY)), -LARGEST_LOG, LARGEST_LOG)


def _tokens(pairs: Pairs) -> Float:
    """(N, 1) number of tokens."""
    return np.maximum(pairs.block.token_mask.sum(axis=-1, keepdims=True), 1.0)


def _cost(pairs: Pairs, draft: Draft) -> Float:
    """(M,) part of a block's latency that a pair costs, times the number of tokens."""
    return draft.pair_price_ms / draft.latency_ms[pairs.episode] * _tokens(pairs)[pairs.episode, 0]


def _paid(draft: Draft) -> Float:
    """(N, U) part of a block's latency that a device is to blame for."""
    return draft.price_ms * draft.served / draft.latency_ms[:, None]
