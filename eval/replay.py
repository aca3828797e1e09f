"""Recompute a results folder, and say where the recomputed figures differ from the saved ones.

Policies whose files are no longer here are left out. Statistics of settings and families depend on all policies, so
they are compared only where every policy is here and the folder holds any.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from eval.kinds import KINDS, WINDOWS, Kind
from eval.plan import RunConfig
from eval.provenance import HOW_MADE, absent_policies
from eval.results import WALL_CLOCK, Results
from eval.runner import Evaluation
from eval.shape import REPLAYED, check_shape
from eval.statistics import Summary
from eval.suite import SuiteEvaluation
from wdmoe_env.evaluation import REFERENCE
from wdmoe_env.reading import read_json, read_rows, shown_path

# On one machine results come again exactly; another one's float32 arithmetic may round differently.
RELATIVE_TOLERANCE = 1e-5
ABSOLUTE_TOLERANCE = 1e-5
MOST_TIES = 10


@dataclass(frozen=True, slots=True)
class SavedResults:
    """A results folder as it was read.

    Attributes:
        kind: of the evaluation.
        config: of the evaluation.
        sha256: hashes of what the configuration names.
        rows: of the CSV.
        summary: the content of the JSON.
    """

    kind: Kind
    config: RunConfig
    sha256: dict[str, str]
    rows: list[dict[str, str]]
    summary: Summary

    @property
    def absent(self) -> frozenset[str]:
        """Policies whose files are not here."""
        return absent_policies(self.config)

    @property
    def config_here(self) -> RunConfig:
        """The configuration without the policies whose files are not here."""
        return replace(self.config, policies=tuple(one for one in self.config.policies if one not in self.absent))

    @property
    def statistics(self) -> Summary:
        """What the JSON says of the measurements."""
        return {name: self.summary[name] for name in self.summary.keys() - HOW_MADE}


def read_results(folder: Path) -> SavedResults:
    """Read a results folder.

    Raises:
        ValueError: not a results folder.
    """
    kind = next((kind for kind in KINDS if (folder / f"{kind.stem}.json").is_file()), WINDOWS)
    described, table, packed = (folder / f"{kind.stem}.{suffix}" for suffix in ("json", "csv", "csv.gz"))
    table = packed if packed.is_file() and not table.is_file() else table
    for path in (described, table):
        if not path.is_file():
            raise ValueError(f"expected a results folder, but {shown_path(folder)} holds no {path.name}")
    summary = read_json(described)
    try:
        check_shape(summary, REPLAYED, "the results")
        config = kind.config.from_dict(summary["config"])
    except (ValueError, TypeError) as error:
        raise ValueError(f"expected {shown_path(described)} as an evaluation wrote it: {error}") from None
    names, rows = read_rows(table)
    columns = kind.results.columns()
    if tuple(names) != columns:
        raise ValueError(f"expected the columns {', '.join(columns)} in {shown_path(table)}, got {', '.join(names)}")
    return SavedResults(kind, config, summary["sha256"], rows, summary)


def changed_inputs(saved: SavedResults, sha256: dict[str, str]) -> list[str]:
    """What is no longer what was evaluated, by the hashes of what is there now."""
    names = saved.sha256.keys() & sha256.keys()
    return [f"{name} has changed since" for name in sorted(names) if saved.sha256[name] != sha256[name]]


@dataclass(slots=True)
class Comparison:
    """Saved results beside recomputed ones, wall-clock times left out.

    Attributes:
        rows: how many saved rows were compared.
        ties: how many of them came again only with gate probabilities rounded otherwise: a decision stands
            at a tie, and another processor's rounding decided it.
        differences: what differs, a phrase each.
    """

    rows: int
    ties: int = 0
    differences: list[str] = field(default_factory=list)


def compare(saved: SavedResults, evaluation: Evaluation | SuiteEvaluation) -> Comparison:
    """Run an evaluation again and compare.

    Args:
        saved: as it was read.
        evaluation: of ``saved.config_here``.
    """
    results, stem, absent = evaluation.run(), saved.kind.stem, saved.absent
    rows = results.rows()
    lines = [(line, row) for line, row in enumerate(saved.rows, start=2) if row["policy"] not in absent]
    found = Comparison(len(lines))
    if len(lines) != len(rows):
        found.differences.append(f"{stem}.csv: {len(lines)} rows saved, {len(rows)} recomputed")
    for (line, old), new in zip(lines, rows, strict=False):
        columns = _different_columns(results, old, new)
        # Where one row does not come again the results differ anyway, and many ties are none.
        if columns and not found.differences and found.ties < MOST_TIES and _is_tie(evaluation, results, old, new):
            found.ties += 1
            continue
        place = f"{stem}.csv line {line}"
        found.differences += [f"{place}, {one}: {old[one]} saved, {new[one]} recomputed" for one in columns]
    if saved.statistics and not absent:
        recomputed = saved.kind.statistics(results)
        for name in recomputed.keys() | saved.statistics.keys():
            old_part, new_part = saved.statistics.get(name), recomputed.get(name)
            found.differences += json_differences(f"{stem}.json {name}", old_part, new_part)
    return found


def _different_columns(results: Results, old: dict[str, str], new: dict[str, str]) -> list[str]:
    """Columns in which a recomputed row differs from the saved one."""
    compared = [column for column in results.columns() if column not in WALL_CLOCK]
    return [column for column in compared if not _same_cell(column in results.metrics(), old[column], new[column])]


def _is_tie(
    evaluation: Evaluation | SuiteEvaluation, results: Results, old: dict[str, str], new: dict[str, str]
) -> bool:
    """Whether a saved row comes again where the policy sees gate probabilities that are rounded otherwise."""
    if not isinstance(evaluation, Evaluation):
        return False
    policy, number = new["policy"], int(new["episode"])
    reference = float(results.measurements[REFERENCE]["nll"][number])
    for values in evaluation.rounded_otherwise(policy, number):
        again = new | {name: repr(value) for name, value in values.items()}
        again["added_nll"] = repr(values["nll"] - reference)
        if not _different_columns(results, old, again):
            return True
    return False


def _same_cell(measured: bool, old: str | None, new: str) -> bool:
    if not measured:
        return old == new
    try:
        return _close(float(old or ""), float(new))
    except ValueError:
        return False


def json_differences(path: str, old: Any, new: Any) -> Iterator[str]:
    """Leaves of JSON that differ, and branches that only one side has, a phrase each.

    Args:
        path: what the phrases call the whole.
        old: saved.
        new: recomputed.
    """
    if isinstance(new, dict) and isinstance(old, dict) and old.keys() == new.keys():
        for key in new.keys() - WALL_CLOCK:
            yield from json_differences(f"{path}, {key}", old[key], new[key])
    elif isinstance(new, list) and isinstance(old, list) and len(old) == len(new):
        for item, (left, right) in enumerate(zip(old, new, strict=True)):
            yield from json_differences(f"{path}[{item}]", left, right)
    elif isinstance(new, float) and isinstance(old, (int, float)):
        if not _close(old, new):
            yield f"{path}: {old} saved, {new} recomputed"
    elif old != new:
        yield f"{path}: not as recomputed"


def _close(old: float, new: float) -> bool:
    return math.isclose(old, new, rel_tol=RELATIVE_TOLERANCE, abs_tol=ABSOLUTE_TOLERANCE)
