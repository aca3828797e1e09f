"""The picture shows the numbers of its scene, to scale, in colours that all can tell apart; no text covers another."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from drawn import episode, make, pictured

from wdmoe_env.rendering import palette, scene
from wdmoe_env.rendering.canvas import Canvas, fitted, text_width
from wdmoe_env.rendering.device_table import shown_devices
from wdmoe_env.rendering.picture import DEVICES, HEIGHT, MAP, SELECTION, WIDTH, draw_scene
from wdmoe_env.rendering.radio_map import device_places, ring_step_m
from wdmoe_env.rendering.selection_grid import first_cell
from wdmoe_env.rendering.terminal import terminal_text


@pytest.fixture
def written(monkeypatch):
    """Texts that are drawn: the text, and the box that it covers in pixels of the picture."""
    found = []
    plain, upright = Canvas.text, Canvas.upright

    def text(self, x, y, text, size, colour, anchor="ls"):
        plain(self, x, y, text, size, colour, anchor)
        width = text_width(text, size)
        left = x - width * {"l": 0, "m": 0.5, "r": 1}[anchor[0]]
        top = y - size * (0.5 if anchor[1] == "m" else 0.8)
        if text.strip():
            found.append((text, (left, top, left + width, top + size)))

    def turned(self, x, y, text, size, colour):
        upright(self, x, y, text, size, colour)
        if text:
            found.append((text, (x - size / 2, y - text_width(text, size), x + size / 2, y)))

    monkeypatch.setattr(Canvas, "text", text)
    monkeypatch.setattr(Canvas, "upright", turned)
    return found


CAPTIONS = {"Radio links", "Experts of each token", "kept", "dropped", "added", "gate probability", "BS", "4"}


def test_the_picture_writes_the_scene_and_nothing_else(written):
    env = make()
    *_, (_, _, seen) = episode(env)
    env.render()
    texts = {text for text, _ in written}
    expected = {seen.block, seen.setting, *seen.figures, *seen.figures.values(), "slowest"}
    for device in seen.devices:
        expected |= {device.number, device.name, device.distance, device.downlink, device.uplink}
        expected |= {device.tokens, device.share, device.latency}
    expected |= {f"expert {e + 1}" for e in range(8)} | {f"device {u}" for u in seen.expert_device}
    assert expected - texts == {seen.setting} - texts
    numbers = {text for text in texts - expected - CAPTIONS if any(sign.isdigit() for sign in text)}
    assert numbers == {
        "16 bit/s/Hz, the weaker direction",
        f"width of a link: its share; a ring every {ring_step_m(seen.reach_m):g} m",
    }


LONG = "an-unusually-long-name-of-a-development-board-64gb"


@pytest.mark.parametrize(
    "keywords",
    [
        {"devices": 2, "experts": 8, "tokens": 8},
        {"devices": 8, "experts": 8, "tokens": 32, "decided": False},
        {"devices": 8, "experts": 8, "tokens": 32, "ended": True, "names": (LONG, "x")},
        {"devices": 16, "experts": 16, "tokens": 64, "ended": True, "names": (LONG,)},
        {"devices": 8, "experts": 8, "tokens": 128},
        {"devices": 1, "experts": 4, "tokens": 1, "known": False},
        {"devices": 40, "experts": 128, "tokens": 128},
    ],
)
def test_no_text_covers_another_or_leaves_the_picture(keywords, written):
    picture = draw_scene(pictured(**keywords))
    assert picture.shape == (HEIGHT, WIDTH, 3)
    assert picture.dtype == np.uint8
    boxes = np.array([box for _, box in written])
    assert boxes[:, :2].min() >= 0
    assert (boxes[:, 2:] <= (WIDTH, HEIGHT)).all()
    texts = [text for text, _ in written]
    for one, (left, top, right, bottom) in enumerate(boxes):
        others = np.delete(boxes, one, axis=0)
        apart = (others[:, 2] <= left) | (others[:, 0] >= right) | (others[:, 3] <= top) | (others[:, 1] >= bottom)
        assert apart.all(), (texts[one], np.delete(texts, one)[~apart])


def pixel(picture, x, y):
    return tuple(int(part) for part in picture[int(y), int(x)])


@pytest.mark.parametrize("devices", [2, 8, 16])
def test_the_slowest_device_is_red_on_the_map_and_in_the_table_and_no_other_is(devices):
    seen = pictured(devices, 16, 8)
    picture = draw_scene(seen)
    places, latencies = device_places(seen, MAP), [device.latency_ms for device in seen.devices]
    for u, (x, y) in enumerate(places):
        # Left of the number within the disc.
        assert (pixel(picture, x - 7, y) == palette.SLOWEST) == (u == np.argmax(latencies))
    red = (picture[int(DEVICES.top) :, int(DEVICES.left) :] == palette.SLOWEST).all(axis=-1)
    height = (DEVICES.height - 34) / devices if devices > 10 else 34
    rows = np.unique((np.nonzero(red[: int(DEVICES.height)])[0] - 34) // height)
    assert rows.tolist() == [np.argmax(latencies)]


def test_distances_are_to_scale():
    seen = pictured(8, 8, 8)
    centre = np.array([MAP.left + MAP.width / 2, MAP.top + MAP.height / 2])
    radius = np.linalg.norm(np.array(device_places(seen, MAP)) - centre, axis=-1)
    metres = np.array([device.distance_m for device in seen.devices])
    slope, edge = np.polyfit(metres, radius, 1)
    np.testing.assert_allclose(edge + slope * metres, radius, atol=1e-9)
    assert slope > 0
    assert edge == pytest.approx(17.0)  # the edge of the base station's disc
    assert radius.max() < MAP.width / 2


def test_links_are_coloured_by_their_weaker_direction_and_as_wide_as_their_share():
    seen = pictured(4, 8, 8, seed=4)
    picture = draw_scene(seen)
    centre = np.array([MAP.left + MAP.width / 2, MAP.top + MAP.height / 2])
    lightness = []
    for device, place in zip(seen.devices, device_places(seen, MAP), strict=True):
        assert device.efficiency == pytest.approx(min(float(device.downlink), float(device.uplink)), abs=0.06)
        along = (place - centre) / np.linalg.norm(place - centre)
        across, width = np.array([-along[1], along[0]]), 1.5 + 24 * device.bandwidth_share
        middle = (centre + 17 * along + place - 14 * along) / 2  # between the base station's disc and the device's
        colour = palette.link_colour(device.efficiency)
        assert pixel(picture, *middle) == colour
        for side in (-1, 1):
            assert pixel(picture, *(middle + side * max(width / 2 - 1.5, 0) * across)) == colour
            assert pixel(picture, *(middle + side * (width / 2 + 2) * across)) != colour
        lightness.append(sum(colour))
    order = np.argsort([device.efficiency for device in seen.devices])
    assert np.argsort(lightness)[::-1].tolist() == order.tolist()


def test_bars_are_as_long_as_their_numbers():
    seen = pictured(8, 8, 8)
    picture = draw_scene(seen)
    filled = []
    for u in range(8):
        line = picture[int(DEVICES.top + 34 + (u + 0.5) * 34 - 9)]  # above the text within the bar
        filled.append((line[-110:] == (palette.SLOWEST if seen.devices[u].slowest else palette.BAR)).all(axis=-1).sum())
    latency = np.array([device.latency_ms for device in seen.devices])
    np.testing.assert_allclose(np.array(filled) / max(filled), latency / latency.max(), atol=0.03)


@pytest.mark.parametrize("tokens", [8, 32, 128])
def test_every_cell_of_the_grid_tells_its_decision(tokens):
    seen = pictured(8, 8, tokens)
    picture = draw_scene(seen)
    first = first_cell(seen, SELECTION)
    hollow = palette.DROPPED if first.width < 9 else palette.PAPER
    for (token, expert), probability in np.ndenumerate(seen.gate_probs):
        x, y = first.left + (token + 0.5) * first.width - 0.5, first.top + (expert + 0.5) * first.height - 0.5
        expected = {
            (True, False, False): palette.KEPT,
            (False, True, False): hollow,
            (False, False, True): palette.ADDED,
            (False, False, False): palette.gate_colour(probability),
        }[seen.kept[token, expert], seen.dropped[token, expert], seen.added[token, expert]]
        assert pixel(picture, x, y) == expected
    assert {seen.kept.any(), seen.dropped.any(), seen.added.any()} == {True}


# Linear RGB as seen without one kind of cones: Machado, Oliveira and Fernandes (2009), severity 1.
VISIONS = {
    "all cones": np.eye(3),
    "protanopia": [[0.152, 1.053, -0.205], [0.115, 0.786, 0.099], [-0.004, -0.048, 1.052]],
    "deuteranopia": [[0.367, 0.861, -0.228], [0.280, 0.673, 0.047], [-0.012, 0.043, 0.969]],
    "tritanopia": [[1.256, -0.077, -0.179], [-0.078, 0.931, 0.148], [0.005, 0.691, 0.304]],
}
XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])


def seen_as(colour, vision):
    """CIELAB coordinates of a colour as somebody sees it."""
    part = np.array(colour) / 255
    linear = np.where(part <= 0.04045, part / 12.92, ((part + 0.055) / 1.055) ** 2.4)
    white = XYZ @ np.clip(np.array(vision) @ linear, 0, 1) / XYZ.sum(axis=1)
    x, y, z = np.where(white > 0.008856, np.cbrt(white), 7.787 * white + 16 / 116)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@pytest.mark.parametrize("vision", VISIONS)
def test_the_colour_blind_tell_the_marks_apart(vision):
    marks = (palette.KEPT, palette.DROPPED, palette.ADDED, palette.SLOWEST, palette.LIKELY)
    for one, other in itertools.combinations(marks, 2):
        # 2.3 is the least difference that can be seen.
        difference = seen_as(one, VISIONS[vision]) - seen_as(other, VISIONS[vision])
        assert np.linalg.norm(difference) > 25


def test_more_devices_than_rows_leave_the_slowest():
    seen = pictured(40, 128, 8)
    shown = shown_devices(seen, 24)
    least = min(device.latency_ms for device in shown)
    assert len(shown) == 24
    assert sum(device.latency_ms >= least for device in seen.devices) == 24
    assert [int(device.number) for device in shown] == sorted(int(device.number) for device in shown)


def test_what_is_too_long_ends_in_dots():
    assert fitted("short", 12, 100) == "short"
    assert fitted(LONG, 12, 100).endswith("...")
    assert text_width(fitted(LONG, 12, 100), 12) <= 100
    assert fitted(LONG, 12, 5) == ""


def test_a_device_that_is_away_is_seen_everywhere(written):
    """A hollow disc without a link, "away" for its latency, its experts in grey, and never what a block waits for."""
    env = make(devices={"outage_mean_s": 60.0, "uptime_mean_s": 60.0})
    observation, _ = env.reset(seed=1)
    away = observation["availability"] < 0.5
    assert 0 < away.sum() < 8
    env.step(env.action_space.sample())
    seen = env.unwrapped.renderer.scene()
    assert [device.away for device in seen.devices] == away.tolist()
    assert [device.latency == scene.AWAY for device in seen.devices] == away.tolist()
    assert not any(device.slowest for device in seen.devices if device.away)
    picture = draw_scene(seen)
    assert sum(text == scene.AWAY for text, _ in written) == away.sum()
    for gone, (x, y) in zip(away, device_places(seen, MAP), strict=True):
        assert (pixel(picture, x - 8, y) == palette.PAPER) == gone
    lines = terminal_text(seen).splitlines()
    assert sum(line.endswith(scene.AWAY) for line in lines) == away.sum()
