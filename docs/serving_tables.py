"""Put the figures of evaluations of serving into docs/serving.md: ``python docs/serving_tables.py``.

They stand in ``docs/results/serving``, a folder for each set of devices, with a ``results.json`` of one or more loads.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from eval.serve_report import mixture_text
from eval.tables import markdown

RESULTS = Path(__file__).parent / "results" / "serving"
PAGE = Path(__file__).parent / "serving.md"
BEGIN, END = "<!-- tables -->", "<!-- /tables -->"
DEVICES = {"paper": "the paper's devices", "boards": "boards"}
COMPARED = ("e2e_ms", "e2e_ms_p95")
THRESHOLDS = ("wdmoe:0.8", "wdmoe:0.9")
"""At whose added NLL whole families are compared; the files have the others too."""
HEAD = [
    "policy",
    "E2E, ms",
    "p95",
    "TTFT",
    "TPOT",
    "goodput, 1/s",
    "added NLL, nats",
    "of answers",
    "IQM of E2E ratios",
]


def tables(folder: Path) -> Iterator[str]:
    """The Markdown of one evaluation."""
    results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    devices = DEVICES[folder.name.partition("-")[0]]
    config = results["config"]
    for one in results["loads"]:
        yield f"#### Load {one['load']:g}, {devices}: {config['episodes']} cells, seed {config['seed']}"
        yield markdown([HEAD, *(_policy(policy) for policy in one["policies"])])
        yield markdown([["policy, or its family", "at the added NLL of", "nats", "mean E2E", "p95"], *_matched(one)])


def _policy(one: dict[str, Any]) -> list[str]:
    return [
        f"`{one['policy']}`",
        _interval(one["e2e_ms"], ".0f"),
        f"{one['e2e_ms_p95']['mean']:.0f}",
        f"{one['ttft_ms']['mean']:.0f}",
        f"{one['tpot_ms']['mean']:.1f}",
        f"{one['goodput_hz']['mean']:.2f}",
        _interval(one["added_nll"], ".4f"),
        f"{one['added_nll_answer']['mean']:.4f}",
        _interval(one["e2e_ratio_iqm"], ".3f"),
    ]


def _matched(results: dict[str, Any]) -> Iterator[list[str]]:
    """A row for each pair that could be compared: ratios to the paper's rule at equal added NLL."""
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for row in results["matched_quality"]:
        # A family of one policy is compared where that policy stands.
        alone = sum(one["policy"].startswith(row["family"]) for one in results["policies"]) < 2
        shown = row["family"] == "wdmoe" or (row["reference"] in THRESHOLDS and not alone)
        if shown and row["ratio"] is not None and row["figure"] in COMPARED:
            found.setdefault((row["reference"], row["family"]), {})[row["figure"]] = row
    for (reference, family), rows in found.items():
        of_rule = family == "wdmoe"
        drawn = mixture_text(rows["e2e_ms"]["mixture"])
        names = [f"`{reference}`", f"the rule ({drawn})"] if of_rule else [f"{family} ({drawn})", f"`{reference}`"]
        yield [
            *names,
            f"{rows['e2e_ms']['added_nll']:.4f}",
            *(_interval(rows[name]["ratio"], ".3f") for name in COMPARED),
        ]


def _interval(value: dict[str, float], form: str) -> str:
    return f"{value['mean']:{form}} [{value['low']:{form}}, {value['high']:{form}}]"


def main() -> None:
    """Rewrite the place between the marks."""
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    _, _, after = rest.partition(END)
    folders = sorted(RESULTS.iterdir(), key=lambda folder: list(DEVICES).index(folder.name.partition("-")[0]))
    body = "\n\n".join(part.strip() for folder in folders for part in tables(folder))
    PAGE.write_text(f"{before}{BEGIN}\n{body}\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
