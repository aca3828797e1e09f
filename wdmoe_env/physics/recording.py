"""Gains recorded elsewhere, step by step."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from wdmoe_env.physics.latency import Bool, Float


@dataclass(frozen=True, slots=True)
class Recording:
    """Recorded episodes of gains, one after the other.

    Attributes:
        gain: (T, U) linear power gain of the downlink in each step, above 0 and at most 1.
        uplink_gain: (T, U) of the uplink.
        distance_m: (T, U) distance from the base station, NaN where it is not known.
        lengths: (E,) steps of each episode; their sum is T.

    Raises:
        ValueError: shapes that do not fit, or values out of range.
    """

    gain: Float
    uplink_gain: Float
    distance_m: Float
    lengths: NDArray[np.int64]

    def __post_init__(self) -> None:
        """Check shapes and values."""
        shape = self.gain.shape
        if self.gain.ndim != 2 or not self.gain.size or self.lengths.sum() != len(self.gain):
            raise ValueError(f"expected gains of at least one step and one device, got shape {shape}")
        for name in ("uplink_gain", "distance_m"):
            found = getattr(self, name).shape
            if found != shape:
                raise ValueError(f"expected {name} of the shape of the gains, {shape}, got {found}")
        for name in ("gain", "uplink_gain"):
            value = getattr(self, name)
            _check_all(f"{name} above 0 and at most 1, which is 0 dB", value, (value > 0.0) & (value <= 1.0))
        distance = self.distance_m
        _check_all("distance_m of at least 0 or nan", distance, (distance >= 0.0) | np.isnan(distance))

    @property
    def num_devices(self) -> int:
        """U."""
        return self.gain.shape[1]

    def starts(self, num_blocks: int) -> NDArray[np.int64]:
        """Steps (S,) after which a recorded episode goes on for I blocks, those steps included."""
        left = np.repeat(np.cumsum(self.lengths), self.lengths) - np.arange(len(self.gain))
        return np.flatnonzero(left >= num_blocks)


def _check_all(expected: str, values: Float, fine: Bool) -> None:
    """Refuse values (T, U) that are not fine, and name the first."""
    if not fine.all():
        step, device = np.argwhere(~fine)[0]
        raise ValueError(f"expected {expected}, got {values[step, device]:g} in step {step} of device {device}")
