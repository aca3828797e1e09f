"""The base station: a runner whose experts are on other hosts.

One call goes to each device of a block, all are in flight at once, and a block has a deadline. What has not come then
counts as not chosen. An asyncio loop in a thread of its own holds the connections.

Pace: rows count as received by a device when their payload would have crossed at the rate that the channel and the
share give, or when they are really there if that is later; the device waits for that moment, which its clock tells. An
answer counts as received likewise. So what the wire and its software need is hidden behind the air where it is shorter,
as on a radio, and shows where it is longer.
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
import weakref
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from wdmoe_env.moe.measuring import BlockPace, Measurement
from wdmoe_env.moe.runner import ExpertAnswer, ExpertCall
from wdmoe_env.physics.latency import Bool, Float
from wdmoe_env.testbed.inventory import Inventory, read_inventory
from wdmoe_env.testbed.link import DeviceError, DeviceLink
from wdmoe_env.testbed.pace import DevicePace, Pacer
from wdmoe_env.testbed.parts import Part, parts_of
from wdmoe_env.testbed.records import MS, BlockRecord, DeviceRecord
from wdmoe_env.testbed.weights import expected_digests
from wdmoe_env.testbed.wire import RunReply, RunRequest

Value = TypeVar("Value")

JOIN_S = 60.0
"""How long a device may load while its base station starts, in seconds."""

GONE_S = 5.0
"""How long it may not be there at all."""

_KNOWN: weakref.WeakValueDictionary[str, TestbedRunner] = weakref.WeakValueDictionary()
_FILLER = bytes(2**20)


class _Here(threading.local):
    """What a thread announced, and what came of it."""

    pace: BlockPace | None = None
    measurement: Measurement | None = None


class TestbedRunner:
    """Runs the experts of a split model on the devices of an inventory.

    Args:
        inventory: the devices.

    Attributes:
        inventory: as given.
        links: to each device, in order.
        listeners: functions that get a ``BlockRecord`` after each block, in the thread that ran it.
        rounds_link: what crosses is rounded here, to the bits of each call.
    """

    __test__ = False
    rounds_link = True

    def __init__(self, inventory: Inventory) -> None:
        self.inventory = inventory
        self.links = [DeviceLink(host, inventory) for host in inventory.devices]
        self.listeners: list[Callable[[BlockRecord], None]] = []
        self._pacer = Pacer(inventory)
        self._here = _Here()
        self._users, self._lock, self._number = 0, threading.Lock(), 0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._model: Any = None
        self._holder = np.zeros((0, 0, 0))
        self._process = os.getpid()

    def open(self, model: Any) -> None:
        """Connect, and check that every expert is held and that weights, types and widths agree.

        Args:
            model: a ``SplitModel``, with or without the weights of its experts.

        Raises:
            ValueError: something does not agree; the message says what.
            ConnectionError: a device is not there, or still loads after ``JOIN_S``.
        """
        with self._lock:
            self._users += 1
            if self._users > 1:
                return
        self._model = model
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=_run_loop, args=(self._loop,), name="wdmoe-testbed", daemon=True)
        self._thread.start()
        try:
            self._await(self._join())
            self._holder = self._holders()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Let go of the connections once nobody uses them; more than once does no harm."""
        with self._lock:
            self._users = max(0, self._users - 1)
            loop = self._loop
            if self._users or loop is None:
                return
            self._loop = None
        if self._process == os.getpid():
            asyncio.run_coroutine_threadsafe(self._leave(), loop).result(10.0)
            loop.call_soon_threadsafe(loop.stop)
            if self._thread is not None:
                self._thread.join(10.0)

    def __reduce__(self) -> tuple[Callable[[str], TestbedRunner], tuple[str]]:
        """A copy is the process's one runner of that inventory."""
        return testbed_runner, (str(self.inventory.path),)

    def announce(self, pace: BlockPace) -> None:
        """Say how the next block's links and devices behave; see ``MeasuringRunner``."""
        self._here.pace = pace

    def measured(self) -> Measurement:
        """What the clock said of the last block; see ``MeasuringRunner``.

        Raises:
            RuntimeError: no block has run at a pace in this thread.
        """
        measurement = self._here.measurement
        if measurement is None:
            raise RuntimeError("expected a block that was announced and run in this thread before it is measured")
        return measurement

    def available(self) -> Bool:
        """Whether each device (U,) is there now."""
        return np.array([not link.away for link in self.links])

    def observed_snr(self) -> Float | None:
        """The links (2, U) as they were measured last; see ``MeasuringRunner``."""
        return self._pacer.seen_snr if self.inventory.observe == "measured" else None

    def check_placement(self, placement: Float) -> None:
        """Refuse a placement (I, E, U) that the devices do not hold.

        Raises:
            ValueError: another number of devices, or an expert that its device does not hold.
        """
        if placement.shape != self._holder.shape:
            wanted, got = self._holder.shape, placement.shape
            raise ValueError(f"expected a placement on the {wanted[2]} devices of the inventory, got one on {got[2]}")
        wrong = np.argwhere((placement > 0) & (self._holder == 0))
        if len(wrong):
            block, expert, device = wrong[0]
            name = self.links[device].host.name
            raise ValueError(f"expected {name} to hold expert {expert} of block {block}, as placed; it does not")

    def run(self, call: ExpertCall) -> ExpertAnswer:
        """Run the selected experts of one block on the devices.

        Raises:
            ValueError: a message above the bound of a device.
            RuntimeError: the runner is not open.
        """
        pace, self._here.pace = self._here.pace, None
        placement = self._holder[call.block] if pace is None else pace.placement
        block = _BlockOnAir(self, call, pace, parts_of(call, placement))
        answer, record, measurement = block.run()
        if pace is not None:
            self._here.measurement = measurement
            self._pacer.saw(record, pace)
        for listener in self.listeners:
            listener(record)
        return answer

    def number(self) -> int:
        """The number of a new call."""
        with self._lock:
            self._number += 1
            return self._number

    @property
    def pacer(self) -> Pacer:
        """Says how long payloads take."""
        return self._pacer

    async def accept(self, link: DeviceLink) -> None:
        """Take a device, new or back, if it is as it should be.

        Raises:
            DeviceError: it is not.
        """
        description = await link.describe()
        problem = link.problem_of(description, str(self._model.dtype).removeprefix("torch."), self._model.hidden_size)
        if problem:
            raise DeviceError("refused", problem)
        link.description, link.away = description, ""

    def wait_for(self, work: Coroutine[Any, Any, Value]) -> Value:
        """The result of a coroutine of the loop.

        Raises:
            RuntimeError: the runner is not open, or belongs to the process that this one was forked from.
        """
        return self._await(work)

    def _await(self, work: Coroutine[Any, Any, Value]) -> Value:
        if self._loop is None or self._process != os.getpid():
            work.close()
            raise RuntimeError("expected a runner that was opened in this process")
        future: Future[Value] = asyncio.run_coroutine_threadsafe(work, self._loop)
        return future.result()

    async def _join(self) -> None:
        """Connect to every device, check what it holds, and measure it."""
        for link in self.links:
            link.connect()
        outcomes = await asyncio.gather(*map(self._joined, self.links), return_exceptions=True)
        failed = [outcome for outcome in outcomes if isinstance(outcome, BaseException)]
        if failed:
            error = failed[0]
            raise ConnectionError(str(error)) if isinstance(error, DeviceError) else error
        for link in self.links:
            self._check_weights(link)
        for link in self.links:  # in turn, so that they do not disturb each other
            try:
                await link.measure()
            except DeviceError as error:
                raise ConnectionError(str(error)) from None

    async def _joined(self, link: DeviceLink) -> None:
        began_s = time.monotonic()
        while True:
            try:
                await self.accept(link)
                return
            except DeviceError as error:
                patience_s = JOIN_S if "JOINING" in str(error) else GONE_S if error.outcome == "gone" else 0.0
                if time.monotonic() - began_s > patience_s:
                    raise
            await asyncio.sleep(0.1)

    def _check_weights(self, link: DeviceLink) -> None:
        """Refuse a device that holds other weights than the checkpoint of the base station.

        Raises:
            ValueError: it does.
        """
        name = self._model.name
        expected = None if name is None else expected_digests(name, str(self._model.dtype).removeprefix("torch."))
        blocks = link.description.blocks
        if len(blocks) != self._model.num_blocks:
            raise ValueError(
                f"expected {link.host.name} to hold experts of {self._model.num_blocks} blocks, got {len(blocks)}"
            )
        for number, block in enumerate(blocks):
            for expert, digest in zip(block.experts, block.digests, strict=True):
                if expected is not None and expected[number].get(expert) != digest:
                    raise ValueError(f"{link.host.name} holds other weights of expert {expert} of block {number}")
        link.digest = link.description.digest

    def _holders(self) -> Float:
        """(I, E, U) 1 where a device holds an expert.

        Raises:
            ValueError: nobody holds one.
        """
        table = np.zeros((self._model.num_blocks, self._model.num_experts, len(self.links)))
        for device, link in enumerate(self.links):
            for number, block in enumerate(link.description.blocks):
                table[number, list(block.experts), device] = 1.0
        missing = np.argwhere(table.sum(axis=2) == 0)
        if len(missing):
            block, expert = missing[0]
            raise ValueError(f"expected a device for every expert; none holds expert {expert} of block {block}")
        return table

    async def _leave(self) -> None:
        await asyncio.gather(*(link.close() for link in self.links))


@dataclass(frozen=True, slots=True, eq=False)
class _Message:
    """A call that is written and can be sent."""

    part: Part
    link: DeviceLink
    pace: DevicePace
    record: DeviceRecord
    number: int
    digest: bytes
    content: bytes


class _BlockOnAir:
    """One block under way: its calls, its deadline, and what came.

    Args:
        runner: whose devices serve it.
        call: the block.
        pace: of its links and devices; ``None`` runs as fast as it can.
        parts: what each device does.
    """

    def __init__(self, runner: TestbedRunner, call: ExpertCall, pace: BlockPace | None, parts: list[Part]) -> None:
        self._runner, self._call = runner, call
        self._plan = runner.pacer.plan(pace, parts)
        # The longest first: the others' messages are written while its payload is on the air.
        self._parts = sorted(parts, key=lambda part: -self._plan.of(part.device).total_s)
        self._paced = pace is not None
        self._records = {part.device: self._record(part) for part in parts}
        self._sums: list[tuple[Part, torch.Tensor]] = []
        self._ends_s: dict[int, float] = {}
        self._began_s = 0.0

    def run(self) -> tuple[ExpertAnswer, BlockRecord, Measurement]:
        """Run the block and wait for its end."""
        self._began_s = time.monotonic()
        until_s = self._began_s + self._plan.deadline_s
        self._runner.wait_for(self._calls(until_s))
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
        link, pace = self._runner.links[part.device], self._plan.of(part.device)
        return DeviceRecord(
            link.host.name,
            "away",
            tokens=len(part.rows),
            pairs=len(part.pair_row),
            paced_send_ms=MS * pace.downlink_s,
            paced_receive_ms=MS * pace.uplink_s,
        )

    async def _calls(self, until_s: float) -> None:
        """Write all messages, then send them: from then on their payloads are on the air, whatever the wire needs.

        Raises:
            ValueError: a message is above the bound of its device.
        """
        messages = [self._written(part) for part in self._parts if not self._runner.links[part.device].away]
        sent_s = time.monotonic()
        tasks = [asyncio.ensure_future(self._serve(message, sent_s, until_s)) for message in messages]
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()

    def _written(self, part: Part) -> _Message:
        """The call to a device, but for the moment from which its rows count as received."""
        began_s, number = time.monotonic(), self._runner.number()
        link, pace = self._runner.links[part.device], self._plan.of(part.device)
        digest = link.digest or b""
        request = part.request(self._call, number, digest)
        rows_bytes = len(request.rows.data) + len(request.rows.scale)
        request.filler = _filler(max(0, pace.payload_bytes - rows_bytes))
        request.reply_filler_bytes = len(request.filler)
        request.compute_s = pace.compute_s
        content = request.SerializeToString()
        _check_bound(link, len(content))
        record = self._records[part.device]
        record.serialise_ms = MS * (time.monotonic() - began_s)
        return _Message(part, link, pace, record, number, digest, content)

    async def _serve(self, message: _Message, sent_s: float, until_s: float) -> None:
        """Ask a device, and take in what it answers; a device that fails is lost for now."""
        link, record, device = message.link, message.record, message.part.device
        try:
            sums, end_s = await self._ask(message, sent_s, until_s)
        except DeviceError as error:
            record.outcome = error.outcome
            self._ends_s[device] = until_s if error.outcome == "late" else time.monotonic()
            link.lost(str(error), self._runner.accept)
        else:
            record.outcome = "served"
            self._ends_s[device] = end_s
            self._sums.append((message.part, sums))
        record.total_ms = MS * (self._ends_s[device] - self._began_s)

    async def _ask(self, message: _Message, sent_s: float, until_s: float) -> tuple[torch.Tensor, float]:
        """The sums of a device, and when they count as received.

        Raises:
            DeviceError: it did not serve in time or rightly.
        """
        link, pace, record = message.link, message.pace, message.record
        not_before_s = sent_s + pace.downlink_s + link.offset_s if self._paced else 0.0
        # Messages that follow each other are one message to Protocol Buffers.
        content = message.content + RunRequest(not_before_s=not_before_s).SerializeToString()
        record.down_bytes = len(content)
        answer = await link.call("Run", content, until_s - time.monotonic())
        came_s = time.monotonic()
        record.up_bytes = len(answer)
        reply, sums = self._read(answer, message)
        link.heard(sent_s, came_s, reply)
        end_s = max(came_s, reply.sent_s - link.offset_s + pace.uplink_s) if self._paced else came_s
        _write_times(record, reply, link.offset_s, sent_s, came_s, end_s)
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
        latencies = np.zeros(len(self._runner.links))
        for device, end_s in self._ends_s.items():
            latencies[device] = (end_s - self._began_s) / scale
        records = tuple(self._records[part.device] for part in sorted(self._parts, key=lambda part: part.device))
        record = BlockRecord(
            number=self._runner.number(),
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


def _write_times(record: DeviceRecord, reply: Any, offset_s: float, sent_s: float, came_s: float, end_s: float) -> None:
    """Where the time of a call went."""
    record.serialise_ms += MS * (reply.decode_s + reply.encode_s + time.monotonic() - came_s)
    record.send_ms = MS * (reply.ready_s - offset_s - sent_s)
    record.queue_ms = MS * reply.queue_s
    record.compute_ms = MS * (reply.ended_s - reply.began_s)
    record.receive_ms = MS * (end_s - reply.sent_s + offset_s)


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


def _run_loop(loop: asyncio.AbstractEventLoop) -> None:
    """A loop's thread: it ends with the loop, which is closed."""
    try:
        loop.run_forever()
    finally:
        loop.close()


def _sleep_until(moment_s: float) -> None:
    remaining = moment_s - time.monotonic()
    if remaining > 0:
        time.sleep(remaining)


def _filler(count: int) -> bytes:
    return _FILLER[:count] if count <= len(_FILLER) else bytes(count)


def testbed_runner(argument: str) -> TestbedRunner:
    """The process's one runner of an inventory, open or not.

    Args:
        argument: path of the inventory.

    Raises:
        ValueError, OSError: no inventory that can be read.
    """
    if not argument:
        raise ValueError("runner 'testbed' takes the path of an inventory behind a colon, got nothing")
    path = str(Path(argument).expanduser().absolute())
    inventory = read_inventory(path)
    known = _KNOWN.get(path)
    if known is None or known.inventory != inventory:
        known = TestbedRunner(inventory)
        _KNOWN[path] = known
    return known
