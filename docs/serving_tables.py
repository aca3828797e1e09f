"""Put the figures of evaluations of serving into pages: ``python -m docs.serving_tables``.

They stand in ``docs/results/serving``, in folders named by a set of devices, each with a ``results.json`` of one or
more loads. A folder named ``DEVICES-seeds`` has training seeds of an agent, whose means are shown.
docs/serving.md has what each policy comes to beside the paper's rule, docs/serving-tables.md has the rest.
docs/serving-load-DEVICES.png are E2E and goodput against load at equal added NLL.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from eval.serve_report import draw_load, mixture_text, seeds_table
from eval.serve_statistics import family_of
from eval.tables import markdown

RESULTS = Path(__file__).parent / "results" / "serving"
SUMMARY = Path(__file__).parent / "serving.md"
PAGE = Path(__file__).parent / "serving-tables.md"
PICTURE = "serving-load-{}.png"
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
    "decision, ms",
]

Evaluations = dict[tuple[str, float], tuple[dict[str, Any], dict[str, Any]]]
"""What was found, and how, by devices and load."""


def evaluations() -> Evaluations:
    """All that is stored, in the order of ``DEVICES``."""
    found, seeds = {}, {}
    for folder in RESULTS.iterdir():
        results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
        devices, _, part = folder.name.partition("-")
        for one in results["loads"]:
            if part == "seeds":
                seeds[devices, one["load"]] = one["training_seeds"]
            else:
                found[devices, one["load"]] = (one, results["config"])
    for place, rows in seeds.items():
        found[place][0]["training_seeds"] = rows
    return dict(sorted(found.items(), key=lambda item: (list(DEVICES).index(item[0][0]), item[0][1])))


def summary(every: Evaluations) -> str:
    """Of each policy the mean E2E over that of the paper's rule at the policy's own added NLL, under each condition."""
    found: dict[str, dict[tuple[str, float], str]] = {}
    for place, (one, _) in every.items():
        for row in one["matched_quality"]:
            if row["family"] == "wdmoe" and row["figure"] == COMPARED[0] and row["ratio"] is not None:
                found.setdefault(f"`{row['reference']}`", {})[place] = _interval(row["ratio"], ".2f")
        for row in one["training_seeds"]:
            ratio = row["ratios"][COMPARED[0]]
            if ratio is not None:
                name = f"{row['setting']}, mean of {len(row['seeds'])} seeds"
                found.setdefault(name, {})[place] = _interval(ratio, ".2f")
    head = ["policy", *(f"{DEVICES[devices]}, {load:g}" for devices, load in every)]
    rows = [[name, *(cells.get(place, "") for place in every)] for name, cells in found.items()]
    return markdown([head, *rows])


def tables(every: Evaluations) -> Iterator[str]:
    """The Markdown of all evaluations."""
    for (name, load), (one, config) in every.items():
        devices = DEVICES[name]
        yield f"## Load {load:g}, {devices}: {config['episodes']} cells, seed {config['seed']}"
        yield markdown([HEAD, *(_policy(policy) for policy in one["policies"])])
        if one["training_seeds"]:
            yield markdown(seeds_table(one["training_seeds"]))
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
        f"{one['decision_ms']:.2f}",
    ]


def _matched(results: dict[str, Any]) -> Iterator[list[str]]:
    """A row for each pair that could be compared: ratios to the paper's rule at equal added NLL."""
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for row in results["matched_quality"]:
        shown = row["family"] == "wdmoe" or (row["reference"] in THRESHOLDS and not _alone(row["family"], results))
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


def _alone(family: str, results: dict[str, Any]) -> bool:
    """Whether a family has one policy, which is compared where it stands and not by mixtures with own routing."""
    return sum(family_of(one["policy"]) == family for one in results["policies"]) < 2


def _interval(value: dict[str, float], form: str) -> str:
    return f"{value['mean']:{form}} [{value['low']:{form}}, {value['high']:{form}}]"


def draw(every: Evaluations) -> None:
    """Draw what each set of devices came to against load."""
    for devices in {name: None for name, _ in every}:
        loads = [one for (name, _), (one, _) in every.items() if name == devices]
        loads = [{**one, "matched_quality": _of_families(one, loads)} for one in loads]
        (PAGE.parent / PICTURE.format(devices)).write_bytes(draw_load({**loads[0], "loads": loads}, THRESHOLDS[0]))


def _of_families(results: dict[str, Any], loads: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Comparisons of those families that have two policies or more at one of the loads."""
    return [row for row in results["matched_quality"] if not all(_alone(row["family"], one) for one in loads)]


def main() -> None:
    """Rewrite the places between the marks, and draw."""
    every = evaluations()
    draw(every)
    for page, body in ((SUMMARY, summary(every)), (PAGE, "\n\n".join(part.strip() for part in tables(every)))):
        before, _, rest = page.read_text(encoding="utf-8").partition(BEGIN)
        _, _, after = rest.partition(END)
        page.write_text(f"{before}{BEGIN}\n{body.strip()}\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
