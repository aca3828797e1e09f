"""Figures of serving, declared once: what a block means to the requests, and what an episode of them came to.

TTFT, TPOT and E2E are vLLM's: from arrival to the first token, (E2E - TTFT) / (tokens - 1), from arrival to the last.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

import numpy as np

from wdmoe_env.metrics import Metric
from wdmoe_env.physics.latency import Bool, Float
from wdmoe_env.serving.arrivals import Whole
from wdmoe_env.serving.rollout import ServingResult, scored_tokens
from wdmoe_env.serving.simulator import Episode
from wdmoe_env.serving_config import ServingConfig


@dataclass(frozen=True, slots=True)
class Served:
    """What the R requests of an episode came to; NaN where one did not finish.

    Attributes:
        e2e_ms: (R,) from arrival to the last token, ms.
        ttft_ms: (R,) from arrival to the first token, ms.
        tpot_ms: (R,) each further token in the mean, ms; 0 for an answer of one.
        queue_ms: (R,) from arrival until a slot was free, ms.
        system_ms: (R,) time in the system until the end of the episode, finished or not, ms.
        added_nll: (R,) nats a token that the text lost to the own routing.
        added_nll_prompt: (R,) the same of the prompt's tokens alone.
        added_nll_answer: (R,) the same of the answer's.
        prompt: (R,) tokens.
        answer: (R,) tokens.
        document: (R,) number of the document in the split.
        arrival_ms: (R,) from the beginning of the episode, ms.
        said: (R, G) token ids that the model said, -1 where none; ``None`` where the document's were fed.
        good: (R,) whether it finished within the limits.
        duration_s: simulated time of the episode, s.
        capacity_hz: requests a second that own routing with optimal shares sustains on the episode's channel.
        tokens: number that were said.
        energy_j: of devices and radio, in J; ``None`` where it is not counted.
    """

    e2e_ms: Float
    ttft_ms: Float
    tpot_ms: Float
    queue_ms: Float
    system_ms: Float
    added_nll: Float
    added_nll_prompt: Float
    added_nll_answer: Float
    prompt: Whole
    answer: Whole
    document: Whole
    arrival_ms: Float
    said: Whole | None
    good: Bool
    duration_s: float
    capacity_hz: float
    tokens: int
    energy_j: float | None

    @classmethod
    def of(cls, episode: Episode, config: ServingConfig, documents: Whole) -> Served:
        """Of an episode that has ended.

        Args:
            episode: the cell.
            config: its limits.
            documents: (M,) document of each window.
        """
        cell, requests = episode.cell, episode.cell.requests
        e2e_ms = 1e3 * (cell.finish_s - requests.arrival_s)
        ttft_ms = np.where(np.isnan(e2e_ms), np.nan, 1e3 * (cell.first_token_s - requests.arrival_s))
        tpot_ms = (e2e_ms - ttft_ms) / np.maximum(requests.answer - 1, 1)
        finished = ~np.isnan(e2e_ms)
        scored = scored_tokens(episode, config.generate)
        of_prompt = np.maximum(requests.prompt - 1, 1)
        of_answer = requests.answer
        lost = np.where(finished[:, None], cell.added_nll, np.nan)
        if config.generate:
            lost[:, 1] = 0.0
        said = np.where(finished, requests.answer, 0).sum()
        return cls(
            e2e_ms=e2e_ms,
            ttft_ms=ttft_ms,
            tpot_ms=tpot_ms,
            queue_ms=np.where(finished, 1e3 * (cell.start_s - requests.arrival_s), np.nan),
            system_ms=1e3 * cell.system_s(),
            added_nll=lost.sum(axis=-1) / scored,
            added_nll_prompt=lost[:, 0] / of_prompt,
            added_nll_answer=np.full(len(lost), np.nan) if config.generate else lost[:, 1] / of_answer,
            prompt=requests.prompt,
            answer=requests.answer,
            document=documents[requests.window],
            arrival_ms=1e3 * requests.arrival_s,
            said=episode.said,
            good=finished & (ttft_ms <= config.ttft_limit_ms) & (tpot_ms <= config.tpot_limit_ms),
            duration_s=cell.clock_s,
            capacity_hz=episode.capacity_hz,
            tokens=int(said),
            energy_j=episode.energy_j or None,
        )


def _ratio(above: float, below: float) -> float:
    return above / below if below else 0.0


def _mean(values: Float) -> float:
    return float(np.nanmean(values)) if np.isfinite(values).any() else float("nan")


def _of_requests(name: str, unit: str, meaning: str, better: Any = None) -> Metric:
    value: Callable[[Served], Any] = attrgetter(name)
    return Metric(f"request_{name}", ("R",), unit, meaning, "episode", value, better=better)


def _of_cell(
    name: str, unit: str, meaning: str, value: Callable[[Served], Any], better: Any, label: str = ""
) -> Metric:
    return Metric(name, (), unit, meaning, "episode", value, better=better, label=label, in_results=True)


BLOCK_METRICS: tuple[Metric, ...] = (
    Metric(
        name="time_in_system_ms",
        shape=(),
        unit="ms",
        meaning="time in the system of all requests together during the block: their number times its time",
        when="block",
        value=lambda block: 1e3 * block.system_s,
        over_blocks="sum",
        better="lower",
        label="time in system",
        in_info=False,
        in_terms=True,
    ),
    Metric(
        name="added_nll",
        shape=(),
        unit="nats",
        meaning="what the pass's text lost to the own routing, by the tokens of each whole request; at its last block",
        when="block",
        value=attrgetter("added_nll"),
        over_blocks="sum",
        better="lower",
        in_info=False,
        in_terms=True,
    ),
    Metric(
        name="divergence",
        shape=(),
        unit="nats",
        meaning="that of the pass's predictions from the own routing's, as `added_nll`; under `serving_divergence`",
        when="block",
        value=attrgetter("divergence"),
        over_blocks="sum",
        better="lower",
        in_info=False,
        in_terms=True,
    ),
    Metric(
        name="clock_ms",
        shape=(),
        unit="ms",
        meaning="simulated time since the episode began",
        when="block",
        value=lambda block: 1e3 * block.clock_s,
    ),
    Metric(
        name="step_ms",
        shape=(),
        unit="ms",
        meaning="simulated time of the block, the base station's own included",
        when="block",
        value=lambda block: 1e3 * block.seconds,
        over_blocks="sum",
    ),
)
"""Figures of a block, read from a ``ServingResult``; they stand beside those of every block."""

EPISODE_METRICS: tuple[Metric, ...] = (
    _of_requests("e2e_ms", "ms", "from arrival to the last token; NaN where it did not finish", "lower"),
    _of_requests("ttft_ms", "ms", "from arrival to the first token; NaN where it did not finish", "lower"),
    _of_requests("tpot_ms", "ms", "each further token in the mean; NaN where it did not finish", "lower"),
    _of_requests("queue_ms", "ms", "from arrival until a slot was free; NaN where it did not finish", "lower"),
    _of_requests("system_ms", "ms", "time in the system, finished or not", "lower"),
    _of_requests("added_nll", "nats", "what its text lost to the own routing, by token; NaN where unfinished", "lower"),
    _of_requests("added_nll_prompt", "nats", "the same of the prompt", "lower"),
    _of_requests("added_nll_answer", "nats", "the same of the answer", "lower"),
    _of_requests("prompt", "-", "tokens of the prompt"),
    _of_requests("answer", "-", "tokens of the answer"),
    _of_requests("arrival_ms", "ms", "from the beginning of the episode"),
    _of_requests("document", "-", "number of its document in the split"),
    Metric("request_said", ("R", "G"), "-", "tokens that it said", "episode", attrgetter("said")),
    _of_cell("e2e_ms", "ms", "mean of E2E over finished requests", lambda one: _mean(one.e2e_ms), "lower", "E2E"),
    _of_cell("ttft_ms", "ms", "mean of TTFT over finished requests", lambda one: _mean(one.ttft_ms), "lower", "TTFT"),
    _of_cell("tpot_ms", "ms", "mean of TPOT over finished requests", lambda one: _mean(one.tpot_ms), "lower", "TPOT"),
    _of_cell(
        "goodput_hz",
        "1/s",
        "requests a second that finished within the limits",
        lambda one: _ratio(float(one.good.sum()), one.duration_s),
        "higher",
        "goodput",
    ),
    _of_cell(
        "queue_share",
        "-",
        "share of the finished requests' time that they waited for a slot",
        lambda one: _ratio(float(np.nansum(one.queue_ms)), float(np.nansum(one.e2e_ms))),
        "lower",
        "queue share",
    ),
    _of_cell(
        "tokens_per_s",
        "1/s",
        "tokens said to finished requests a second",
        lambda one: _ratio(one.tokens, one.duration_s),
        "higher",
        "tokens",
    ),
    Metric(
        "joules_per_token",
        (),
        "J",
        "energy of devices and radio by tokens said, with `energy=True`",
        "episode",
        lambda one: None if one.energy_j is None else _ratio(one.energy_j, one.tokens),
        better="lower",
        label="energy per token",
    ),
    _of_cell("unfinished", "-", "requests that did not finish", lambda one: np.isnan(one.e2e_ms).sum(), "lower"),
    _of_cell("duration_ms", "ms", "simulated time of the episode", lambda one: 1e3 * one.duration_s, None),
    _of_cell(
        "capacity_hz",
        "1/s",
        "requests a second that own routing with optimal shares sustains on its channel",
        attrgetter("capacity_hz"),
        None,
    ),
)
"""Figures of an episode, read from what its requests came to."""


def block_figures(result: ServingResult) -> tuple[dict[str, Float], dict[str, Float]]:
    """What ``info`` and the terms of the reward gain after a block of n cells: entries (n,) of both."""
    found = [(one, one.value(result)) for one in BLOCK_METRICS]
    info = {one.name: value for one, value in found if one.in_info}
    return info, {one.name: value for one, value in found if one.in_terms and value is not None}


def episode_figures(served: list[Served]) -> Mapping[str, Any]:
    """What ``info`` gains where n episodes have ended: entries (n, ...)."""
    figures = {one.name: [one.value(each) for each in served] for one in EPISODE_METRICS}
    return {name: np.stack(values) for name, values in figures.items() if values[0] is not None}
