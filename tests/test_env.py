"""The single environment: Gymnasium's protocol, seeding, copying, and agreement with the physics."""

from __future__ import annotations

import copy
import pickle
import warnings

import gymnasium as gym
import numpy as np
import pytest
import stable_baselines3.common.env_checker as sb3_checker
import torch
from conftest import MICRO
from gymnasium.utils.env_checker import check_env

from wdmoe_env import ENV_IDS
from wdmoe_env import actions as wdmoe_actions
from wdmoe_env.observations import decode_observation
from wdmoe_env.physics import latency
from wdmoe_env.text.windows import load_documents

IDS = list(ENV_IDS)


def make(env_id="WDMoE-v0", **keywords):
    return gym.make(f"wdmoe_env:{env_id}", **{**MICRO, **keywords})


def play(env, actions, seed=None):
    """One episode: everything that came out of it."""
    observation, info = env.reset(seed=seed)
    out = [(observation, 0.0, info)]
    for action in actions:
        observation, reward, terminated, truncated, info = env.step(action)
        assert not truncated
        out.append((observation, reward, info))
    assert terminated
    return out


def sampled(env, seed=0):
    env.action_space.seed(seed)
    return [env.action_space.sample() for _ in range(env.unwrapped.num_blocks)]


def assert_same(one, other, **tolerance):
    """Nested dicts and lists of arrays and numbers agree."""
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            assert_same(one[key], other[key], **tolerance)
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(other)
        for a, b in zip(one, other, strict=True):
            assert_same(a, b, **tolerance)
    elif tolerance:
        np.testing.assert_allclose(one, other, **tolerance)
    else:
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("action_type", ["box", "dict"])
@pytest.mark.parametrize("env_id", IDS)
def test_gymnasium_check_env(env_id, action_type, monkeypatch):
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")  # it renders in every mode
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(make(env_id, action_type=action_type).unwrapped, skip_render_check=False)


@pytest.mark.parametrize("env_id", IDS)
def test_sb3_check_env(env_id):
    """SB3 advises against every observation that is neither flat nor an image; it takes ours all the same."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message="Your observation .* has an unconventional shape")
        sb3_checker.check_env(make(env_id))


@pytest.mark.parametrize("env_id", IDS)
def test_same_seed_same_episode_other_seed_another(env_id):
    env = make(env_id)
    actions = sampled(env)
    assert_same(play(env, actions, seed=5), play(make(env_id), actions, seed=5))
    first, other = play(env, actions, seed=5), play(env, actions, seed=6)
    assert not np.array_equal(first[0][0]["spectral_efficiency"], other[0][0]["spectral_efficiency"])
    assert not np.array_equal(first[0][0]["gate_probs"], other[0][0]["gate_probs"])
    assert first[1][1] != other[1][1]


def test_seeded_then_unseeded_reset_goes_on_with_the_generator():
    one, other = make(), make()
    actions = sampled(one)
    play(one, actions, seed=3)
    play(other, actions, seed=3)
    second = play(one, actions)
    assert_same(second, play(other, actions))
    assert not np.array_equal(
        second[0][0]["spectral_efficiency"], play(one, actions, seed=3)[0][0]["spectral_efficiency"]
    )


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda env: pickle.loads(pickle.dumps(env))])
def test_a_copy_in_mid_episode_goes_on_alike(clone):
    env = make()
    actions = sampled(env)
    env.reset(seed=2)
    env.step(actions[0])
    twin = clone(env)
    assert_same([env.step(a) for a in actions[1:]], [twin.step(a) for a in actions[1:]])
    assert_same(env.reset(), twin.reset())


def test_writing_into_info_does_not_reach_a_later_copy():
    env = make()
    actions = sampled(env)
    env.reset(seed=2)
    info = env.step(actions[0])[4]
    twin = copy.deepcopy(env)
    info["selection"][:] = True
    late_twin = copy.deepcopy(env)
    assert_same(twin.step(actions[1])[0], late_twin.step(actions[1])[0])


def test_own_routing_reproduces_the_untouched_model():
    env = make()
    observation, info = env.reset(seed=0)
    source = env.unwrapped.simulator.source
    token_ids, _, targets = source.tokens(np.array([info["window"]]))
    logits = source.model.own_logits(token_ids)
    token_nll = torch.nn.functional.cross_entropy(logits[0], targets[0], reduction="none")
    while True:
        action = env.unwrapped.encode_action(observation["routed"] > 0, np.full(8, 1 / 8))
        observation, _, terminated, _, info = env.step(action)
        if terminated:
            break
    np.testing.assert_allclose(info["token_nll"], token_nll, atol=1e-5)
    assert info["nll"] == pytest.approx(info["reference_nll"], abs=1e-5)


def test_dropping_experts_changes_what_the_next_block_sees():
    env = make()
    first, _ = env.reset(seed=0)
    own, *_ = env.step(env.unwrapped.encode_action(first["routed"] > 0, np.full(8, 1 / 8)))
    env.reset(seed=0)
    best = first["gate_probs"] == first["gate_probs"].max(-1, keepdims=True)
    dropped, *_ = env.step(env.unwrapped.encode_action(best, np.full(8, 1 / 8)))
    assert np.abs(own["gate_probs"] - dropped["gate_probs"]).max() > 1e-3


def test_info_agrees_with_the_physics_of_the_observation():
    env = make()
    observation, _ = env.reset(seed=4)
    block = decode_observation({name: value[None] for name, value in observation.items()})
    rng = np.random.default_rng(0)
    selection, shares = rng.random((8, 8)) > 0.6, rng.dirichlet(np.ones(8))
    selection[np.arange(8), rng.integers(8, size=8)] = True
    _, reward, _, _, info = env.step(env.unwrapped.encode_action(selection, shares))
    load = latency.device_load(selection[None], block.links)
    device_latency = latency.device_latency_s(block.links, load, info["shares"][None])
    np.testing.assert_allclose(info["device_latency_ms"], 1e3 * device_latency[0], rtol=1e-5)
    assert info["block_latency_ms"] == info["device_latency_ms"].max()
    served = latency.weight_served(block.weights, selection[None])[0]
    assert reward == pytest.approx(served / info["block_latency_ms"], rel=1e-5)
    np.testing.assert_array_equal(info["selection"], selection)


def test_reward_terms_and_episode_totals():
    env = make(reward="latency_quality", quality_weight=3.0)
    steps = play(env, sampled(env), seed=1)[1:]
    last = steps[-1][2]
    assert last["latency_ms"] == pytest.approx(sum(info["block_latency_ms"] for _, _, info in steps))
    assert last["nll"] == pytest.approx(last["token_nll"].mean())
    for _, reward, info in steps:
        terms = info["reward_terms"]
        assert terms["latency_ratio"] == pytest.approx(terms["block_latency_ms"] / terms["vanilla_latency_ms"])
        assert reward == pytest.approx(-terms["latency_ratio"] - 3.0 * terms["added_nll"])
    assert steps[0][2]["reward_terms"]["added_nll"] == 0.0
    assert last["reward_terms"]["added_nll"] == pytest.approx(last["nll"] - last["reference_nll"])


def test_a_reward_may_be_a_function_of_the_terms():
    env = make(reward=lambda terms: -terms["block_latency_ms"])
    for _, reward, info in play(env, sampled(env), seed=0)[1:]:
        assert reward == -info["block_latency_ms"]


def test_solved_shares_beat_sampled_ones():
    joint, selection = make(), make("WDMoE-Selection-v0")
    for action in sampled(joint):
        joint.reset(seed=8)
        selection.reset(seed=8)
        sampled_ms = joint.step(action)[4]["block_latency_ms"]
        assert selection.step(action[: 8 * 8])[4]["block_latency_ms"] <= sampled_ms * (1 + 1e-9)


def test_wlr_of_min_max_shares_cannot_be_improved_by_shares():
    env = make("WDMoE-Bandwidth-v0")
    solved = make("WDMoE-Selection-v0")
    observation, _ = solved.reset(seed=9)
    best = solved.step(solved.unwrapped.encode_action(observation["routed"] > 0))[1]
    for action in (env.action_space.sample() for _ in range(20)):
        env.reset(seed=9)
        assert env.step(action)[1] <= best * (1 + 1e-9)


def test_more_experts_than_devices():
    env = make(devices={"count": 4})
    observation, _ = env.reset(seed=0)
    np.testing.assert_array_equal(observation["placement"].argmax(-1), [0, 0, 1, 1, 2, 2, 3, 3])
    info = env.step(env.unwrapped.encode_action(np.ones((8, 8), dtype=bool), np.full(4, 0.25)))[4]
    np.testing.assert_array_equal(info["load"], np.full(4, 8.0))


def test_placement_may_differ_between_blocks():
    rows = tuple(tuple(int(e) for e in np.roll(np.arange(8), i)) for i in range(make().unwrapped.num_blocks))
    env = make(placement=rows)
    observation, _ = env.reset(seed=0)
    np.testing.assert_array_equal(observation["placement"].argmax(-1), rows[0])
    observation, *_ = env.step(env.action_space.sample())
    np.testing.assert_array_equal(observation["placement"].argmax(-1), rows[1])


def test_deployment_may_be_the_running_model():
    small, large = make(deployment="model"), make()
    action = sampled(small)[0]
    for env in (small, large):
        env.reset(seed=0)
    # The compute of one token: six widths' products and the activation, 4096 x 14336 against the model's own 32 x 48.
    expected = (6 * 4096 * 14336 + 5 * 14336) / (6 * 32 * 48 + 5 * 48)
    seen = [env.reset(seed=0)[0]["compute_latency"] for env in (small, large)]
    np.testing.assert_allclose(seen[1] / seen[0], expected, rtol=1e-5)
    assert small.step(action)[4]["block_latency_ms"] < large.step(action)[4]["block_latency_ms"] / 50


def test_hidden_states_on_request():
    env = make(observe_hidden_states=True)
    observation, _ = env.reset(seed=0)
    assert observation["hidden_states"].shape == (8, env.unwrapped.simulator.sizes.hidden_size)
    assert np.abs(observation["hidden_states"]).max() > 0


def test_returned_arrays_are_copies():
    env = make()
    observation, _ = env.reset(seed=0)
    kept = copy.deepcopy(observation)
    env.step(env.action_space.sample())
    assert_same(observation, kept)


def test_a_window_may_be_named():
    env = make()
    _, info = env.reset(seed=0, options={"window": 17})
    assert info["window"] == 17
    with pytest.raises(ValueError, match="window indices in"):
        env.reset(options={"window": 10**9})
    with pytest.raises(ValueError, match="window indices in"):
        env.reset(options={"window": 1.7})
    with pytest.raises(ValueError, match="options may hold window, got 'windows'"):
        env.reset(options={"windows": 3})


def test_train_and_test_windows_come_from_other_documents():
    names = [{(d.domain, d.name) for d in load_documents(split)} for split in ("train", "test")]
    assert not names[0] & names[1]
    train, test = (make(split=split, num_tokens=32).unwrapped.simulator.source.windows for split in ("train", "test"))
    rows = {row.tobytes() for row in train.token_ids}
    assert np.mean([row.tobytes() in rows for row in test.token_ids]) < 0.005


def test_shifted_windows_are_of_kinds_that_nothing_has_learned_from():
    domains = [{document.domain for document in load_documents(split)} for split in ("train", "test", "shifted")]
    assert domains[2] == {"sermons", "scripture", "database manual"}
    assert not domains[2] & (domains[0] | domains[1])
    windows = make(split="shifted", num_tokens=32).unwrapped.simulator.source.windows
    learned = make(split="train", num_tokens=32).unwrapped.simulator.source.windows
    rows = {row.tobytes() for row in learned.token_ids}
    assert len(windows) > 2000
    assert not any(row.tobytes() in rows for row in windows.token_ids)


def test_step_needs_reset():
    env = make().unwrapped
    with pytest.raises(gym.error.ResetNeeded, match="expected reset"):
        env.step(env.action_space.sample())


def test_a_bad_action_leaves_the_episode_as_it_was():
    env = make().unwrapped
    env.reset(seed=0)
    with pytest.raises(ValueError, match="NaN"):
        env.step(np.full(env.action_space.shape, np.nan))
    action = env.action_space.sample()
    after_error = env.step(action)
    env.reset(seed=0)
    assert_same(after_error, env.step(action))


def failing(error):
    """A function that raises, or gives what is no reward."""

    def fail(terms):
        if isinstance(error, BaseException):
            raise error
        return error

    return fail


@pytest.mark.parametrize(
    "error", [ZeroDivisionError("mine"), KeyboardInterrupt(), np.nan, np.zeros(2), "high"], ids=repr
)
@pytest.mark.parametrize("steps", [0, 2])
def test_a_step_that_fails_after_its_block_has_run_ends_the_episode(error, steps):
    env, twin = make(reward=lambda terms: current(terms)).unwrapped, make().unwrapped
    actions, current = sampled(env), lambda terms: terms["wlr"]
    env.reset(seed=0)
    for action in actions[:steps]:
        env.step(action)
    current = failing(error)
    with pytest.raises((ZeroDivisionError, KeyboardInterrupt, ValueError)):
        env.step(actions[steps])
    current = lambda terms: terms["wlr"]  # noqa: E731
    for _ in range(2):
        with pytest.raises(gym.error.ResetNeeded, match="expected reset"):
            env.step(actions[steps])
    assert_same(play(env, actions, seed=1), play(twin, actions, seed=1))


@pytest.mark.parametrize("place", ["model", "renderer"])
def test_so_does_one_that_fails_in_the_model_or_the_renderer(place, monkeypatch):
    env = make(render_mode="ansi").unwrapped
    env.reset(seed=0)
    action = env.action_space.sample()
    with monkeypatch.context() as patch:
        owner, name = (env._rollout._passes, "resume") if place == "model" else (env.renderer, "add")
        patch.setattr(owner, name, lambda *args: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            env.step(action)
    with pytest.raises(gym.error.ResetNeeded):
        env.step(action)
    assert "Block 1 of 3" in env.render()


def test_a_step_that_fails_before_its_block_has_run_leaves_the_episode_as_it_was(monkeypatch):
    env, twin = make("WDMoE-Selection-v0").unwrapped, make("WDMoE-Selection-v0").unwrapped
    actions = sampled(env)
    for one in (env, twin):
        one.reset(seed=0)
        one.step(actions[0])
    with monkeypatch.context() as patch:
        patch.setattr(wdmoe_actions, "min_max_bandwidth", lambda *args: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            env.step(actions[1])
    assert_same([env.step(action) for action in actions[1:]], [twin.step(action) for action in actions[1:]])


@pytest.mark.parametrize(
    ("keywords", "error", "message"),
    [
        ({"num_token": 8}, TypeError, "unexpected keyword argument 'num_token'; the nearest known are num_tokens"),
        (
            {"channel": {"fadin": "rician"}},
            TypeError,
            "unexpected keyword argument 'channel.fadin'; the nearest known are fading",
        ),
        ({"model": "micr"}, ValueError, "micro"),
        ({"reward": "speed"}, ValueError, "reward must be one of wlr"),
        ({"num_tokens": 10**6}, ValueError, "num_tokens must be at most"),
        ({"devices": {"count": 9}}, ValueError, "9 devices, 8 experts"),
        ({"placement": (0, 1)}, ValueError, r"placement must have shape \(8,\) or"),
        ({"placement": (0, 1, 2, 3, 4, 5, 6, 8)}, ValueError, "devices 0 to 7"),
        ({"split": "validation"}, ValueError, "split must be one of train, test"),
        ({"devices": {"profiles": ("jetson-orin",)}}, ValueError, "jetson"),
    ],
)
def test_impossible_settings_are_one_clear_sentence(keywords, error, message):
    with pytest.raises(error, match=message) as caught:
        make(**keywords)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("seed", [np.int64(3), np.uint8(3), np.array(3)])
def test_a_seed_may_be_numpys(seed):
    env = make()
    assert_same(env.reset(seed=seed)[0], make().reset(seed=3)[0])
    assert type(env.unwrapped.np_random_seed) is int


@pytest.mark.parametrize(
    "seed", [1.5, np.float64(3), -1, np.int64(-1), "3", [3], np.array([3]), 3j, True, np.ma.masked]
)
def test_what_is_no_seed_is_one_sentence_and_the_episode_goes_on(seed):
    env = make().unwrapped
    env.reset(seed=0)
    with pytest.raises(ValueError, match="seed must be a whole number of at least 0, got ") as caught:
        env.reset(seed=seed)
    assert "\n" not in str(caught.value)
    env.step(env.action_space.sample())


@pytest.mark.parametrize("options", [5, [("window", 1)], "window", {1, 2}, False, np.zeros(2)])
def test_options_that_are_no_dict_are_one_sentence(options):
    with pytest.raises(TypeError, match="options must be a dict, got "):
        make().reset(options=options)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({1: 2, "windows": 3, None: 4}, ValueError, "options may hold window, got 'windows', 1, None"),
        ({"window": [1, 2]}, ValueError, "expected 1 window indices"),
        ({"window": [[1], [1, 2]]}, ValueError, "window must be an array"),
        ({"window": "1"}, ValueError, "expected 1 window indices"),
        ({"window": 1j}, ValueError, "expected 1 window indices"),
        ({"window": True}, ValueError, "expected 1 window indices"),
        ({"window": np.ma.array(1, mask=True)}, TypeError, "window must be a plain array, got a masked one"),
    ],
)
def test_options_that_are_none_are_one_sentence(options, error, message):
    with pytest.raises(error, match=message):
        make().reset(options=options)


def test_a_window_may_be_numpys():
    assert make().reset(options={"window": np.int32(17)})[1]["window"] == 17
    assert make().reset(options={"window": np.array(17, dtype=np.uint16)})[1]["window"] == 17


@pytest.mark.parametrize(
    ("action", "error", "message"),
    [
        (np.zeros(72) + 0j, TypeError, "action must hold real numbers, got an array of dtype complex128"),
        (np.ma.array(np.zeros(72), mask=True), TypeError, "action must be a plain array, got a masked one"),
        ([[0.0] * 72, [0.0]], ValueError, "action must be an array, got what NumPy makes none of"),
        ({"experts": 1}, TypeError, "action must hold real numbers, got a value of type dict"),
        (np.zeros(71), ValueError, r"expected action of shape \(72,\), got \(71,\)"),
    ],
)
def test_an_action_that_is_none_leaves_the_episode_as_it_was(action, error, message):
    env = make().unwrapped
    env.reset(seed=0)
    with pytest.raises(error, match=message):
        env.step(action)
    env.step(env.action_space.sample())


def test_ordinary_types_make_the_same_environment():
    plain = make(placement=tuple(range(8)), devices={"distances_m": (50.0,) * 8}, channel={"rician_k_db": 3.0})
    given = make(
        num_tokens=np.int64(8),
        placement=np.arange(8),
        devices={"distances_m": np.full(8, 50, dtype=np.float32)},
        channel={"rician_k_db": np.float32(3)},
    )
    assert given.unwrapped.config == plain.unwrapped.config
    assert_same(given.reset(seed=0)[0], plain.reset(seed=0)[0])
    action = plain.action_space.sample()
    assert_same(given.step(action.tolist()), plain.step(action))
