"""Metrics: every figure of a step and of an episode, declared once, and the rewards that are made of them.

A row of ``METRICS`` says what a figure is called, its shape and unit, what it means, how it is reduced over the blocks
of an episode, and which way is better. ``info``, the terms of the reward, the measurements of an evaluation, and the
names, units and directions in tables and pictures are read from there, so a new figure is one row; ``register_metric``
adds one from outside. A reward is a function of those metrics that are terms, a dict that also stands in ``info``.
"""

from wdmoe_env.metrics.metric import REWARD_TERMS, Metric
from wdmoe_env.metrics.reader import MetricReader, evaluate_reward
from wdmoe_env.metrics.results import BlockResult, EpisodeResult
from wdmoe_env.metrics.rewards import RewardFunction, Terms, reward_function
from wdmoe_env.metrics.table import METRICS, blocks_as_one, register_metric, result_metrics, results_of

__all__ = [
    "METRICS",
    "REWARD_TERMS",
    "BlockResult",
    "EpisodeResult",
    "Metric",
    "MetricReader",
    "RewardFunction",
    "Terms",
    "blocks_as_one",
    "evaluate_reward",
    "register_metric",
    "result_metrics",
    "results_of",
    "reward_function",
]
