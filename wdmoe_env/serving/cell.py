"""One cell: its queue, its slots and its clock. Nothing here knows of a model.

A request waits from its arrival until a pass begins while a slot is free, first come first served. Its prompt is read
in chunks of at most C tokens; the pass that reads the last of them says the first token of the answer. Each further
pass reads one token and says the next, so that a request of P and G tokens takes ceil(P / C) + G - 1 passes. All that
happens to requests happens between two passes; the clock goes on with every block.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from wdmoe_env.physics.latency import Float
from wdmoe_env.serving.arrivals import Requests, Whole
from wdmoe_env.serving_config import ServingConfig

LATELY_S = 1.0
"""Over which the observed rate of arrivals is counted."""

QUEUE_ENTRIES = ("waiting", "running", "oldest_ms", "arrivals_hz")
"""Of the observation ``queue``: requests that wait and that run, age of the oldest in ms, arrivals a second lately."""


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """What the slots of a cell read in the next pass.

    Attributes:
        request: (S,) number of the request in each slot, -1 where it is empty.
        start: (S,) tokens of it that the cache holds.
        count: (S,) tokens that the pass reads of it, 0 where the slot is empty.
        prompt: (S,) tokens of its prompt.
    """

    request: Whole
    start: Whole
    count: Whole
    prompt: Whole


class Cell:
    """Requests of one episode under way.

    Args:
        requests: R of them, in the order of their arrival.
        config: slots, chunk and horizon.

    Attributes:
        requests: as given.
        clock_s: simulated time since the episode began.
        first_token_s: (R,) when each said its first token; NaN before.
        finish_s: (R,) when each said its last; NaN before.
        start_s: (R,) when each took its slot; NaN before.
        added_nll: (R, 2) nats that the text of each lost to the own routing, of prompt and answer, summed over tokens.
        passes: number of passes that have begun.
    """

    def __init__(self, requests: Requests, config: ServingConfig) -> None:
        self.requests, self._config = requests, config
        self._arrival_s: list[float] = requests.arrival_s.tolist()  # one number of a list is found sooner
        count = len(self._arrival_s)
        self.clock_s, self.passes = 0.0, 0
        self.start_s, self.first_token_s, self.finish_s = (np.full(count, np.nan) for _ in range(3))
        self.added_nll = np.zeros((count, 2))
        self._read = np.zeros(count, dtype=np.int64)
        self._slots = np.full(config.slots, -1, dtype=np.int64)
        self._admitted = 0
        self._finished = 0
        self._first_present = 0

    @property
    def done(self) -> bool:
        """Whether all requests have been served."""
        return self._finished == len(self.finish_s)

    @property
    def out_of_time(self) -> bool:
        """Whether the horizon has been reached, or nothing more will come before it."""
        horizon_s = self._config.horizon_s
        if horizon_s is None:
            return False
        idle = (self._slots < 0).all() and self._admitted < len(self.finish_s)
        return self.clock_s >= horizon_s or bool(idle and self._next_arrival_s() >= horizon_s)

    def begin_pass(self) -> tuple[Rows, NDArray[np.int64]]:
        """Let those who wait take free slots; where nobody is there, time jumps to the next arrival.

        Returns:
            What the pass reads, and the slots (n,) that were taken.
        """
        if (self._slots < 0).all():
            self.clock_s = max(self.clock_s, self._next_arrival_s())
        self.passes += 1
        taken = []
        for slot in np.flatnonzero(self._slots < 0):
            if self._admitted == len(self.finish_s) or self._next_arrival_s() > self.clock_s:
                break
            self._slots[slot] = self._admitted
            self.start_s[self._admitted] = self.clock_s
            self._admitted += 1
            taken.append(slot)
        return self._rows(), np.array(taken, dtype=np.int64)

    def _next_arrival_s(self) -> float:
        return self._arrival_s[self._admitted]

    def _rows(self) -> Rows:
        busy, request = self._slots >= 0, np.maximum(self._slots, 0)
        start, prompt = self._read[request], self.requests.prompt[request]
        count = np.where(start < prompt, np.minimum(self._config.chunk, prompt - start), 1)
        return Rows(self._slots.copy(), *(np.where(busy, value, 0) for value in (start, count, prompt)))

    def advance(self, seconds: float) -> float:
        """Let time go on within a pass.

        Args:
            seconds: of a block.

        Returns:
            Time in the system of all requests together: their number, integrated over these seconds, in s.
        """
        begin, end = self.clock_s, self.clock_s + seconds
        here, there = bisect_right(self._arrival_s, begin), bisect_right(self._arrival_s, end)
        later_s = float((end - self.requests.arrival_s[here:there]).sum()) if there > here else 0.0
        self.clock_s = end
        return (here - self._finished) * seconds + later_s

    def end_pass(self, rows: Rows) -> NDArray[np.int64]:
        """Note what the pass has read; what has finished leaves its slot.

        Args:
            rows: as ``begin_pass`` gave them.

        Returns:
            The slots (n,) that became free.
        """
        busy = np.flatnonzero(rows.request >= 0)
        request = rows.request[busy]
        self._read[request] += rows.count[busy]
        said = self._read[request] >= self.requests.prompt[request]
        first = request[said & np.isnan(self.first_token_s[request])]
        self.first_token_s[first] = self.clock_s
        ended = self._read[request] == self.requests.rows[request]
        self.finish_s[request[ended]] = self.clock_s
        self._finished += int(ended.sum())
        self._slots[busy[ended]] = -1
        while self._first_present < self._admitted and not np.isnan(self.finish_s[self._first_present]):
            self._first_present += 1
        return busy[ended]

    def queue(self) -> Float:
        """The observation (4,) of ``QUEUE_ENTRIES``."""
        arrived = bisect_right(self._arrival_s, self.clock_s)
        lately = arrived - bisect_right(self._arrival_s, self.clock_s - LATELY_S)
        running = self._admitted - self._finished
        oldest = self._first_present < arrived
        age_s = self.clock_s - self._arrival_s[self._first_present] if oldest else 0.0
        return np.array([arrived - self._admitted, running, 1e3 * age_s, lately / LATELY_S], dtype=np.float64)

    def system_s(self) -> Float:
        """Time (R,) in s that each request was in the system until now, finished or not; 0 for one still to come."""
        until = np.where(np.isnan(self.finish_s), self.clock_s, self.finish_s)
        return np.maximum(until - self.requests.arrival_s, 0.0)
