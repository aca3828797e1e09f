"""The base station's end of the wire to one device: calls, the device's clock, and what becomes of a device that fails.

A device that is late, gone, restarted or answers wrongly is away. It is asked again after a while that doubles each
time, and is back as soon as it describes itself as it should; nothing else is restarted.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from typing import Any

from wdmoe_env import __version__
from wdmoe_env.checks import shown
from wdmoe_env.optional import optional
from wdmoe_env.testbed.inventory import Host, Inventory
from wdmoe_env.testbed.security import channel_credentials
from wdmoe_env.testbed.wire import (
    PROTOCOL,
    SERVICE,
    STATES,
    DescribeRequest,
    Description,
    RunRequest,
    TensorMessage,
    state_name,
)

with optional("grpcio", extra="testbed"):
    import grpc
    from google.protobuf.message import DecodeError

MOST_BYTES = 2**31 - 1
FIRST_RETRY_S, LAST_RETRY_S = 0.1, 5.0
CALL_S = 3.0
"""How long a description may take, in seconds."""

_OPTIONS = [
    ("grpc.max_receive_message_length", MOST_BYTES),
    ("grpc.max_send_message_length", MOST_BYTES),
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.keepalive_time_ms", 1000),
    ("grpc.keepalive_timeout_ms", 1000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
]


class DeviceError(Exception):
    """A device did not serve a call.

    Args:
        outcome: ``"late"``, ``"gone"``, ``"corrupt"`` or ``"refused"``.
        reason: one sentence.
    """

    def __init__(self, outcome: str, reason: str) -> None:
        super().__init__(reason)
        self.outcome = outcome


@dataclass(slots=True, eq=False)
class DeviceLink:
    """A device as the base station knows it.

    Attributes:
        host: of the inventory.
        inventory: that it stands in.
        description: the last good one.
        digest: what it is to hold; ``None`` before the first description was accepted.
        offset_s: the device's clock less this one's, seconds.
        floor_s: an empty call, median, seconds.
        rate_bps: measured bit/s, downlink and uplink.
        away: why it is away; empty where it is there.
        losses: how often it was lost.
    """

    host: Host
    inventory: Inventory
    description: Any = None
    digest: bytes | None = None
    offset_s: float = 0.0
    floor_s: float = 0.0
    rate_bps: tuple[float, float] = (0.0, 0.0)
    away: str = "not asked yet"
    losses: int = 0
    _channel: Any = None
    _calls: dict[str, Any] = field(default_factory=dict)
    _retry: asyncio.Task[None] | None = None
    _stream: Any = None
    _turn: asyncio.Lock = field(default_factory=asyncio.Lock)

    def connect(self) -> None:
        """Make the channel; in the loop's thread.

        Raises:
            ValueError, OSError: credentials that cannot be read.
        """
        if self.inventory.tls is None:
            self._channel = grpc.aio.insecure_channel(self.host.address, options=_OPTIONS)
        else:
            credentials = channel_credentials(self.inventory.tls)
            self._channel = grpc.aio.secure_channel(self.host.address, credentials, options=_OPTIONS)
        self._calls = {name: self._channel.unary_unary(f"/{SERVICE}/{name}") for name in ("Describe", "Run")}
        self._calls["RunMany"] = self._channel.stream_stream(f"/{SERVICE}/RunMany")

    async def close(self) -> None:
        """Stop asking and let go of the channel."""
        if self._retry is not None:
            self._retry.cancel()
        self._drop_stream()
        if self._channel is not None:
            await self._channel.close()

    async def call(self, name: str, message: bytes, timeout_s: float) -> bytes:
        """The answer to a call.

        Args:
            name: ``"Describe"`` or ``"Run"``.
            message: the request.
            timeout_s: how long it may take, in seconds.

        Raises:
            DeviceError: there was none.
        """
        try:
            answer: bytes = await self._calls[name](message, timeout=max(timeout_s, 1e-3))
        except grpc.aio.AioRpcError as error:
            raise DeviceError(*self._what_failed(error)) from None
        return answer

    async def run(self, message: bytes, timeout_s: float) -> bytes:
        """The answer to a ``RunRequest``: in the stream that stays open, or by a call where that is in use.

        Args:
            message: the request.
            timeout_s: how long it may take, in seconds.

        Raises:
            DeviceError: there was none.
        """
        if self._turn.locked():
            return await self.call("Run", message, timeout_s)
        async with self._turn:
            try:
                async with asyncio.timeout(timeout_s):
                    return await self._answer(message)
            except TimeoutError:
                self._drop_stream()
                raise DeviceError("late", f"{self.host.name} did not answer in time") from None
            except grpc.aio.AioRpcError as error:
                self._drop_stream()
                raise DeviceError(*self._what_failed(error)) from None
            except BaseException:  # the block was given up: an answer that comes now is nobody's
                self._drop_stream()
                raise

    async def _answer(self, message: bytes) -> bytes:
        """The next answer of the stream, which is opened where it is not."""
        if self._stream is None or self._stream.done():
            self._stream = self._calls["RunMany"]()
        stream = self._stream
        await stream.write(message)
        answer = await stream.read()
        if answer is grpc.aio.EOF:
            raise DeviceError("gone", f"{self.host.name} ended the stream of calls")
        return bytes(answer)

    def _drop_stream(self) -> None:
        """Open another for the next call."""
        stream, self._stream = self._stream, None
        if stream is not None:
            stream.cancel()

    def _what_failed(self, error: Any) -> tuple[str, str]:
        """Outcome and reason of a call that failed."""
        codes = grpc.StatusCode
        # INTERNAL is gRPC's own word for a message that could not be sent, as in a stream whose end was not heard yet.
        outcomes = {codes.DEADLINE_EXCEEDED: "late", codes.UNAVAILABLE: "gone", codes.INTERNAL: "gone"}
        outcome = outcomes.get(error.code(), "refused")
        detail = " ".join(str(error.details()).split())[:300]
        if outcome == "late":
            return outcome, f"{self.host.name} did not answer in time"
        where = f"{self.host.name} at {self.host.address}"
        return outcome, f"{where} {'is not there' if outcome == 'gone' else 'refused a call'}: {detail}"

    async def describe(self, padding: int = 0, reply_padding: int = 0, timeout_s: float = CALL_S) -> Any:
        """The description of the device, whose clock is compared with this one on the way.

        Args:
            padding: bytes to send along.
            reply_padding: bytes to get along; the description is short then.
            timeout_s: how long it may take, in seconds.

        Raises:
            DeviceError: there was none, or no description.
        """
        request = DescribeRequest(padding=bytes(padding), reply_padding_bytes=reply_padding)
        sent_s = time.monotonic()
        answer = await self.call("Describe", request.SerializeToString(), timeout_s)
        came_s = time.monotonic()
        try:
            description = Description.FromString(answer)
        except DecodeError:
            raise DeviceError("corrupt", f"{self.host.name} sent something else than a description") from None
        if not padding and not reply_padding:
            self.offset_s = description.clock_s - (sent_s + came_s) / 2
        return description

    def problem_of(self, description: Any, model_dtype: str, hidden_size: int) -> str:
        """What is wrong with a description, in a sentence; empty where nothing is.

        Args:
            description: that came.
            model_dtype: type of the base station's weights.
            hidden_size: width H of the rows.
        """
        name = self.host.name
        if description.protocol != PROTOCOL:
            return f"expected protocol {PROTOCOL} of {name}, got {description.protocol}: install the same version"
        if description.version != __version__:
            return f"expected wdmoe-env {__version__} of {name}, as here, got {shown(description.version)}"
        if description.state != STATES["READY"]:
            return f"expected {name} to be READY, it is {state_name(description.state)}"
        if description.dtype != model_dtype:
            return f"expected {name} to hold weights in {model_dtype}, got {description.dtype}"
        if description.hidden_size != hidden_size:
            return f"expected {name} to hold experts of width {hidden_size}, got {description.hidden_size}"
        if self.digest is not None and description.digest != self.digest:
            return f"{name} holds other weights than it should"
        return ""

    async def measure(self, calls: int = 30, padding: int = 2**19) -> None:
        """Measure the floor, the clock and the rate of the link.

        Args:
            calls: empty ones.
            padding: bytes of a call that measures the rate.

        Raises:
            DeviceError: a call failed.
        """
        times, offsets = [], []
        for _ in range(calls):
            began_s = time.perf_counter()
            await self.empty_call()
            times.append(time.perf_counter() - began_s)
        for _ in range(5):
            began_s = time.perf_counter()
            await self.describe()
            offsets.append((time.perf_counter() - began_s, self.offset_s))
        self.offset_s = min(offsets)[1]  # that of the fastest call is the least uncertain
        self.floor_s = sorted(times)[len(times) // 2]
        padding = min(padding, self.description.max_message_bytes // 4)
        self.rate_bps = (await self._rate(padding, 0), await self._rate(0, padding))

    async def empty_call(self) -> None:
        """A call with nothing to run.

        Raises:
            DeviceError: it failed.
        """
        rows = TensorMessage(dtype="float32", shape=(0, self.description.hidden_size))
        request = RunRequest(rows=rows, digest=self.description.digest)
        await self.run(request.SerializeToString(), CALL_S)

    async def _rate(self, padding: int, reply_padding: int) -> float:
        """Bit/s of a padded call, its empty part left out."""
        best = 1e9
        for _ in range(2):
            began_s = time.perf_counter()
            await self.describe(padding, reply_padding or 1, timeout_s=60.0)
            best = min(best, time.perf_counter() - began_s)
        return 8.0 * (padding + reply_padding) / max(best - self.floor_s, 1e-6)

    def heard(self, sent_s: float, came_s: float, reply: Any) -> None:
        """Keep the comparison of the clocks right, however they drift: no message arrives before it is sent.

        Args:
            sent_s: when the call was sent, this clock, seconds.
            came_s: when the answer had come, this clock, seconds.
            reply: the answer.
        """
        least, most = reply.sent_s - came_s, reply.received_s - sent_s
        if least <= most:
            self.offset_s = min(max(self.offset_s, least), most)

    def lost(self, reason: str, retry: Any) -> None:
        """The device did not serve; it is asked again from time to time.

        Args:
            reason: one sentence.
            retry: coroutine function of this link that accepts it again or raises ``DeviceError``.
        """
        if not self.away:
            self.losses += 1
        self.away = reason
        if self._retry is None or self._retry.done():
            self._retry = asyncio.get_running_loop().create_task(self._until_back(retry))

    async def _until_back(self, retry: Any) -> None:
        pause_s = FIRST_RETRY_S
        while self.away:
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, LAST_RETRY_S)
            try:
                await retry(self)
            except DeviceError as error:
                self.away = str(error)
