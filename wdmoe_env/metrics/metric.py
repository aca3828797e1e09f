"""What a metric is: a row that says how a figure is called, read, reduced over blocks, and which way is better."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from wdmoe_env.physics.latency import Float

REWARD_TERMS = "reward_terms"
"""Key of ``info`` under which the terms of the reward stand."""


@dataclass(frozen=True, slots=True)
class Metric:
    """A figure of a block or of an episode.

    Attributes:
        name: the key under which it stands.
        shape: letters of the sizes of one episode's value, as in ``("J", "E")``; ``()`` is a number.
        unit: of the value; ``"-"`` for none.
        meaning: what it is, in one line.
        when: ``"block"``: known after every block; ``"episode"``: known after the last one.
        value: from the ``BlockResult`` or the ``EpisodeResult`` of N episodes to an array (N, ...) of that shape.
        scale: what the value is multiplied by, as seconds are by 1e3 to be milliseconds.
        over_blocks: how the values of an episode's blocks become the episode's; ``None`` where that has no meaning.
        better: which way is better; ``None`` where neither is.
        label: what tables and pictures call it; empty where none shows it.
        in_info: whether it stands in ``info``.
        in_terms: whether it is a term of the reward; a term of the episode is 0 before the last block.
        on_request: ``"token_terms"``, ``"energy"`` or ``"bits"``: it is there only under that field of ``EnvConfig``
            (``decide_bits`` for the last), or a reward that needs it; empty where it is always there.
        in_results: whether an evaluation keeps the value of every episode.

    Raises:
        ValueError: an unknown word for ``when``, ``over_blocks`` or ``better``; a result that is no number or
            only there on request; a term whose shape has other letters than J, E and U; or a result of the blocks
            without ``over_blocks``.
    """

    name: str
    shape: tuple[str, ...]
    unit: str
    meaning: str
    when: Literal["block", "episode"]
    value: Callable[[Any], Any]
    over_blocks: Literal["mean", "sum"] | None = None
    better: Literal["lower", "higher"] | None = None
    label: str = ""
    in_info: bool = True
    in_terms: bool = False
    in_results: bool = False
    on_request: str = ""
    scale: float = 1.0

    def __post_init__(self) -> None:
        """Check the words, and that terms and results are numbers."""
        words = {
            "when": ("block", "episode"),
            "over_blocks": ("mean", "sum", None),
            "better": ("lower", "higher", None),
        }
        for field, known in words.items():
            if getattr(self, field) not in known:
                raise ValueError(f"metric {self.name}: {field} must be one of {known}, got {getattr(self, field)!r}")
        if self.in_results and (self.shape or self.on_request):
            asked = " on request" if self.on_request else ""
            raise ValueError(
                f"metric {self.name}: a result must have the shape () and be always there, got {self.shape}{asked}"
            )
        if self.in_terms and not set(self.shape) <= set("JEU"):
            raise ValueError(f"metric {self.name}: a term must have a shape of J, E and U, got {self.shape}")
        if not (self.in_info or self.in_terms):
            raise ValueError(f"metric {self.name}: expected in_info or in_terms, got neither")
        if self.in_results and self.when == "block" and self.over_blocks is None:
            raise ValueError(
                f"metric {self.name}: a result must say how blocks become an episode, got over_blocks=None"
            )

    @property
    def heading(self) -> str:
        """Label and unit, as the head of a column says them."""
        return self.label if self.unit == "-" else f"{self.label} {self.unit}"

    @property
    def sign(self) -> int:
        """1 where lower is better, -1 where higher is, 0 where neither is."""
        return {"lower": 1, "higher": -1, None: 0}[self.better]

    def of_episode(self, blocks: Sequence[Mapping[str, Any]]) -> Float:
        """Value (N,) of whole episodes.

        Args:
            blocks: the info of each of their blocks, in order.
        """
        places = blocks if self.in_info else [info[REWARD_TERMS] for info in blocks]
        if self.when == "episode":
            return np.asarray(places[-1][self.name], dtype=np.float64)
        reduced = np.mean if self.over_blocks == "mean" else np.sum
        return np.asarray(reduced([place[self.name] for place in places], axis=0), dtype=np.float64)
