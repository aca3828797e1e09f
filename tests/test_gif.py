"""The GIF of two policies on the same episode: its numbers are those of info, and its mistakes are one sentence."""

from __future__ import annotations

import io

import gymnasium as gym
import numpy as np
import pytest
from conftest import MICRO
from PIL import Image

from eval import serve_film
from eval.film import HEIGHT, RACE_LEFT, RACE_LENGTH, RACE_STEP, RACE_TOP, WIDTH, pictures, takes
from eval.gif import LAST_HELD, MOST_SECONDS, encoded, main
from eval.serve_film import timelines
from wdmoe_env.config import EnvConfig
from wdmoe_env.policies import make_policy
from wdmoe_env.rendering import palette
from wdmoe_env.rendering.canvas import Canvas
from wdmoe_env.serving.process import serving_config

POLICIES = ("vanilla", "wdmoe:0.9")
CONFIG = EnvConfig(**MICRO, split="test")


@pytest.fixture(scope="module")
def both():
    return takes(POLICIES, CONFIG, window=3, seed=5)


def infos(policy):
    """Info of every block of the episode, from the batched environment."""
    env = gym.make_vec("wdmoe_env:WDMoE-v0", num_envs=1, autoreset_mode="DISABLED", config=CONFIG)
    observation, _ = env.reset(seed=[5], options={"window": np.array([3])})
    acts, blocks = make_policy(policy, env), []
    for _ in range(3):
        observation, *_, info = env.step(acts.predict(observation)[0])
        blocks.append(info)
    return blocks


@pytest.mark.parametrize("place", [0, 1])
def test_the_numbers_of_every_picture_are_those_of_info(both, place, monkeypatch):
    blocks = infos(POLICIES[place])
    written = []
    plain = Canvas.text
    monkeypatch.setattr(
        Canvas,
        "text",
        lambda self, x, y, text, *rest, **more: written.append((x, text)) or plain(self, x, y, text, *rest, **more),
    )
    for block, _ in enumerate(pictures(both)):
        left, right = (0, WIDTH / 2) if place == 0 else (WIDTH / 2, WIDTH)
        texts = [text for x, text in written if left < x <= right]
        written.clear()
        so_far = blocks[: block + 1]
        assert f"{sum(info['block_latency_ms'][0] for info in so_far):#.3g} ms" in texts
        assert f"{np.mean([info['wlr'][0] for info in so_far]):#.3g} /ms" in texts
        for name, scale in (("shares", 100), ("load", 1)):
            for value in scale * so_far[-1][name][0]:
                assert (f"{value:.1f}" if name == "shares" else f"{value:.0f}") in texts
        end = blocks[-1]
        added, right_tokens = end["nll"][0] - end["reference_nll"][0], 100 * end["next_token_accuracy"][0]
        at_the_end = {f"{added:+.3f}", f"{right_tokens:.1f} %"}
        assert at_the_end <= set(texts) if block == 2 else texts.count("-") == 2


def test_the_race_is_as_long_as_the_latency(both):
    whole = max(sum(take.scenes[-1].block_latency_ms) for take in both)
    *_, last = pictures(both)
    for place, take in enumerate(both):
        line = last[RACE_TOP + RACE_STEP * place + 3]
        filled = (line == palette.BAR).all(axis=-1) | (line == palette.KEPT).all(axis=-1)
        length = np.flatnonzero(filled)[-1] + 1 - RACE_LEFT
        assert length / RACE_LENGTH == pytest.approx(sum(take.scenes[-1].block_latency_ms) / whole, abs=0.005)


def test_both_meet_the_same_devices_and_channel(both):
    for one, other in zip(both[0].scenes, both[1].scenes, strict=True):
        assert [device.distance_m for device in one.devices] == [device.distance_m for device in other.devices]
        assert [device.efficiency for device in one.devices] == [device.efficiency for device in other.devices]


def test_the_gif_holds_a_picture_for_each_block_and_keeps_the_last(both):
    gif = Image.open(io.BytesIO(encoded(pictures(both), seconds=0.5)))
    assert (gif.n_frames, gif.size) == (3, (WIDTH, HEIGHT))
    held = []
    for block, picture in enumerate(pictures(both)):
        gif.seek(block)
        held.append(gif.info["duration"])
        # A palette of 256 colours moves none of them far.
        assert np.abs(np.asarray(gif.convert("RGB")).astype(int) - picture).mean() < 1
    assert held == [500, 500, 500 * LAST_HELD]


def test_the_command_writes_the_file_and_a_learned_policy_is_named_so(tmp_path, capsys):
    out = tmp_path / "new" / "one.gif"
    flags = ["--model", "micro", "--num-tokens", "4", "--seconds", "0.2", "--out", str(out)]
    assert main(["--policies", "vanilla", "top1", *flags]) == 0
    assert capsys.readouterr().out == f"picture: {out}\n"
    assert out.read_bytes().startswith(b"GIF89a")
    learned = takes(("straight-through-10",), EnvConfig(num_tokens=4, split="test"), window=0, seed=0)
    assert learned[0].name == "straight-through-10 (learned)"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--policies", "vanilla"], "expected 2 arguments"),
        (["--policies", "vanilla", "wdmo"], "unknown policy 'wdmo'; the nearest known are wdmoe"),
        (["--policies", "vanilla", "top1", "--out", "one.png"], "--out must end with .gif, got 'one.png'"),
        (["--policies", "vanilla", "top1", "--seconds", "0"], "--seconds must be a finite number above 0, got 0.0"),
        (["--policies", "vanilla", "top1", "--seconds", "1e300"], "--seconds must be at most 200, got 1e+300"),
        (["--policies", "vanilla", "top1", "--out", "a\0.gif"], "expected a path without the character NUL"),
        (["--policies", "vanilla", "top1", "--window", "-1"], "window indices in"),
        (["--policies", "vanilla", "top1", "--model", "nothing"], "unknown model 'nothing'"),
    ],
)
def test_a_mistake_is_one_sentence(flags, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    small = ["--num-tokens", "4"] + ([] if "--model" in flags else ["--model", "micro"])
    with pytest.raises(SystemExit) as caught:
        main([*flags, *small])
    said = capsys.readouterr().err
    assert caught.value.code == 2
    assert message in said
    assert said.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_the_longest_stay_that_is_taken_can_be_written(both):
    gif = Image.open(io.BytesIO(encoded(pictures(both), seconds=MOST_SECONDS)))
    gif.seek(gif.n_frames - 1)
    assert gif.info["duration"] == 1e3 * MOST_SECONDS * LAST_HELD


@pytest.mark.parametrize("kind", ["folder", "link"])
def test_what_is_no_file_is_refused_before_the_first_picture(tmp_path, capsys, monkeypatch, kind):
    monkeypatch.setattr("eval.film.takes", lambda *_: pytest.fail("ran"))
    out, victim = tmp_path / "one.gif", tmp_path / "victim"
    victim.write_text("mine")
    if kind == "folder":
        out.mkdir()
    else:
        out.symlink_to(victim)
    with pytest.raises(SystemExit) as caught:
        main(["--policies", "vanilla", "top1", "--model", "micro", "--out", str(out)])
    assert caught.value.code == 2
    assert "expected a place for a file" in capsys.readouterr().err
    assert victim.read_text() == "mine"


def test_one_cell_under_two_policies_in_time(tmp_path, monkeypatch, capsys):
    """The last picture says how many were answered, and in what time."""
    requests = {"requests": 3, "slots": 2, "chunk": 4, "prompt_tokens": (3, 6), "answer_tokens": (1, 3)}
    shown = timelines(("vanilla", "top1"), serving_config({"model": "micro", "serving": requests}, {}), seed=1)
    written = []
    monkeypatch.setattr(serve_film, "PICTURES", 3)
    plain = Canvas.text
    monkeypatch.setattr(
        Canvas,
        "text",
        lambda self, x, y, text, *rest, **more: written.append(text) or plain(self, x, y, text, *rest, **more),
    )
    frames = list(serve_film.pictures(shown))
    assert len(frames) == 3
    for one in shown.values():
        assert f"3 answered, 0 in the system; {one.requests['e2e_ms'].mean():.0f} ms in the mean" in written
        assert 0.0 <= one.busy.min() <= one.busy.max() <= 1.0 + 1e-9
        assert one.busy.max() > 0.5
    slower, faster = (one.end_ms for one in shown.values())
    assert faster < slower
    for flags in (["--serve", "--window", "1"], ["--load", "0.5"], ["--serve", "--load", "0"]):
        with pytest.raises(SystemExit) as ended:
            main(["--policies", "vanilla", "top1", "--model", "micro", "--out", str(tmp_path / "a.gif"), *flags])
        assert ended.value.code == 2
        assert capsys.readouterr().err.count("\n") == 1
