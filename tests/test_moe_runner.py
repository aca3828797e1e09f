"""Runners: a pass goes on with what was served, whoever runs the experts and whatever becomes of it."""

from __future__ import annotations

import copy
import pickle

import gymnasium as gym
import numpy as np
import pytest
import torch
from moe_models import random_model, random_tokens

from wdmoe_env.config import EnvConfig
from wdmoe_env.moe import runner as runner_module
from wdmoe_env.moe.lockstep import LockStep
from wdmoe_env.moe.runner import ExpertAnswer, LocalRunner, Service, make_runner, register_runner, run_experts
from wdmoe_env.moe.split import SplitModel
from wdmoe_env.moe.zoo import load_model
from wdmoe_env.simulator import Simulator

J = 8


class Unreliable(LocalRunner):
    """The local experts, some of whose work is lost.

    Args:
        fault: ``"some"`` loses pairs at random, ``"late"`` all of the odd episodes, ``"refused"`` and ``"timeout"``
            all.
    """

    opened = closed = 0

    def __init__(self, fault):
        super().__init__()
        self.fault, self.calls = fault, []

    def open(self, model):
        super().open(model)
        type(self).opened += 1

    def close(self):
        type(self).closed += 1

    def run(self, call):
        self.calls.append(call)
        if self.fault == "refused":
            raise ConnectionRefusedError("nobody there")
        if self.fault == "timeout":
            raise TimeoutError("nothing came back")
        served = call.selection.clone()
        if self.fault == "some":
            served &= torch.rand(served.shape, generator=torch.Generator().manual_seed(call.block)) < 0.6
        if self.fault == "late":
            served[torch.from_numpy(call.episodes % 2 == 1)] = False
        outputs = run_experts(self._experts[call.block], call.hidden_states, served, call.weights)
        outputs[~served.any(dim=1)] = float("nan")  # what a late answer leaves behind is never read
        return ExpertAnswer(outputs, served, {"wait": 0.25})


@pytest.fixture
def kind(monkeypatch):
    """The unreliable runner under a name of its own."""
    monkeypatch.setattr(runner_module, "_RUNNERS", copy.deepcopy(runner_module._RUNNERS))
    register_runner("unreliable", Unreliable)
    Unreliable.opened = Unreliable.closed = 0


def logits_of(model, ids, choose, service=None):
    """Logits, and the pairs (N,) that each block dropped."""
    forward = model.forward(ids, service=service)
    dropped = []
    while forward.block is not None:
        forward.resume(choose(forward.block))
        dropped.append(forward.service.unserved_pairs)
    return forward.result.logits, np.array(dropped)


@pytest.mark.parametrize("own", [True, False], ids=["own routing", "another selection"])
def test_a_pass_goes_on_with_what_was_served_as_if_that_had_been_selected(own):
    """The weights of what was served are those of ``combination_weights``, which is what selecting it alone gives."""
    model = SplitModel(random_model())
    ids = random_tokens(model.model, 3, J)
    runner = Unreliable("some")
    runner.open(model)
    extra = torch.rand(3 * J, model.num_experts, generator=torch.Generator().manual_seed(9)) < 0.5

    def choose(block):
        return None if own else block.routed | extra

    logits, dropped = logits_of(model, ids, choose, Service(runner, (0, 1, 2)))
    kept = [torch.rand(3 * J, 4, generator=torch.Generator().manual_seed(n)) < 0.6 for n in range(model.num_blocks)]
    expected, none = logits_of(
        model, ids, lambda block: (block.routed if own else block.routed | extra) & kept[block.index]
    )
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-5)
    lost = [(call.selection & ~kept[call.block]).view(3, -1).sum(dim=1).tolist() for call in runner.calls]
    assert dropped.tolist() == lost
    assert dropped.sum() > 0
    assert none.sum() == 0


@pytest.mark.parametrize("fault", ["refused", "timeout"])
def test_where_nothing_is_served_the_residual_goes_on_alone(fault):
    model = SplitModel(random_model())
    ids = random_tokens(model.model, 2, J)
    logits, dropped = logits_of(model, ids, lambda block: None, Service(Unreliable(fault), (0, 1)))
    expected, _ = logits_of(model, ids, lambda block: torch.zeros_like(block.routed))
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-6)
    assert (dropped == model.top_k * J).all()


@pytest.mark.parametrize("parts", [1, 4])
def test_an_episode_that_is_late_does_not_end_the_others(parts, monkeypatch):
    monkeypatch.setattr("wdmoe_env.moe.lockstep.TOKENS_PER_PASS", 4 * J // parts)
    model = SplitModel(random_model())
    runner = Unreliable("late")
    runner.open(model)
    ids = random_tokens(model.model, 4, J)
    batch = ids, torch.ones(4, J, dtype=torch.bool), ids
    late, local = LockStep(model, *batch, runner=runner), LockStep(model, *batch)
    assert len(late.blocks) == parts
    while late.blocks:
        late.resume(None), local.resume(None)
        assert late.unserved_pairs().tolist() == [0, model.top_k * J] * 2
        assert local.unserved_pairs().tolist() == [0] * 4
    np.testing.assert_allclose(late.scores()[0][::2], local.scores()[0][::2], rtol=1e-5, atol=1e-5)
    assert (np.abs(late.scores()[0][1::2] - local.scores()[0][1::2]) > 1e-3).any()
    assert late._passes[0].service.timings_s == {"wait": 0.25}


def test_an_error_that_is_no_lost_answer_comes_out():
    class Broken(LocalRunner):
        def run(self, call):
            raise KeyError("a mistake in the runner")

    model = SplitModel(random_model())
    forward = model.forward(random_tokens(model.model, 1, J), service=Service(Broken(), (0,)))
    with pytest.raises(KeyError, match="a mistake"):
        forward.resume(None)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda call: ExpertAnswer(call.hidden_states[:1]), r"outputs to be torch.float32 of shape \(8, 32\), got"),
        (lambda call: ExpertAnswer(call.hidden_states.double()), "got torch.float64"),
        (lambda call: ExpertAnswer(call.hidden_states, call.weights), r"served to be a bool tensor of shape \(8, 4\)"),
        (lambda call: ExpertAnswer(call.hidden_states, call.selection[0]), r"got torch.bool of \(4,\)"),
    ],
)
def test_an_answer_of_another_shape_is_one_sentence(answer, message):
    class Wrong(LocalRunner):
        def run(self, call):
            return answer(call)

    model = SplitModel(random_model(), runner=Wrong())
    with pytest.raises(ValueError, match=message):
        model.forward(random_tokens(model.model, 1, J)).resume(None)


def test_a_call_names_the_episode_of_each_row():
    model = SplitModel(random_model())
    runner = Unreliable("none")
    runner.open(model)
    ids = random_tokens(model.model, 2, 3)
    logits_of(model, ids, lambda block: None, Service(runner, (5, 7)))
    assert [call.block for call in runner.calls] == list(range(model.num_blocks))
    assert runner.calls[0].episodes.tolist() == [5] * 3 + [7] * 3
    own = SplitModel(random_model(), runner=Unreliable("none"))
    own.own_logits(ids)
    assert own.runner.calls[0].episodes.tolist() == [-1] * 6


@pytest.mark.parametrize("name", ["tiny", "micro"])
def test_a_model_without_experts_gives_the_same_logits_through_a_runner_that_has_some(name):
    whole, split = load_model(name), load_model(name, experts="meta")
    assert all(parameter.is_meta for experts in split.experts for parameter in experts.parameters())
    assert (split.top_k, split.hidden_size, split.intermediate_size) == (
        whole.top_k,
        whole.hidden_size,
        whole.intermediate_size,
    )
    elsewhere = LocalRunner()
    elsewhere.open(whole)
    ids = torch.randint(4096, (2, J), generator=torch.Generator().manual_seed(0))
    for choose in (lambda block: None, lambda block: block.routed.roll(1, dims=1)):
        logits, _ = logits_of(split, ids, choose, Service(elsewhere, (0, 1)))
        expected, _ = logits_of(whole, ids, choose)
        assert torch.equal(logits, expected)
    with pytest.raises(RuntimeError, match="loaded without any"):
        split.own_logits(ids)
    assert pickle.loads(pickle.dumps(split)) is split


@pytest.mark.parametrize("fault", ["some", "late", "timeout"])
def test_info_says_how_many_pairs_were_not_served(fault, kind):
    env = gym.make_vec(
        "wdmoe_env:WDMoE-Selection-v0", num_envs=4, model="micro", num_tokens=J, runner=f"unreliable:{fault}"
    )
    env.action_space.seed(0)
    env.reset(seed=0)
    counts = []
    for _ in range(env.num_blocks):
        *_, info = env.step(env.action_space.sample())
        counts.append(info["unserved_pairs"])
        selected = info["selection"].sum(axis=(1, 2))
        if fault == "late":
            assert (counts[-1] == selected * [0, 1, 0, 1]).all()
        if fault == "timeout":
            assert (counts[-1] == selected).all()
    assert np.sum(counts) > 0
    assert np.isfinite(info["nll"]).all()
    env.close()


def test_the_local_runner_adds_nothing_to_info(micro):
    env = gym.make("wdmoe_env:WDMoE-v0", **micro)
    env.reset(seed=0)
    assert "unserved_pairs" not in env.step(env.action_space.sample())[-1]


def test_a_runner_lives_as_long_as_its_simulator(kind):
    config = EnvConfig(model="micro", num_tokens=J, runner="unreliable:none")
    simulator = Simulator(config)
    again = pickle.loads(pickle.dumps(simulator))
    assert again.runner is not simulator.runner
    assert (Unreliable.opened, Unreliable.closed) == (2, 0)
    del simulator, again
    assert Unreliable.closed == 2


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("locl", "did you mean 'local'"),
        ("local:8", "takes nothing behind a colon, got '8'"),
        ("", "must be one of local, testbed.*, got ''"),
    ],
)
def test_a_wrong_name_is_one_sentence(name, message):
    with pytest.raises(ValueError, match=message):
        make_runner(name)
    with pytest.raises(ValueError, match=message):
        Simulator(EnvConfig(model="micro", num_tokens=J, runner=name))


@pytest.mark.parametrize("name", ["", "a:b", "local"])
def test_a_name_that_cannot_be_registered_is_refused(name):
    with pytest.raises(ValueError, match="a name without a colon"):
        register_runner(name, Unreliable)


def test_another_word_for_the_experts_is_refused():
    with pytest.raises(ValueError, match="experts must be 'local' or 'meta', got 'disk'"):
        load_model("micro", experts="disk")
