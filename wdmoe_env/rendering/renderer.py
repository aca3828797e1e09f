"""What ``render()`` gives: it records as the episodes go on, and draws when asked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium as gym

from wdmoe_env.observations import Block
from wdmoe_env.rendering.canvas import Picture
from wdmoe_env.rendering.picture import draw_scene
from wdmoe_env.rendering.record import Film, Filmed
from wdmoe_env.rendering.scene import Scene, scene_of
from wdmoe_env.rendering.terminal import terminal_text
from wdmoe_env.rendering.window import Window

RENDER_MODES = ("human", "rgb_array", "ansi")
BATCH_RENDER_MODES = ("rgb_array", "ansi")
RENDER_FPS = 2


class Renderer:
    """Renders one environment, or each one of a batch.

    Args:
        mode: one of ``RENDER_MODES``.
        num_envs: N.

    Raises:
        ValueError: another mode.
    """

    def __init__(self, mode: str, num_envs: int = 1) -> None:
        if mode not in RENDER_MODES:
            raise ValueError(f"render_mode must be None or one of {', '.join(RENDER_MODES)}, got {mode!r}")
        self.mode = mode
        self._window = Window(RENDER_FPS)
        self._shown: list[tuple[Film, int] | None] = [None] * num_envs

    def begin(self, rollout: Filmed, rows: Sequence[int] = (0,)) -> None:
        """Take up the episodes of a rollout; a window shows the first block.

        Args:
            rollout: n episodes that begin.
            rows: the environment of each.
        """
        film = Film(rollout)
        for n, row in enumerate(rows):
            self._shown[row] = film, n
        self._show()

    def add(self, block: Block, info: Mapping[str, Any], row: int = 0) -> None:
        """Take up what a step led to; a window shows it.

        Args:
            block: that was decided on, of all episodes that began together.
            info: of the step, entries (n, ...) of the same episodes.
            row: an environment that is at one of them.
        """
        film, _ = self._at(row)
        film.add(block, info)
        self._show()

    def _show(self) -> None:
        if self.mode == "human":
            self._window.show(draw_scene(self.scene()))

    def _at(self, row: int) -> tuple[Film, int]:
        shown = self._shown[row]
        if shown is None:
            raise gym.error.ResetNeeded("expected reset() before render(): there is nothing to draw")
        return shown

    def scene(self, row: int = 0) -> Scene:
        """What there is to see of an environment.

        Raises:
            gymnasium.error.ResetNeeded: no episode has begun.
        """
        film, n = self._at(row)
        return scene_of(film.episode(n), film.records(n))

    def render(self) -> tuple[Picture | str | None, ...]:
        """A picture (H, W, 3) of each environment under ``rgb_array``, a text under ``ansi``, else ``None``."""
        return tuple(self._drawn(self.scene(row)) for row in range(len(self._shown)))

    def _drawn(self, scene: Scene) -> Picture | str | None:
        if self.mode == "rgb_array":
            return draw_scene(scene)
        return terminal_text(scene) if self.mode == "ansi" else None

    def close(self) -> None:
        """Close the window."""
        self._window.close()
