"""What a policy drops is counted pair by pair."""

from __future__ import annotations

import json

import numpy as np
import pytest

from eval.drops import GROUPINGS, breakdowns, count_drops
from eval.folder import json_text
from eval.runner import evaluate

N, J, E, U = 3, 11, 6, 4


def block(generator):
    """A block of random routing of two experts, with padding, and a selection that also goes outside the routing."""
    probs = generator.random((N, J, E)).astype(np.float32)
    mask = np.arange(J) < np.array([J, J, 5])[:, None]
    routed = (probs.argsort(axis=-1).argsort(axis=-1) >= E - 2) & mask[..., None]
    placement = np.zeros((N, E, U), dtype=np.float32)
    for n in range(N):
        placement[n, np.arange(E), generator.permutation(np.arange(E) % U)] = 1
    observation = {
        "gate_probs": probs * mask[..., None],
        "routed": routed.astype(np.float32),
        "token_mask": mask.astype(np.float32),
        "unit_latency": generator.random((N, U)).astype(np.float32),
        "placement": placement,
    }
    selection = (generator.random((N, J, E)) < 0.4) & mask[..., None]
    return {"observation": observation, "selection": selection, "block_latency_ms": generator.random(N)}


def counted_one_by_one(block):
    """The same counts from loops over every pair of every token."""
    seen, selection = block["observation"], block["selection"]
    bins = {"weight": 10, "rank": 2, "device": U, "position": 8}
    counts = {f"{what}_by_{name}": np.zeros((N, bins[name])) for what in ("pairs", "dropped") for name in bins}
    counts["outside_by_device"] = np.zeros((N, U))
    for n, j, e in np.ndindex(N, J, E):
        latency = seen["unit_latency"][n]
        device = sum(latency < latency[seen["placement"][n, e] > 0])
        if not seen["routed"][n, j, e]:
            counts["outside_by_device"][n, device] += selection[n, j, e]
            continue
        probs = seen["gate_probs"][n, j]
        weight = float(probs[e]) / float(probs[seen["routed"][n, j] > 0].astype(float).sum())
        places = {"rank": int(weight < 0.5), "device": device, "position": 8 * j // J}
        places |= {"weight": int(weight * 20)} if weight < 0.5 else {}
        for name, place in places.items():
            counts[f"pairs_by_{name}"][n, place] += 1
            counts[f"dropped_by_{name}"][n, place] += not selection[n, j, e]
    return counts


def test_counts_are_those_of_a_loop_over_pairs():
    blocks = [block(np.random.default_rng(seed)) for seed in range(2)]
    counted = count_drops(blocks)
    for at, one in enumerate(blocks):
        for name, expected in counted_one_by_one(one).items():
            assert counted[name][:, at].tolist() == expected.tolist(), name
    assert counted["block_latency_ms"].shape == (N, 2)


def test_own_routing_drops_nothing_and_top1_every_second_pair():
    results = evaluate(
        ["top1", "random"], {"model": "micro", "num_tokens": 8, "split": "test"}, 6, 7, 4, progress=False
    )
    own, top1, random = breakdowns(results)
    assert set(own["blocks"]["drop_share"]) == {0.0}
    assert set(top1["blocks"]["drop_share"]) == {0.5}
    assert np.array(top1["dropped"]["rank"])[:, 0].sum() == 0
    assert top1["dropped"]["weight"] == top1["pairs"]["weight"]
    assert min(random["blocks"]["outside_share"]) > 0
    assert max(own["blocks"]["outside_share"]) == 0
    for name in GROUPINGS:
        assert own["pairs"][name][0] == random["pairs"][name][0]  # later blocks route what the policy made of it


def test_block_latencies_and_domains_add_up():
    results = evaluate(["top1"], {"model": "micro", "num_tokens": 8, "split": "test"}, 6, 7, 4, progress=False)
    own, top1 = breakdowns(results)
    for policy in (own, top1):
        whole = results.measurements[policy["policy"]]["latency_ms"].mean()
        assert sum(policy["blocks"]["latency_ms"]) == pytest.approx(whole)
    assert {one["drop_share"] for one in top1["domains"].values()} == {0.5}
    assert own["blocks"]["latency_ratio_to_vanilla"] == [1.0] * len(own["blocks"]["latency_ms"])


def test_lists_of_numbers_stand_on_one_line_and_texts_stay():
    summary = {"a": [1, 2.5, -3e-05], "b": ["[ 1,\n 2 ]", "x"], "c": [[1, 2], [3]], "d": []}
    text = json_text(summary)
    assert json.loads(text) == summary
    assert '"a": [1, 2.5, -3e-05]' in text
