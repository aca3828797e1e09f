"""Where the episode stands: block i of I, and the figures of the block and of the episode so far."""

from __future__ import annotations

from collections.abc import Mapping

from wdmoe_env.rendering.canvas import Area, Canvas, fitted
from wdmoe_env.rendering.palette import BAR, FAINT, INK, MUTED
from wdmoe_env.rendering.scene import Scene

TITLE, SMALL, FIGURE = 24, 12, 20
FIGURE_WIDTH = 108


def draw_header(canvas: Canvas, scene: Scene, area: Area) -> None:
    """Title and setting on the left, figures on the right, a line of the episode's blocks below."""
    draw_figures(canvas, scene.figures, area.right, area.top + 22)
    room = area.width - FIGURE_WIDTH * len(scene.figures) - 8
    canvas.text(area.left, area.top + 22, scene.block, TITLE, INK)
    canvas.text(area.left, area.top + 44, fitted(scene.setting, SMALL, room), SMALL, MUTED)
    draw_progress(canvas, scene, Area(area.left, area.bottom - 4, area.width, 4))


def draw_figures(
    canvas: Canvas, figures: Mapping[str, str], right: float, baseline: float, width: float = FIGURE_WIDTH
) -> None:
    """Numbers, their names below, in columns.

    Args:
        canvas: to draw on.
        figures: names to what is written.
        right: edge of the last column, in pixels.
        baseline: of the numbers, in pixels.
        width: of a column, in pixels.
    """
    for place, (name, text) in enumerate(reversed(list(figures.items()))):
        x = right - place * width
        canvas.text(x, baseline, text, FIGURE, INK, anchor="rs")
        canvas.text(x, baseline + 22, name, SMALL, MUTED, anchor="rs")


def draw_progress(canvas: Canvas, scene: Scene, area: Area) -> None:
    """A stroke for each of the I blocks, dark up to this one."""
    gap = 4 if area.width > 8 * scene.num_blocks else 0
    step = (area.width + gap) / scene.num_blocks
    for block in range(scene.num_blocks):
        colour = FAINT if block >= scene.position else INK if block == scene.position - 1 else BAR
        canvas.rectangle(Area(area.left + block * step, area.top, step - gap, area.height), colour)
