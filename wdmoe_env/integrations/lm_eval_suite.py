"""The multiple-choice suite as tasks of ``lm_eval``: files alone, which any of its models can run."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from wdmoe_env.text.suite import FORMATS, SCORED_PER_BYTE, Item
from wdmoe_env.writing import write_files

TAG = "wdmoe_suite"
"""All tasks together; each is ``wdmoe_suite_FORMAT``."""


def write_suite_tasks(
    folder: Path, items: Sequence[Item], numbers: Sequence[int] | None = None, seeds: Sequence[int] | None = None
) -> list[str]:
    """Write a task for each format: a YAML file and its documents, a line of JSON for each item.

    The harness's own metrics are the suite's: ``acc``, or ``acc_bytes`` where choices are scored per byte.

    Args:
        folder: where to; it is made. The YAML names the documents by their absolute path.
        items: of the suite.
        numbers: of each item within its suite, its position by default.
        seeds: of each item's channel, see ``WDMoELM``; without, the model has its own.

    Returns:
        Names of the tasks.

    Raises:
        ValueError: no items, or not a number and a seed for each.
        ValueError, OSError: what ``wdmoe_env.writing.write_files`` raises.
    """
    if not items or any(given is not None and len(given) != len(items) for given in (numbers, seeds)):
        raise ValueError(f"expected items, and a number and a seed for each, got {len(items)} items")
    documents: dict[str, list[dict[str, Any]]] = {name: [] for name in FORMATS}
    for position, item in enumerate(items):
        document = {"item": int(numbers[position]) if numbers is not None else position}
        if seeds is not None:
            document["channel_seed"] = int(seeds[position])
        documents[item.format].append(document | {name: getattr(item, name) for name in Item.__slots__})
    names: list[str] = []
    files: dict[str, bytes] = {}
    for format_name, found in documents.items():
        if found:
            name = f"{TAG}_{format_name.replace('-', '_')}"
            names.append(name)
            files |= _task(folder, name, format_name, found)
    write_files(folder, files)
    return names


def _task(folder: Path, name: str, format_name: str, documents: Sequence[dict[str, Any]]) -> dict[str, bytes]:
    """The two files of a task by name."""
    data = folder / f"{name}.jsonl"
    lines = "".join(json.dumps(document, ensure_ascii=False) + "\n" for document in documents)
    metric = "acc_bytes" if format_name in SCORED_PER_BYTE else "acc"
    task = {
        "task": name,
        "tag": TAG,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data.resolve())}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "context",
        "doc_to_choice": "choices",
        "doc_to_target": "answer",
        "target_delimiter": "",
        "num_fewshot": 0,
        "metric_list": [{"metric": metric, "aggregation": "mean", "higher_is_better": True}],
        "metadata": {"version": 1.0},
    }
    written = json.dumps(task, indent=2) + "\n"  # JSON is YAML
    return {data.name: lines.encode(), f"{name}.yaml": written.encode()}
