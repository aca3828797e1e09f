"""What the environment keeps of episodes for pictures that may be asked for: copies, so nothing can change them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from wdmoe_env.observations import Block
from wdmoe_env.physics.gains import Gains
from wdmoe_env.physics.latency import Bool, Float
from wdmoe_env.rollout.rollout import World
from wdmoe_env.text.windows import TokenWindows


class Filmed(Protocol):
    """Episodes that can be drawn: a ``Rollout``, or a pass of cells that serve requests."""

    @property
    def world(self) -> World:
        """What all episodes share."""

    @property
    def windows(self) -> NDArray[np.int64]:
        """(N,) number of what each episode is about."""

    @property
    def trace(self) -> Gains:
        """Where the devices are, (I, N, U)."""

    @property
    def texts(self) -> TokenWindows:
        """N texts of J tokens."""

    @property
    def block(self) -> Block:
        """What was decided on."""


@dataclass(frozen=True, slots=True)
class Episode:
    """What holds for all blocks of an episode.

    Attributes:
        model: its name.
        window: its index.
        num_blocks: I.
        devices: U names of hardware.
        distance_m: (I, U).
        tokens: text of each of the J tokens, "" at padding; empty where the model's tokenizer cannot tell.
    """

    model: str
    window: int
    num_blocks: int
    devices: tuple[str, ...]
    distance_m: Float
    tokens: tuple[str, ...]

    @classmethod
    def of(cls, rollout: Filmed | Film, n: int = 0) -> Self:
        """Episode n of a rollout, or of what was kept of it."""
        config = rollout.world.config
        profiles = np.resize(np.array(config.devices.profiles), config.devices.count)
        return cls(
            model=config.model,
            window=int(rollout.windows[n]),
            num_blocks=rollout.world.sizes.num_blocks,
            devices=tuple(profiles.tolist()),
            distance_m=np.asarray(rollout.trace.distance_m[:, n]),
            tokens=_token_texts(rollout, n),
        )


@dataclass(frozen=True, slots=True)
class Text:
    """What an episode did to the text; each field is the metric of its name.

    Attributes:
        nll: nats per token.
        reference_nll: of the model's own routing.
        next_token_accuracy: 0 to 1.
    """

    nll: float
    reference_nll: float
    next_token_accuracy: float


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a decision led to in its block; each field but ``text`` is the metric of its name.

    Attributes:
        selection: (J, E).
        shares: (U,).
        load: (U,) tokens.
        device_latency_ms: (U,).
        block_latency_ms: the slowest device's.
        wlr: 1/ms.
        text: at the last block.
    """

    selection: Bool
    shares: Float
    load: Float
    device_latency_ms: Float
    block_latency_ms: float
    wlr: float
    text: Text | None

    @classmethod
    def of(cls, info: Mapping[str, Any], n: int) -> Self:
        """Of episode n in a step's info."""
        at = {name: info[name][n] for name in SHOWN if name in info}
        text = Text(**{name: at.pop(name) for name in SHOWN_OF_EPISODE}) if at.keys() >= SHOWN_OF_EPISODE else None
        return cls(**at, text=text)


SHOWN_OF_EPISODE = {field.name for field in fields(Text)}
SHOWN = {field.name for field in fields(Outcome)} - {"text"} | SHOWN_OF_EPISODE
"""Metrics of a step's info that are shown; those of the episode come with the last block."""


@dataclass(frozen=True, slots=True)
class Record:
    """A block, and what the decision for it led to.

    Attributes:
        gate_probs: (J, E).
        routed: (J, E) the model's own choice.
        spectral_efficiency: (2, U) bit/s/Hz at equal shares.
        placement: (E, U).
        outcome: ``None`` before the decision.
        available: (U,) False where the device is away; ``None`` where none can be.
    """

    gate_probs: Float
    routed: Bool
    spectral_efficiency: Float
    placement: Float
    outcome: Outcome | None
    available: Bool | None = None

    @classmethod
    def of(cls, block: Block, info: Mapping[str, Any] | None, n: int) -> Self:
        """Of episode n in a block and in its step's info."""
        placement = block.links.placement
        return cls(
            block.gate_probs[n],
            block.routed[n],
            block.spectral_efficiency[n],
            placement if placement.ndim == 2 else placement[n],
            None if info is None else Outcome.of(info, n),
            None if block.available is None else block.available[n],
        )


class Film:
    """N episodes that go on together, kept so that a picture of each can be drawn later.

    Args:
        rollout: the episodes, at their first block.
    """

    def __init__(self, rollout: Filmed) -> None:
        # Not the rollout itself: a copy of it would run its forward pass again.
        self.world, self.windows, self.trace = rollout.world, rollout.windows, rollout.trace
        self.texts = rollout.texts
        self._first = _copy(rollout.block)
        self._steps: list[tuple[Block, dict[str, Any]]] = []

    def add(self, block: Block, info: Mapping[str, Any]) -> None:
        """Keep what a step led to.

        Args:
            block: that was decided on.
            info: of the step, entries (N, ...).
        """
        self._steps.append((_copy(block), {name: info[name].copy() for name in SHOWN if name in info}))

    def episode(self, n: int) -> Episode:
        """What holds for all blocks of episode n."""
        return Episode.of(self, n)

    def records(self, n: int) -> list[Record]:
        """The blocks of episode n that have run; before any has, the first one, undecided."""
        steps = [Record.of(block, info, n) for block, info in self._steps]
        return steps or [Record.of(self._first, None, n)]


def _copy(block: Block) -> Block:
    """A block whose routing is its own: the selection in info may be the same memory."""
    return replace(block, routed=block.routed.copy(), hidden_states=None)


def _token_texts(rollout: Filmed | Film, n: int) -> tuple[str, ...]:
    decode = getattr(rollout.world.model.tokenizer, "decode", None)
    if decode is None:
        return ()
    token_ids, mask = rollout.texts.token_ids[n], rollout.texts.mask[n]
    return tuple(decode([int(one)]) if real else "" for one, real in zip(token_ids, mask, strict=True))
