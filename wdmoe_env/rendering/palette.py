"""Colours of the picture: few, told apart by the colour-blind, and one red that means a single thing."""

from __future__ import annotations

Colour = tuple[int, int, int]

PAPER, INK, MUTED, FAINT = (255, 255, 255), (31, 41, 51), (104, 117, 130), (226, 231, 236)
BAR, TRACK = (139, 155, 172), (241, 244, 246)
SLOWEST, SLOWEST_TINT = (196, 43, 47), (253, 238, 236)
KEPT, DROPPED, ADDED = (33, 96, 151), (217, 138, 22), (68, 10, 52)

WEAK_LINK, STRONG_LINK = (205, 224, 208), (0, 88, 82)
WEAK_EFFICIENCY, STRONG_EFFICIENCY = 4.0, 16.0
"""bit/s/Hz at the ends of the links' scale; what lies beyond is drawn as the end."""

UNLIKELY, LIKELY = (250, 251, 252), (150, 163, 177)


def blend(low: Colour, high: Colour, part: float) -> Colour:
    """The colour at a part, clipped to [0, 1], of the way from one colour to another."""
    part = min(max(part, 0.0), 1.0)
    red, green, blue = (round(a + (b - a) * part) for a, b in zip(low, high, strict=True))
    return red, green, blue


def link_colour(efficiency: float) -> Colour:
    """The colour of a link's spectral efficiency in bit/s/Hz."""
    return blend(WEAK_LINK, STRONG_LINK, (efficiency - WEAK_EFFICIENCY) / (STRONG_EFFICIENCY - WEAK_EFFICIENCY))


def gate_colour(probability: float) -> Colour:
    """The colour of a gate probability."""
    return blend(UNLIKELY, LIKELY, probability)
