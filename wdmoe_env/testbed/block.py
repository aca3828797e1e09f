"""One block under way: a call to each device that has work, all at once, with a deadline.

Pace: all payloads are on the air from the moment of the decision. Rows count as received by a device when their payload
would have crossed at the rate that the channel and the share give, or when they are really there if that is later; the
device waits for that moment, which its clock tells. An answer counts as received likewise, from the moment when its
computing ended. So nothing happens before its moment, and what the wire and its software need is hidden behind the air
where it is shorter, as on a radio, and shows where it is longer. Where the kernel shapes the links nothing waits: the
wire is as slow itself.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch

from wdmoe_env.moe.measuring import BlockPace, Measurement
from wdmoe_env.moe.runner import ExpertAnswer, ExpertCall
from wdmoe_env.testbed.link import DeviceError, DeviceLink
from wdmoe_env.testbed.pace import BlockPlan, DevicePace
from wdmoe_env.testbed.parts import Part
from wdmoe_env.testbed.records import MS, BlockRecord, DeviceRecord
from wdmoe_env.testbed.wire import FILLER_OF_REQUEST, RunReply, zeros_field


class Station(Protocol):
    """What a block needs of its base station."""

    @property
    def links(self) -> Sequence[DeviceLink]:
        """To each device, in order."""

    def number(self) -> int:
        """The number of a new call."""

    def wait_for(self, work: Coroutine[Any, Any, None]) -> None:
        """Run a coroutine in the loop of the connections, and wait for its end."""

    async def accept(self, link: DeviceLink) -> None:
        """Take a device back if it is as it should be; raises ``DeviceError``."""


@dataclass(frozen=True, slots=True, eq=False)
class _Message:
    """A call that is written and can be sent.

    Attributes:
        written_s: when it was.
    """

    part: Part
    link: DeviceLink
    pace: DevicePace
    record: DeviceRecord
    number: int
    digest: bytes
    content: bytes
    written_s: float


class BlockOnAir:
    """One block under way: its calls, its deadline, and what came.

    Args:
        station: whose devices serve it.
        call: the block.
        parts: what each device does.
        plan: what its calls are to take.
        pace: as the simulator has it; ``None`` for a block that runs as fast as it can.
        held: whether rows and answers are held back until their payload would have crossed.
    """

    def __init__(
        self,
        station: Station,
        call: ExpertCall,
        parts: Sequence[Part],
        plan: BlockPlan,
        pace: BlockPace | None,
        held: bool,
    ) -> None:
        self._station, self._call, self._plan = station, call, plan
        # First what is to be there first.
        self._parts = sorted(parts, key=lambda part: plan.of(part.device).downlink_s)
        self._paced, self._held = pace is not None, held and pace is not None
        self._records = {part.device: self._record(part) for part in parts}
        self._sums: list[tuple[Part, torch.Tensor]] = []
        self._ends_s: dict[int, float] = {}
        self._began_s = 0.0

    def run(self) -> tuple[ExpertAnswer, BlockRecord, Measurement]:
        """Run the block and wait for its end.

        Raises:
            ValueError: a message is above the bound of its device.
        """
        self._began_s = time.monotonic()
        until_s = self._began_s + self._plan.deadline_s
        self._station.wait_for(self._calls(until_s))
        end_s = max(self._ends_s.values(), default=self._began_s)
        outputs, served = self._gathered()
        _sleep_until(end_s)
        return self._finished(outputs, served, time.monotonic() - self._began_s)

    def _gathered(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Outputs (T, H) of what came, and which pairs (T, E) that was; in the thread and modes of the model."""
        like = self._call.hidden_states
        served = torch.zeros(self._call.selection.shape, dtype=torch.bool)
        outputs = torch.zeros(like.shape, dtype=torch.float32, device=like.device)
        for part, sums in sorted(self._sums, key=lambda one: one[0].device):  # one order, so that sums are the same
            rows = torch.from_numpy(part.rows)
            outputs.index_add_(0, rows.to(like.device), sums.to(like.device).float())
            served[rows[torch.from_numpy(part.pair_row)], torch.from_numpy(part.pair_expert)] = True
        return outputs.to(like.dtype), served

    def _record(self, part: Part) -> DeviceRecord:
        link, pace = self._station.links[part.device], self._plan.of(part.device)
        return DeviceRecord(
            link.host.name,
            "away",
            tokens=len(part.rows),
            pairs=len(part.pair_row),
            paced_send_ms=MS * pace.downlink_s,
            paced_receive_ms=MS * pace.uplink_s,
        )

    async def _calls(self, until_s: float) -> None:
        """Make all calls at once."""
        tasks = []
        try:
            for part in self._parts:
                if not self._station.links[part.device].away:
                    tasks.append(asyncio.ensure_future(self._serve(self._written(part), until_s)))
                    await asyncio.sleep(0)  # it is sent before the next is written
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()

    def _written(self, part: Part) -> _Message:
        """The call to a device, with the moment from which its rows count as received."""
        began_s, number = time.monotonic(), self._station.number()
        link, pace = self._station.links[part.device], self._plan.of(part.device)
        digest = link.digest or b""
        with torch.inference_mode():
            request = part.request(self._call, number, digest)
        filler = max(0, pace.payload_bytes - len(request.rows.data) - len(request.rows.scale))
        request.reply_filler_bytes, request.compute_s = filler, pace.compute_s
        request.not_before_s = self._began_s + pace.downlink_s + link.offset_s if self._held else 0.0
        content = request.SerializeToString() + zeros_field(FILLER_OF_REQUEST, filler)
        _check_bound(link, len(content))
        record = self._records[part.device]
        written_s = time.monotonic()
        record.serialise_ms, record.down_bytes = MS * (written_s - began_s), len(content)
        return _Message(part, link, pace, record, number, digest, content, written_s)

    async def _serve(self, message: _Message, until_s: float) -> None:
        """Ask a device, and take in what it answers; a device that fails is lost for now."""
        link, record, device = message.link, message.record, message.part.device
        try:
            sums, end_s = await self._ask(message, until_s)
        except DeviceError as error:
            record.outcome = error.outcome
            self._ends_s[device] = until_s if error.outcome == "late" else time.monotonic()
            link.lost(str(error), self._station.accept)
        else:
            record.outcome = "served"
            self._ends_s[device] = end_s
            self._sums.append((message.part, sums))
        record.total_ms = MS * (self._ends_s[device] - self._began_s)

    async def _ask(self, message: _Message, until_s: float) -> tuple[torch.Tensor, float]:
        """The sums of a device, and when they count as received.

        Raises:
            DeviceError: it did not serve in time or rightly.
        """
        link = message.link
        answer = await link.run(message.content, until_s - time.monotonic())
        came_s = time.monotonic()
        message.record.up_bytes = len(answer)
        reply, sums = self._read(answer, message)
        link.heard(message.written_s, came_s, reply)
        end_s = came_s
        if self._held:
            end_s = max(came_s, reply.ended_s - link.offset_s + message.pace.uplink_s)
        message.record.serialise_ms += MS * (reply.decode_s + reply.encode_s + time.monotonic() - came_s)
        _write_times(message.record, reply, link.offset_s, self._began_s, end_s)
        if end_s > until_s:
            raise DeviceError("late", f"{link.host.name} did not answer in time")
        return sums, end_s

    def _read(self, answer: bytes, message: _Message) -> Any:
        """The reply and its sums.

        Raises:
            DeviceError: it is not what was asked for.
        """
        try:
            reply = RunReply.FromString(answer)
            return reply, message.part.read(reply, self._call, message.number, message.digest)
        except Exception as error:  # whatever bytes of unknown content lead to
            raise DeviceError("corrupt", f"{message.link.host.name}: {error}") from None

    def _finished(
        self, outputs: torch.Tensor, served: torch.Tensor, latency_s: float
    ) -> tuple[ExpertAnswer, BlockRecord, Measurement]:
        scale = self._plan.time_scale
        latencies = np.zeros(len(self._station.links))
        for device, end_s in self._ends_s.items():
            latencies[device] = (end_s - self._began_s) / scale
        records = tuple(self._records[part.device] for part in sorted(self._parts, key=lambda part: part.device))
        record = BlockRecord(
            number=self._station.number(),
            block=self._call.block,
            paced=self._paced,
            time_scale=scale,
            latency_ms=MS * latency_s,
            expected_ms=MS * self._plan.expected_s,
            deadline_ms=MS * self._plan.deadline_s,
            devices=records,
        )
        late = sum(device.outcome == "late" for device in records)
        answer = ExpertAnswer(outputs, served, {"block": latency_s})
        return answer, record, Measurement(latency_s / scale, latencies, served.numpy(), late)


def _write_times(record: DeviceRecord, reply: Any, offset_s: float, began_s: float, end_s: float) -> None:
    """Where the time of a call went, from the start of the block until it counted as received."""
    record.send_ms = MS * (reply.ready_s - offset_s - began_s)
    record.queue_ms = MS * reply.queue_s
    record.compute_ms = MS * (reply.ended_s - reply.began_s)
    record.receive_ms = MS * (end_s - reply.ended_s + offset_s)


def _check_bound(link: DeviceLink, size: int) -> None:
    """Refuse a message that its device would refuse.

    Raises:
        ValueError: it is above the bound.
    """
    most = link.description.max_message_bytes
    if size > most:
        raise ValueError(
            f"expected messages of at most {most:,} bytes, the bound of {link.host.name}, got {size:,}: start it with "
            "a greater --max-message-mib, or send fewer tokens"
        )


def _sleep_until(moment_s: float) -> None:
    remaining = moment_s - time.monotonic()
    if remaining > 0:
        time.sleep(remaining)
