"""What the environment keeps of an episode for a picture that may be asked for: copies, so nothing can change them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from wdmoe_env.observations import Block
from wdmoe_env.physics.latency import Bool, Float
from wdmoe_env.simulator import Rollout


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
    def of(cls, rollout: Rollout) -> Self:
        """Of the only episode of a rollout."""
        simulator = rollout.simulator
        config = simulator.config
        profiles = np.resize(np.array(config.devices.profiles), config.devices.count)
        return cls(
            model=config.model,
            window=int(rollout.windows[0]),
            num_blocks=simulator.sizes.num_blocks,
            devices=tuple(profiles.tolist()),
            distance_m=np.asarray(rollout.trace.distance_m[:, 0]),
            tokens=_token_texts(rollout),
        )


@dataclass(frozen=True, slots=True)
class Text:
    """What an episode did to the text.

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
    """What a decision led to in its block; the numbers of ``info``.

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
    def of(cls, info: Mapping[str, Any]) -> Self:
        """Of a step's info."""
        text = Text(info["nll"], info["reference_nll"], info["next_token_accuracy"]) if "nll" in info else None
        return cls(
            selection=info["selection"].copy(),
            shares=info["shares"].copy(),
            load=info["load"].copy(),
            device_latency_ms=info["device_latency_ms"].copy(),
            block_latency_ms=info["block_latency_ms"],
            wlr=info["wlr"],
            text=text,
        )


@dataclass(frozen=True, slots=True)
class Record:
    """A block, and what the decision for it led to.

    Attributes:
        gate_probs: (J, E).
        routed: (J, E) the model's own choice.
        spectral_efficiency: (2, U) bit/s/Hz at equal shares.
        placement: (E, U).
        outcome: ``None`` before the decision.
    """

    gate_probs: Float
    routed: Bool
    spectral_efficiency: Float
    placement: Float
    outcome: Outcome | None

    @classmethod
    def of(cls, block: Block, info: Mapping[str, Any] | None) -> Self:
        """Of the only episode of a block, and of its step's info."""
        placement = block.links.placement
        return cls(
            block.gate_probs[0],
            block.routed[0].copy(),  # the selection in info may be the same memory
            block.spectral_efficiency[0],
            placement if placement.ndim == 2 else placement[0],
            None if info is None else Outcome.of(info),
        )


def _token_texts(rollout: Rollout) -> tuple[str, ...]:
    source = rollout.simulator.source
    decode = getattr(source.model.tokenizer, "decode", None)
    if decode is None:
        return ()
    token_ids = source.windows.token_ids[rollout.windows[0]]
    return tuple(decode([int(one)]) if real else "" for one, real in zip(token_ids, rollout.token_mask[0], strict=True))
