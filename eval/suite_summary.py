"""From answers to accuracies with intervals: the content of ``suite.json``."""

from __future__ import annotations

from dataclasses import asdict

import numpy as np
from numpy.typing import NDArray

from eval.members import Setting
from eval.statistics import PairedBootstrap, mcnemar_p
from eval.study import Study, described
from eval.suite import SuiteResults
from eval.summary import Summary
from wdmoe_env.evaluation import REFERENCE

GROUPINGS = ("format", "domain")


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
            **{f"by_{grouping}": {} for grouping in GROUPINGS},
        }
        for policy in results.measurements
    }
    for grouping in GROUPINGS:
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
