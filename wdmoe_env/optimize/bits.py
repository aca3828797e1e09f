"""The marginal-price rule with bits: which experts serve each token, and with how many bits a message crosses the link.

A message with fewer bits counts as less of a token on the air. Its rounding costs the text about in proportion to the
square of its gate weight, as measured on training windows. That is charged in gate weight, like a dropped expert, so
that one price per millisecond rules both.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from wdmoe_env.optimize.bandwidth import BandwidthSolution, solve_min_max
from wdmoe_env.optimize.moves import repeat_rows
from wdmoe_env.optimize.pricing import DevicePrices, at_device_of_expert, best_response, device_prices, one_hot
from wdmoe_env.optimize.problem import BlockProblem, Index
from wdmoe_env.optimize.selection import marginal_price_search
from wdmoe_env.physics.latency import Bool, Float, Load, device_load, experts_per_device, sum_over_tokens

LEAST_GAIN = 1e-12
MOST_TRIES = 200  # proposals of one kind, and rounds of both kinds
MOST_ROUNDS = 20

Levels = NDArray[np.int64]
"""Number of the choice of each message: (N, 1, U) where each device decides, (N, J, 1) where each token does."""


@dataclass(frozen=True, slots=True)
class BitChoices:
    """What each of the K choices of bits saves and costs.

    Attributes:
        ratio: (K,) bits of a message over those of 16 bits.
        damage: (K,) gate weight that rounding a message costs, over its squared gate weight.
        of_tokens: whether each token decides, and not each device.
    """

    ratio: Float
    damage: Float
    of_tokens: bool = False


@dataclass(frozen=True, slots=True)
class BitDecision:
    """What was decided for N blocks.

    Attributes:
        selection: (N, J, E) experts of each token.
        levels: number of the choice of bits of each message, (N, 1, U) or (N, J, 1).
        bandwidth: shares and block latency.
        value: (N,) W less the damage of rounding and less price x t.
    """

    selection: Bool
    levels: Levels
    bandwidth: BandwidthSolution
    value: Float

    def rows(self, index: Index | Bool) -> BitDecision:
        """The decision of some blocks, by indices (n,) or marks (N,)."""
        bandwidth = self.bandwidth.rows(index)
        return BitDecision(self.selection[index], self.levels[index], bandwidth, self.value[index])

    def replaced(self, index: Index, other: BitDecision) -> BitDecision:
        """This decision with the blocks ``index`` (n,) taken from ``other``, a decision of n blocks."""
        bandwidth = self.bandwidth
        copy = BitDecision(
            self.selection.copy(),
            self.levels.copy(),
            BandwidthSolution(bandwidth.shares.copy(), bandwidth.latency_s.copy()),
            self.value.copy(),
        )
        copy.selection[index], copy.levels[index], copy.value[index] = other.selection, other.levels, other.value
        copy.bandwidth.shares[index] = other.bandwidth.shares
        copy.bandwidth.latency_s[index] = other.bandwidth.latency_s
        return copy


def marginal_price_with_bits(problem: BlockProblem, choices: BitChoices, keep_best: bool = True) -> BitDecision:
    """Raise W - damage - price x t over selection and bits, with optimal shares: local search along marginal prices.

    It begins with the model's own routing at each choice of bits for all messages, and with what the rule without
    bits selects at the first choice, and keeps the best end. Tokens and bits respond in turn to the marginal prices of
    the bandwidth optimum; a proposal that does not raise the value is undone and tried with half of its changes. So the
    value is never below that of the own routing at any one choice, nor below that of the rule without bits. Only the
    latter tries to empty experts, as (5r) asks for.

    Args:
        problem: the blocks, with their price.
        choices: what the choices of bits save and cost.
        keep_best: whether a token always keeps its routed expert of most weight.

    Raises:
        TypeError: a mask is not boolean.
        ValueError: a shape or a value is wrong.
    """
    problem = problem.checked()
    best = one_hot(np.where(problem.routed, problem.weights, -1.0).argmax(axis=-1), problem.weights.shape[-1])
    search = _Search(problem, choices, problem.routed.any(axis=-1, keepdims=True) & best & keep_best)
    found = search.run(marginal_price_search(problem, problem.routed, keep_best).selection, 0)
    for level in range(len(choices.ratio)):
        end = search.run(problem.routed, level)
        better = np.flatnonzero(end.value > found.value)
        found = found.replaced(better, end.rows(better))
    return found


@dataclass(frozen=True, slots=True)
class _Search:
    """The local search.

    Attributes:
        problem: the blocks, checked.
        choices: of bits.
        kept: (N, J, E) pairs that may not be dropped.
    """

    problem: BlockProblem
    choices: BitChoices
    kept: Bool

    def run(self, selection: Bool, level: int) -> BitDecision:
        """All rounds, from a selection (N, J, E) and one choice of bits for all."""
        batch, tokens, _ = selection.shape
        shape = (batch, tokens, 1) if self.choices.of_tokens else (batch, 1, self.problem.links.num_devices)
        decision = self.decided(selection, np.full(shape, level))
        for _ in range(MOST_ROUNDS):
            before = decision.value
            decision = self.climb(self.climb(decision, _Search.other_experts), _Search.other_bits)
            if not (decision.value > before).any():
                break
        return decision

    def decided(self, selection: Bool, levels: Levels) -> BitDecision:
        """The decision that a selection and bits become with the shares of least block latency."""
        problem = self.problem
        bandwidth = solve_min_max(problem.links, self.load(selection, levels), problem.min_share)
        worth = np.where(selection, self.worth(levels), 0.0).sum(axis=(1, 2))
        return BitDecision(selection, levels, bandwidth, worth - 1e3 * problem.price * bandwidth.latency_s)

    def load(self, selection: Bool, levels: Levels) -> Load:
        """What a selection asks of each device, a token counted by the size of its message."""
        links = self.problem.links
        sent = np.minimum(experts_per_device(selection, links.placement), 1.0)
        return replace(device_load(selection, links), tokens=sum_over_tokens(sent * self.choices.ratio[levels]))

    def worth(self, levels: Levels) -> Float:
        """Gate weight (N, J, E) of each pair less the damage of rounding its message."""
        weights, placement = self.problem.weights, self.problem.links.placement
        return weights - self.damage_at_experts(levels, placement) * weights**2

    def damage_at_experts(self, levels: Levels, placement: Float) -> Float:
        """Damage over the squared weight, (N, J, E) or with 1 in place of J, at the device of each expert."""
        damage = self.choices.damage[levels]
        return damage if self.choices.of_tokens else at_device_of_expert(damage, placement)

    def prices(self, decision: BitDecision) -> DevicePrices:
        """Gate weight that a whole token and a pair cost at each device."""
        problem = self.problem
        load = self.load(decision.selection, decision.levels)
        return device_prices(problem.links, load, decision.bandwidth, problem.price, problem.min_share)

    def other_experts(self, decision: BitDecision, part: Float) -> tuple[Bool, Levels, Float]:
        """The best experts of the tokens that gain most, at the present bits; every token is a problem of its own."""
        problem, prices = self.problem, self.prices(decision)
        batch, tokens, experts = decision.selection.shape
        devices = problem.links.num_devices
        token = np.broadcast_to(prices.token[:, None] * self.choices.ratio[decision.levels], (batch, tokens, devices))
        net = self.worth(decision.levels) - prices.of_pairs(problem.links, decision.selection)
        shape = (batch, tokens, experts)
        alone = np.broadcast_to(net, shape).reshape(-1, 1, experts)
        usable, kept, present = (
            np.asarray(one, dtype=np.bool_).reshape(-1, 1, experts)
            for one in (problem.usable, self.kept, decision.selection)
        )
        free = np.zeros((batch * tokens, devices))  # computing is in the net worth
        links = replace(repeat_rows(problem.links, tokens), weights_s=None)
        prices = DevicePrices(token.reshape(-1, devices), free, free)
        target, gain = best_response(prices, alone, usable, kept, present, links)
        gain = gain.reshape(batch, tokens)
        changing = np.ceil(part * (gain > LEAST_GAIN).sum(axis=-1))
        chosen = _greatest(gain, changing)[..., None]
        selection = np.where(chosen, target.reshape(decision.selection.shape), decision.selection)
        return selection, decision.levels, changing

    def other_bits(self, decision: BitDecision, part: Float) -> tuple[Bool, Levels, Float]:
        """The best bits of the devices or tokens that gain most, for the present experts."""
        placement, over = self.problem.links.placement, 2 if self.choices.of_tokens else 1
        sent = np.minimum(experts_per_device(decision.selection, placement), 1.0)
        squares = (decision.selection * self.problem.weights**2) @ placement
        air = (sent * self.prices(decision).token[:, None]).sum(axis=over, keepdims=True)
        squares = squares.sum(axis=over, keepdims=True)
        cost = air[..., None] * self.choices.ratio + squares[..., None] * self.choices.damage
        present = np.take_along_axis(cost, decision.levels[..., None], axis=-1)[..., 0]
        gain = (present - cost.min(axis=-1)).reshape(len(cost), -1)
        changing = np.ceil(part * (gain > LEAST_GAIN).sum(axis=-1))
        chosen = _greatest(gain, changing).reshape(decision.levels.shape)
        return decision.selection, np.where(chosen, cost.argmin(axis=-1), decision.levels), changing

    def rows(self, index: Index) -> _Search:
        """The search in some rows."""
        return _Search(self.problem.rows(index), self.choices, self.kept[index])

    def climb(self, decision: BitDecision, propose: _Propose) -> BitDecision:
        """Take proposals while they raise the value, each row at its own pace.

        Args:
            decision: where to begin.
            propose: from the search in some rows, their decision, and the part (n,) of the willing that may change,
                to selection, levels, and how many (n,) change.
        """
        part = np.ones(len(decision.value))
        for _ in range(MOST_TRIES):
            rows = np.flatnonzero(part)
            if not rows.size:
                break
            active, present = self.rows(rows), decision.rows(rows)
            selection, levels, changing = propose(active, present, part[rows])
            trial = active.decided(selection, levels)
            better = trial.value > present.value + LEAST_GAIN * np.abs(present.value)
            decision = decision.replaced(rows[better], trial.rows(better))
            part[rows] = np.where(
                better, np.minimum(2.0 * part[rows], 1.0), np.where(changing > 1, part[rows] / 2.0, 0.0)
            )
        return decision


_Propose = Callable[[_Search, BitDecision, Float], tuple[Bool, Levels, Float]]


def _greatest(gain: Float, count: Float) -> Bool:
    """Marks the ``count`` (N,) greatest entries of each row of ``gain`` (N, X)."""
    rank = np.argsort(np.argsort(-gain, axis=-1, kind="stable"), axis=-1, kind="stable")
    return rank < count[:, None]
