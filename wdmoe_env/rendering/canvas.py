"""A sheet to draw on with Pillow, in pixels of the picture; drawn larger and reduced, so that edges are smooth."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from wdmoe_env.optional import optional
from wdmoe_env.rendering.palette import PAPER, Colour

if TYPE_CHECKING:
    from PIL.ImageFont import FreeTypeFont

Picture = NDArray[np.uint8]

SCALE = 2


class Area(NamedTuple):
    """A rectangle, in pixels."""

    left: float
    top: float
    width: float
    height: float

    @property
    def right(self) -> float:
        """Its right edge."""
        return self.left + self.width

    @property
    def bottom(self) -> float:
        """Its lower edge."""
        return self.top + self.height


class Canvas:
    """A white sheet.

    Args:
        width: in pixels.
        height: in pixels.

    Raises:
        ImportError: Pillow is not installed.
    """

    def __init__(self, width: int, height: int) -> None:
        with optional("pillow", extra="render"):
            from PIL import Image, ImageDraw
        self._image = Image.new("RGB", (SCALE * width, SCALE * height), PAPER)
        self._draw = ImageDraw.Draw(self._image)

    def rectangle(self, area: Area, fill: Colour | None, outline: Colour | None = None, width: float = 0) -> None:
        """A filled rectangle, or an outline within it.

        Args:
            area: in pixels.
            fill: ``None`` leaves it open.
            outline: ``None`` draws none.
            width: of the outline, in pixels.
        """
        left, top, right, bottom = _scaled(area.left, area.top, area.right, area.bottom)
        if right > left and bottom > top:
            corners = (left, top, right - 1, bottom - 1)
            self._draw.rectangle(corners, fill=fill, outline=outline, width=round(SCALE * width))

    def disc(self, x: float, y: float, radius: float, fill: Colour | None, outline: Colour | None = None) -> None:
        """A disc around a point, or a thin circle.

        Args:
            x: of the centre, in pixels.
            y: of the centre.
            radius: in pixels.
            fill: ``None`` leaves it open.
            outline: ``None`` draws none.
        """
        corners = _scaled(x - radius, y - radius, x + radius, y + radius)
        self._draw.ellipse(corners, fill=fill, outline=outline, width=SCALE)

    def line(self, start: tuple[float, float], end: tuple[float, float], colour: Colour, width: float = 1) -> None:
        """A straight line.

        Args:
            start: x and y, in pixels.
            end: x and y.
            colour: of the line.
            width: in pixels.
        """
        self._draw.line(_scaled(*start, *end), fill=colour, width=max(1, round(SCALE * width)))

    def text(self, x: float, y: float, text: str, size: float, colour: Colour, anchor: str = "ls") -> None:
        """A line of text.

        Args:
            x: of the anchor, in pixels.
            y: of the anchor.
            text: what is written.
            size: of the font, in pixels.
            colour: of the text.
            anchor: as Pillow names it: left, middle or right, then baseline or middle.
        """
        self._draw.text((SCALE * x, SCALE * y), _legible(text), font=_font(size), fill=colour, anchor=anchor)

    def upright(self, x: float, y: float, text: str, size: float, colour: Colour) -> None:
        """A line of text that runs upwards.

        Args:
            x: of its middle, in pixels.
            y: of its lower end.
            text: what is written.
            size: of the font, in pixels.
            colour: of the text.
        """
        from PIL import Image, ImageDraw

        font = _font(size)
        mask = Image.new("L", (round(font.getlength(_legible(text))) + SCALE, round(1.4 * SCALE * size)))
        ImageDraw.Draw(mask).text((0, mask.height / 2), _legible(text), font=font, fill=255, anchor="lm")
        turned = mask.rotate(90, expand=True)
        corner = (round(SCALE * x - turned.width / 2), round(SCALE * y - turned.height))
        self._image.paste(Image.new("RGB", turned.size, colour), corner, turned)

    def pixels(self) -> Picture:
        """The picture (H, W, 3)."""
        return np.array(self._image.reduce(SCALE), dtype=np.uint8)


def text_width(text: str, size: float) -> float:
    """Width of a line of text in pixels."""
    return float(_font(size).getlength(_legible(text))) / SCALE


def fitted(text: str, size: float, width: float) -> str:
    """The text, or its beginning and three dots where it is wider than ``width`` pixels."""
    if text_width(text, size) <= width:
        return text
    while text and text_width(text + "...", size) > width:
        text = text[:-1]
    return text + "..." if text else ""


@cache
def _font(size: float) -> FreeTypeFont | Any:
    """The font that comes with Pillow."""
    from PIL import ImageFont

    return ImageFont.load_default(SCALE * size)


def _legible(text: str) -> str:
    """The text with a question mark for what the font lacks."""
    return text.encode("ascii", "replace").decode()


def _scaled(*values: float) -> tuple[int, ...]:
    return tuple(round(SCALE * value) for value in values)
