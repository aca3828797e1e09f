"""``WDMoE-MO-v0``: the two objectives, and the scalar environment that weighing them gives."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

MICRO = {"model": "micro", "num_tokens": 8}
ID = "wdmoe_env:WDMoE-MO-v0"


@pytest.fixture
def wrappers():
    """MO-Gymnasium's."""
    return pytest.importorskip("mo_gymnasium", reason="pip install 'wdmoe-env[mo-gymnasium]'").wrappers


@pytest.mark.filterwarnings("ignore:.*The reward returned by `step\\(\\)` must be a float.*:UserWarning")
def test_gymnasiums_checks_pass_but_for_the_number_that_a_vector_is_not():
    check_env(gym.make(ID, **MICRO).unwrapped, skip_render_check=True)


def test_rewards_are_the_terms_and_lie_in_the_reward_space():
    env = gym.make(ID, **MICRO)
    env.action_space.seed(0)
    env.reset(seed=0)
    end = False
    while not end:
        _, reward, end, _, info = env.step(env.action_space.sample())
        assert reward in env.unwrapped.reward_space
        assert reward[0] == pytest.approx(-info["block_latency_ms"] / info["reward_terms"]["vanilla_latency_ms"])
        assert (reward[1] != 0) == end
    assert reward[1] == info["reference_nll"] - info["nll"]


@pytest.mark.parametrize("quality_weight", [0.0, 7.3])
@pytest.mark.parametrize("decision", ["joint", "selection", "bandwidth"])
def test_linear_reward_is_the_scalar_environment(wrappers, decision, quality_weight):
    weighed = wrappers.LinearReward(gym.make(ID, decision=decision, **MICRO), np.array([1.0, quality_weight]))
    scalar = gym.make(
        "wdmoe_env:WDMoE-v0", decision=decision, reward="latency_quality", quality_weight=quality_weight, **MICRO
    )
    scalar.action_space.seed(0)
    for seed in (0, 1):
        weighed.reset(seed=seed)
        scalar.reset(seed=seed)
        end = False
        while not end:
            action = scalar.action_space.sample()
            reward, (_, expected, end, _, _) = weighed.step(action)[1], scalar.step(action)
            assert reward == pytest.approx(expected, rel=1e-12), "but for the rounding of a dot product"


def test_mo_gymnasiums_batch_and_statistics_take_it(wrappers):
    batch = wrappers.vector.MOSyncVectorEnv([lambda: gym.make(ID, **MICRO) for _ in range(2)])
    batch.action_space.seed(0)
    batch.reset(seed=0)
    rewards = batch.step(batch.action_space.sample())[1]
    assert rewards.shape == (2, 2)
    assert (rewards[:, 0] < 0).all()
    env = wrappers.MORecordEpisodeStatistics(gym.make(ID, **MICRO))
    env.reset(seed=0)
    total, end = np.zeros(2), False
    while not end:
        _, reward, end, _, info = env.step(env.action_space.sample())
        total += reward
    np.testing.assert_allclose(info["episode"]["r"], total, rtol=1e-6)


@pytest.mark.parametrize("keyword", ["reward", "quality_weight"])
def test_what_weighs_the_objectives_is_refused(keyword):
    with pytest.raises(TypeError, match=f"expected no {keyword}: the reward is a vector"):
        gym.make(ID, **{keyword: 1.0}, **MICRO)


def test_its_keywords_are_those_of_the_environment():
    env = gym.make(ID, decision="selection", config={"model": "micro", "num_tokens": 8})
    assert env.unwrapped.config.decision == "selection"
    assert env.action_space.shape == (8 * 8,)
