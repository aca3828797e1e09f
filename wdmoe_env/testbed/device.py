"""A device: it serves the experts that it holds to whoever may call it, and keeps nothing between calls.

``Describe`` says what it holds and can do, ``Run`` runs the experts of one block on the rows of one call, and
``RunMany`` does that for one call after the other. A call that
is no such message, or asks for what is not held, is refused in one sentence, and the device goes on.
"""

from __future__ import annotations

import asyncio
import gc
import os
import selectors
import signal
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

import wdmoe_env
from wdmoe_env.moe.runner import expert_widths
from wdmoe_env.optional import optional
from wdmoe_env.testbed.security import check_exposure, server_credentials, split_address
from wdmoe_env.testbed.weights import DTYPES, DeviceWeights, digest_of, speed_of
from wdmoe_env.testbed.wire import (
    FILLER_OF_REPLY,
    MOST_MESSAGE_BYTES,
    PROTOCOL,
    SERVICE,
    STATES,
    DescribeRequest,
    Description,
    HeldBlock,
    RunReply,
    RunRequest,
    read_rows,
    write_rows,
    zeros_field,
)

with optional("grpcio", extra="testbed"):
    import grpc
    from google.protobuf.message import DecodeError

with optional("grpcio-health-checking", extra="testbed"):
    from grpc_health.v1 import health_pb2, health_pb2_grpc
    from grpc_health.v1.health import aio as health

MOST_WAIT_S = 600.0
"""The longest that a call may ask its device to wait, in seconds."""

CALLS_AT_ONCE = 32
STOP_S = 5.0

MOMENT_S = 0.005
"""Computing of at most so many seconds holds up what else the device is asked, such as what it holds."""


@dataclass(frozen=True, slots=True)
class DeviceSettings:
    """How a device serves.

    Attributes:
        address: ``HOST:PORT``; port 0 takes any that is free.
        tls: folder of credentials; ``None`` is without.
        insecure: whether to serve a network without TLS.
        most_bytes: bound of a message.
        name: what messages call it.
        with_parent: whether to end when the standard input is closed, as it is when the process at its other end ends.
    """

    address: str = "127.0.0.1:0"
    tls: Path | None = None
    insecure: bool = False
    most_bytes: int = MOST_MESSAGE_BYTES
    name: str = "device"
    with_parent: bool = False


class DeviceServer:
    """Serves a device's experts over gRPC.

    Args:
        settings: how.
        load: reads the experts; called in a thread once the port is open, so that the device says that it joins.

    Attributes:
        weights: what it holds; ``None`` while it joins.
        port: that it listens on, once it does.

    Raises:
        ValueError: an address that others reach, with neither credentials nor the word for it.
    """

    def __init__(self, settings: DeviceSettings, load: Callable[[], DeviceWeights]) -> None:
        check_exposure(settings.address, settings.tls, settings.insecure)
        self._settings, self._load = settings, load
        self.weights: DeviceWeights | None = None
        self.port = 0
        self._state = STATES["JOINING"]
        self._speed = (0.0, 0.0)
        self._digest = b""
        self._processor, self._free_s = asyncio.Lock(), 0.0
        self._threads = ThreadPoolExecutor(CALLS_AT_ONCE, "wdmoe-device")
        self._waiting: set[asyncio.Future[bytes]] = set()
        self._health = health.HealthServicer()
        self._loop: asyncio.AbstractEventLoop | None = None

    async def serve(self, ready: Callable[[DeviceServer], None]) -> None:
        """Serve until ``end`` is called, or a signal to end comes to the main thread; what runs then is finished.

        Args:
            ready: is called with this object once the experts are there.

        Raises:
            ValueError, OSError: the port is taken, or the experts or credentials cannot be read.
        """
        server = self._server()
        await server.start()
        self._loop, self._ended = asyncio.get_running_loop(), asyncio.Event()
        if threading.current_thread() is threading.main_thread():
            for one in (signal.SIGTERM, signal.SIGINT):
                self._loop.add_signal_handler(one, self._ended.set)
            if self._settings.with_parent:
                self._loop.add_reader(sys.stdin.fileno(), self._heard_parent)
        try:
            await self._join()
            ready(self)
            await self._ended.wait()
        finally:
            self._state = STATES["DRAINING"]
            for message in self._waiting:  # of streams in which nothing runs
                message.cancel()
            await self._health.enter_graceful_shutdown()
            await server.stop(STOP_S)
            self._threads.shutdown(wait=False, cancel_futures=True)

    def _heard_parent(self) -> None:
        """Serve on while the parent's end of the standard input is open; what it says there is of no interest."""
        if self._loop is not None and not os.read(sys.stdin.fileno(), 4096):
            self._loop.remove_reader(sys.stdin.fileno())
            self._ended.set()

    def end(self) -> None:
        """Stop serving, from any thread; more than once does no harm."""
        if self._loop is not None:
            with suppress(RuntimeError):  # its loop is closed: it has ended
                self._loop.call_soon_threadsafe(self._ended.set)

    def _server(self) -> Any:
        settings = self._settings
        options = [
            ("grpc.max_receive_message_length", settings.most_bytes),
            ("grpc.max_send_message_length", settings.most_bytes),
            ("grpc.so_reuseport", 0),
            ("grpc.keepalive_permit_without_calls", 1),
            ("grpc.http2.min_ping_interval_without_data_ms", 500),
            ("grpc.http2.max_ping_strikes", 0),
        ]
        server = grpc.aio.server(options=options, maximum_concurrent_rpcs=2 * CALLS_AT_ONCE)
        handlers = {
            "Describe": grpc.unary_unary_rpc_method_handler(self._describe),
            "Run": grpc.unary_unary_rpc_method_handler(self._run),
            "RunMany": grpc.stream_stream_rpc_method_handler(self._run_many),
        }
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        try:
            if settings.tls is None:
                self.port = server.add_insecure_port(settings.address)
            else:
                self.port = server.add_secure_port(settings.address, server_credentials(settings.tls))
        except RuntimeError as error:
            raise OSError(f"cannot listen on {settings.address}: {error}") from None
        return server

    async def _join(self) -> None:
        weights = await asyncio.get_running_loop().run_in_executor(self._threads, self._load)
        self._speed = await asyncio.get_running_loop().run_in_executor(self._threads, speed_of, weights)
        self.weights, self._digest = weights, digest_of(weights.digests)
        self._state = STATES["READY"]
        for name in ("", SERVICE):
            await self._health.set(name, health_pb2.HealthCheckResponse.SERVING)

    async def _describe(self, message: bytes, context: Any) -> bytes:
        """Answer ``Describe``."""
        try:
            request = DescribeRequest.FromString(message)
        except DecodeError:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "expected a DescribeRequest, got other bytes")
        if request.reply_padding_bytes > self._settings.most_bytes // 2:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "expected less padding than half the bound")
        answer: bytes = self._description(request.reply_padding_bytes).SerializeToString()
        return answer

    def _description(self, padding: int) -> Any:
        description = Description(
            protocol=PROTOCOL,
            version=wdmoe_env.__version__,
            state=self._state,
            max_message_bytes=self._settings.most_bytes,
            padding=bytes(padding),
            clock_s=time.monotonic(),
        )
        if self.weights is not None and not padding:
            weights = self.weights
            description.model, description.dtype = weights.model, weights.dtype
            description.hidden_size, description.weight_bytes = weights.hidden_size, weights.num_bytes
            description.flops, description.bytes_per_s = self._speed
            description.digest = self._digest
            for experts, digests in zip(weights.held, weights.digests, strict=True):
                block = HeldBlock(experts=experts, digests=[digests[expert] for expert in experts])
                description.blocks.append(block)
            description.clock_s = time.monotonic()
        return description

    async def _run(self, message: bytes, context: Any) -> bytes:
        """Answer ``Run``."""
        received_s = time.monotonic()
        if self._state != STATES["READY"] or self.weights is None:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "expected a device that is ready, got one that is not")
        try:
            return await self._answer(message, received_s)
        except PermissionError as error:
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, str(error))
        except (ValueError, DecodeError) as error:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, " ".join(str(error).split())[:500])
        raise AssertionError("abort does not return")

    async def _run_many(self, _: Any, context: Any) -> None:
        """Answer ``RunMany``."""
        while True:
            message = asyncio.ensure_future(context.read())
            self._waiting.add(message)
            try:
                request = await message
            except asyncio.CancelledError:
                if self._state != STATES["DRAINING"]:
                    raise
                request = b""  # answered by saying that the device ends
            finally:
                self._waiting.discard(message)
            if request is grpc.aio.EOF:
                return
            await context.write(await self._run(request, context))

    async def _answer(self, message: bytes, received_s: float) -> bytes:
        """The answer to a ``RunRequest``.

        Raises:
            PermissionError: the base station expects other weights.
            ValueError, DecodeError: it is no request that can be run.
        """
        weights = self.weights
        assert weights is not None
        began_s = time.perf_counter()
        request = RunRequest.FromString(message)
        if request.digest != self._digest:
            raise PermissionError("expected a call for the weights that this device holds, got one for others")
        self._check_bounds(request)
        rows = read_rows(request.rows, weights.hidden_size, DTYPES[weights.dtype])
        run = weights.prepared(request.block, rows, *_pairs(request))
        reply = RunReply(request=request.request, block=request.block, digest=self._digest, received_s=received_s)
        filler = zeros_field(FILLER_OF_REPLY, request.reply_filler_bytes)
        reply.decode_s = time.perf_counter() - began_s
        reply.ready_s = max(request.not_before_s, time.monotonic())
        await _until(request.not_before_s)
        outputs = await self._paced(request, reply, run)
        return _written(reply, outputs, request.rows.dtype) + filler

    async def _paced(self, request: Any, reply: Any, run: Callable[[], torch.Tensor]) -> torch.Tensor:
        """What a call gives, not before its moment.

        Stretched computing counts as on a processor of the device alone: from when the rows were there and the last
        call's numbers were made, for as long as it was to take, or as it needed of a processor if that is longer.
        What else kept this program waiting does not count, since a message on its way back may still make up for it.
        """
        async with self._processor:
            began_s = time.monotonic()
            outputs, reply.compute_s = await self._computed(request, run)
            ended_s = time.monotonic()
            if request.compute_s > 0:
                began_s = max(reply.ready_s, self._free_s)
                ended_s = began_s + max(request.compute_s, reply.compute_s)
            self._free_s = began_s + reply.compute_s
        await _until(ended_s)
        reply.queue_s, reply.began_s, reply.ended_s = began_s - reply.ready_s, began_s, ended_s
        return outputs

    async def _computed(self, request: Any, run: Callable[[], torch.Tensor]) -> tuple[torch.Tensor, float]:
        """What a call gives, and its seconds of a processor.

        It runs here where that takes a moment, since to wake a thread takes longer; else in a thread.
        """
        weights = self.weights
        assert weights is not None
        outer, inner = expert_widths(weights.modules[request.block])
        if 6.0 * len(request.pair_row) * outer * inner <= MOMENT_S * self._speed[0]:
            return _timed(run)
        return await asyncio.get_running_loop().run_in_executor(self._threads, _timed, run)

    def _check_bounds(self, request: Any) -> None:
        """Refuse a call that would hold the device up, or ask for more than the bound of a message.

        Raises:
            ValueError: it does.
        """
        now = time.monotonic()
        waits = max(request.not_before_s - now, request.compute_s)
        if not (waits <= MOST_WAIT_S and request.compute_s >= 0):
            raise ValueError(f"expected waits of at most {MOST_WAIT_S:g} s, got {waits:g} s")
        answer = request.reply_filler_bytes + len(request.rows.data)
        if answer > self._settings.most_bytes:
            raise ValueError(f"expected an answer of at most {self._settings.most_bytes} bytes, asked for {answer}")


def _pairs(request: Any) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
    """Rows, experts and weights of the pairs of a request.

    Raises:
        ValueError: lists of different lengths, or weights that are not finite.
    """
    row, expert = (np.array(numbers, dtype=np.int64) for numbers in (request.pair_row, request.pair_expert))
    weight = np.array(request.pair_weight, dtype=np.float32)
    if not len(row) == len(expert) == len(weight):
        raise ValueError(f"expected as many rows as experts and weights, got {len(row)}, {len(expert)}, {len(weight)}")
    if not np.isfinite(weight).all():
        raise ValueError("expected finite weights of the pairs, got others")
    return row, expert, weight


def _timed(run: Callable[[], torch.Tensor]) -> tuple[torch.Tensor, float]:
    """What it gives, and the seconds of a processor that it took."""
    began_s = time.thread_time()
    outputs = run()
    return outputs, time.thread_time() - began_s


async def _until(moment_s: float) -> None:
    """Wait for a moment of the monotonic clock."""
    remaining = moment_s - time.monotonic()
    if remaining > 0:
        await asyncio.sleep(remaining)


def _written(reply: Any, outputs: torch.Tensor, kind: str) -> bytes:
    """A reply with its rows, in the number of bits that came."""
    began_s = time.perf_counter()
    reply.rows.CopyFrom(write_rows(outputs, {"int8": 8, "int4": 4}.get(kind, 16)))
    reply.sent_s = time.monotonic()
    reply.encode_s = time.perf_counter() - began_s
    message: bytes = reply.SerializeToString()
    return message


def run_device(settings: DeviceSettings, load: Callable[[], DeviceWeights]) -> None:
    """Serve until a signal to end comes, and say on the standard output where.

    Args:
        settings: how.
        load: reads the experts.

    Raises:
        ValueError, OSError: the port is taken, or the experts or credentials cannot be read.
    """
    host, _ = split_address(settings.address)

    def ready(server: DeviceServer) -> None:
        weights = server.weights
        assert weights is not None
        gc.freeze()  # what is loaded stays, and a collection that walks it all would hold up calls
        count = sum(map(len, weights.held))
        size = f"{weights.num_bytes / 2**20:.1f} MiB"
        print(
            f"{settings.name} is ready on {host}:{server.port}: {count} experts of {weights.model}, {size}", flush=True
        )

    with asyncio.Runner(loop_factory=_exact_loop) as runner:
        runner.run(DeviceServer(settings, load).serve(ready))


def _exact_loop() -> asyncio.AbstractEventLoop:
    """A loop whose waits end to the microsecond; that of epoll rounds them up to whole milliseconds."""
    return asyncio.SelectorEventLoop(selectors.SelectSelector())
