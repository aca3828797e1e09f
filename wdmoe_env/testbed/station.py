"""The base station: a runner whose experts are on other hosts.

One call goes to each device of a block, all are in flight at once, and a block has a deadline. What has not come then
counts as not chosen. An asyncio loop in a thread of its own holds the connections.
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
import weakref
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np

from wdmoe_env.moe.measuring import BlockPace, Measurement
from wdmoe_env.moe.runner import ExpertAnswer, ExpertCall
from wdmoe_env.physics.latency import Bool, Float
from wdmoe_env.testbed.block import BlockOnAir
from wdmoe_env.testbed.inventory import Inventory, read_inventory
from wdmoe_env.testbed.link import DeviceError, DeviceLink
from wdmoe_env.testbed.pace import BlockPlan, Pacer
from wdmoe_env.testbed.parts import parts_of
from wdmoe_env.testbed.records import BlockRecord
from wdmoe_env.testbed.weights import expected_digests

Value = TypeVar("Value")

JOIN_S = 60.0
"""How long a device may load while its base station starts, in seconds."""

GONE_S = 5.0
"""How long it may not be there at all."""

_KNOWN: weakref.WeakValueDictionary[str, TestbedRunner] = weakref.WeakValueDictionary()


class Shaper(Protocol):
    """Sets the rates of the links of a block."""

    def shape(self, plan: BlockPlan) -> None:
        """Set them, and come back once they hold.

        Args:
            plan: of the block that runs next.
        """


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
        floor_s: a block of empty calls, one to each device at once, median, seconds.
        listeners: functions that get a ``BlockRecord`` after each block, in the thread that ran it.
        shaper: sets the rates of links that the kernel shapes, before each block; ``None`` where programs pace them.
        rounds_link: what crosses is rounded here, to the bits of each call.
    """

    __test__ = False
    rounds_link = True

    def __init__(self, inventory: Inventory) -> None:
        self.inventory = inventory
        self.links = [DeviceLink(host, inventory) for host in inventory.devices]
        self.listeners: list[Callable[[BlockRecord], None]] = []
        self.floor_s = 0.0
        self.shaper: Shaper | None = None
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
        parts = parts_of(call, placement)
        plan = self._pacer.plan(pace, parts)
        if self.shaper is not None and pace is not None:
            self.shaper.shape(plan)
        block = BlockOnAir(self, call, parts, plan, pace, held=self.shaper is None)
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
        await self._measure_floor()

    async def _measure_floor(self, blocks: int = 20) -> None:
        """Measure a block of empty calls, one to each device at once.

        Raises:
            ConnectionError: a call failed.
        """
        times = []
        try:
            for _ in range(blocks):
                began_s = time.perf_counter()
                await asyncio.gather(*(link.empty_call() for link in self.links))
                times.append(time.perf_counter() - began_s)
        except DeviceError as error:
            raise ConnectionError(str(error)) from None
        self.floor_s = sorted(times)[len(times) // 2]

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


def _run_loop(loop: asyncio.AbstractEventLoop) -> None:
    """A loop's thread: it ends with the loop, which is closed."""
    try:
        loop.run_forever()
    finally:
        loop.close()


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
