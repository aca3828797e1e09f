"""`python -m train`: learns, checkpoints, resumes, and says what is wrong in one sentence."""

from __future__ import annotations

import csv
import dataclasses
import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from test_vector_env import make_vec

from agents import make_policy
from train import agent
from train.__main__ import main
from train.checkpoint import load_checkpoint

SMALL = {"num_envs": 8, "n_steps": 4, "batch_size": 16, "n_epochs": 2, "learning_rate": 3e-3, "gamma": 0.0}


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    """A table of small settings in place of the shipped one."""
    real = agent.hyperparameters
    monkeypatch.setattr(agent, "hyperparameters", lambda env_id, reward: {**real(env_id, reward), **SMALL})


def flags(out, *more):
    return ["--model", "micro", "--num-tokens", "8", "--no-progress", "--out", str(out), *more]


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
    assert main(flags(tmp_path / "run", "--timesteps", "64", "--env-id", env_id)) == 0
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


def test_ppo_improves_wlr(tmp_path):
    """Sixty rollouts lift the reward by more than chance does."""
    arguments = agent.Arguments(
        model="micro", num_tokens=8, timesteps=32 * 60, out=str(tmp_path / "run"), progress=False, seed=0
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
        patch.setattr(agent.Checkpoints, "_on_step", killed)
        with pytest.raises(KeyboardInterrupt):
            main(flags(run, "--timesteps", "160", "--checkpoint-every", "32"))
    assert not (run / "policy.safetensors").exists()
    assert main(flags(run, "--timesteps", "160", "--resume")) == 0
    card = json.loads((run / "policy.json").read_text())
    assert card["timesteps"] == 160
    curves = {path.name: rows(path) for path in run.glob("progress*.csv")}
    assert curves["progress.csv"][0]["time/total_timesteps"] == "32"
    resumed = curves[next(name for name in curves if name != "progress.csv")]
    assert resumed[-1]["time/total_timesteps"] == "160"


def test_a_run_is_resumed_as_what_it_was_or_not_at_all(tmp_path, capsys):
    run = tmp_path / "run"
    main(flags(run, "--timesteps", "32"))
    before = (run / "arguments.json").read_text()
    capsys.readouterr()
    assert main(flags(run, "--resume", "--env-id", "WDMoE-v0")) == 2
    assert "was begun with env_id='WDMoE-Selection-v0', got 'WDMoE-v0'" in capsys.readouterr().err
    assert (run / "arguments.json").read_text() == before
    assert main(flags(run, "--timesteps", "32", "--resume")) == 0
    assert json.loads((run / "policy.json").read_text())["final_mean_return"] is None


def test_a_checkpoint_restores_weights_and_moments(tmp_path):
    main(flags(tmp_path / "run", "--timesteps", "64"))
    file = tmp_path / "run" / "checkpoint.safetensors"
    arguments = agent.Arguments(model="micro", num_tokens=8)
    policies = [fresh_policy(arguments) for _ in range(2)]
    for policy in policies:
        assert load_checkpoint(file, policy) == 64
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

    return PPO(TokenSharedPolicy, SB3VecEnv(agent.make_env(arguments, 2)), n_steps=4, batch_size=8).policy


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


def test_every_setting_of_the_shipped_table_is_ppos(tmp_path):
    import inspect

    from stable_baselines3 import PPO

    known = set(inspect.signature(PPO).parameters) | {"num_envs"}
    for env_id in ("WDMoE-v0", "WDMoE-Selection-v0", "WDMoE-Bandwidth-v0"):
        for reward in ("wlr", "wlr_device", "latency_quality"):
            assert set(agent.hyperparameters(env_id, reward)) <= known


def test_help_names_every_argument(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    text = capsys.readouterr().out
    for field in dataclasses.fields(agent.Arguments):
        assert "--" + field.name.replace("_", "-") in text
    assert np.all([word in text for word in ("examples:", "--resume")])
