"""A scene as text for a terminal; no library draws it."""

from __future__ import annotations

from collections.abc import Iterator

from wdmoe_env.rendering.scene import DeviceRow, Scene

KEPT, DROPPED, ADDED, UNUSED = "#", "x", "+", "."
TITLES = ("", "device", "distance, m", "bit/s/Hz down", "up", "tokens", "share, %", "latency, ms")
BAR_WIDTH, MOST_NAME = 20, 32
TOKENS_IN_A_LINE = 64


def terminal_text(scene: Scene) -> str:
    """Figures, devices and selection of a scene, lines joined by newlines."""
    return "\n".join(_lines(scene))


def _lines(scene: Scene) -> Iterator[str]:
    yield f"{scene.block} ({scene.setting})"
    yield ", ".join(f"{name} {text}" for name, text in scene.figures.items())
    yield ""
    yield from _device_lines(scene)
    for start in range(0, len(scene.gate_probs), TOKENS_IN_A_LINE):
        yield ""
        yield from _selection_lines(scene, start, min(start + TOKENS_IN_A_LINE, len(scene.gate_probs)))
    yield f"{KEPT} kept, {DROPPED} dropped, {ADDED} added, * the device that the block waited for"


def _device_lines(scene: Scene) -> Iterator[str]:
    rows = [TITLES, *map(_cells, scene.devices)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    longest = max(device.latency_ms for device in scene.devices)
    lengths = [BAR_WIDTH * device.latency_ms / longest if longest else 0.0 for device in scene.devices]
    for (number, name, *figures), bar in zip(rows, ["", *("=" * round(length) for length in lengths)], strict=True):
        words = [number.rjust(widths[0]), name.ljust(widths[1]), *map(str.rjust, figures, widths[2:]), bar]
        yield "  ".join(words).rstrip()


def _cells(device: DeviceRow) -> tuple[str, ...]:
    figures = (device.distance, device.downlink, device.uplink, device.tokens, device.share, device.latency)
    return f"{device.number}{'*' if device.slowest else ' '}", device.name[:MOST_NAME], *figures


def _selection_lines(scene: Scene, start: int, end: int) -> Iterator[str]:
    yield f"expert  device  tokens {start + 1} to {end}"
    for expert, device in enumerate(scene.expert_device):
        marks = "".join(_mark(scene, token, expert) for token in range(start, end))
        yield f"{expert + 1:>6}  {device:>6}  {marks}"


def _mark(scene: Scene, token: int, expert: int) -> str:
    for decisions, mark in ((scene.kept, KEPT), (scene.dropped, DROPPED), (scene.added, ADDED)):
        if decisions[token, expert]:
            return mark
    return UNUSED
