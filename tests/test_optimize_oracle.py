"""The exhaustive oracle against plain enumeration, and the gap of every rule to it."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from optimize_instances import reading, routing, spread_out, street_canyon

from wdmoe_env.optimize.bandwidth import min_max_bandwidth
from wdmoe_env.optimize.joint import fractional_program, joint_optimize
from wdmoe_env.optimize.oracle import exhaustive_oracle
from wdmoe_env.optimize.problem import BlockProblem
from wdmoe_env.optimize.selection import expert_token_latency_s, marginal_price_selection
from wdmoe_env.physics.latency import (
    BlockLinks,
    Bool,
    Float,
    block_latency_s,
    device_latency_s,
    device_load,
    equal_shares,
    weight_served,
    wlr_per_ms,
)

# Tokens, experts, devices, top-k.
SIZES = [(5, 4, 4, 2), (5, 4, 2, 2), (5, 4, 4, 3), (4, 3, 2, 2)]


def instances(
    seed: int, batch: int, tokens: int, experts: int, devices: int, top_k: int
) -> tuple[BlockLinks, Float, Bool]:
    rng = np.random.default_rng(seed)
    return street_canyon(rng, batch, spread_out(experts, devices)), *routing(rng, batch, tokens, experts, top_k)


def wlr_of(links: BlockLinks, weights: Float, selection: Bool, shares: Float | None = None) -> Float:
    load = device_load(selection, links)
    shares = min_max_bandwidth(links, load).shares if shares is None else shares
    latency = block_latency_s(device_latency_s(links, load, shares))
    return wlr_per_ms(weight_served(weights, selection), latency)


@pytest.mark.parametrize("everything", [False, True])
@pytest.mark.parametrize(("devices", "roofline"), [(3, False), (2, False), (2, True)])
def test_equals_plain_enumeration(devices: int, roofline: bool, everything: bool) -> None:
    links, weights, routed = instances(0, 3, 3, 3, devices, 2)
    links = reading(np.random.default_rng(1), links) if roofline else links
    candidates = np.ones_like(routed) if everything else routed
    oracle = exhaustive_oracle(BlockProblem(links, weights, routed, candidates))
    every = np.array(list(itertools.product([False, True], repeat=9))).reshape(-1, 3, 3)
    every = every[every.any(axis=-1).all(axis=-1)]
    for n in range(3):
        legal = every[(every <= candidates[n]).all(axis=(1, 2))]
        copies = BlockLinks(
            np.repeat(links.full_band_snr[n : n + 1], len(legal), axis=0),
            np.repeat(links.payload_s[n], len(legal)),
            np.repeat(links.compute_s[n : n + 1], len(legal), axis=0),
            links.placement,
            None if links.weights_s is None else np.repeat(links.weights_s[n : n + 1], len(legal), axis=0),
        )
        best = wlr_of(copies, weights[n : n + 1], legal).max()
        np.testing.assert_allclose(oracle.wlr_per_ms[n], best, rtol=1e-12)
    np.testing.assert_allclose(wlr_of(links, weights, oracle.selection, oracle.shares), oracle.wlr_per_ms)


def rules(links: BlockLinks, weights: Float, routed: Bool) -> Iterator[tuple[str, Float]]:
    """Name and WLR of every rule that selects among the routed experts."""
    problem = BlockProblem(links, weights, routed)
    uniform = equal_shares(*links.compute_s.shape)
    yield "vanilla", wlr_of(links, weights, routed, uniform)
    yield "vanilla, optimal shares", wlr_of(links, weights, routed)
    experts = np.arange(weights.shape[-1])
    yield "top-1", wlr_of(links, weights, experts == np.where(routed, weights, -1).argmax(axis=-1)[..., None])
    latency = np.where(routed, expert_token_latency_s(links, uniform, routed), np.inf)
    yield "greedy", wlr_of(links, weights, experts == latency.argmin(axis=-1)[..., None])
    for threshold in (0.6, 0.7, 0.8, 0.9, 1.0):
        yield f"wdmoe:{threshold}", joint_optimize(problem, threshold).wlr_per_ms
    for gain in (0.02, 0.005, 0.0):
        solution = joint_optimize(problem, stopping_gain=gain)
        yield f"wdmoe, stopping gain {gain}", solution.wlr_per_ms
    for price in (0.5, 2.0):
        decision = marginal_price_selection(replace(problem, price_per_ms=price))
        yield f"marginal-price:{price}", wlr_of(links, weights, decision.selection, decision.shares)
    yield "fractional, best kept", fractional_program(problem, keep_best=True).wlr_per_ms
    yield "fractional", fractional_program(problem).wlr_per_ms


def report(name: str, gap: Float) -> None:
    print(f"  {name:28s} mean {gap.mean():7.3%}  worst {gap.max():7.3%}  optimal in {(gap < 1e-9).mean():6.1%}")


def documented_gaps(size: tuple[int, int, int, int], roofline: bool) -> dict[str, tuple[float, float]]:
    """Mean and worst gap in % that ``docs/optimizer.md`` has for instances of a size, by rule."""
    text = (Path(__file__).parents[1] / "docs" / "optimizer.md").read_text(encoding="utf-8")
    head = "| mean gap in %, weights read" if roofline else "| mean gap in % (worst)"
    table = text[text.index(head) :].split("\n\n")[0]
    header, _, *rows = ([cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines())
    column = header.index("J={} E={} U={} top-{}".format(*size))
    cells = {row[0]: re.findall(r"[\d.]+", row[column]) for row in rows}
    return {name: (float(mean), float(worst)) for name, (mean, worst) in cells.items()}


@pytest.mark.parametrize("roofline", [False, True])
@pytest.mark.parametrize("size", SIZES)
def test_no_rule_beats_the_oracle(size: tuple[int, int, int, int], roofline: bool) -> None:
    links, weights, routed = instances(1, 300, *size)
    links = reading(np.random.default_rng(1), links) if roofline else links
    oracle = exhaustive_oracle(BlockProblem(links, weights, routed))
    documented = documented_gaps(size, roofline)
    print("\nGap to the oracle in WLR; {} tokens, {} experts, {} devices, top-{}; 300 instances".format(*size))
    print("weights are read once a block" if roofline else "equation (5)")
    for name, wlr in rules(links, weights, routed):
        gap = 1.0 - wlr / oracle.wlr_per_ms
        report(name, gap)
        mean, worst = documented.pop(name)
        assert (100 * gap.mean(), 100 * gap.max()) == (pytest.approx(mean, abs=0.01), pytest.approx(worst, abs=0.1)), (
            name
        )
        assert gap.min() > -1e-11, name
    assert not documented
    # The fractional program comes last.
    assert gap.mean() < 0.01
    assert (gap < 1e-9).mean() > 0.75


def test_fractional_program_over_all_experts() -> None:
    size = SIZES[0]
    links, weights, routed = instances(2, 100, *size)
    everything = np.ones_like(routed)
    oracle = exhaustive_oracle(BlockProblem(links, weights, routed, everything))
    assert (oracle.wlr_per_ms >= exhaustive_oracle(BlockProblem(links, weights, routed)).wlr_per_ms * (1 - 1e-12)).all()
    gap = 1.0 - fractional_program(BlockProblem(links, weights, routed, everything)).wlr_per_ms / oracle.wlr_per_ms
    print("\nGap to the oracle over all experts; {} tokens, {} experts, {} devices; 100 instances".format(*size))
    report("fractional", gap)
    assert gap.min() > -1e-11
    assert gap.mean() < 0.01


def test_padding_and_least_share() -> None:
    links, weights, routed = instances(3, 3, *SIZES[0])
    routed[:, 3:] = False
    routed[2] = False
    oracle = exhaustive_oracle(BlockProblem(links, weights, routed, np.ones_like(routed), min_share=0.1))
    np.testing.assert_array_equal(oracle.selection.any(axis=-1), routed.any(axis=-1))
    loaded = device_load(oracle.selection, links).tokens > 0
    assert (oracle.shares[loaded] >= 0.1).all()
    np.testing.assert_array_equal(oracle.wlr_per_ms > 0, [True, True, False])


def test_too_large_an_instance_is_one_sentence() -> None:
    links, weights, routed = instances(4, 1, 12, 4, 4, 4)
    with pytest.raises(ValueError, match=r"at most 2000000 selections, got an instance with 129746337890625$"):
        exhaustive_oracle(BlockProblem(links, weights, routed))
