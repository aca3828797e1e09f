"""A colour for each family, the same in every picture of the page."""

from __future__ import annotations

from collections.abc import Iterable

from eval.summary import Summary
from wdmoe_env.evaluation import REFERENCE

NUM_COLORS = 12
REFERENCE_CLASS = "ink"


def color_classes(settings: Iterable[Summary]) -> dict[str, str]:
    """The CSS class of each family: learned ones first, in the palette's strongest colours."""
    ordered = sorted(settings, key=lambda setting: not setting["learned"])
    families = [family for family in dict.fromkeys(one["family"] for one in ordered) if family != REFERENCE]
    return {REFERENCE: REFERENCE_CLASS} | {family: f"c{n % NUM_COLORS}" for n, family in enumerate(families)}


def mark_kind(setting: Summary) -> str:
    """The kind of mark of a setting."""
    return "star" if setting["family"] == REFERENCE else "disc" if setting["learned"] else "ring"
