"""What there is to see of an episode, as plain frozen data: every text as it is written, whatever draws it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from wdmoe_env.metrics import METRICS
from wdmoe_env.physics.latency import Bool, Float
from wdmoe_env.rendering.record import Episode, Outcome, Record

NOTHING = "-"
"""Stands where nothing has been decided yet."""

AWAY = "away"
"""Stands for the latency of a device that is away."""

BLOCK_LATENCY = METRICS["block_latency_ms"].label
LATENCY = f"{METRICS['latency_ms'].label} so far"
BLOCK_WLR, MEAN_WLR = (f"{which} {METRICS['wlr'].label}" for which in ("block", "mean"))
NLL = f"{METRICS['nll'].label} per token"
ADDED_NLL, ACCURACY = METRICS["added_nll"].label, METRICS["next_token_accuracy"].label

TIE = 1e-4
"""Relative difference of latencies up to which devices finish together: optimal shares pass through float32 actions."""


@dataclass(frozen=True, slots=True)
class DeviceRow:
    """A device in one block; numbers for lengths and colours, texts for what is written.

    Attributes:
        number: from 1.
        name: of its hardware.
        distance: metres from the base station.
        downlink: bit/s/Hz at equal shares.
        uplink: bit/s/Hz at equal shares.
        tokens: that it served.
        share: of the bandwidth, in percent.
        latency: in ms.
        slowest: whether the block waited for it, up to differences that no figure shows.
        distance_m: metres, NaN where the channel knows no distance.
        efficiency: bit/s/Hz of the weaker direction at equal shares.
        bandwidth_share: of the bandwidth, 0 to 1.
        latency_ms: in ms.
        away: whether the device is away, so that none of its experts can be chosen.
    """

    number: str
    name: str
    distance: str
    downlink: str
    uplink: str
    tokens: str
    share: str
    latency: str
    slowest: bool
    distance_m: float
    efficiency: float
    bandwidth_share: float
    latency_ms: float
    away: bool


@dataclass(frozen=True, slots=True)
class Scene:
    """One block of an episode, and the episode up to it.

    Attributes:
        block: "Block 3 of 6".
        setting: model, window and tokens.
        position: blocks that have run, at least 1.
        num_blocks: I.
        figures: names and texts of what the block and the episode so far came to; at the end also the text's.
        block_latency_ms: of each block that has run.
        devices: a row for each of the U devices.
        gate_probs: (J, E).
        kept: (J, E) experts of the model's own routing that served.
        dropped: (J, E) experts of the model's own routing that did not.
        added: (J, E) other experts that served.
        expert_device: E numbers, from 1, of the device that holds each expert.
        tokens: text of each of the J tokens; empty where it is not known.
        reach_m: the greatest distance of the episode, NaN where none is known.
    """

    block: str
    setting: str
    position: int
    num_blocks: int
    figures: Mapping[str, str]
    block_latency_ms: tuple[float, ...]
    devices: tuple[DeviceRow, ...]
    gate_probs: Float
    kept: Bool
    dropped: Bool
    added: Bool
    expert_device: tuple[int, ...]
    tokens: tuple[str, ...]
    reach_m: float

    @property
    def tied(self) -> bool:
        """Whether the block waited for more than one device, as it does where shares are optimal."""
        return sum(device.slowest for device in self.devices) > 1


def scene_of(episode: Episode, records: Sequence[Record]) -> Scene:
    """The scene after the last of an episode's records.

    Args:
        episode: what holds for all blocks.
        records: the blocks in order, at least one; only the last may be undecided.
    """
    now, outcomes = records[-1], [record.outcome for record in records if record.outcome]
    routed, outcome = now.routed, now.outcome
    selection = routed if outcome is None else outcome.selection
    finite = episode.distance_m[np.isfinite(episode.distance_m)]
    return Scene(
        block=f"Block {len(records)} of {episode.num_blocks}",
        setting=f"{episode.model}, window {episode.window}, J = {len(routed)}",
        position=len(records),
        num_blocks=episode.num_blocks,
        figures=_figures(outcomes),
        block_latency_ms=tuple(one.block_latency_ms for one in outcomes),
        devices=_rows(episode, len(records) - 1, now),
        gate_probs=now.gate_probs,
        kept=routed & selection,
        dropped=routed & ~selection,
        added=selection & ~routed,
        expert_device=tuple(int(device) + 1 for device in now.placement.argmax(axis=-1)),
        tokens=episode.tokens,
        reach_m=float(finite.max()) if finite.size else math.nan,
    )


def _figures(outcomes: Sequence[Outcome]) -> dict[str, str]:
    """Of the last block and of the episode so far; the text's where the episode has ended."""
    if not outcomes:
        return dict.fromkeys((BLOCK_LATENCY, LATENCY, BLOCK_WLR, MEAN_WLR), NOTHING)
    last = outcomes[-1]
    figures = {
        BLOCK_LATENCY: _with_unit(last.block_latency_ms, "block_latency_ms"),
        LATENCY: _with_unit(sum(one.block_latency_ms for one in outcomes), "latency_ms"),
        BLOCK_WLR: _with_unit(last.wlr, "wlr"),
        MEAN_WLR: _with_unit(float(np.mean([one.wlr for one in outcomes])), "wlr"),
    }
    if last.text is not None:
        figures[NLL] = f"{last.text.nll:.3f}"
        figures[ADDED_NLL] = f"{last.text.nll - last.text.reference_nll:+.3f}"
        figures[ACCURACY] = f"{100 * last.text.next_token_accuracy:.1f} %"
    return figures


def _with_unit(value: float, metric: str) -> str:
    """A number and the unit of its metric; of "1/ms" the 1 goes without saying."""
    return f"{figure(value)} {METRICS[metric].unit.removeprefix('1')}"


def _rows(episode: Episode, block: int, now: Record) -> tuple[DeviceRow, ...]:
    outcome, count = now.outcome, len(episode.devices)
    distance_m, (down, up) = episode.distance_m[block], now.spectral_efficiency
    latency_ms = outcome.device_latency_ms if outcome else np.zeros(count)
    share = outcome.shares if outcome else np.zeros(count)
    away = np.zeros(count, dtype=np.bool_) if now.available is None else ~now.available
    undecided = [NOTHING] * count
    latency = column(latency_ms) if outcome else undecided
    return tuple(
        DeviceRow(*row)
        for row in zip(
            map(str, range(1, count + 1)),
            episode.devices,
            [f"{metres:.0f}" if math.isfinite(metres) else NOTHING for metres in distance_m],
            column(down),
            column(up),
            [f"{tokens:.0f}" for tokens in outcome.load] if outcome else undecided,
            [f"{100 * one:.1f}" for one in share] if outcome else undecided,
            [AWAY if gone else text for gone, text in zip(away, latency, strict=True)],
            (bool(outcome) & (latency_ms >= latency_ms.max() * (1 - TIE)) & ~away).tolist(),
            distance_m.tolist(),
            np.minimum(down, up).tolist(),
            share.tolist(),
            latency_ms.tolist(),
            away.tolist(),
            strict=True,
        )
    )


def figure(value: float) -> str:
    """A number with three digits or more, and a decimal at least."""
    return f"{value:.{_decimals(value)}f}"


def column(values: Iterable[float]) -> list[str]:
    """Numbers with as many decimals as the largest of them needs."""
    values = list(values)
    decimals = _decimals(max(values))
    return [f"{value:.{decimals}f}" for value in values]


def _decimals(value: float) -> int:
    if not math.isfinite(value) or value <= 0:
        return 1
    return max(1, 2 - math.floor(math.log10(value)))
