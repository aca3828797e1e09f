"""Policies under other conditions than they were made for: one evaluation each, and one table of all."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np

from eval.plan import EvaluationConfig
from eval.report import MATCHED_NOTES, sections
from eval.results import EpisodeResults
from eval.runner import Evaluation
from eval.statistics import PairedBootstrap, Summary
from eval.study import OPTIMIZER
from eval.tables import ADDED_NLL, LATENCY, Table, cell, csv_text, indented, markdown, matched_cell
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


def _channel(**changes: Any) -> Condition:
    return lambda environment: replace(environment, channel=replace(environment.channel, **changes))


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

FAULTS: dict[str, Condition] = {
    "csi-old": _channel(csi_delay=1),
    "csi-off": _channel(csi_error_db=3.0),
    "outage": _devices(outage_mean_s=1.0, uptime_mean_s=9.0),
    # Boards warm up within minutes. Here they do within an episode, so that one shows what a decision does to the next.
    "throttling": _devices(hot_speed_factor=0.4, heat_time_s=0.05, initial_heat=0.5),
}
"""Those that change neither windows nor channels, so that each policy can be set against itself; named on request."""

TABLE, REPORT = "transfer.csv", "transfer.md"
"""Files beside the folders of the conditions."""

COST_NOTES = (
    "What a condition costs each policy on the same windows and channels: its mean latency there over that of its own "
    "under `unchanged`, and the difference of their NLLs; paired 95 % intervals."
)
RATIO = "latency_ratio"
COLUMNS = ("condition", "reference", "family", "added_nll", "reference_latency_ms", "latency_ms", "outside")


def evaluations(config: EvaluationConfig, names: Sequence[str]) -> dict[str, Evaluation]:
    """The evaluation of each named condition, loaded and checked.

    Raises:
        ValueError, TypeError: an unknown condition, no threshold to compare with, or what ``Evaluation`` raises.
    """
    known = CONDITIONS | FAULTS
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ValueError(f"expected conditions among {', '.join(known)}, got {unknown[0]!r}")
    if not any(policy.startswith(f"{OPTIMIZER}:") for policy in config.policies):
        raise ValueError(f"expected thresholds of {OPTIMIZER} to compare with, such as {OPTIMIZER}:0.8, got none")
    changed = {name: known[name](config.environment) for name in names}
    return {name: Evaluation(replace(config, environment=environment)) for name, environment in changed.items()}


def transfer_rows(of_condition: dict[str, Summary]) -> list[Summary]:
    """Rows of matched quality at the thresholds of ``wdmoe``, from the ``results.json`` of each condition."""
    return [
        {"condition": condition, **row}
        for condition, summary in of_condition.items()
        for row in summary["matched_quality"]
        if row["reference"].startswith(f"{OPTIMIZER}:")
    ]


def transfer_report(rows: list[Summary], costs: Table | None, command: str) -> str:
    """The text of ``transfer.md``."""
    made = f"Made by\n\n{indented(command)}\n\nEach condition has a results folder of its own beside this file."
    against_itself = () if costs is None else (COST_NOTES, markdown(costs))
    return sections("# Transfer", made, markdown(transfer_table(rows)), MATCHED_NOTES, *against_itself)


def cost_table(of_condition: Mapping[str, EpisodeResults]) -> Table | None:
    """Header and a row per policy: its latency in ms and added NLL, and what each of ``FAULTS`` costs it.

    Args:
        of_condition: results of each condition; ``None`` comes of them where there is nothing to set against.
    """
    faults = [name for name in of_condition if name in FAULTS]
    if "unchanged" not in of_condition or not faults:
        return None
    plain = of_condition["unchanged"]
    bootstrap = PairedBootstrap(len(plain.episodes), np.random.default_rng(plain.config.seed))
    table = [["policy", LATENCY, ADDED_NLL, *(head for name in faults for head in (f"{name}: latency", "NLL"))]]
    for policy, own in plain.measurements.items():
        row = [policy, format(own["latency_ms"].mean(), ".1f"), format(own["added_nll"].mean(), "+z.4f")]
        for name in faults:
            there = of_condition[name].measurements[policy]
            ratio = bootstrap.ratio_of_means(there["latency_ms"], own["latency_ms"])
            added = bootstrap.mean_difference(there["nll"], own["nll"])
            row += [cell(asdict(ratio), ".3f", 1.0, True), cell(asdict(added), "+z.4f", 1.0, True)]
        table.append(row)
    return table


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
