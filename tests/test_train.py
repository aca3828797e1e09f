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
from train_runs import assert_weights, flags, gradient_flags, rows, stock, use_small_settings, weights

from train import agent, sac, sb3, search, straight_through
from train.__main__ import main
from train.arguments import Arguments, hyperparameters
from train.checkpoint import load_checkpoint
from train.environment import make_env
from train.updates import windows_without
from wdmoe_env.policies import make_policy


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    use_small_settings(monkeypatch)


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
    """Thirty rollouts lift the reward by more than chance does."""
    arguments = Arguments(
        algorithm="sb3-ppo",
        model="micro",
        num_tokens=8,
        timesteps=32 * 30,
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
        with pytest.raises(KeyboardInterrupt):
            main(stock(run, "--timesteps", "160", "--checkpoint-every", "32"))
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
        algorithm="straight-through", model="micro", num_tokens=8, reward=reward, timesteps=16 * 40, quality_weight=0.0
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
        with pytest.raises(KeyboardInterrupt):
            main(gradient_flags(killed, "--checkpoint-every", "16"))
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
