"""The weight-to-latency ratio (WLR), design equation (8), in its block and its device form."""

from __future__ import annotations

import numpy as np

from wdmoe_env.physics.latency import Bool, Float
from wdmoe_env.physics.reductions import sum_over_last, sum_over_tokens


def gate_weights(gate_probs: Float, routed: Bool) -> Float:
    """w[j, e] = p[j, e] / sum over the routed p: the routed ones of a token sum to 1.

    An expert that was not routed has a weight too, on the same scale.

    Args:
        gate_probs: (N, J, E) scores of all experts.
        routed: (N, J, E) the model's own choice.

    Returns:
        (N, J, E); rows without a routed expert (padding) are zero.
    """
    total = sum_over_last(gate_probs * routed)
    return gate_probs / np.where(total > 0, total, np.inf)[..., None]


def weight_served(weights: Float, selection: Bool) -> Float:
    """W: the gate weight that the selected experts serve, summed over tokens; (N, J, E) twice -> (N,)."""
    return sum_over_last(sum_over_tokens(weights * selection))


def device_weight_served(weights: Float, selection: Bool, placement: Float) -> Float:
    """W[u] (N, U): the gate weight that each device's selected experts serve.

    Args:
        weights: (N, J, E) gate weights.
        selection: (N, J, E).
        placement: (N, E, U) or (E, U).
    """
    of_experts = sum_over_tokens(weights * selection)[..., None, :]
    return (of_experts @ placement)[..., 0, :]


def wlr_per_ms(served: Float, block_latency: Float) -> Float:
    """W / t, equation (8).

    Args:
        served: (N,) gate weight served.
        block_latency: (N,) seconds.

    Returns:
        (N,) in 1/ms.
    """
    return served / (1e3 * block_latency)


def wlr_device_per_ms(device_weight: Float, device_latency: Float) -> Float:
    """Sum over loaded devices of W[u] / t[u], the device form beside equation (8).

    Shares can game it: starving slow devices raises it while attention waits longer.

    Args:
        device_weight: (N, U) gate weight that each device serves.
        device_latency: (N, U) seconds, 0 where a device has no load.

    Returns:
        (N,) in 1/ms.
    """
    return (device_weight / np.where(device_latency > 0, 1e3 * device_latency, np.inf)).sum(axis=-1)
