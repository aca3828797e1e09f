"""Channel-aware gating: a pair is used where router logit and a learned function of its link sum to more than a bar.

After the channel-aware gate of arXiv 2504.00819, whose gate reads the SNR of each expert's link beside the features
of a token. Of the paper a summary was at hand, and its links are analogue: noise reaches the experts. Here a link is
digital and costs time. The function is linear in a few figures, with weights of each block, and is learned by the
straight-through gradient (``python -m train.channel_gate``).
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from wdmoe_env.checks import check_number
from wdmoe_env.observations import Block
from wdmoe_env.optimize.pricing import at_device_of_expert
from wdmoe_env.physics.latency import Bool, Float
from wdmoe_env.policies.rules import best_of, with_optimal_shares

SHIPPED = Path(__file__).parents[1] / "assets" / "channel-gate" / "tiny.safetensors"
FIGURES = ("router", "radio", "computing", "unrouted", "constant")
"""What the gate weighs of each pair; see ``gate_figures``."""
DEFAULT_ODDS = 1.0
EXTRA_EXPERTS = 1
"""Of each token, so many of its most probable experts beside as many as the model routes may be used."""
LEAST_PROBABILITY = 1e-9
LEAST_S = 1e-12


class ChannelGateRule:
    """Uses the candidates of each token whose odds exceed a bar, or its most probable expert where none do.

    Args:
        weights: (I, F) of ``FIGURES`` in each block. Of a model of another number of blocks each takes the weights of
            the block at the same part of the way.
        odds: the bar. At 1 a pair is used where the sum is positive; more leaves more out, and 0 leaves nothing out.

    Raises:
        ValueError: weights of another shape or not finite; or odds that are no number from 0 to 1e12.
    """

    def __init__(self, weights: Float, odds: float = DEFAULT_ODDS) -> None:
        weights = np.asarray(weights, dtype=np.float64)
        if weights.ndim != 2 or weights.shape[1] != len(FIGURES) or not len(weights) or not np.isfinite(weights).all():
            raise ValueError(f"expected finite weights (I, {len(FIGURES)}), got an array of {weights.shape}")
        self.weights, self.odds = weights, check_number("odds", odds, at_least=0.0, at_most=1e12)

    def __call__(self, block: Block) -> tuple[Bool, Float]:
        """Decide for a block of N episodes: selection (N, J, E) and shares (N, U)."""
        own = self.weights[block_numbers(block, len(self.weights))]
        logits = np.einsum("njef,nf->nje", gate_figures(block), own)
        chosen = gate_candidates(block)
        if self.odds > 0:
            chosen = chosen & (logits > np.log(self.odds))
        none = ~chosen.any(axis=-1, keepdims=True)
        best = best_of(np.where(block.usable, block.gate_probs, -1.0), block)
        return with_optimal_shares(block, chosen | none & best)


def gate_candidates(block: Block) -> Bool:
    """The experts (N, J, E) that a token may use: the most probable of those that are there, k + ``EXTRA_EXPERTS``."""
    usable = block.usable
    order = np.argsort(-np.where(usable, block.gate_probs, -1.0), axis=-1, kind="stable")
    rank = np.argsort(order, axis=-1, kind="stable")
    return (rank < block.routed.sum(axis=-1, keepdims=True) + EXTRA_EXPERTS) & usable


def gate_figures(block: Block) -> Float:
    """The figures (N, J, E, F) of each pair, in the order of ``FIGURES``.

    The router's logit less that of the token's most probable expert, log p[e] - max log p; the radio time of a token at
    equal shares on the expert's device over its mean over the devices, less 1; the time of computing a token there,
    with its part of the weights of an expert of mean load, over the same mean, less its own mean; 1 where the router
    leaves the expert out; and 1.
    """
    links = block.links
    compute_s = links.compute_s
    if links.weights_s is not None:
        tokens = np.maximum(block.routed.sum(axis=(1, 2)) / block.routed.shape[-1], 1.0)[:, None]
        compute_s = np.maximum(compute_s, links.weights_s / tokens)
    radio_mean = np.maximum(_mean_present(block, block.unit_latency_s), LEAST_S)
    radio = block.unit_latency_s / radio_mean - 1.0
    computing = (compute_s - _mean_present(block, compute_s)) / radio_mean
    log_probs = np.log(np.maximum(np.where(block.usable, block.gate_probs, 0.0), LEAST_PROBABILITY))
    columns = [
        log_probs - log_probs.max(axis=-1, keepdims=True),
        at_device_of_expert(radio, links.placement)[:, None],
        at_device_of_expert(computing, links.placement)[:, None],
        ~block.routed,
        1.0,
    ]
    return np.stack([np.broadcast_to(one, block.routed.shape) for one in columns], axis=-1).astype(np.float64)


def block_numbers(block: Block, count: int) -> NDArray[np.int64]:
    """Number (N,) of the block of each episode, from 0, where there are weights of ``count`` blocks."""
    return np.minimum(np.floor(block.index * count + 1e-6), count - 1).astype(np.int64)


def _mean_present(block: Block, values: Float) -> Float:
    """Mean (N, 1) of (N, U) over the devices that are there, or over all where none is."""
    if block.available is None:
        return values.mean(axis=-1, keepdims=True)
    counted = block.available | ~block.available.any(axis=-1, keepdims=True)
    return np.where(counted, values, 0.0).sum(axis=-1, keepdims=True) / counted.sum(axis=-1, keepdims=True)


@lru_cache(maxsize=8)
def read_gate(path: Path = SHIPPED) -> Float:
    """Weights (I, F) of a file that ``python -m train.channel_gate`` wrote.

    Raises:
        ValueError: the file has none.
        OSError: it cannot be read.
    """
    from safetensors import SafetensorError  # only here: most rules need no file
    from safetensors.numpy import load

    try:
        tensors = load(path.read_bytes())
    except SafetensorError as error:
        raise ValueError(f"expected safetensors in {path}: {error}") from None
    if "weights" not in tensors:
        raise ValueError(f"expected weights of a gate in {path}, found {', '.join(sorted(tensors)) or 'nothing'}")
    return tensors["weights"].astype(np.float64)


def channel_gate_rule(odds: float = DEFAULT_ODDS) -> ChannelGateRule:
    """The rule with the weights that ship, of ``tiny``.

    Args:
        odds: see ``ChannelGateRule``.
    """
    return ChannelGateRule(read_gate(), odds)
