"""The table of metrics: every figure of a step and of an episode, declared once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from operator import attrgetter
from typing import Any

import numpy as np

from wdmoe_env.metrics.metric import REWARD_TERMS, Metric
from wdmoe_env.physics.latency import Float


def _table(*rows: Metric) -> dict[str, Metric]:
    return {row.name: row for row in rows}


# The order of the rows is that of the keys in info, of the terms, and of the columns of an evaluation.
METRICS: dict[str, Metric] = _table(
    Metric(
        name="unserved_pairs",
        shape=(),
        unit="-",
        meaning="chosen pairs of token and expert that the runner did not serve",
        when="block",
        value=attrgetter("unserved_pairs"),
        over_blocks="sum",
        better="lower",
    ),
    Metric(
        name="simulated_latency_ms",
        shape=(),
        unit="ms",
        meaning="what the simulator says of a block that a testbed measured",
        when="block",
        value=attrgetter("simulated_latency_s"),
        scale=1e3,
        over_blocks="sum",
        better="lower",
        label="simulated",
    ),
    Metric(
        name="gate_weight_served",
        shape=(),
        unit="-",
        meaning="W: gate weight of the experts that ran, summed over tokens",
        when="block",
        value=attrgetter("gate_weight_served"),
        over_blocks="sum",
        better="higher",
        in_info=False,
        in_terms=True,
    ),
    Metric(
        name="block_latency_ms",
        shape=(),
        unit="ms",
        meaning="t: time until the slowest device has answered",
        when="block",
        value=attrgetter("block_latency_s"),
        scale=1e3,
        over_blocks="sum",
        better="lower",
        label="block latency",
        in_terms=True,
    ),
    Metric(
        name="device_latency_ms",
        shape=("U",),
        unit="ms",
        meaning="t[u]: time until this device has answered",
        when="block",
        value=attrgetter("device_latency_s"),
        scale=1e3,
        better="lower",
    ),
    Metric(
        name="load",
        shape=("U",),
        unit="-",
        meaning="tokens that this device served",
        when="block",
        value=attrgetter("tokens"),
        over_blocks="sum",
    ),
    Metric(
        name="shares",
        shape=("U",),
        unit="-",
        meaning="share of the bandwidth that this device had",
        when="block",
        value=attrgetter("shares"),
        over_blocks="mean",
    ),
    Metric(
        name="selection",
        shape=("J", "E"),
        unit="-",
        meaning="whether this expert was used for this token",
        when="block",
        value=attrgetter("selection"),
    ),
    Metric(
        name="vanilla_latency_ms",
        shape=(),
        unit="ms",
        meaning="t_vanilla: t of the model's own routing at equal shares",
        when="block",
        value=attrgetter("vanilla_latency_s"),
        scale=1e3,
        over_blocks="sum",
        in_info=False,
        in_terms=True,
    ),
    Metric(
        name="latency_ms",
        shape=(),
        unit="ms",
        meaning="sum of t over the blocks",
        when="episode",
        value=attrgetter("latency_s"),
        scale=1e3,
        better="lower",
        label="latency",
        in_results=True,
    ),
    Metric(
        name="wlr",
        shape=(),
        unit="1/ms",
        meaning="equation (8): W / t, gate weight served per millisecond",
        when="block",
        value=attrgetter("wlr"),
        over_blocks="mean",
        better="higher",
        label="WLR",
        in_terms=True,
        in_results=True,
    ),
    Metric(
        name="wlr_device",
        shape=(),
        unit="1/ms",
        meaning="equation (8) by device: W[u] / t[u], summed over devices",
        when="block",
        value=attrgetter("wlr_device"),
        over_blocks="mean",
        better="higher",
        in_terms=True,
    ),
    Metric(
        name="latency_ratio",
        shape=(),
        unit="-",
        meaning="t / t_vanilla: below 1 is faster than the own routing",
        when="block",
        value=attrgetter("latency_ratio"),
        over_blocks="mean",
        better="lower",
        in_info=False,
        in_terms=True,
    ),
    Metric(
        name="nll",
        shape=(),
        unit="nats",
        meaning="negative log-likelihood of the text, mean over tokens",
        when="episode",
        value=attrgetter("nll"),
        better="lower",
        label="NLL",
        in_results=True,
    ),
    Metric(
        name="token_nll",
        shape=("J",),
        unit="nats",
        meaning="negative log-likelihood of this token, 0 at padding",
        when="episode",
        value=attrgetter("token_nll"),
        better="lower",
    ),
    Metric(
        name="added_nll",
        shape=(),
        unit="nats",
        meaning="`nll` minus `reference_nll`; 0 before the last block",
        when="episode",
        value=lambda episode: episode.nll - episode.reference_nll,
        better="lower",
        label="added NLL",
        in_info=False,
        in_terms=True,
        in_results=True,
    ),
    Metric(
        name="next_token_accuracy",
        shape=(),
        unit="-",
        meaning="share of tokens whose next token the model guessed",
        when="episode",
        value=attrgetter("next_token_accuracy"),
        better="higher",
        label="accuracy",
        in_results=True,
    ),
    Metric(
        name="reference_nll",
        shape=(),
        unit="nats",
        meaning="`nll` of the model's own routing on the same window",
        when="episode",
        value=attrgetter("reference_nll"),
    ),
    Metric(
        name="gate_weight_kept",
        shape=(),
        unit="-",
        meaning="W over that of the model's own routing",
        when="block",
        value=attrgetter("gate_weight_kept"),
        over_blocks="mean",
        better="higher",
        in_results=True,
    ),
    Metric(
        name="repaired_tokens",
        shape=(),
        unit="-",
        meaning="tokens that the action left without an expert",
        when="block",
        value=attrgetter("repaired_tokens"),
        over_blocks="sum",
        in_results=True,
    ),
    Metric(
        name="replaced_pairs",
        shape=(),
        unit="-",
        meaning="chosen pairs whose device was away; the next best expert ran",
        when="block",
        value=attrgetter("replaced_pairs"),
        over_blocks="sum",
        better="lower",
    ),
    Metric(
        name="unserved_tokens",
        shape=(),
        unit="-",
        meaning="tokens that went on without the block: no expert was there",
        when="block",
        value=attrgetter("unserved_tokens"),
        over_blocks="sum",
        better="lower",
    ),
    Metric(
        name="pair_price_ms",
        shape=("J", "E"),
        unit="ms",
        meaning="what this pair adds to t at the margin, at the bandwidth optimum",
        when="block",
        value=attrgetter("pair_price_s"),
        scale=1e3,
        better="lower",
        in_info=False,
        in_terms=True,
        on_request="token_terms",
    ),
    Metric(
        name="token_price_ms",
        shape=("J",),
        unit="ms",
        meaning="what the pairs of this token cost together; they add up to t",
        when="block",
        value=attrgetter("token_price_s"),
        scale=1e3,
        better="lower",
        in_info=False,
        in_terms=True,
        on_request="token_terms",
    ),
    Metric(
        name="token_divergence",
        shape=("J",),
        unit="nats",
        meaning="KL of the predictions from the own routing's; 0 before the last block",
        when="episode",
        value=attrgetter("token_divergence"),
        better="lower",
        in_info=False,
        in_terms=True,
        on_request="token_terms",
    ),
    Metric(
        name="divergence",
        shape=(),
        unit="nats",
        meaning="mean of `token_divergence` over the tokens; 0 before the last block",
        when="episode",
        value=attrgetter("divergence"),
        better="lower",
        label="divergence",
        in_info=False,
        in_terms=True,
        on_request="token_terms",
    ),
    Metric(
        name="reference_token_nll",
        shape=("J",),
        unit="nats",
        meaning="`token_nll` of the model's own routing; 0 before the last block",
        when="episode",
        value=attrgetter("reference_token_nll"),
        in_info=False,
        in_terms=True,
        on_request="token_terms",
    ),
    Metric(
        name="message_bits",
        shape=(),
        unit="-",
        meaning="bits of an element on the link, mean over the messages",
        when="block",
        value=attrgetter("message_bits"),
        over_blocks="mean",
        better="lower",
        in_terms=True,
        on_request="bits",
    ),
    Metric(
        name="device_energy_j",
        shape=(),
        unit="J",
        meaning="equation (12): active power x busy time + idle power x waiting, all devices",
        when="block",
        value=lambda block: None if block.device_energy_j is None else block.device_energy_j.sum(axis=-1),
        over_blocks="sum",
        better="lower",
        in_info=False,
        in_terms=True,
        on_request="energy",
    ),
    Metric(
        name="radio_energy_j",
        shape=(),
        unit="J",
        meaning="equation (12): transmit power x air time, down and up, all devices",
        when="block",
        value=lambda block: None if block.radio_energy_j is None else block.radio_energy_j.sum(axis=-1),
        over_blocks="sum",
        better="lower",
        in_info=False,
        in_terms=True,
        on_request="energy",
    ),
    Metric(
        name="energy_per_token_j",
        shape=(),
        unit="J",
        meaning="`device_energy_j` and `radio_energy_j` over the number of tokens",
        when="block",
        value=attrgetter("energy_per_token_j"),
        over_blocks="sum",
        better="lower",
        label="energy per token",
        in_info=False,
        in_terms=True,
        on_request="energy",
    ),
)
"""Every metric by its name."""
OWN = tuple(METRICS)
"""Names that the package keeps for itself."""


def register_metric(metric: Metric) -> None:
    """Add a row, which every environment and evaluation made from now on shows; a metric of your own is replaced.

    Register in the module that worker processes import too, such as that of ``gym.make("module:WDMoE-v0")``.

    Args:
        metric: the row.

    Raises:
        ValueError: a name that the package keeps for itself.
    """
    if metric.name in (*OWN, REWARD_TERMS):
        raise ValueError(f"a metric must have a name of its own and none of {', '.join(OWN)}, got {metric.name!r}")
    METRICS[metric.name] = metric


def result_metrics() -> tuple[Metric, ...]:
    """The metrics that an evaluation keeps of every episode, in the order of its columns."""
    return tuple(metric for metric in METRICS.values() if metric.in_results)


def results_of(blocks: Sequence[Mapping[str, Any]]) -> dict[str, Float]:
    """What an evaluation keeps of N whole episodes: names of metrics to values (N,).

    Args:
        blocks: the info of each of their blocks, in order.
    """
    return {metric.name: metric.of_episode(blocks) for metric in result_metrics()}


def blocks_as_one(infos: Sequence[dict[str, Any]], further: Sequence[Metric] = ()) -> dict[str, Any]:
    """Info of several blocks as that of one step.

    Args:
        infos: of consecutive blocks of N episodes, in order.
        further: metrics that may be in them, beside those of ``METRICS``.

    Returns:
        That of the last one, in which every figure that adds up or averages over blocks does so over these.
    """
    if len(infos) == 1:
        return infos[0]
    info = {**infos[-1], REWARD_TERMS: dict(infos[-1][REWARD_TERMS])}
    for metric in (*METRICS.values(), *further):
        for place, many in ((info, infos), (info[REWARD_TERMS], [one[REWARD_TERMS] for one in infos])):
            if metric.over_blocks and metric.when == "block" and metric.name in place:
                reduced = np.mean if metric.over_blocks == "mean" else np.sum
                place[metric.name] = reduced([one[metric.name] for one in many], axis=0)
    return info
