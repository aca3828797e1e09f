"""A window that shows pictures, by pygame; it opens at the first one."""

from __future__ import annotations

import os
import warnings
from typing import Any

import gymnasium as gym

from wdmoe_env.optional import optional
from wdmoe_env.rendering.canvas import Picture

TITLE = "WDMoE"


class Window:
    """A window, closed until it shows something.

    Args:
        frames_per_second: at most so many pictures.
    """

    def __init__(self, frames_per_second: float) -> None:
        self._frames_per_second = frames_per_second
        self._screen: Any = None
        self._clock: Any = None

    def show(self, picture: Picture) -> None:
        """Show a picture (H, W, 3), and wait where the last one has not been seen long enough.

        Raises:
            ImportError: pygame is not installed.
            gymnasium.error.Error: the display cannot be opened; where there is none, SDL draws unseen, with a warning.
        """
        with optional("pygame", extra="render"):
            import pygame
        if self._screen is None:
            self._open(picture)
        pygame.surfarray.blit_array(self._screen, picture.swapaxes(0, 1))
        pygame.event.pump()
        pygame.display.flip()
        self._clock.tick(self._frames_per_second)

    def _open(self, picture: Picture) -> None:
        import pygame

        height, width = picture.shape[:2]
        try:
            pygame.display.init()
            self._screen = pygame.display.set_mode((width, height))
        except pygame.error as error:
            raise gym.error.Error(
                f"render_mode 'human' expected a display, got none ({error}); 'rgb_array' needs none"
            ) from error
        if pygame.display.get_driver() == "offscreen" and "SDL_VIDEODRIVER" not in os.environ:
            warnings.warn(
                "render_mode 'human' found no display and draws unseen; 'rgb_array' gives the pictures", stacklevel=2
            )
        pygame.display.set_caption(TITLE)
        self._clock = pygame.time.Clock()

    def close(self) -> None:
        """Close the window; the next picture opens it again."""
        if self._screen is not None:
            import pygame

            pygame.display.quit()
            self._screen = self._clock = None

    def __getstate__(self) -> dict[str, Any]:
        """A copy is closed."""
        return {"_frames_per_second": self._frames_per_second, "_screen": None, "_clock": None}
