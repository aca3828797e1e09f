"""Checks at the public entry points: one sentence that says what was expected and what came."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from wdmoe_env.physics.latency import BlockLinks, Bool, Float, Load


def check_links(links: BlockLinks) -> tuple[int, int]:
    """Check the shapes and signs of a block's links.

    Returns:
        Batch size N and number of devices U.

    Raises:
        ValueError: a shape does not fit ``compute_s``, or a value is NaN, infinite or of the wrong sign.
    """
    if links.compute_s.ndim != 2:
        raise ValueError(f"compute_s must have shape (N, U), got {links.compute_s.shape}")
    batch, devices = links.compute_s.shape
    _check_shape("full_band_snr", links.full_band_snr, (batch, 2, devices))
    _check_shape("payload_s", links.payload_s, (batch,))
    if links.placement.ndim not in (2, 3) or links.placement.shape[-1] != devices:
        raise ValueError(f"placement must have shape (N, E, {devices}) or (E, {devices}), got {links.placement.shape}")
    if links.placement.ndim == 3 and links.placement.shape[0] != batch:
        raise ValueError(f"placement must hold a batch of {batch}, got shape {links.placement.shape}")
    _check_range("full_band_snr", links.full_band_snr, positive=True)
    _check_range("payload_s", links.payload_s, positive=True)
    _check_range("compute_s", links.compute_s)
    return batch, devices


def check_load(links: BlockLinks, load: Load) -> None:
    """Check that a load is finite, not negative, and fits the links.

    Raises:
        ValueError: a shape or a value is wrong, or a device has token-expert pairs but no token.
    """
    check_device_array("load.tokens", load.tokens, links)
    check_device_array("load.experts", load.experts, links)
    if ((load.experts > 0) & (load.tokens == 0)).any():
        raise ValueError("load.experts must be 0 where load.tokens is 0, got a device that computes without a token")


def check_device_array(name: str, value: Float, links: BlockLinks) -> None:
    """Check that ``value`` holds a finite, non-negative number for each device.

    Raises:
        ValueError: the shape is not (N, U), or a value is NaN, infinite or negative.
    """
    _check_shape(name, value, links.compute_s.shape)
    _check_range(name, value)


def check_min_share(min_share: float, loaded: Bool) -> None:
    """Check that every loaded device (N, U) can have its least share at once.

    Raises:
        ValueError: ``min_share`` is negative, NaN, or too large for the number of loaded devices.
    """
    most = int(loaded.sum(axis=-1).max(initial=0))
    if not 0.0 <= min_share * most <= 1.0 + 1e-12 or min_share < 0:
        raise ValueError(f"min_share must be between 0 and 1 / {max(most, 1)} loaded devices, got {min_share}")


def check_selection(links: BlockLinks, weights: Float, *masks: tuple[str, NDArray[np.bool_]]) -> None:
    """Check gate weights and masks of a selection.

    Args:
        links: the block's links.
        weights: (N, J, E).
        *masks: names, and boolean arrays (N, J, E).

    Raises:
        TypeError: a mask is not boolean.
        ValueError: a shape does not fit, a weight is negative, NaN or infinite, or an expert is not placed on
            exactly one device.
    """
    if not ((links.placement > 0).sum(axis=-1) == 1).all():
        raise ValueError("placement must put every expert on exactly one device")
    batch, experts = links.compute_s.shape[0], links.placement.shape[-2]
    if weights.ndim != 3 or weights.shape[0] != batch or weights.shape[2] != experts:
        raise ValueError(f"weights must have shape ({batch}, J, {experts}), got {weights.shape}")
    _check_range("weights", weights)
    for name, mask in masks:
        check_mask(name, mask, weights.shape)


def check_mask(name: str, mask: NDArray[np.bool_], shape: tuple[int, ...]) -> None:
    """Check that ``mask``, of any shape, is a boolean array of the given one.

    Raises:
        TypeError: it is not boolean.
        ValueError: its shape differs.
    """
    if mask.dtype != np.bool_:
        raise TypeError(f"{name} must be a boolean array, got dtype {mask.dtype}")
    _check_shape(name, mask, shape)


def _check_shape(name: str, value: NDArray[np.generic], shape: tuple[int, ...]) -> None:
    if value.shape != shape:
        raise ValueError(f"{name} must have shape {shape}, got {value.shape}")


def _check_range(name: str, value: Float, positive: bool = False) -> None:
    # A NaN fails both comparisons; min and max are two passes without a temporary.
    low, high = value.min(initial=np.inf), value.max(initial=0.0)
    if not ((low > 0 if positive else low >= 0) and high < np.inf):
        kind = "positive" if positive else "non-negative"
        raise ValueError(f"{name} must hold finite {kind} numbers, got values from {low:g} to {high:g}")
