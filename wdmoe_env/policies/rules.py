"""Rules: the model's own routing, simple baselines, and the analytical optimizer of the WDMoE paper.

Each takes a block of N episodes and gives a selection (N, J, E) and shares (N, U). All but ``vanilla``,
``wdmoe_selection`` and ``HistoryPolicy`` divide the bandwidth optimally for their selection.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from wdmoe_env.actions import ActionCodec
from wdmoe_env.observations import Block, decode_observation
from wdmoe_env.optimize.bandwidth import min_max_bandwidth
from wdmoe_env.optimize.joint import fractional_program, joint_optimize
from wdmoe_env.optimize.problem import BlockProblem, Decision
from wdmoe_env.optimize.selection import expert_token_latency_s, marginal_price_selection
from wdmoe_env.physics.latency import Bool, Float, device_load, equal_shares
from wdmoe_env.policies.policy import ObservationMapping, State, batched, first

# Relative gain of WLR below which the paper's rule stops raising its threshold; chosen on training windows
# by `python -m train.rules` as the least, and so the fastest, that loses at most 0.3 points of next-token accuracy.
STOPPING_GAIN = 0.025

# Price of bare `marginal-price`, gate weight per millisecond; chosen there as the
# least at which it is as fast as bare `wdmoe`.
DEFAULT_PRICE_PER_MS = 0.7

# Weight of the newest block in the running mean of the channel that `wdmoe-history` predicts from.
HISTORY_WEIGHT = 0.5


def vanilla(block: Block) -> tuple[Bool, Float]:
    """The model's own routing with equal shares: the reference of every table."""
    return block.routed, equal_shares(*block.links.compute_s.shape)


def vanilla_optimal(block: Block) -> tuple[Bool, Float]:
    """The model's own routing with optimal shares; also the paper's ablation without selection."""
    return with_optimal_shares(block, block.routed)


def top1(block: Block) -> tuple[Bool, Float]:
    """The most probable expert of each token alone."""
    return with_optimal_shares(block, best_of(np.where(block.routed, block.gate_probs, -np.inf), block))


def greedy(block: Block) -> tuple[Bool, Float]:
    """Of each token's routed experts the one whose device is fastest for one token at equal shares."""
    latency = expert_token_latency_s(block.links, equal_shares(*block.links.compute_s.shape), block.routed)
    return with_optimal_shares(block, best_of(np.where(block.routed, -latency, -np.inf), block))


def wdmoe(block: Block, threshold: float | None = None, stopping_gain: float = STOPPING_GAIN) -> tuple[Bool, Float]:
    """The paper's joint optimizer; its threshold adapts unless given."""
    return _decided(joint_optimize(problem_of(block), threshold, stopping_gain))


def wdmoe_selection(block: Block, threshold: float | None = None) -> tuple[Bool, Float]:
    """The paper's ablation without bandwidth allocation: its selection at equal shares."""
    return _decided(joint_optimize(problem_of(block), threshold, STOPPING_GAIN, solve_bandwidth=False))


def marginal_price(block: Block, price_per_ms: Float | float = DEFAULT_PRICE_PER_MS) -> tuple[Bool, Float]:
    """Drop what saves more block latency than its gate weight is worth at a price, (N,) or one for all."""
    return _decided(marginal_price_selection(problem_of(block, price_per_ms)))


def fractional(block: Block) -> tuple[Bool, Float]:
    """Maximise the weight-to-latency ratio: Dinkelbach's iteration around the marginal price."""
    return _decided(fractional_program(problem_of(block)))


class RandomRule:
    """As many random experts per token as the model routes, with optimal shares.

    Args:
        seed: of the generator.
    """

    def __init__(self, seed: int) -> None:
        self._generator = np.random.default_rng(seed)

    def __call__(self, block: Block) -> tuple[Bool, Float]:
        """Decide for a block."""
        drawn = np.where(block.usable, self._generator.random(block.routed.shape), np.inf)
        order = drawn.argsort(axis=-1).argsort(axis=-1)
        return with_optimal_shares(block, order < block.routed.sum(axis=-1, keepdims=True))


class HistoryPolicy:
    """The paper's testbed variant as reconstructed: its selection at equal shares, latencies predicted from the past.

    The state is a running mean of each link's spectral efficiency over the episode's past blocks; in the
    first block, without a past, the model's own routing is used.

    Args:
        codec: translates decisions into actions.
        threshold: of the paper's rule; ``None`` adapts it.
    """

    def __init__(self, codec: ActionCodec, threshold: float | None = None) -> None:
        self.codec = codec
        self.threshold = threshold

    def predict(
        self,
        observation: ObservationMapping,
        state: State = None,
        episode_start: Any = None,
        deterministic: bool = True,
    ) -> tuple[Any, State]:
        """Actions of observations; see ``Policy``.

        Raises:
            ValueError: see ``batched``.
        """
        batch, single = batched(observation, self.codec)
        seen = np.asarray(batch["spectral_efficiency"], dtype=np.float64)
        past = np.full_like(seen, np.nan) if state is None else np.array(state[0])
        if episode_start is not None:
            past[np.broadcast_to(np.asarray(episode_start, dtype=bool), len(past))] = np.nan
        known = ~np.isnan(past).any(axis=(1, 2))
        predicted = decode_observation(predicted_observation(batch, past, known))
        selection, shares = wdmoe_selection(predicted, self.threshold)
        selection = np.where(known[:, None, None], selection, predicted.routed)
        mean = np.where(known[:, None, None], past + HISTORY_WEIGHT * (seen - past), seen)
        actions = self.codec.encode(selection, shares)
        return (first(actions) if single else actions), (mean,)


def predicted_observation(batch: ObservationMapping, past: Float, known: Bool) -> dict[str, Any]:
    """The observation as the past predicts it: past spectral efficiencies and the latencies that follow.

    Args:
        batch: the present observation.
        past: (N, 2, U) bit/s/Hz.
        known: (N,) whether there is a past; elsewhere the present stands, and is not used.
    """
    seen = np.asarray(batch["spectral_efficiency"], dtype=np.float64)
    efficiency = np.where(known[:, None, None], past, seen)
    ratio = (1.0 / efficiency).sum(axis=1) / (1.0 / seen).sum(axis=1)
    return {**batch, "spectral_efficiency": efficiency, "unit_latency": batch["unit_latency"] * ratio}


def with_optimal_shares(block: Block, selection: Bool) -> tuple[Bool, Float]:
    """A selection (N, J, E) with the shares that minimise its block latency."""
    return selection, min_max_bandwidth(block.links, device_load(selection, block.links)).shares


def problem_of(block: Block, price_per_ms: Float | float = 0.0) -> BlockProblem:
    """The block as an optimizer takes it, with the price of a millisecond in gate weight, (N,) or one for all."""
    return BlockProblem(block.links, block.weights, block.routed, price_per_ms=price_per_ms)


def _decided(decision: Decision) -> tuple[Bool, Float]:
    return decision.selection, decision.shares


def best_of(score: Float, block: Block) -> Bool:
    """The expert of highest score (N, J, E) of each token, none at padding."""
    chosen = np.zeros(score.shape, dtype=bool)
    np.put_along_axis(chosen, score.argmax(axis=-1)[..., None], True, axis=-1)
    return chosen & block.usable
