"""What every source of channels gives: the power gains of whole episodes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from wdmoe_env.physics.latency import Float


@dataclass(frozen=True, slots=True)
class Gains:
    """Power gains of N episodes in all I blocks.

    Attributes:
        gain: (I, N, U) linear power gain of the downlink.
        uplink_gain: (I, N, U) of the uplink.
        distance_m: (I, N, U) distance from the base station on the ground, NaN where it is not known.
    """

    gain: Float
    uplink_gain: Float
    distance_m: Float

    @classmethod
    def of(cls, gain: Float, uplink_gain: Float | None = None, distance_m: Float | None = None) -> Gains:
        """Gains of which some may be left out.

        Args:
            gain: (I, N, U) linear power gain of the downlink.
            uplink_gain: (I, N, U) of the uplink, where it is another.
            distance_m: (I, N, U) distance in m, where it is known.
        """
        return cls(
            gain=gain,
            uplink_gain=gain if uplink_gain is None else uplink_gain,
            distance_m=np.full(np.shape(gain), np.nan) if distance_m is None else distance_m,
        )


class GainSource(Protocol):
    """Where the channels of episodes come from."""

    def sample(self, generators: Sequence[np.random.Generator]) -> Gains:
        """Draw N episodes.

        Args:
            generators: N of them, the only source of randomness; row n depends on ``generators[n]`` alone.

        Returns:
            Gains of all blocks; finite, and above 0.
        """
