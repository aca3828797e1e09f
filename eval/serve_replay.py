"""Recompute the results of an evaluation of serving, and say where they differ from the saved ones.

Statistics that stand for one policy alone are compared for every policy whose file is here. Those of several, and the
requests themselves, are compared where the folder holds them and all policies are here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from eval.provenance import absent_policies
from eval.replay import json_differences
from eval.serve import ServeEvaluation, ServePlan, statistics
from eval.serve_report import requests_csv, without_nan
from eval.shape import SERVING, TRAINING_SEEDS, check_shape
from eval.statistics import Summary
from wdmoe_env.reading import read_json, read_text, shown_path

RESULTS, REQUESTS = "results.json", "requests.csv"


@dataclass(frozen=True, slots=True)
class SavedServing:
    """A results folder of serving as it was read.

    Attributes:
        folder: as named.
        plan: of the evaluation.
        summary: the content of its JSON.
        requests: the text of its CSV; ``None`` where the folder holds none.
    """

    folder: Path
    plan: ServePlan
    summary: Summary
    requests: str | None


def is_serving(folder: Path) -> bool:
    """Whether a folder holds results of serving.

    Raises:
        ValueError, OSError: its JSON is damaged or cannot be read.
    """
    path = folder / RESULTS
    return path.is_file() and "loads" in read_json(path)


def read_serving(folder: Path) -> SavedServing:
    """Read a results folder of serving.

    Raises:
        ValueError: it is none.
        OSError: it cannot be read.
    """
    summary = read_json(folder / RESULTS)
    try:
        check_shape(summary, SERVING, "the results")
        for one in summary["loads"]:  # older results have no training seeds
            check_shape(one.setdefault("training_seeds", []), TRAINING_SEEDS, "the training seeds")
        plan = ServePlan.from_dict(summary["config"])
    except (ValueError, TypeError, LookupError) as error:
        raise ValueError(f"expected {shown_path(folder / RESULTS)} as an evaluation wrote it: {error}") from None
    path = folder / REQUESTS
    return SavedServing(folder, plan, summary, read_text(path) if path.is_file() else None)


def replay_serving(folder: Path) -> tuple[list[str], int]:
    """Run the evaluation of a results folder again.

    Args:
        folder: of the results.

    Returns:
        What differs, a phrase each, and how many policies were compared.

    Raises:
        ValueError, OSError: it is no results folder, or cannot be read.
    """
    saved = read_serving(folder)
    absent = absent_policies(saved.plan)
    plan = replace(saved.plan, policies=tuple(one for one in saved.plan.policies if one not in absent))
    evaluation = ServeEvaluation(plan)
    changed = [
        f"{name} has changed since"
        for name, digest in evaluation.sha256.items()
        if saved.summary["sha256"].get(name, digest) != digest
    ]
    if changed:
        return changed, 0
    runs = evaluation.run()
    found = without_nan(statistics(runs, plan.seed, evaluation.settings))
    differences = list(_of_policies(saved.summary, found))
    if not absent:
        for old, new in zip(saved.summary["loads"], found["loads"], strict=True):
            for name in ("matched_quality", "training_seeds"):
                place = f"{RESULTS}, load {new['load']:g}, {name}"
                differences += json_differences(place, old[name], new[name])
        if saved.requests is not None:
            differences += _lines(saved.requests, requests_csv(runs))
    return differences, len(plan.policies)


def _of_policies(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[str]:
    """Differences in the statistics of each policy that was run again."""
    for before, after in zip(old["loads"], new["loads"], strict=True):
        saved = {one["policy"]: one for one in before["policies"]}
        for one in after["policies"]:
            place = f"{RESULTS}, load {after['load']:g}, {one['policy']}"
            yield from json_differences(place, saved.get(one["policy"]), one)


def _lines(old: str, new: str) -> Iterator[str]:
    """Rows of the CSV that differ beyond rounding."""
    before, after = old.splitlines(), new.splitlines()
    if len(before) != len(after):
        yield f"{REQUESTS}: {len(before) - 1} rows saved, {len(after) - 1} recomputed"
        return
    for number, pair in enumerate(zip(before, after, strict=True), start=1):
        if pair[0] != pair[1]:
            saved, recomputed = ([_plain(entry) for entry in line.split(",")] for line in pair)
            if any(json_differences("", saved, recomputed)):
                yield f"{REQUESTS} line {number}: {pair[0]} saved, {pair[1]} recomputed"


def _plain(entry: str) -> float | str:
    try:
        return float(entry)
    except ValueError:
        return entry
