"""rl_zoo3's own command line takes the ids with the hyperparameters that ship."""

from __future__ import annotations

from importlib.resources import files

import pytest
import yaml

pytest.importorskip("rl_zoo3", reason="pip install 'wdmoe-env[rl-zoo]'")

from rl_zoo3.train import train

from wdmoe_env import ENV_IDS

CONF = files("wdmoe_env") / "assets" / "rl_zoo3" / "ppo.yml"
SMALL = ["-params", "n_envs:2", "n_steps:6", "batch_size:12", "--n-timesteps", "12", "--eval-freq", "-1"]
MICRO = ["--env-kwargs", "model:'micro'", "num_tokens:8"]


def run_zoo(env_id, monkeypatch, folder):
    monkeypatch.chdir(folder)
    options = ["--env", env_id, "--gym-packages", "wdmoe_env", "--conf-file", str(CONF), "--verbose", "0"]
    monkeypatch.setattr("sys.argv", ["train", "--algo", "ppo", *options, *SMALL, *MICRO])
    train()


@pytest.mark.parametrize("env_id", ENV_IDS)
def test_the_zoo_trains_every_id_with_the_file_that_ships(env_id, monkeypatch, tmp_path):
    run_zoo(env_id, monkeypatch, tmp_path)
    run = tmp_path / "logs" / "ppo" / f"{env_id}_1"
    assert (run / f"{env_id}.zip").exists()
    used = dict(yaml.unsafe_load((run / env_id / "config.yml").read_text()))
    shipped = yaml.safe_load(CONF.read_text())[env_id]
    assert {name: used[name] for name in ("gamma", "learning_rate", "policy_kwargs")} == {
        name: shipped[name] for name in ("gamma", "learning_rate", "policy_kwargs")
    }


def test_the_zoo_refuses_an_id_with_its_module(monkeypatch, tmp_path):
    with pytest.raises(ValueError, match="not found in gym registry"):
        run_zoo("wdmoe_env:WDMoE-v0", monkeypatch, tmp_path)
