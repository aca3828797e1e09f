"""RLlib: episodes of the native batch, and ``python -m train --backend rllib`` here and over a cluster of two nodes."""

from __future__ import annotations

import csv
import json
import sys
from types import SimpleNamespace

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.vector.utils import batch_space
from safetensors.torch import load_file

pytest.importorskip("ray", reason="pip install 'wdmoe-env[rllib]'")

import ray
from ray.cluster_utils import Cluster
from ray.rllib.algorithms.ppo import PPOConfig
from ray.rllib.core.columns import Columns
from ray.rllib.core.rl_module.rl_module import RLModuleSpec
from ray.rllib.env.single_agent_env_runner import SingleAgentEnvRunner

from agents.rllib_module import TokenSharedModule
from train import agent, rllib
from train.__main__ import main
from train.arguments import Arguments
from wdmoe_env.policies import make_policy

MICRO = {"model": "micro", "num_tokens": 8}
SMALL = {"num_envs": 8, "n_steps": 4, "batch_size": 16, "n_epochs": 2, "learning_rate": 3e-3}
BANDWIDTH = {"decision": "bandwidth", "architecture": {}}
NODE = {"num_cpus": 1, "object_store_memory": 100 * 2**20, "include_dashboard": False}

# Of Ray's own making.
pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning", "ignore::ResourceWarning"
)


@pytest.fixture(scope="module", autouse=True)
def _quiet():
    """Workers that do not starve on a busy machine, and no token file in the home folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_worker_niceness", "0")
        patch.setenv("RAY_AUTH_MODE", "disabled")
        yield


@pytest.fixture(scope="module")
def cluster():
    """Two nodes of this machine with a CPU each."""
    made = Cluster(initialize_head=True, head_node_args=NODE)
    made.add_node(**NODE)
    yield made
    made.shutdown()


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    real = agent.hyperparameters
    monkeypatch.setattr(agent, "hyperparameters", lambda *names: {**real(*names), **SMALL})


def flags(out, *more):
    return [
        *("--backend", "rllib", "--model", "micro", "--num-tokens", "8", "--no-progress", "--out", str(out)),
        *more,
    ]


def test_a_killed_run_over_two_nodes_goes_on(cluster, tmp_path, monkeypatch):
    run, nodes = tmp_path / "run", []
    begin, update = rllib.Run.begin, rllib.Run.update

    def begun(self, *arguments):
        begin(self, *arguments)
        nodes.extend(
            self.algorithm.env_runner_group.foreach_env_runner(
                lambda runner: ray.get_runtime_context().get_node_id(), local_env_runner=False
            )
        )

    def killed(self):
        if self.timesteps >= 64:
            raise KeyboardInterrupt
        return update(self)

    monkeypatch.setattr(rllib.Run, "begin", begun)
    there = ("--address", cluster.address)
    with monkeypatch.context() as patch:
        patch.setattr(rllib.Run, "update", killed)
        with pytest.raises(KeyboardInterrupt):
            main(flags(run, "--timesteps", "128", "--checkpoint-every", "32", *there))
    assert not (run / "policy.safetensors").exists()
    assert len(nodes) == 2
    assert set(nodes) == {node.node_id for node in cluster.list_all_nodes()}

    before = load_file(run / "checkpoint.safetensors")
    assert main(flags(run, "--timesteps", "128", "--resume", *there)) == 0
    card = json.loads((run / "policy.json").read_text())
    assert (card["timesteps"], card["arguments"]["backend"]) == (128, "rllib")
    curves = {path.name: list(csv.DictReader(path.open())) for path in run.glob("progress*.csv")}
    steps = {name: [int(float(row["time/total_timesteps"])) for row in rows] for name, rows in curves.items()}
    assert steps == {"progress.csv": [32, 64], "progress-64.csv": [96, 128]}
    after = load_file(run / "checkpoint.safetensors")
    moved = [name for name in before if name.startswith("policy.") and not torch.equal(before[name], after[name])]
    assert moved
    steps_of_adam = [name for name in before if name.endswith(".step")]
    assert steps_of_adam
    assert all(after[name] > 1.5 * before[name] for name in steps_of_adam)

    env = gym.make_vec("wdmoe_env:WDMoE-v0", num_envs=4, **MICRO).unwrapped
    policy = make_policy(str(run / "policy.safetensors"), env)
    env.step(policy.predict(env.reset(seed=0)[0])[0])


def test_more_runners_than_cpus_are_refused(cluster, tmp_path, capsys):
    assert main(flags(tmp_path, "--address", cluster.address, "--env-runners", "4")) == 2
    assert "expected a CPU for each of 4 environment runners, Ray has 2" in capsys.readouterr().err


def test_a_node_that_cannot_make_the_environment_is_named(cluster):
    ray.init(cluster.address, log_to_driver=False)
    try:
        with pytest.raises(ValueError, match=r"expected an environment on every node, got none on .*tinny"):
            rllib.check_nodes(Arguments(model="tinny"))
    finally:
        ray.shutdown()


def test_a_run_of_this_machine_alone_improves_its_reward(tmp_path):
    assert main(flags(tmp_path / "run", "--timesteps", str(32 * 60), "--env-runners", "1")) == 0
    assert not ray.is_initialized()
    env = gym.make_vec("wdmoe_env:WDMoE-Selection-v0", num_envs=256, **MICRO).unwrapped
    rewards = {}
    for name in ("vanilla-optimal", str(tmp_path / "run" / "policy.safetensors")):
        observation, _ = env.reset(seed=5)
        rewards[name] = env.step(make_policy(name, env).predict(observation)[0])[1]
    own, learned = rewards.values()
    gain = learned - own
    assert gain.mean() > 3 * gain.std() / len(gain) ** 0.5


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--env-runners", "3"), "env_runners must divide 8 environments, got 3"),
        (("--algorithm", "sac", "--env-id", "WDMoE-v0"), "backend rllib runs the algorithm ppo"),
        (("--model", "tinny"), "tiny"),
        (("--address", "127.0.0.1:1"), "expected a Ray cluster at 127.0.0.1:1, got none"),
        (("--address", "127.0.0.1"), "address must be local, auto or HOST:PORT, got '127.0.0.1'"),
    ],
)
def test_what_is_wrong_is_said_in_a_sentence(tmp_path, capsys, more, message):
    assert main(flags(tmp_path / "run", *more)) == 2
    error = capsys.readouterr().err.strip().rpartition("\n")[2]
    assert error.startswith("python -m train: ")
    assert message in error


def test_without_ray_the_extra_is_named(tmp_path, capsys, monkeypatch):
    for name in [name for name in sys.modules if name.partition(".")[0] == "ray"] + ["ray"]:
        monkeypatch.setitem(sys.modules, name, None)
    for name in ("train.rllib", "agents.rllib_module"):
        monkeypatch.delitem(sys.modules, name)
    assert main(flags(tmp_path / "run")) == 2
    assert "pip install 'wdmoe-env[rllib]'" in capsys.readouterr().err


def test_runners_have_episodes_of_their_own():
    envs = [gym.make_vec("wdmoe_env:WDMoE-v0", num_envs=8, **MICRO) for _ in range(3)]
    for index, (env, timesteps) in enumerate(zip(envs, (0, 0, 32), strict=True)):
        runner = SimpleNamespace(env=env, num_envs=8, worker_index=1 + index % 2)
        rllib.seed_runner(runner, seed=7, timesteps=timesteps)
    seen = np.concatenate([env.reset()[0]["unit_latency"] for env in envs])
    assert len(np.unique(seen, axis=0)) == len(seen)


@pytest.mark.parametrize("decision", ["joint", "selection", "bandwidth"])
def test_a_module_knows_the_probability_of_what_it_did(decision):
    env = gym.make_vec("wdmoe_env:WDMoE-v0", num_envs=16, decision=decision, **MICRO)
    module = TokenSharedModule(
        observation_space=env.unwrapped.single_observation_space,
        action_space=env.unwrapped.single_action_space,
        model_config={"decision": decision, "architecture": {}},
    )
    batch = {Columns.OBS: {name: torch.from_numpy(value) for name, value in env.reset(seed=0)[0].items()}}
    torch.manual_seed(0)
    acted = module.forward_exploration(batch)
    assert acted[Columns.ACTIONS].numpy() in batch_space(env.unwrapped.single_action_space, 16)
    trained = module.forward_train(batch | {Columns.ACTIONS: acted[Columns.ACTIONS]})
    distribution = module.get_train_action_dist_cls().from_logits(trained[Columns.ACTION_DIST_INPUTS])
    torch.testing.assert_close(distribution.logp(acted[Columns.ACTIONS]).detach(), acted[Columns.ACTION_LOGP])
    alone = module.compute_values(batch)
    torch.testing.assert_close(module.compute_values(batch, trained[Columns.EMBEDDINGS]), alone)
    best = module.forward_inference(batch)
    torch.testing.assert_close(best[Columns.ACTIONS], module.forward_inference(batch)[Columns.ACTIONS])


def test_rllibs_episodes_of_the_native_batch_are_whole():
    config = (
        PPOConfig()
        .environment("wdmoe_env:WDMoE-Bandwidth-v0", env_config=MICRO)
        .env_runners(num_env_runners=0, num_envs_per_env_runner=3, gym_env_vectorize_mode="vector_entry_point")
        .rl_module(rl_module_spec=RLModuleSpec(TokenSharedModule, model_config=BANDWIDTH))
    )
    runner = SingleAgentEnvRunner(config=config)
    blocks = runner.env.unwrapped.num_blocks
    episodes = runner.sample(num_timesteps=3 * 2 * blocks, random_actions=True)
    whole = [episode for episode in episodes if episode.is_done]
    assert len(whole) == 6
    for episode in whole:
        assert len(episode) == blocks
        index = episode.get_observations()["block"][:, 0]
        np.testing.assert_allclose(index, np.arange(blocks + 1) / blocks, rtol=1e-6)
        assert (np.array(episode.get_rewards()) > 0).all()
    runner.stop()
