"""Recorded links in mahimahi's format: when a packet of 1,500 bytes may pass.

A file holds one whole number a line, the millisecond of a chance to send 1,500 bytes. Numbers do not fall, may repeat,
and the last is above 0; the file begins again after it. A chance that nobody uses is lost. One line a millisecond is
12 Mbit/s. Downlink and uplink are files of their own. (mahimahi's manual page ``mm-link`` and its ``link_queue.cc``.)
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from wdmoe_env.physics.latency import Float
from wdmoe_env.reading import numbered_lines, read_text, shown_path

PACKET_BYTES = 1500
MOST_CHANCES = 10_000_000


@dataclass(frozen=True, slots=True, eq=False)
class LinkTrace:
    """When a link can send.

    Attributes:
        chances_ms: (K,) whole milliseconds of the chances, in order, of one round.
    """

    chances_ms: NDArray[np.int64]

    @property
    def period_s(self) -> float:
        """Length of a round, seconds."""
        return float(self.chances_ms[-1]) / 1e3

    @property
    def rate_bps(self) -> float:
        """Mean rate, bit/s."""
        return 8.0 * PACKET_BYTES * len(self.chances_ms) / self.period_s

    def transfer_s(self, num_bytes: float, start_s: float, share: float = 1.0) -> float:
        """Seconds from ``start_s`` until so many bytes have passed.

        Args:
            num_bytes: of the payload.
            start_s: seconds since the trace began.
            share: part of every chance that is this payload's.
        """
        if num_bytes <= 0:
            return 0.0
        needed = int(np.ceil(num_bytes / (PACKET_BYTES * share) - 1e-9))
        rounds, at_ms = divmod(1e3 * start_s, float(self.chances_ms[-1]))
        first = int(np.searchsorted(self.chances_ms, at_ms, side="left"))
        last = first + needed - 1
        more, place = divmod(last, len(self.chances_ms))
        end_ms = (rounds + more) * float(self.chances_ms[-1]) + float(self.chances_ms[place])
        return max(0.0, end_ms / 1e3 - start_s)


def read_trace(path: Path) -> LinkTrace:
    """A recorded link.

    Raises:
        ValueError: a line that is no whole number of milliseconds, one that falls, or no chance after 0.
        OSError: the file cannot be read.
    """
    chances: list[int] = []
    for number, line in numbered_lines(read_text(path)):
        text = line.strip()
        if not text.isdecimal() or len(text) > 12:
            raise ValueError(
                f"{shown_path(path)}, line {number}: expected a whole number of milliseconds, got {text!r}"
            )
        chances.append(int(text))
        if len(chances) > 1 and chances[-1] < chances[-2]:
            raise ValueError(f"{shown_path(path)}, line {number}: expected at least {chances[-2]}, got {chances[-1]}")
    if not chances or not chances[-1]:
        raise ValueError(f"{shown_path(path)}: expected chances to send after millisecond 0, got none")
    return LinkTrace(np.array(chances, dtype=np.int64))


def trace_of_rates(rates_bps: Float, interval_s: float) -> LinkTrace:
    """The chances of a link whose rate changes.

    Args:
        rates_bps: (I,) bit/s of each interval.
        interval_s: seconds of an interval; whole milliseconds are kept of it.

    Raises:
        ValueError: an interval below a millisecond, or rates so low or high that there are no chances or too many.
    """
    step_ms = round(1e3 * interval_s)
    if step_ms < 1:
        raise ValueError(f"expected an interval of at least 1 ms, got {interval_s} s")
    per_ms = np.repeat(np.asarray(rates_bps, dtype=np.float64), step_ms) / (8e3 * PACKET_BYTES)
    passed = np.floor(np.cumsum(per_ms) + 1e-9).astype(np.int64)
    if not 0 < passed[-1] <= MOST_CHANCES:
        raise ValueError(f"expected rates with 1 to {MOST_CHANCES:,} packets in all, got {passed[-1]}")
    counts = np.diff(passed, prepend=0)
    return LinkTrace(np.repeat(np.arange(1, len(counts) + 1), counts))


def trace_text(trace: LinkTrace) -> str:
    """The file of a recorded link."""
    return "".join(f"{chance}\n" for chance in trace.chances_ms)
