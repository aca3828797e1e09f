"""What crosses the link is rounded: by hand, alike in NumPy and torch, and in the running model."""

from __future__ import annotations

from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch
from moe_models import random_model, random_tokens

from wdmoe_env.config import DeploymentConfig, EnvConfig
from wdmoe_env.moe.link import RoundingRunner, link_runner
from wdmoe_env.moe.runner import ExpertAnswer, ExpertCall, LocalRunner, run_expert
from wdmoe_env.moe.split import SplitModel
from wdmoe_env.precision import dequantise, payload_bits, quantise, rounded
from wdmoe_env.relaxed import Draw, relaxed_episodes
from wdmoe_env.simulator import Simulator

DOCUMENT = Path(__file__).parents[1] / "docs" / "system-model.md"
MESSAGE = np.array([[0.9, -0.2, 0.06, -0.5]], dtype=np.float32)

# Worked with 40-digit decimals, apart from the library.
HAND = {
    8: ("0.00708661", (127, -28, 8, -71), ("0.9", "-0.198425", "0.0566929", "-0.50315"), 64),
    4: ("0.128571", (7, -2, 0, -4), ("0.9", "-0.257143", "0", "-0.514286"), 48),
}
PACKED = [0b1110_0111, 0b1100_0000]  # 7 and -2, 0 and -4, the first in the lower half


@pytest.mark.parametrize("bits", HAND)
def test_a_message_by_hand(bits):
    scale, codes, arrived, payload = HAND[bits]
    found = quantise(MESSAGE, bits)
    assert f"{found.scale.item():.6g}" == scale
    assert found.packed.tolist() == [list(codes) if bits == 8 else PACKED]
    assert [f"{value:.6g}" for value in dequantise(found).ravel()] == list(arrived)
    assert payload_bits(4, bits) == payload
    text = DOCUMENT.read_text()
    for number in (scale, ", ".join(map(str, codes)), ", ".join(arrived), f"{payload_bits(4096, bits):,} bits"):
        assert number in text, number


def messages(width):
    """Ordinary messages, and one each of zeros, of nearly nothing and of nearly the largest numbers."""
    values = np.random.default_rng(width).normal(size=(7, width)).astype(np.float32)
    return values * np.array([1, 1, 0, 1e-42, 1e37, 1, 1], dtype=np.float32)[:, None]


@pytest.mark.parametrize("width", [1, 5, 128])
def test_numpy_torch_and_the_wire_agree_to_the_bit(width):
    values = messages(width)
    for bits in (8, 4):
        of_numpy, of_torch = quantise(values, bits), quantise(torch.from_numpy(values), bits)
        np.testing.assert_array_equal(of_numpy.packed, of_torch.packed.numpy())
        expected = rounded(values, bits)
        for found in (dequantise(of_numpy), dequantise(of_torch).numpy(), rounded(torch.from_numpy(values), bits)):
            np.testing.assert_array_equal(found, expected)
        assert of_numpy.packed.nbytes * 8 + 7 * 32 == 7 * payload_bits(width, bits)
        # No element is off by more than half a code.
        error, scale = np.abs(expected.astype(float) - values), np.abs(values).max(axis=1) / (2 ** (bits - 1) - 1)
        assert (error <= 0.5001 * scale[:, None] + 2e-43).all()  # the grid of denormal scales is coarse
    each = np.array([16, 8, 4, 16, 8, 4, 8])[:, None]
    mixed = rounded(values, each)
    np.testing.assert_array_equal(rounded(torch.from_numpy(values), torch.from_numpy(each)), mixed)
    for row, bits in enumerate(each[:, 0].tolist()):
        np.testing.assert_array_equal(mixed[row], rounded(values[[row]], bits)[0])


def test_sixteen_bits_round_nothing_and_half_precision_stays():
    values = torch.randn(3, 8, dtype=torch.bfloat16)
    assert rounded(values, 16) is values
    assert rounded(values, 8).dtype == torch.bfloat16
    assert payload_bits(4096, 16) == 65_536
    for call in (lambda: rounded(values, 7), lambda: quantise(values, 16), lambda: payload_bits(8, 32)):
        with pytest.raises(ValueError, match="8 or 4 bits of an element"):
            call()


def test_the_former_name_loads():
    assert EnvConfig.make(deployment={"bits_per_element": 8}) == EnvConfig.make(deployment={"link_bits": 8})
    with pytest.raises(TypeError, match=r"'deployment.link_bits' or its former name 'bits_per_element', got both"):
        EnvConfig.make(deployment={"bits_per_element": 8, "link_bits": 8})
    for wrong in (True, 16.0, 32, "8", None):
        with pytest.raises(ValueError, match="link_bits must be 16, 8 or 4, got"):
            DeploymentConfig(link_bits=wrong)


class Twins:
    """Two devices that hold two experts each, in every block."""

    def __init__(self):
        self.model = SplitModel(random_model())
        placement = np.eye(2)[[0, 1, 0, 1]]
        self.runner = RoundingRunner(None, np.broadcast_to(placement, (self.model.num_blocks, 4, 2)))
        self.runner.open(self.model)
        generator = torch.Generator().manual_seed(3)
        self.hidden = torch.randn(9, self.model.hidden_size, generator=generator)
        self.selection = torch.rand(9, 4, generator=generator) < 0.6
        self.selection[4] = False
        self.weights = torch.rand(9, 4, generator=generator)

    def call(self, bits):
        return ExpertCall(1, self.hidden, self.selection, self.weights, (0, 1, 2), bits)

    def by_hand(self, bits):
        """Message by message."""
        total = torch.zeros_like(self.hidden)
        for token in range(9):
            for device, held in enumerate(((0, 2), (1, 3))):
                down = rounded(self.hidden[[token]], int(bits[token][device]))
                used = [expert for expert in held if self.selection[token, expert]]
                parts = [self.weights[token, one] * run_expert(self.model.experts[1], one, down) for one in used]
                if parts:
                    total[token] += rounded(sum(parts), int(bits[token][device]))[0]
        return total


@pytest.mark.parametrize("bits", [8, 4, "mixed"])
def test_each_device_rounds_its_own_sum_of_a_token(bits):
    twins = Twins()
    each = torch.tensor([16, 8, 4])[torch.arange(18).view(9, 2) % 3] if bits == "mixed" else torch.full((9, 2), bits)
    answer = twins.runner.run(twins.call(each if bits == "mixed" else bits))
    torch.testing.assert_close(answer.outputs, twins.by_hand(each), rtol=0, atol=1e-6)
    assert answer.served is None
    assert (answer.outputs[4] == 0).all()


def test_sixteen_bits_are_the_runner_itself():
    twins = Twins()
    found, expected = (runner.run(twins.call(16)).outputs for runner in (twins.runner, twins.model.runner))
    assert torch.equal(found, expected)
    assert link_runner(None, np.zeros((1, 4, 2)), 16) is None
    wired = LocalRunner()
    wired.rounds_link = True
    assert link_runner(wired, np.zeros((1, 4, 2)), 8) is wired


def test_what_a_runner_did_not_serve_is_told_of_the_pass_rows():
    twins = Twins()

    class Lossy(LocalRunner):
        def run(self, call):
            self.episodes = call.episodes
            return ExpertAnswer(super().run(call).outputs, call.selection & torch.tensor([True, True, False, True]))

    inner = Lossy()
    runner = RoundingRunner(inner, np.broadcast_to(np.eye(2)[[0, 1, 0, 1]], (twins.model.num_blocks, 4, 2)))
    runner.open(twins.model)
    served = runner.run(twins.call(8)).served
    assert torch.equal(served, twins.selection & torch.tensor([True, True, False, True]))
    sent = [int(twins.selection[t, [u, u + 2]].any()) for t in range(9) for u in range(2)]
    assert inner.episodes.tolist() == [t // 3 for t in range(9) for u in range(2) if sent[2 * t + u]]


def test_the_gradient_passes_through_as_if_nothing_was_rounded():
    twins = Twins()
    twins.hidden.requires_grad_(True)
    twins.weights.requires_grad_(True)
    twins.runner.run(twins.call(8)).outputs.sum().backward()
    down = rounded(twins.hidden.detach(), 8)
    for expert in range(4):
        expected = run_expert(twins.model.experts[1], expert, down).sum(-1) * twins.selection[:, expert]
        torch.testing.assert_close(twins.weights.grad[:, expert], expected, rtol=1e-4, atol=1e-5)
    assert twins.hidden.grad.abs().sum() > 0


def own(observation):
    used = observation["routed"]
    return Draw(used > 0, 0.5 * torch.ones_like(used), torch.ones_like(used) > 0)


def test_environments_of_all_kinds_and_the_trainer_round_alike():
    keywords = {"model": "micro", "num_tokens": 12, "deployment": {"link_bits": 4}, "decision": "selection"}
    single, batch = gym.make("wdmoe_env:WDMoE-v0", **keywords), gym.make_vec("wdmoe_env:WDMoE-v0", 3, **keywords)
    observation, _ = batch.reset(seed=0)
    alone, _ = single.reset(seed=1)
    done = False
    while not done:
        observation, _, _, _, info = batch.step(batch.unwrapped.encode_action(observation["routed"]))
        alone, _, done, _, one = single.step(single.unwrapped.encode_action(alone["routed"]))
    added = info["reward_terms"]["added_nll"]
    assert (np.abs(added) > 1e-4).all()
    np.testing.assert_allclose(one["reward_terms"]["added_nll"], added[1], atol=1e-5)
    simulator = Simulator(EnvConfig.make(**keywords))
    relaxed = relaxed_episodes(simulator, [np.random.default_rng(np.random.SeedSequence(n)) for n in range(3)], own)
    np.testing.assert_allclose(relaxed.added_nll.detach().numpy(), added, atol=1e-5)


def test_four_bits_cost_four_times_less_air_and_the_model_is_left_as_it_was():
    whole = Simulator(EnvConfig(model="micro", num_tokens=8))
    few = Simulator(EnvConfig.make(model="micro", num_tokens=8, deployment={"link_bits": 4}))
    assert few.world.payload_s / whole.world.payload_s == 16_416 / 65_536
    assert whole.runner is None
    ids = random_tokens(whole.source.model.model, 2, 8)
    assert whole.source.model is few.source.model
    torch.testing.assert_close(whole.source.model.own_logits(ids), few.source.model.own_logits(ids), rtol=0, atol=0)
