"""Relaxed episodes: the gradient of latency and quality by the probabilities with which an actor draws its selection.

An episode runs the model once, with gradients, under a selection that the actor drew. Forward, latency and quality are
exactly the environment's with optimal shares. Backward, a drawn pair passes the gradient on to its probability (the
straight-through estimator of Bengio et al., arXiv 1308.3432):

- A block's latency has the price of each device at the bandwidth optimum as its gradient; or, where that is asked for,
  the difference that each pair makes. Draws are independent, so the mean of these differences is exactly the gradient
  of the expected latency by the probabilities.
- The text's loss is differentiated through the experts' combination weights. It is near its minimum at the model's own
  routing, where its slope says nothing, because a missing pair costs in proportion to its square. So the gradient is
  divided by twice the probability of what was drawn. Its expectation is then the mean of the slopes with and without
  the pair. This is the trapezoid rule, exact for a quadratic loss (as in ReinMax, Liu et al., arXiv 2304.08612).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from wdmoe_env.moe.finite import check_finite
from wdmoe_env.moe.hook import BlockInput
from wdmoe_env.moe.routing import RelaxedSelection
from wdmoe_env.moe.token_scores import divergence
from wdmoe_env.observations import Block, encode_observation
from wdmoe_env.optimize.bandwidth import BandwidthSolution, min_max_bandwidth
from wdmoe_env.optimize.pricing import device_prices, pair_differences_s
from wdmoe_env.physics.heat import initial_heat
from wdmoe_env.physics.latency import BlockLinks, Load, block_latency_s, device_latency_s, device_load, equal_shares
from wdmoe_env.simulator import Simulator

# Of the weight that a rare draw may get: bounds the variance, at the price of a bias where a pair is nearly certain.
LARGEST_WEIGHT = 100.0


PRICES = ("slope", "difference")
"""What a pair is said to cost: the slope of the block latency at the bandwidth optimum, or the difference it makes."""


@dataclass(frozen=True, slots=True)
class Draw:
    """A selection that an actor drew.

    Attributes:
        used: (N, J, E) bool, pairs drawn; a token without any is given its most probable expert.
        probs: (N, J, E) the probability of each, differentiable; 0 for pairs that are no candidates.
        candidates: (N, J, E) bool, pairs that it drew from.
    """

    used: Tensor
    probs: Tensor
    candidates: Tensor

    def straight_through(self) -> Tensor:
        """(N, J, E) 0 or 1, with the gradient of the probabilities."""
        return self.used + self.probs - self.probs.detach()

    def trapezoid(self) -> Tensor:
        """(N, J, E) 0 or 1, with the gradient of the probabilities over twice the probability of what was drawn."""
        probs = self.probs.detach()
        drawn = torch.where(self.used, probs, 1 - probs)
        weight = (0.5 / drawn.clamp_min(1e-6)).clamp_max(LARGEST_WEIGHT)
        return self.used + weight * (self.probs - probs)


Actor = Callable[[dict[str, Tensor]], Draw]
"""From an observation, entries (N, ...)."""


@dataclass(frozen=True, slots=True)
class RelaxedBlock:
    """One block of N episodes, with gradients.

    Attributes:
        latency_ms: (N,) at optimal shares.
        vanilla_latency_ms: (N,) of the model's own routing at equal shares; a constant.
        gate_weight_served: (N,) W.
        shares: (N, U) the optimal shares; constants.
        load: what the draw asks of each device.
    """

    latency_ms: Tensor
    vanilla_latency_ms: Tensor
    gate_weight_served: Tensor
    shares: Tensor
    load: Load


@dataclass(frozen=True, slots=True)
class RelaxedEpisodes:
    """N episodes, with gradients.

    Attributes:
        blocks: one entry per MoE block.
        added_nll: (N,) nats per token more than the model's own routing on the same windows.
        divergence: (N,) mean over tokens of the Kullback-Leibler divergence, in nats, of the predictions under the
            actor from those of the own routing: what ``added_nll`` would be in expectation were the model's
            predictions the text's, without the noise of the one text that came.
    """

    blocks: tuple[RelaxedBlock, ...]
    added_nll: Tensor
    divergence: Tensor


def relaxed_episodes(
    simulator: Simulator,
    generators: Sequence[np.random.Generator],
    actor: Actor,
    windows: NDArray[np.int64] | None = None,
) -> RelaxedEpisodes:
    """Run N episodes under an actor.

    Args:
        simulator: the configuration's simulator.
        generators: N of them; the episodes are those that ``simulator.start`` would draw.
        actor: decides in every block.
        windows: (N,) indices of windows, in place of drawn ones.

    Raises:
        ValueError: an index outside the split's windows.
        FloatingPointError: what the model hands out is not finite.
    """
    windows, trace = simulator.draw(generators, windows)
    source, view = simulator.source, simulator.view(windows, trace)
    blocks: list[RelaxedBlock] = []
    heat = initial_heat(simulator.config.devices, len(windows))

    def decide(at: BlockInput) -> RelaxedSelection:
        nonlocal heat
        block = view.block([at], heat)
        draw = actor(observation_tensors(block))
        blocks.append(relaxed_block(block, draw, simulator.config.min_share))
        heat = view.later_heat(heat, block, blocks[-1].load, 1e-3 * blocks[-1].latency_ms.detach().numpy())
        present = None if block.available is None else torch.from_numpy(block.usable).flatten(0, 1)
        return RelaxedSelection(draw.trapezoid().flatten(0, 1), draw.candidates.flatten(0, 1), present)

    token_ids, attention_mask, targets = source.tokens(windows)
    mask = torch.from_numpy(source.windows.mask[windows])
    service = simulator.service(len(windows))
    own = source.model.own_logits(token_ids, attention_mask).float().log_softmax(-1)
    log_probs = source.model.logits_under(decide, token_ids, attention_mask, service).float().log_softmax(-1)

    def mean(token_values: Tensor) -> Tensor:
        return (token_values * mask).sum(-1) / mask.sum(-1)

    gained = [logs.gather(-1, targets[..., None])[..., 0] for logs in (own, log_probs)]
    added_nll = mean(gained[0] - gained[1])
    check_finite(source.model.model, "scores of the text", added_nll.numpy(force=True))
    return RelaxedEpisodes(tuple(blocks), added_nll, mean(divergence(log_probs, own)))


def observation_tensors(block: Block) -> dict[str, Tensor]:
    """The observation of N episodes at one block, entries (N, ...), as an actor gets it."""
    return {name: torch.from_numpy(value) for name, value in encode_observation(block).items()}


def relaxed_block(block: Block, draw: Draw, min_share: float, prices: str = "slope") -> RelaxedBlock:
    """Latency and gate weight of a draw, with the gradients described above.

    Args:
        block: N episodes at one block.
        draw: the actor's.
        min_share: least share of a loaded device.
        prices: one of ``PRICES``.
    """
    links, true = block.links, block.conditions
    drawn = draw.straight_through()
    # A token without any expert is given its best one: the multilinear extension of "none".
    selection = drawn + _best(block) * (1 - drawn).prod(-1, keepdim=True)
    chosen = selection.detach().numpy() > 0.5
    load = device_load(chosen, links)
    optimum = min_max_bandwidth(links, load, min_share)
    if prices == "difference":
        wanted = (draw.candidates | draw.used).numpy() | chosen
        made_s = pair_differences_s(links, load, optimum.latency_s, chosen, wanted, min_share)
        priced = 1e3 * (selection * _tensor(made_s)).sum((1, 2))
    else:
        priced = _priced_by_slope(links, load, optimum, selection, min_share)
    own = device_load(block.routed, links)
    vanilla_s = block_latency_s(device_latency_s(true.links, own, equal_shares(*links.compute_s.shape)))
    # Shares are optimal for the channel as it is known; latency follows the true channel.
    known = true.links is links
    latency_s = optimum.latency_s if known else block_latency_s(device_latency_s(true.links, load, optimum.shares))
    return RelaxedBlock(
        latency_ms=_tensor(1e3 * latency_s) + priced - priced.detach(),
        vanilla_latency_ms=_tensor(1e3 * vanilla_s),
        gate_weight_served=(_tensor(block.weights) * selection).sum((1, 2)),
        shares=_tensor(optimum.shares),
        load=load,
    )


def _priced_by_slope(
    links: BlockLinks, load: Load, optimum: BandwidthSolution, selection: Tensor, min_share: float
) -> Tensor:
    """(N,) ms whose gradient by the selection (N, J, E) is what each pair costs at the margin."""
    chosen = selection.detach().numpy() > 0.5
    prices = device_prices(links, load, optimum, np.ones(len(chosen)), min_share)
    placement = _tensor(np.broadcast_to(links.placement, (len(chosen), *links.placement.shape[-2:])))
    # Whether a token is sent to a device: the multilinear extension of "any of its experts".
    sent = 1 - (1 - selection[..., None] * placement[:, None]).prod(2)
    token, expert = _tensor(prices.token)[:, None], _tensor(prices.expert)[:, None]
    if links.weights_s is None:
        return (sent * token + selection @ placement * expert).sum((1, 2))
    # An expert's time is a fixed charge: of each pair the seconds that it makes.
    of_pairs = _tensor(prices.of_pairs(links, chosen))
    return (sent * token).sum((1, 2)) + (selection * of_pairs).sum((1, 2))


def _best(block: Block) -> Tensor:
    """Marks (N, J, E) each token's most probable expert, none at padding."""
    usable = block.usable
    best = torch.from_numpy(np.where(usable, block.gate_probs, -1.0).argmax(-1))
    return functional.one_hot(best, usable.shape[-1]).bool() & torch.from_numpy(usable)


def _tensor(values: Any) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32))
