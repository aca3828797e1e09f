"""The batched environment: equal to single ones, in every autoreset mode, and frugal."""

from __future__ import annotations

import copy
import gc
import pickle

import gymnasium as gym
import numpy as np
import pytest
from conftest import MICRO, live_greenlets
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from test_env import IDS, assert_same, failing, make

CLOSE = {"rtol": 1e-4, "atol": 1e-4}


def make_vec(num_envs, env_id="WDMoE-v0", **keywords):
    return gym.make_vec(f"wdmoe_env:{env_id}", num_envs=num_envs, **{**MICRO, **keywords})


def make_sync(num_envs, mode, env_id="WDMoE-v0"):
    return SyncVectorEnv([lambda: make(env_id) for _ in range(num_envs)], autoreset_mode=mode)


@pytest.mark.parametrize("env_id", IDS)
def test_64_batched_are_64_single(env_id):
    batched = make_vec(64, env_id)
    singles = [make(env_id) for _ in range(64)]
    batched.action_space.seed(0)
    observation, info = batched.reset(seed=100)
    for n, env in enumerate(singles):
        alone, alone_info = env.reset(seed=100 + n)
        assert_same({k: v[n] for k, v in observation.items()}, alone, **CLOSE)
        assert info["window"][n] == alone_info["window"]
    for _ in range(batched.unwrapped.num_blocks):
        actions = batched.action_space.sample()
        observation, reward, terminated, truncated, info = batched.step(actions)
        for n, env in enumerate(singles):
            alone, alone_reward, alone_end, _, alone_info = env.step(actions[n])
            assert_same({k: v[n] for k, v in observation.items()}, alone, **CLOSE)
            assert reward[n] == pytest.approx(alone_reward, rel=1e-4, abs=1e-4)
            assert terminated[n] == alone_end
            assert not truncated[n]
            terms = alone_info.pop("reward_terms")
            assert_same({k: info["reward_terms"][k][n] for k in terms}, terms, **CLOSE)
            assert_same({k: info[k][n] for k in alone_info}, alone_info, **CLOSE)


@pytest.mark.parametrize("mode", list(AutoresetMode))
def test_autoreset_is_that_of_gymnasiums_own_vector_env(mode):
    native, sync = make_vec(3, autoreset_mode=mode), make_sync(3, mode)
    assert native.metadata["autoreset_mode"] == native.unwrapped.autoreset_mode == mode
    native.action_space.seed(1)
    assert_same(native.reset(seed=7), sync.reset(seed=7), **CLOSE)
    for _ in range(2 * native.unwrapped.num_blocks + 3):
        actions = native.action_space.sample()
        ours, theirs = native.step(actions), sync.step(actions)
        assert_same(ours[:4], theirs[:4], **CLOSE)
        assert_infos_same(ours[4], theirs[4])
        if mode == AutoresetMode.DISABLED and ours[2].any():
            mask = ours[2]
            assert_same(
                native.reset(options={"reset_mask": mask}), sync.reset(options={"reset_mask": mask.copy()}), **CLOSE
            )


def assert_infos_same(ours, theirs):
    assert ours.keys() == theirs.keys()
    final, other = ours.pop("final_obs", None), theirs.pop("final_obs", None)
    assert (final is None) == (other is None)
    if final is not None:
        for mine, their in zip(final, other, strict=True):
            assert (mine is None) == (their is None)
            if mine is not None:
                assert_same(mine, their, **CLOSE)
    assert_same(ours, theirs, **CLOSE)


def test_some_environments_may_be_reset_in_mid_episode():
    native, sync = make_vec(4), make_sync(4, AutoresetMode.NEXT_STEP)
    native.action_space.seed(2)
    native.reset(seed=0)
    sync.reset(seed=0)
    mask = np.array([False, True, False, True])
    for step in range(3 * native.unwrapped.num_blocks):
        actions = native.action_space.sample()
        assert_same(native.step(actions)[:4], sync.step(actions)[:4], **CLOSE)
        if step == 0:
            assert_same(
                native.reset(options={"reset_mask": mask})[0],
                sync.reset(options={"reset_mask": mask.copy()})[0],
                **CLOSE,
            )


def test_a_failed_reset_leaves_the_episodes_as_they_were():
    env, twin = make_vec(2), make_vec(2)
    env.reset(seed=0)
    twin.reset(seed=0)
    with pytest.raises(ValueError, match="window indices"):
        env.reset(options={"window": np.array([10**9, 0]), "reset_mask": np.array([True, False])})
    action = env.action_space.sample()
    # The failed reset drew from the first environment's generator alone; the episodes under way are the same.
    assert_same(env.step(action)[:4], twin.step(action)[:4])


def test_a_reward_function_that_fails_ends_the_episodes():
    env = make_vec(2, reward=lambda terms: terms["added_nll"] * (np.nan if terms["added_nll"].any() else 1.0))
    env.reset(seed=0)
    env.action_space.seed(0)
    for _ in range(env.unwrapped.num_blocks - 1):
        env.step(env.action_space.sample())
    with pytest.raises(ValueError, match="expected finite rewards"):
        env.step(env.action_space.sample())
    assert env.step(env.action_space.sample())[1].tolist() == [0.0, 0.0]


@pytest.mark.parametrize("error", [ZeroDivisionError("mine"), KeyboardInterrupt(), np.nan, np.zeros(9)], ids=repr)
@pytest.mark.parametrize("mode", [AutoresetMode.SAME_STEP, AutoresetMode.DISABLED])
def test_a_step_that_fails_after_its_block_has_run_needs_a_reset(mode, error):
    current = {"reward": lambda terms: terms["wlr"]}
    env = make_vec(3, autoreset_mode=mode, reward=lambda terms: current["reward"](terms))
    env.reset(seed=0)
    action = env.action_space.sample()
    env.step(action)
    current["reward"] = failing(error)
    with pytest.raises((ZeroDivisionError, KeyboardInterrupt, ValueError)):
        env.step(action)
    current["reward"] = lambda terms: terms["wlr"]
    with pytest.raises(gym.error.ResetNeeded, match=r"no episode in environments \[0 1 2\]"):
        env.step(action)
    twin = make_vec(3, autoreset_mode=mode)
    assert_same(env.reset(seed=5), twin.reset(seed=5))
    assert_same(env.step(action)[:4], twin.step(action)[:4])


@pytest.mark.parametrize(("fails_at", "over"), [(3, [0, 2]), (1, [0, 1, 2])])
def test_only_episodes_whose_block_has_run_are_over(fails_at, over):
    """Three episodes step first, then the one that began later: its block has not run where theirs failed."""
    failing_at = {"count": 0}

    def reward(terms):
        return terms["wlr"] * (np.nan if len(terms["wlr"]) == failing_at["count"] else 1.0)

    env, twin = (make_vec(3, autoreset_mode="DISABLED", reward=reward) for _ in range(2))
    action = env.action_space.sample()
    for one in (env, twin):
        one.reset(seed=0)
        one.step(action)
        one.reset(options={"reset_mask": np.array([False, True, False])})
    failing_at["count"] = fails_at
    with pytest.raises(ValueError, match="expected finite rewards"):
        env.step(action)
    failing_at["count"] = 0
    with pytest.raises(gym.error.ResetNeeded) as caught:
        env.step(action)
    assert str(caught.value).endswith(f"no episode in environments {np.array(over)}")
    env.reset(options={"reset_mask": np.isin(np.arange(3), over)})
    ours, theirs = env.step(action), twin.step(action)
    if 1 not in over:
        assert_same({k: v[1] for k, v in ours[0].items()}, {k: v[1] for k, v in theirs[0].items()}, **CLOSE)
        assert ours[1][1] == pytest.approx(theirs[1][1], rel=1e-6)


def test_a_reset_within_a_step_that_fails_loses_the_episodes_of_that_step(monkeypatch):
    env = make_vec(2, autoreset_mode="SAME_STEP", max_episode_steps=1).unwrapped
    env.reset(seed=0)
    action = env.action_space.sample()
    with monkeypatch.context() as patch:
        patch.setattr(env.simulator, "start", lambda *args: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            env.step(action)
    with pytest.raises(gym.error.ResetNeeded, match=r"\[0 1\]"):
        env.step(action)


@pytest.mark.parametrize("limit", [1, 2, 3, 4, -1, None])
@pytest.mark.parametrize("mode", list(AutoresetMode))
def test_a_limit_of_steps_is_that_of_gymnasiums_make(mode, limit):
    native = make_vec(3, autoreset_mode=mode, max_episode_steps=limit)
    sync = SyncVectorEnv([lambda: make(max_episode_steps=limit)] * 3, autoreset_mode=mode)
    native.action_space.seed(1)
    assert_same(native.reset(seed=7), sync.reset(seed=7), **CLOSE)
    cut = 0
    for _ in range(2 * native.unwrapped.num_blocks + 2):
        actions = native.action_space.sample()
        ours, theirs = native.step(actions), sync.step(actions)
        assert_same(ours[:4], theirs[:4], **CLOSE)
        assert_infos_same(ours[4], theirs[4])
        cut += ours[3].any()
        ended = ours[2] | ours[3]
        if mode == AutoresetMode.DISABLED and ended.any():
            options = [{"reset_mask": ended.copy()} for _ in range(2)]
            assert_same(native.reset(options=options[0]), sync.reset(options=options[1]), **CLOSE)
    assert bool(cut) == (limit in (1, 2, 3))


def test_a_limit_counts_the_steps_of_each_environment():
    env = make_vec(3, autoreset_mode="DISABLED", max_episode_steps=2)
    env.reset(seed=0)
    action = env.action_space.sample()
    assert not env.step(action)[3].any()
    env.reset(options={"reset_mask": np.array([False, True, False])})
    assert env.step(action)[3].tolist() == [True, False, True]
    with pytest.raises(gym.error.ResetNeeded, match=r"\[0 2\]"):
        env.step(action)
    env.reset(options={"reset_mask": np.array([True, False, True])})
    _, _, terminated, truncated, info = env.step(action)
    assert (terminated.tolist(), truncated.tolist()) == ([False] * 3, [False, True, False])
    assert "latency_ms" not in info


def test_a_limit_is_part_of_the_spec():
    env = make_vec(2, max_episode_steps=1)
    again = gym.make_vec(env.unwrapped.spec)
    again.reset(seed=0)
    assert again.step(again.action_space.sample())[3].all()


@pytest.mark.parametrize("limit", [0, -2, 1.5, "2", True])
def test_a_limit_that_is_none_is_one_sentence(limit):
    with pytest.raises(ValueError, match="max_episode_steps must be a whole number of at least 1"):
        make_vec(2, max_episode_steps=limit)


def test_reading_the_generators_is_no_reset():
    env = make_vec(2)
    assert len(env.unwrapped.np_random) == 2
    with pytest.raises(gym.error.ResetNeeded):
        env.step(env.action_space.sample())


def test_dict_actions_are_batched_dicts():
    env = make_vec(5, action_type="dict")
    env.reset(seed=0)
    action = env.action_space.sample()
    info = env.step(action)[4]
    chosen = action["experts"].any(-1)
    np.testing.assert_array_equal(info["selection"][chosen], action["experts"][chosen] > 0)
    assert (info["repaired_tokens"] == (~chosen).sum(-1)).all()


def test_encode_and_decode_take_a_batch():
    env = make_vec(5).unwrapped
    rng = np.random.default_rng(0)
    selection, shares = rng.random((5, 8, 8)) > 0.5, rng.dirichlet(np.full(8, 5.0), size=5)
    decoded = env.decode_action(env.encode_action(selection, shares))
    np.testing.assert_array_equal(decoded[0], selection)
    np.testing.assert_allclose(decoded[1], shares, rtol=1e-5)


def test_seeds_windows_and_generators():
    env = make_vec(3)
    one, info = env.reset(seed=[5, 5, 6], options={"window": np.array([1, 1, 2])})
    assert_same({k: v[0] for k, v in one.items()}, {k: v[1] for k, v in one.items()}, **CLOSE)
    assert info["window"].tolist() == [1, 1, 2]
    assert env.unwrapped.np_random_seed == (5, 5, 6)
    assert not np.array_equal(one["spectral_efficiency"][0], one["spectral_efficiency"][2])


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda env: pickle.loads(pickle.dumps(env))])
def test_a_copy_in_mid_episode_goes_on_alike(clone):
    env = make_vec(3, autoreset_mode="SAME_STEP").unwrapped
    env.action_space.seed(0)
    env.reset(seed=1)
    env.step(env.action_space.sample())
    env.reset(options={"reset_mask": np.array([False, True, False])})
    twin = clone(env)
    for _ in range(2 * env.num_blocks):
        actions = env.action_space.sample()
        ours, theirs = env.step(actions), twin.step(actions)
        assert_same(ours[:4], theirs[:4])
        assert_infos_same(ours[4], theirs[4])


def test_mistakes_are_one_clear_sentence():
    with pytest.raises(ValueError, match="autoreset_mode must be one of NEXT_STEP, SAME_STEP, DISABLED, got 'NOW'"):
        make_vec(2, autoreset_mode="NOW")
    env = make_vec(2, autoreset_mode="DISABLED")
    with pytest.raises(gym.error.ResetNeeded, match="environments"):
        env.step(env.action_space.sample())
    env.reset(seed=0)
    with pytest.raises(ValueError, match=r"expected action of shape \(2, 72\), got \(72,\)"):
        env.step(env.single_action_space.sample())
    with pytest.raises(ValueError, match="reset_mask must be a bool array"):
        env.reset(options={"reset_mask": np.array([1, 0])})
    with pytest.raises(ValueError, match="expected 2 windows, one per environment"):
        env.reset(options={"window": np.array([1, 2, 3])})
    with pytest.raises(ValueError, match="options may hold reset_mask, window, got 'mask'"):
        env.reset(options={"mask": np.array([True, False])})
    with pytest.raises(ValueError, match="render_mode must be None or one of rgb_array, ansi on the batched"):
        make_vec(2, render_mode="movie")
    with pytest.raises(ValueError, match="expected 2 seeds"):
        env.reset(seed=[1, 2, 3])
    for _ in range(env.unwrapped.num_blocks):
        env.step(env.action_space.sample())
    with pytest.raises(gym.error.ResetNeeded):
        env.step(env.action_space.sample())


def test_a_thousand_abandoned_episodes_leave_no_greenlet_and_flat_memory():
    env = make().unwrapped
    action = env.action_space.sample()

    def abandon(count):
        for seed in range(count):
            env.reset(seed=seed)
            env.step(action)

    elsewhere = live_greenlets()
    abandon(100)
    gc.collect()
    before = resident_bytes()
    abandon(1000)
    env.close()
    assert resident_bytes() - before < 20e6
    assert live_greenlets() == elsewhere


def test_an_environment_that_is_dropped_takes_its_episode_along():
    elsewhere = live_greenlets()
    for _ in range(20):
        env = make_vec(2)
        env.reset(seed=0)
        del env
    assert live_greenlets() == elsewhere


def resident_bytes():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096


def test_seeds_masks_and_windows_may_be_of_any_kind():
    env, plain = make_vec(np.int64(2), autoreset_mode=np.str_("DISABLED")), make_vec(2, autoreset_mode="DISABLED")
    for given, own in (
        (np.int64(3), 3),
        (np.array(3), 3),
        ([np.int32(3), None], [3, None]),
        (np.array([3, 5]), [3, 5]),
        (range(3, 5), [3, 4]),
        ((3, np.uint8(9)), [3, 9]),
    ):
        assert_same(env.reset(seed=given)[0], plain.reset(seed=own)[0])
        assert env.unwrapped.np_random_seed == plain.unwrapped.np_random_seed
        assert all(type(seed) is int for seed in env.unwrapped.np_random_seed)
    for mask in ([True, False], (True, False), [np.bool_(True), False]):
        options = {"reset_mask": mask, "window": [4, 5]}
        own = {"reset_mask": np.array([True, False]), "window": np.array([4, 5])}
        assert_same(env.reset(options=options)[0], plain.reset(options=own)[0])


@pytest.mark.parametrize(
    "seed", [1.5, -1, "12", 3j, True, [1.5, 2], [1, -2], np.array([1.0, 2.0]), [[1], [2]], np.ma.masked, {1, 2}]
)
def test_what_are_no_seeds_is_one_sentence(seed):
    with pytest.raises(ValueError, match="seed must be a whole number of at least 0, got "):
        make_vec(2).reset(seed=seed)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (5, TypeError, "options must be a dict, got 5"),
        ({"window": 3, 4: 5, None: 1}, ValueError, "options may hold reset_mask, window, got 4, None"),
        ({"window": [[1], [1, 2]]}, ValueError, "window must be an array, got what NumPy makes none of"),
        ({"window": [1.0, 2.0]}, ValueError, "expected 2 window indices"),
        ({"window": np.ma.array([1, 2], mask=[0, 1])}, TypeError, "window must be a plain array, got a masked one"),
        ({"reset_mask": [1, 0]}, ValueError, "reset_mask must be a bool array"),
        ({"reset_mask": [[True], [True, False]]}, ValueError, "reset_mask must be an array"),
        ({"reset_mask": np.ma.array([True, True], mask=[0, 1])}, TypeError, "reset_mask must be a plain array"),
        ({"reset_mask": np.array([True, False], dtype=object)}, ValueError, "reset_mask must be a bool array"),
    ],
)
def test_options_that_are_none_are_one_sentence(options, error, message):
    with pytest.raises(error, match=message) as caught:
        make_vec(2).reset(options=options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("mode", [np.array(["DISABLED", "NOW"]), 3, None, ["DISABLED"]])
def test_a_mode_that_is_none_is_one_sentence(mode):
    with pytest.raises(ValueError, match="autoreset_mode must be one of NEXT_STEP, SAME_STEP, DISABLED, got "):
        make_vec(2, autoreset_mode=mode)
