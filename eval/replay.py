"""Recompute a results folder and compare: a result that does not come again is not one."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eval.plan import EvaluationConfig, policy_hashes
from eval.results import COLUMNS, METRICS, WALL_CLOCK, Results
from eval.summary import Summary, summarize

# On one machine results come again exactly; another one's float32 arithmetic may round differently.
RELATIVE_TOLERANCE = 1e-5
ABSOLUTE_TOLERANCE = 1e-5


@dataclass(frozen=True, slots=True)
class SavedResults:
    """A results folder as it was read.

    Attributes:
        config: of the evaluation.
        policy_sha256: hash of each policy that was a file.
        rows: of ``results.csv``.
        summaries: the policies of ``results.json``.
    """

    config: EvaluationConfig
    policy_sha256: dict[str, str]
    rows: list[dict[str, str]]
    summaries: list[Summary]


def read_results(folder: Path) -> SavedResults:
    """Read a results folder.

    Raises:
        ValueError: not a results folder.
    """
    for name in ("results.json", "results.csv"):
        if not (folder / name).is_file():
            raise ValueError(f"expected a results folder, but {folder} holds no {name}")
    try:
        summary = json.loads((folder / "results.json").read_text(encoding="utf-8"))
        config = EvaluationConfig.from_dict(summary["config"])
        hashes, summaries = summary["config"]["policy_sha256"], summary["policies"]
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"expected {folder / 'results.json'} as an evaluation wrote it, got {error!r}") from None
    with open(folder / "results.csv", encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        rows = list(reader)
    if tuple(reader.fieldnames or ()) != COLUMNS:
        raise ValueError(f"expected the columns {', '.join(COLUMNS)} in {folder / 'results.csv'}, got others")
    return SavedResults(config, hashes, rows, summaries)


def changed_policy_files(saved: SavedResults) -> list[str]:
    """Policies whose files are not the ones that were evaluated."""
    now = policy_hashes(saved.config.policies)
    return [f"the file of policy {policy}" for policy, sha in saved.policy_sha256.items() if now.get(policy) != sha]


def differences(saved: SavedResults, results: Results) -> Iterator[str]:
    """What differs between saved and recomputed results, wall-clock times left out; a phrase each."""
    rows = results.rows()
    if len(saved.rows) != len(rows):
        yield f"results.csv: {len(saved.rows)} rows saved, {len(rows)} recomputed"
    for line, (old, new) in enumerate(zip(saved.rows, rows, strict=False), start=2):
        for column in COLUMNS:
            if column not in WALL_CLOCK and not _same_cell(column, old[column], new[column]):
                yield f"results.csv line {line}, {column}: {old[column]} saved, {new[column]} recomputed"
    yield from _json_differences("results.json policies", saved.summaries, summarize(results))


def _same_cell(column: str, old: str | None, new: str) -> bool:
    if column not in METRICS:
        return old == new
    try:
        return _close(float(old or ""), float(new))
    except ValueError:
        return False


def _json_differences(path: str, old: Any, new: Any) -> Iterator[str]:
    """Leaves that differ, and branches that only one side has."""
    if isinstance(new, dict) and isinstance(old, dict) and old.keys() == new.keys():
        for key in new.keys() - WALL_CLOCK:
            yield from _json_differences(f"{path}, {key}", old[key], new[key])
    elif isinstance(new, list) and isinstance(old, list) and len(old) == len(new):
        for item, (left, right) in enumerate(zip(old, new, strict=True)):
            yield from _json_differences(f"{path}[{item}]", left, right)
    elif isinstance(new, float) and isinstance(old, (int, float)):
        if not _close(old, new):
            yield f"{path}: {old} saved, {new} recomputed"
    elif old != new:
        yield f"{path}: not as recomputed"


def _close(old: float, new: float) -> bool:
    return math.isclose(old, new, rel_tol=RELATIVE_TOLERANCE, abs_tol=ABSOLUTE_TOLERANCE)
