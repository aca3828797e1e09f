"""The devices as a table: how far, how well heard, what they got and how long they took."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from wdmoe_env.rendering.canvas import Area, Canvas, fitted, text_width
from wdmoe_env.rendering.palette import BAR, FAINT, INK, MUTED, PAPER, SLOWEST, SLOWEST_TINT, TRACK
from wdmoe_env.rendering.scene import DeviceRow, Scene

TITLE_SIZE, TITLE_HEIGHT = 11, 34
MOST_ROW_HEIGHT, LEAST_ROW_HEIGHT = 34.0, 14.0
PAD, TIE_WIDTH = 8, 4


@dataclass(frozen=True, slots=True)
class Column:
    """A column of the table.

    Attributes:
        title: one line or two.
        width: in pixels; 0 takes what the others leave.
        text: what is written.
        value: the number that a bar beside it stands for, if there is one.
        text_width: of the text beside a bar.
        left: whether the text begins at the left edge.
        marked: whether the slowest device stands out in it.
    """

    title: str
    width: int
    text: Callable[[DeviceRow], str]
    value: Callable[[DeviceRow], float] | None = None
    text_width: int = 46
    left: bool = False
    marked: bool = False


NUMBER = Column("", 26, lambda device: device.number, marked=True)
TOKENS = Column("tokens\nserved", 58, lambda device: device.tokens)
SHARE = Column("share,\n%", 140, lambda device: device.share, lambda device: device.bandwidth_share)
LATENCY = Column("latency,\nms", 0, lambda device: device.latency, lambda device: device.latency_ms, marked=True)
FULL = (
    NUMBER,
    Column("device", 164, lambda device: device.name, left=True),
    Column("distance,\nm", 60, lambda device: device.distance),
    Column("bit/s/Hz\ndown", 60, lambda device: device.downlink),
    Column("\nup", 44, lambda device: device.uplink),
    TOKENS,
    SHARE,
    LATENCY,
)
COMPACT = (
    replace(NUMBER, width=20),
    replace(TOKENS, width=48),
    replace(SHARE, width=94, text_width=30),
    replace(LATENCY, text_width=38),
)


def draw_devices(
    canvas: Canvas, scene: Scene, area: Area, columns: tuple[Column, ...] = FULL, longest_ms: float = 0.0
) -> None:
    """The table; where there is no room for all devices, the slowest of them.

    Args:
        canvas: to draw on.
        scene: of the block.
        area: of the table.
        columns: which ones.
        longest_ms: latency of a whole bar, where it is above the block's.
    """
    room = area.height - TITLE_HEIGHT
    devices = shown_devices(scene, int(room / LEAST_ROW_HEIGHT))
    height = min(MOST_ROW_HEIGHT, room / len(devices))
    rows = [Area(area.left, area.top + TITLE_HEIGHT + n * height, area.width, height) for n in range(len(devices))]
    for device, row in zip(devices, rows, strict=True):
        if device.slowest and not scene.tied:
            canvas.rectangle(row, SLOWEST_TINT)
    left = area.left
    for column in columns:
        width = column.width or area.right - left
        _draw_title(canvas, column, Area(left, area.top, width, TITLE_HEIGHT))
        for device, row in zip(devices, rows, strict=True):
            cell = row._replace(left=left, width=width)
            _draw_text(canvas, column, device, cell, device.slowest and not scene.tied)
            if column.value is not None:
                whole = max(*map(column.value, scene.devices), longest_ms if column.marked else 0.0)
                bar = _draw_bar(canvas, column, cell, column.value(device) / whole if whole else 0.0)
                if column.marked and device.slowest:
                    _mark_slowest(canvas, bar, scene.tied)
        left += width
    canvas.line((area.left, rows[0].top), (area.right, rows[0].top), FAINT)
    if len(devices) < len(scene.devices):
        text = f"the {len(devices)} slowest of {len(scene.devices)} devices"
        canvas.text(area.left, area.top + 10, text, TITLE_SIZE, MUTED)


def shown_devices(scene: Scene, most: int) -> list[DeviceRow]:
    """All devices, or as many of the slowest as there is room for, by number."""
    slowest = sorted(scene.devices, key=lambda device: -device.latency_ms)[:most]
    return sorted(slowest, key=lambda device: int(device.number))


def _draw_title(canvas: Canvas, column: Column, area: Area) -> None:
    x, anchor = _text_place(column, area)
    for line, text in enumerate(reversed(column.title.split("\n"))):
        canvas.text(x, area.bottom - 8 - 13 * line, text, TITLE_SIZE, MUTED, anchor=f"{anchor}s")


def _draw_text(canvas: Canvas, column: Column, device: DeviceRow, area: Area, alone: bool) -> None:
    size = _text_size(area)
    x, anchor = _text_place(column, area)
    text = fitted(column.text(device), size, area.width - PAD) if column.left else column.text(device)
    colour = MUTED if device.away else SLOWEST if alone and column.marked else INK
    canvas.text(x, area.top + area.height / 2, text, size, colour, anchor=f"{anchor}m")


def _text_place(column: Column, area: Area) -> tuple[float, str]:
    """Where a column's text begins or ends, and which of the two."""
    if column.left:
        return area.left + PAD, "l"
    return (area.right if column.value is None else area.left + PAD + column.text_width), "r"


def _text_size(area: Area) -> float:
    return min(13.0, 0.82 * area.height)


def _draw_bar(canvas: Canvas, column: Column, area: Area, part: float) -> Area:
    """A part of a track, to the right of the text; returns the part's area."""
    left = area.left + column.text_width + 2 * PAD
    track = Area(left, area.top + 0.2 * area.height, area.right - PAD - left, 0.6 * area.height)
    canvas.rectangle(track, TRACK)
    bar = track._replace(width=track.width * part)
    canvas.rectangle(bar, BAR)
    return bar


def _mark_slowest(canvas: Canvas, bar: Area, tied: bool) -> None:
    """The bar in red, or its end alone where others ended with it."""
    canvas.rectangle(bar._replace(left=bar.right - TIE_WIDTH, width=TIE_WIDTH) if tied else bar, SLOWEST)
    text, size = "tied" if tied else "slowest", _text_size(bar._replace(height=bar.height / 0.6)) - 1
    if bar.height >= size + 1 and bar.width > text_width(text, size) + 2 * PAD + TIE_WIDTH:
        canvas.text(bar.right - PAD - TIE_WIDTH, bar.top + bar.height / 2, text, size, PAPER, anchor="rm")
