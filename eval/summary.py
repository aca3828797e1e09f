"""From measurements to means with intervals: the content of a results folder's JSON."""

from __future__ import annotations

import os
import platform
from dataclasses import asdict
from importlib.metadata import version
from typing import Any

import numpy as np
import torch

import wdmoe_env
from eval.plan import REFERENCE
from eval.results import WALL_CLOCK, EpisodeResults, Measurements, Results
from eval.statistics import Float, Interval, PairedBootstrap

PACKAGES = ("gymnasium", "numpy", "torch", "transformers")

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
        by_domain = {
            str(name): asdict(resample.mean(values["added_nll"][domains == name]))
            for name, resample in over_domain.items()
        }
        named = {name: asdict(interval) for name, interval in statistics.items()}
        summaries.append({"policy": policy, **named, "added_nll_by_domain": by_domain})
    return summaries


def _statistics(values: Measurements, reference: Measurements, bootstrap: PairedBootstrap) -> dict[str, Interval]:
    plain = [name for name in EpisodeResults.METRICS if name not in WALL_CLOCK]
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


def results_json(results: EpisodeResults, command: str) -> Summary:
    """The content of ``results.json``.

    Args:
        results: what was measured.
        command: what made it, for the reader.
    """
    return {**how_made(results, command), "policies": summarize(results)}


def how_made(results: Results, command: str) -> Summary:
    """What a results folder's JSON says beside its figures."""
    return {
        "config": results.config.to_dict(),
        "sha256": results.sha256,
        "made_by": {"command": command, "versions": versions(), "machine": machine()},
    }


def versions() -> dict[str, str]:
    """Versions of what the numbers depend on."""
    own = {"python": platform.python_version(), "wdmoe-env": wdmoe_env.__version__}
    return own | {package: version(package) for package in PACKAGES}


def machine() -> str:
    """What decision times were measured on."""
    system, threads = f"{platform.system()} {platform.machine()}", torch.get_num_threads()
    return f"{system}, {os.cpu_count()} processors, torch on {threads} of them"
