"""What a policy may see of N paused episodes: the radio's figures and the model's gates, as one ``Block``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from wdmoe_env.moe.finite import check_finite
from wdmoe_env.moe.hook import BlockInput
from wdmoe_env.moe.split import SplitModel
from wdmoe_env.observations import Block, Sizes
from wdmoe_env.physics import latency
from wdmoe_env.physics.channel import ChannelTrace
from wdmoe_env.physics.latency import BlockLinks, Bool, Float

Scalar = TypeVar("Scalar", bound=np.generic)


@dataclass(frozen=True, slots=True)
class Radio:
    """What the channel of N episodes comes to.

    Attributes:
        links: of each of the I blocks.
        spectral_efficiency: (I, N, 2, U) bit/s/Hz at equal shares.
        unit_latency_s: (I, N, U) radio time of one token, both ways, at equal shares.
    """

    links: list[BlockLinks]
    spectral_efficiency: Float
    unit_latency_s: Float

    @classmethod
    def of(cls, trace: ChannelTrace, payload_s: float, compute_s: Float, placement: Float) -> Radio:
        """Links of N episodes in every block, and what equal shares give on them.

        Args:
            trace: the channels.
            payload_s: L / B of equation (5).
            compute_s: (U,) seconds of one expert on one token.
            placement: (I, E, U).
        """
        batch, devices = trace.full_band_snr.shape[1], len(compute_s)
        payload, compute = np.full(batch, payload_s), np.broadcast_to(compute_s, (batch, devices))
        equal = latency.equal_shares(batch, devices)
        efficiency = latency.spectral_efficiency(trace.full_band_snr, equal)
        return cls(
            [BlockLinks(snr, payload, compute, at) for snr, at in zip(trace.full_band_snr, placement, strict=True)],
            efficiency,
            latency.both_ways_s(efficiency, payload, equal),
        )


@dataclass(frozen=True, slots=True)
class View:
    """How paused passes become a block.

    Attributes:
        model: that the passes are of.
        sizes: of the environment.
        token_mask: (N, J) True where there is a token.
        padded: whether the mask is False anywhere.
        radio: of the N episodes.
        hidden_states: whether the block holds them.
    """

    model: SplitModel
    sizes: Sizes
    token_mask: Bool
    padded: bool
    radio: Radio
    hidden_states: bool

    def block(self, passes: Sequence[BlockInput]) -> Block:
        """The paused block; after the end, where there is none, all probabilities are 0.

        Args:
            passes: where each pass is paused, in the order of the episodes.

        Raises:
            FloatingPointError: gate probabilities or hidden states of a token are not finite.
        """
        sizes, batch = self.sizes, len(self.token_mask)
        gate_probs, routed = self._gates(passes)
        hidden = self._hidden(passes) if self.hidden_states else None
        if self.padded:
            padding = ~self.token_mask
            gate_probs[padding], routed[padding] = 0.0, False
            if hidden is not None:
                hidden[padding] = 0.0
        index = passes[0].index if passes else sizes.num_blocks
        self._check(index, gate_probs, hidden)
        at = min(index, sizes.num_blocks - 1)
        return Block(
            gate_probs=gate_probs,
            routed=routed,
            token_mask=self.token_mask,
            links=self.radio.links[at],
            spectral_efficiency=self.radio.spectral_efficiency[at],
            unit_latency_s=self.radio.unit_latency_s[at],
            index=np.full(batch, index / sizes.num_blocks),
            hidden_states=hidden,
        )

    def _check(self, index: int, gate_probs: Float, hidden: NDArray[np.float32] | None) -> None:
        """Refuse numbers that are not finite; hidden states that no one sees show in the gates that they lead to."""
        where = f"in block {index + 1} of {self.sizes.num_blocks}"
        check_finite(self.model.model, f"gate probabilities {where}", gate_probs)
        if hidden is not None:
            check_finite(self.model.model, f"hidden states {where}", hidden)

    def _gates(self, passes: Sequence[BlockInput]) -> tuple[Float, Bool]:
        """Gate probabilities and own routing (N, J, E), in memory of their own."""
        shape = (len(self.token_mask), self.sizes.num_tokens, self.sizes.num_experts)
        if not passes:
            return np.zeros(shape), np.zeros(shape, dtype=bool)
        gate_probs = _to_host([at.gate_probs for at in passes], np.float64)
        return gate_probs.reshape(shape), _to_host([at.routed for at in passes], np.bool_).reshape(shape)

    def _hidden(self, passes: Sequence[BlockInput]) -> NDArray[np.float32]:
        """Hidden states (N, J, H)."""
        shape = (len(self.token_mask), self.sizes.num_tokens, self.sizes.hidden_size)
        if not passes:
            return np.zeros(shape, dtype=np.float32)
        return _to_host([at.hidden_states.float() for at in passes], np.float32).reshape(shape)


def _to_host(tensors: list[torch.Tensor], dtype: type[Scalar]) -> NDArray[Scalar]:
    """The rows of all passes as one array of its own memory."""
    return np.concatenate([tensor.numpy(force=True) for tensor in tensors], dtype=dtype)
