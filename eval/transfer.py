"""Policies under other conditions than they were made for: one evaluation each, and one table of all."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

from eval.plan import EvaluationConfig
from eval.report import MATCHED_NOTES, sections
from eval.runner import Evaluation
from eval.statistics import Summary
from eval.study import OPTIMIZER
from eval.tables import ADDED_NLL, LATENCY, Table, csv_text, indented, markdown, matched_cell
from wdmoe_env.config import EnvConfig

Condition = Callable[[EnvConfig], EnvConfig]


def _tokens(count: int) -> Condition:
    return lambda environment: replace(environment, num_tokens=count)


def _devices(**changes: Any) -> Condition:
    return lambda environment: replace(environment, devices=replace(environment.devices, **changes))


def _sixteen_devices(environment: EnvConfig) -> EnvConfig:
    """More devices than experts: every second block lives on the other eight."""
    placement = tuple(tuple(2 * expert + block % 2 for expert in range(8)) for block in range(6))
    return replace(_devices(count=16)(environment), placement=placement)


def _bandwidth(factor: float) -> Condition:
    def changed(environment: EnvConfig) -> EnvConfig:
        channel = environment.channel
        return replace(environment, channel=replace(channel, bandwidth_hz=factor * channel.bandwidth_hz))

    return changed


def _rician(environment: EnvConfig) -> EnvConfig:
    return replace(environment, channel=replace(environment.channel, fading="rician"))


CONDITIONS: dict[str, Condition] = {
    "unchanged": lambda environment: environment,
    "tokens-8": _tokens(8),
    "tokens-128": _tokens(128),
    "devices-4": _devices(count=4),
    "devices-16": _sixteen_devices,
    "rician": _rician,
    "moving": _devices(mobility="gauss_markov", speed_mps=15.0),
    "bandwidth-double": _bandwidth(2.0),
    "bandwidth-half": _bandwidth(0.5),
}
"""Names to what each changes of an environment."""

TABLE, REPORT = "transfer.csv", "transfer.md"
"""Files beside the folders of the conditions."""

RATIO = "latency_ratio"
COLUMNS = ("condition", "reference", "family", "added_nll", "reference_latency_ms", "latency_ms", "outside")


def evaluations(config: EvaluationConfig, names: Sequence[str]) -> dict[str, Evaluation]:
    """The evaluation of each named condition, loaded and checked.

    Raises:
        ValueError, TypeError: an unknown condition, no threshold to compare with, or what ``Evaluation`` raises.
    """
    unknown = [name for name in names if name not in CONDITIONS]
    if unknown:
        raise ValueError(f"expected conditions among {', '.join(CONDITIONS)}, got {unknown[0]!r}")
    if not any(policy.startswith(f"{OPTIMIZER}:") for policy in config.policies):
        raise ValueError(f"expected thresholds of {OPTIMIZER} to compare with, such as {OPTIMIZER}:0.8, got none")
    changed = {name: CONDITIONS[name](config.environment) for name in names}
    return {name: Evaluation(replace(config, environment=environment)) for name, environment in changed.items()}


def transfer_rows(of_condition: dict[str, Summary]) -> list[Summary]:
    """Rows of matched quality at the thresholds of ``wdmoe``, from the ``results.json`` of each condition."""
    return [
        {"condition": condition, **row}
        for condition, summary in of_condition.items()
        for row in summary["matched_quality"]
        if row["reference"].startswith(f"{OPTIMIZER}:")
    ]


def transfer_report(rows: list[Summary], command: str) -> str:
    """The text of ``transfer.md``."""
    made = f"Made by\n\n{indented(command)}\n\nEach condition has a results folder of its own beside this file."
    return sections("# Transfer", made, markdown(transfer_table(rows)), MATCHED_NOTES)


def transfer_table(rows: list[Summary]) -> Table:
    """Header and a row per condition and threshold: its added NLL and latency, and the ratio of each family's to it."""
    families = list(dict.fromkeys(row["family"] for row in rows))
    grouped: dict[tuple[str, str], dict[str, Summary]] = {}
    for row in rows:
        grouped.setdefault((row["condition"], row["reference"]), {})[row["family"]] = row
    table = [["condition", "at the quality of", ADDED_NLL, LATENCY, *families]]
    for (condition, reference), of_family in grouped.items():
        first = next(iter(of_family.values()))
        figures = [format(first["added_nll"], "+z.4f"), format(first["reference_latency_ms"], ".1f")]
        table.append([condition, reference, *figures, *(matched_cell(of_family[family]) for family in families)])
    return table


def transfer_csv(rows: Iterable[Summary]) -> str:
    """Text of the CSV: a row per condition, threshold and family."""
    return csv_text([*COLUMNS, *(f"{RATIO}_{side}" for side in ("mean", "low", "high"))], map(_record, rows))


def _record(row: Summary) -> dict[str, Any]:
    figures = {name: row[name] for name in COLUMNS} | {f"{RATIO}_{side}": at for side, at in (row[RATIO] or {}).items()}
    return {name: format(value, ".6g") if isinstance(value, float) else value for name, value in figures.items()}
