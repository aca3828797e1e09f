"""What ``render()`` gives: it records as the episode goes on, and draws when asked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gymnasium as gym

from wdmoe_env.observations import Block
from wdmoe_env.rendering.canvas import Picture
from wdmoe_env.rendering.picture import draw_scene
from wdmoe_env.rendering.record import Episode, Record
from wdmoe_env.rendering.scene import Scene, scene_of
from wdmoe_env.rendering.terminal import terminal_text
from wdmoe_env.rendering.window import Window
from wdmoe_env.simulator import Rollout

RENDER_MODES = ("human", "rgb_array", "ansi")
RENDER_FPS = 2


class Renderer:
    """Renders one environment.

    Args:
        mode: one of ``RENDER_MODES``.

    Raises:
        ValueError: another mode.
    """

    def __init__(self, mode: str) -> None:
        if mode not in RENDER_MODES:
            raise ValueError(f"render_mode must be None or one of {', '.join(RENDER_MODES)}, got {mode!r}")
        self.mode = mode
        self._window = Window(RENDER_FPS)
        self._episode: Episode | None = None
        self._records: list[Record] = []

    def begin(self, rollout: Rollout) -> None:
        """Take up the only episode of a rollout; a window shows its first block."""
        self._episode = Episode.of(rollout)
        self._records = []
        self._show(Record.of(rollout.block, None))

    def add(self, block: Block, info: Mapping[str, Any]) -> None:
        """Take up what a step led to; a window shows it.

        Args:
            block: that was decided on.
            info: of the step.
        """
        self._records = [record for record in self._records if record.outcome]
        self._show(Record.of(block, info))

    def _show(self, record: Record) -> None:
        self._records.append(record)
        if self.mode == "human":
            self._window.show(draw_scene(self.scene()))

    def scene(self) -> Scene:
        """What there is to see.

        Raises:
            gymnasium.error.ResetNeeded: no episode has begun.
        """
        if self._episode is None:
            raise gym.error.ResetNeeded("expected reset() before render(): there is nothing to draw")
        return scene_of(self._episode, self._records)

    def render(self) -> Picture | str | None:
        """Picture (H, W, 3) under ``rgb_array``, text under ``ansi``; a window shows by itself."""
        scene = self.scene()
        if self.mode == "rgb_array":
            return draw_scene(scene)
        return terminal_text(scene) if self.mode == "ansi" else None

    def close(self) -> None:
        """Close the window."""
        self._window.close()
