"""Two policies on the same episode, block by block on one sheet: what the GIF of the README is made of."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import gymnasium as gym

from eval.members import member, short_names
from wdmoe_env.config import EnvConfig
from wdmoe_env.policies import make_policy, reads_hidden_states
from wdmoe_env.rendering.canvas import Area, Canvas, Picture, fitted
from wdmoe_env.rendering.device_table import COMPACT, draw_devices
from wdmoe_env.rendering.header import draw_figures, draw_progress
from wdmoe_env.rendering.palette import BAR, INK, KEPT, MUTED, TRACK
from wdmoe_env.rendering.radio_map import draw_map, draw_map_legend
from wdmoe_env.rendering.scene import ACCURACY, ADDED_NLL, LATENCY, MEAN_WLR, NOTHING, Scene
from wdmoe_env.rendering.selection_grid import draw_selection, draw_selection_legend


@dataclass(frozen=True, slots=True)
class Take:
    """What one policy did in an episode.

    Attributes:
        name: of the policy.
        scenes: after each block.
    """

    name: str
    scenes: tuple[Scene, ...]


def takes(policies: tuple[str, ...], config: EnvConfig, window: int, seed: int) -> tuple[Take, ...]:
    """Every policy on the same episode.

    Args:
        policies: names and files as ``make_policy`` takes them.
        config: of the environment, with both decisions in the action.
        window: index of the text within its split.
        seed: of devices, shadowing and fading, and of the policies.

    Raises:
        ValueError, TypeError: a policy, a setting or a file is wrong.
    """
    names = short_names(policies)
    return tuple(
        Take(names[policy] + " (learned)" * member(policy).learned, _scenes(policy, config, window, seed))
        for policy in policies
    )


def _scenes(spec: str, config: EnvConfig, window: int, seed: int) -> tuple[Scene, ...]:
    config = replace(config, observe_hidden_states=reads_hidden_states(spec))
    env = gym.make("wdmoe_env:WDMoE-v0", config=config, render_mode="rgb_array").unwrapped
    policy = make_policy(spec, env, seed)
    observation, _ = env.reset(seed=seed, options={"window": window})
    scenes: list[Scene] = []
    state, terminated = None, False
    while not terminated:
        action, state = policy.predict(observation, state=state, episode_start=not scenes, deterministic=True)
        observation, _, terminated, _, _ = env.step(action)
        scenes.append(env.renderer.scene())  # type: ignore[attr-defined]
    env.close()
    return tuple(scenes)


# The width of a page where code is hosted, so that nothing is scaled.
WIDTH, HEIGHT = 880, 608
LEFT, COLUMN, GUTTER = 20.0, 408.0, 24.0
RIGHT = WIDTH - LEFT
TITLE, NAME, SMALL = 20, 16, 12
EXPERT_LABELS = 52.0
RACE_TOP, RACE_STEP, RACE_HEIGHT = 544, 25, 18
RACE_LEFT, RACE_LENGTH = 212, 584


def pictures(takes: Sequence[Take]) -> Iterator[Picture]:
    """A picture (608, 880, 3) after each block.

    Args:
        takes: of two policies on the same episode.
    """
    for block in range(len(takes[0].scenes)):
        canvas = Canvas(WIDTH, HEIGHT)
        _draw_title(canvas, takes[0].scenes[block])
        for place, take in enumerate(takes):
            _draw_take(canvas, take.name, take.scenes[block], LEFT + place * (COLUMN + GUTTER), _longest_ms(takes))
        draw_map_legend(canvas, takes[0].scenes[block], LEFT, 488)
        draw_selection_legend(canvas, RIGHT, 488)
        _draw_race(canvas, takes, block)
        yield canvas.pixels()


def _draw_title(canvas: Canvas, scene: Scene) -> None:
    canvas.text(LEFT, 34, scene.block, TITLE, INK)
    canvas.text(RIGHT, 34, f"{scene.setting}; the same devices and channel", SMALL, MUTED, anchor="rs")
    draw_progress(canvas, scene, Area(LEFT, 44, RIGHT - LEFT, 4))


def _draw_take(canvas: Canvas, name: str, scene: Scene, left: float, longest_ms: float) -> None:
    canvas.text(left, 76, fitted(name, NAME, COLUMN), NAME, KEPT)
    figures = {key: scene.figures.get(key, NOTHING) for key in (LATENCY, MEAN_WLR, ADDED_NLL, ACCURACY)}
    draw_figures(canvas, figures, left + COLUMN, 104, width=102)
    draw_map(canvas, scene, Area(left, 144, 156, 166))
    draw_devices(canvas, scene, Area(left + 160, 138, COLUMN - 160, 172), COMPACT, longest_ms)
    draw_selection(canvas, scene, Area(left, 318, COLUMN, 154), EXPERT_LABELS)


def _draw_race(canvas: Canvas, takes: Sequence[Take], block: int) -> None:
    """The latency so far of each policy as a bar with a piece for each block; the longest episode is a whole bar."""
    whole = max(sum(take.scenes[-1].block_latency_ms) for take in takes)
    canvas.text(RACE_LEFT, RACE_TOP - 8, "latency so far, a piece for each block", SMALL - 1, MUTED)
    for place, take in enumerate(takes):
        scene, top = take.scenes[block], RACE_TOP + RACE_STEP * place
        middle, left = top + RACE_HEIGHT / 2, float(RACE_LEFT)
        canvas.text(LEFT, middle, fitted(take.name, SMALL, RACE_LEFT - LEFT - 8), SMALL, INK, anchor="lm")
        canvas.rectangle(Area(RACE_LEFT, top, RACE_LENGTH, RACE_HEIGHT), TRACK)
        for number, latency_ms in enumerate(scene.block_latency_ms):
            width = RACE_LENGTH * latency_ms / whole
            canvas.rectangle(Area(left, top, width - 1, RACE_HEIGHT), KEPT if number == block else BAR)
            left += width
        canvas.text(RIGHT, middle, scene.figures[LATENCY], SMALL, INK, anchor="rm")


def _longest_ms(takes: Sequence[Take]) -> float:
    """The longest latency of a device in any block."""
    return max(device.latency_ms for take in takes for scene in take.scenes for device in scene.devices)
