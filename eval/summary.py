"""From measurements to means with intervals: the statistics of ``results.json`` and of ``suite.json``."""

from __future__ import annotations

from dataclasses import asdict

import numpy as np
from numpy.typing import NDArray

from eval.drops import breakdowns
from eval.matched import matched_quality
from eval.members import Setting
from eval.results import SIMULATED, WALL_CLOCK, EpisodeResults
from eval.statistics import Float, Interval, PairedBootstrap, Summary, mcnemar_p
from eval.study import Study, described, performance_profiles, setting_summaries
from eval.suite import SuiteResults
from wdmoe_env.evaluation import REFERENCE, Measurements


def summarize(results: EpisodeResults) -> list[Summary]:
    """For each policy a dict of statistics, each ``{"mean", "low", "high"}``; see ``eval.statistics``.

    ``decision_ms`` is resampled over batches, which are what was timed; all else over episodes.
    ``accuracy_points_to_vanilla`` is the difference in next-token accuracy in percentage points, and
    ``latency_ratio_to_vanilla`` the ratio of mean latencies.
    """
    generator = np.random.default_rng(results.config.seed)
    count, size = len(results.episodes), results.config.batch_size
    bootstrap = PairedBootstrap(count, generator, clusters=results.documents)
    over_batches = PairedBootstrap(-(-count // size), generator)
    domains = np.array(results.domains)
    over_domain = {name: _over_domain(results, domains == name, generator) for name in sorted(set(domains))}

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


def _over_domain(results: EpisodeResults, marked: NDArray[np.bool_], generator: np.random.Generator) -> PairedBootstrap:
    clusters = None if results.documents is None else results.documents[marked]
    return PairedBootstrap(int(marked.sum()), generator, clusters=clusters)


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


def statistics(results: EpisodeResults) -> Summary:
    """Statistics of every policy, of every setting over its training seeds, and of families against each other."""
    study = Study(results)
    return {
        "policies": [summary | _simulated(results, summary["policy"]) for summary in summarize(results)],
        "settings": setting_summaries(study),
        "matched_quality": matched_quality(study),
        "profiles": performance_profiles(study),
        "breakdowns": breakdowns(results),
    }


def _simulated(results: EpisodeResults, policy: str) -> Summary:
    """What the simulator says of episodes that a testbed measured, and what no device served; else nothing."""
    values = results.measurements[policy]
    if SIMULATED not in values:
        return {}
    mean, unserved = float(values[SIMULATED].mean()), int(values["unserved_pairs"].sum())
    return {SIMULATED: {"mean": mean}, "unserved_pairs": unserved}


SUITE_GROUPINGS = ("format", "domain")


def summarize_suite(results: SuiteResults) -> list[Summary]:
    """For each policy a dict of statistics, with intervals as ``{"mean", "low", "high"}``; see ``eval.statistics``.

    ``accuracy`` is a share, ``accuracy_points_to_vanilla`` a difference in percentage points. ``lost`` and ``gained``
    count the items that ``vanilla`` alone or the policy alone answered rightly; ``mcnemar_p`` tests the two.
    """
    generator = np.random.default_rng(results.config.seed)
    everything = np.ones(len(results.items), dtype=bool)
    overall = PairedBootstrap(len(results.items), generator)
    latency_ms = {policy: values["latency_ms"] for policy, values in results.measurements.items()}
    summaries = {
        policy: {
            "policy": policy,
            **_accuracy(results, policy, everything, overall),
            **_discordant(results, policy),
            "latency_ms": asdict(overall.mean(latency_ms[policy])),
            "latency_ratio_to_vanilla": asdict(overall.ratio_of_means(latency_ms[policy], latency_ms[REFERENCE])),
            **{f"by_{grouping}": {} for grouping in SUITE_GROUPINGS},
        }
        for policy in results.measurements
    }
    for grouping in SUITE_GROUPINGS:
        labels = np.array([getattr(item, grouping) for item in results.items])
        for label in map(str, np.unique(labels)):
            resample = PairedBootstrap(int((labels == label).sum()), generator)
            for policy, summary in summaries.items():
                summary[f"by_{grouping}"][label] = _accuracy(results, policy, labels == label, resample)
    return list(summaries.values())


def suite_statistics(results: SuiteResults) -> Summary:
    """The statistics of ``suite.json``."""
    counts = {"items": len(results.items), "contexts_cut": int(results.context_cut.sum())}
    study = Study(results)
    settings = [_setting_summary(study, setting) for setting in study.settings]
    return {**counts, "policies": summarize_suite(results), "settings": settings}


def _setting_summary(study: Study, setting: Setting) -> Summary:
    points = 100.0 * (study.runs(setting, "correct") - study.runs(study.reference, "correct"))
    intervals = {
        "accuracy": study.mean(setting, "correct"),
        "accuracy_points_to_vanilla": study.bootstrap.mean(setting, points),
        "latency_ms": study.mean(setting, "latency_ms"),
        "latency_ratio_to_vanilla": study.ratio_of_means(setting, study.reference, "latency_ms"),
    }
    return {**described(setting), **{name: asdict(interval) for name, interval in intervals.items()}}


def _accuracy(results: SuiteResults, policy: str, where: NDArray[np.bool_], resample: PairedBootstrap) -> Summary:
    """How many items there are at ``where``, the accuracy on them, and its difference to the reference's."""
    own, reference = (results.measurements[name]["correct"][where].astype(np.float64) for name in (policy, REFERENCE))
    return {
        "items": int(where.sum()),
        "accuracy": asdict(resample.mean(own)),
        "accuracy_points_to_vanilla": asdict(resample.mean_difference(100.0 * own, 100.0 * reference)),
    }


def _discordant(results: SuiteResults, policy: str) -> Summary:
    own, reference = (results.measurements[name]["correct"] for name in (policy, REFERENCE))
    lost, gained = int((reference > own).sum()), int((own > reference).sum())
    return {"lost": lost, "gained": gained, "mcnemar_p": mcnemar_p(lost, gained)}
