"""How long the windows of an evaluation took over the air, task by task."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np

from wdmoe_env.physics.latency import Float

TOTAL = "all"
"""Name of the row over all tasks."""


class Airtime:
    """Collects latencies of windows."""

    def __init__(self) -> None:
        self._windows: dict[str, list[tuple[float, float, float]]] = defaultdict(list)

    def add(self, tasks: Sequence[str | None], latency_ms: Float, vanilla_latency_ms: Float, wlr: Float) -> None:
        """Add n windows.

        Args:
            tasks: n names.
            latency_ms: (n,) of each window.
            vanilla_latency_ms: (n,) of the model's own routing at equal shares, NaN where it did not run.
            wlr: (n,) mean over blocks, 1/ms.
        """
        for task, *window in zip(tasks, latency_ms.tolist(), vanilla_latency_ms.tolist(), wlr.tolist(), strict=True):
            self._windows[str(task)].append(tuple(window))

    def summary(self) -> dict[str, dict[str, Any]]:
        """For each task, and for all together: windows, and means over them.

        Returns:
            ``windows``, a count; ``latency_ms`` of a window; ``latency_ratio_to_vanilla``, the ratio of the mean
            latencies, ``None`` where vanilla did not run; ``wlr_per_ms``.
        """
        tasks = {task: np.array(windows) for task, windows in self._windows.items()}
        if tasks:
            tasks[TOTAL] = np.concatenate(list(tasks.values()))
        return {task: _means(windows) for task, windows in tasks.items()}

    def table(self) -> list[list[str]]:
        """Rows of cells, the header first."""
        rows = [["task", "windows", "latency, ms", "to vanilla", "WLR, 1/ms"]]
        for task, means in self.summary().items():
            ratio = means["latency_ratio_to_vanilla"]
            ratio_cell = "" if ratio is None else f"{ratio:.3f}"
            rows.append(
                [task, str(means["windows"]), f"{means['latency_ms']:.1f}", ratio_cell, f"{means['wlr_per_ms']:.2f}"]
            )
        return rows


def _means(windows: Any) -> dict[str, Any]:
    latency_ms, vanilla_ms, wlr = windows.mean(axis=0).tolist()
    return {
        "windows": len(windows),
        "latency_ms": latency_ms,
        "latency_ratio_to_vanilla": None if np.isnan(vanilla_ms) else latency_ms / vanilla_ms,
        "wlr_per_ms": wlr,
    }
