"""The token-expert pairs that the actor decides on, as one list: nothing is worked out for any other pair."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from wdmoe_env.observations import Block
from wdmoe_env.optimize.pricing import at_device_of_expert
from wdmoe_env.physics.latency import Bool, Float, Load, reading_s

Index = NDArray[np.intp]

MOST_USED = 1.0 - 1e-12


@dataclass(frozen=True, slots=True)
class Pairs:
    """M pairs of N blocks, in the order of ``nonzero``; every index is one into a flattened array.

    Attributes:
        block: the N blocks.
        index: (M,) into (N, J, E).
        episode: (M,) into (N,).
        token: (M,) into (N, J).
        expert: (M,) into (N, E).
        device: (M,) into (N, U), of the device that holds the expert.
        delivery: (M,) into D deliveries of a token to a device, each of which serves all its experts there.
        receiver: (D,) into (N, U), of the device of each delivery.
        weight: (M,) gate weight.
    """

    block: Block
    index: Index
    episode: Index
    token: Index
    expert: Index
    device: Index
    delivery: Index
    receiver: Index
    weight: Float

    @classmethod
    def of(cls, block: Block, candidates: Bool) -> Self:
        """List the marked pairs (N, J, E), none at padding."""
        batch, tokens, experts = candidates.shape
        devices = np.arange(batch * block.links.num_devices).reshape(batch, -1)
        index = np.flatnonzero(candidates)
        token, expert = np.divmod(index, experts)
        episode = token // tokens
        device = at_device_of_expert(devices, block.links.placement)[episode, expert]
        _, first, delivery = np.unique(token * devices.size + device, return_index=True, return_inverse=True)
        of_block = episode * experts + expert, device, delivery, device[first], block.weights.ravel()[index]
        return cls(block, index, episode, token, *of_block)

    def at(self, values: Any) -> NDArray[Any]:
        """(M,) of values that broadcast to (N, J, E)."""
        return np.broadcast_to(values, self.block.gate_probs.shape).ravel()[self.index]

    def at_device(self, values: Float) -> Float:
        """(M,) of values (N, U)."""
        return values.ravel()[self.device]

    def per_episode(self, values: Float) -> Float:
        """(N,) sums of values (M,)."""
        return _sums(self.episode, values, self.block.index.shape)

    def of_token(self, values: Float) -> Float:
        """(M,) sums of values (M,) over the pairs of the same token."""
        return _sums(self.token, values, (self.block.token_mask.size,))[self.token]

    def of_delivery(self, values: Float) -> Float:
        """(M,) sums of values (M,) over the pairs of the same token at the same device."""
        return _sums(self.delivery, values, self.receiver.shape)[self.delivery]

    def load(self, used: Float) -> Load:
        """Load of a draft that uses so much of each pair, (M,) from 0 to 1; no token is sent twice to a device.

        So much as an expert is likely to be used at all, of so much of its weights is the reading counted.
        """
        links = self.block.links
        shape = links.compute_s.shape
        sent = np.minimum(_sums(self.delivery, used, self.receiver.shape), 1.0)
        tokens, experts = _sums(self.receiver, sent, shape), _sums(self.device, used, shape)
        if links.weights_s is None:
            return Load(tokens, experts)
        return Load(tokens, experts, reading_s(links, self._of_experts(used), self._any_used(used)))

    def seconds(self, used: Float) -> Float:
        """What a bit more of each pair (M,) adds to its expert's time (5r) in a draft (M,), in seconds.

        Of an expert bound by reading that is its weights' time, times the chance that no other pair uses the expert:
        the only pair of an expert carries its weights, and of several none does.

        Raises:
            ValueError: the links have no ``weights_s``.
        """
        links, unused = self.block.links, _log_unused(used)
        if links.weights_s is None:
            raise ValueError("expected links with weights_s, the time of reading an expert's weights, got None")
        alone = np.exp(self._of_experts(unused).ravel()[self.expert] - unused)
        compute_s, weights_s = self.at_device(links.compute_s), self.at_device(links.weights_s)
        computing = self._of_experts(used).ravel()[self.expert] * compute_s
        reading = self._any_used(used).ravel()[self.expert] * weights_s
        return np.where(computing < reading, alone * weights_s, np.maximum(compute_s, alone * weights_s))

    def _of_experts(self, values: Float) -> Float:
        """(N, E) sums of values (M,)."""
        batch, _, experts = self.block.gate_probs.shape
        return _sums(self.expert, values, (batch, experts))

    def _any_used(self, used: Float) -> Float:
        """(N, E) chance that an expert has any pair of a draft (M,)."""
        return -np.expm1(self._of_experts(_log_unused(used)))


def _log_unused(used: Float) -> Float:
    """Logarithms (M,) of the chance that a pair is not used, bounded where it is certain to be."""
    return np.log1p(-np.minimum(used, MOST_USED))


def _sums(index: Index, values: Float, shape: tuple[int, ...]) -> Float:
    # Without any value, bincount gives integers.
    return np.bincount(index, values, math.prod(shape)).reshape(shape).astype(np.float64, copy=False)
