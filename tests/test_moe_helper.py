"""The helper: half of a pass's work on a second thread is the work, whatever happens to it on the way."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor

import gymnasium as gym
import numpy as np
import pytest
import torch
from lockstep_runs import exit_code_of_fork, run_to_the_end
from moe_models import ARCHITECTURES, CONFIGS, random_model, random_tokens

from benchmarks.timing import on_threads
from wdmoe_env.moe import lockstep
from wdmoe_env.moe.experts import STRATEGIES, expert_widths
from wdmoe_env.moe.helper import helped, share, workers
from wdmoe_env.moe.lockstep import LockStep, own_scores
from wdmoe_env.moe.split import SplitModel

J = 8


@pytest.fixture
def helper(monkeypatch):
    """A helper for any batch."""
    monkeypatch.setattr(lockstep, "TOKENS_FOR_HELPER", 1)
    with on_threads(2):
        yield


def where_am_i():
    mode = torch.is_inference_mode_enabled()
    return threading.current_thread().name, torch.get_num_threads(), mode, workers()


def test_the_second_task_is_the_helpers():
    with on_threads(3):
        assert workers() == 1
        with helped():
            assert workers() == 2
            mine, other = share([where_am_i, where_am_i])
            assert workers() == 2
            assert share([where_am_i])[0][-1] == 2, "a single task may ask for it itself"
        assert workers() == 1
    assert mine == (threading.current_thread().name, 3, False, 1), "it is busy"
    assert other == ("wdmoe-helper", 1, True, 1)


def test_another_thread_has_no_helper_because_this_one_has():
    with helped(), ThreadPoolExecutor(1) as other:
        assert other.submit(workers).result() == 1


def test_two_threads_may_ask_the_helper_at_once():
    def doubled(number):
        with helped():
            return [share([lambda: number, lambda k=k: number + k])[1] for k in range(200)]

    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(doubled, (0, 1000)))
    assert found == [list(range(200)), list(range(1000, 1200))]


@pytest.mark.parametrize("bad", [(0,), (1,), (0, 1)])
def test_an_error_comes_out_after_both_have_ended(bad):
    ended = []

    def task(number):
        if number == 1:
            threading.Event().wait(0.1)
        ended.append(number)
        if number in bad:
            raise KeyError(number)

    with helped():
        with pytest.raises(KeyError) as error:
            share([lambda: task(0), lambda: task(1)])
        assert error.value.args == (bad[0],)
        assert sorted(ended) == [0, 1]
        assert share([lambda: 1, lambda: 2]) == [1, 2], "the helper goes on"


def test_the_helper_keeps_nothing_alive_in_its_sleep():
    class Large:
        pass

    large = Large()
    seen = weakref.ref(large)
    with helped():
        share([lambda: None, lambda large=large: id(large)])
        del large
        share([lambda: None, lambda: None])  # it has let go before it takes the next
    assert seen() is None


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("strategy", list(STRATEGIES))
@pytest.mark.parametrize(("tokens", "density"), [(37, 0.0), (37, 0.4), (37, 1.0), (1, 0.4)])
def test_experts_in_two_parts_are_the_weighted_sum(architecture, strategy, tokens, density):
    model = random_model(architecture).half().float().requires_grad_(False)
    experts = [module for module in model.modules() if hasattr(module, "is_concatenated")][-1]
    generator = torch.Generator().manual_seed(0)
    hidden_states = torch.randn(tokens, expert_widths(experts)[0], generator=generator)
    selection = torch.rand(tokens, experts.num_experts, generator=generator) < density
    weights = torch.rand(selection.shape, generator=generator)
    expected = STRATEGIES["loop"](experts, hidden_states, selection, weights)
    with helped(), torch.inference_mode():
        result = STRATEGIES[strategy](experts, hidden_states, selection, weights)
    torch.testing.assert_close(result, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("architecture", CONFIGS)
@pytest.mark.filterwarnings("ignore:the gate weights follow no known score")
def test_a_batch_with_a_helper_is_the_batch(architecture, helper, monkeypatch):
    model = SplitModel(random_model(architecture).half().float())
    token_ids, targets = random_tokens(model.model, 6, J), random_tokens(model.model, 6, J, seed=2)
    mask = torch.ones(6, J, dtype=torch.bool)
    mask[4, 5:] = False
    batch = token_ids, mask, targets
    selection = torch.rand(6 * J, model.num_experts, generator=torch.Generator().manual_seed(0)) < 0.4
    both = LockStep(model, *batch)
    assert both._plan.helper
    monkeypatch.setattr(lockstep, "TOKENS_FOR_HELPER", 10**6)
    one = LockStep(model, *batch)
    assert not one._plan.helper
    for chosen in (selection, *[None] * (model.num_blocks - 1)):
        torch.testing.assert_close(both.blocks[0].gate_probs, one.blocks[0].gate_probs, rtol=0, atol=1e-5)
        one.resume(chosen), both.resume(chosen)
    for first, second in zip(both.scores(), one.scores(), strict=True):
        np.testing.assert_allclose(first[mask], second[mask], atol=1e-5)
    own = own_scores(model, *batch)[0]
    monkeypatch.setattr(lockstep, "TOKENS_FOR_HELPER", 1)
    np.testing.assert_allclose(own_scores(model, *batch)[0][mask], own[mask], atol=1e-5)


@pytest.mark.parametrize(
    ("threads", "windows", "width", "expected"),
    [
        (1, 8, 128, (1, 1, False)),  # nothing is taken that the user has not given
        (2, 3, 128, (1, 1, False)),
        (2, 4, 128, (1, 1, True)),
        (2, 8, 128, (1, 1, True)),
        (2, 9, 128, (1, 2, False)),
        (8, 8, 128, (1, 1, True)),
        (2, 8, 512, (1, 2, False)),  # wide: every operator is long enough for two threads
        (2, 32, 64, (2, 1, False)),
        (8, 32, 64, (2, 4, False)),
    ],
)
def test_who_has_lanes_threads_and_a_helper(threads, windows, width, expected):
    class Model:
        device = torch.device("cpu")
        hidden_size = width

    with on_threads(threads):
        plan = lockstep._Plan.of(Model, torch.zeros(windows, 32))
    assert (plan.lanes, plan.threads, plan.helper) == expected


def test_the_setting_is_the_users_again(helper):
    env = gym.make_vec("wdmoe_env:WDMoE-Selection-v0", num_envs=6, model="micro", num_tokens=J)
    env.action_space.seed(0)
    env.reset(seed=0)
    env.step(env.action_space.sample())
    assert torch.get_num_threads() == 2
    assert workers() == 1
    assert not torch.is_inference_mode_enabled()
    new = threading.Thread(target=lambda: seen.append(torch.get_num_threads()))
    seen: list[int] = []
    new.start(), new.join()
    assert seen == [2], "what a thread begins with that a user starts"


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.skipif(not hasattr(os, "fork"), reason="a system without fork")
def test_a_forked_child_has_a_helper_of_its_own(helper):
    model = SplitModel(random_model())
    batch = random_tokens(model.model, 2, J)
    whole = batch, torch.ones(2, J, dtype=torch.bool), batch
    run_to_the_end(model, whole)
    assert exit_code_of_fork(run_to_the_end, model, whole) == 0


def test_a_process_ends_quietly_while_the_helper_sleeps():
    program = f"""
import gymnasium as gym, torch
from wdmoe_env.moe import lockstep
torch.set_num_threads(2)
lockstep.TOKENS_FOR_HELPER = 1
env = gym.make_vec("wdmoe_env:WDMoE-Selection-v0", num_envs=6, model="micro", num_tokens={J})
env.reset(seed=0)
env.step(env.action_space.sample())
import threading
assert "wdmoe-helper" in [thread.name for thread in threading.enumerate()]
"""
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False)
    assert (result.returncode, result.stderr) == (0, "")
