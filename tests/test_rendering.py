"""Rendering: what is drawn and written equals info, nothing overlaps, and nobody pays who does not look."""

from __future__ import annotations

import copy
import itertools
import math
import os
import pickle
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import gymnasium as gym
import numpy as np
import pytest
from conftest import MICRO
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from PIL import Image

from wdmoe_env.env import WDMoEEnv
from wdmoe_env.rendering import RENDER_FPS, RENDER_MODES, palette, renderer, scene
from wdmoe_env.rendering.canvas import Canvas, fitted, text_width
from wdmoe_env.rendering.device_table import shown_devices
from wdmoe_env.rendering.picture import DEVICES, HEIGHT, MAP, SELECTION, WIDTH, draw_scene
from wdmoe_env.rendering.radio_map import device_places, ring_step_m
from wdmoe_env.rendering.record import Episode, Outcome, Record, Text
from wdmoe_env.rendering.selection_grid import first_cell
from wdmoe_env.rendering.terminal import terminal_text

# With fewer than three digits a figure would hide what it is there to show.
SHOWN_DIGITS = 3


def make(render_mode="rgb_array", **keywords):
    return gym.make("wdmoe_env:WDMoE-v0", render_mode=render_mode, **{**MICRO, **keywords})


def make_vec(render_mode="rgb_array", num_envs=2, **keywords):
    return gym.make_vec("wdmoe_env:WDMoE-v0", num_envs=num_envs, render_mode=render_mode, **{**MICRO, **keywords})


def shows(text, value):
    """Whether a text is a number rounded to the digits that it has."""
    return text == f"{value:.{len(text.partition('.')[2])}f}"


def episode(env, seed=0):
    """Observation, info and scene of every block of an episode of random decisions."""
    env.action_space.seed(seed)
    observation, _ = env.reset(seed=seed)
    terminated = False
    while not terminated:
        following, _, terminated, _, info = env.step(env.action_space.sample())
        yield observation, info, env.unwrapped.renderer.scene()
        observation = following


def pictured(devices, experts, tokens, names=("jetson-orin-nx-16gb",), decided=True, known=True, ended=False, seed=0):
    """A scene of any size, drawn from a seed."""
    rng = np.random.default_rng(seed)
    distance_m = rng.uniform(20, 200, (3, devices)) if known else np.full((3, devices), np.nan)
    placement = np.eye(devices)[np.arange(experts) * devices // experts]
    gate_probs = rng.dirichlet(np.full(experts, 0.3), tokens)
    routed = gate_probs >= np.sort(gate_probs)[:, -2:-1]
    selection = routed ^ (rng.random(routed.shape) < 0.1)
    latency_ms = rng.uniform(1, 1234, devices)
    text = Text(3.2, 3.1, 0.453) if ended else None
    shares, load = rng.dirichlet(np.ones(devices)), (selection @ placement).sum(axis=0)
    outcome = Outcome(selection, shares, load, latency_ms, latency_ms.max(), 3.912, text)
    records = [
        Record(gate_probs, routed, rng.uniform(2, 22, (2, devices)), placement, outcome if decided else None)
        for _ in range(3 if decided else 1)
    ]
    words = tuple(f" word{token}"[: 3 + token % 4] for token in range(tokens))
    return scene.scene_of(
        Episode(
            "models/an-organisation/a-long-name-of-a-model",
            12345,
            3,
            tuple(names * devices)[:devices],
            distance_m,
            words,
        ),
        records,
    )


def test_every_text_of_a_scene_is_the_number_in_info():
    env = make()
    trace = None
    latency, wlr = [], []
    for block, (observation, info, seen) in enumerate(episode(env)):
        trace = env.unwrapped._rollout.trace if trace is None else trace
        latency.append(info["block_latency_ms"])
        wlr.append(info["wlr"])
        assert seen.block == f"Block {block + 1} of 3"
        assert seen.position == block + 1
        figures = {name: text.split()[0] for name, text in seen.figures.items()}
        assert shows(figures["block latency"], info["block_latency_ms"])
        assert shows(figures["latency so far"], sum(latency))
        assert shows(figures["block WLR"], info["wlr"])
        assert shows(figures["mean WLR"], np.mean(wlr))
        assert seen.block_latency_ms == tuple(latency)
        for u, device in enumerate(seen.devices):
            assert device.number == str(u + 1)
            assert device.name == env.unwrapped.config.devices.profiles[u]
            assert shows(device.distance, trace.distance_m[block, 0, u])
            assert shows(device.downlink, observation["spectral_efficiency"][0, u])
            assert shows(device.uplink, observation["spectral_efficiency"][1, u])
            assert shows(device.tokens, info["load"][u])
            assert shows(device.share, 100 * info["shares"][u])
            assert shows(device.latency, info["device_latency_ms"][u])
            assert device.latency_ms == info["device_latency_ms"][u]
            assert device.bandwidth_share == info["shares"][u]
            assert device.slowest == (u == info["device_latency_ms"].argmax())
        digits = [len(device.latency.replace(".", "").lstrip("0")) for device in seen.devices if device.slowest]
        assert min(digits) >= SHOWN_DIGITS
        routed = observation["routed"] > 0
        np.testing.assert_array_equal(seen.kept | seen.added, info["selection"])
        np.testing.assert_array_equal(seen.kept | seen.dropped, routed)
        assert not (seen.kept & seen.dropped).any()
        assert not (seen.added & routed).any()
        assert seen.expert_device == tuple(observation["placement"].argmax(axis=-1) + 1)
        np.testing.assert_allclose(seen.gate_probs, observation["gate_probs"], rtol=1e-6)
    assert shows(figures["latency so far"], info["latency_ms"])
    assert shows(figures["NLL per token"], info["nll"])
    assert float(figures["added NLL"]) == pytest.approx(info["nll"] - info["reference_nll"], abs=5e-4)
    assert figures["added NLL"][0] in "+-"
    assert shows(figures["accuracy"], 100 * info["next_token_accuracy"])


def test_before_the_first_step_the_own_routing_is_seen_and_nothing_is_said_to_have_happened():
    env = make()
    observation, info = env.reset(seed=0)
    seen = env.unwrapped.renderer.scene()
    assert seen.block == "Block 1 of 3"
    assert seen.setting == f"micro, window {info['window']}, J = 8"
    assert set(seen.figures.values()) == {scene.NOTHING}
    assert {(device.tokens, device.share, device.latency) for device in seen.devices} == {(scene.NOTHING,) * 3}
    assert not any(device.slowest for device in seen.devices)
    np.testing.assert_array_equal(seen.kept, observation["routed"] > 0)
    assert not (seen.dropped | seen.added).any()


def test_under_optimal_shares_all_loaded_devices_are_what_the_block_waits_for():
    env = gym.make("wdmoe_env:WDMoE-Selection-v0", render_mode="rgb_array", **MICRO)
    observation, _ = env.reset(seed=0)
    info = env.step(env.unwrapped.encode_action(observation["routed"] > 0))[4]
    seen = env.unwrapped.renderer.scene()
    assert [device.slowest for device in seen.devices] == (info["load"] > 0).tolist()
    assert seen.tied


def test_the_scene_is_a_copy_of_what_happened():
    env = make()
    env.reset(seed=0)
    info = env.step(env.action_space.sample())[4]
    before = env.render()
    for name in ("selection", "shares", "load", "device_latency_ms"):
        info[name][:] = 0
    np.testing.assert_array_equal(env.render(), before)


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda env: pickle.loads(pickle.dumps(env))])
def test_a_copy_in_mid_episode_draws_alike(clone):
    env = make()
    env.reset(seed=0)
    env.step(env.action_space.sample())
    twin, action = clone(env), env.action_space.sample()
    for one in (env, twin):
        one.step(action)
    np.testing.assert_array_equal(env.render(), twin.render())


def test_tokens_are_the_windows_text_where_the_tokenizer_can_tell():
    env = make(num_tokens=4).unwrapped
    env.reset(seed=0)
    rollout = env._rollout
    tokenizer = SimpleNamespace(decode=lambda ids: f"<{ids[0]}>")
    world = SimpleNamespace(config=env.config, sizes=rollout.world.sizes, model=SimpleNamespace(tokenizer=tokenizer))
    texts = replace(rollout.texts, mask=np.array([[True, True, True, False]]))
    changed = SimpleNamespace(**{**vars(rollout), "world": world, "texts": texts})
    ids = env.simulator.source.windows.token_ids[rollout.windows[0]]
    assert Episode.of(changed).tokens == (f"<{ids[0]}>", f"<{ids[1]}>", f"<{ids[2]}>", "")
    world.model.tokenizer = None
    assert Episode.of(changed).tokens == ()


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


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0.0"), (0.04567, "0.0457"), (9.876, "9.88"), (12.345, "12.3"), (1234.5, "1234.5"), (math.inf, "inf")],
)
def test_figures_have_three_digits_or_more(value, text):
    assert scene.figure(value) == text


def test_text_for_a_terminal_reads_back_as_info():
    env = make("ansi")
    for observation, info, seen in episode(env):
        lines = env.render().split("\n")
        figures = dict(re.findall(r"(block latency|latency so far|block WLR|mean WLR) ([\d.]+) ", lines[1] + " "))
        assert shows(figures["block latency"], info["block_latency_ms"])
        assert shows(figures["block WLR"], info["wlr"])
        start = next(number for number, line in enumerate(lines) if line.split()[:1] == ["device"]) + 1
        for u, line in enumerate(lines[start : start + 8]):
            mark, name, distance, down, up, tokens, share, latency, *bar = line.split()
            assert mark == f"{u + 1}{'*' * bool(u == info['device_latency_ms'].argmax())}"
            assert name == seen.devices[u].name
            assert distance == seen.devices[u].distance
            assert shows(down, observation["spectral_efficiency"][0, u])
            assert shows(up, observation["spectral_efficiency"][1, u])
            assert shows(tokens, info["load"][u])
            assert shows(share, 100 * info["shares"][u])
            assert shows(latency, info["device_latency_ms"][u])
            assert len("".join(bar)) == round(20 * info["device_latency_ms"][u] / info["block_latency_ms"])
        start = next(number for number, line in enumerate(lines) if line.startswith("expert")) + 1
        marks = np.array([list(line.split()[2]) for line in lines[start : start + 8]]).T
        np.testing.assert_array_equal((marks == "#") | (marks == "+"), info["selection"])
        np.testing.assert_array_equal((marks == "#") | (marks == "x"), observation["routed"] > 0)


def test_long_windows_are_written_in_pieces():
    seen = pictured(8, 8, 150)
    lines = terminal_text(seen).split("\n")
    heads = [line.split("tokens ")[1] for line in lines if line.startswith("expert")]
    assert heads == ["1 to 64", "65 to 128", "129 to 150"]
    assert max(map(len, lines)) <= 120


@pytest.mark.parametrize("mode", RENDER_MODES)
def test_there_is_nothing_to_draw_before_reset(mode):
    with pytest.raises(gym.error.ResetNeeded, match="expected reset"):
        WDMoEEnv(**MICRO, render_mode=mode).render()


def test_another_mode_is_refused_and_without_one_nothing_is_drawn():
    with pytest.raises(ValueError, match="render_mode must be None or one of human, rgb_array, ansi, got 'movie'"):
        WDMoEEnv(**MICRO, render_mode="movie")
    for mode in ("movie", "rgb_array_list"):
        with pytest.raises(
            ValueError, match=f"None or one of rgb_array, ansi on the batched environment, got '{mode}'$"
        ):
            make_vec(mode)
    with pytest.raises(ValueError, match=r"got 'human'; a window shows a single environment, of gymnasium\.make$"):
        make_vec("human")
    for env in (make(None), make_vec(None)):
        env.reset(seed=0)
        assert env.unwrapped.renderer is None
        assert env.unwrapped.render() is None


@pytest.mark.parametrize("mode", list(AutoresetMode))
def test_a_batch_draws_what_single_environments_draw(mode):
    native = make_vec("rgb_array", 3, autoreset_mode=mode)
    sync = SyncVectorEnv([make] * 3, autoreset_mode=mode)
    assert native.metadata["render_fps"] == sync.metadata["render_fps"]
    native.action_space.seed(0)
    native.reset(seed=4)
    sync.reset(seed=4)
    mask = np.array([False, True, False])
    for step in range(5):
        ours, theirs = native.render(), sync.render()
        assert isinstance(ours, tuple)
        for n, picture in enumerate(ours):
            apart = [np.abs(picture.astype(int) - other).mean() for other in theirs]
            assert apart[n] < 0.01, "up to the rounding of a batched forward pass"
            assert min(apart[:n] + apart[n + 1 :]) > 0.1
        actions = native.action_space.sample()
        ended = native.step(actions)[2]
        sync.step(actions)
        if step == 0 or (mode == AutoresetMode.DISABLED and ended.any()):
            mask = ended if ended.any() else mask
            native.reset(options={"reset_mask": mask})
            sync.reset(options={"reset_mask": mask.copy()})


def test_a_batch_as_text_and_nothing_drawn_before_it_is_asked_for(monkeypatch):
    env = make_vec("ansi", 3)
    with pytest.raises(gym.error.ResetNeeded, match="expected reset"):
        env.render()
    monkeypatch.setattr(renderer, "scene_of", lambda *args: pytest.fail("drawn"))
    _, info = env.reset(seed=0)
    env.step(env.action_space.sample())
    after = env.step(env.action_space.sample())[4]
    monkeypatch.undo()
    for n, text in enumerate(env.render()):
        assert text.startswith(f"Block 2 of 3 (micro, window {info['window'][n]}, J = 8)\n")
        assert shows(re.search(r"block latency (\S+) ms", text)[1], after["block_latency_ms"][n])


def test_what_is_written_into_a_batchs_info_does_not_reach_its_pictures():
    env = make_vec("rgb_array", 2)
    env.reset(seed=0)
    info = env.step(env.action_space.sample())[4]
    before = env.render()
    for name in ("selection", "shares", "load", "device_latency_ms", "block_latency_ms", "wlr"):
        info[name][:] = 0
    np.testing.assert_array_equal(env.render(), before)


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda env: pickle.loads(pickle.dumps(env))])
def test_a_copy_of_a_batch_draws_alike(clone):
    env = make_vec("rgb_array", 2, autoreset_mode="SAME_STEP", max_episode_steps=2).unwrapped
    env.reset(seed=0)
    env.step(env.action_space.sample())
    env.reset(options={"reset_mask": np.array([False, True])})
    twin = clone(env)
    for _ in range(3):
        action = env.action_space.sample()
        for one in (env, twin):
            one.step(action)
        np.testing.assert_array_equal(env.render(), twin.render())


def test_a_list_of_pictures_comes_from_gymnasiums_own_wrapper():
    env = make("rgb_array_list")
    for _ in episode(env):
        pass
    pictures = env.render()
    assert len(pictures) == 4
    assert not np.array_equal(pictures[0], pictures[1])


def test_a_video_is_recorded(tmp_path):
    pytest.importorskip("moviepy", reason="pip install moviepy")
    env = gym.wrappers.RecordVideo(make(), str(tmp_path / "videos"), disable_logger=True)
    for _ in episode(env):
        pass
    env.close()
    assert [path.stat().st_size > 1000 for path in (tmp_path / "videos").glob("*.mp4")] == [True]


@pytest.fixture
def recorder(monkeypatch):
    """What is recorded as videos, pictures and their number a second, in the place of moviepy."""
    found = []
    clip = SimpleNamespace(write_videofile=lambda *args, **keywords: None)
    module = SimpleNamespace(ImageSequenceClip=lambda frames, fps: found.append((list(frames), fps)) or clip)
    for name in ("moviepy", "moviepy.video", "moviepy.video.io"):
        monkeypatch.setitem(sys.modules, name, SimpleNamespace())
    monkeypatch.setitem(sys.modules, "moviepy.video.io.ImageSequenceClip", module)
    return found


@pytest.mark.parametrize("first", [True, False])
def test_gymnasiums_recorder_takes_the_batch(first, recorder, tmp_path):
    batch = make_vec("rgb_array", 4)
    env = gym.wrappers.vector.RecordVideo(
        batch, str(tmp_path / "videos"), record_first_only=first, episode_trigger=lambda number: number == 0
    )
    env.reset(seed=0)
    pictures = [batch.render()]
    for _ in range(3):
        env.step(env.action_space.sample())
        pictures.append(batch.render())
    env.close()
    (frames, fps), *more = recorder
    assert not more
    assert fps == RENDER_FPS
    assert len(frames) == 4
    for frame, shown in zip(frames, pictures, strict=True):
        assert frame.shape == ((720, 1120, 3) if first else (1440, 2240, 3))
        np.testing.assert_array_equal(frame[:720, :1120], shown[0])
        if not first:
            np.testing.assert_array_equal(frame[720:, 1120:], shown[3])


def test_a_missing_library_is_one_sentence_that_names_the_extra(monkeypatch):
    env, text = make(), make("ansi")
    for one in (env, text):
        one.reset(seed=0)
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(ImportError, match=r"expected pillow, .*wdmoe-env\[render\]") as caught:
        env.render()
    assert "\n" not in str(caught.value)
    assert "Block 1 of 3" in text.render()
    monkeypatch.undo()
    monkeypatch.setitem(sys.modules, "pygame", None)
    with pytest.raises(ImportError, match=r"expected pygame, .*wdmoe-env\[render\]"):
        make("human").reset(seed=0)


def test_the_window_shows_the_picture_of_every_step(monkeypatch):
    pygame = pytest.importorskip("pygame")
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    env, drawn = make("human"), make()
    window = env.unwrapped.renderer._window
    window._frames_per_second = 1000
    drawn.reset(seed=0)
    env.reset(seed=0)
    for action in [env.action_space.sample() for _ in range(3)]:
        np.testing.assert_array_equal(pygame.surfarray.array3d(window._screen).swapaxes(0, 1), drawn.render())
        assert env.render() is None
        env.step(action)
        drawn.step(action)
    env.reset()
    twin = copy.deepcopy(env)
    assert twin.unwrapped.renderer._window._screen is None
    env.close()
    assert window._screen is None
    env.close()


PROGRAM = """
import sys, warnings
import gymnasium as gym
env = gym.make("wdmoe_env:WDMoE-v0", model="micro", num_tokens=4, render_mode={mode!r})
env.reset(seed=0)
env.step(env.action_space.sample())
print("loaded", "PIL.ImageDraw" in sys.modules, "pygame" in sys.modules)
env.close()
"""


def run(mode, **variables):
    """What the program prints and says, where there is no display but what ``variables`` name."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if name not in ("DISPLAY", "WAYLAND_DISPLAY", "SDL_VIDEODRIVER")
    }
    command = [sys.executable, "-c", PROGRAM.format(mode=mode)]
    done = subprocess.run(command, env=kept | variables, capture_output=True, text=True, timeout=300)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize(
    ("mode", "loaded"), [(None, "False False"), ("ansi", "False False"), ("rgb_array", "False False")]
)
def test_no_library_is_loaded_before_something_is_drawn(mode, loaded):
    code, printed, _ = run(mode)
    assert (code, printed) == (0, f"loaded {loaded}\n")


def test_without_a_display_the_window_goes_unseen_and_says_so():
    code, printed, said = run("human")
    assert (code, printed) == (0, "loaded True True\n")
    assert said.count("render_mode 'human' found no display and draws unseen; 'rgb_array' gives the pictures") == 1
    code, printed, said = run("human", SDL_VIDEODRIVER="dummy")
    assert (code, printed) == (0, "loaded True True\n")
    assert "display" not in said


def test_a_display_that_cannot_be_opened_is_one_sentence():
    code, _, said = run("human", SDL_VIDEODRIVER="nonsense")
    assert code == 1
    assert "render_mode 'human' expected a display, got none (nonsense not available); 'rgb_array' needs none" in said


def test_the_page_shows_what_its_program_draws(capsys):
    page = (Path(__file__).parents[1] / "docs" / "rendering.md").read_text()
    scope = {}
    exec(re.search(r"```python\n(.*?)```", page, flags=re.DOTALL)[1], scope)
    assert re.search(r"```text\n(.*?)```", page, flags=re.DOTALL)[1] in capsys.readouterr().out
    shown = np.asarray(Image.open(Path(__file__).parents[1] / "docs" / "rendering.png").convert("RGB")).astype(int)
    # The file has a palette of 256 colours.
    assert np.abs(shown - scope["pictures"].render()).mean() < 1
