"""What the base station knows of the channel: gains that are old, or off, or both; design equation (13).

The devices are sounded in every block. What comes of it is off by an error of its own for each device and block, the
same in both directions, and reaches the base station ``csi_delay`` blocks later. An episode begins with a sounding, so
that in its first blocks the gains of the first one are known.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from wdmoe_env.config import ChannelConfig
from wdmoe_env.physics.branch import CHANNEL_ESTIMATE, branch_normals
from wdmoe_env.physics.latency import Float


def sample_errors_db(
    channel: ChannelConfig, generators: Sequence[np.random.Generator], num_blocks: int, num_devices: int
) -> Float | None:
    """Errors of the soundings, (I, N, U) in dB; ``None`` where they have none.

    Args:
        channel: the radio.
        generators: N of them, which are not advanced; row n depends on ``generators[n]`` alone.
        num_blocks: I.
        num_devices: U.
    """
    if not channel.csi_error_db:
        return None
    return channel.csi_error_db * branch_normals(generators, CHANNEL_ESTIMATE, (num_blocks, num_devices))


def observed_snr(
    channel: ChannelConfig, full_band_snr: Float, errors_db: Float | None, least: float, most: float
) -> Float | None:
    """Equation (13): in block i the base station takes gamma[i - d] 10^(x[i - d] / 10) for gamma[i].

    d is ``csi_delay``, and x are the errors in dB. Before block d, i - d is 0.

    Args:
        channel: the radio.
        full_band_snr: (I, N, 2, U) the true gamma / B.
        errors_db: (I, N, U) of the soundings.
        least: least ratio that an estimate gives.
        most: greatest ratio that an estimate gives.

    Returns:
        (I, N, 2, U); ``None`` where the true ratios are known.
    """
    if errors_db is None and not channel.csi_delay:
        return None
    estimate = full_band_snr
    if errors_db is not None:
        estimate = np.clip(full_band_snr * 10.0 ** (errors_db[:, :, None] / 10.0), least, most)
    return estimate[np.maximum(np.arange(len(estimate)) - channel.csi_delay, 0)]
