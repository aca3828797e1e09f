"""What one cell did: its requests as bars (waiting, prompt, answer), and below how busy each device was."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

from eval.statistics import Float, Summary

BINS = 120
"""Parts of an episode's time by which the load of devices is kept."""
KEPT = ("arrival_ms", "queue_ms", "ttft_ms", "e2e_ms")
PHASES = ("waiting", "prompt", "answer")
"""What the bars of a request stand for, in order."""
COLORS = ("0.75", "tab:blue", "tab:orange")


class Timeline:
    """One cell under one policy, written down block by block.

    Attributes:
        requests: by name the figures of ``KEPT``, each (R,), NaN where a request did not finish.
        end_ms: how long the episode was.
        busy: (U, BINS) part of the time that each device takes in a block over the block's, by time.
    """

    def __init__(self) -> None:
        self.requests: dict[str, Float] = {}
        self.end_ms = 0.0
        self.busy: Float = np.zeros((0, BINS))
        self._blocks: list[tuple[float, float, Float]] = []

    def add(self, numbers: Sequence[int], info: Mapping[str, NDArray[Any]]) -> None:
        """Note a block, where it is one of the first episode.

        Args:
            numbers: n numbers of the episodes that ran it.
            info: of the block, entries (n, ...).
        """
        if 0 in numbers:
            n = list(numbers).index(0)
            end_ms, step_ms = float(info["clock_ms"][n]), float(info["step_ms"][n])
            self._blocks.append((end_ms - step_ms, end_ms, np.array(info["device_latency_ms"][n], dtype=np.float64)))

    def end(self, figures: Mapping[str, NDArray[Any]]) -> None:
        """Take the figures of the requests, and reduce what was noted to parts of the time.

        Args:
            figures: of all episodes, each (n, R).
        """
        self.requests = {name: np.array(figures[f"request_{name}"][0], dtype=np.float64) for name in KEPT}
        self.end_ms = self._blocks[-1][1]
        self.busy = np.zeros((len(self._blocks[0][2]), BINS))
        edges = np.linspace(0.0, self.end_ms, BINS + 1)
        for start_ms, end_ms, device_ms in self._blocks:
            inside = np.clip(np.minimum(edges[1:], end_ms) - np.maximum(edges[:-1], start_ms), 0.0, None)
            self.busy += (device_ms / max(end_ms - start_ms, 1e-9))[:, None] * inside
        self.busy /= edges[1] - edges[0]
        self._blocks = []

    def bars(self) -> list[tuple[Float, Float]]:
        """Beginning and width in ms (R,) of waiting, prompt and answer of each request; NaN where it did not finish."""
        arrival, queue, ttft, e2e = (self.requests[name] for name in KEPT)
        return [(arrival, queue), (arrival + queue, ttft - queue), (arrival + ttft, e2e - ttft)]

    def to_dict(self) -> Summary:
        """Plain values for JSON; ``None`` where a request did not finish."""
        lists = {name: lists_of(values) for name, values in self.requests.items()}
        return {"requests": lists, "end_ms": self.end_ms, "busy": np.round(self.busy, 4).tolist()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The inverse of ``to_dict``.

        Raises:
            ValueError, TypeError, LookupError: it is not what that gives.
        """
        one = cls()
        one.requests = {name: np.array(values["requests"][name], dtype=np.float64) for name in KEPT}
        one.end_ms = float(values["end_ms"])
        one.busy = np.array(values["busy"], dtype=np.float64).reshape(-1, BINS)
        return one


def lists_of(values: NDArray[Any]) -> list[Any]:
    """Numbers of any shape as lists of JSON, ``None`` for NaN."""
    plain = values.astype(object)
    plain[np.isnan(values)] = None
    found: list[Any] = plain.tolist()
    return found


def draw_timelines(timelines: Mapping[str, Timeline]) -> bytes:
    """A PNG of one cell under some policies: bars of requests, and below the load of each device."""
    figure = Figure(figsize=(11, 3.6 * len(timelines)))
    panels = figure.subplots(2 * len(timelines), 1, sharex=True, squeeze=False, height_ratios=(2.4, 1) * len(timelines))
    longest_ms = max(one.end_ms for one in timelines.values())
    for number, (name, one) in enumerate(timelines.items()):
        above, below = panels[2 * number, 0], panels[2 * number + 1, 0]
        for label, color, (left, width) in zip(PHASES, COLORS, one.bars(), strict=True):
            known = np.isfinite(width)
            above.barh(np.flatnonzero(known), width[known], left=left[known], color=color, label=label, height=0.8)
        above.invert_yaxis()
        above.set(ylabel="request", title=name)
        extent = (0.0, one.end_ms, len(one.busy) - 0.5, -0.5)
        below.imshow(one.busy, aspect="auto", cmap="Greys", vmin=0.0, vmax=1.0, extent=extent, interpolation="nearest")
        below.set(ylabel="device", xlim=(0.0, longest_ms))
    panels[0, 0].legend(fontsize=7, loc="upper right")
    panels[-1, 0].set(xlabel="simulated time, ms; dark: the device is busy all the time")
    FigureCanvasAgg(figure)
    figure.tight_layout()
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=110)
    return content.getvalue()
