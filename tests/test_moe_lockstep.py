"""Passes in lock-step: the batch in parts is the batch, and the host waits for the device only for the action."""

from __future__ import annotations

from collections import Counter

import gymnasium as gym
import numpy as np
import pytest
import torch
from torch.overrides import TorchFunctionMode

from wdmoe_env.moe import lockstep
from wdmoe_env.moe.lockstep import LockStep, own_scores
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


class Words(TorchFunctionMode):
    """Counts what makes the host wait for a device, were the tensors on one."""

    names = ("cpu", "item", "tolist", "nonzero", "__bool__", "__int__", "__index__", "numpy")

    def __init__(self):
        super().__init__()
        self.count = Counter()

    def __torch_function__(self, function, types, args=(), kwargs=None):
        name = getattr(function, "__name__", "")
        if name in self.names:
            self.count[name] += 1
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("num_envs", [1, 3])
def test_a_step_waits_for_what_the_action_needs_alone(num_envs):
    """One ``numpy`` fetches the gates, one the routing, and one reads the action's own selection."""
    env = gym.make_vec("wdmoe_env:WDMoE-Selection-v0", num_envs=num_envs, model="micro", num_tokens=J)
    env.reset(seed=0)
    action = env.action_space.sample()
    with Words() as words:
        env.step(action)
    assert words.count == {"numpy": 3}
    env.step(action)
    env.simulator.source.reference_nll(np.arange(len(env.simulator.source.windows)))
    with Words() as words:
        env.step(action)
    assert words.count["cpu"] == 1, "the scores"


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
