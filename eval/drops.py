"""What a policy drops, counted: routed pairs by gate weight, rank, device speed and position, block by block."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eval.results import EpisodeResults
from eval.statistics import Summary
from wdmoe_env.evaluation import REFERENCE, Measurements
from wdmoe_env.physics.latency import gate_weights

Counts = NDArray[np.int64]

WEIGHT_BINS = 10
# A token's routed experts but the best weigh at most a half each.
MOST_WEIGHT = 0.5
MOST_POSITION_BINS = 8
GROUPINGS = ("weight", "rank", "device", "position")
PAIRS, DROPPED, OUTSIDE = "pairs_by_", "dropped_by_", "outside_by_device"
BLOCK_LATENCY = "block_latency_ms"


def count_drops(blocks: Sequence[Mapping[str, Any]]) -> Measurements:
    """Counts (n, I, bins) of routed pairs and of dropped ones, and the latency (n, I) of every block.

    ``pairs_by_X`` counts the pairs of the model's own routing and ``dropped_by_X`` those that were not served. X is
    the gate ``weight`` w (ten bins up to a half, of all routed experts but a token's best), the ``rank`` (best,
    others), the ``device`` (fastest to slowest by the latency of one token) or the ``position`` in the window.
    ``outside_by_device`` counts the pairs served outside the routing.

    Args:
        blocks: of n episodes the info of each of I blocks, with the ``observation`` that was decided on.
    """
    counted = [_count(block["observation"], block["selection"]) for block in blocks]
    latency = np.stack([block["block_latency_ms"] for block in blocks], axis=1)
    return {BLOCK_LATENCY: latency} | {name: np.stack([one[name] for one in counted], axis=1) for name in counted[0]}


def _count(observation: Mapping[str, Any], selection: NDArray[np.bool_]) -> dict[str, Counts]:
    """Counts (N, bins) of one block."""
    routed = observation["routed"] > 0.5
    probs = np.where(routed, observation["gate_probs"], -np.inf)
    other = routed & (np.arange(routed.shape[-1]) != probs.argmax(axis=-1)[..., None])
    device = np.broadcast_to(_speed_rank(observation)[:, None, :], routed.shape)
    num_devices = observation["unit_latency"].shape[-1]
    bins = {
        "weight": (other, _weight_bin(observation, routed), WEIGHT_BINS),
        "rank": (routed, other.astype(np.int64), 2),
        "device": (routed, device, num_devices),
        "position": (routed, *_position_bin(routed)),
    }
    counts = {}
    for name, (pairs, bin_of, number) in bins.items():
        counts[f"{PAIRS}{name}"] = _histogram(pairs, bin_of, number)
        counts[f"{DROPPED}{name}"] = _histogram(pairs & ~selection, bin_of, number)
    outside = selection & ~routed & (observation["token_mask"] > 0.5)[..., None]
    return counts | {OUTSIDE: _histogram(outside, device, num_devices)}


def _weight_bin(observation: Mapping[str, Any], routed: NDArray[np.bool_]) -> Counts:
    weights = gate_weights(observation["gate_probs"].astype(np.float64), routed)
    return np.clip((weights * (WEIGHT_BINS / MOST_WEIGHT)).astype(np.int64), 0, WEIGHT_BINS - 1)


def _speed_rank(observation: Mapping[str, Any]) -> Counts:
    """Of each expert's device the rank (N, E) by the latency of one token, 0 for the fastest."""
    rank = observation["unit_latency"].argsort(axis=-1, kind="stable").argsort(axis=-1)
    return np.take_along_axis(rank, observation["placement"].argmax(axis=-1), axis=-1)


def _position_bin(routed: NDArray[np.bool_]) -> tuple[Counts, int]:
    """Of each pair the part of the window, and how many parts there are."""
    num_tokens = routed.shape[1]
    number = min(MOST_POSITION_BINS, num_tokens)
    return np.broadcast_to((np.arange(num_tokens) * number // num_tokens)[:, None], routed.shape), number


def _histogram(counted: NDArray[np.bool_], bin_of: Counts, number: int) -> Counts:
    """How many of the marked pairs (N, J, E) fall into each bin, (N, bins)."""
    row = np.broadcast_to(np.arange(len(counted))[:, None, None], counted.shape)
    flat = number * row[counted] + bin_of[counted]
    return np.bincount(flat, minlength=len(counted) * number).reshape(len(counted), number)


def breakdowns(results: EpisodeResults) -> list[Summary]:
    """For each policy the counts of ``eval.drops`` summed over episodes, (I, bins), and figures by block and domain.

    ``blocks`` holds per block the mean latency, its ratio to that of ``vanilla``, the share of routed pairs that were
    dropped, and the pairs served outside the routing as a share of the routed ones; ``domains`` the last two.
    """
    return [{"policy": policy, **_breakdown(results, policy)} for policy in results.measurements]


def _breakdown(results: EpisodeResults, policy: str) -> Summary:
    measured = results.measurements[policy]
    latency, reference = (results.measurements[name][BLOCK_LATENCY].mean(axis=0) for name in (policy, REFERENCE))
    pairs, dropped, outside = (measured[name].sum(axis=-1) for name in (f"{PAIRS}rank", f"{DROPPED}rank", OUTSIDE))
    domains = np.array(results.domains)
    return {
        "blocks": {
            "latency_ms": latency.tolist(),
            "latency_ratio_to_vanilla": (latency / reference).tolist(),
            "drop_share": _share(dropped.sum(axis=0), pairs.sum(axis=0)),
            "outside_share": _share(outside.sum(axis=0), pairs.sum(axis=0)),
        },
        "domains": {
            str(name): {
                "drop_share": _share(dropped[domains == name].sum(), pairs[domains == name].sum()),
                "outside_share": _share(outside[domains == name].sum(), pairs[domains == name].sum()),
            }
            for name in sorted(set(domains))
        },
        "pairs": {name: measured[f"{PAIRS}{name}"].sum(axis=0).tolist() for name in GROUPINGS},
        "dropped": {name: measured[f"{DROPPED}{name}"].sum(axis=0).tolist() for name in GROUPINGS},
        OUTSIDE: measured[OUTSIDE].sum(axis=0).tolist(),
    }


def _share(part: NDArray[np.int64], whole: NDArray[np.int64]) -> Any:
    return (part / whole).tolist()
