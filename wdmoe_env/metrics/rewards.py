"""Rewards: functions of those metrics that are terms."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from operator import itemgetter
from typing import Any

from wdmoe_env.physics.latency import Float

Terms = Mapping[str, Float]
"""Terms of the reward (N, ...) of N episodes by their names."""

RewardFunction = Callable[[Terms], Any]
"""From the terms to rewards (N,)."""


def reward_function(reward: str | RewardFunction, quality_weight: float, energy_weight: float = 0.0) -> RewardFunction:
    """The function from terms to rewards (N,).

    Args:
        reward: ``"wlr"``, ``"wlr_device"``, ``"latency_quality"``, ``"latency_divergence"``,
            ``"latency_quality_energy"`` or a function of the terms.
        quality_weight: cost of one nat of added NLL under ``"latency_quality"``, of divergence under
            ``"latency_divergence"``.
        energy_weight: cost of one joule per token under ``"latency_quality_energy"``.

    Raises:
        ValueError: an unknown name; the known ones are listed.
    """
    known: dict[str, RewardFunction] = {
        "wlr": itemgetter("wlr"),
        "wlr_device": itemgetter("wlr_device"),
        "latency_quality": partial(latency_quality, quality_weight),
        "latency_divergence": partial(latency_divergence, quality_weight),
        "latency_quality_energy": partial(latency_quality_energy, quality_weight, energy_weight),
    }
    if callable(reward):
        return reward
    if reward not in known:
        raise ValueError(f"reward must be one of {', '.join(known)} or a function of the terms, got {reward!r}")
    return known[reward]


def latency_quality_energy(quality_weight: float, energy_weight: float, terms: Terms) -> Float:
    """Rewards (N,) of ``latency_quality``, less the weighted energy of each token in every block, in J."""
    return latency_quality(quality_weight, terms) - energy_weight * terms["energy_per_token_j"]


def latency_quality(quality_weight: float, terms: Terms) -> Float:
    """Rewards (N,): -t / t_vanilla in every block, and after the last less the weighted loss of quality in nats."""
    return -terms["latency_ratio"] - quality_weight * terms["added_nll"]


def latency_divergence(quality_weight: float, terms: Terms) -> Float:
    """Rewards (N,): as ``latency_quality``, with the divergence of the predictions in place of the added NLL.

    Both have the same aim. The NLL is that of the one text that came, the divergence its mean over all texts that the
    own routing expects; so it carries less noise.
    """
    return -terms["latency_ratio"] - quality_weight * terms["divergence"]
