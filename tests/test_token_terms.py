"""Terms for credit per token: the divergence of the predictions, the reference by token, and the price of a pair."""

from __future__ import annotations

import copy

import gymnasium as gym
import numpy as np
import pytest
import torch
from torch.nn import functional

from wdmoe_env.optimize.bandwidth import solve_min_max
from wdmoe_env.optimize.pricing import DevicePrices, pair_prices, token_prices
from wdmoe_env.own_predictions import OwnPredictions
from wdmoe_env.physics.latency import BlockLinks, Load

MICRO = {"model": "micro", "num_tokens": 8}
TERMS = ["pair_price_ms", "token_divergence", "divergence", "reference_token_nll"]


def make(env_id="WDMoE-Selection-v0", **settings):
    return gym.make(f"wdmoe_env:{env_id}", **MICRO | settings).unwrapped


def play(env, choose, seed=3):
    """Info of every block under a choice of experts from gate probabilities and own routing (J, E)."""
    observation, _ = env.reset(seed=seed)
    infos, rewards, ended = [], [], False
    while not ended:
        action = env.encode_action(choose(observation["gate_probs"], observation["routed"] > 0.5))
        observation, reward, ended, _, info = env.step(action)
        infos.append(info)
        rewards.append(reward)
    return infos, rewards


def best(probs, routed):
    return np.where(routed, probs, -1).argmax(-1)[:, None] == np.arange(probs.shape[-1])


def own(probs, routed):
    return routed


def test_divergence_is_that_of_whole_logits():
    env = make(token_terms=True)
    infos, _ = play(env, best)
    source, window = env.simulator.source, np.array([env._rollout.windows[0]])
    token_ids, mask, _ = source.tokens(window)
    selections = iter([torch.from_numpy(info["selection"]) for info in infos])
    with torch.no_grad():
        logits = source.model.logits_under(lambda block: next(selections), token_ids, mask)
        expected = functional.kl_div(
            logits.log_softmax(-1),
            source.model.own_logits(token_ids, mask).log_softmax(-1),
            log_target=True,
            reduction="none",
        ).sum(-1)
    terms = infos[-1]["reward_terms"]
    assert expected.min() > 1e-6
    np.testing.assert_allclose(terms["token_divergence"], expected[0], rtol=1e-3, atol=1e-7)
    assert terms["divergence"] == pytest.approx(terms["token_divergence"].mean())
    for info in infos[:-1]:
        assert not info["reward_terms"]["token_divergence"].any()
        assert not info["reward_terms"]["reference_token_nll"].any()


def test_the_own_routing_diverges_from_nothing():
    infos, _ = play(make(token_terms=True), own)
    terms = infos[-1]["reward_terms"]
    np.testing.assert_allclose(terms["token_divergence"], 0.0, atol=1e-6)
    np.testing.assert_allclose(terms["reference_token_nll"], infos[-1]["token_nll"], atol=1e-5)


def test_the_reward_weighs_the_divergence():
    infos, rewards = play(make(reward="latency_divergence", quality_weight=3.0), best)
    terms = infos[-1]["reward_terms"]
    assert terms["divergence"] > 0
    assert rewards[-1] == pytest.approx(-terms["latency_ratio"] - 3.0 * terms["divergence"])
    assert rewards[0] == pytest.approx(-infos[0]["reward_terms"]["latency_ratio"])


def test_nothing_is_worked_out_unasked():
    env = make(reward="latency_quality")
    infos, _ = play(env, best)
    assert not set(TERMS) & (infos[-1]["reward_terms"].keys() | infos[-1].keys())
    with pytest.raises(TypeError, match="token_terms must be a bool, got 'yes'"):
        make(token_terms="yes")


@pytest.mark.parametrize("env_id", ["WDMoE-Selection-v0", "WDMoE-v0"])
def test_a_price_is_the_slope_of_the_optimal_latency(env_id):
    env = make(env_id, token_terms=True)
    observation, _ = env.reset(seed=1)
    routed = observation["routed"] > 0.5
    links = env._rollout.block.links
    shares = () if env_id == "WDMoE-Selection-v0" else (np.arange(1.0, 9.0),)  # not those that are optimal
    info = env.step(env.encode_action(routed, *shares))[4]
    counts = (routed @ links.placement).sum(0)[None]
    load = Load(counts, counts)  # one expert a device, so that pairs are tokens
    step = 1e-4
    for token, expert in ((0, routed[0].argmax()), (5, routed[5].argmax())):
        there = links.placement[expert] * step
        up, down = (
            solve_min_max(links, Load(load.tokens + sign * there, load.experts + sign * there), env.config.min_share)
            for sign in (1, -1)
        )
        slope_ms = 1e3 * (up.latency_s - down.latency_s)[0] / (2 * step)
        assert info["reward_terms"]["pair_price_ms"][token, expert] == pytest.approx(slope_ms, rel=1e-3)


def test_a_token_is_sent_once_to_a_device():
    prices = DevicePrices(np.array([[10.0, 20.0]]), np.array([[1.0, 2.0]]), np.zeros((1, 2)))
    placement = np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    selection = np.array([[[True, False, False], [True, True, False], [False, False, True]]])
    expected = [[11.0, 1.0, 22.0], [1.0, 1.0, 22.0], [11.0, 11.0, 22.0]]
    links = BlockLinks(np.ones((1, 2, 2)), np.ones(1), np.ones((1, 2)), placement)
    np.testing.assert_array_equal(pair_prices(prices, selection, links)[0], expected)
    np.testing.assert_array_equal(token_prices(prices, selection, links)[0], [11.0, 12.0, 22.0])


def test_batch_copy_and_single_agree():
    settings = {**MICRO, "token_terms": True, "decision": "selection"}
    batch = gym.make_vec("wdmoe_env:WDMoE-Selection-v0", num_envs=3, autoreset_mode="DISABLED", **settings)
    observation, _ = batch.reset(seed=3)
    single, _ = play(make(token_terms=True), best)
    ended = np.zeros(3, dtype=bool)
    while not ended.all():
        chosen = np.stack(
            [best(*pair) for pair in zip(observation["gate_probs"], observation["routed"] > 0, strict=True)]
        )
        again = copy.deepcopy(batch)
        observation, _, ended, _, info = batch.step(batch.unwrapped.encode_action(chosen))
        copied = again.step(again.unwrapped.encode_action(chosen))[4]
    for name in TERMS:
        np.testing.assert_allclose(
            info["reward_terms"][name][0], single[-1]["reward_terms"][name], rtol=1e-3, atol=1e-6
        )
        np.testing.assert_allclose(copied["reward_terms"][name], info["reward_terms"][name], rtol=1e-3, atol=1e-6)


def test_what_is_kept_is_bounded():
    source = make().simulator.source
    one = OwnPredictions(source.model, source.tokens)
    rows = one.rows(np.arange(6))
    assert rows.shape == (6, 8, source.model.hidden_size)  # hidden states, not logits
    assert one.kept_bytes == rows.nbytes
    few = OwnPredictions(source.model, source.tokens, most_bytes=2 * rows[0].nbytes)
    for windows in ([0, 1, 2, 3, 4, 5], [5, 0, 5]):
        torch.testing.assert_close(few.rows(np.array(windows)), rows[windows])
        assert few.kept_bytes == 2 * rows[0].nbytes
