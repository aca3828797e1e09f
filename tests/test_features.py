"""The features of the candidates are those of all pairs, each worked out on its own with whole arrays."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from wdmoe_env.observations import Block, decode_observation, encode_observation
from wdmoe_env.optimize.bandwidth import min_max_bandwidth
from wdmoe_env.optimize.pricing import device_prices
from wdmoe_env.physics.latency import BlockLinks, Load, equal_shares, radio_latency_s
from wdmoe_env.physics.latency import spectral_efficiency as efficiency
from wdmoe_env.policies.draft import DAMPING, ROUNDS, SOFTNESS, priced
from wdmoe_env.policies.features import Features

# N, J, E, U, experts per token, extra candidates
SHAPES = [(6, 5, 6, 6, 2, 0), (6, 5, 6, 3, 2, 1), (4, 7, 4, 9, 2, 2), (5, 1, 8, 8, 3, 0), (3, 1, 2, 1, 1, 1)]


def random_observation(batch, tokens, experts, devices, per_token, seed=0):
    """Of episodes of differing length, the last without any token, with experts on random devices."""
    random = np.random.default_rng(seed)
    mask = np.arange(tokens) < random.integers(1, tokens + 1, size=(batch, 1))
    mask[-1] = False
    probs = random.dirichlet(np.full(experts, 0.5), size=(batch, tokens)) * mask[..., None]
    rank = (-probs).argsort(axis=-1).argsort(axis=-1)
    placement = np.eye(devices)[random.integers(devices, size=(batch, experts))]
    snr, payload_s = random.lognormal(1.0, 2.0, size=(batch, 2, devices)), np.full(batch, 1e-4)
    links = BlockLinks(snr, payload_s, random.uniform(0.0, 1e-3, size=(batch, devices)), placement)
    equal = equal_shares(batch, devices)
    routed = (rank < per_token) & mask[..., None]
    index = random.integers(4, size=batch) / 4
    block = Block(probs, routed, mask, links, efficiency(snr, equal), radio_latency_s(links, equal), index)
    return {name: torch.from_numpy(value) for name, value in encode_observation(block).items()}


class Dense:
    """Prices of drafts (N, J, E), and figures of all pairs and devices."""

    def __init__(self, block, candidates):
        self.block, self.candidates = block, candidates
        self.placement, self.weight = block.links.placement, block.weights
        self.tokens = np.maximum(block.token_mask.sum(-1), 1)[:, None]
        self.token_ms = 1e3 * (block.unit_latency_s + block.links.compute_s)
        self.work = (block.routed @ self.placement).sum(1) * self.token_ms
        best = np.eye(candidates.shape[-1])[(block.gate_probs * block.routed).argmax(-1)] > 0
        self.best = best & block.routed
        self.best_weight = (self.weight * self.best).sum(-1, keepdims=True)
        self.own = self.first = self.price(block.routed.astype(float))
        for _ in range(ROUNDS):
            used, price, latency, ratio = self.price(self.soft(self.first))
            self.first = used, self.first[1] ** (1 - DAMPING) * price**DAMPING, latency, ratio

    def price(self, used):
        """The draft, the price (N, U) in ms, the latency (N,) in ms and the ratio (N,)."""
        sent = used @ self.placement
        load = Load(np.minimum(sent, 1.0).sum(1), sent.sum(1))
        optimum = min_max_bandwidth(self.block.links, load)
        each = device_prices(self.block.links, load, optimum, np.ones(len(used)), 0.0)
        latency = np.maximum(1e3 * optimum.latency_s, 1e-9)
        return used, np.maximum(each.token + each.expert, 1e-9), latency, (self.weight * used).sum((1, 2)) / latency

    def soft(self, draft):
        """Logistic of the log of weight over price, and at least the softmax over the token's candidates."""
        _, price, _, ratio = draft
        paid = self.placement @ (ratio[:, None] * price)[..., None]
        margin = np.log(np.maximum(self.weight, 1e-9)) - np.log(np.maximum(paid[:, None, :, 0], 1e-9))
        odds = np.where(self.candidates, np.exp(margin / SOFTNESS), 0.0)
        return np.maximum(odds / np.maximum(odds.sum(-1, keepdims=True), 1e-300), odds / (1 + odds))

    def pairs(self, draft):
        """(N, J, E, 19)."""
        block, routed = self.block, self.block.routed
        beside = (routed @ self.placement) @ self.placement.swapaxes(1, 2) - routed > 0.5
        own_cost = self.cost(self.own)
        index = block.index[:, None, None]
        columns = [block.gate_probs, np.minimum(self.weight, 2), routed, self.best, np.minimum(self.best_weight, 1)]
        columns += [log_ratio(self.best_weight, self.weight), beside]
        columns += [np.linspace(0, 1, routed.shape[1])[:, None], index, index == 0]
        columns += [log_ratio(own_cost, 1), log_ratio(self.own[2], self.work.max(-1))[:, None, None]]
        columns.append(log_ratio(self.weight, own_cost))
        for used, price, latency, ratio in (self.first, draft):
            cost, per_token = self.cost((used, price, latency, ratio)), (ratio * latency)[:, None, None]
            columns += [log_ratio(cost, 1), log_ratio(self.weight, per_token / self.tokens[..., None] * cost), used]
        return np.stack([np.broadcast_to(column, routed.shape) for column in columns], axis=-1)

    def devices(self, draft):
        """(N, U, 13)."""
        block = self.block
        columns = [self.work / np.maximum(self.work.sum(-1, keepdims=True), 1e-6)]
        columns.append(self.work / np.maximum(self.work.max(-1, keepdims=True), 1e-6))
        for kind, (used, price, latency, _) in enumerate((self.own, self.first, draft)):
            served = (used @ self.placement).sum(1)
            columns += [served / self.tokens, price * served / latency[:, None]]
            columns += [log_ratio(price, self.own[1])] if kind else []
        columns.append(log_ratio(self.token_ms, self.token_ms.mean(-1, keepdims=True)))
        columns += [block.spectral_efficiency.mean(1) / 10, 1e3 * block.links.compute_s / self.token_ms]
        return np.stack(columns, axis=-1)

    def cost(self, draft):
        """(N, 1, E) part of the latency that a token costs, times the number of tokens."""
        return (self.placement @ (draft[1] / draft[2][:, None] * self.tokens)[..., None])[:, None, :, 0]


def log_ratio(above, below):
    return np.clip(np.log(np.maximum(above, 1e-6) / np.maximum(below, 1e-6)), -5, 5)


@pytest.mark.parametrize("shape", SHAPES)
def test_features_are_those_of_all_pairs(shape):
    *sizes, extra = shape
    observation = random_observation(*sizes)
    seen = Features.of(observation, extra)
    candidates = seen.candidates.numpy()
    dense = Dense(decode_observation({name: value.numpy() for name, value in observation.items()}), candidates)
    np.testing.assert_array_equal(seen.best, dense.best)
    assert candidates.sum(-1).max() == min(sizes[-1] + extra, sizes[2])
    used = np.random.default_rng(1).random(candidates.shape) * candidates
    short = np.maximum(1 - used.sum(-1, keepdims=True), 0)
    redrafted = seen.redrafted(torch.from_numpy(used[candidates]))
    for features, draft in (
        (seen, dense.first),
        (redrafted, dense.price(np.maximum(used, dense.best * short))),
    ):
        np.testing.assert_allclose(features.of_pairs(), dense.pairs(draft)[candidates], atol=1e-5)
        np.testing.assert_allclose(features.of_devices(), dense.devices(draft), atol=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
def test_lists_and_arrays_of_pairs_hold_the_same(shape):
    *sizes, extra = shape
    seen = Features.of(random_observation(*sizes), extra)
    batch, tokens, experts, devices = sizes[:4]
    values = torch.rand(batch, tokens, experts) * seen.candidates
    listed = seen.at(values)
    assert torch.equal(listed, values[seen.candidates])
    assert torch.equal(seen.spread(listed), values)
    torch.testing.assert_close(seen.per_episode(listed), values.sum((1, 2)))
    of_devices = torch.rand(batch, devices, 3)
    of_experts = seen.observation["placement"] @ of_devices
    assert torch.equal(seen.at_device(of_devices), of_experts[:, None].expand(-1, tokens, -1, -1)[seen.candidates])


def test_a_draft_sends_a_token_once_to_a_device_that_holds_two_of_its_experts():
    observation = random_observation(2, 1, 2, 1, 2)
    seen = Features.of(observation)
    load = seen.pairs.load(np.array([0.75, 0.5]))
    np.testing.assert_array_equal(load.tokens, [[1.0], [0.0]])
    np.testing.assert_array_equal(load.experts, [[1.25], [0.0]])
    assert priced(seen.pairs, np.array([1.0, 1.0])).ratio[0] > 0
