"""Which experts each token used: a column per token, a row per expert, the decision over the gate probability."""

from __future__ import annotations

import numpy as np

from wdmoe_env.rendering.canvas import Area, Canvas, fitted, text_width
from wdmoe_env.rendering.palette import (
    ADDED,
    DROPPED,
    INK,
    KEPT,
    MUTED,
    PAPER,
    SLOWEST,
    Colour,
    gate_colour,
)
from wdmoe_env.rendering.scene import Scene

LABEL_WIDTH, LABEL_SIZE = 116.0, 11.0
MOST_CELL_WIDTH, MOST_CELL_HEIGHT, LEAST_MARKED, LEAST_GAPPED = 60.0, 30.0, 9.0, 4.0
LEAST_LABELLED, MARKED_PART = 8.0, 0.62
TOKEN_SIZE, TOKEN_HEIGHT, LEAST_TOKEN_WIDTH = 10.0, 46.0, 11.0


def draw_selection(canvas: Canvas, scene: Scene, area: Area, label_width: float = LABEL_WIDTH) -> None:
    """The grid, the experts' names to its left and the text above it, each where there is room.

    Args:
        canvas: to draw on.
        scene: what is drawn.
        area: of grid, names and text, in pixels.
        label_width: what the names take of it, in pixels.
    """
    first = first_cell(scene, area, label_width)
    if first.top > area.top:
        for token, text in enumerate(scene.tokens):
            x = first.left + (token + 0.5) * first.width
            canvas.upright(x, first.top - 3, fitted(_visible(text), TOKEN_SIZE, TOKEN_HEIGHT - 4), TOKEN_SIZE, MUTED)
    _draw_labels(canvas, scene, Area(area.left, first.top, label_width, first.height))
    for (token, expert), probability in np.ndenumerate(scene.gate_probs):
        left, top = first.left + token * first.width, first.top + expert * first.height
        _draw_cell(canvas, first._replace(left=left, top=top), float(probability), _decision(scene, token, expert))


def first_cell(scene: Scene, area: Area, label_width: float = LABEL_WIDTH) -> Area:
    """The cell of the first token and expert; the others follow to the right and downwards."""
    tokens, experts = scene.gate_probs.shape
    width = min(MOST_CELL_WIDTH, (area.width - label_width) / tokens)
    above = TOKEN_HEIGHT if scene.tokens and width >= LEAST_TOKEN_WIDTH else 0.0
    height = min(MOST_CELL_HEIGHT, (area.height - above) / experts)
    return Area(area.left + label_width, area.top + above, width, height)


def draw_selection_legend(canvas: Canvas, right: float, middle: float) -> None:
    """What the marks mean, in a line that ends at ``right``."""
    x = right
    for text, decision in (("added", ADDED), ("dropped", DROPPED), ("kept", KEPT)):
        x -= text_width(text, LABEL_SIZE)
        canvas.text(x, middle, text, LABEL_SIZE, MUTED, anchor="lm")
        x -= 18
        _draw_cell(canvas, Area(x, middle - 7, 14, 14), 0.0, decision)
        x -= 18
    text = "gate probability"
    x -= text_width(text, LABEL_SIZE)
    canvas.text(x, middle, text, LABEL_SIZE, MUTED, anchor="lm")
    for part in range(24):
        colour = gate_colour(part / 23)
        canvas.rectangle(Area(x - 54 + 2 * part, middle - 7, 2, 14), colour)


def _decision(scene: Scene, token: int, expert: int) -> Colour | None:
    for decisions, colour in ((scene.kept, KEPT), (scene.dropped, DROPPED), (scene.added, ADDED)):
        if decisions[token, expert]:
            return colour
    return None


def _draw_cell(canvas: Canvas, area: Area, probability: float, decision: Colour | None) -> None:
    """A cell shaded by its probability, its mark upon it; where it is small, the mark alone."""
    gap = 1.0 if min(area.width, area.height) >= LEAST_GAPPED else 0.0
    cell = Area(area.left, area.top, area.width - gap, area.height - gap)
    canvas.rectangle(cell, gate_colour(probability))
    if decision is None:
        return
    side = min(cell.width, cell.height)
    if side < LEAST_MARKED:
        canvas.rectangle(cell, decision)
        return
    size = MARKED_PART * side
    mark = Area(cell.left + (cell.width - size) / 2, cell.top + (cell.height - size) / 2, size, size)
    if decision == KEPT:
        canvas.rectangle(mark, KEPT)
    elif decision == DROPPED:
        canvas.rectangle(mark, PAPER, outline=DROPPED, width=2)
    else:
        canvas.disc(mark.left + mark.width / 2, mark.top + mark.height / 2, size / 2, ADDED)


def _draw_labels(canvas: Canvas, scene: Scene, first: Area) -> None:
    """Each expert and its device, red where the block waited for that alone, grey where it is away."""
    if first.height < LEAST_LABELLED:
        canvas.text(first.left, first.top + LABEL_SIZE, f"{len(scene.expert_device)} experts", LABEL_SIZE, INK)
        return
    slowest = {int(device.number) for device in scene.devices if device.slowest and not scene.tied}
    away = {int(device.number) for device in scene.devices if device.away}
    size = min(LABEL_SIZE, 0.85 * first.height)
    for expert, device in enumerate(scene.expert_device):
        middle = first.top + (expert + 0.5) * first.height - 0.5
        usual = MUTED if device in away else INK
        colour = SLOWEST if device in slowest else usual
        canvas.text(first.left, middle, f"expert {expert + 1}", size, usual, anchor="lm")
        if first.width >= LABEL_WIDTH:
            canvas.text(first.right - 8, middle, f"device {device}", size, colour, anchor="rm")


def _visible(text: str) -> str:
    return text.strip().replace("\n", " ")
