"""``WDMoE-Price-v0`` and ``WDMoE-Token-v0``: checkers, the batch beside the single one, copies, and what actions do."""

from __future__ import annotations

import copy
import json
import multiprocessing
import pickle
import warnings
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from stable_baselines3 import PPO
from stable_baselines3.common import env_checker as sb3_checker
from test_env import assert_same, make, play, sampled
from test_vector_env import CLOSE, make_vec

from wdmoe_env.integrations.sb3 import SB3VecEnv
from wdmoe_env.integrations.stock_file import export_policy
from wdmoe_env.integrations.token_vec import TokenVectorEnv
from wdmoe_env.policies import make_policy
from wdmoe_env.policies.price import SPAN, PriceCodec, price_features
from wdmoe_env.policies.tokens import Ranked, selection_of, token_features
from wdmoe_env.token_env import decayed

FACES = [
    ("WDMoE-Price-v0", {}),
    ("WDMoE-Price-v0", {"action_type": "discrete"}),
    ("WDMoE-Price-v0", {"per_block": True}),
    ("WDMoE-Price-v0", {"per_block": True, "action_type": "discrete", "levels": 5}),
    ("WDMoE-Token-v0", {}),
    ("WDMoE-Token-v0", {"observe_hidden_states": True, "reward": "latency_quality"}),
]
faces = pytest.mark.parametrize(("env_id", "settings"), FACES)


def steps(env):
    return 1 if getattr(env.unwrapped.config, "per_block", False) else env.unwrapped.num_blocks


@faces
def test_checkers(env_id, settings, monkeypatch):
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(make(env_id, **settings).unwrapped, skip_render_check=bool(settings))
        sb3_checker.check_env(make(env_id, **settings))


@faces
def test_single_batch_and_copy_agree(env_id, settings):
    single = make(env_id, **settings)
    batch = make_vec(3, env_id, autoreset_mode="SAME_STEP", **settings)
    actions = sampled(single)[: steps(single)]
    first = play(single, actions, seed=12)
    assert_same(play(single, actions, seed=12), first)  # the same seed, to the last bit
    assert all(single.observation_space.contains(step[0]) for step in first)
    observation, _ = batch.reset(seed=11)
    np.testing.assert_allclose(observation[1], first[0][0], **CLOSE)
    single.reset(seed=12)
    copies = pickle.loads(pickle.dumps(single.unwrapped)), copy.deepcopy(single.unwrapped)
    for number, action in enumerate(actions):
        observation, rewards, ended, _, info = batch.step(np.stack([action] * 3))
        assert rewards[1] == pytest.approx(first[number + 1][1], rel=1e-4, abs=1e-5)
        for other in copies:
            assert other.step(action)[1] == pytest.approx(first[number + 1][1], rel=1e-9)
    assert ended.all()
    assert info["final_info"]["latency_ms"][1] == pytest.approx(first[-1][2]["latency_ms"], rel=1e-4)
    np.testing.assert_allclose(info["final_obs"][1], first[-1][0], **CLOSE)


def test_a_fixed_price_is_the_line_of_the_rule():
    env = make("WDMoE-Price-v0", reward="latency_quality")
    rule_env = make("WDMoE-Selection-v0", reward="latency_quality")
    for price in (0.7, 3.0):
        env.reset(seed=4)
        seen, _ = rule_env.reset(seed=4)
        ended, policy = False, make_policy(f"marginal-price:{price}", rule_env)
        while not ended:
            _, reward, ended, _, info = env.step(env.unwrapped.encode_action(price))
            seen, expected, *_, rule_info = rule_env.step(policy.predict(seen)[0])
            np.testing.assert_array_equal(info["selection"], rule_info["selection"])
            assert reward == pytest.approx(expected, rel=1e-9)


def test_actions_and_prices():
    sizes = make("WDMoE-Price-v0").unwrapped.simulator.sizes
    one = PriceCodec(sizes, 0.5)
    np.testing.assert_allclose(one.decode(np.array([-1.0]))["price_per_ms"], [0.5 * np.exp(-SPAN)])
    np.testing.assert_allclose(one.decode(np.array([[0.0], [7.0]]), (2,))["price_per_ms"], [[0.5], [5.0]])
    np.testing.assert_allclose(one.encode([[0.5], [5.0], [500.0]]), [[0.0], [1.0], [1.0]], atol=1e-7)
    levels = PriceCodec(sizes, 0.5, levels=5)
    np.testing.assert_allclose(levels.decode(2)["price_per_ms"], [0.5])
    assert levels.encode(5.0) == 4
    for codec, action, message in (
        (one, [0.0, 1.0], r"expected action of shape \(1,\), got \(2,\)"),
        (one, [np.nan], "expected action without NaN"),
        (levels, 5, "expected action of whole numbers from 0 to 4"),
        (levels, 1.5, "expected action of whole numbers from 0 to 4"),
    ):
        with pytest.raises(ValueError, match=message):
            codec.decode(action)
    with pytest.raises(ValueError, match="expected price_per_ms above 0, got -1"):
        one.encode(-1.0)


def test_a_pass_of_prices_is_its_blocks():
    whole, blockwise = make("WDMoE-Price-v0", per_block=True), make("WDMoE-Price-v0")
    whole.reset(seed=2)
    blockwise.reset(seed=2)
    action = np.array([-0.5, 0.2, 0.9], dtype=np.float32)
    _, reward, ended, _, info = whole.step(action)
    parts = [blockwise.step(action[[block]]) for block in range(3)]
    assert ended
    assert reward == pytest.approx(sum(part[1] for part in parts))
    assert info["block_latency_ms"] == pytest.approx(sum(part[4]["block_latency_ms"] for part in parts))
    assert info["block_latency_ms"] == pytest.approx(info["latency_ms"])
    assert info["wlr"] == pytest.approx(np.mean([part[4]["wlr"] for part in parts]))


def test_choices_of_tokens():
    env = make("WDMoE-Token-v0", split="train").unwrapped
    env.reset(seed=0)
    block = env._rollout.block
    probs, routed = block.gate_probs[0], block.routed[0]
    choices = np.arange(len(probs)) % 4
    selection = selection_of(block, choices[None])[0]
    for token, choice in enumerate(choices):
        inside = sorted(np.flatnonzero(routed[token]), key=lambda expert: -probs[token, expert])
        outside = max(np.flatnonzero(~routed[token]), key=lambda expert: probs[token, expert])
        expected = [inside, inside[:1], [inside[0], outside], inside[1:2]][choice]
        assert sorted(np.flatnonzero(selection[token])) == sorted(expected)
    assert Ranked.of(block).experts.shape == (1, len(probs), 3)
    info = env.step(choices)[4]
    np.testing.assert_array_equal(info["selection"], selection)


@pytest.mark.parametrize("reward", ["latency_divergence", "latency_quality"])
def test_rewards_of_tokens_add_up(reward):
    """Without credit for later tokens, their mean is the reward of the whole."""
    env = make("WDMoE-Token-v0", reward=reward, credit_decay=0.0, quality_weight=2.0)
    for step in play(env, sampled(env), seed=5)[1:]:
        assert step[2]["token_reward"].mean() == pytest.approx(step[1], rel=1e-4, abs=1e-4)
    full = make("WDMoE-Token-v0", reward=reward, credit_decay=0.5, quality_weight=2.0)
    more = play(full, sampled(full), seed=5)[-1][2]["token_reward"]
    terms = step[2]["reward_terms"]
    loss = terms["token_divergence"]
    if reward == "latency_quality":
        loss = step[2]["token_nll"] - terms["reference_token_nll"]
    later = [sum(0.5**k * loss[j + k] for k in range(len(loss) - j)) for j in range(len(loss))]
    np.testing.assert_allclose(decayed(loss[None], 0.5)[0], later)
    np.testing.assert_allclose(more - step[2]["token_reward"], 2.0 * (loss - np.array(later)), rtol=1e-4, atol=1e-6)


def test_padding_is_left_out():
    env = make("WDMoE-Token-v0").unwrapped
    env.reset(seed=0)
    whole = env._rollout.block
    mask = np.arange(8)[None] < 5
    probs, routed = whole.gate_probs * mask[..., None], whole.routed & mask[..., None]
    block = replace(whole, token_mask=mask, gate_probs=probs, routed=routed)
    features = token_features(block, env.num_blocks)[0]
    assert not features[5:].any()
    assert features[:5].any(-1).all()
    assert np.isfinite(price_features(block, env.num_blocks, 0.7)).all()
    assert not selection_of(block, np.full((1, 8), 3))[0, 5:].any()
    terms = {"token_price_ms": np.full((1, 8), 2.0), "vanilla_latency_ms": np.array([20.0])}
    reward = env._process.token_reward({"reward_terms": terms}, mask)
    np.testing.assert_allclose(reward[0], [-0.5] * 5 + [0.0] * 3)


@pytest.mark.parametrize(
    ("env_id", "settings", "message"),
    [
        ("WDMoE-Price-v0", {"action_type": "dict"}, "action_type must be one of box, discrete, got 'dict'"),
        ("WDMoE-Price-v0", {"levels": 1}, "levels must be"),
        ("WDMoE-Price-v0", {"price_per_ms": 0.0}, "price_per_ms must be"),
        ("WDMoE-Price-v0", {"decision": "joint"}, "decision must be 'selection'"),
        ("WDMoE-Token-v0", {"reward": "wlr"}, "reward must be one of latency_divergence, latency_quality"),
        ("WDMoE-Token-v0", {"credit_decay": 2.0}, "credit_decay must be"),
        ("WDMoE-v0", {"action_type": "discrete"}, "action_type must be one of box, dict, got 'discrete'"),
    ],
)
def test_settings_that_make_no_sense_are_refused(env_id, settings, message):
    with pytest.raises(ValueError, match=message):
        make(env_id, **settings)


SHORT_CELL = {"slots": 2, "chunk": 4, "prompt_tokens": (3, 9), "answer_tokens": (1, 5), "requests": 4}
SPAWNED = {
    "WDMoE-Price-v0": {"num_tokens": 8},
    "WDMoE-Token-v0": {"num_tokens": 8},
    "WDMoE-Serve-Price-v0": {"serving": SHORT_CELL},
    "WDMoE-Serve-Token-v0": {"serving": SHORT_CELL},
}


def first_rewards():
    """The reward of the first step of each id, made by its id string alone."""
    rewards = {}
    for env_id, settings in SPAWNED.items():
        env = gym.make(f"wdmoe_env:{env_id}", model="micro", **settings)
        env.reset(seed=3)
        env.action_space.seed(0)
        rewards[env_id] = env.step(env.action_space.sample())[1]
        env.close()
    return rewards


def test_a_spawned_process_finds_the_ids():
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        there = pool.submit(first_rewards)
        here = first_rewards()
        assert there.result(timeout=300) == pytest.approx(here, rel=1e-6)


@pytest.mark.parametrize("mode", ["NEXT_STEP", "DISABLED"])
def test_autoreset_modes(mode):
    env = make_vec(2, "WDMoE-Price-v0", autoreset_mode=mode, per_block=True)
    env.reset(seed=0)
    action = np.zeros((2, 3), dtype=np.float32)
    _, reward, ended, _, _ = env.step(action)
    assert ended.all()
    if mode == "NEXT_STEP":
        _, reward, ended, _, info = env.step(action)
        assert not ended.any()
        assert not reward.any()
        assert "window" in info
    else:
        with pytest.raises(gym.error.ResetNeeded):
            env.step(action)


def test_a_policy_of_a_file_decides_as_in_its_own_environment(tmp_path):
    """The model there and its file in ``WDMoE-v0`` give the same selections."""
    for face, wrap, count in (("Token", TokenVectorEnv, 8), ("Price", lambda batch: batch, 1)):
        batch = make_vec(2, f"WDMoE-{face}-v0", autoreset_mode="SAME_STEP")
        model = PPO("MlpPolicy", SB3VecEnv(wrap(batch)), n_steps=3, batch_size=6, n_epochs=1, seed=1, device="cpu")
        model.policy.action_net.weight.data *= 300.0  # choices and prices far apart
        path = export_policy(model, tmp_path / face.lower(), note="untrained")
        assert json.loads(path.with_suffix(".json").read_text())["note"] == "untrained"
        own, joint = make(f"WDMoE-{face}-v0"), make("WDMoE-v0")
        observation, _ = own.reset(seed=7)
        seen, _ = joint.reset(seed=7)
        policy, ended, used = make_policy(path, joint), False, []
        while not ended:
            action = model.predict(observation.reshape(count, -1) if count > 1 else observation, deterministic=True)[0]
            observation, _, ended, _, info = own.step(action)
            seen, *_, joint_info = joint.step(policy.predict(seen)[0])
            np.testing.assert_array_equal(info["selection"], joint_info["selection"])
            used.append(info["selection"])
        assert len(np.unique(np.array(used).sum(-1))) > 1
        with pytest.raises(ValueError, match=r"is for 3 blocks with .* features and . outputs, the environment has"):
            make_policy(
                path, make("WDMoE-v0", devices={"count": 4}) if face == "Price" else make("WDMoE-v0", model="tiny")
            )


@pytest.mark.parametrize("per_block", [False, True])
def test_prices_for_a_pass_are_kept_for_its_blocks(tmp_path, per_block):
    """The model on its own environment and its file, block by block, serve the same requests at the same times."""
    cell = {"model": "micro", "serving": SHORT_CELL}
    own_cell = {**cell, "per_block": per_block}
    batch = gym.make_vec("wdmoe_env:WDMoE-Serve-Price-v0", num_envs=2, autoreset_mode="SAME_STEP", **own_cell)
    model = PPO("MlpPolicy", SB3VecEnv(batch), n_steps=3, batch_size=6, n_epochs=1, seed=1, device="cpu")
    model.policy.action_net.weight.data *= 300.0  # prices far apart
    path = export_policy(model, tmp_path / "pass-price")
    own = gym.make("wdmoe_env:WDMoE-Serve-Price-v0", **own_cell)
    blocks = gym.make("wdmoe_env:WDMoE-Serve-Selection-v0", **cell)
    policy, (observation, _), (seen, _) = make_policy(path, blocks), own.reset(seed=7), blocks.reset(seed=7)
    state, ended, actions = None, False, []
    while not ended:
        actions.append(model.predict(observation, deterministic=True)[0])
        observation, reward, ended, _, info = own.step(actions[-1])
        total = 0.0
        for _ in range(blocks.unwrapped.num_blocks):
            action, state = policy.predict(seen, state)
            seen, one, *_, last = blocks.step(action)
            total += one
        assert total == pytest.approx(reward, rel=1e-6)
    assert np.ptp(actions) > 0.5
    np.testing.assert_allclose(last["request_e2e_ms"], info["request_e2e_ms"], rtol=1e-6)
    with pytest.raises(ValueError, match="expected an observation with a queue"):
        make_policy(path, make("WDMoE-v0")).predict(make("WDMoE-v0").reset(seed=0)[0])
    card = json.loads(path.with_suffix(".json").read_text())
    path.with_suffix(".json").write_text(json.dumps(card | {"slots": 0}))
    with pytest.raises(ValueError, match="expected slots in"):
        make_policy(path, blocks)


def test_tokens_are_environments_of_sb3():
    batch = make_vec(2, "WDMoE-Token-v0", autoreset_mode="SAME_STEP")
    env = SB3VecEnv(TokenVectorEnv(batch))
    assert env.num_envs == 16
    env.seed(3)
    observation = env.reset()
    alone = make("WDMoE-Token-v0")
    np.testing.assert_allclose(observation[8:], alone.reset(seed=4)[0].reshape(8, -1), **CLOSE)
    total = np.zeros(8)
    for _ in range(3):
        choices = np.arange(16) % 4
        observation, rewards, dones, infos = env.step(choices)
        last, _, ended, _, info = alone.step(choices[8:])
        np.testing.assert_allclose(rewards[8:], info["token_reward"], rtol=1e-3, atol=1e-5)
        total += info["token_reward"]
        assert dones.tolist() == [ended] * 16
    np.testing.assert_allclose([one["episode"]["r"] for one in infos[8:]], total, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(infos[9]["terminal_observation"], last.reshape(8, -1)[1], **CLOSE)
    with pytest.raises(ValueError, match="TokenVectorEnv takes WDMoE-Token-v0"):
        TokenVectorEnv(make_vec(2, "WDMoE-Price-v0"))


@pytest.mark.parametrize("mode", ["NEXT_STEP", "SAME_STEP", "DISABLED"])
def test_tokens_are_environments_of_gymnasium(mode):
    env = TokenVectorEnv(make_vec(2, "WDMoE-Token-v0", autoreset_mode=mode))
    assert env.num_envs == 16
    assert env.single_action_space == gym.spaces.Discrete(4)
    observation, _ = env.reset(seed=3)
    assert observation in env.observation_space
    choices, rewards = np.arange(16) % 4, []
    for _ in range(3):
        observation, reward, ended, cut, info = env.step(choices)
        rewards.append(reward)
    assert ended.all()
    assert not cut.any()
    alone = make("WDMoE-Token-v0")
    alone.reset(seed=4)
    for reward in rewards:
        last, _, _, _, own = alone.step(choices[8:])
        np.testing.assert_allclose(reward[8:], own["token_reward"], rtol=1e-3, atol=1e-5)
    if mode == "SAME_STEP":
        np.testing.assert_allclose(info["final_obs"][9], last.reshape(8, -1)[1], **CLOSE)
    elif mode == "NEXT_STEP":
        _, reward, ended, *_ = env.step(choices)
        assert not reward.any()
        assert not ended.any()
    else:
        np.testing.assert_allclose(observation[9], last.reshape(8, -1)[1], **CLOSE)
        mask = np.repeat([False, True], 8)
        env.reset(options={"reset_mask": mask})
        with pytest.raises(ValueError, match="all tokens of an episode or none"):
            env.reset(options={"reset_mask": np.arange(16) > 3})


@pytest.mark.parametrize("settings", [{}, {"per_block": True}, {"action_type": "discrete"}])
def test_a_pass_of_a_cell_is_a_step(settings):
    """Checkers; the batch beside the single one; and a fixed price is what the rule does block by block."""
    cell = {"model": "micro", "serving": SHORT_CELL}
    env = gym.make("wdmoe_env:WDMoE-Serve-Price-v0", **cell, **settings)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(env.unwrapped, skip_render_check=True)
        sb3_checker.check_env(env)
    rule_env = gym.make("wdmoe_env:WDMoE-Serve-Selection-v0", **cell).unwrapped
    batch = gym.make_vec("wdmoe_env:WDMoE-Serve-Price-v0", num_envs=2, autoreset_mode="SAME_STEP", **cell, **settings)
    policy, action = make_policy("marginal-price:0.7", rule_env), env.unwrapped.encode_action(0.7)
    observation, _ = env.reset(seed=3)
    seen, _ = rule_env.reset(seed=3)
    together, _ = batch.reset(seed=2)
    ended, passes = False, 0
    while not ended:
        np.testing.assert_allclose(together[1], observation, rtol=1e-3, atol=1e-4)
        observation, reward, terminated, truncated, info = env.step(action)
        together, rewards, *_ = batch.step(np.stack([action, action]))
        ended, passes = terminated or truncated, passes + 1
        expected = 0.0
        for _ in range(env.unwrapped.num_blocks):
            seen, one, *_, rule_info = rule_env.step(policy.predict(seen)[0])
            expected += one
        assert reward == pytest.approx(expected, rel=1e-6)
        assert rewards[1] == pytest.approx(reward, rel=1e-3, abs=1e-5)
        if ended:
            np.testing.assert_allclose(info["request_e2e_ms"], rule_info["request_e2e_ms"], rtol=1e-6)
    assert passes > 2
    with pytest.raises(ValueError, match="expected render_mode None where a step is a pass"):
        type(env.unwrapped)(render_mode="ansi", **cell)


def test_tokens_of_a_cell():
    """Checkers; the batch beside the single one; and the rewards of tokens make up that of the cell."""
    serving = {**SHORT_CELL, "base_station_ms": 0.0}
    cell = {"model": "micro", "serving": serving, "devices": {"compute_model": "flops"}}
    env = gym.make("wdmoe_env:WDMoE-Serve-Token-v0", **cell, credit_decay=0.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(env.unwrapped, skip_render_check=True)
        sb3_checker.check_env(env)
    batch = gym.make_vec(
        "wdmoe_env:WDMoE-Serve-Token-v0", num_envs=2, autoreset_mode="SAME_STEP", **cell, credit_decay=0.0
    )
    tokens = SB3VecEnv(TokenVectorEnv(batch))
    observation, _ = env.reset(seed=3)
    tokens.seed(2)
    together, ended, count = tokens.reset(), False, 0
    choices = np.array([0, 1] * 4)
    while not ended:
        np.testing.assert_allclose(together[8:], observation.reshape(8, -1), rtol=1e-3, atol=1e-3)
        observation, reward, terminated, truncated, info = env.step(choices)
        assert info["token_reward"].sum() == pytest.approx(reward, rel=1e-4, abs=1e-5)
        together, rewards, *_ = tokens.step(np.tile(choices, 2))
        np.testing.assert_allclose(rewards[8:], info["token_reward"], rtol=1e-2, atol=1e-4)
        ended, count = terminated or truncated, count + 1
    assert count > 9
