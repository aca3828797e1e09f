"""Files of policies: what is saved acts alike, and what is none is refused before anything of it runs."""

from __future__ import annotations

import json
import pickle
import re
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from test_env import make
from test_vector_env import make_vec

from eval.__main__ import main as eval_main
from wdmoe_env.policies import make_policy, policy_file, trained_names, weights_file
from wdmoe_env.policies.learned import LearnedPolicy, load_policy
from wdmoe_env.policies.network import Architecture, TokenSharedNetwork
from wdmoe_env.policies.policy_file import read_card, save_flat_policy, save_policy

pytest_plugins = ("policy_envs",)


def test_saved_policy_acts_alike(tmp_path, env, observation):
    torch.manual_seed(1)
    network = TokenSharedNetwork(Architecture(16))
    torch.nn.init.normal_(network.pair_head.weight)
    save_policy(tmp_path / "policy.safetensors", network, "selection", {})
    expected, _ = LearnedPolicy(network, "selection", env.codec).predict(observation)
    for spec in ("policy.safetensors", "policy.json"):
        for path in (str(tmp_path / spec), tmp_path / spec):
            loaded = make_policy(path, env)
            np.testing.assert_array_equal(loaded.predict(observation)[0], expected)
            assert weights_file(path) == tmp_path / spec


def test_a_learned_policy_runs_at_other_sizes():
    other = make(num_tokens=5, devices={"count": 3}).unwrapped
    observation, _ = other.reset(seed=0)
    action, _ = LearnedPolicy(TokenSharedNetwork(), "joint", other.codec).predict(observation)
    selection, shares = other.decode_action(action)
    assert selection.shape == (5, 8)
    assert selection.any(-1).all()
    assert shares.sum() == pytest.approx(1.0)


def test_files_that_are_not_policies_are_refused(tmp_path, env):
    path = tmp_path / "policy.safetensors"
    save_policy(path, TokenSharedNetwork(Architecture(16)), "selection", {"num_experts": 4})
    with pytest.raises(ValueError, match="is for 4 experts, the environment has 8"):
        load_policy(str(path), env.codec)
    save_policy(path, TokenSharedNetwork(Architecture(16)), "selection", {})
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"expected the weights of a policy in .*policy\.safetensors"):
        load_policy(str(path), env.codec)
    broken_network = TokenSharedNetwork(Architecture(16))
    with torch.no_grad():
        broken_network.log_std.fill_(float("nan"))
    with pytest.raises(ValueError, match=r"expected finite weights in .*, got NaN or infinity in log_std"):
        save_policy(path, broken_network, "selection", {})
    save_file(broken_network.state_dict(), path)
    with pytest.raises(ValueError, match="expected finite weights"):
        load_policy(str(path), env.codec)
    path.write_bytes(whole)
    card = json.loads(path.with_suffix(".json").read_text())
    for broken in ("not json", "[]", "{}", json.dumps({**card, "width": "wide"})):
        path.with_suffix(".json").write_text(broken)
        with pytest.raises(ValueError, match="expected"):
            load_policy(str(path), env.codec)
    path.with_suffix(".json").write_text(json.dumps({**card, "width": 32}))
    with pytest.raises(ValueError, match="expected the weights of a policy"):
        load_policy(str(path), env.codec)


def test_what_ships_covers_both_rewards():
    cards = {name: read_card(weights_file(name).with_suffix(".json")) for name in trained_names()}
    rewards = [card["arguments"]["reward"] for card in cards.values()]
    assert rewards.count("wlr") >= 1
    assert rewards.count("latency_quality") >= 3
    served = {name: card for name, card in cards.items() if name.startswith("serve-")}
    assert {card["arguments"]["devices"] for card in served.values()} == {"paper", "boards"}
    assert all("Serve" in card["env_id"] for card in served.values())


@pytest.mark.parametrize("name", trained_names())
def test_a_policy_that_ships_is_small_says_where_it_is_from_and_acts(name):
    path = weights_file(name)
    assert path.stat().st_size <= 1_000_000
    card = read_card(path.with_suffix(".json"))
    of_stock = card["network"] == "pass-price"
    assert card["command"].startswith("python -m benchmarks.stock " if of_stock else "python -m train ")
    assert {"family", "timesteps", "commit", "data", "result"} <= card.keys()
    assert card["arguments"]["seed"] >= 0
    settings = {"split": "test", "devices": "paper", "observe_hidden_states": True}
    env_id = "WDMoE-Serve-v0" if of_stock else "WDMoE-v0"  # prices of passes are chosen by the queue
    env = gym.make_vec(f"wdmoe_env:{env_id}", num_envs=8, **settings).unwrapped
    observation, _ = env.reset(seed=0)
    first_ms = env.step(make_policy(name, env).predict(observation)[0])[4]["block_latency_ms"]
    env.reset(seed=0)
    optimal_ms = env.step(make_policy("vanilla-optimal", env).predict(observation)[0])[4]["block_latency_ms"]
    assert first_ms.mean() < optimal_ms.mean()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"width": 10**12}, "expected width in .*, a whole number of 1 to 1024, got 1000000000000"),
        ({"width": 1024, "hidden_size": 65_536, "num_blocks": 65_536, "num_experts": 65_536}, "in place of"),
        ({"width": True}, "a whole number of 1 to 1024, got True"),
        ({"rounds": 0}, "expected rounds"),
        ({"rounds": 65_536}, "expected rounds in .*, a whole number of 1 to 8, got 65536"),
        ({"rounds": 9}, "expected rounds in .*, a whole number of 1 to 8, got 9"),
        ({"rounds": 2.0}, "expected rounds in .*, a whole number of 1 to 8, got 2.0"),
        ({"extra_experts": -1}, "expected extra_experts in .*, a whole number of 0 to 65536, got -1"),
        ({"hidden_size": 32}, "expected num_blocks and num_experts of at least 1 .*, got 0 and 0 in "),
        ({"network": "flat", "layers": [200, 72]}, "expected the decision joint of a flat network in .*'selection'"),
        ({"network": "flat", "decision": "joint", "layers": [2] * 10_000}, "expected layers in .*, 2 to 16 sizes"),
        (
            {"network": "pickle"},
            "expected a network in .*, one of token-shared, flat, token, price, pass-price, got 'pickle'",
        ),
        ({"network": "flat", "decision": "joint", "layers": [10**9, 2]}, "expected layers"),
        (
            {"network": "flat", "decision": "joint", "layers": "many"},
            "expected layers in .*, 2 to 16 sizes, got 'many'",
        ),
        ({"decision": "all"}, "expected a decision"),
        ({"format": "wdmoe-policy-1"}, "expected the JSON of a policy"),
    ],
)
def test_a_crafted_card_is_refused_before_any_memory_is_taken(tmp_path, env, change, message):
    path = tmp_path / "policy.safetensors"
    save_policy(path, TokenSharedNetwork(Architecture(16)), "selection", {})
    card = json.loads(path.with_suffix(".json").read_text())
    path.with_suffix(".json").write_text(json.dumps({**card, **change}))
    with pytest.raises(ValueError, match=message) as caught:
        load_policy(str(path), env.codec)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('"family": "\\ud800"', "expected text without NUL and lone surrogates in .*, got '.ud800'"),
        ('"\\udfff": 1', "expected text without NUL and lone surrogates"),
        ('"arguments": {"reward": ["a\\u0000b"]}', "expected text without NUL and lone surrogates"),
        ('"data": ' + "[" * 100 + "]" * 100, "expected a card of at most 32 levels"),
        ('"data": ' + "[" * 100_000 + "]" * 100_000, "expected the JSON of a policy"),
        ('"data": "' + "x" * 2**20 + '"', "expected the JSON of a policy in .*, at most 1048576 bytes, got more"),
        ('"rounds": ' + "9" * 5000, "expected rounds in .*, a whole number of 1 to 8, got None"),
        ('"width": NaN', "expected width in .*, a whole number of 1 to 1024, got None"),
    ],
)
def test_text_that_no_card_holds_is_one_sentence(tmp_path, env, text, message):
    path = tmp_path / "policy.safetensors"
    save_policy(path, TokenSharedNetwork(Architecture(16)), "selection", {})
    card = path.with_suffix(".json")
    card.write_text(card.read_text().rstrip().removesuffix("}") + ", " + text + "}")
    with pytest.raises(ValueError, match=message) as caught:
        load_policy(str(path), env.codec)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_a_card_with_a_byte_order_mark_is_read(tmp_path, env, encoding):
    path = tmp_path / "policy.safetensors"
    save_policy(path, TokenSharedNetwork(Architecture(16)), "selection", {"family": "naïve"})
    text = path.with_suffix(".json").read_text()
    path.with_suffix(".json").write_text(text, encoding=encoding)
    assert read_card(path.with_suffix(".json"))["family"] == "naïve"
    load_policy(str(path), env.codec)


def test_a_card_never_holds_nan(tmp_path):
    """Training may have come to no return: that is null, as JSON has it, and so is what earlier versions wrote."""
    path = tmp_path / "policy.safetensors"
    results = {"return": float("nan"), "entropy": [1.0, float("inf")]}
    save_policy(path, TokenSharedNetwork(Architecture(16)), "selection", {"last_update": results})
    card = path.with_suffix(".json")
    for written in ("null", "NaN", "-Infinity", "1e999"):
        card.write_text(card.read_text().replace('"return": null', f'"return": {written}'))
        assert read_card(card)["last_update"] == {"return": None, "entropy": [1.0, None]}
        card.write_text(card.read_text().replace(f'"return": {written}', '"return": null'))


@pytest.mark.parametrize(
    "card", [{"family": "\ud800"}, {"a\0": 1}, {"data": ["x" * 2**20]}], ids=["surrogate", "nul", "long"]
)
def test_a_card_that_could_not_be_read_again_is_not_written(tmp_path, card):
    with pytest.raises(ValueError, match="expected"):
        save_policy(tmp_path / "policy.safetensors", TokenSharedNetwork(Architecture(16)), "selection", card)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "dtype", [torch.int32, torch.int8, torch.int64, torch.bool, torch.complex64, torch.float8_e5m2]
)
def test_weights_of_a_type_that_is_never_written_are_refused(tmp_path, env, dtype):
    path = tmp_path / "policy.safetensors"
    network = TokenSharedNetwork(Architecture(16))
    save_policy(path, network, "selection", {})
    weights = network.state_dict()
    for named in (["log_std"], list(weights)):
        save_file(weights | {name: weights[name].to(dtype) for name in named}, path)
        with pytest.raises(ValueError, match=r"is of type .* in place of one of F32, F64, F16, BF16") as caught:
            load_policy(str(path), env.codec)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_a_policy_of_another_precision_acts(tmp_path, env, observation, dtype):
    path = tmp_path / "policy.safetensors"
    save_policy(path, TokenSharedNetwork(Architecture(16)).to(dtype), "selection", {})
    actions, _ = load_policy(str(path), env.codec).predict(observation)
    assert env.action_space.contains(actions)


def test_more_weights_than_any_policy_has_are_refused_unread(tmp_path, env, monkeypatch):
    path = tmp_path / "policy.safetensors"
    save_policy(path, TokenSharedNetwork(Architecture(16)), "selection", {})
    monkeypatch.setattr(policy_file, "MOST_WEIGHTS", 1000)
    with pytest.raises(ValueError, match=r"it holds [0-9]+ weights in place of at most 1000"):
        load_policy(str(path), env.codec)


@pytest.mark.parametrize("sizes", [{"rounds": 9}, {"width": 0}, {"width": 2000}, {"rounds": 2.0}, {"hidden_size": 8}])
def test_a_network_that_no_file_could_hold_is_not_made(sizes):
    with pytest.raises(ValueError, match=r"expected .* (of|for) a network"):
        Architecture(**sizes)


def test_a_pickle_in_place_of_weights_runs_nothing(tmp_path, env):
    class Trap:
        def __reduce__(self):
            return Path.touch, (tmp_path / "ran",)

    path = tmp_path / "policy.safetensors"
    save_policy(path, TokenSharedNetwork(Architecture(16)), "selection", {})
    for content in (pickle.dumps(Trap()), b"", b"\xff" * 64, (10**15).to_bytes(8, "little") + b"{}"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"expected the weights of a policy in .* got a file that is not"):
            load_policy(str(path), env.codec)
    assert not (tmp_path / "ran").exists()


def test_a_flat_policy_takes_only_its_sizes(tmp_path, env, observation):
    path = tmp_path / "policy.safetensors"
    save_flat_policy(path, [torch.nn.Linear(7, 5), torch.nn.Linear(5, 3)], {})
    with pytest.raises(ValueError, match="is for actions of 3 numbers, the environment has 72"):
        load_policy(str(path), env.codec)
    save_flat_policy(path, [torch.nn.Linear(7, 5), torch.nn.Linear(5, 72)], {})
    with pytest.raises(ValueError, match="is for observations of 7 numbers, the environment has 241"):
        load_policy(str(path), env.codec)
    save_flat_policy(path, [torch.nn.Linear(233, 5), torch.nn.Linear(5, 72)], {})
    assert env.action_space.contains(load_policy(str(path), env.codec).predict(observation)[0])


READERS = [name for name in trained_names() if read_card(weights_file(name).with_suffix(".json"))["hidden_size"]]


@pytest.mark.parametrize("name", READERS)
def test_a_policy_that_reads_one_model_is_refused_on_another(name, capsys):
    message = f"policy .*{name}.* is for 6 blocks, the environment has 3"
    for env in (make_vec(2, observe_hidden_states=True), make(observe_hidden_states=True), make_vec(2)):
        with pytest.raises(ValueError, match=message):
            make_policy(name, env)
    with pytest.raises(SystemExit) as stop:
        eval_main(["--model", "micro", "--num-tokens", "8", "--episodes", "4", "--policies", name])
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert re.search(message, error)
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"hidden_size": 128}, "is for 128 numbers in a hidden state, the environment has 32"),
        ({"num_blocks": 6}, "is for 6 blocks, the environment has 3"),
        ({"num_experts": 16}, "is for 16 experts, the environment has 8"),
    ],
)
def test_each_size_of_another_model_is_named(tmp_path, sizes, message):
    env = make_vec(2, observe_hidden_states=True).unwrapped
    own = {"hidden_size": 32, "num_blocks": 3, "num_experts": 8}
    path = tmp_path / "policy.safetensors"
    save_policy(path, TokenSharedNetwork(Architecture(16, **own | sizes)), "selection", {})
    with pytest.raises(ValueError, match=message):
        make_policy(str(path), env)
    save_policy(path, TokenSharedNetwork(Architecture(16, **own)), "selection", {})
    observation, _ = env.reset(seed=0)
    policy = make_policy(str(path), env)
    policy.predict(observation)
    other = {**observation, "hidden_states": np.zeros((2, 8, 128), np.float32)}
    with pytest.raises(ValueError, match="this policy reads hidden states of 32 numbers, got 128"):
        policy.predict(other)


@pytest.mark.parametrize("value", [3e38, -3e38])
@pytest.mark.parametrize("kind", ["selection", "bandwidth", "flat"])
def test_finite_weights_that_overflow_are_not_acted_upon(tmp_path, env, observation, kind, value):
    torch.manual_seed(0)
    path, network = tmp_path / "policy.safetensors", TokenSharedNetwork(Architecture(16))
    layers = [torch.nn.Linear(233, 5), torch.nn.Linear(5, 5), torch.nn.Linear(5, 72)]
    for parameter in (*network.parameters(), *(parameter for layer in layers for parameter in layer.parameters())):
        torch.nn.init.constant_(parameter, value)
    torch.nn.init.constant_(layers[0].weight, abs(value))
    torch.nn.init.constant_(layers[1].weight[:, :2], -value)
    if kind == "flat":
        save_flat_policy(path, layers, {})
    else:
        save_policy(path, network, kind, {})
    codec = make_vec(1, decision="joint").unwrapped.codec
    with pytest.raises(ValueError, match="are NaN or infinite: its weights are too large, or not finite themselves"):
        load_policy(str(path), codec).predict(observation)
