"""Rules of related work: each by hand on a small block, the covering search against enumeration, and their ends."""

from __future__ import annotations

import dataclasses
import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save

from tests.test_outages import random_block
from train.channel_gate import START, main
from train.similarity import expert_distances
from wdmoe_env.episodes import load_episodes
from wdmoe_env.observations import Block, Sizes
from wdmoe_env.optimize import cover
from wdmoe_env.physics.latency import BlockLinks, both_ways_s, equal_shares, spectral_efficiency
from wdmoe_env.policies import channel_gate, related
from wdmoe_env.policies.registry import named_rule
from wdmoe_env.policies.similar import SHIPPED_SIZES, SiftRule, read_distances, sift_rule

PROBS = np.array([[[0.6, 0.2, 0.15, 0.05], [0.3, 0.28, 0.22, 0.2]]])


def small_block(slow: int = 3) -> Block:
    """Two tokens, four experts on as many devices of one radio, one of which computes ten times as long."""
    compute_s = np.full((1, 4), 1e-3)
    compute_s[0, slow] = 1e-2
    links = BlockLinks(np.full((1, 2, 4), 1e4), np.array([1e-4]), compute_s, np.eye(4))
    equal = equal_shares(1, 4)
    efficiency = spectral_efficiency(links.full_band_snr, equal)
    routed = np.sort(PROBS, axis=-1)[..., [-2]] <= PROBS
    unit = both_ways_s(efficiency, links.payload_s, equal)
    return Block(PROBS, routed, np.ones((1, 2), dtype=bool), links, efficiency, unit, np.zeros(1))


def test_top_p_takes_experts_until_their_sum_reaches_p() -> None:
    for probability, numbers in ((0.0, (1, 1)), (0.6, (1, 3)), (0.8, (2, 3)), (0.81, (3, 4)), (1.0, (4, 4))):
        selection, _ = related.top_p(small_block(), probability)
        assert selection.sum(axis=-1).tolist() == [list(numbers)], probability
    np.testing.assert_array_equal(related.top_p(small_block(), 0.8)[0][0, 0], [True, True, False, False])


def test_adaptive_k_counts_what_the_gate_is_undecided_between() -> None:
    """exp(H) is 2.8853 for (0.6, 0.2, 0.15, 0.05) and 3.9530 for (0.3, 0.28, 0.22, 0.2)."""
    for share, numbers in ((0.0, (1, 1)), (0.5, (1, 2)), (0.6, (2, 2)), (1.0, (3, 4))):
        selection, _ = related.adaptive_k(small_block(), share)
        assert selection.sum(axis=-1).tolist() == [list(numbers)], share


def test_a_slow_device_is_left_out_whole_and_its_tokens_take_the_next() -> None:
    block = small_block(slow=1)
    np.testing.assert_array_equal(related.drop_device(block, 2.0)[0][0], [[True, False, True, False]] * 2)
    np.testing.assert_array_equal(related.drop_device(block, 1e6)[0], block.routed)


def test_the_cheapest_cover_by_hand() -> None:
    """Wanted 0.7 with two experts at most: 0 and 1 (0.8 for 3 + 1), since 1 and 2 have 0.35 alone."""
    found = cover.cheapest_cover(np.array([[3.0, 1.0, 0.5, 0.1]]), PROBS[:, :1], np.array([[0.7]]), np.array([[2]]))
    np.testing.assert_array_equal(found[0, 0], [True, False, True, False])  # 0.75 for 3.5
    out_of_reach = cover.cheapest_cover(np.ones((1, 4)), PROBS[:, :1], np.array([[0.99]]), np.array([[2]]))
    np.testing.assert_array_equal(out_of_reach[0, 0], [True, True, False, False])


def test_branch_and_bound_finds_what_enumeration_finds(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    costs, probs = rng.uniform(0.1, 1.0, (30, 7)), rng.dirichlet(np.full(7, 0.5), (30, 4))
    probs[0, 0, 3:] = 0.0
    wanted, most = rng.uniform(0.1, 0.99, (30, 4)), rng.integers(0, 4, (30, 4))
    listed = cover.cheapest_cover(costs, probs, wanted, most)
    monkeypatch.setattr(cover, "MOST_ENUMERATED", 0)
    searched = cover.cheapest_cover(costs, probs, wanted, most)
    price = [(each * costs[:, None]).sum(axis=-1) for each in (listed, searched)]
    np.testing.assert_allclose(price[0], price[1], rtol=1e-12)
    assert ((listed.sum(axis=-1) <= most) & (listed.any(axis=-1) == (most > 0))).all()


def test_des_has_the_relevance_that_is_asked_for() -> None:
    block = random_block(3, away=0.0)
    everything = random_block(3, away=0.0)
    for relevance in (0.0, 0.6, 1.0):
        selection, _ = related.des(everything, relevance)
        kept = (block.gate_probs * selection).sum(-1)
        least = relevance * (block.gate_probs * block.routed).sum(-1)
        assert (kept >= least * (1 - 1e-9))[block.token_mask & block.usable.any(-1)].all()
        assert (selection.sum(-1) <= block.routed.sum(-1)).all()


DISTANCES = np.array([[[0.0, 2.0, 0.3, 2.0], [2.0, 0.0, 0.1, 2.0], [0.3, 0.1, 0.0, 2.0], [2.0, 2.0, 2.0, 0.0]]])


def test_sift_skips_and_replaces_within_the_bound() -> None:
    """Both tokens are routed to experts 0 and 1, the first with weights 0.75 and 0.25."""
    block, costs = small_block(), np.array([[1.0, 5.0, 2.0, 1.0]])
    chosen = {bound: SiftRule(DISTANCES, bound).select(block, costs)[0, 0].tolist() for bound in (0.0, 0.03, 0.25)}
    assert chosen == {
        0.0: [True, True, False, False],
        0.03: [True, False, True, False],  # expert 2 in place of 1: 0.25 x 0.1 of damage for 3 ms
        0.25: [True, False, False, False],  # expert 1 skipped: 0.25 of damage for 5 ms
    }
    every = [
        (0.75 * d0 + 0.25 * d1, c0 + c1)
        for (d0, c0), (d1, c1) in itertools.product(
            [(DISTANCES[0, 0, f], costs[0, f]) for f in range(4)],
            [*((DISTANCES[0, 1, f], costs[0, f]) for f in range(4)), (1.0, 0.0)],
        )
    ]
    assert min(cost for damage, cost in every if damage <= 0.25) == 1.0


def test_without_distances_experts_are_only_skipped() -> None:
    block = random_block(4, away=0.0)
    selection, _ = SiftRule(None, 0.3)(block)
    assert (selection <= block.routed).all()
    np.testing.assert_array_equal(SiftRule(None, 0.0)(block)[0], block.routed)
    assert named_rule("sift").distances is None
    with pytest.raises(ValueError, match=r"expected distances \(I, E, E\) of at least 0, got an array of \(2, 3\)"):
        SiftRule(np.ones((2, 3)))


def test_the_shipped_distances_are_those_that_the_command_measures() -> None:
    shipped = read_distances()
    assert shipped.shape == (6, 8, 8)
    found = expert_distances(load_episodes("tiny", 32, "train", "cpu", "float32"), 64, 1)
    np.testing.assert_allclose(found, shipped, atol=0.12)
    np.testing.assert_allclose(np.diagonal(found, axis1=1, axis2=2), 0.0, atol=1e-6)
    assert sift_rule(Sizes(4, 8, 8, *SHIPPED_SIZES[::2])).distances is not None


def test_the_gate_by_hand() -> None:
    """Weights of one block: logit of the router 2, radio -1, computing 0, unrouted -1, constant 1.

    The first token's log p - max log p is 0, -1.0986, -1.3863, -2.4849. All radios are alike, so their figure is 0. The
    sums are 1, -1.1972 and, of the third, which the router leaves out, -2.7726; the fourth is no candidate.
    """
    block = small_block()
    weights = np.array([[2.0, -1.0, 0.0, -1.0, 1.0]])
    figures = channel_gate.gate_figures(block)
    np.testing.assert_allclose(figures[0, 0, :, 0], [0.0, -1.0986, -1.3863, -2.4849], atol=1e-4)
    np.testing.assert_allclose(figures[0, 0, :, 1], 0.0, atol=1e-9)
    np.testing.assert_array_equal(figures[0, 0, :, 3], [0, 0, 1, 1])
    for odds, chosen in ((1.0, [1, 0, 0, 0]), (np.exp(-1.2), [1, 1, 0, 0]), (1e9, [1, 0, 0, 0])):
        selection, shares = channel_gate.ChannelGateRule(weights, odds)(block)
        np.testing.assert_array_equal(selection[0, 0], chosen)
        np.testing.assert_allclose(shares.sum(-1), 1.0)
    np.testing.assert_array_equal(channel_gate.ChannelGateRule(weights, 0.0)(block)[0][0, 0], [True, True, True, False])


def test_the_gate_leaves_a_slow_link_for_a_fast_one() -> None:
    """The radio of the first expert takes half as long again as the mean: its figure is 1/2, the others' -1/6."""
    block = small_block()
    unit = np.array([[1.5, 5 / 6, 5 / 6, 5 / 6]])
    block = dataclasses.replace(block, unit_latency_s=1e-3 * unit)
    np.testing.assert_allclose(channel_gate.gate_figures(block)[0, 0, :, 1], [0.5, -1 / 6, -1 / 6, -1 / 6])
    gate = channel_gate.ChannelGateRule(np.array([[1.0, -3.0, 0.0, 0.0, 1.0]]))
    assert gate(block)[0][0, 0].tolist() == [False, True, True, False]


def test_a_trained_gate_knows_its_link_and_a_wrong_one_is_refused(tmp_path: Path) -> None:
    shipped = channel_gate.read_gate()
    assert shipped.shape == (6, len(channel_gate.FIGURES))
    assert (shipped[:, channel_gate.FIGURES.index("radio")] < 0).all()
    card = json.loads(channel_gate.SHIPPED.with_suffix(".json").read_text())
    assert card["figures"] == list(channel_gate.FIGURES)
    other = tmp_path / "other.safetensors"
    other.write_bytes(save({"distances": np.zeros((1, 1))}))
    with pytest.raises(ValueError, match=r"expected weights of a gate in .*, found distances"):
        channel_gate.read_gate(other)
    with pytest.raises(ValueError, match=r"expected finite weights \(I, 5\), got an array of \(6, 2\)"):
        channel_gate.ChannelGateRule(np.ones((6, 2)))
    with pytest.raises(ValueError, match="odds must be"):
        channel_gate.ChannelGateRule(shipped, -1.0)


def test_the_gate_is_trained_by_the_return(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "gate.safetensors"
    main(["--updates", "2", "--batch", "2", "--seed", "3", "--out", str(out)])
    weights = channel_gate.read_gate(out)
    assert weights.shape == (6, 5)
    assert (weights != START).any(axis=0).all()
    assert "block 6: router" in capsys.readouterr().out
    assert json.loads(out.with_suffix(".json").read_text())["arguments"]["updates"] == 2
    with pytest.raises(SystemExit) as ended:
        main(["--updates", "0"])
    assert ended.value.code == 2
    assert "updates must be" in capsys.readouterr().err
