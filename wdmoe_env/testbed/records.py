"""What became of a block, device by device: for JSON Lines, for the live view, and for Prometheus."""

from __future__ import annotations

import json
import threading
from collections import defaultdict
from dataclasses import asdict, dataclass

MS = 1e3
OUTCOMES = ("served", "late", "gone", "corrupt", "refused", "away")
PHASES = ("serialise", "send", "queue", "compute", "receive")


@dataclass(slots=True)
class DeviceRecord:
    """One device in one block. Times are of the wall's clock, not divided by the time scale.

    Attributes:
        device: its name.
        outcome: one of ``OUTCOMES``.
        tokens: rows that it got.
        pairs: of row and expert that it was asked for.
        down_bytes: of the call.
        up_bytes: of the answer.
        serialise_ms: writing the call and reading the answer at the base station, reading and writing at the device.
        send_ms: from the start of the block until its rows counted as received.
        paced_send_ms: what that was to take; 0 without a pace.
        queue_ms: waiting for other calls of the device; without a stretch, for a processor as well.
        compute_ms: computing, with what was stretched.
        receive_ms: from the end of the computing until the answer counted as received.
        paced_receive_ms: what that was to take.
        total_ms: from the start of the block until the answer counted as received.
    """

    device: str
    outcome: str
    tokens: int = 0
    pairs: int = 0
    down_bytes: int = 0
    up_bytes: int = 0
    serialise_ms: float = 0.0
    send_ms: float = 0.0
    paced_send_ms: float = 0.0
    queue_ms: float = 0.0
    compute_ms: float = 0.0
    receive_ms: float = 0.0
    paced_receive_ms: float = 0.0
    total_ms: float = 0.0


@dataclass(frozen=True, slots=True)
class BlockRecord:
    """One block of one call.

    Attributes:
        number: of the call, counted from 1.
        block: of the model.
        paced: whether it ran at a pace; a pass that only scores a text does not.
        time_scale: what the times are to be divided by.
        latency_ms: of the whole block, by the wall's clock.
        expected_ms: what the simulator says, times the time scale.
        deadline_ms: when it would have been given up.
        devices: those that were asked for something.
    """

    number: int
    block: int
    paced: bool
    time_scale: float
    latency_ms: float
    expected_ms: float
    deadline_ms: float
    devices: tuple[DeviceRecord, ...]

    @property
    def misses(self) -> int:
        """Devices that did not serve."""
        return sum(device.outcome != "served" for device in self.devices)

    def line(self) -> str:
        """The record as a line of JSON."""
        return json.dumps({**asdict(self), "misses": self.misses}, separators=(",", ":"))


class Counters:
    """Sums over blocks, in Prometheus's text format. Blocks come from one thread, readers from others."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._sums: dict[tuple[str, tuple[tuple[str, str], ...]], float] = defaultdict(float)

    def add(self, record: BlockRecord) -> None:
        """Count a block."""
        with self._lock:
            self._add("blocks_total", 1.0)
            self._add("block_seconds_total", record.latency_ms / MS)
            for device in record.devices:
                self._add("calls_total", 1.0, device=device.device, outcome=device.outcome)
                self._add("bytes_total", device.down_bytes, device=device.device, direction="down")
                self._add("bytes_total", device.up_bytes, device=device.device, direction="up")
                for phase in PHASES:
                    seconds = getattr(device, f"{phase}_ms") / MS
                    self._add("phase_seconds_total", seconds, device=device.device, phase=phase)

    def _add(self, name: str, value: float, **labels: str) -> None:
        self._sums[name, tuple(labels.items())] += value

    def text(self) -> str:
        """What a scraper reads."""
        with self._lock:
            sums = sorted(self._sums.items())
        lines, seen = [], set()
        for (name, labels), value in sums:
            if name not in seen:
                lines.append(f"# TYPE wdmoe_testbed_{name} counter")
                seen.add(name)
            inside = ",".join(f"{key}={json.dumps(label)}" for key, label in labels)
            lines.append(f"wdmoe_testbed_{name}{'{' + inside + '}' if inside else ''} {value:.9g}")
        return "\n".join(lines) + "\n"
