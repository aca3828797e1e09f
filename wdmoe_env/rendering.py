"""A picture of one block in plain numpy: who serves which token, and which device everybody waits for.

Left, a row per token and a column per expert: the selection over the gate probabilities. Right, a row per
device: its latency over the block's (blue, the bottleneck red) and below it its bandwidth share (green).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from wdmoe_env.observations import Block
from wdmoe_env.physics.latency import Bool, Float

Picture = NDArray[np.uint8]

HEIGHT, GRID_WIDTH, BAR_WIDTH, MARGIN = 384, 192, 320, 16
WHITE, GREY = (255, 255, 255), (225, 225, 225)
SERVED, DROPPED, UNROUTED = (38, 112, 178), (240, 150, 60), (120, 70, 160)
LATENCY, BOTTLENECK, SHARE = (90, 140, 200), (205, 50, 50), (100, 170, 100)


def draw_block(block: Block, info: dict[str, Any] | None) -> Picture:
    """Picture (H, W, 3) of a block (N = 1) and of what the last decision led to.

    Args:
        block: the block that a decision was made for.
        info: that step's info, or ``None`` before the first step.
    """
    canvas = np.full((HEIGHT + 2 * MARGIN, GRID_WIDTH + BAR_WIDTH + 3 * MARGIN, 3), WHITE, dtype=np.uint8)
    body = canvas[MARGIN:-MARGIN]
    selection = block.routed[0] if info is None else info["selection"]
    body[:, MARGIN : MARGIN + GRID_WIDTH] = _grid(block.gate_probs[0], block.routed[0], selection)
    if info is not None:
        bars = body[:, 2 * MARGIN + GRID_WIDTH : -MARGIN]
        _draw_bars(bars, info["device_latency_ms"], info["shares"])
    return canvas


def _grid(gate_probs: Float, routed: Bool, selection: Bool) -> Picture:
    """(HEIGHT, GRID_WIDTH, 3): gate probability as grey, decisions in colour."""
    cells = np.repeat((255 - 120 * np.minimum(gate_probs, 1.0)).astype(np.uint8)[..., None], 3, axis=-1)
    cells[selection & routed] = SERVED
    cells[routed & ~selection] = DROPPED
    cells[selection & ~routed] = UNROUTED
    rows = np.arange(HEIGHT) * cells.shape[0] // HEIGHT
    columns = np.arange(GRID_WIDTH) * cells.shape[1] // GRID_WIDTH
    picture = cells[rows][:, columns]
    picture[np.nonzero(np.diff(rows))[0]] = WHITE
    picture[:, np.nonzero(np.diff(columns))[0]] = WHITE
    return picture


def _draw_bars(area: Picture, latency_ms: Float, shares: Float) -> None:
    """Two bars for each device, in place."""
    step = HEIGHT / len(shares)
    longest = latency_ms.max()
    for device, (latency, share) in enumerate(zip(latency_ms, shares, strict=True)):
        top, middle, bottom = (int((device + part) * step) for part in (0.1, 0.5, 0.9))
        area[top:bottom] = GREY
        colour = BOTTLENECK if latency == longest else LATENCY
        area[top:middle, : int(BAR_WIDTH * latency / longest)] = colour
        area[middle:bottom, : int(BAR_WIDTH * share)] = SHARE
