"""A model whose experts are on other hosts gives what it gives here, whatever its architecture and its batch."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
import torch
from moe_models import random_model, random_tokens
from testbed_devices import threaded_testbed

from wdmoe_env.moe.runner import LocalRunner, Service
from wdmoe_env.moe.zoo import load_model
from wdmoe_env.policies.registry import make_policy
from wdmoe_env.testbed.station import testbed_runner as runner_of

J = 8
FAST = {"links": "paced", "compute": "real"}


@pytest.fixture(scope="module", params=["mixtral", "olmoe", "qwen3_moe"])
def split(request, tmp_path_factory):
    """A saved model, whole here and without experts on two devices: (whole, base station's, runner)."""
    folder = tmp_path_factory.mktemp(request.param)
    random_model(request.param).save_pretrained(folder)
    save_micro_tokenizer(folder)
    whole, bare = load_model(str(folder)), load_model(str(folder), experts="meta")
    with threaded_testbed(folder, folder, 2, **FAST) as (path, _):
        runner = runner_of(str(path))
        runner.open(bare)
        yield whole, bare, runner
        runner.close()


def save_micro_tokenizer(folder):
    """A tokenizer, without which no model is loaded."""
    from importlib import resources

    tiny = resources.files("wdmoe_env") / "assets" / "tiny"
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_text((tiny / name).read_text(encoding="utf-8"), encoding="utf-8")


def logits_of(model, ids, choose, service=None):
    forward = model.forward(ids, service=service)
    while forward.block is not None:
        forward.resume(choose(forward.block))
    return forward.result.logits


@pytest.mark.parametrize("batch", [1, 8])
def test_logits_are_those_of_the_whole_model(split, batch):
    whole, bare, runner = split
    ids = random_tokens(whole.model, batch, J)
    for choose in (lambda block: None, lambda block: block.routed.roll(1, dims=1)):
        service = Service(runner, tuple(range(batch)))
        elsewhere = logits_of(bare, ids, choose, service)
        torch.testing.assert_close(elsewhere, logits_of(whole, ids, choose), rtol=0, atol=1e-5)
        assert not service.unserved_pairs.any()
    assert all(parameter.is_meta for experts in bare.experts for parameter in experts.parameters())


def test_the_same_text_is_generated(split):
    whole, bare, runner = split
    ids = random_tokens(whole.model, 2, 4)

    def generate(model):
        return model.generate(ids, max_new_tokens=8, do_sample=False, pad_token_id=0)

    def texts(model, service):
        forward = model.run(generate, service)
        while forward.block is not None:
            forward.resume(None)
        return forward.result

    assert torch.equal(texts(bare, Service(runner, ())), texts(whole, None))


@pytest.mark.parametrize("bits", [8, 4])
def test_few_bits_round_as_they_do_here(split, bits):
    """The codes cross the wire; what arrives is what the simulated link makes of the same messages."""
    from wdmoe_env.moe.link import link_runner

    whole, bare, runner = split
    ids = random_tokens(whole.model, 2, J)
    placement = np.zeros((whole.num_blocks, whole.num_experts, 2))
    for expert in range(whole.num_experts):
        placement[:, expert, expert * 2 // whole.num_experts] = 1
    here = link_runner(LocalRunner(), placement, bits)
    here.open(whole)
    expected = logits_of(whole, ids, lambda block: None, Service(here, (0, 1), bits))
    got = logits_of(bare, ids, lambda block: None, Service(runner, (0, 1), bits))
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-4)
    exact = logits_of(whole, ids, lambda block: None)
    assert (exact - expected).abs().max() > 1e-3


@pytest.fixture(scope="module")
def hosts(tmp_path_factory):
    """An inventory of two devices that hold "micro", on a band so wide that no test waits."""
    with threaded_testbed(tmp_path_factory.mktemp("micro"), "micro", 2) as (path, servers):
        yield path, servers


def episode(env, policy, seed, options=None):
    """Infos of an episode."""
    observation, _ = env.reset(seed=seed, options=options)
    chooser, state, infos, ended = make_policy(policy, env), None, [], False
    while not ended:
        action, state = chooser.predict(observation, state=state, episode_start=np.array([not infos]))
        observation, reward, ended, _, info = env.step(action)
        infos.append(info | {"reward": reward})
    return infos


def test_an_episode_is_that_of_the_simulator_but_for_the_clock(hosts):
    path, _ = hosts
    measured = gym.make("wdmoe_env:WDMoE-Testbed-v0", inventory=path, num_tokens=J)
    simulated = gym.make("wdmoe_env:WDMoE-v0", model="micro", num_tokens=J, devices={"count": 2})
    for policy in ("vanilla", "wdmoe:0.8", "wdmoe-history"):
        there, here = episode(measured, policy, 5), episode(simulated, policy, 5)
        for got, expected in zip(there, here, strict=True):
            assert (got["selection"] == expected["selection"]).all()
            np.testing.assert_allclose(got["shares"], expected["shares"], rtol=1e-4)
            np.testing.assert_allclose(got["simulated_latency_ms"], expected["block_latency_ms"], rtol=1e-4)
            assert got["unserved_pairs"] == 0
            assert got["block_latency_ms"] >= max(got["device_latency_ms"]) > 0
            # The pace is a lower bound of what the clock can say, up to the resolution of two clocks' comparison.
            assert got["block_latency_ms"] > got["simulated_latency_ms"] - 0.5
            np.testing.assert_allclose(got["reward"], got["wlr"], rtol=1e-6)
            np.testing.assert_allclose(
                got["wlr"], got["reward_terms"]["gate_weight_served"] / got["block_latency_ms"], rtol=1e-6
            )
        np.testing.assert_allclose(there[-1]["nll"], here[-1]["nll"], atol=1e-5)
        np.testing.assert_allclose(there[-1]["reference_nll"], here[-1]["reference_nll"], atol=1e-5)
        np.testing.assert_allclose(there[-1]["latency_ms"], sum(info["block_latency_ms"] for info in there))
    measured.close()
    simulated.close()


def test_a_time_scale_divides_out(hosts, tmp_path):
    path, _ = hosts
    slow = tmp_path / "slow.toml"
    slow.write_text("time_scale = 8\n" + path.read_text())
    env = gym.make("wdmoe_env:WDMoE-Testbed-v0", inventory=slow, num_tokens=J)
    records = []
    env.unwrapped.simulator.runner.listeners.append(records.append)
    infos = episode(env, "vanilla-optimal", 3)
    paced = [record for record in records if record.paced]
    for info, record in zip(infos, paced, strict=True):
        assert record.time_scale == 8
        np.testing.assert_allclose(record.expected_ms, 8 * info["simulated_latency_ms"], rtol=1e-6)
        np.testing.assert_allclose(record.latency_ms, 8 * info["block_latency_ms"], rtol=1e-6)
    env.close()


def test_a_policy_can_see_what_was_measured_last(hosts, tmp_path):
    """Under ``observe = "measured"`` the observation of a block is the channel of the one before, by its rates."""
    path, _ = hosts
    slow = tmp_path / "measured.toml"
    slow.write_text('observe = "measured"\ntime_scale = 20\n' + path.read_text())
    settings = {"num_tokens": J, "channel": {"bandwidth_hz": 20e6}}
    env = gym.make("wdmoe_env:WDMoE-Testbed-v0", inventory=slow, **settings)
    simulated = gym.make("wdmoe_env:WDMoE-v0", model="micro", devices={"count": 2}, **settings)
    observation, _ = env.reset(seed=3)
    true, _ = simulated.reset(seed=3)
    np.testing.assert_allclose(observation["spectral_efficiency"], true["spectral_efficiency"], rtol=1e-5)
    action = env.unwrapped.encode_action(observation["routed"] > 0, np.full(2, 0.5))
    seen, *_ = env.step(action)
    then, *_ = simulated.step(action)
    # No payload is faster than its pace, whatever the machine does, but for the comparison of clocks.
    assert (seen["spectral_efficiency"] <= 1.05 * true["spectral_efficiency"]).all()
    assert np.abs(then["spectral_efficiency"] / true["spectral_efficiency"] - 1).max() > 0.1
    episode(env, "wdmoe-history", 3)
    env.close()


def test_what_was_measured_is_drawn(hosts):
    path, _ = hosts
    for mode in ("ansi", "rgb_array"):
        env = gym.make("wdmoe_env:WDMoE-Testbed-v0", inventory=path, num_tokens=J, render_mode=mode)
        episode(env, "vanilla", 0)
        drawn = env.render()
        if mode == "ansi":
            assert "ms" in drawn
        else:
            assert (drawn.ndim, drawn.dtype, drawn.std() > 1) == (3, np.uint8, True)
        env.close()


def test_an_evaluation_measures(hosts, tmp_path, capsys):
    """The usual table, with what the simulator says beside it; the results say that latency was measured."""
    import json

    from eval.__main__ import main

    path, _ = hosts
    out = tmp_path / "results"
    arguments = ["--testbed", str(path), "--policies", "top1", "--episodes", "2", "--num-tokens", str(J)]
    assert main([*arguments, "--out", str(out)]) == 0
    assert "simulated ms" in capsys.readouterr().out
    results = json.loads((out / "results.json").read_text())
    assert results["made_by"]["latency"] == f"measured on the testbed {path}"
    for policy in results["policies"]:
        assert policy["latency_ms"]["mean"] > policy["simulated_latency_ms"]["mean"] - 1.0 > 0
        assert policy["unserved_pairs"] == 0
    assert "was measured on the testbed" in (out / "report.md").read_text()
    with pytest.raises(SystemExit):
        main(["--replay", str(out)])
    assert "which does not come again" in capsys.readouterr().err
