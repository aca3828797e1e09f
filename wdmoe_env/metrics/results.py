"""What N episodes led to in a block and as a whole: what metrics are read from."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from wdmoe_env.physics.latency import Bool, Float


class BlockResult(NamedTuple):
    """What one decision led to in one block.

    Attributes:
        selection: (N, J, E) that ran.
        shares: (N, U) bandwidth shares that were used.
        tokens: (N, U) tokens that each device served.
        device_latency_s: (N, U).
        block_latency_s: (N,).
        vanilla_latency_s: (N,) of the model's own routing at equal shares on the same block.
        gate_weight_served: (N,) W.
        gate_weight_kept: (N,) W over that of the model's own routing.
        wlr: (N,) 1/ms, block form.
        wlr_device: (N,) 1/ms, device form.
        latency_ratio: (N,) block latency over that of the own routing; 1 where neither waits.
        repaired_tokens: (N,) tokens that the action left without an expert.
        unserved_pairs: (N,) pairs of token and expert that were selected and not served; ``None`` where the experts of
            the model itself run, which serve all.
        message_bits: (N,) mean bits of an element over the messages; ``None`` where the action does not decide them.
        device_energy_j: (N, U) of the devices; ``None`` where energy was not asked for.
        radio_energy_j: (N, U) of what sends to and from each; ``None`` likewise.
        energy_per_token_j: (N,) both together over the number of tokens; ``None`` likewise.
        pair_price_s: (N, J, E) what each pair of token and expert adds to the block latency at the margin, at the
            bandwidth optimum; ``None`` where it was not asked for.
        token_price_s: (N, J) what the pairs of each token cost together; ``None`` likewise.
        replaced_pairs: (N,) chosen pairs whose device was away, which the next best expert served; ``None`` where no
            device can be away.
        unserved_tokens: (N,) tokens that went on without the block, since no expert was there; likewise.
        simulated_latency_s: (N,) what the simulator says of a block that was measured by the clock; else ``None``.
    """

    selection: Bool
    shares: Float
    tokens: Float
    device_latency_s: Float
    block_latency_s: Float
    vanilla_latency_s: Float
    gate_weight_served: Float
    gate_weight_kept: Float
    wlr: Float
    wlr_device: Float
    latency_ratio: Float
    repaired_tokens: NDArray[np.int64]
    unserved_pairs: NDArray[np.int64] | None = None
    pair_price_s: Float | None = None
    token_price_s: Float | None = None
    simulated_latency_s: Float | None = None
    replaced_pairs: NDArray[np.int64] | None = None
    unserved_tokens: NDArray[np.int64] | None = None
    message_bits: Float | None = None
    device_energy_j: Float | None = None
    radio_energy_j: Float | None = None
    energy_per_token_j: Float | None = None


class EpisodeResult(NamedTuple):
    """What N whole episodes came to.

    Attributes:
        latency_s: (N,) sum over blocks.
        nll: (N,) nats per token.
        token_nll: (N, J) nats, 0 at padding.
        correct: (N, J) whether the most probable token was the text's; of no meaning at padding.
        next_token_accuracy: (N,) share of tokens whose most probable successor was right.
        reference_nll: (N,) NLL in nats per token of the model's own routing on the same texts; ``None`` where the
            rollout has no reference.
        reference_token_nll: (N, J) nats, of each token under the own routing, 0 at padding; ``None`` where it was not
            asked for.
        token_divergence: (N, J) nats, KL of the predictions from those of the own routing, 0 at padding; ``None``
            likewise.
        divergence: (N,) nats, its mean over the tokens; ``None`` likewise.
    """

    latency_s: Float
    nll: Float
    token_nll: Float
    correct: Bool
    next_token_accuracy: Float
    reference_nll: Float | None = None
    reference_token_nll: Float | None = None
    token_divergence: Float | None = None
    divergence: Float | None = None
