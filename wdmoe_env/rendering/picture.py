"""The picture of a scene: header, map, devices and selection on one sheet."""

from __future__ import annotations

from wdmoe_env.rendering.canvas import Area, Canvas, Picture
from wdmoe_env.rendering.device_table import draw_devices
from wdmoe_env.rendering.header import draw_header
from wdmoe_env.rendering.palette import INK
from wdmoe_env.rendering.radio_map import draw_map, draw_map_legend
from wdmoe_env.rendering.scene import Scene
from wdmoe_env.rendering.selection_grid import draw_selection, draw_selection_legend

# Multiples of 16, as video encoders want them.
WIDTH, HEIGHT = 1120, 720
HEADER = Area(28, 20, 1064, 62)
MAP = Area(28, 118, 336, 316)
DEVICES = Area(396, 92, 696, 372)
SELECTION = Area(28, 516, 1064, 184)
HEADING = 14


def draw_scene(scene: Scene) -> Picture:
    """Picture (720, 1120, 3) of a scene.

    Raises:
        ImportError: Pillow is not installed.
    """
    canvas = Canvas(WIDTH, HEIGHT)
    draw_header(canvas, scene, HEADER)
    canvas.text(MAP.left, 112, "Radio links", HEADING, INK)
    draw_map(canvas, scene, MAP)
    draw_map_legend(canvas, scene, MAP.left, 446)
    draw_devices(canvas, scene, DEVICES)
    canvas.text(SELECTION.left, 502, "Experts of each token", HEADING, INK)
    draw_selection_legend(canvas, SELECTION.right, 497)
    draw_selection(canvas, scene, SELECTION)
    return canvas.pixels()
