"""What a rollout asks of a runner that measures: the pace of a block goes in, latencies by the clock come out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from wdmoe_env.moe.runner import ExpertRunner

Float = NDArray[np.float64]
Bool = NDArray[np.bool_]


@dataclass(frozen=True, slots=True, eq=False)
class BlockPace:
    """What the simulator expects of a block of one episode: U devices, E experts.

    Attributes:
        downlink_s: (U,) seconds on the air down, of all tokens of the device.
        uplink_s: (U,) seconds on the air up.
        compute_s: (U,) seconds of computing.
        tokens: (U,) tokens of each device.
        shares: (U,) share of the bandwidth.
        placement: (E, U) 1 where the device holds the expert.
        payload_bits: of one token, one way.
        bandwidth_hz: B.
    """

    downlink_s: Float
    uplink_s: Float
    compute_s: Float
    tokens: Float
    shares: Float
    placement: Float
    payload_bits: float
    bandwidth_hz: float


@dataclass(frozen=True, slots=True, eq=False)
class Measurement:
    """What the clock said of a block of one episode.

    Attributes:
        block_latency_s: seconds until all that was served had come, or until the deadline.
        device_latency_s: (U,) seconds until each device's answer had come; 0 where it was not asked.
        served: (J, E) pairs that were served.
        late: devices that missed the deadline.
    """

    block_latency_s: float
    device_latency_s: Float
    served: Bool
    late: int


@runtime_checkable
class MeasuringRunner(ExpertRunner, Protocol):
    """A runner whose latencies are measured. It serves one episode at a time in each thread."""

    def announce(self, pace: BlockPace) -> None:
        """Say how the next block's links and devices behave.

        Args:
            pace: of the block that runs next in this thread.
        """

    def measured(self) -> Measurement:
        """What the clock said of the block that ran last in this thread."""

    def available(self) -> Bool:
        """Whether each device (U,) is there now."""

    def observed_snr(self) -> Float | None:
        """Gamma / B (2, U) of the links as they were measured last, NaN where they were not.

        ``None`` where a policy is to see the links that the block will have.
        """

    def check_placement(self, placement: Float) -> None:
        """Refuse a placement that the devices do not hold.

        Args:
            placement: (I, E, U) 1 where a device is to hold an expert.

        Raises:
            ValueError: it does not fit.
        """
