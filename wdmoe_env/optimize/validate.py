"""Checks at the public entry points: one sentence that says what was expected and what came.

The ranges are far wider than what radios and devices have. Within them no intermediate result of a solver overflows
or vanishes, so that each keeps its promise.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wdmoe_env.checks import check_number, plain_array, real_array, shown
from wdmoe_env.physics.latency import BlockLinks, Bool, Float, Load

MOST_WEIGHT = 1e40
MOST_PRICE_PER_MS = 1e150


@dataclass(frozen=True, slots=True)
class Ranges:
    """Within what a solver keeps its promise; each is (least, most).

    Attributes:
        full_band_snr: of the links.
        payload_s: of the links.
        compute_s: of the links.
        weights_s: of the links, where weights are read.
        reading_s: of the load, likewise.
        load: tokens and token-expert pairs of a device that has any.
    """

    full_band_snr: tuple[float, float] = (1e-50, 1e50)
    payload_s: tuple[float, float] = (1e-60, 1e12)
    compute_s: tuple[float, float] = (0.0, 1e30)
    weights_s: tuple[float, float] = (0.0, 1e30)
    reading_s: tuple[float, float] = (0.0, 1e60)
    load: tuple[float, float] = (1e-30, 1e30)


RANGES = Ranges()


def check_links(links: BlockLinks) -> tuple[int, int]:
    """Check the shapes and values of a block's links.

    ``full_band_snr`` must be from 1e-50 to 1e50, ``payload_s`` from 1e-60 to 1e12, ``compute_s`` and
    ``weights_s`` from 0 to 1e30.

    Returns:
        Batch size N and number of devices U.

    Raises:
        ValueError: a shape does not fit ``compute_s``, or a value is NaN or out of its range.
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
    _check_range("full_band_snr", links.full_band_snr, *RANGES.full_band_snr)
    _check_range("payload_s", links.payload_s, *RANGES.payload_s)
    _check_range("compute_s", links.compute_s, *RANGES.compute_s)
    if links.weights_s is not None:
        _check_shape("weights_s", links.weights_s, (batch, devices))
        _check_range("weights_s", links.weights_s, *RANGES.weights_s)
    return batch, devices


def check_load(links: BlockLinks, load: Load) -> None:
    """Check that a load fits the links, and that each number is 0 or from 1e-30 to 1e30.

    Raises:
        ValueError: a shape or a value is wrong, or a device has token-expert pairs but no token.
    """
    _check_of_devices("load.tokens", load.tokens, links, *RANGES.load)
    _check_of_devices("load.experts", load.experts, links, *RANGES.load)
    if load.reading_s is not None:
        _check_shape("load.reading_s", load.reading_s, links.compute_s.shape)
        _check_range("load.reading_s", load.reading_s, *RANGES.reading_s)
        if ((load.reading_s > 0) & (load.tokens == 0)).any():
            raise ValueError("load.reading_s must be 0 where load.tokens is 0, got a device that reads without a token")
    if ((load.experts > 0) & (load.tokens == 0)).any():
        raise ValueError("load.experts must be 0 where load.tokens is 0, got a device that computes without a token")


def check_min_share(min_share: float, loaded: Bool) -> float:
    """Check that every loaded device (N, U) can have its least share at once; it comes back as Python's own.

    Raises:
        ValueError: ``min_share`` is no number, negative, NaN, or too large for the number of loaded devices.
    """
    if type(min_share) is not float:
        min_share = float(check_number("min_share", min_share))
    most = int(loaded.sum(axis=-1).max(initial=0))
    if not 0.0 <= min_share * most <= 1.0 + 1e-12 or min_share < 0:
        raise ValueError(f"min_share must be between 0 and 1 / {max(most, 1)} loaded devices, got {min_share}")
    return min_share


def check_selection(links: BlockLinks, weights: Any, *masks: tuple[str, Any]) -> tuple[Float, list[Bool]]:
    """Check gate weights and masks of a selection.

    Args:
        links: the block's links.
        weights: (N, J, E), each from 0 to 1e40.
        *masks: names, and boolean arrays (N, J, E).

    Returns:
        The weights (N, J, E) as float64, and the masks as arrays (N, J, E).

    Raises:
        TypeError: a mask is not boolean, or the weights are no real numbers.
        ValueError: a shape does not fit, a weight is NaN or out of its range, or an expert is not placed on exactly
            one device.
    """
    placed = links.placement
    if not ((placed != 0).sum(axis=-1) == 1).all() or not (placed.sum(axis=-1) == 1.0).all():
        raise ValueError("placement must put every expert on exactly one device, with a 1 there and 0 elsewhere")
    weights = real_array("weights", weights)
    batch, experts = links.compute_s.shape[0], links.placement.shape[-2]
    if weights.ndim != 3 or weights.shape[0] != batch or weights.shape[2] != experts:
        raise ValueError(f"weights must have shape ({batch}, J, {experts}), got {weights.shape}")
    _check_range("weights", weights, 0.0, MOST_WEIGHT)
    return weights, [check_mask(name, mask, weights.shape) for name, mask in masks]


def check_mask(name: str, mask: Any, shape: tuple[int, ...]) -> Bool:
    """Check that ``mask``, of any shape, is a boolean array of the given one, or nested lists that make one.

    Raises:
        TypeError: it is not boolean.
        ValueError: its shape differs.
    """
    if type(mask) is not np.ndarray:
        mask = plain_array(name, mask)
    if mask.dtype != np.bool_:
        raise TypeError(f"{name} must be a boolean array, got dtype {mask.dtype}")
    _check_shape(name, mask, shape)
    return mask


def check_price(price_per_ms: Any, batch: int) -> Float:
    """Check prices, (N,) or one number, each from 0 to 1e150; they come back as (N,).

    Raises:
        TypeError: they are no real numbers.
        ValueError: a shape or a value is wrong.
    """
    price = real_array("price_per_ms", price_per_ms)
    if price.shape not in ((), (batch,)):
        raise ValueError(f"price_per_ms must be a number or have shape ({batch},), got {price.shape}")
    if not (price >= 0).all() or not np.isfinite(price).all():
        raise ValueError(f"price_per_ms must be finite and non-negative, got {shown(price_per_ms)}")
    if (price > MOST_PRICE_PER_MS).any():
        raise ValueError(f"price_per_ms must be at most {MOST_PRICE_PER_MS:g}, got {price.max():g}")
    return np.broadcast_to(price, (batch,))


def _check_shape(name: str, value: NDArray[np.generic], shape: tuple[int, ...]) -> None:
    if value.shape != shape:
        raise ValueError(f"{name} must have shape {shape}, got {value.shape}")


def _check_of_devices(name: str, value: Float, links: BlockLinks, least: float, most: float) -> None:
    """Refuse all but (N, U) numbers that are 0 or within the bounds."""
    _check_shape(name, value, links.compute_s.shape)
    _check_range(name, value, 0.0, most)
    if value.min(initial=np.inf) < least and ((value > 0) & (value < least)).any():
        raise ValueError(f"{name} must hold 0 or numbers of at least {least:g}, got {value[value > 0].min():g}")


def _check_range(name: str, value: Float, least: float, most: float) -> None:
    # A NaN fails both comparisons; min and max are two passes without a temporary.
    low, high = value.min(initial=np.inf), value.max(initial=0.0)
    if not (low >= least and high <= most):
        kind = "positive" if least else "non-negative"
        raise ValueError(
            f"{name} must hold finite {kind} numbers from {least:g} to {most:g}, got values from {low:g} to {high:g}"
        )
