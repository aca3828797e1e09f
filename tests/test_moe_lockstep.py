"""Passes in lock-step: the batch in parts, on one lane or two, is the batch, whatever happens to it on the way."""

from __future__ import annotations

import copy
import os
import pickle
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import gymnasium as gym
import numpy as np
import pytest
import torch
from lockstep_runs import exit_code_of_fork, run_to_the_end
from moe_models import CONFIGS, random_model, random_tokens

from benchmarks.timing import on_threads
from wdmoe_env.moe import lockstep, split
from wdmoe_env.moe.lockstep import LockStep, own_scores
from wdmoe_env.moe.runner import run_experts
from wdmoe_env.moe.split import SplitModel
from wdmoe_env.moe.zoo import load_model

J = 8


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(0)
    token_ids, targets = torch.randint(4096, (2, 5, J), generator=generator)
    mask = torch.ones(5, J, dtype=torch.bool)
    mask[3, 5:] = False
    return token_ids, mask, targets


@pytest.mark.parametrize(("tokens", "passes"), [(10**6, 1), (2 * J, 3), (1, 5)])
def test_a_batch_in_parts_is_the_batch(batch, monkeypatch, tokens, passes):
    """Against one untouched forward pass where the selection is the model's own, against one pass elsewhere."""
    model = load_model("micro")
    selections = [torch.rand(5 * J, 8, generator=torch.Generator().manual_seed(n)) < 0.4 for n in range(2)]
    monkeypatch.setattr(lockstep, "TOKENS_PER_PASS", 10**6)
    whole = LockStep(model, *batch)
    monkeypatch.setattr(lockstep, "TOKENS_PER_PASS", tokens)
    parts = LockStep(model, *batch)
    assert len(parts.blocks) == passes
    for selection in (*selections, None):
        probs = [torch.cat([block.gate_probs for block in one.blocks]) for one in (whole, parts)]
        torch.testing.assert_close(*probs, rtol=0, atol=1e-5)
        whole.resume(selection)
        parts.resume(selection)
    assert not parts.blocks
    np.testing.assert_allclose(parts.scores()[0][batch[1]], whole.scores()[0][batch[1]], atol=1e-5)
    logits = model.own_logits(*batch[:2])
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch[2].flatten(), reduction="none")
    own = own_scores(model, *batch)[0]
    np.testing.assert_allclose(own[batch[1]], expected.view(5, J).numpy()[batch[1]], atol=1e-5)


def test_a_pass_uses_as_many_threads_as_it_is_worth_and_gives_the_setting_back(batch, monkeypatch):
    model = load_model("micro")
    used = []
    real = lockstep.SplitModel.forward

    def spy(*args, **keywords):
        used.append(torch.get_num_threads())
        return real(*args, **keywords)

    monkeypatch.setattr(lockstep.SplitModel, "forward", spy)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        for per_thread in (10**6, 5 * J // 2, 1):
            monkeypatch.setattr(lockstep, "TOKENS_PER_THREAD", per_thread)
            LockStep(model, *batch).resume(None)
            assert torch.get_num_threads() == 3
        assert used == [1, 2, 3]
        with pytest.raises(ValueError, match="token_ids"):
            LockStep(model, batch[0].float(), *batch[1:])
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


@pytest.fixture
def two_threads():
    with on_threads(2):
        yield


@pytest.fixture
def lanes(two_threads, monkeypatch):
    """Two lanes for any batch of two."""
    monkeypatch.setattr(lockstep, "TOKENS_PER_LANE", J)


def side_by_side(tasks, lanes, threads):
    return lockstep._Plan(len(tasks), lanes, threads).run(tasks)


def threads_of(count):
    return side_by_side([threading.get_ident] * count, lanes=2, threads=1)


def test_a_lane_is_always_the_same_thread(two_threads):
    found = threads_of(4)
    assert found == threads_of(4)
    assert found[0] == found[2] == threading.get_ident()
    assert found[1] == found[3] != found[0]
    assert side_by_side([threading.get_ident], lanes=1, threads=1) == [threading.get_ident()]


def test_tasks_have_torchs_threads_and_the_caller_has_its_own_again():
    with on_threads(4):
        assert side_by_side([torch.get_num_threads] * 2, lanes=2, threads=2) == [2, 2]
        assert side_by_side([torch.get_num_threads] * 2, lanes=1, threads=3) == [3, 3]
        assert torch.get_num_threads() == 4
        new = threading.Thread(target=lambda: seen.append(torch.get_num_threads()))
        seen: list[int] = []
        new.start(), new.join()
        assert seen == [4], "what a thread begins with that a user starts"


@pytest.mark.parametrize("bad", [(0,), (1,), (0, 1)])
def test_an_error_comes_out_after_all_tasks_have_ended(bad, two_threads):
    ended = []

    def task(number):
        threading.Event().wait(0.2 * (number not in bad))
        ended.append(number)
        if number in bad:
            raise KeyError(number)
        return number

    with pytest.raises(KeyError) as error:
        side_by_side([lambda: task(0), lambda: task(1)], lanes=2, threads=1)
    assert error.value.args == (bad[0],)
    assert sorted(ended) == [0, 1]
    assert torch.get_num_threads() == 2
    assert side_by_side([lambda: task(2), lambda: task(3)], lanes=2, threads=1) == [2, 3]


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.skipif(not hasattr(os, "fork"), reason="a system without fork")
def test_a_forked_child_has_lanes_of_its_own(lanes):
    model = SplitModel(random_model())
    batch = random_tokens(model.model, 2, J)
    whole = batch, torch.ones(2, J, dtype=torch.bool), batch
    LockStep(model, *whole).close()  # the child inherits passes that only the parent's lanes could end
    assert exit_code_of_fork(run_to_the_end, model, whole) == 0


@pytest.mark.parametrize("architecture", CONFIGS)
@pytest.mark.filterwarnings("ignore:the gate weights follow no known score")
def test_a_batch_on_two_lanes_is_the_batch(architecture, lanes, monkeypatch):
    model = SplitModel(random_model(architecture))
    token_ids, targets = random_tokens(model.model, 6, J), random_tokens(model.model, 6, J, seed=2)
    mask = torch.ones(6, J, dtype=torch.bool)
    mask[4, 5:] = False
    batch = token_ids, mask, targets
    selection = torch.rand(6 * J, model.num_experts, generator=torch.Generator().manual_seed(0)) < 0.4
    both = LockStep(model, *batch)
    monkeypatch.setattr(lockstep, "TOKENS_PER_LANE", 10**6)
    one = LockStep(model, *batch)
    assert [len(whole.blocks) for whole in (one, both)] == [1, 2]
    for chosen in (selection, *[None] * (model.num_blocks - 1)):
        probs = [torch.cat([block.gate_probs for block in whole.blocks]) for whole in (one, both)]
        torch.testing.assert_close(*probs, rtol=0, atol=1e-5)
        one.resume(chosen), both.resume(chosen)
    np.testing.assert_allclose(both.scores()[0][mask], one.scores()[0][mask], atol=1e-5)
    own = own_scores(model, *batch)[0]
    monkeypatch.setattr(lockstep, "TOKENS_PER_LANE", J)
    np.testing.assert_allclose(own_scores(model, *batch)[0][mask], own[mask], atol=1e-5)


def test_after_an_error_on_one_lane_no_pass_goes_on(lanes):
    runs = []

    def runner(experts, hidden_states, selection, weights):
        runs.append(threading.get_ident())
        if threading.current_thread().name.startswith("wdmoe-lane"):
            raise OSError("the device is gone")
        return run_experts(experts, hidden_states, selection, weights)

    model = SplitModel(random_model(), runner=runner)
    batch = random_tokens(model.model, 2, J)
    both = LockStep(model, batch, torch.ones(2, J, dtype=torch.bool), batch)
    runs.clear()
    with pytest.raises(OSError, match="gone"):
        both.resume(None)
    assert len(set(runs)) == 2
    assert both.blocks == []


def test_another_thread_cannot_resume_a_batch_and_does_it_no_harm(lanes):
    model = SplitModel(random_model())
    batch = random_tokens(model.model, 2, J)
    both = LockStep(model, batch, torch.ones(2, J, dtype=torch.bool), batch)
    with ThreadPoolExecutor(1) as other, pytest.raises(RuntimeError, match="the thread that started it"):
        other.submit(both.resume, None).result()
    assert [block.index for block in both.blocks] == [0, 0]
    both.resume(None)
    assert [block.index for block in both.blocks] == [1, 1]


def test_after_an_error_on_the_only_lane_no_pass_goes_on_either(monkeypatch):
    monkeypatch.setattr(lockstep, "TOKENS_PER_PASS", J)
    calls = iter(range(100))

    def runner(experts, hidden_states, selection, weights):
        if failing and next(calls) == 1:
            raise OSError("the device is gone")
        return run_experts(experts, hidden_states, selection, weights)

    failing = False
    model = SplitModel(random_model(), runner=runner)
    batch = random_tokens(model.model, 2, J)
    both = LockStep(model, batch, torch.ones(2, J, dtype=torch.bool), batch)
    failing = True
    with pytest.raises(OSError, match="gone"):
        both.resume(None)
    assert both.blocks == []


def environment():
    return gym.make_vec("wdmoe_env:WDMoE-Selection-v0", num_envs=6, model="micro", num_tokens=J)


def episode(env, seed):
    env.action_space.seed(0)
    rewards = []
    env.reset(seed=seed)
    for _ in range(env.num_blocks):
        rewards.append(env.step(env.action_space.sample())[1])
    return np.stack(rewards)


def test_the_environment_on_lanes_is_the_environment(lanes, monkeypatch):
    rewards = episode(environment(), seed=3)
    monkeypatch.setattr(lockstep, "TOKENS_PER_LANE", 10**6)
    np.testing.assert_allclose(rewards, episode(environment(), seed=3), rtol=1e-5)


def test_an_episode_on_lanes_can_be_copied_and_given_up(lanes):
    env = environment()
    env.reset(seed=0)
    env.step(env.action_space.sample())
    rollout = env._cohorts[0].rollout
    assert len(rollout._passes.blocks) == 2
    for other in (copy.deepcopy(rollout), pickle.loads(pickle.dumps(rollout))):
        np.testing.assert_allclose(other.block.gate_probs, rollout.block.gate_probs, atol=1e-6)
    del rollout, other
    env.reset(seed=1)  # lets go of passes that wait on the lanes
    env.step(env.action_space.sample())
    lanes_of = set(threads_of(2))
    assert not [orphan for orphan in split._orphans if orphan[2] in lanes_of], "ended by the lanes' next pass"
    env.close()


def test_a_process_ends_quietly_with_passes_on_lanes():
    """Four processes, forked once everything is imported: each ends with its passes in another state."""
    program = f"""
import os
import gymnasium as gym, torch, wdmoe_env.env
from wdmoe_env.moe import lockstep
endings = ["", "env.close()", "del env", "env.reset(seed=1)"]
children = []
for ending in endings:
    children.append(os.fork())
    if not children[-1]:
        torch.set_num_threads(2)
        lockstep.TOKENS_PER_LANE = {J}
        env = gym.make_vec("wdmoe_env:WDMoE-Selection-v0", num_envs=6, model="micro", num_tokens={J})
        env.reset(seed=0)
        assert len(env._cohorts[0].rollout._passes.blocks) == 2
        exec(ending)
        break
else:
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    assert codes == [0] * len(endings), codes
"""
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False)
    assert (result.returncode, result.stderr) == (0, "")
