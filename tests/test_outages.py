"""Outages: the Markov chain, what takes the place of an expert that is away, and rules that never send it a token."""

from __future__ import annotations

import copy
import dataclasses
import math
import pickle
from types import SimpleNamespace

import gymnasium as gym
import numpy as np
import pytest
import torch

from tests.optimize_instances import PAYLOAD_S, routing, spread_out, street_canyon
from wdmoe_env.actions import ActionCodec, settled_plan
from wdmoe_env.config import ChannelConfig, DeviceConfig
from wdmoe_env.observations import Block, Sizes, decode_observation, encode_observation
from wdmoe_env.optimize.bandwidth import min_max_bandwidth
from wdmoe_env.optimize.joint import fractional_program
from wdmoe_env.optimize.problem import BlockProblem
from wdmoe_env.physics import latency
from wdmoe_env.physics.channel import Channel
from wdmoe_env.physics.outages import later_availability, next_best
from wdmoe_env.policies import make_policy
from wdmoe_env.policies.registry import ENTRIES, trained_names

OFTEN = {"outage_mean_s": 0.05, "uptime_mean_s": 0.1}
"""A device is away for a third of the time; within the 20 ms of a block a quarter of what was known is lost."""


def random_block(seed, batch=64, tokens=12, experts=8, devices=4, away=0.4):
    """Blocks of a default deployment, some of whose devices are away; of the first block all of them."""
    rng = np.random.default_rng(seed)
    probs = rng.dirichlet(np.ones(experts), (batch, tokens))
    mask = rng.random((batch, tokens)) < 0.9
    mask[:, 0] = True
    probs[~mask] = 0.0
    links = street_canyon(rng, batch, spread_out(experts, devices))
    equal = latency.equal_shares(batch, devices)
    efficiency = latency.spectral_efficiency(links.full_band_snr, equal)
    available = rng.random((batch, devices)) >= away
    available[0] = False
    routed = (probs >= np.sort(probs, axis=-1)[..., [-2]]) & mask[..., None]
    block = Block(
        probs, routed, mask, links, efficiency, latency.both_ways_s(efficiency, links.payload_s, equal),
        index=np.full(batch, 0.5), hidden_states=rng.normal(size=(batch, tokens, 128)).astype(np.float32),
        available=available,
    )  # fmt: skip
    return dataclasses.replace(block, routed=next_best(routed, probs, block.present)[0])


def test_the_chain_forgets_as_its_mean_times_say():
    """By hand: u = 0.1 s, a = 0.05 s: p = 2/3, and after 20 ms r = exp(-0.02 (10 + 20)) = exp(-0.6) = 0.548812."""
    devices = DeviceConfig(count=2, **OFTEN)
    stays, comes = 2 / 3 + 0.548812 / 3, 2 / 3 * (1 - 0.548812)
    for chance, before in ((2 / 3, None), (stays, [[True, True]]), (comes, [[False, False]])):
        uniforms = np.array([[chance - 1e-5, chance + 1e-5]])
        before = None if before is None else np.array(before)
        assert later_availability(devices, before, 0.02, uniforms).tolist() == [[True, False]]


def test_outages_of_a_channel_have_these_frequencies():
    devices = DeviceConfig(count=8, **OFTEN)
    generators = [np.random.default_rng(seed) for seed in range(2000)]
    there = Channel(ChannelConfig(), devices, 6).sample(generators).available
    assert there.shape == (6, 2000, 8)
    r = math.exp(-0.6)
    assert there.mean() == pytest.approx(2 / 3, abs=0.01)
    assert there[1:][there[:-1]].mean() == pytest.approx(2 / 3 + r / 3, abs=0.01)
    assert there[1:][~there[:-1]].mean() == pytest.approx(2 / 3 * (1 - r), abs=0.01)
    assert np.corrcoef(there[0].ravel(), there[3].ravel())[0, 1] == pytest.approx(r**3, abs=0.04)


def test_outages_move_nothing_else():
    """The same channel with them and without, in the next episode of the generator too, and over several passes."""
    often, never = (Channel(ChannelConfig(), DeviceConfig(**keywords), 3) for keywords in (OFTEN, {}))
    one, other, third = (np.random.default_rng(5) for _ in range(3))
    whole = often.longer().sample([third])
    for episode in range(2):
        with_outages, without = often.sample([one]), never.sample([other])
        np.testing.assert_array_equal(with_outages.gain, without.gain)
        assert without.available is None
        if not episode:
            np.testing.assert_array_equal(whole.of_pass(0, 3).available, with_outages.available)
            np.testing.assert_array_equal(whole.of_pass(1, 3).available, whole.available[3:6])
    assert not (whole.available == whole.available[0]).all()


def test_the_next_best_takes_the_place_of_what_is_away():
    probs = np.array([[[0.4, 0.3, 0.2, 0.1], [0.1, 0.2, 0.3, 0.4], [0.4, 0.3, 0.2, 0.1]]])
    chosen = np.array([[[1, 1, 0, 0], [0, 0, 1, 1], [0, 0, 0, 1]]], dtype=bool)
    mended, replaced = next_best(chosen, probs, np.array([[False, True, True, False]]))
    assert mended.astype(int).tolist() == [[[0, 1, 1, 0], [0, 1, 1, 0], [0, 1, 0, 0]]]
    assert replaced.tolist() == [3]
    mended, replaced = next_best(chosen, probs, np.array([[False, False, True, False]]))
    assert mended.astype(int).tolist() == [[[0, 0, 1, 0]] * 3]
    assert replaced.tolist() == [4]
    nothing, replaced = next_best(chosen, probs, np.zeros((1, 4), dtype=bool))
    assert not nothing.any()
    assert replaced.tolist() == [5]


def test_an_action_is_settled_among_those_that_are_there():
    block = random_block(0)
    everything = np.ones_like(block.routed)
    none = np.zeros_like(block.routed)
    for wanted in (block.routed, everything, none, np.random.default_rng(1).random(block.routed.shape) < 0.3):
        plan = settled_plan(block, {"experts": wanted}, min_share=1e-3)
        assert not (plan.selection & ~block.usable).any()
        some = block.available.any(axis=-1)
        assert (plan.selection.any(axis=-1) == (block.token_mask & some[:, None])).all()
        assert (plan.load.tokens[~block.available] == 0).all()
        np.testing.assert_array_equal(plan.unserved_tokens, np.where(some, 0, block.token_mask.sum(axis=-1)))
    assert settled_plan(block, {}, min_share=1e-3).replaced_pairs.sum() == 0
    plan = settled_plan(block, {"experts": none}, min_share=1e-3)
    best = np.where(block.usable, block.gate_probs, -1.0).argmax(axis=-1)
    assert (plan.selection.argmax(axis=-1) == best)[plan.selection.any(axis=-1)].all()


@pytest.mark.parametrize("name", [name for name in (*ENTRIES, *trained_names()) if name != "marginal-price-bits"])
def test_no_policy_sends_a_token_to_a_device_that_is_away(name):
    devices = 8 if name == "serve-paper-price" else 4  # it is for the number that it learned with
    for seed, away in ((1, 0.2), (2, 0.6)):
        block = random_block(seed, devices=devices, away=away)
        sizes = Sizes(12, 8, devices, 6, 128)  # those of the model of the policies that ship
        codec = ActionCodec(sizes, "joint", "dict")
        policy = make_policy(name, SimpleNamespace(codec=codec))
        state, queue = None, {"queue": np.ones((64, 4)), "row_phase": np.zeros((64, 12))}  # which some look at
        for _ in range(2):  # a rule with a memory decides by it from the second block on
            actions, state = policy.predict(encode_observation(block) | queue, state=state)
            chosen = codec.decode(actions, (64,))
            selection, shares = chosen["experts"], chosen["bandwidth"]
            assert not (selection & ~block.usable).any()
            assert (selection.any(axis=-1) == (block.token_mask & block.available.any(axis=-1, keepdims=True))).all()
            np.testing.assert_allclose(shares.sum(axis=-1), 1.0)


def test_the_rule_that_decides_bits_sends_no_token_there_either(micro):
    env = gym.make("wdmoe_env:WDMoE-Precision-v0", **micro, devices={"outage_mean_s": 60.0}).unwrapped
    seen, steps = run(env, seed=1, policy="marginal-price-bits")
    assert 0 < seen[0]["availability"].sum() < 8
    assert all(info["replaced_pairs"] == 0 and info["repaired_tokens"] == 0 for _, info in steps)


def test_the_observation_says_who_is_there_and_comes_back():
    block = random_block(3)
    seen = decode_observation(encode_observation(block))
    np.testing.assert_array_equal(seen.available, block.available)
    np.testing.assert_array_equal(seen.usable, block.usable)
    observation = encode_observation(dataclasses.replace(block, available=None))
    assert "availability" not in observation
    assert decode_observation(observation).available is None


@pytest.mark.parametrize("charge", [False, True])
def test_devices_that_are_away_are_as_if_they_were_not_there(charge):
    """1,000 blocks: shares, latency and ratio of the optimizers are those of the problem without these devices.

    With what reading weights takes too, a fixed charge of each expert that is used.
    """
    rng = np.random.default_rng(4 + charge)
    batch, here = 500, np.array([0, 2, 3])
    radio = street_canyon(rng, batch, spread_out(4, 4))
    weights_s = rng.uniform(0.1, 3.0, (batch, 4)) * radio.compute_s * 8 if charge else None
    links = dataclasses.replace(radio, weights_s=weights_s)
    weights, routed = routing(rng, batch, tokens=8, experts=4, top_k=2)
    there = np.zeros((batch, 4), dtype=bool)
    there[:, here] = True
    routed, _ = next_best(routed, weights, there)
    few = latency.BlockLinks(
        links.full_band_snr[..., here],
        np.full(batch, PAYLOAD_S),
        links.compute_s[:, here],
        np.eye(3),
        None if weights_s is None else weights_s[:, here],
    )
    load = latency.device_load(routed, links)
    whole = min_max_bandwidth(links, load)
    assert (whole.shares[:, 1] == 0).all()
    assert (load.tokens[:, 1] == 0).all()
    part = min_max_bandwidth(few, latency.device_load(routed[..., here], few))
    np.testing.assert_allclose(whole.latency_s, part.latency_s, rtol=1e-12)
    np.testing.assert_allclose(whole.shares[:, here], part.shares, rtol=1e-9)
    one = fractional_program(BlockProblem(links, weights, routed))
    other = fractional_program(BlockProblem(few, weights[..., here], routed[..., here]))
    np.testing.assert_allclose(one.wlr_per_ms, other.wlr_per_ms, rtol=1e-9)


def run(env, seed, policy="vanilla"):
    """Observations, rewards and infos of an episode."""
    seen, steps, ended = [env.reset(seed=seed)[0]], [], False
    acting = make_policy(policy, env)
    while not ended:
        action, _ = acting.predict(seen[-1])
        observation, reward, ended, _, info = env.step(action)
        seen.append(observation)
        steps.append((reward, info))
    return seen, steps


def test_an_episode_runs_the_own_routing_among_those_that_are_there(micro):
    """Against passes of the model whose gates choose by hand among the experts that are there."""
    env = gym.make("wdmoe_env:WDMoE-v0", **micro, devices=OFTEN | {"outage_mean_s": 0.1}).unwrapped
    assert env.observation_space["availability"].shape == (8,)
    seen, steps = run(env, seed=3)
    assert all(env.observation_space.contains(observation) for observation in seen)
    windows, trace = env.simulator.draw([gym.utils.seeding.np_random(3)[0]])
    model, source = env.simulator.source.model, env.simulator.source

    def among_present(at):
        present = torch.from_numpy(trace.available[at.index, 0] @ env.simulator.world.placement[at.index].T > 0)
        best = at.gate_probs.where(present, -1.0).topk(int(at.routed[0].sum())).indices
        return torch.zeros_like(at.routed).scatter(1, best, True) & present

    *inputs, targets = source.tokens(windows)
    logits = model.logits_under(among_present, *inputs).double()
    expected = torch.nn.functional.cross_entropy(logits[0], targets[0], reduction="none").numpy(force=True)
    np.testing.assert_allclose(steps[-1][1]["token_nll"], expected, rtol=1e-4, atol=1e-5)
    assert steps[-1][1]["nll"] != pytest.approx(steps[-1][1]["reference_nll"], abs=1e-4)
    for (_, info), observation in zip(steps, seen, strict=False):
        assert info["replaced_pairs"] == info["unserved_tokens"] == 0
        assert info["gate_weight_kept"] == pytest.approx(1.0)
        assert info["reward_terms"]["latency_ratio"] == 1.0
        assert (info["load"][observation["availability"] == 0] == 0).all()


def test_a_token_goes_on_with_the_residual_alone_where_no_expert_is_there(micro):
    """Away for so long that it is for ever: every block is skipped, as by a selection that chooses nothing."""
    env = gym.make(
        "wdmoe_env:WDMoE-v0", **micro, devices={"outage_mean_s": 1e9, "uptime_mean_s": 1e-6}, reward="latency_quality"
    ).unwrapped
    seen, steps = run(env, seed=3, policy="fractional")
    assert not seen[0]["availability"].any()
    assert not seen[0]["routed"].any()
    model = env.simulator.source.model
    windows, _ = env.simulator.draw([gym.utils.seeding.np_random(3)[0]])
    *inputs, targets = env.simulator.source.tokens(windows)
    logits = model.logits_under(lambda at: torch.zeros_like(at.routed), *inputs).double()
    expected = torch.nn.functional.cross_entropy(logits[0], targets[0], reduction="none").numpy(force=True)
    for reward, info in steps:
        assert info["unserved_tokens"] == 8
        assert info["block_latency_ms"] == info["wlr"] == info["wlr_device"] == 0.0
        assert info["reward_terms"]["latency_ratio"] == 1.0
        assert np.isfinite(reward)
    np.testing.assert_allclose(steps[-1][1]["token_nll"], expected, rtol=1e-4, atol=1e-5)


def test_a_choice_of_a_device_that_is_away_is_counted(micro):
    env = gym.make("wdmoe_env:WDMoE-v0", **micro, action_type="dict", devices={"outage_mean_s": 60.0}).unwrapped
    observation, _ = env.reset(seed=1)
    away = observation["placement"] @ observation["availability"] < 0.5
    assert 0 < away.sum() < 8
    action = env.action_space.sample()
    action["experts"] = np.tile(away, (8, 1)).astype(np.int8)
    info = env.step(action)[4]
    assert info["replaced_pairs"] == 8 * away.sum()
    assert info["repaired_tokens"] == 0
    assert (info["load"][observation["availability"] == 0] == 0).all()


def test_without_outages_nothing_is_said_of_them(micro):
    env = gym.make("wdmoe_env:WDMoE-v0", **micro).unwrapped
    assert "availability" not in env.observation_space.spaces
    _, steps = run(env, seed=0)
    assert not {"replaced_pairs", "unserved_tokens"} & set(steps[0][1])


def test_the_batch_is_the_single_environment_and_a_copy_goes_on_alike(micro):
    keywords = {**micro, "devices": OFTEN}
    batch = gym.make_vec("wdmoe_env:WDMoE-v0", num_envs=3, **keywords)
    observations, _ = batch.reset(seed=[7, 8, 9])
    env = gym.make("wdmoe_env:WDMoE-v0", **keywords).unwrapped
    seen, _ = run(env, seed=8)
    np.testing.assert_array_equal(observations["availability"][1], seen[0]["availability"])
    actions, _ = make_policy("top1", batch).predict(observations)
    np.testing.assert_array_equal(batch.step(actions)[0]["availability"][1], seen[1]["availability"])
    env.reset(seed=8)
    action, _ = make_policy("top1", env).predict(seen[0])
    env.step(action)
    twins = [copy.deepcopy(env), pickle.loads(pickle.dumps(env))]
    expected = env.step(env.action_space.sample() * 0 + 1)[4]
    for twin in twins:
        info = twin.step(env.action_space.sample() * 0 + 1)[4]
        assert info["replaced_pairs"] == expected["replaced_pairs"] > 0
        np.testing.assert_array_equal(info["load"], expected["load"])


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"outage_mean_s": -1.0}, "outage_mean_s must be .* got -1"),
        ({"uptime_mean_s": 0.0}, "uptime_mean_s must be .* got 0"),
        ({"outage_mean_s": math.inf}, "outage_mean_s must be .* got inf"),
    ],
)
def test_wrong_times_are_refused(keywords, message):
    with pytest.raises(ValueError, match=message):
        DeviceConfig(**keywords)
