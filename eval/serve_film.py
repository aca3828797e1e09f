"""Two policies on the same cell in time, on one sheet: requests come, wait, are read and answered; devices are busy."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

import numpy as np

from eval.members import short_names
from eval.serve_timeline import BINS, PHASES, Timeline
from wdmoe_env.config import EnvConfig
from wdmoe_env.policies import make_policy, reads_hidden_states
from wdmoe_env.rendering.canvas import Area, Canvas, Picture, fitted
from wdmoe_env.rendering.palette import BAR, DROPPED, FAINT, INK, KEPT, MUTED, PAPER, TRACK, Colour, blend
from wdmoe_env.serving.play import play
from wdmoe_env.serving.process import ServingProcess

PICTURES = 60
ROUNDING_MS = 1e-6
WIDTH, LEFT, RIGHT = 880, 20.0, 860.0
BARS = 120.0
HEAD, NAME, ROW, DEVICE, BETWEEN, FOOT = 52, 26, 9.0, 7.0, 14.0, 34
COLOURS: tuple[Colour, ...] = (BAR, KEPT, DROPPED)
"""Of the phases of a request."""


def timelines(policies: tuple[str, ...], config: EnvConfig, seed: int) -> dict[str, Timeline]:
    """Every policy on the same cell.

    Args:
        policies: names and files as ``make_policy`` takes them.
        config: of a cell that serves requests, with both decisions in the action.
        seed: of requests, texts and channel, and of the policies.

    Raises:
        ValueError, TypeError: a policy, a setting or a file is wrong.
    """
    hidden = any(map(reads_hidden_states, policies))
    process = ServingProcess(replace(config, observe_hidden_states=hidden))
    made = {policy: make_policy(policy, process, seed) for policy in policies}
    names, found = short_names(policies), {}
    for policy, one in made.items():
        timeline = Timeline()
        timeline.end(play(process, one, [seed], 1, seen=timeline.add).figures)
        found[names[policy]] = timeline
    return found


def pictures(shown: Mapping[str, Timeline]) -> Iterator[Picture]:
    """``PICTURES`` pictures, evenly spread over the longest of the cells.

    Args:
        shown: name of each policy, and what its cell did.
    """
    longest_ms = max(one.end_ms for one in shown.values())
    first = next(iter(shown.values()))
    rows, devices = len(first.requests["e2e_ms"]), len(first.busy)
    panel = NAME + ROW * rows + BETWEEN / 2 + DEVICE * devices + BETWEEN
    for now_ms in np.linspace(longest_ms / PICTURES, longest_ms, PICTURES).tolist():
        canvas = Canvas(WIDTH, round(HEAD + panel * len(shown) + FOOT))
        canvas.text(LEFT, 32, f"{now_ms:.0f} ms", 20, INK)
        canvas.text(RIGHT, 32, "the same requests, texts and channel", 12, MUTED, anchor="rs")
        for place, (name, one) in enumerate(shown.items()):
            _draw(canvas, name, one, HEAD + place * panel, now_ms, longest_ms)
        _draw_legend(canvas, HEAD + panel * len(shown) + FOOT / 2)
        yield canvas.pixels()


def _draw(canvas: Canvas, name: str, one: Timeline, top: float, now_ms: float, longest_ms: float) -> None:
    """A policy's requests as far as they have come, and its devices."""

    def at(time_ms: float) -> float:
        return BARS + (RIGHT - BARS) * min(time_ms, now_ms) / longest_ms

    arrival, e2e = one.requests["arrival_ms"], one.requests["e2e_ms"]
    done, here = arrival + e2e <= now_ms + ROUNDING_MS, arrival <= now_ms
    canvas.text(LEFT, top + 14, fitted(name, 14, 420), 14, KEPT)
    mean = f"{e2e[done].mean():.0f} ms in the mean" if done.any() else "nothing yet"
    canvas.text(
        RIGHT, top + 14, f"{done.sum()} answered, {(here & ~done).sum()} in the system; {mean}", 12, MUTED, "rs"
    )
    top += NAME
    canvas.text(LEFT, top + 10, "requests", 11, MUTED)
    for colour, (left, width) in zip(COLOURS, one.bars(), strict=True):
        for number in np.flatnonzero(np.isfinite(width) & (left <= now_ms)):
            start, end = at(left[number]), at(left[number] + width[number])
            canvas.rectangle(Area(start, top + ROW * number, max(end - start, 1.0), ROW - 2), colour)
    top += ROW * len(e2e) + BETWEEN / 2
    canvas.text(LEFT, top + 10, "devices busy", 11, MUTED)
    edges = np.linspace(0.0, one.end_ms, BINS + 1)
    whole = Area(BARS, top, RIGHT - BARS, DEVICE * len(one.busy))
    canvas.rectangle(whole, TRACK)
    for device, shares in enumerate(one.busy):
        for bin_, share in enumerate(shares):
            if edges[bin_] < now_ms:
                start, end = at(edges[bin_]), at(edges[bin_ + 1])
                colour = blend(PAPER, INK, float(share))
                canvas.rectangle(Area(start, top + DEVICE * device, end - start, DEVICE - 1), colour)
    canvas.line((at(now_ms), whole.top), (at(now_ms), whole.bottom), FAINT)


def _draw_legend(canvas: Canvas, middle: float) -> None:
    left = BARS
    for name, colour in zip(PHASES, COLOURS, strict=True):
        canvas.rectangle(Area(left, middle - 5, 10, 10), colour)
        canvas.text(left + 16, middle, name, 12, MUTED, anchor="lm")
        left += 150
