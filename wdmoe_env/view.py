"""What a policy may see of N paused episodes: the radio's figures and the model's gates, as one ``Block``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from wdmoe_env.moe.hook import BlockInput
from wdmoe_env.observations import Block, Sizes
from wdmoe_env.physics import latency
from wdmoe_env.physics.channel import ChannelTrace
from wdmoe_env.physics.latency import BlockLinks, Bool, Float


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
        equal = np.full((batch, devices), 1.0 / devices)
        together = BlockLinks(trace.full_band_snr, payload, compute, placement[0])
        return cls(
            [BlockLinks(snr, payload, compute, at) for snr, at in zip(trace.full_band_snr, placement, strict=True)],
            latency.spectral_efficiency(trace.full_band_snr, equal),
            latency.radio_latency_s(together, equal),
        )


@dataclass(frozen=True, slots=True)
class View:
    """How paused passes become a block.

    Attributes:
        sizes: of the environment.
        token_mask: (N, J) True where there is a token.
        radio: of the N episodes.
        hidden_states: whether the block holds them.
    """

    sizes: Sizes
    token_mask: Bool
    radio: Radio
    hidden_states: bool

    def block(self, passes: Sequence[BlockInput]) -> Block:
        """The paused block; after the end, where there is none, all probabilities are 0.

        Args:
            passes: where each pass is paused, in the order of the episodes.
        """
        sizes, batch = self.sizes, len(self.token_mask)
        shape = (batch, sizes.num_tokens, sizes.num_experts)
        gates, hidden = np.zeros((2, *shape), dtype=np.float32), None
        if self.hidden_states:
            hidden = np.zeros((batch, sizes.num_tokens, sizes.hidden_size), dtype=np.float32)
        if passes:
            # One transfer for both, where the model is on another device.
            both = [torch.stack((at.gate_probs, at.routed.to(at.gate_probs.dtype))) for at in passes]
            gates = _to_host(both, axis=1).reshape(gates.shape)
        if passes and hidden is not None:
            hidden = _to_host([at.hidden_states for at in passes], axis=0).reshape(hidden.shape)
        padding = ~self.token_mask
        if padding.any():
            gates[:, padding] = 0.0
            if hidden is not None:
                hidden[padding] = 0.0
        index = passes[0].index if passes else sizes.num_blocks
        at = min(index, sizes.num_blocks - 1)
        return Block(
            gate_probs=gates[0].astype(np.float64),
            routed=gates[1] > 0,
            token_mask=self.token_mask,
            links=self.radio.links[at],
            spectral_efficiency=self.radio.spectral_efficiency[at],
            unit_latency_s=self.radio.unit_latency_s[at],
            index=np.full(batch, index / sizes.num_blocks),
            hidden_states=hidden,
        )


def _to_host(tensors: list[torch.Tensor], axis: int) -> NDArray[np.float32]:
    """The tensors of all passes as one array."""
    return np.concatenate([tensor.detach().float().cpu().numpy() for tensor in tensors], axis=axis)
