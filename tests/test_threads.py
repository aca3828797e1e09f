"""Threads: an episode goes on in any of them, one at a time, and leaves nothing behind in those that have ended."""

from __future__ import annotations

import asyncio
import gc
import threading
from concurrent.futures import ThreadPoolExecutor

import gymnasium as gym
import numpy as np
import pytest
import torch
from conftest import MICRO
from test_env import assert_same

from benchmarks.timing import on_threads
from wdmoe_env.moe import lockstep, split
from wdmoe_env.rollout.rollout import Rollout

ENVS = {
    "single": lambda **keywords: gym.make("wdmoe_env:WDMoE-v0", **MICRO, **keywords),
    "selection": lambda **keywords: gym.make("wdmoe_env:WDMoE-Selection-v0", **MICRO, **keywords),
    "next-step": lambda **keywords: gym.make_vec("wdmoe_env:WDMoE-v0", num_envs=4, **MICRO, **keywords),
    "same-step": lambda **keywords: gym.make_vec(
        "wdmoe_env:WDMoE-v0", num_envs=4, autoreset_mode="SAME_STEP", **MICRO, **keywords
    ),
}


def here(function, *args, **keywords):
    return function(*args, **keywords)


def in_a_new_thread(function, *args, **keywords):
    """The result in a thread that ends with it; its number is mostly that of the thread before."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(function, *args, **keywords).result()


def in_turn(*callers):
    """A caller that takes each of some callers in turn."""
    turns = iter(range(10**6))
    return lambda *args, **keywords: callers[next(turns) % len(callers)](*args, **keywords)


def by_asyncio(function, *args, **keywords):
    async def call():
        return await asyncio.to_thread(function, *args, **keywords)

    return asyncio.run(call())


@pytest.fixture
def pools():
    """Two threads that live on, as callers."""
    with ThreadPoolExecutor(1) as one, ThreadPoolExecutor(1) as other:
        yield [lambda *a, at=at, **k: at.submit(*a, **k).result() for at in (one, other)]


def played(env, call=here):
    """Everything that came out of an environment in some episodes."""
    env.action_space.seed(0)
    out = [call(env.reset, seed=3)]
    for number in range(2 * env.unwrapped.num_blocks + 2):
        out.append(call(env.step, env.action_space.sample()))
        if isinstance(env.unwrapped, gym.Env) and out[-1][2]:
            out.append(call(env.reset))
        elif not isinstance(env.unwrapped, gym.Env) and number == 1:
            out.append(call(env.reset, options={"reset_mask": np.array([False, True, True, False])}))
    call(env.close)
    return out


def assert_all_same(one, other):
    """Also where an info holds an observation for some environments and ``None`` for the others."""
    plain = [[_listed(part) if isinstance(part, dict) else part for part in result] for result in one]
    assert_same(plain, [[_listed(part) if isinstance(part, dict) else part for part in result] for result in other])


def _listed(info):
    final = [entry or {} for entry in info["final_obs"]] if "final_obs" in info else []
    return {**info, "final_obs": final}


@pytest.mark.parametrize("env", ENVS)
@pytest.mark.parametrize("calls", ["new threads", "two threads", "here and there", "asyncio"])
def test_whatever_thread_steps_the_episodes_are_the_same(env, calls, pools):
    call = {
        "new threads": in_a_new_thread,
        "two threads": in_turn(*pools),
        "here and there": in_turn(here, here, pools[0]),
        "asyncio": by_asyncio,
    }[calls]
    assert_all_same(played(ENVS[env]()), played(ENVS[env](), call))


def test_passes_on_lanes_go_on_in_another_thread(pools, monkeypatch):
    monkeypatch.setattr(lockstep, "TOKENS_PER_LANE", 8)
    with on_threads(2):
        env = ENVS["same-step"]()
        expected = played(ENVS["same-step"]())
        assert_all_same(expected, played(env, in_turn(*pools)))


def test_the_blocks_run_again_once_for_each_change_of_thread(pools, monkeypatch):
    runs = []
    advance = Rollout._advance
    monkeypatch.setattr(Rollout, "_advance", lambda *args: runs.append(threading.get_ident()) or advance(*args))
    env = ENVS["single"]()
    env.reset(seed=0)
    env.step(env.action_space.sample())
    assert len(runs) == 1, "nothing runs twice on one thread"
    pools[0](env.step, env.action_space.sample())
    assert len(runs) == 1 + 1 + 1
    pools[0](env.step, env.action_space.sample())
    assert len(runs) == 1 + 1 + 1 + 1


@pytest.mark.parametrize("back", [True, False])
def test_a_change_of_thread_that_is_interrupted_is_made_up_for(back, pools, monkeypatch):
    env, twin = ENVS["single"](), ENVS["single"]()
    actions = [env.action_space.sample() for _ in range(3)]
    for one in (env, twin):
        one.reset(seed=0)
        for action in actions[:2]:
            one.step(action)

    def interrupted(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Rollout, "_advance", interrupted)
        with pytest.raises(KeyboardInterrupt):
            pools[0](env.step, actions[2])
    assert_same((here if back else pools[0])(env.step, actions[2]), twin.step(actions[2]))


@pytest.mark.parametrize("env", ["single", "next-step"])
@pytest.mark.parametrize("second", ["step", "reset"])
def test_a_call_into_one_that_is_under_way_is_refused_and_does_it_no_harm(env, second, pools):
    refused = []

    def meddling(terms):
        call = (lambda: meddled.step(meddled.action_space.sample())) if second == "step" else meddled.reset
        with pytest.raises(RuntimeError, match=r"expected one call at a time, .* in reset") as caught:
            pools[0](call)
        refused.append(str(caught.value))
        return terms["wlr"]

    meddled, quiet = ENVS[env](reward=meddling), ENVS[env]()
    for one in (meddled, quiet):
        one.action_space.seed(0)
        one.reset(seed=0)
    for _ in range(meddled.unwrapped.num_blocks):
        action = quiet.action_space.sample()
        assert_same(meddled.step(action), quiet.step(action))
    assert len(refused) == meddled.unwrapped.num_blocks
    assert "\n" not in refused[0]
    meddled.reset()


def tensors():
    gc.collect()
    return sum(issubclass(type(one), torch.Tensor) for one in gc.get_objects())


def abandoned():
    """An episode that another thread has begun, which has ended since."""
    env = ENVS["single"]()
    in_a_new_thread(env.reset, seed=0)
    in_a_new_thread(env.step, env.action_space.sample())
    return env


ENDINGS = {
    "dropped": lambda env: None,
    "closed": lambda env: env.close(),
    "closed in a thread": lambda env: in_a_new_thread(env.close),
    "reset": lambda env: env.reset(),
    "gone on with": lambda env: env.step(env.action_space.sample()),
    "gone on with in a thread": lambda env: in_a_new_thread(env.step, env.action_space.sample()),
}


@pytest.mark.parametrize("ending", ENDINGS)
def test_threads_that_have_ended_leave_no_pass_behind(ending):
    counts = []
    for _ in range(4):
        ENDINGS[ending](abandoned())
        counts.append(tensors())
    assert counts[1] == counts[-1]
    assert not torch.is_inference_mode_enabled()


def test_a_thread_ends_what_another_let_go_of_when_it_ends_itself():
    """It may have nothing more to run, so that no pass of its own would come to it."""
    begun, leave = threading.Event(), threading.Event()
    env = ENVS["single"]()

    def begin():
        env.reset(seed=0)
        begun.set()
        assert leave.wait(60)

    thread = threading.Thread(target=begin)
    thread.start()
    assert begun.wait(60)
    before = len(split._orphans)
    number = thread.ident
    env.step(env.action_space.sample())
    assert number in [orphan[2] for orphan in split._orphans[before:]]
    leave.set()
    thread.join()
    assert number not in [orphan[2] for orphan in split._orphans]
