"""How long the payload of each device takes in a block: by the channel, by a recorded link, or by what a link can."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from wdmoe_env.moe.measuring import BlockPace
from wdmoe_env.physics.latency import DOWNLINK, UPLINK, Float
from wdmoe_env.testbed.inventory import Inventory
from wdmoe_env.testbed.mahimahi import LinkTrace, read_trace
from wdmoe_env.testbed.parts import Part
from wdmoe_env.testbed.records import MS, BlockRecord

MOST_EFFICIENCY = 100.0
"""Bit/s/Hz that a link is taken to have at most."""


@dataclass(frozen=True, slots=True)
class DevicePace:
    """What a device's call is to take, by the wall's clock.

    Attributes:
        downlink_s: seconds on the air down.
        uplink_s: seconds on the air up.
        compute_s: least seconds of computing.
        payload_bytes: of the call's rows, as the deployment's model has them, one way.
    """

    downlink_s: float = 0.0
    uplink_s: float = 0.0
    compute_s: float = 0.0
    payload_bytes: int = 0

    @property
    def total_s(self) -> float:
        """Seconds of the whole call."""
        return self.downlink_s + self.compute_s + self.uplink_s


@dataclass(frozen=True, slots=True)
class BlockPlan:
    """What a block's calls are to take, by the wall's clock.

    Attributes:
        devices: of those with work.
        expected_s: until the last one has answered, as the simulator has it.
        deadline_s: when the block is given up.
        time_scale: what measured times are divided by.
    """

    devices: Mapping[int, DevicePace]
    expected_s: float
    deadline_s: float
    time_scale: float

    def of(self, device: int) -> DevicePace:
        """That of one device."""
        return self.devices.get(device, DevicePace())


class Pacer:
    """Makes the plan of each block.

    Args:
        inventory: how links and devices behave.

    Attributes:
        seen_snr: (2, U) gamma / B of each link when last seen, down and up, NaN where it was not; ``None`` before any.

    Raises:
        ValueError, OSError: a recorded link that cannot be read.
    """

    def __init__(self, inventory: Inventory) -> None:
        self._inventory = inventory
        self._began_s = time.monotonic()
        self._traces: list[tuple[LinkTrace, LinkTrace]] = []
        if inventory.links == "trace":
            for device in inventory.devices:
                assert device.downlink_trace is not None
                assert device.uplink_trace is not None
                self._traces.append((read_trace(device.downlink_trace), read_trace(device.uplink_trace)))
        self.seen_snr: Float | None = None

    def rates_bps(self) -> Float | None:
        """Mean rates (2, U) in bit/s of the recorded links; ``None`` where there are none."""
        if not self._traces:
            return None
        return np.array([[one.rate_bps for one in links] for links in zip(*self._traces, strict=True)])

    def plan(self, pace: BlockPace | None, parts: Sequence[Part]) -> BlockPlan:
        """The plan of a block.

        Args:
            pace: what the simulator expects; ``None`` runs as fast as it can.
            parts: what each device does.
        """
        grace_s, scale = self._inventory.deadline_ms / MS, self._inventory.time_scale
        if pace is None:
            return BlockPlan({}, 0.0, max(grace_s, 10.0), 1.0)
        stretched = self._inventory.compute == "profile"
        devices = {}
        for part in parts:
            device = part.device
            down_s, up_s = self._air_s(pace, device)
            devices[device] = DevicePace(
                scale * down_s,
                scale * up_s,
                scale * float(pace.compute_s[device]) if stretched else 0.0,
                math.ceil(pace.payload_bits * float(pace.tokens[device]) / 8),
            )
        expected = pace.downlink_s + pace.uplink_s + pace.compute_s
        longest_s = max((one.total_s for one in devices.values()), default=0.0)
        return BlockPlan(devices, scale * float(expected.max(initial=0.0)), longest_s + grace_s, scale)

    def _air_s(self, pace: BlockPace, device: int) -> tuple[float, float]:
        """Seconds on the air of a device, down and up, before the time scale."""
        if not self._traces:
            return float(pace.downlink_s[device]), float(pace.uplink_s[device])
        now_s = (time.monotonic() - self._began_s) / self._inventory.time_scale
        payload = pace.payload_bits * float(pace.tokens[device]) / 8
        share = float(pace.shares[device])
        down = self._traces[device][DOWNLINK].transfer_s(payload, now_s, share)
        up = self._traces[device][UPLINK].transfer_s(payload, now_s + down + float(pace.compute_s[device]), share)
        return down, up

    def saw(self, record: BlockRecord, pace: BlockPace) -> None:
        """Keep what the rates of a block say of its links, for those who decide by the past.

        Equation (4) solved for gamma / B, at the share that the device had and the rate that its payload achieved.

        Args:
            record: of the block's calls.
            pace: that it ran at.
        """
        by_name = {device.name: number for number, device in enumerate(self._inventory.devices)}
        seen = np.full((2, len(by_name)), np.nan) if self.seen_snr is None else self.seen_snr.copy()
        for device in record.devices:
            number = by_name[device.device]
            took_s = np.array([device.send_ms, device.receive_ms]) / (MS * record.time_scale)
            if device.outcome == "served" and (took_s > 0).all():
                share = float(pace.shares[number])
                rate_bps = pace.payload_bits * float(pace.tokens[number]) / took_s
                efficiency = np.minimum(rate_bps / (share * pace.bandwidth_hz), MOST_EFFICIENCY)
                seen[:, number] = share * np.expm1(efficiency * math.log(2.0))
        self.seen_snr = seen
