"""Measurements of an evaluation, a row per episode and policy, and their CSV."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass

from eval.plan import Episodes, EvaluationConfig
from eval.statistics import Float

# What is measured per episode and policy; equal again when an evaluation is replayed, apart from WALL_CLOCK.
METRICS = (
    "latency_ms",
    "wlr",
    "nll",
    "added_nll",
    "next_token_accuracy",
    "gate_weight_kept",
    "repaired_tokens",
    "decision_ms",
)
WALL_CLOCK = frozenset({"decision_ms"})
COLUMNS = ("policy", "episode", "window", "domain", "seed", *METRICS)

Measurements = dict[str, Float]


@dataclass(frozen=True, slots=True)
class Results:
    """What an evaluation measured.

    Attributes:
        config: what it was.
        episodes: what every policy ran.
        domains: n names, the kind of text of each episode.
        measurements: for each policy the metrics, each (n,):

            - ``latency_ms``: sum over blocks of equation (7), ms;
            - ``wlr``: mean over blocks of equation (8) in its block form, 1/ms;
            - ``nll``: nats per token;
            - ``added_nll``: that minus the NLL of ``vanilla`` on the same episode;
            - ``next_token_accuracy``: share of tokens whose most probable successor was right;
            - ``gate_weight_kept``: mean over blocks of the gate weight served over that of the own routing;
            - ``repaired_tokens``: sum over blocks of tokens that were left without an expert;
            - ``decision_ms``: wall time of ``predict`` per block and episode, ms; a batch shares its time evenly.
    """

    config: EvaluationConfig
    episodes: Episodes
    domains: tuple[str, ...]
    measurements: dict[str, Measurements]

    def rows(self) -> list[dict[str, str]]:
        """The CSV's rows, floats written so that they read back exactly."""
        episodes = zip(self.episodes.windows, self.domains, self.episodes.seeds, strict=True)
        described = [
            {"episode": str(n), "window": str(window), "domain": domain, "seed": str(seed)}
            for n, (window, domain, seed) in enumerate(episodes)
        ]
        return [
            {"policy": policy, **row, **{name: repr(float(values[name][n])) for name in METRICS}}
            for policy, values in self.measurements.items()
            for n, row in enumerate(described)
        ]

    def csv(self) -> str:
        """Text of ``results.csv``."""
        text = io.StringIO()
        writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows())
        return text.getvalue()
