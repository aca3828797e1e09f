"""Every policy by name: decisions that hold, one interface, and files that are safe to load."""

from __future__ import annotations

from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch
from conftest import MICRO
from test_env import make
from test_vector_env import make_vec

from agents.distribution import evaluate
from agents.sb3_policy import TokenSharedPolicy
from wdmoe_env.observations import decode_observation
from wdmoe_env.optimize.joint import fractional_program
from wdmoe_env.physics.latency import (
    block_latency_s,
    device_latency_s,
    device_load,
    equal_shares,
    radio_latency_s,
)
from wdmoe_env.policies import make_policy, policy_names
from wdmoe_env.policies.distribution import ActionDistribution
from wdmoe_env.policies.draft import first_drafts, priced
from wdmoe_env.policies.features import Features
from wdmoe_env.policies.learned import LearnedPolicy
from wdmoe_env.policies.network import Architecture, TokenSharedNetwork
from wdmoe_env.policies.pairs import Pairs
from wdmoe_env.policies.policy_file import save_flat_policy, save_policy
from wdmoe_env.policies.rules import problem_of

pytest_plugins = ("policy_envs",)

FOLLOW_THE_CHANNEL = ("spectral_efficiency", "unit_latency")
RULES_OF_ROUTED = ("vanilla", "vanilla-optimal", "top1", "greedy", "wdmoe", "wdmoe-selection", "fractional")


def decide(name, env, observation):
    actions, _ = make_policy(name, env).predict(observation)
    assert env.action_space.contains(actions)
    return env.decode_action(actions)


@pytest.mark.parametrize("name", policy_names())
def test_every_policy_decides_for_every_token(name, env, observation):
    selection, shares = decide(name, env, observation)
    assert selection.any(-1).all()
    np.testing.assert_allclose(shares.sum(-1), 1.0)
    loaded = device_load(selection, decode_observation(observation).links).tokens > 0
    assert (shares[loaded] > 0).all()


@pytest.mark.parametrize("name", policy_names())
def test_a_single_observation_is_a_batch_of_one(name, env, observation):
    batch, _ = make_policy(name, env).predict({key: value[:1] for key, value in observation.items()})
    single, _ = make_policy(name, env).predict({key: value[0] for key, value in observation.items()})
    np.testing.assert_array_equal(single, batch[0])


@pytest.mark.parametrize("name", RULES_OF_ROUTED)
def test_rules_keep_to_the_routed_experts(name, env, observation):
    selection, _ = decide(name, env, observation)
    assert not (selection & (observation["routed"] == 0)).any()


def test_named_baselines_are_what_they_say(env, observation):
    routed, probs = observation["routed"] > 0, observation["gate_probs"]
    selection, shares = decide("vanilla", env, observation)
    np.testing.assert_array_equal(selection, routed)
    np.testing.assert_allclose(shares, 1 / 8, rtol=1e-6)
    selection, _ = decide("top1", env, observation)
    np.testing.assert_array_equal(selection.argmax(-1), probs.argmax(-1))
    assert (selection.sum(-1) == 1).all()
    selection, _ = decide("random", env, observation)
    np.testing.assert_array_equal(selection.sum(-1), routed.sum(-1))
    block = decode_observation(observation)
    token = radio_latency_s(block.links, np.full((16, 8), 1 / 8)) + block.links.compute_s
    selection, _ = decide("greedy", env, observation)
    chosen = token[np.arange(16)[:, None], selection.argmax(-1)]
    assert (chosen <= np.where(routed, token[:, None, :], np.inf).min(-1) * (1 + 1e-9)).all()


def test_random_depends_on_its_seed(env, observation):
    decisions = [make_policy("random", env, seed).predict(observation)[0] for seed in (1, 1, 2)]
    np.testing.assert_array_equal(decisions[0], decisions[1])
    assert not np.array_equal(decisions[0], decisions[2])


def test_rewards_are_in_the_order_that_theory_says(env):
    mean = {}
    for name in ("vanilla", "vanilla-optimal", "wdmoe", "fractional"):
        observation, _ = env.reset(seed=1)
        mean[name] = env.step(make_policy(name, env).predict(observation)[0])[1]
    assert (mean["vanilla-optimal"] >= mean["vanilla"]).all()
    assert (mean["wdmoe"] >= mean["vanilla-optimal"] * (1 - 1e-9)).all()
    assert mean["fractional"].mean() >= mean["wdmoe"].mean()


def test_a_parameter_follows_a_colon(env, observation):
    kept = [decide(f"wdmoe:{threshold}", env, observation)[0].sum() for threshold in (0.0, 0.8, 1.01)]
    assert kept[0] == (observation["routed"] > 0).sum()
    assert kept[0] >= kept[1] >= kept[2] == 16 * 8
    kept = [decide(f"marginal-price:{price}", env, observation)[0].sum() for price in (0.0, 0.5, 1e6)]
    assert kept[0] >= kept[1] >= kept[2] == 16 * 8


def test_history_knows_only_the_past(env):
    policy = make_policy("wdmoe-history:0.9", env)
    observation, _ = env.reset(seed=0)
    actions, state = policy.predict(observation, None, np.ones(16, dtype=bool))
    np.testing.assert_array_equal(env.decode_action(actions)[0], observation["routed"] > 0)
    later = {**observation, **{name: observation[name][..., ::-1].copy() for name in FOLLOW_THE_CHANNEL}}
    with_past, _ = policy.predict(later, state)
    expected, _ = make_policy("wdmoe-selection:0.9", env).predict(observation)
    np.testing.assert_array_equal(env.decode_action(with_past)[0], env.decode_action(expected)[0])
    forgotten, _ = policy.predict(later, state, np.ones(16, dtype=bool))
    np.testing.assert_array_equal(forgotten, actions)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("wdmo", "unknown policy 'wdmo'; the nearest known are wdmoe"),
        ("wdmoe:nan", "takes a number of at least 0 as its threshold, got 'nan'"),
        ("marginal-price:-1", "takes a number of at least 0 as its price_per_ms, got '-1'"),
        ("marginal-price:inf", "takes a number of at least 0 as its price_per_ms, got 'inf'"),
        ("vanilla:1", "policy 'vanilla' takes no parameter, got '1'"),
        ("wdmoe:high", "policy 'wdmoe' takes a number of at least 0 as its threshold, got 'high'"),
        ("pyproject.toml", "expected a policy file that ends in .safetensors or .json, got pyproject.toml"),
        ("nowhere/policy.safetensors", "expected a policy file nowhere/policy.safetensors, but there is none"),
    ],
)
def test_mistakes_are_one_clear_sentence(name, message, env):
    with pytest.raises(ValueError, match=message):
        make_policy(name, env)


@pytest.mark.parametrize("spec", [3, None, ["vanilla"], np.array(["vanilla", "top1"]), b"vanilla"])
def test_what_names_no_policy_is_one_sentence(spec, env):
    with pytest.raises(TypeError, match="a policy is a name, or the path of a file, got "):
        make_policy(spec, env)


def test_a_path_is_a_file_and_a_string_of_numpys_a_name(env, observation):
    with pytest.raises(ValueError, match="expected a policy file"):
        make_policy(Path("vanilla"), env)
    named, own = (make_policy(spec, env).predict(observation)[0] for spec in (np.str_("wdmoe:0.9"), "wdmoe:0.9"))
    np.testing.assert_array_equal(named, own)


def test_the_network_starts_near_own_routing(env, observation):
    torch.manual_seed(0)
    policy = LearnedPolicy(TokenSharedNetwork(), "joint", env.codec)
    selection, shares = env.decode_action(policy.predict(observation)[0])
    np.testing.assert_array_equal(selection, observation["routed"] > 0)
    _, optimal = decide("vanilla-optimal", env, observation)
    np.testing.assert_array_equal(shares > 0, optimal > 0)
    links = decode_observation(observation).links
    load = device_load(selection, links)
    latency = [block_latency_s(device_latency_s(links, load, b)).mean() for b in (optimal, shares, equal_shares(16, 8))]
    assert latency[1] < 0.5 * (latency[0] + latency[2])


@pytest.mark.parametrize("decision", ["joint", "selection", "bandwidth"])
def test_log_probabilities_are_those_of_the_samples(decision, env, observation):
    torch.manual_seed(0)
    network = TokenSharedNetwork(Architecture(16))
    tensors = {name: torch.as_tensor(value[:1]) for name, value in observation.items()}
    repeated = {name: value.expand(20_000, *value.shape[1:]) for name, value in tensors.items()}
    with torch.no_grad():
        distribution = ActionDistribution(network, repeated, decision)
        evaluated = evaluate(distribution, distribution.act(deterministic=False))
    # The mean of -log p over samples is the entropy; shares clipped at the bounds are rare at this noise.
    error = evaluated.log_prob.std().item() / 20_000**0.5
    assert -evaluated.log_prob.mean().item() == pytest.approx(evaluated.entropy.mean().item(), abs=5 * error + 0.05)


def test_features_do_not_depend_on_the_order_of_tokens_experts_or_devices(observation):
    tensors = {name: torch.as_tensor(value) for name, value in observation.items()}
    order = torch.randperm(8, generator=torch.Generator().manual_seed(0))
    moved = dict(tensors)
    for name in ("gate_probs", "routed"):
        moved[name] = tensors[name][..., order]
    moved["placement"] = tensors["placement"][:, order]
    torch.testing.assert_close(dense_pairs(moved), dense_pairs(tensors)[:, :, order])
    devices = {name: tensors[name][..., order] for name in ("placement", "spectral_efficiency")}
    devices |= {name: tensors[name][..., order] for name in ("compute_latency", "unit_latency")}
    torch.testing.assert_close(dense_pairs({**tensors, **devices}), dense_pairs(tensors))


def dense_pairs(observation):
    """Features of pairs (N, J, E, F), 0 where a pair is no candidate."""
    seen = Features.of(observation)
    return torch.stack([seen.spread(column) for column in seen.of_pairs().unbind(-1)], dim=-1)


def test_policies_act_in_every_environment():
    for env_id in ("WDMoE-Selection-v0", "WDMoE-Bandwidth-v0"):
        for action_type in ("box", "dict"):
            env = make(env_id, action_type=action_type, **{k: v for k, v in MICRO.items() if k != "model"})
            observation, _ = env.reset(seed=0)
            for name in policy_names():
                actions, _ = make_policy(name, env).predict(observation)
                assert env.action_space.contains(actions)


@pytest.fixture(params=["vanilla", "wdmoe-history", "token-shared", "flat"])
def any_kind(request, tmp_path, env):
    path = tmp_path / "policy.safetensors"
    if request.param == "token-shared":
        save_policy(path, TokenSharedNetwork(Architecture(16)), "selection", {})
    elif request.param == "flat":
        save_flat_policy(path, [torch.nn.Linear(233, 5), torch.nn.Linear(5, 72)], {})
    return make_policy(str(path) if path.exists() else request.param, env)


def test_an_observation_of_another_form_is_one_sentence(any_kind, env, observation):
    flat = gym.spaces.flatten(env.single_observation_space, {name: value[0] for name, value in observation.items()})
    smaller = make_vec(16, num_tokens=4).reset(seed=0)[0]
    fewer = make_vec(16, devices={"count": 4}).reset(seed=0)[0]
    without = {name: value for name, value in observation.items() if name != "routed"}
    for other, message in (
        (
            flat,
            r"got an array of shape \(241,\): a policy reads the environment's Dict observation, not a flattened one",
        ),
        (flat[None], r"got an array of shape \(1, 241\)"),
        (torch.from_numpy(flat), "got an array of shape"),
        (
            tuple(observation.values()),
            "expected an observation whose entries have names, such as gate_probs, got tuple",
        ),
        (without, "expected a WDMoE observation, got one without routed"),
        ({}, "got one without block, compute_latency, gate_probs"),
        (smaller, r"was made for an environment with gate_probs \(8, 8\) .*, got an observation with \(4, 8\)"),
        (fewer, r"and placement \(8, 8\), got an observation with \(8, 8\) and \(8, 4\)"),
    ):
        with pytest.raises(ValueError, match=message):
            any_kind.predict(other)


@pytest.mark.parametrize(
    ("keywords", "settings", "message"),
    [
        ({}, {"decision": "selection"}, r"expected box actions of shape \(64,\) for the decision 'selection'"),
        ({"action_type": "dict"}, {"decision": "joint"}, r"expected box actions of shape \(72,\)"),
        (
            {},
            {"decision": "joint", "architecture": Architecture(16, 0, 32, 3, 8)},
            "make the environment with observe_hidden_states=True",
        ),
        (
            {"observe_hidden_states": True},
            {"decision": "joint", "architecture": Architecture(16, 0, 128, 3, 8)},
            "this network is for 128 numbers in a hidden state, the environment has 32",
        ),
        ({}, {"decision": "joint", "architecture": Architecture(16, 0, 0, 0, 4)}, "is for 4 experts"),
    ],
)
def test_a_network_for_other_spaces_is_refused_before_it_learns(keywords, settings, message):
    env = make_vec(2, autoreset_mode="SAME_STEP", **keywords).unwrapped
    spaces = env.single_observation_space, env.single_action_space
    with pytest.raises(ValueError, match=message):
        TokenSharedPolicy(*spaces, lambda _: 1e-3, **settings)


def test_a_network_refuses_flattened_observations(env):
    flat = gym.spaces.flatten_space(env.single_observation_space)
    with pytest.raises(ValueError, match="expected the Dict observations of a WDMoE environment, not flattened"):
        TokenSharedPolicy(flat, env.single_action_space, lambda _: 1e-3, decision="joint")


def test_prices_of_the_first_draft_come_near_the_best_ratio(observation):
    """Choosing by them gains more than half of what the fractional programme gains over the own routing."""
    block = decode_observation(observation)
    pairs = Pairs.of(block, block.routed)
    _, draft = first_drafts(pairs)
    paid = draft.ratio[:, None, None] * (draft.price_ms @ block.links.placement[0].T)[:, None]
    net = np.where(block.routed, block.weights - paid, -np.inf)
    chosen = block.routed & ((net > 0) | (net == net.max(-1, keepdims=True)))
    best = fractional_program(problem_of(block)).wlr_per_ms.mean()
    reached, own = (priced(pairs, pairs.at(kept).astype(float)).ratio.mean() for kept in (chosen, block.routed))
    assert own < 0.5 * (own + best) < reached <= best


def test_tokens_that_the_network_leaves_without_expert_are_served_at_optimal_shares(env, observation):
    network = TokenSharedNetwork()
    with torch.no_grad():
        network.start.fill_(-100.0)
    selection, shares = env.decode_action(LearnedPolicy(network, "selection", env.codec).predict(observation)[0])
    top1, optimal = decide("top1", env, observation)
    np.testing.assert_array_equal(selection, top1)
    np.testing.assert_allclose(shares, optimal, rtol=1e-4)
