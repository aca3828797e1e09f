"""How far the simulation is from a testbed: the same episodes both ways, and where the difference comes from.

The floor is fitted as one number of milliseconds a block, ``overhead_ms``, the median over episodes of what a block
took longer by the clock than in the simulator. ``devices={"overhead_ms": ...}`` adds it to the simulator.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from wdmoe_env.physics.latency import Float
from wdmoe_env.testbed.comparison import Compared
from wdmoe_env.testbed.records import PHASES, BlockRecord

Report = dict[str, Any]


def fidelity_report(compared: Sequence[Compared], records: Sequence[BlockRecord]) -> Report:
    """The figures of a comparison, as ``fidelity.json`` has them.

    Args:
        compared: of each policy, on the same n episodes.
        records: of the blocks.
    """
    overhead_ms = fitted_overhead_ms(compared)
    simulated = {one.policy: float(one.simulated_ms.sum(axis=1).mean()) for one in compared}
    measured = {one.policy: float(one.measured_ms.sum(axis=1).mean()) for one in compared}
    return {
        "policies": [
            {
                "policy": one.policy,
                "simulated_ms": one.simulated_ms.sum(axis=1).tolist(),
                "measured_ms": one.measured_ms.sum(axis=1).tolist(),
                "unserved_pairs": int(one.unserved_pairs.sum()),
                "error_percent": errors_percent(one, 0.0),
                "fitted_error_percent": errors_percent(one, overhead_ms),
            }
            for one in compared
        ],
        "overhead_ms": overhead_ms,
        "order": {
            "simulated": sorted(simulated, key=simulated.__getitem__),
            "measured": sorted(measured, key=measured.__getitem__),
            "rank_correlation": rank_correlation(list(simulated.values()), list(measured.values())),
        },
        "links": {"downlink": _rate_errors(records, "send"), "uplink": _rate_errors(records, "receive")},
        "difference_ms": _difference(records),
    }


def fitted_overhead_ms(compared: Sequence[Compared]) -> float:
    """The median over all episodes of what a block takes longer by the clock, ms."""
    longer = [(one.measured_ms - one.simulated_ms).mean(axis=1) for one in compared]
    return float(np.median(np.concatenate(longer)))


def errors_percent(compared: Compared, overhead_ms: float) -> dict[str, float]:
    """By how many percent the measured latency is above the simulated one: of episodes and of blocks.

    Args:
        compared: of one policy.
        overhead_ms: added to every simulated block, ms.
    """
    simulated = compared.simulated_ms + overhead_ms
    episode = 100.0 * (compared.measured_ms.sum(axis=1) / simulated.sum(axis=1) - 1.0)
    block = 100.0 * (compared.measured_ms / simulated - 1.0)
    return {
        "episode_median": float(np.median(episode)),
        "episode_median_absolute": float(np.median(np.abs(episode))),
        "episode_p95_absolute": float(np.percentile(np.abs(episode), 95)),
        "block_median_absolute": float(np.median(np.abs(block))),
        "block_p95_absolute": float(np.percentile(np.abs(block), 95)),
    }


def rank_correlation(first: Sequence[float], second: Sequence[float]) -> float:
    """Spearman's correlation of two lists without ties; 1 for the same order, NaN for fewer than two numbers."""
    ranks = [np.argsort(np.argsort(values)).astype(np.float64) for values in (first, second)]
    return float(np.corrcoef(ranks[0], ranks[1])[0, 1]) if len(first) > 1 else float("nan")


def _rate_errors(records: Sequence[BlockRecord], way: str) -> dict[str, float]:
    """By how many percent the achieved rate of a payload is below the commanded one."""
    paced = [
        (getattr(device, f"paced_{way}_ms"), getattr(device, f"{way}_ms"))
        for record in records
        for device in record.devices
        if device.outcome == "served" and getattr(device, f"paced_{way}_ms") > 0
    ]
    if not paced:
        return {"payloads": 0}
    commanded, achieved = np.array(paced).T
    below = np.abs(100.0 * (1.0 - commanded / np.maximum(achieved, 1e-9)))
    return {
        "payloads": len(paced),
        "p50_percent": float(np.percentile(below, 50)),
        "p99_percent": float(np.percentile(below, 99)),
        "within_3_percent": float(np.mean(below <= 3.0)),
    }


def _difference(records: Sequence[BlockRecord]) -> dict[str, Any]:
    """What a block took longer than its pace, in parts, of the device that was last; wall-clock ms."""
    rows = [_parts(record) for record in records if record.devices]
    names = ("block", "down", "queue_and_compute", "up", "after_the_last_answer")
    values: Float = np.array(rows) if rows else np.zeros((0, len(names)))
    parts = {
        name: {"median": float(np.median(column)), "p90": float(np.percentile(column, 90))}
        for name, column in zip(names, values.T, strict=True)
        if len(column)
    }
    phases = {
        phase: float(np.median([getattr(device, f"{phase}_ms") for one in records for device in one.devices] or [0.0]))
        for phase in PHASES
    }
    return {"last_device": parts, "median_of_all_calls": phases}


def _parts(record: BlockRecord) -> tuple[float, ...]:
    last = max(record.devices, key=lambda device: device.total_ms)
    down, up = last.send_ms - last.paced_send_ms, last.receive_ms - last.paced_receive_ms
    longer = record.latency_ms - record.expected_ms
    after = record.latency_ms - last.total_ms
    return longer, down, longer - down - up - after, up, after


def fidelity_page(report: Report) -> str:
    """The report as Markdown.

    Args:
        report: the content of ``fidelity.json``.
    """
    lines = [
        "# How far the simulation is from the testbed",
        "",
        f"Measured on {report['machine']}, by `{report['command']}`.",
        "",
        f"{report['episodes']} episodes at {report['bandwidth_hz'] / 1e6:g} MHz, links {report['links_are']} by the "
        f"{report.get('shaped_by', 'program')}, compute "
        f"{report['compute']}, time scale {report['time_scale']:g}. `overhead_ms` = {report['overhead_ms']:.2f} ms a "
        "block, fitted over all policies.",
        "",
        *fidelity_rows(report),
        "",
        f"Order by mean latency: {_order(report)} (rank correlation {report['order']['rank_correlation']:.2f}).",
        "",
        "| link | payloads | rate off, p50 % | p99 % |",
        "|---|---:|---:|---:|",
    ]
    for name, link in report["links"].items():
        if link["payloads"]:
            lines.append(f"| {name} | {link['payloads']} | {link['p50_percent']:.2f} | {link['p99_percent']:.2f} |")
    lines += ["", "What a block took longer, by the device that was last, in wall-clock ms:", ""]
    lines += ["| part | median | p90 |", "|---|---:|---:|"]
    for name, part in report["difference_ms"]["last_device"].items():
        lines.append(f"| {name.replace('_', ' ')} | {part['median']:.2f} | {part['p90']:.2f} |")
    floor = report["floor_ms"]
    lines += ["", f"An empty call takes {floor['empty_call_p50']:.2f} ms (median of the links' medians)."]
    if "empty_block_p50" in floor:
        lines.append(f"A block of empty calls, one to each device at once, takes {floor['empty_block_p50']:.2f} ms.")
    return "\n".join(lines) + "\n"


def fidelity_rows(report: Report) -> list[str]:
    """A Markdown table with a row for each policy.

    Args:
        report: the content of ``fidelity.json``.
    """
    rows = [
        "| policy | simulated ms | measured ms | error %, median | p95 | with `overhead_ms`, median | p95 |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for one in report["policies"]:
        raw, fitted = one["error_percent"], one["fitted_error_percent"]
        means = [float(np.mean(one[name])) for name in ("simulated_ms", "measured_ms")]
        rows.append(
            f"| `{one['policy']}` | {means[0]:.0f} | {means[1]:.0f} | {raw['episode_median_absolute']:.1f} "
            f"| {raw['episode_p95_absolute']:.1f} | {fitted['episode_median_absolute']:.1f} "
            f"| {fitted['episode_p95_absolute']:.1f} |"
        )
    return rows


def _order(report: Report) -> str:
    order = report["order"]
    names = ", ".join(f"`{name}`" for name in order["measured"])
    same = order["measured"] == order["simulated"]
    return f"{names}, the same both ways" if same else f"{names} measured, which is not the simulated one"
