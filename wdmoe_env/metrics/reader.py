"""Results of a step in, its info and rewards out, by the rows of the table."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from wdmoe_env.metrics.metric import REWARD_TERMS, Metric
from wdmoe_env.metrics.results import BlockResult, EpisodeResult
from wdmoe_env.metrics.rewards import RewardFunction, Terms
from wdmoe_env.metrics.table import METRICS, OWN
from wdmoe_env.physics.latency import Float


class MetricReader:
    """Makes the info of a step from its results, by the rows that ``METRICS`` has when the reader is made.

    Args:
        requested: which rows to read too of those that are there only on request, as ``EnvConfig.requested``.
    """

    def __init__(self, requested: tuple[str, ...] = ()) -> None:
        self._requested = requested
        rows = [one for one in METRICS.values() if one.on_request in ("", *requested)]
        self._rows = {
            kind: [_readable(one) for one in rows if one.when == when]
            for kind, when in ((BlockResult, "block"), (EpisodeResult, "episode"))
        }
        self._terms_to_come = [(one.name, one.shape) for one in rows if one.when == "episode" and one.in_terms]

    def __reduce__(self) -> tuple[type[MetricReader], tuple[tuple[str, ...]]]:
        """Rebuild from the table: a row may hold a function that cannot be pickled."""
        return MetricReader, (self._requested,)

    def read(self, result: BlockResult | EpisodeResult, info: dict[str, Any]) -> dict[str, Any]:
        """Write the figures of a result where they belong, in the order of the rows.

        Args:
            result: of N episodes, after a block or after the last one.
            info: gets the entries (N, ...), and the dict of the terms of the reward.

        Returns:
            ``info``.

        Raises:
            ValueError: a registered metric has another shape than its row says.
        """
        terms = info.get(REWARD_TERMS, {})
        for name, value, scale, in_info, in_terms in self._rows[type(result)]:
            figure = value(result)
            if figure is None:  # such as pairs that were not served, which are unknown without a runner
                continue
            if scale != 1.0:
                figure = scale * figure
            if in_info:
                info[name] = figure
            if in_terms:
                terms[name] = figure
        info.setdefault(REWARD_TERMS, terms)
        return info

    def add_terms_to_come(self, info: dict[str, Any]) -> None:
        """Add the terms of the episode before its end, where they are 0.

        Args:
            info: of a block.
        """
        (batch, tokens, experts), devices = info["selection"].shape, info["shares"].shape[-1]
        sizes = {"J": tokens, "E": experts, "U": devices}
        for name, shape in self._terms_to_come:
            info[REWARD_TERMS][name] = np.zeros((batch, *map(sizes.__getitem__, shape)))


_Readable = tuple[str, Callable[[Any], Any], float, bool, bool]


def _readable(metric: Metric) -> _Readable:
    """What reading a row needs; the value of a registered row is checked, since its function may be wrong."""
    value = metric.value if metric.name in OWN else partial(_checked_value, metric)
    return metric.name, value, metric.scale, metric.in_info, metric.in_terms


def _checked_value(metric: Metric, result: BlockResult | EpisodeResult) -> Any:
    value = np.asarray(metric.value(result))
    count = len(result.wlr if isinstance(result, BlockResult) else result.nll)
    if value.ndim != 1 + len(metric.shape) or len(value) != count:
        expected = ", ".join((str(count), *metric.shape))
        raise ValueError(f"expected an array ({expected}) as the metric {metric.name}, got shape {value.shape}")
    return value


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
