"""The paper's selection rule by hand, and the marginal-price rule against exhaustion and its own promises."""

from __future__ import annotations

import itertools
import re
from dataclasses import replace

import numpy as np
import pytest
from optimize_instances import links_of, routing, spread_out, street_canyon

from wdmoe_env.optimize.bandwidth import min_max_bandwidth
from wdmoe_env.optimize.problem import BlockProblem
from wdmoe_env.optimize.selection import (
    expert_token_latency_s,
    gate_latency_similarity,
    marginal_price_selection,
    paper_selection,
)
from wdmoe_env.physics.latency import (
    BlockLinks,
    Bool,
    Float,
    block_latency_s,
    device_latency_s,
    device_load,
    equal_shares,
    token_latency_s,
    weight_served,
)

WEIGHTS = np.array([[[0.6, 0.4, 0.1], [0.8, 0.2, 0.0], [0.0, 1.0, 0.3], [0.0, 0.0, 0.0]]])
ROUTED = np.array([[[1, 1, 0], [1, 1, 0], [0, 1, 0], [0, 0, 0]]], dtype=bool)
LATENCY_S = np.array([[[1.0, 3.0, 9.0]]])
# (0.6 + 1.2) / sqrt(0.52 * 10) and (0.8 + 0.6) / sqrt(0.68 * 10)
FIRST, SECOND = 1.8 / np.sqrt(5.2), 1.4 / np.sqrt(6.8)


def test_similarity_by_hand() -> None:
    similarity = gate_latency_similarity(WEIGHTS, ROUTED, LATENCY_S)
    np.testing.assert_allclose(similarity, [[FIRST, SECOND, np.inf, np.inf]])


def test_paper_rule_drops_the_least_expert_at_or_below_the_threshold() -> None:
    for threshold, dropped in ((0.0, ()), (0.53, ()), (0.54, (1,)), (FIRST + 1e-12, (0, 1)), (1.0, (0, 1))):
        expected = ROUTED.copy()
        expected[0, list(dropped), 1] = False
        np.testing.assert_array_equal(paper_selection(WEIGHTS, ROUTED, LATENCY_S, threshold), expected)


def test_paper_rule_takes_a_threshold_per_row_and_an_infinite_latency() -> None:
    weights, routed = np.repeat(WEIGHTS, 2, axis=0), np.repeat(ROUTED, 2, axis=0)
    latency_s = np.broadcast_to([1.0, np.inf, 9.0], (2, 4, 3))
    limit = 0.4 / np.sqrt(0.52)
    selection = paper_selection(weights, routed, latency_s, np.array([limit - 1e-9, limit + 1e-9]))
    np.testing.assert_array_equal(selection[:, :2, 1], [[True, False], [False, False]])


def test_one_expert_per_token_is_never_dropped() -> None:
    weights, routed = routing(np.random.default_rng(0), 3, 6, 4, top_k=1)
    np.testing.assert_array_equal(paper_selection(weights, routed, np.ones((3, 1, 4)), 1.0), routed)


def test_expert_latency_is_that_of_its_device() -> None:
    rng = np.random.default_rng(1)
    links = street_canyon(rng, 3, spread_out(6, 4))
    shares = equal_shares(3, 4)
    latency = expert_token_latency_s(links, shares)
    for expert in range(6):
        one = np.zeros((3, 1, 6), dtype=bool)
        one[..., expert] = True
        np.testing.assert_allclose(latency[..., expert], token_latency_s(links, one, shares).sum(axis=-1))


def objective(links: BlockLinks, weights: Float, selection: Bool, price_per_ms: float) -> Float:
    latency = min_max_bandwidth(links, device_load(selection, links)).latency_s
    return weight_served(weights, selection) - 1e3 * price_per_ms * latency


@pytest.mark.parametrize("keep_best", [True, False])
@pytest.mark.parametrize(("experts", "devices", "top_k"), [(8, 8, 2), (8, 3, 4)])
def test_no_single_pair_improves_the_marginal_price_selection(
    experts: int, devices: int, top_k: int, keep_best: bool
) -> None:
    rng = np.random.default_rng(2)
    links = street_canyon(rng, 4, spread_out(experts, devices))
    weights, routed = routing(rng, 4, 6, experts, top_k)
    for price in (0.3, 3.0):
        decision = marginal_price_selection(
            BlockProblem(links, weights, routed, price_per_ms=price), keep_best=keep_best
        )
        selection, shares = decision.selection, decision.shares
        found = objective(links, weights, selection, price)
        latency = block_latency_s(device_latency_s(links, device_load(selection, links), shares))
        np.testing.assert_allclose(weight_served(weights, selection) - 1e3 * price * latency, found)
        assert (found >= objective(links, weights, routed, price)).all()
        best = np.where(routed, weights, -1).argmax(axis=-1)
        for token, expert in itertools.product(range(6), range(experts)):
            flipped = selection.copy()
            flipped[:, token, expert] ^= routed[:, token, expert]
            legal = flipped[:, token].any(axis=-1) & ~(keep_best & (best[:, token] == expert))
            gain = objective(links, weights, flipped, price) - found
            assert (gain[legal] <= 1e-9).all()


def test_marginal_price_keeps_what_it_promises() -> None:
    rng = np.random.default_rng(3)
    links = street_canyon(rng, 50, np.broadcast_to(spread_out(8, 5), (50, 8, 5)))
    weights, routed = routing(rng, 50, 10, 8, 3)
    routed[:, 7:] = False
    routed[0] = False
    previous = np.full(50, np.inf)
    for price in (0.0, 0.5, 2.0, 1e6):
        problem = BlockProblem(links, weights, routed, price_per_ms=np.full(50, price))
        selection = marginal_price_selection(problem).selection
        assert not (selection & ~routed).any()
        np.testing.assert_array_equal(selection.any(axis=-1), routed.any(axis=-1))
        best = np.take_along_axis(selection, np.where(routed, weights, -1).argmax(axis=-1)[..., None], axis=-1)
        np.testing.assert_array_equal(best[..., 0], routed.any(axis=-1))
        served = weight_served(weights, selection)
        assert served.mean() <= previous.mean()
        previous = served
    np.testing.assert_array_equal(selection.sum(axis=-1), routed.any(axis=-1))
    free = marginal_price_selection(BlockProblem(links, weights, routed)).selection
    np.testing.assert_array_equal(free, routed)


def test_candidates_widen_the_choice() -> None:
    """Two tokens on one device; a second, idle device holds an expert of almost equal weight."""
    links = links_of(np.full((1, 2, 2), 100.0), np.full((1, 2), 1e-2))
    weights = np.broadcast_to([0.6, 0.5], (1, 2, 2)).copy()
    routed = np.array([[[True, False], [True, False]]])
    everything = np.ones_like(routed)
    narrow = BlockProblem(links, weights, routed, price_per_ms=1.0)
    assert (marginal_price_selection(narrow, keep_best=False).selection == routed).all()
    wide = marginal_price_selection(replace(narrow, candidates=everything), keep_best=False).selection
    assert (wide & ~routed).any()
    assert objective(links, weights, wide, 1.0) > objective(links, weights, routed, 1.0)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"weights": np.ones((2, 5, 4))}, ValueError, "weights must have shape (2, J, 3), got (2, 5, 4)"),
        ({"weights": np.full((2, 5, 3), np.nan)}, ValueError, "weights must hold finite non-negative numbers"),
        ({"routed": np.ones((2, 5, 3))}, TypeError, "routed must be a boolean array, got dtype float64"),
        ({"routed": np.ones((2, 4, 3), dtype=bool)}, ValueError, "routed must have shape (2, 5, 3), got (2, 4, 3)"),
        ({"price_per_ms": -1.0}, ValueError, "price_per_ms must be finite and non-negative, got -1.0"),
        ({"price_per_ms": np.nan}, ValueError, "price_per_ms must be finite and non-negative"),
        ({"price_per_ms": np.ones(3)}, ValueError, "price_per_ms must be a number or have shape (2,), got (3,)"),
        ({"start": np.zeros((2, 5, 3), dtype=bool)}, ValueError, "start must give every token one or more"),
    ],
)
def test_bad_selection_input_is_one_sentence(change: dict[str, object], error: type[Exception], message: str) -> None:
    links = links_of(np.ones((2, 2, 3)), np.ones((2, 3)))
    arguments = {"weights": np.ones((2, 5, 3)), "routed": np.ones((2, 5, 3), dtype=bool), "price_per_ms": 1.0}
    given = {**arguments, **change}
    start = given.pop("start", None)
    problem = BlockProblem(links, **given)  # type: ignore[arg-type]
    with pytest.raises(error, match=re.escape(message)):
        marginal_price_selection(problem, start)  # type: ignore[arg-type]


def test_bad_threshold_and_placement_are_one_sentence() -> None:
    with pytest.raises(ValueError, match="threshold must be a number"):
        paper_selection(WEIGHTS, ROUTED, LATENCY_S, np.nan)
    links = links_of(np.ones((1, 2, 3)), np.ones((1, 3)), placement=np.ones((3, 3)))
    with pytest.raises(ValueError, match="placement must put every expert on exactly one device"):
        marginal_price_selection(BlockProblem(links, WEIGHTS, ROUTED, price_per_ms=1.0))
