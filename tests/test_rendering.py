"""Rendering: what is drawn and written equals info, nothing overlaps, and nobody pays who does not look."""

from __future__ import annotations

import copy
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
from drawn import SHOWN_DIGITS, episode, make, make_vec, pictured, shows
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from PIL import Image

from wdmoe_env.env import WDMoEEnv
from wdmoe_env.rendering import RENDER_FPS, RENDER_MODES, renderer, scene
from wdmoe_env.rendering.record import Episode
from wdmoe_env.rendering.terminal import terminal_text


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
for mode in {modes!r}:
    env = gym.make("wdmoe_env:WDMoE-v0", model="micro", num_tokens=4, render_mode=mode)
    env.reset(seed=0)
    env.step(env.action_space.sample())
    print("loaded", "PIL.ImageDraw" in sys.modules, "pygame" in sys.modules)
    env.close()
"""


def run(*modes, **variables):
    """What the program prints and says, where there is no display but what ``variables`` name."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if name not in ("DISPLAY", "WAYLAND_DISPLAY", "SDL_VIDEODRIVER")
    }
    command = [sys.executable, "-c", PROGRAM.format(modes=modes)]
    done = subprocess.run(command, env=kept | variables, capture_output=True, text=True, timeout=300)
    return done.returncode, done.stdout, done.stderr


def test_no_library_is_loaded_before_something_is_drawn():
    code, printed, _ = run(None, "ansi", "rgb_array")
    assert (code, printed) == (0, 3 * "loaded False False\n")


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
