"""Where a policy is fast, and what it drops: by block, and by kind of text."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from eval.drops import BLOCK_LATENCY, DROPPED, GROUPINGS, OUTSIDE, PAIRS
from eval.results import EpisodeResults
from eval.summary import Summary
from wdmoe_env.evaluation import REFERENCE


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
