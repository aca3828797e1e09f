"""From measurements on windows of text to means with intervals, for every policy."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np

from eval.results import WALL_CLOCK, EpisodeResults
from eval.statistics import Float, Interval, PairedBootstrap
from wdmoe_env.evaluation import REFERENCE, Measurements

Summary = dict[str, Any]


def summarize(results: EpisodeResults) -> list[Summary]:
    """For each policy a dict of statistics, each ``{"mean", "low", "high"}``; see ``eval.statistics``.

    ``decision_ms`` is resampled over batches, which are what was timed; all else over episodes.
    ``accuracy_points_to_vanilla`` is the difference in next-token accuracy in percentage points, and
    ``latency_ratio_to_vanilla`` the ratio of mean latencies.
    """
    generator = np.random.default_rng(results.config.seed)
    count, size = len(results.episodes), results.config.batch_size
    bootstrap = PairedBootstrap(count, generator)
    over_batches = PairedBootstrap(-(-count // size), generator)
    domains = np.array(results.domains)
    over_domain = {name: PairedBootstrap(int((domains == name).sum()), generator) for name in sorted(set(domains))}

    summaries = []
    for policy, values in results.measurements.items():
        statistics = _statistics(values, results.measurements[REFERENCE], bootstrap)
        statistics["decision_ms"] = _batch_mean(values["decision_ms"], size, over_batches)
        named = {name: asdict(interval) for name, interval in statistics.items()}
        latency, vanilla = (results.measurements[name]["latency_ms"] for name in (policy, REFERENCE))
        summaries.append(
            {
                "policy": policy,
                **named,
                "added_nll_by_domain": {
                    str(name): asdict(resample.mean(values["added_nll"][domains == name]))
                    for name, resample in over_domain.items()
                },
                "latency_ratio_by_domain": {
                    str(name): asdict(resample.ratio_of_means(latency[domains == name], vanilla[domains == name]))
                    for name, resample in over_domain.items()
                },
            }
        )
    return summaries


def _statistics(values: Measurements, reference: Measurements, bootstrap: PairedBootstrap) -> dict[str, Interval]:
    plain = [name for name in EpisodeResults.metrics() if name not in WALL_CLOCK]
    accuracy = [100.0 * side["next_token_accuracy"] for side in (values, reference)]
    return {
        **{name: bootstrap.mean(values[name]) for name in plain},
        "latency_ratio_to_vanilla": bootstrap.ratio_of_means(values["latency_ms"], reference["latency_ms"]),
        "accuracy_points_to_vanilla": bootstrap.mean_difference(*accuracy),
    }


def _batch_mean(values: Float, size: int, over_batches: PairedBootstrap) -> Interval:
    """Mean over episodes, resampled by whole batches: a sum over batches over their sizes."""
    batch = np.arange(len(values)) // size
    sums, sizes = np.bincount(batch, weights=values), np.bincount(batch)
    return over_batches.ratio_of_means(np.asarray(sums, dtype=np.float64), np.asarray(sizes, dtype=np.float64))
