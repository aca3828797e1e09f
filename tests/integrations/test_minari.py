"""Minari: what is recorded is read back, and the recovered environment repeats it."""

from __future__ import annotations

import re
import subprocess
import sys

import gymnasium as gym
import numpy as np
import pytest

pytest.importorskip("minari", reason="pip install 'wdmoe-env[minari]'")

import minari

from benchmarks.pages import FOLDER, ROOT
from wdmoe_env.integrations.minari import record

pytestmark = pytest.mark.filterwarnings("ignore:`.*` is set to None:UserWarning")


@pytest.fixture(autouse=True)
def _datasets(tmp_path, monkeypatch):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))


def saved(env, act):
    buffers = record(env, act, episodes=2, seed=5)
    return buffers, minari.create_dataset_from_buffers("wdmoe/micro-v0", buffers, env)


def micro():
    env = gym.make("wdmoe_env:WDMoE-v0", model="micro", num_tokens=8, reward="latency_quality")
    env.action_space.seed(0)
    return env, lambda observation: env.action_space.sample()


def test_a_dataset_holds_what_was_recorded():
    env, act = micro()
    buffers, _ = saved(env, act)
    read = minari.load_dataset("wdmoe/micro-v0")
    assert read.total_episodes == 2
    assert [one["seed"] for one in read.storage.get_episode_metadata([0, 1])] == [5, 6]
    for buffer, episode in zip(buffers, read, strict=True):
        assert episode.observations["block"].shape == (env.unwrapped.num_blocks + 1, 1)
        for name, value in buffer.observations.items():
            np.testing.assert_array_equal(episode.observations[name], value)
        np.testing.assert_array_equal(episode.actions, buffer.actions)
        np.testing.assert_array_equal(episode.rewards, buffer.rewards)
        assert episode.terminations.tolist() == [False] * (env.unwrapped.num_blocks - 1) + [True]
        assert not episode.truncations.any()


def test_a_process_that_never_named_the_package_recovers_it():
    env, act = micro()
    (_, last), _ = saved(env, act)
    code = (
        "import minari; dataset = minari.load_dataset('wdmoe/micro-v0'); env = dataset.recover_environment();"
        "env.reset(seed=6); print([float(env.step(action)[1]) for action in dataset[1].actions])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == str(last.rewards)


def test_the_checkouts_program_records_a_policy_that_ships(monkeypatch):
    program = re.search(r"```python skip\n(.*?)```", (FOLDER / "minari.md").read_text(), flags=re.DOTALL)[1]
    monkeypatch.chdir(ROOT)
    exec(program, names := {})
    read = minari.load_dataset("wdmoe/straight-through-10-v0")
    assert read.total_episodes == 8
    again = read.recover_environment()
    observation, _ = again.reset(seed=7)
    for action, reward in zip(read[7].actions, read[7].rewards, strict=True):
        np.testing.assert_array_equal(action, names["policy"].predict(observation)[0])
        observation, repeated, *_ = again.step(action)
        assert repeated == reward
