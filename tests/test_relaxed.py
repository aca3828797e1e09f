"""Relaxed episodes: forward as the environment, backward as finite differences."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from wdmoe_env.actions import settled_plan
from wdmoe_env.config import EnvConfig
from wdmoe_env.moe.routing import OwnRouting, combination_weights, relaxed_weights
from wdmoe_env.optimize.bandwidth import min_max_bandwidth
from wdmoe_env.physics.latency import Load, device_load
from wdmoe_env.relaxed import Draw, relaxed_block, relaxed_episodes
from wdmoe_env.simulator import Simulator


def generators(count: int) -> list[np.random.Generator]:
    return [np.random.default_rng(seed) for seed in range(count)]


@pytest.fixture(scope="module")
def simulator() -> Simulator:
    return Simulator(EnvConfig(model="micro", num_tokens=12))


def draw(used: torch.Tensor) -> Draw:
    return Draw(used > 0, 0.5 * torch.ones_like(used), torch.ones_like(used) > 0)


def drop_some(observation: dict[str, torch.Tensor]) -> Draw:
    """In every second token the less probable routed expert gives way to the least probable of all."""
    probs, routed = observation["gate_probs"], observation["routed"]
    worse = torch.where(routed > 0, probs, 9.0).argmin(-1, keepdim=True)
    swapped = routed.scatter(-1, worse, 0.0).scatter(-1, probs.argmin(-1, keepdim=True), 1.0)
    second = (torch.arange(probs.shape[1]) % 2 == 0)[None, :, None]
    return draw(torch.where(second, swapped, routed))


def own(observation: dict[str, torch.Tensor]) -> Draw:
    return draw(observation["routed"])


def test_forward_is_the_environment_with_optimal_shares(simulator: Simulator) -> None:
    with torch.no_grad():
        relaxed = relaxed_episodes(simulator, generators(5), drop_some)
    rollout = simulator.start(generators(5))
    for block in relaxed.blocks:
        at = rollout.block
        observation = {
            "gate_probs": torch.from_numpy(at.gate_probs).float(),
            "routed": torch.from_numpy(at.routed).float(),
        }
        selection = drop_some(observation).used.numpy()
        result = rollout.step(settled_plan(at, {"experts": selection}, 1e-3))
        np.testing.assert_allclose(block.latency_ms.numpy(), 1e3 * result.block_latency_s, rtol=1e-5)
        np.testing.assert_allclose(block.vanilla_latency_ms.numpy(), 1e3 * result.vanilla_latency_s, rtol=1e-5)
        np.testing.assert_allclose(block.gate_weight_served.numpy(), result.gate_weight_served, rtol=1e-5)
    end = rollout.finish()
    np.testing.assert_allclose(relaxed.added_nll.numpy(), end.nll - end.reference_nll, atol=1e-5)
    assert np.abs(relaxed.added_nll.numpy()).max() > 1e-3


def test_own_routing_adds_no_loss_and_leaves_the_model_as_it_was(simulator: Simulator) -> None:
    with torch.no_grad():
        result = relaxed_episodes(simulator, generators(3), own)
    np.testing.assert_allclose(result.added_nll.numpy(), 0.0, atol=1e-5)
    assert not any(p.requires_grad or p.grad is not None for p in simulator.source.model.model.parameters())


def test_own_routing_diverges_not_and_another_does(simulator: Simulator) -> None:
    with torch.no_grad():
        same, other = (relaxed_episodes(simulator, generators(3), actor) for actor in (own, drop_some))
    np.testing.assert_allclose(same.divergence.numpy(), 0.0, atol=1e-6)
    assert (other.divergence > 1e-4).all()


def test_the_gradient_of_the_weights_is_the_difference_that_each_pair_makes() -> None:
    generator = torch.Generator().manual_seed(0)
    probs = torch.rand(6, 5, generator=generator).softmax(-1)
    top = probs.topk(2)
    routing = OwnRouting(top.indices, 0.9 * top.values / top.values.sum(-1, keepdim=True), 5)
    values = torch.zeros(6, 5)
    values[torch.arange(6), torch.arange(6) % 5] = 1.0
    values[3:, 2] = 1.0
    loss = torch.rand(6, 5, generator=generator)
    leaf = values.clone().requires_grad_()
    relaxed = relaxed_weights(routing, probs, leaf)
    torch.testing.assert_close(relaxed.detach(), combination_weights(routing, probs, values > 0.5))
    (gradient,) = torch.autograd.grad((loss * relaxed).sum(), leaf)
    for token in range(6):
        for expert in range(5):
            ends = []
            for value in (1.0, 0.0):
                flipped = values.clone()
                flipped[token, expert] = value
                if not flipped[token].any():
                    flipped[token, probs[token].argmax()] = 1.0
                ends.append((loss * combination_weights(routing, probs, flipped > 0.5)).sum())
            assert gradient[token, expert].item() == pytest.approx((ends[0] - ends[1]).item(), abs=1e-6)


class Bernoulli:
    """Draws routed pairs of the first block with one probability, its own routing elsewhere."""

    def __init__(self, probability: torch.Tensor, seed: int) -> None:
        self.probability = probability
        self.noise = torch.Generator().manual_seed(seed)

    def __call__(self, observation: dict[str, torch.Tensor]) -> Draw:
        routed = observation["routed"]
        if observation["block"].max() > 0:
            return own(observation)
        used = torch.rand(routed.shape, generator=self.noise) < self.probability.detach()
        return Draw(used & (routed > 0), routed * self.probability, routed > 0)


def test_gradients_are_those_of_the_expectation() -> None:
    """Against finite differences with the same draws: the mean over many episodes moves as the gradient says.

    On the trained model, whose loss is about quadratic near its own routing, as the trapezoid rule supposes.
    """
    simulator = Simulator(EnvConfig(model="tiny", num_tokens=12))

    def values(probability: torch.Tensor) -> list[torch.Tensor]:
        episodes = relaxed_episodes(simulator, generators(400), Bernoulli(probability, 0))
        first = episodes.blocks[0]
        return [one.mean() for one in (first.latency_ms, first.gate_weight_served, episodes.divergence)]

    probability = torch.tensor(0.7, requires_grad=True)
    gradients = [torch.autograd.grad(one, probability, retain_graph=True)[0].item() for one in values(probability)]
    with torch.no_grad():
        above, below = values(torch.tensor(0.75)), values(torch.tensor(0.65))
    slopes = [(one - other).item() / 0.1 for one, other in zip(above, below, strict=True)]
    assert gradients == pytest.approx(slopes, rel=0.1)


def test_the_price_of_a_pair_is_what_the_optimum_says(simulator: Simulator) -> None:
    block = simulator.start(generators(3)).block
    probs = torch.from_numpy(block.routed).float().requires_grad_()
    pairs = Draw(probs.detach() > 0, probs, probs.detach() > 0)
    (gradient,) = torch.autograd.grad(relaxed_block(block, pairs, 1e-3).latency_ms.sum(), probs)
    load = device_load(block.routed, block.links)
    for device in range(load.tokens.shape[1]):
        loaded = load.tokens[:, device] > 0
        latencies = []
        for change in (-1e-3, 1e-3):  # tokens more, each with one expert: every device holds one here
            step = change * (np.arange(load.tokens.shape[1]) == device) * (load.tokens > 0)
            changed = Load(load.tokens + step, load.experts + step)
            latencies.append(1e3 * min_max_bandwidth(block.links, changed, 1e-3).latency_s)
        slope = (latencies[1] - latencies[0]) / 2e-3
        np.testing.assert_allclose(gradient[loaded, 0, device].numpy(), slope[loaded], rtol=1e-3, atol=1e-6)
