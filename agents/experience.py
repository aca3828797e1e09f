"""Experience of a token-wise learner: K rollouts of each window on one channel, with what every choice came to.

The model runs without gradients, as in the environment. A block's reward has a gradient by the probabilities of its
pairs, through the prices of the devices at the bandwidth optimum, so no draw has to tell what a pair costs. What a
choice does to the text shows at the end of the pass, token by token.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from wdmoe_env.moe.finite import check_finite
from wdmoe_env.moe.split import SplitModel
from wdmoe_env.moe.token_scores import divergence
from wdmoe_env.observations import Block
from wdmoe_env.physics.heat import initial_heat
from wdmoe_env.physics.latency import Float, Load, device_load
from wdmoe_env.policies.distribution import ActionDistribution
from wdmoe_env.policies.features import Features, ObservationTensors
from wdmoe_env.policies.inputs import Inputs
from wdmoe_env.policies.network import TokenSharedNetwork
from wdmoe_env.relaxed import PRICES, Draw, RelaxedBlock, observation_tensors, relaxed_block
from wdmoe_env.simulator import Simulator

ROWS_AT_ONCE = 512
"""Tokens whose predictions are compared at once: their logits stay in memory that the process holds."""

BlockReward = Callable[[RelaxedBlock], Tensor]
"""Rewards (N,) of a block, without what the text's loss costs."""


@dataclass(frozen=True, slots=True)
class Choice:
    """One block of N rollouts: what was seen, drawn, and earned.

    Attributes:
        seen: what the network looked at, M pairs.
        drawn: (M,) 0 or 1, which pairs were drawn.
        prob: (M,) probability of using each.
        log_prob: (N * J,) log-probability of each token's draws.
        slope: (M,) gradient of the rollout's block reward by the probability of the pair.
        reward: (N,) block reward, without the text's.
        selection: (N, J, E) bool, what ran.
        shares: (N, U) optimal shares for it.
        latency_ms: (N,) block latency.
        vanilla_latency_ms: (N,) that of the own routing at equal shares.
    """

    seen: Features
    drawn: Tensor
    prob: Tensor
    log_prob: Tensor
    slope: Tensor
    reward: Tensor
    selection: Tensor
    shares: Tensor
    latency_ms: Tensor
    vanilla_latency_ms: Tensor


@dataclass(frozen=True, slots=True)
class Sample:
    """What an update needs of the draws of N rollouts at one block.

    Attributes:
        block: its number.
        inputs: what the network looked at, M pairs.
        drawn: (M,) 0 or 1, which pairs were drawn.
        prob: (M,) probability of using each.
        log_prob: (N * J,) log-probability of each token's draws.
        slope: (M,) gradient of the return by the probability of the pair, without the text's part.
        at: (N * J,) place of each token among the T * L of the texts; -1 at padding.
    """

    block: int
    inputs: Inputs
    drawn: Tensor
    prob: Tensor
    log_prob: Tensor
    slope: Tensor
    at: Tensor

    @classmethod
    def of(cls, block: int, choice: Choice, inputs: Inputs, at: Tensor) -> Self:
        """What is kept of a choice."""
        return cls(block, inputs, choice.drawn, choice.prob, choice.log_prob, choice.slope, at)

    @classmethod
    def joined(cls, parts: Sequence[Self]) -> Self:
        """Samples of one block, one behind the other."""
        if len(parts) == 1:
            return parts[0]
        names = ("drawn", "prob", "log_prob", "slope", "at")
        whole = (torch.cat([getattr(part, name) for part in parts]) for name in names)
        return cls(parts[0].block, Inputs.joined([part.inputs for part in parts]), *whole)

    def of_tokens(self, values: Tensor) -> Tensor:
        """(N * J,) of values (T, L) of the texts; 0 at padding."""
        return values.flatten()[self.at.clamp_min(0)] * (self.at >= 0)


@dataclass(frozen=True, slots=True)
class Experience:
    """T texts of at most L tokens, each read by K rollouts that stand together.

    A text is a window of tokens, or a request.

    Attributes:
        samples: draws of every block; the blocks of one pass stand together, in their order.
        deviations: for each of the I blocks (T, L) mean square of the hidden state less that of the own routing, before
            the block.
        mask: (T, L) True where there is a token.
        divergence: (T, L) of the predictions from those of the own routing, nats; 0 at padding.
        added_nll: (T, L) more negative log-likelihood than under the own routing, nats; 0 at padding.
        measured: what the rollouts came to, by name, means over texts; ``reward`` is without the text's part.
        rewards: I of (T,) rewards of the blocks without the text's part, where each text has its own; else empty.
        choices: I of them, where the shares are learned too; else empty.
    """

    samples: tuple[Sample, ...]
    deviations: tuple[Tensor, ...]
    mask: Tensor
    divergence: Tensor
    added_nll: Tensor
    measured: Mapping[str, float]
    rewards: tuple[Tensor, ...] = ()
    choices: tuple[Choice, ...] = ()


def gather(
    network: TokenSharedNetwork,
    simulator: Simulator,
    generators: Sequence[Callable[[], np.random.Generator]],
    windows: NDArray[np.int64],
    rollouts: int,
    reward: BlockReward,
    noise: torch.Generator,
    prices: str = PRICES[0],
) -> Experience:
    """Roll a network out.

    Args:
        network: draws the selections.
        simulator: the configuration's.
        generators: W makers of the generator of a window's channel; each of its rollouts has the same.
        windows: (W,) indices of windows.
        rollouts: K.
        reward: of a block; differentiable.
        noise: of the draws.
        prices: one of ``wdmoe_env.relaxed.PRICES``.

    Raises:
        FloatingPointError: what the model hands out is not finite.
    """
    repeated = np.repeat(windows, rollouts)
    repeated, trace = simulator.draw([make() for make in generators for _ in range(rollouts)], repeated)
    model, view = simulator.source.model, simulator.view(repeated, trace)
    choices: list[Choice] = []
    apart: list[Tensor] = []
    heat = initial_heat(simulator.config.devices, len(repeated))
    token_ids, mask, targets = simulator.source.tokens(repeated)
    with (
        closing(model.forward(token_ids, mask, _rows, inference=True)) as run,
        closing(model.forward(token_ids[::rollouts], mask[::rollouts], _rows, inference=True)) as own,
    ):
        while run.block is not None and own.block is not None:
            apart.append(deviations(run.block.hidden_states, own.block.hidden_states, mask))
            block = view.block([run.block], heat)
            seen = observation_tensors(block)
            choices.append(choose(network, block, seen, reward, noise, simulator.config.min_share, prices))
            heat = view.later_heat(heat, block, *_took(block, choices[-1]))
            run.resume(choices[-1].selection.flatten(0, 1))
            own.resume(None)
        lost = text_losses(model, run.result, own.result, mask, targets)
    at = torch.arange(mask.numel())
    samples = tuple(Sample.of(n, one, network.inputs_of(one.seen), at) for n, one in enumerate(choices))
    rewards = tuple(choice.reward for choice in choices)
    return Experience(samples, tuple(apart), mask, *lost, _measured(choices), rewards, tuple(choices))


def _measured(choices: Sequence[Choice]) -> dict[str, float]:
    reward, latency, vanilla = (
        torch.stack([getattr(choice, name) for choice in choices]).sum(0)
        for name in ("reward", "latency_ms", "vanilla_latency_ms")
    )
    return {"reward": reward.mean().item(), "latency_ratio": (latency / vanilla).mean().item()}


def _took(block: Block, choice: Choice) -> tuple[Load, Float]:
    """Load of what ran, and the block latency (N,) in s."""
    return device_load(choice.selection.numpy(), block.links), 1e-3 * choice.latency_ms.double().numpy()


def deviations(hidden: Tensor, own: Tensor, mask: Tensor) -> Tensor:
    """(N, J) mean square of the difference of hidden states (N * J, H) from the own routing's (W * J, H)."""
    rollouts = len(hidden) // len(own)
    apart = hidden.float().view(-1, rollouts, mask.shape[1], hidden.shape[-1]) - own.float().view(
        -1, 1, mask.shape[1], own.shape[-1]
    )
    return (apart.square().mean(-1).view(mask.shape) * mask).clone()


def _rows(rows: Tensor) -> Tensor:
    return rows


def choose(
    network: TokenSharedNetwork,
    block: Block,
    observation: ObservationTensors,
    reward: BlockReward,
    noise: torch.Generator,
    min_share: float,
    prices: str = PRICES[0],
) -> Choice:
    """Draw for a block, and work out what the draw earns and what every pair would.

    Args:
        network: draws.
        block: N of them.
        observation: what is seen of it, entries (N, ...).
        reward: of the block; differentiable.
        noise: of the draws.
        min_share: least share of a loaded device.
        prices: one of ``wdmoe_env.relaxed.PRICES``.
    """
    with torch.no_grad():
        distribution = ActionDistribution(network, observation, "selection")
        seen, logits = distribution.seen, distribution.logits
        prob = logits.sigmoid()
        drawn = (torch.rand(logits.shape, generator=noise) < prob).to(logits.dtype)
        log_prob = token_log_probs(seen, logits, drawn)
        used = seen.spread(drawn) > 0.5
    probs = seen.spread(prob).requires_grad_()
    outcome = relaxed_block(block, Draw(used, probs, seen.candidates), min_share, prices)
    earned = reward(outcome)
    (slope,) = torch.autograd.grad(earned.sum(), probs)
    return Choice(
        seen=seen,
        drawn=drawn,
        prob=prob,
        log_prob=log_prob,
        slope=seen.at(slope),
        reward=earned.detach(),
        selection=used | distribution.stranded(used),
        shares=outcome.shares,
        latency_ms=outcome.latency_ms.detach(),
        vanilla_latency_ms=outcome.vanilla_latency_ms,
    )


def token_log_probs(seen: Features | Inputs, logits: Tensor, drawn: Tensor) -> Tensor:
    """Log-probability (N * J,) of each token's draws: the sum over its pairs; 0 where it has none.

    Args:
        seen: of M pairs.
        logits: (M,) log-odds of using each.
        drawn: (M,) 0 or 1.
    """
    of_pair = -functional.binary_cross_entropy_with_logits(logits, drawn, reduction="none")
    return logits.new_zeros(seen.num_tokens).index_add(0, seen.token, of_pair)


def text_losses(model: SplitModel, rows: Tensor, own: Tensor, mask: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Divergence and added NLL of each token, both (N, J).

    Args:
        model: that was run.
        rows: (N, J, H) last hidden states, or logits where the model makes them otherwise.
        own: (W, J, H) those of the own routing on each window.
        mask: (N, J) True where there is a token.
        targets: (N, J) the tokens that follow.
    """
    with torch.inference_mode():
        rollouts = len(rows) // len(own)
        at_once = max(1, ROWS_AT_ONCE // (rollouts * rows.shape[1]))  # windows
        parts = [
            _compared(_log_probs(model, here), _log_probs(model, there).repeat_interleave(rollouts, 0), target)
            for here, there, target in zip(
                torch.split(rows, rollouts * at_once),
                torch.split(own, at_once),
                torch.split(targets, rollouts * at_once),
                strict=True,
            )
        ]
    losses: Any = torch.cat(parts, dim=1).clone().masked_fill(~mask.bool(), 0.0)
    check_finite(model.model, "scores of the text", losses.numpy(force=True))
    return losses[0], losses[1]


def _log_probs(model: SplitModel, rows: Tensor) -> Tensor:
    logits: Tensor = rows if model.output_layer is None else model.output_layer(rows)
    return logits.float().log_softmax(-1)


def _compared(here: Tensor, own: Tensor, targets: Tensor) -> Tensor:
    """(2, n, J) divergence of predictions (n, J, V) from the own routing's, and added NLL of the targets (n, J)."""
    added_nll = (own - here).gather(-1, targets[..., None])[..., 0]
    return torch.stack([divergence(here, own), added_nll])
