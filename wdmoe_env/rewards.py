"""Rewards from named terms: what a step is worth is one function of a dict that stands in ``info``.

Terms, each an array (N,):

    gate_weight_served    W, gate weight served by the selection
    block_latency_ms      t, milliseconds
    vanilla_latency_ms    t of the model's own routing at equal shares on the same block
    wlr                   W / t in 1/ms, block form of equation (8)
    wlr_device            sum over loaded devices of W[u] / t[u] in 1/ms, its device form
    latency_ratio         t / t_vanilla
    added_nll             NLL minus that of the model's own routing, nats per token; 0 before the last step
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from operator import itemgetter
from typing import Any

import numpy as np

from wdmoe_env.physics.latency import Float

Terms = Mapping[str, Float]
RewardFunction = Callable[[Terms], Any]


def reward_function(reward: str | RewardFunction, quality_weight: float) -> RewardFunction:
    """The function from terms to rewards (N,).

    Args:
        reward: ``"wlr"``, ``"wlr_device"``, ``"latency_quality"`` or a function of the terms.
        quality_weight: cost of one nat of added NLL under ``"latency_quality"``.

    Raises:
        ValueError: an unknown name; the known ones are listed.
    """
    known: dict[str, RewardFunction] = {
        "wlr": itemgetter("wlr"),
        "wlr_device": itemgetter("wlr_device"),
        "latency_quality": partial(latency_quality, quality_weight),
    }
    if callable(reward):
        return reward
    if reward not in known:
        raise ValueError(f"reward must be one of {', '.join(known)} or a function of the terms, got {reward!r}")
    return known[reward]


def latency_quality(quality_weight: float, terms: Terms) -> Float:
    """Rewards (N,): -t / t_vanilla in every block, and after the last less the weighted loss of quality in nats."""
    return -terms["latency_ratio"] - quality_weight * terms["added_nll"]


def evaluate_reward(function: RewardFunction, terms: Terms) -> Float:
    """Rewards (N,) of the terms.

    Raises:
        ValueError: the function gave another shape, or a value that is not finite.
    """
    rewards = np.asarray(function(terms), dtype=np.float64)
    expected = terms["wlr"].shape
    if rewards.shape != expected or not np.isfinite(rewards).all():
        raise ValueError(f"expected finite rewards of shape {expected}, got {rewards!r}")
    return rewards
