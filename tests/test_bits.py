"""Bits as a part of the action: spaces, physics, the environments, and the rule that decides them."""

from __future__ import annotations

import itertools
import pickle

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from wdmoe_env.config import EnvConfig
from wdmoe_env.optimize.bits import BitChoices, _Search, marginal_price_with_bits
from wdmoe_env.optimize.problem import BlockProblem
from wdmoe_env.physics.latency import BlockLinks, radio_latency_s
from wdmoe_env.policies.registry import make_policy

ID, MICRO = "wdmoe_env:WDMoE-Precision-v0", {"model": "micro", "num_tokens": 8}
RATIO = {16: 1.0, 8: 32_800 / 65_536, 4: 16_416 / 65_536}
KINDS = [("device", "box"), ("device", "dict"), ("token", "box"), ("token", "dict")]


@pytest.mark.parametrize(("decider", "action_type"), KINDS)
def test_actions_go_there_and_back(decider, action_type):
    env = gym.make(ID, decide_bits=decider, action_type=action_type, **MICRO).unwrapped
    env.action_space.seed(0)
    seen = set()
    for _ in range(20):
        selection, shares, bits = env.decode_action(env.action_space.sample())
        again = env.decode_action(env.encode_action(selection, shares, bits=bits))
        np.testing.assert_array_equal(again[0], selection)
        np.testing.assert_array_equal(again[2], bits)
        seen |= set(bits.tolist())
    assert seen == {16, 8, 4}
    assert bits.shape == (8,)
    assert (env.decode_action(env.encode_action(selection, shares))[2] == 16).all(), "a rule that knows no bits"
    with pytest.raises(ValueError, match="expected bits of 16, 8, 4, got other values"):
        env.encode_action(selection, shares, bits=np.full(8, 7))
    wrong = {"experts": selection, "bandwidth": shares, "bits": np.full(8, 3)}
    if action_type == "dict":
        with pytest.raises(ValueError, match="expected bits of 0 to 2, the numbers of choices"):
            env.decode_action(wrong)


def test_a_flat_number_is_a_piece_of_the_interval():
    codec = gym.make(ID, bits_choices=(8, 4), **MICRO).unwrapped.codec
    assert codec.parts[-1].from_flat(np.array([-1.0, -0.01, 0.0, 1.0])).tolist() == [8, 8, 4, 4]


@pytest.mark.parametrize("decider", ["device", "token"])
def test_latency_is_that_of_the_messages(decider):
    env = gym.make(ID, decide_bits=decider, **MICRO).unwrapped
    env.reset(seed=1)
    rng, links = np.random.default_rng(0), env._rollout.block.links
    selection, shares = rng.random((8, links.placement.shape[-2])) < 0.5, rng.dirichlet(np.ones(8))
    bits = rng.choice([16, 8, 4], 8)
    selection[:, 0] = True
    *_, info = env.step(env.encode_action(selection, shares, bits=bits))
    shares, placement = info["shares"][None], links.placement.reshape(-1, 8)
    radio_s, expected, sent_bits = radio_latency_s(links, shares)[0], np.zeros(8), []
    for token, device in itertools.product(range(8), range(8)):
        pairs = (selection[token] * placement[:, device]).sum()
        if pairs:
            sent_bits.append(bits[device if decider == "device" else token])
            expected[device] += radio_s[device] * RATIO[sent_bits[-1]] + pairs * links.compute_s[0, device]
    np.testing.assert_allclose(info["device_latency_ms"], 1e3 * expected, rtol=1e-12)
    assert info["message_bits"] == pytest.approx(np.mean(sent_bits)) == info["reward_terms"]["message_bits"]
    assert info["load"].sum() == len(sent_bits)
    own = gym.make("wdmoe_env:WDMoE-v0", **MICRO).unwrapped
    env.reset(seed=1)
    own.reset(seed=1)
    routed = own._rollout.block.routed[0]
    few = env.step(env.encode_action(routed, shares[0], bits=bits))[4]
    whole = own.step(own.encode_action(routed, shares[0]))[4]
    assert few["reward_terms"]["vanilla_latency_ms"] == whole["reward_terms"]["vanilla_latency_ms"]


def play(env, bits):
    env.reset(seed=4)
    rng, steps, ended = np.random.default_rng(0), [], False
    while not ended:
        action = env.encode_action(rng.random((8, 8)) < 0.6, rng.dirichlet(np.ones(8)), bits=bits)
        _, reward, ended, _, info = env.step(action)
        steps.append((reward, info))
    return steps


def test_sixteen_bits_are_the_other_environment_to_the_bit():
    plain = play(gym.make("wdmoe_env:WDMoE-v0", **MICRO).unwrapped, None)
    for whole in (None, np.full(8, 16)):
        for (reward, info), (expected, old) in zip(play(gym.make(ID, **MICRO).unwrapped, whole), plain, strict=True):
            assert reward == expected
            for name in set(old) - {"reward_terms"}:
                np.testing.assert_array_equal(info[name], old[name])
    assert play(gym.make(ID, **MICRO).unwrapped, np.full(8, 4))[-1][1]["nll"] != plain[-1][1]["nll"]


def test_the_batch_is_the_single_one_and_copies_go_on():
    batch, single = gym.make_vec(ID, 3, **MICRO), gym.make(ID, **MICRO).unwrapped
    batch.action_space.seed(0)
    batch.reset(seed=0)
    single.reset(seed=1)
    ended, first = False, True
    while not ended:
        actions = batch.action_space.sample()
        _, rewards, _, _, info = batch.step(actions)
        copy = pickle.loads(pickle.dumps(single))
        _, reward, ended, _, one = single.step(actions[1])
        assert reward == pytest.approx(rewards[1])
        assert one["message_bits"] == info["message_bits"][1]
        again = copy.step(actions[1])
        if ended and not first:
            assert again[4]["nll"] == pytest.approx(one["nll"], abs=1e-6), "blocks that had run are run again"
        first = False


@pytest.mark.parametrize("decider", ["device", "token"])
def test_gymnasiums_checks_pass(decider):
    check_env(gym.make(ID, decide_bits=decider, **MICRO).unwrapped, skip_render_check=True)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"decide_bits": "expert"}, "decide_bits must be one of device, token, got 'expert'"),
        ({"bits_choices": (16,)}, r"bits_choices must be two or more of 16, 8 and 4 in this order, got \(16,\)"),
        ({"bits_choices": (8, 16)}, "in this order"),
        ({"decide_bits": "device", "deployment": {"link_bits": 8}}, "link_bits must be 16 where the action decides"),
    ],
)
def test_wrong_settings_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        EnvConfig.make(**wrong)


@pytest.mark.parametrize("name", ["wdmoe:0.8", "marginal-price", "straight-through-10"])
def test_policies_that_know_no_bits_act_as_in_the_other_environment(name):
    learned = "straight" in name
    settings = {"model": "tiny" if learned else "micro", "num_tokens": 8, "observe_hidden_states": learned}
    actions = []
    for env_id in (ID, "wdmoe_env:WDMoE-v0"):
        env = gym.make_vec(env_id, 2, **settings)
        observation, _ = env.reset(seed=0)
        actions.append(env.unwrapped.decode_action(make_policy(name, env).predict(observation)[0]))
    for found, expected in zip(actions[0], actions[1], strict=False):
        np.testing.assert_array_equal(found, expected)
    assert (actions[0][2] == 16).all()


def problems(count, seed):
    """Small blocks of 2 tokens, 3 experts and 3 devices, and their links."""
    rng = np.random.default_rng(seed)
    weights = rng.dirichlet(np.ones(3), (count, 2))
    links = BlockLinks(
        rng.uniform(1, 1000, (count, 2, 3)), np.full(count, 6e-4), rng.uniform(1e-4, 6e-4, (count, 3)), np.eye(3)
    )
    routed = weights > weights.min(axis=-1, keepdims=True)
    return BlockProblem(links, weights, routed, price_per_ms=rng.uniform(0.05, 1.0, count))


@pytest.mark.parametrize("of_tokens", [False, True])
def test_the_rule_is_close_to_the_best_of_all_decisions(of_tokens):
    problem = problems(60, 5)
    choices = BitChoices(np.array(list(RATIO.values())), np.array([0.0, 0.01, 0.25]), of_tokens)
    found = marginal_price_with_bits(problem, choices, keep_best=False)
    search = _Search(problem.checked(), choices, np.zeros_like(problem.routed))
    subsets = [np.array(pattern, dtype=bool) for pattern in itertools.product((0, 1), repeat=6)]
    shape = (60, 2, 1) if of_tokens else (60, 1, 3)
    best = np.full(60, -np.inf)
    for subset in subsets:
        selection = problem.routed & subset.reshape(2, 3)
        possible = selection.any(axis=-1).all(axis=-1)
        for levels in itertools.product(range(3), repeat=shape[1] * shape[2]):
            value = search.decided(selection, np.broadcast_to(np.reshape(levels, shape[1:]), shape)).value
            best = np.where(possible, np.maximum(best, value), best)
    gap = (best - found.value) / np.abs(best)
    assert (gap > -1e-9).all()
    assert gap.mean() < 0.01
    for level in range(3):
        assert (found.value >= search.decided(problem.routed, np.full(shape, level)).value - 1e-12).all()


def test_the_rule_takes_few_bits_where_they_pay():
    env = gym.make_vec(ID, 4, num_tokens=16)
    observation, _ = env.reset(seed=0)
    bits = []
    for price in ("0.1", "20"):
        action = make_policy(f"marginal-price-bits:{price}", env).predict(observation)[0]
        bits.append(env.unwrapped.decode_action(action)[2].mean())
    assert bits[1] < bits[0]


def test_the_rule_is_the_plain_price_where_the_action_decides_no_bits():
    env = gym.make("wdmoe_env:WDMoE-v0", **MICRO)
    observation, _ = env.reset(seed=0)
    actions = [
        make_policy(f"{name}:3", env).predict(observation)[0] for name in ("marginal-price-bits", "marginal-price")
    ]
    np.testing.assert_array_equal(*actions)
