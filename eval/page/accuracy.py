"""Accuracy on the suite at the mixtures of latency at matched quality: windows and suite read together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict

import numpy as np

from eval.members import Setting
from eval.replay import SavedResults
from eval.resamples import SeededBootstrap
from eval.statistics import Float, interval_of
from eval.summary import Summary


def matched_points(rows: list[Summary], suite: SavedResults) -> dict[tuple[str, str], Summary]:
    """For reference and family the accuracy of the family's mixture minus that of the reference, percentage points.

    Which two settings are mixed, and how, follows from the windows of text and stands fixed; seeds and items are
    resampled, the same items on both sides. Rows whose settings the suite lacks are left out.

    Args:
        rows: of ``matched_quality``.
        suite: results on the suite.
    """
    settings = {row["name"]: _setting(row) for row in suite.statistics["settings"]}
    correct = _correct(suite)
    num_items = len(next(iter(correct.values())))
    bootstrap = SeededBootstrap(list(settings.values()), num_items, np.random.default_rng(suite.config.seed))
    means = {name: _means(bootstrap, setting, correct) for name, setting in settings.items()}
    points = {}
    for row in rows:
        mixture = row["mixture"]
        if mixture and {mixture["first"], mixture["second"], row["reference"]} <= means.keys():
            share = mixture["share_of_second"]
            mixed = (1.0 - share) * means[mixture["first"]] + share * means[mixture["second"]]
            difference = 100.0 * (mixed - means[row["reference"]])
            points[row["reference"], row["family"]] = asdict(interval_of(difference[0], difference[1:]))
    return points


def _setting(row: Summary) -> Setting:
    return Setting(row["family"], row["setting"], None, row["learned"], tuple(row["policies"]), tuple(row["seeds"]))


def _correct(suite: SavedResults) -> dict[str, Float]:
    """Of each policy whether it answered each item rightly."""
    correct: dict[str, list[float]] = {}
    for row in suite.rows:
        correct.setdefault(row["policy"], []).append(float(row["correct"]))
    return {policy: np.array(values) for policy, values in correct.items()}


def _means(bootstrap: SeededBootstrap, setting: Setting, correct: Mapping[str, Float]) -> Float:
    """Accuracy on the items themselves, then on every resample, (1 + R,)."""
    runs = np.stack([correct[policy] for policy in setting.policies])
    return np.append(runs.mean(), bootstrap.resampled_means(setting, runs))
