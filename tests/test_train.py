"""`python -m train`: learns, checkpoints, resumes, and says what is wrong in one sentence."""

from __future__ import annotations

import csv
import dataclasses
import errno
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from test_vector_env import make_vec

from train import agent, sac, sb3, search, straight_through
from train.__main__ import main
from train.arguments import Arguments, hyperparameters
from train.checkpoint import load_checkpoint, save_checkpoint
from train.environment import make_env
from train.folder import open_run
from train.progress import goes_on
from train.updates import windows_without
from wdmoe_env.policies import make_policy
from wdmoe_env.writing import held_folder, is_temporary

ROOT = Path(__file__).parents[1]

SMALL = {"num_envs": 8, "n_steps": 4, "batch_size": 16, "n_epochs": 2, "learning_rate": 3e-3, "gamma": 0.0}


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    """A table of small settings in place of the shipped one."""
    real = agent.hyperparameters
    small = {
        "ppo": {"windows": 4, "rollouts": 2},
        "sb3-ppo": SMALL,
        "straight-through": {"batch_size": 4},
        "sac": {"num_envs": 4, "batch_size": 16, "buffer_size": 1000},
    }
    monkeypatch.setattr(agent, "hyperparameters", lambda *names: {**real(*names), **small[names[0]]})


def flags(out, *more):
    return ["--model", "micro", "--num-tokens", "8", "--no-progress", "--out", str(out), *more]


def stock(out, *more):
    return flags(out, "--algorithm", "sb3-ppo", *more)


def weights(out):
    return load_file(out / "policy.safetensors")


def rows(path):
    with path.open() as file:
        return list(csv.DictReader(file))


def assert_weights(one, other, same):
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one) == same


@pytest.mark.parametrize("env_id", ["WDMoE-v0", "WDMoE-Selection-v0", "WDMoE-Bandwidth-v0"])
def test_training_ends_with_a_policy_that_acts(tmp_path, env_id, capsys):
    assert main(stock(tmp_path / "run", "--timesteps", "64", "--env-id", env_id)) == 0
    assert "policy.safetensors" in capsys.readouterr().out
    env = make_vec(4).unwrapped
    policy = make_policy(str(tmp_path / "run" / "policy.safetensors"), env)
    env.step(policy.predict(env.reset(seed=0)[0])[0])
    card = json.loads((tmp_path / "run" / "policy.json").read_text())
    assert card["timesteps"] == 64
    assert card["env_id"] == env_id
    assert "time/fps" in (tmp_path / "run" / "progress.csv").read_text().splitlines()[0]


def test_same_seed_same_policy_other_seed_another(tmp_path):
    for name, seed in (("a", "1"), ("b", "1"), ("c", "2")):
        main(flags(tmp_path / name, "--timesteps", "64", "--seed", seed))
    assert_weights(weights(tmp_path / "a"), weights(tmp_path / "b"), same=True)
    assert_weights(weights(tmp_path / "a"), weights(tmp_path / "c"), same=False)


def test_stock_ppo_improves_wlr(tmp_path):
    """Sixty rollouts lift the reward by more than chance does."""
    arguments = Arguments(
        algorithm="sb3-ppo",
        model="micro",
        num_tokens=8,
        timesteps=32 * 60,
        out=str(tmp_path / "run"),
        progress=False,
    )
    path = agent.train(arguments)
    env = make_vec(256, "WDMoE-Selection-v0").unwrapped
    rewards = {}
    for name in ("vanilla-optimal", str(path)):
        observation, _ = env.reset(seed=5)
        rewards[name] = env.step(make_policy(name, env).predict(observation)[0])[1]
    gain = rewards[str(path)] - rewards["vanilla-optimal"]
    assert gain.mean() > 3 * gain.std() / len(gain) ** 0.5


def test_a_killed_run_resumes(tmp_path, monkeypatch):
    run = tmp_path / "run"

    def killed(self):
        if self.num_timesteps >= 96:
            raise KeyboardInterrupt
        return True

    with monkeypatch.context() as patch:
        patch.setattr(sb3.Checkpoints, "_on_step", killed)
        assert main(stock(run, "--timesteps", "160", "--checkpoint-every", "32")) == 130
    assert not (run / "policy.safetensors").exists()
    assert main(stock(run, "--timesteps", "160", "--resume")) == 0
    card = json.loads((run / "policy.json").read_text())
    assert card["timesteps"] == 160
    curves = {path.name: rows(path) for path in run.glob("progress*.csv")}
    assert curves["progress.csv"][0]["time/total_timesteps"] == "32"
    resumed = curves[next(name for name in curves if name != "progress.csv")]
    assert resumed[-1]["time/total_timesteps"] == "160"


def test_a_run_is_resumed_as_what_it_was_or_not_at_all(tmp_path, capsys):
    run = tmp_path / "run"
    main(stock(run, "--timesteps", "32"))
    before = (run / "arguments.json").read_text()
    capsys.readouterr()
    assert main(stock(run, "--resume", "--env-id", "WDMoE-v0")) == 2
    assert "was begun with env_id='WDMoE-Selection-v0', got 'WDMoE-v0'" in capsys.readouterr().err
    assert (run / "arguments.json").read_text() == before
    card = (run / "policy.json").read_text()
    assert main(stock(run, "--timesteps", "32", "--resume")) == 0
    assert (run / "policy.json").read_text() == card
    assert json.loads(card)["final_mean_return"] > 0


def test_a_checkpoint_restores_weights_and_moments(tmp_path):
    main(stock(tmp_path / "run", "--timesteps", "64"))
    file = tmp_path / "run" / "checkpoint.safetensors"
    arguments = Arguments(model="micro", num_tokens=8)
    policies = [fresh_policy(arguments) for _ in range(2)]
    for policy in policies:
        assert load_checkpoint(file, policy, {"optimizer": policy.optimizer}) == 64
    saved = load_file(file)
    for policy in policies:
        moments = policy.optimizer.state_dict()["state"]
        assert moments
        for index, state in moments.items():
            assert state["step"] > 0
            for name in ("exp_avg", "exp_avg_sq"):
                assert torch.equal(state[name], saved[f"optimizer.{index}.{name}"])
    kept = {name: value for name, value in saved.items() if name.startswith("policy.network.")}
    own = policies[0].state_dict()
    assert all(torch.equal(own[name.removeprefix("policy.")], value) for name, value in kept.items())


def fresh_policy(arguments):
    from stable_baselines3 import PPO

    from agents.sb3_policy import TokenSharedPolicy
    from wdmoe_env.integrations.sb3 import SB3VecEnv

    return PPO(TokenSharedPolicy, SB3VecEnv(make_env(arguments, 2)), n_steps=4, batch_size=8).policy


def test_mistakes_are_one_sentence_and_exit_2(tmp_path, capsys):
    used = tmp_path / "used"
    main(flags(used, "--timesteps", "32"))
    capsys.readouterr()
    cases = [
        (flags(tmp_path / "a", "--env-id", "CartPole-v1"), "env_id must be one of WDMoE"),
        (flags(tmp_path / "b", "--reward", "speed"), "reward must be one of wlr"),
        (flags(tmp_path / "e", "--timesteps", "0"), "timesteps must be a whole number of at least 1, got 0"),
        (flags(tmp_path / "f", "--checkpoint-every", "0"), "checkpoint_every must be a whole number of at least 1"),
        (flags(tmp_path / "g", "--seed", "-1"), "seed must be a whole number of at least 0, got -1"),
        (flags(tmp_path / "c", "--resume"), "but there is none"),
        (flags(used), "pass --resume to go on with it"),
        ([*flags(tmp_path / "d"), "--model", "tinny"], "tiny"),
    ]
    for argv, message in cases:
        assert main(argv) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
    assert not (tmp_path / "a").exists()
    assert not (tmp_path / "d").exists()
    assert not (tmp_path / "g").exists()


def test_a_truncated_checkpoint_is_refused(tmp_path, capsys):
    run = tmp_path / "run"
    main(flags(run, "--timesteps", "32"))
    file = run / "checkpoint.safetensors"
    file.write_bytes(file.read_bytes()[:100])
    capsys.readouterr()
    assert main(flags(run, "--resume")) == 2
    assert "expected a checkpoint of this policy" in capsys.readouterr().err


def test_every_setting_of_the_shipped_table_is_stock_ppos(tmp_path):
    import inspect

    from stable_baselines3 import PPO

    known = set(inspect.signature(PPO).parameters) | {"num_envs"}
    for env_id in ("WDMoE-v0", "WDMoE-Selection-v0", "WDMoE-Bandwidth-v0"):
        for reward in ("wlr", "wlr_device", "latency_quality"):
            assert set(hyperparameters("sb3-ppo", env_id, reward)) <= known


def test_help_names_every_argument(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    text = capsys.readouterr().out
    for field in dataclasses.fields(Arguments):
        assert "--" + field.name.replace("_", "-") in text
    assert np.all([word in text for word in ("examples:", "--resume")])


def gradient_flags(out, *more):
    return flags(out, "--algorithm", "straight-through", "--timesteps", "48", *more)


@pytest.mark.parametrize("env_id", ["WDMoE-v0", "WDMoE-Selection-v0"])
@pytest.mark.parametrize("reward", ["wlr", "latency_quality"])
def test_straight_through_ends_with_a_policy_that_acts(tmp_path, env_id, reward):
    more = ("--hidden-states", "--extra-experts", "1", "--reward", reward, "--env-id", env_id)
    assert main(gradient_flags(tmp_path / "run", *more)) == 0
    path = str(tmp_path / "run" / "policy.safetensors")
    env = make_vec(4, observe_hidden_states=True).unwrapped
    env.step(make_policy(path, env).predict(env.reset(seed=0)[0])[0])
    card = json.loads((tmp_path / "run" / "policy.json").read_text())
    assert (card["family"], card["timesteps"]) == ("straight-through", 48)
    assert card["command"].startswith("python -m train --algorithm straight-through")
    assert "--hidden-states --extra-experts 1 --timesteps 48 --out" in card["command"]
    blind = make_vec(4).unwrapped
    with pytest.raises(ValueError, match="make the environment with observe_hidden_states=True"):
        make_policy(path, blind).predict(blind.reset(seed=0)[0])


@pytest.mark.parametrize(("reward", "term"), [("wlr", "wlr"), ("latency_quality", "latency_ratio")])
def test_straight_through_improves_its_reward(tmp_path, reward, term):
    arguments = Arguments(
        algorithm="straight-through", model="micro", num_tokens=8, reward=reward, timesteps=16 * 100, quality_weight=0.0
    )
    path = agent.train(dataclasses.replace(arguments, out=str(tmp_path / "run"), progress=False))
    env = make_vec(256, "WDMoE-Selection-v0").unwrapped
    terms = {}
    for name in ("vanilla-optimal", str(path)):
        observation, _ = env.reset(seed=5)
        terms[name] = env.step(make_policy(name, env).predict(observation)[0])[4]["reward_terms"][term]
    gain = (terms[str(path)] - terms["vanilla-optimal"]) * (1 if reward == "wlr" else -1)
    assert gain.mean() > 3 * gain.std() / len(gain) ** 0.5


def test_a_killed_straight_through_run_ends_as_one_that_was_not(tmp_path, monkeypatch):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert main(gradient_flags(whole)) == 0
    real = straight_through.Trainer.update

    def update(self, number, progress):
        if number >= 2:
            raise KeyboardInterrupt
        return real(self, number, progress)

    with monkeypatch.context() as patch:
        patch.setattr(straight_through.Trainer, "update", update)
        assert main(gradient_flags(killed, "--checkpoint-every", "16")) == 130
    assert main(gradient_flags(killed, "--resume")) == 0
    assert_weights(weights(whole), weights(killed), same=True)
    main(gradient_flags(tmp_path / "other", "--seed", "1"))
    assert_weights(weights(whole), weights(tmp_path / "other"), same=False)


def test_straight_through_learns_the_optimal_shares(tmp_path):
    arguments = Arguments(algorithm="straight-through", env_id="WDMoE-v0", model="micro", num_tokens=8)
    settings = straight_through.Settings(16, 3e-3, 1.0, 1.0, 0.0)
    trainer = straight_through.Trainer(arguments, settings, make_env(arguments, 4).unwrapped.simulator, joint=True)
    losses = [trainer.update(number, 0.0)["share_loss"] for number in range(60)]
    assert np.mean(losses[-10:]) < 0.6 * np.mean(losses[:5])


def test_ppo_goes_on_from_a_policy(tmp_path, capsys):
    first = tmp_path / "first"
    main(gradient_flags(first))
    start = ("--start", str(first / "policy.safetensors"))
    assert main(flags(tmp_path / "then", "--timesteps", "32", *start)) == 0
    moved = {name: (weights(first)[name] - value).abs().max() for name, value in weights(tmp_path / "then").items()}
    assert 0 < max(moved.values()) < 0.1
    capsys.readouterr()
    assert main(flags(tmp_path / "other", "--timesteps", "32", "--extra-experts", "1", *start)) == 2
    assert "expected a policy to start from of Architecture" in capsys.readouterr().err


def test_domains_are_left_out(tmp_path, capsys):
    simulator = make_env(Arguments(model="micro", num_tokens=8), 1).unwrapped.simulator
    names = np.array(simulator.source.windows.domains)
    left = windows_without(simulator, "code, french")
    assert set(names[left]) == set(names) - {"code", "french"}
    assert main(gradient_flags(tmp_path / "run", "--without-domains", "poetry")) == 2
    assert "without_domains must leave some of code" in capsys.readouterr().err


def test_sac_is_stock_acts_alike_from_its_file_and_resumes(tmp_path, monkeypatch):
    run = tmp_path / "run"
    more = ("--algorithm", "sac", "--env-id", "WDMoE-v0")
    seen = []
    real = sac.optimizers
    monkeypatch.setattr(sac, "optimizers", lambda algorithm: seen.append(algorithm) or real(algorithm))
    assert main(flags(run, "--timesteps", "64", *more)) == 0
    env = make_vec(4).unwrapped
    observation, _ = env.reset(seed=0)
    expected, _ = seen[-1].predict(observation, deterministic=True)
    actions, _ = make_policy(str(run / "policy.safetensors"), env).predict(observation)
    np.testing.assert_array_equal(np.sign(actions[:, :64]), np.sign(expected[:, :64]))
    shares = [env.codec.decode(action, (4,))["bandwidth"] for action in (actions, expected)]
    np.testing.assert_allclose(*shares, rtol=1e-4, atol=4e-4)
    assert main(flags(run, "--timesteps", "128", "--resume", *more)) == 0
    assert json.loads((run / "policy.json").read_text())["timesteps"] == 128


def test_certain_choices_have_an_entropy_without_nan():
    arguments = Arguments(algorithm="straight-through", model="micro", num_tokens=8)
    settings = straight_through.Settings(4, 1e-3, 1.0, 1.0, 0.01)
    trainer = straight_through.Trainer(arguments, settings, make_env(arguments, 4).unwrapped.simulator, joint=False)
    with torch.no_grad():
        trainer.network.start.fill_(200.0)
    assert trainer.update(0, 0.0)["entropy"] == 0.0
    assert all(parameter.isfinite().all() for parameter in trainer.network.parameters())


def test_a_search_ranks_its_grid_and_goes_on_where_it_was(tmp_path, capsys):
    grid = ("--grid", "batch_size=4", "learning_rate=1e-3,2e-3")
    argv = gradient_flags(tmp_path / "search", "--reward", "latency_quality", *grid)
    assert search.main(argv) == 0
    found = rows(tmp_path / "search" / "search.csv")
    assert [row["learning_rate"] for row in found] == ["0.001", "0.002"]
    printed = list(csv.DictReader(capsys.readouterr().out.splitlines()))
    assert float(printed[0]["return"]) >= float(printed[1]["return"])
    policy = tmp_path / "search" / "batch_size=4-learning_rate=0.001" / "policy.safetensors"
    written = policy.stat().st_mtime_ns
    assert search.main(argv) == 0
    assert policy.stat().st_mtime_ns == written
    assert rows(tmp_path / "search" / "search.csv") == found
    for entry, message in (("speed=1", "expected settings of"), ("learning_rate", "such as learning_rate=1e-3,2e-3")):
        capsys.readouterr()
        assert search.main(gradient_flags(tmp_path / "other", "--grid", entry)) == 2
        assert message in capsys.readouterr().err


KINDS = {"ppo": 48, "sb3-ppo": 32, "straight-through": 48, "sac": 160}
"""Algorithms, and the environment steps of a short run in which each has learned."""


def run_of(kind, out, *more):
    env_id = "WDMoE-v0" if kind == "sac" else "WDMoE-Selection-v0"
    return main(flags(out, "--algorithm", kind, "--env-id", env_id, "--timesteps", str(KINDS[kind]), *more))


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


@pytest.fixture
def finished(kind, tmp_path, capsys):
    """The folder of a run that has ended."""
    assert run_of(kind, tmp_path / "run") == 0
    capsys.readouterr()
    return tmp_path / "run"


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def rewrite(path, change, **header):
    """Write a checkpoint anew with other tensors or another header."""
    with safe_open(path, "pt") as file:
        told = file.metadata()
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, {**told, "tensors": str(len(tensors)), **header})


def nothing(tensors):
    pass


def test_a_finished_run_is_not_touched_and_says_so(kind, finished, capsys):
    before = contents(finished)
    for steps in (KINDS[kind], 1):
        assert run_of(kind, finished, "--resume", "--timesteps", str(steps)) == 0
        assert f"{finished} is finished: it has taken {KINDS[kind]} of the" in capsys.readouterr().out
        assert contents(finished) == before
    (finished / "policy.safetensors").unlink()
    assert run_of(kind, finished, "--resume") == 0
    assert (finished / "policy.safetensors").read_bytes() == before[Path("policy.safetensors")]
    assert (finished / "arguments.json").read_bytes() == before[Path("arguments.json")]


def test_a_run_killed_before_its_policy_was_written_writes_it(tmp_path):
    main(gradient_flags(tmp_path / "whole", "--timesteps", "96"))
    run = tmp_path / "run"
    main(gradient_flags(run))
    old = contents(run)
    main(gradient_flags(run, "--timesteps", "96", "--resume"))
    for name in ("policy.safetensors", "policy.json"):
        (run / name).write_bytes(next(value for path, value in old.items() if path.name == name))
    assert main(gradient_flags(run, "--timesteps", "96", "--resume")) == 0
    assert_weights(weights(run), weights(tmp_path / "whole"), same=False)  # another schedule
    assert json.loads((run / "policy.json").read_text())["timesteps"] == 96
    assert main(gradient_flags(run, "--timesteps", "96", "--resume")) == 0


def spoil(value):
    def change(tensors):
        name = next(name for name in sorted(tensors) if name.endswith((".weight", ".mu.bias")))
        tensors[name].view(-1)[-1] = value

    return change


def of_moments(change):
    def apply(tensors):
        name = next(name for name in sorted(tensors) if name.endswith(".exp_avg"))
        change(tensors, name)

    return apply


@of_moments
def without_moments(tensors, name):
    first = name.split(".")[0]
    for key in [key for key in tensors if key.startswith(f"{first}.")]:
        del tensors[key]


@of_moments
def whole_numbers(tensors, name):
    tensors[name] = tensors[name].to(torch.int32)


@pytest.mark.parametrize(
    ("change", "header", "message"),
    [
        (spoil(float("nan")), {}, "holds NaN or infinity"),
        (whole_numbers, {}, "exp_avg is of type torch.int32 in place of torch.float32"),
        (without_moments, {}, "it has no moments of"),
        (nothing, {"timesteps": "1000000000"}, "expected a checkpoint of at most"),
    ],
    ids=["nan", "integer moments", "no moments", "timesteps"],
)
def test_a_checkpoint_that_no_training_leaves_is_refused_and_nothing_is_lost(
    finished, kind, capsys, change, header, message
):
    rewrite(finished / "checkpoint.safetensors", change, **header)
    before = contents(finished)
    for steps in (KINDS[kind], 4 * KINDS[kind]):
        assert run_of(kind, finished, "--resume", "--timesteps", str(steps)) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
        assert contents(finished) == before


@pytest.mark.parametrize("after", [0, 1])
def test_weights_that_are_not_finite_end_the_training_and_keep_what_was_saved(
    finished, kind, capsys, monkeypatch, after
):
    """A rate at which the first update overflows, or weights that are lost one update later."""
    before = contents(finished)
    settings = agent.hyperparameters
    if after:
        lose_weights_after(monkeypatch, kind, after)
    else:
        monkeypatch.setattr(agent, "hyperparameters", lambda *names: settings(*names) | {"learning_rate": 1e38})
    more = ("--resume", "--timesteps", str(4 * KINDS[kind]), "--checkpoint-every", "1000000")
    assert run_of(kind, finished, *more) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert re.match("python -m train: the (training stops since .* is|policy's [a-z -]* are) NaN or infinite", error)
    kept = contents(finished)
    assert all(kept[name] == content for name, content in before.items() if name.name != "arguments.json")


def lose_weights_after(monkeypatch, kind, updates):
    """Make an algorithm's update leave NaN in one weight of its actor."""
    owner, name = {
        "ppo": ("train.ppo.Trainer", "update"),
        "sb3-ppo": ("train.sb3_ppo.PPO", "train"),
        "sac": ("train.sac.SAC", "train"),
        "straight-through": ("train.straight_through.Trainer", "update"),
    }[kind]
    module, _, cls = owner.rpartition(".")
    target = getattr(__import__(module, fromlist=[cls]), cls)
    real, count = getattr(target, name), []

    def update(self, *args, **keywords):
        result = real(self, *args, **keywords)
        count.append(1)
        if len(count) > updates:
            network = getattr(self, "network", None) or self.policy
            with torch.no_grad():
                list(network.parameters())[-1].view(-1)[0] = float("nan")
        return result

    monkeypatch.setattr(target, name, update)


@pytest.fixture
def small_checkpoint(tmp_path):
    """A layer that Adam has moved, one that it has not, and their checkpoint."""
    torch.manual_seed(0)
    network = torch.nn.ModuleDict({"used": torch.nn.Linear(3, 2), "idle": torch.nn.Linear(2, 2)})
    optimizer = torch.optim.Adam(network.parameters())
    network["used"](torch.randn(4, 3)).sum().backward()
    optimizer.step()
    path = tmp_path / "checkpoint.safetensors"
    save_checkpoint(path, network, {"adam": optimizer}, 640)
    return path, network, optimizer


def test_a_checkpoint_keeps_parameters_that_were_never_moved(small_checkpoint):
    path, network, optimizer = small_checkpoint
    assert load_checkpoint(path, network, {"adam": optimizer}) == 640
    assert sorted(optimizer.state_dict()["state"]) == [0, 1]
    rewrite(path, nothing)
    with safe_open(path, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    save_file(tensors, path, {"timesteps": "640"})  # as earlier versions wrote it
    assert load_checkpoint(path, network, {"adam": optimizer}) == 640


def put(name, value):
    return lambda tensors: tensors.__setitem__(name, value)


def cast(dtype, name="policy.used.weight"):
    return lambda tensors: tensors.__setitem__(name, tensors[name].to(dtype))


@pytest.mark.parametrize(
    ("change", "header", "message"),
    [
        (put("policy.used.bias", torch.tensor([1.0, float("inf")])), {}, "policy.used.bias holds NaN or infinity"),
        (put("adam.0.exp_avg", torch.full((2, 3), float("nan"))), {}, "adam.0.exp_avg holds NaN or infinity"),
        (put("adam.0.exp_avg_sq", torch.full((2, 3), -1.0)), {}, "adam.0.exp_avg_sq is negative"),
        (put("adam.0.exp_avg", torch.zeros(2)), {}, "adam.0.exp_avg has shape [2] in place of [2, 3]"),
        (put("adam.0.step", torch.tensor(-1.0)), {}, "adam.0.step is -1 in place of a number of updates"),
        (put("adam.0.step", torch.tensor(0.5)), {}, "adam.0.step is 0.5 in place of a number of updates"),
        (put("adam.0.step", torch.tensor(1)), {}, "adam.0.step is of type torch.int64 in place of torch.float32"),
        (put("adam.9.step", torch.tensor(1.0)), {}, "adam.9.step is in the file, but not in what is trained"),
        (put("other", torch.zeros(1)), {}, "other is in the file, but not in what is trained"),
        (lambda tensors: tensors.pop("adam.1.exp_avg"), {}, "adam.1.exp_avg has shape None in place of [2]"),
        (lambda tensors: tensors.pop("policy.idle.bias"), {}, "policy.idle.bias has shape None in place of [2]"),
        *((cast(kind), {}, f"policy.used.weight is of type {kind}") for kind in (torch.int8, torch.bool, torch.half)),
        (cast(torch.complex64), {}, "policy.used.weight is of type torch.complex64 in place of torch.float32"),
        (nothing, {"tensors": "99"}, "it holds 10 tensors in place of the 99 it was written with"),
        *(
            (nothing, {"timesteps": text}, "its timesteps are")
            for text in ("-1", "1e3", "", "1_0", "9" * 5000, "\u0663")
        ),
    ],
)
def test_what_no_checkpoint_holds_is_named_and_changes_nothing(small_checkpoint, change, header, message):
    path, network, optimizer = small_checkpoint
    rewrite(path, change, **header)
    state = {name: value.clone() for name, value in network.state_dict().items()}
    with pytest.raises(ValueError, match="expected a checkpoint of this policy in") as caught:
        load_checkpoint(path, network, {"adam": optimizer})
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert_weights(state, network.state_dict(), same=True)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("part", ["weights", "moments"])
def test_no_checkpoint_of_values_that_are_not_finite_is_written(small_checkpoint, part, value):
    path, network, optimizer = small_checkpoint
    before = path.read_bytes()
    spoilt = network["used"].weight if part == "weights" else optimizer.state[network["used"].weight]["exp_avg"]
    with torch.no_grad():
        spoilt[0, 0] = value
    with pytest.raises(ValueError, match="is NaN or infinite after 1280 environment steps: nothing was saved"):
        save_checkpoint(path, network, {"adam": optimizer}, 1280)
    assert path.read_bytes() == before


@pytest.mark.parametrize("record", ["", "[]", "{", "[" * 100_000, None])
def test_a_run_without_its_record_is_not_resumed(tmp_path, record):
    arguments = Arguments(out=str(tmp_path), resume=True, timesteps=64)
    (tmp_path / "checkpoint.safetensors").touch()
    if record is not None:
        (tmp_path / "arguments.json").write_text(record)
    with pytest.raises(ValueError, match="expected the arguments of the run to resume in"):
        open_run(arguments)
    with pytest.raises(ValueError, match="expected the arguments of the run to resume in"):
        goes_on(arguments, {}, timesteps=64, update_steps=8)


@pytest.mark.parametrize("name", ["checkpoint.safetensors", "policy.safetensors", "arguments.json", "progress.csv"])
def test_a_run_writes_over_nothing_but_files(tmp_path, capsys, name):
    run = tmp_path / "run"
    run.mkdir()
    (tmp_path / "victim").write_text("mine")
    (run / name).symlink_to(tmp_path / "victim")
    assert main(flags(run, "--timesteps", "32")) == 2
    error = capsys.readouterr().err
    assert "expected a place for a file" in error or "holds a run already" in error
    assert (tmp_path / "victim").read_text() == "mine"
    assert (run / name).is_symlink()


@pytest.mark.parametrize(
    ("out", "sentence"),
    [
        ("nothing", "is a link to"),
        ("nothing/run", "is a link to"),
        ("a\0b", "expected a path without the character NUL"),
        ("a\udcff", "expected a path in UTF-8"),
        ("file", "expected a folder, got the file"),
        ("held", "is writing into"),
    ],
)
def test_a_place_that_takes_no_run_is_refused_before_it(tmp_path, capsys, monkeypatch, out, sentence):
    (tmp_path / "nothing").symlink_to("gone")
    (tmp_path / "file").write_text("mine")
    monkeypatch.setitem(agent.TRAINERS, "ppo", lambda *_: pytest.fail("trained"))
    with held_folder(tmp_path / "held"):
        assert main(flags(tmp_path / out)) == 2
    error = capsys.readouterr().err
    assert sentence in error
    assert error.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "nothing"]


def test_a_run_goes_into_the_folder_behind_a_link(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    assert main(flags(tmp_path / "link", "--timesteps", "32")) == 0
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real" / "policy.safetensors").is_file()
    assert not any(is_temporary(path.name) for path in (tmp_path / "real").iterdir())


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (("--timesteps", str(10**13)), "timesteps must be at most 1,000,000,000,000"),
        (("--seed", str(2**70)), "seed must be below 2**64"),
    ],
)
def test_absurd_numbers_are_refused(tmp_path, capsys, more, sentence):
    assert main(flags(tmp_path / "run", *more)) == 2
    assert sentence in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("text", ["", "[1]", "{", "[" * 100_000])
def test_arguments_that_cannot_be_read_are_named(tmp_path, capsys, text):
    run = tmp_path / "run"
    main(flags(run, "--timesteps", "32"))
    (run / "arguments.json").write_text(text)
    capsys.readouterr()
    assert main(flags(run, "--timesteps", "64", "--resume")) == 2
    assert f"expected the arguments of the run to resume in {run / 'arguments.json'}" in capsys.readouterr().err


def test_a_disk_that_fills_up_is_named_and_leaves_the_checkpoint(tmp_path, capsys, monkeypatch):
    run = tmp_path / "run"
    main(stock(run, "--timesteps", "32"))
    before = {name: (run / name).read_bytes() for name in ("checkpoint.safetensors", "policy.safetensors")}

    def full(self):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))  # as of a curve, which names no file

    monkeypatch.setattr(sb3.Checkpoints, "_on_step", full)
    capsys.readouterr()
    assert main(stock(run, "--timesteps", "64", "--resume")) == 2
    error = capsys.readouterr().err
    assert f"cannot write in {run}: No space left on device" in error
    assert {name: (run / name).read_bytes() for name in before} == before


@pytest.mark.parametrize("checkpointed", [False, True])
def test_ctrl_c_is_one_line_and_leaves_a_checkpoint_or_none(tmp_path, checkpointed):
    run = tmp_path / "run"
    every = "16" if checkpointed else "1000000"
    command = [sys.executable, "-m", "train", "--algorithm", "straight-through", "--timesteps", str(10**9)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(
        [*command, "--model", "micro", "--num-tokens", "8", "--out", str(run), "--checkpoint-every", every],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env=environment,
    )
    try:
        seen = ""
        while "_loss=" not in seen:  # the bar's first figures: some updates are over
            character = process.stderr.read(1)
            assert character, seen
            seen += character
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=300)  # long, for a machine at work
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == 130
    assert out == ""
    assert "Traceback" not in err
    told = f"--resume goes on from the last checkpoint in {run}" if checkpointed else "there was no checkpoint yet"
    assert err.splitlines()[-1] == f"python -m train: interrupted; {told}"
    assert (run / "checkpoint.safetensors").is_file() == checkpointed
    assert not any(is_temporary(path.name) for path in run.iterdir())
    if checkpointed:
        assert load_file(run / "checkpoint.safetensors")
