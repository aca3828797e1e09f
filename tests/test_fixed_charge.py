"""Rules under the roofline: the price of a pair, moves of whole experts, and who is away at the same time."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from tests.optimize_instances import links_of, reading, routing, spread_out, street_canyon
from tests.test_outages import random_block
from wdmoe_env.actions import ActionCodec
from wdmoe_env.config import EnvConfig
from wdmoe_env.observations import Block, Sizes, encode_observation
from wdmoe_env.optimize.bandwidth import min_max_bandwidth
from wdmoe_env.optimize.pricing import device_prices, pair_seconds
from wdmoe_env.optimize.problem import BlockProblem
from wdmoe_env.optimize.selection import marginal_price_selection
from wdmoe_env.physics.latency import BlockLinks, Load, device_load, reading_s, weight_served
from wdmoe_env.policies import make_policy
from wdmoe_env.policies.pairs import Pairs
from wdmoe_env.policies.registry import ENTRIES
from wdmoe_env.relaxed import Draw, relaxed_block
from wdmoe_env.simulator import Simulator

# One expert whose token takes 1 s to compute and whose weights 3 s to read: f(n) = 0, 3, 3, 3, 4, 5 s for n = 0 to 5.
ONE = BlockLinks([[[1.0], [1.0]]], [1.0], [[1.0]], np.eye(1), [[3.0]])


def test_the_last_pair_of_an_expert_carries_its_weights() -> None:
    last, further = zip(*(pair_seconds(ONE, np.array([[float(n)]])) for n in range(5)), strict=True)
    assert [value.item() for value in last] == [0.0, 3.0, 0.0, 0.0, 1.0]
    assert [value.item() for value in further] == [3.0, 0.0, 0.0, 1.0, 1.0]


def test_a_search_empties_an_expert_where_no_single_pair_pays() -> None:
    """Four tokens, of which three have a light second expert on a board whose memory is slow.

    Reading takes 8 s there and a token 0.01 s, so each of the three alone saves next to nothing, and all three 8 s.
    """
    links = dataclasses.replace(
        links_of(np.full((1, 2, 2), 1e6), np.full((1, 2), 1e-2)), weights_s=np.array([[1e-2, 8.0]])
    )
    weights = np.array([[[0.8, 0.2]] * 3 + [[1.0, 0.0]]])
    routed = weights > 0
    problem = BlockProblem(links, weights, routed, price_per_ms=1e-3)
    decision = marginal_price_selection(problem, start=routed)
    np.testing.assert_array_equal(decision.selection[0], [[True, False]] * 4)
    start = problem.with_optimal_shares(routed)
    one_less = routed.copy()
    one_less[0, 0, 1] = False
    single = problem.with_optimal_shares(one_less)
    assert 1.0 * (start.latency_s - single.latency_s).item() < 0.2 < 7.0 < (start.latency_s - decision.latency_s).item()


def test_a_search_never_ends_below_where_it_began() -> None:
    rng = np.random.default_rng(0)
    for experts, devices in ((6, 6), (6, 3)):
        links = reading(rng, street_canyon(rng, 200, spread_out(experts, devices)))
        weights, routed = routing(rng, 200, 8, experts, 2)
        problem = BlockProblem(links, weights, routed, price_per_ms=rng.uniform(0.1, 3.0, 200)).checked()
        for keep_best in (True, False):
            start, end = problem.with_optimal_shares(routed), marginal_price_selection(problem, keep_best=keep_best)
            value = [
                weight_served(weights, one.selection) - 1e3 * problem.price * one.latency_s for one in (start, end)
            ]
            assert (value[1] >= value[0] - 1e-9).all()
            assert (end.selection <= routed).all()
            assert end.selection.any(axis=-1).all()


@pytest.mark.parametrize("name", [name for name in ENTRIES if name != "marginal-price-bits"])
def test_no_rule_chooses_what_is_away_where_weights_are_read(name: str) -> None:
    """1,000 random blocks with devices away and fixed charges."""
    block = random_block(1, batch=1000, tokens=6, experts=8, devices=4)
    block = dataclasses.replace(block, links=reading(np.random.default_rng(2), block.links))
    sizes = Sizes(6, 8, 4, 6, 128)
    codec = ActionCodec(sizes, "joint", "box")
    action, _ = make_policy(name, _Env(codec)).predict(encode_observation(block))
    selection = codec.decode(action, (1000,))["experts"]
    assert not (selection & ~block.usable).any()
    np.testing.assert_array_equal(selection.any(axis=-1), block.usable.any(axis=-1))


@dataclasses.dataclass
class _Env:
    codec: ActionCodec


def test_the_price_of_a_pair_is_the_difference_that_it_makes() -> None:
    """Its gradient is the slope of the optimum by the device's time, times what the pair changes of that time."""
    simulator = Simulator(EnvConfig(model="micro", num_tokens=12, devices="boards", deployment={"weight_bits": 1}))
    block = simulator.start([np.random.default_rng(seed) for seed in range(3)]).block
    probs = torch.from_numpy(block.routed).float().requires_grad_()
    draw = Draw(probs.detach() > 0, probs, probs.detach() > 0)
    (gradient,) = torch.autograd.grad(relaxed_block(block, draw, 1e-3).latency_ms.sum(), probs)
    links, load = block.links, device_load(block.routed, block.links)
    tokens = block.routed.sum(1)
    time_s = [n * links.compute_s + reading_s(links, n.astype(float)) for n in (tokens, np.maximum(tokens - 1, 0))]
    lost_s = time_s[0] - time_s[1]  # every device holds one expert here
    assert ((lost_s == 0) & (load.tokens > 1)).any()
    for device in range(load.tokens.shape[1]):
        here = np.eye(load.tokens.shape[1])[device] * (load.tokens > 0)
        slopes = []
        for of_token, of_time in ((1e-4, 0.0), (0.0, 1e-4 * links.weights_s)):
            ends = [
                min_max_bandwidth(
                    links,
                    Load(load.tokens + sign * of_token * here, load.experts, load.reading_s + sign * of_time * here),
                ).latency_s
                for sign in (1, 0)
            ]
            slopes.append(1e3 * (ends[0] - ends[1]) / 1e-4)
        expected = slopes[0] + slopes[1] * (lost_s / links.weights_s)[:, device]
        loaded = load.tokens[:, device] > 0
        for row in np.flatnonzero(loaded):
            token = np.flatnonzero(block.routed[row, :, device])[0]
            assert gradient[row, token, device].item() == pytest.approx(expected[row], rel=2e-2, abs=2e-3)


@pytest.mark.parametrize("devices", ["boards", "paper"])
@pytest.mark.parametrize("together", [False, True])
def test_a_difference_is_that_of_two_optima(devices: str, together: bool) -> None:
    """Every pair is left out, or added, and the shares are solved again; with two experts on a device and with one."""
    rng = np.random.default_rng(3)
    simulator = Simulator(EnvConfig(model="micro", num_tokens=6, devices=devices))
    block = simulator.start([np.random.default_rng(seed) for seed in range(2)]).block
    if together:
        experts, count = block.links.placement.shape[-2:]
        placement = np.eye(count)[np.arange(experts) // 2]
        block = dataclasses.replace(block, links=dataclasses.replace(block.links, placement=placement))
    used = block.routed & (rng.random(block.routed.shape) < 0.7)
    used[~used.any(-1)] = block.routed[~used.any(-1)]
    candidates = torch.ones(used.shape, dtype=torch.bool)
    probs = torch.full(used.shape, 0.5).requires_grad_()
    draw = Draw(torch.from_numpy(used), probs, candidates)
    (gradient,) = torch.autograd.grad(relaxed_block(block, draw, 1e-3, "difference").latency_ms.sum(), probs)

    def latency_ms(selection: np.ndarray) -> float:
        links = block.links.rows(slice(row, row + 1))
        return 1e3 * min_max_bandwidth(links, device_load(selection[row][None], links), 1e-3).latency_s.item()

    for row, token, expert in np.argwhere(np.ones(used.shape)):
        other = used.copy()
        other[row, token, expert] ^= True
        if other[row, token].any():  # a token that loses its only expert is given its best one
            longer = (
                latency_ms(used) - latency_ms(other)
                if used[row, token, expert]
                else latency_ms(other) - latency_ms(used)
            )
            assert gradient[row, token, expert].item() == pytest.approx(longer, rel=1e-4, abs=1e-5)


def test_what_a_soft_draft_says_of_an_experts_time() -> None:
    """By hand: two tokens use ONE with chances 0.5 and 0.2, so that it is used at all with 1 - 0.5 x 0.8 = 0.6."""
    probs = np.ones((1, 2, 1))
    block = Block(probs, probs > 0, np.ones((1, 2), dtype=bool), ONE, np.ones((1, 2, 1)), np.ones((1, 1)), np.zeros(1))
    pairs = Pairs.of(block, probs > 0)
    load = pairs.load(np.array([0.5, 0.2]))
    # Computing 0.7 tokens takes 0.7 s, reading 0.6 x 3 s = 1.8 s.
    np.testing.assert_allclose([load.experts.item(), load.reading_s.item()], [0.7, 1.1])
    # A bit more of a pair brings the weights where the other one does not.
    np.testing.assert_allclose(pairs.seconds(np.array([0.5, 0.2])), [0.8 * 3.0, 0.5 * 3.0])
    np.testing.assert_allclose(pairs.seconds(np.array([1.0, 1.0])), [0.0, 0.0], atol=1e-9)
    prices = device_prices(
        ONE, device_load(probs > 0, ONE), min_max_bandwidth(ONE, device_load(probs > 0, ONE)), np.ones(1), 0.0
    )
    np.testing.assert_allclose(prices.second, [[1e3]])
