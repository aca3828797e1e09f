"""The base station and its devices from above: distances to scale, links coloured by their quality."""

from __future__ import annotations

import math

from wdmoe_env.rendering.canvas import Area, Canvas
from wdmoe_env.rendering.palette import (
    FAINT,
    INK,
    MUTED,
    PAPER,
    SLOWEST,
    STRONG_EFFICIENCY,
    WEAK_EFFICIENCY,
    link_colour,
)
from wdmoe_env.rendering.scene import DeviceRow, Scene

# Pixels in a map of FULL_SIDE; a smaller map has smaller discs.
FULL_SIDE, BASE_STATION = 316.0, 17.0
LEAST_LINK, LINK_PER_SHARE = 1.5, 24.0
SMALL = 11
RAMP_WIDTH, RAMP_STEPS = 96, 48
# Fewer devices get larger dots; without room for their numbers in the end.
DOTS = ((8, 11.0), (16, 8.5), (32, 6.0))
LEAST_DOT, LEAST_NUMBERED = 4.0, 5.5


def draw_map(canvas: Canvas, scene: Scene, area: Area) -> None:
    """The devices spread evenly around the base station; distances count from the edge of its disc."""
    centre = (area.left + area.width / 2, area.top + area.height / 2)
    dot, step = dot_radius(len(scene.devices), area), ring_step_m(scene.reach_m)
    for ring in range(1, int(scene.reach_m / step) + 1 if step else 0):
        canvas.disc(*centre, _radius(ring * step, scene, area), None, outline=FAINT)
    places = device_places(scene, area)
    for device, place in zip(scene.devices, places, strict=True):
        if device.away:
            continue
        width = LEAST_LINK + LINK_PER_SHARE * _scale(area) ** 0.5 * device.bandwidth_share
        canvas.line(centre, place, link_colour(device.efficiency), width)
    canvas.disc(*centre, BASE_STATION * _scale(area), INK)
    canvas.text(*centre, "BS", SMALL * _scale(area) ** 0.5, PAPER, anchor="mm")
    for device, place in zip(scene.devices, places, strict=True):
        _draw_dot(canvas, device, *place, dot, scene.tied)


def device_places(scene: Scene, area: Area) -> list[tuple[float, float]]:
    """Where each device stands in the map that fills an area; on the rim where its distance is not known."""
    count = len(scene.devices)
    places = []
    for place, device in enumerate(scene.devices):
        radius = _radius(device.distance_m, scene, area)
        angle = 2 * math.pi * (place + 0.5) / count - math.pi / 2
        x, y = radius * math.cos(angle), radius * math.sin(angle)
        places.append((area.left + area.width / 2 + x, area.top + area.height / 2 + y))
    return places


def ring_step_m(reach_m: float) -> float:
    """Round distance between two of the two to five rings within reach; 0 where no distance is known."""
    if not math.isfinite(reach_m):
        return 0.0
    power = 10.0 ** math.floor(math.log10(reach_m / 2))
    return max(factor * power for factor in (1, 2, 5) if 2 * factor * power <= reach_m)


def dot_radius(count: int, area: Area) -> float:
    """Radius of a device's disc in pixels."""
    return _scale(area) ** 0.5 * next((radius for most, radius in DOTS if count <= most), LEAST_DOT)


def draw_map_legend(canvas: Canvas, scene: Scene, left: float, top: float) -> None:
    """What colour, width and rings mean, in two lines.

    Args:
        canvas: to draw on.
        scene: whose rings they are.
        left: edge of the lines, in pixels.
        top: middle of the first, in pixels.
    """
    canvas.text(left, top, f"{WEAK_EFFICIENCY:g}", SMALL, MUTED, anchor="lm")
    step = RAMP_WIDTH / RAMP_STEPS
    for part in range(RAMP_STEPS):
        efficiency = WEAK_EFFICIENCY + (STRONG_EFFICIENCY - WEAK_EFFICIENCY) * part / (RAMP_STEPS - 1)
        canvas.rectangle(Area(left + 12 + part * step, top - 4, step, 8), link_colour(efficiency))
    text = f"{STRONG_EFFICIENCY:g} bit/s/Hz, the weaker direction"
    canvas.text(left + 18 + RAMP_WIDTH, top, text, SMALL, MUTED, anchor="lm")
    rings = f"; a ring every {step_m:g} m" if (step_m := ring_step_m(scene.reach_m)) else ""
    canvas.text(left, top + 17, f"width of a link: its share{rings}", SMALL, MUTED, anchor="lm")


def _draw_dot(canvas: Canvas, device: DeviceRow, x: float, y: float, radius: float, tied: bool) -> None:
    """A device as a numbered disc; red where the block waited for it, ringed alone where also for others.

    A device that is away is a hollow disc without a link.
    """
    canvas.disc(x, y, 1.14 * radius, PAPER)
    if device.away:
        canvas.disc(x, y, radius, None, outline=MUTED)
    else:
        canvas.disc(x, y, radius, SLOWEST if device.slowest and not tied else INK)
    if device.slowest:
        canvas.disc(x, y, 1.3 * radius, None, outline=SLOWEST)
    if radius >= LEAST_NUMBERED:
        canvas.text(x, y, device.number, 1.1 * radius, MUTED if device.away else PAPER, anchor="mm")


def _scale(area: Area) -> float:
    return min(area.width, area.height) / FULL_SIDE


def _radius(metres: float, scene: Scene, area: Area) -> float:
    """Radius of a distance in pixels; the rim where it is not known."""
    rim = min(area.width, area.height) / 2 - dot_radius(len(scene.devices), area) - 4
    base = BASE_STATION * _scale(area)
    return base + (rim - base) * metres / scene.reach_m if math.isfinite(metres) else rim
