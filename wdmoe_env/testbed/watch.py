"""What one sees of a testbed while it runs: a live table, JSON Lines, and Prometheus's text on request."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from wdmoe_env.optional import optional
from wdmoe_env.testbed.records import OUTCOMES, BlockRecord, Counters
from wdmoe_env.testbed.security import is_loopback, split_address
from wdmoe_env.testbed.station import TestbedRunner
from wdmoe_env.writing import check_file, naming

MOST_BLOCKS = 64
"""Blocks over which the live table takes means."""


@contextmanager
def watched(
    runner: TestbedRunner, log: Path | None = None, live: bool = False, prometheus: str | None = None
) -> Iterator[None]:
    """A context in which a testbed is watched.

    Args:
        runner: the base station.
        log: file that a line of JSON is appended to after each block.
        live: whether to show a table in the terminal.
        prometheus: ``HOST:PORT`` on loopback that answers with counters.

    Raises:
        ValueError: an address that others reach, or a path where no file can stand.
        OSError: the file or the port cannot be had.
        ImportError: a live table without the extra ``testbed``.
    """
    with ExitStack() as stack:
        listeners: list[Callable[[BlockRecord], None]] = []
        if log is not None:
            listeners.append(stack.enter_context(_lines(log)))
        if prometheus is not None:
            counters = Counters()
            listeners.append(counters.add)
            stack.enter_context(_served(prometheus, counters))
        if live:
            listeners.append(stack.enter_context(_live(runner)))
        runner.listeners.extend(listeners)
        try:
            yield
        finally:
            for one in listeners:
                runner.listeners.remove(one)


@contextmanager
def _lines(path: Path) -> Iterator[Callable[[BlockRecord], None]]:
    """Appends a record's line to a file."""
    check_file(path)
    with naming(path):
        file = path.open("a", encoding="utf-8")

    def write(record: BlockRecord) -> None:
        file.write(record.line() + "\n")
        file.flush()

    with file:
        yield write


@contextmanager
def _served(address: str, counters: Counters) -> Iterator[None]:
    """Counters at ``http://HOST:PORT/metrics``."""
    host, port = split_address(address)
    if not is_loopback(host):
        raise ValueError(f"expected an address on loopback for the counters, got {address}")

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            known = self.path in ("/", "/metrics")
            content = counters.text().encode() if known else b""
            self.send_response(200 if known else 404)
            self.send_header("Content-Type", "text/plain; version=0.0.4")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *args: Any) -> None:
            """Say nothing on the terminal."""

    server = ThreadingHTTPServer((host.strip("[]"), port), Handler)
    thread = threading.Thread(target=server.serve_forever, name="wdmoe-counters", daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextmanager
def _live(runner: TestbedRunner) -> Iterator[Callable[[BlockRecord], None]]:
    """A table that follows the blocks."""
    with optional("rich", extra="testbed"):
        from rich.live import Live
    recent: deque[BlockRecord] = deque(maxlen=MOST_BLOCKS)
    with Live(refresh_per_second=4) as view:

        def show(record: BlockRecord) -> None:
            if record.paced:
                recent.append(record)
                view.update(live_table(runner, recent))

        yield show


def live_table(runner: TestbedRunner, recent: Sequence[BlockRecord]) -> Any:
    """A table of the devices over the last blocks, for rich.

    Args:
        runner: the base station.
        recent: the last blocks.
    """
    from rich.table import Table

    last = recent[-1]
    title = f"call {last.number}: block {last.block + 1}, {last.latency_ms / last.time_scale:.1f} ms"
    expected = f"{last.expected_ms / last.time_scale:.1f} ms by the simulator"
    table = Table(title=f"{title}, {expected}, means of {len(recent)} blocks in wall-clock ms")
    for name in ("device", "state", "tokens", "serialise", "send", "queue", "compute", "receive", "KiB", "misses"):
        table.add_column(name, justify="left" if name in ("device", "state") else "right")
    for link in runner.links:
        table.add_row(*live_row(link.host.name, link.away, recent))
    return table


def live_row(name: str, away: str, recent: Sequence[BlockRecord]) -> list[str]:
    """The cells of one device.

    Args:
        name: of the device.
        away: why it is away; empty where it is there.
        recent: the last blocks.
    """
    found = [device for record in recent for device in record.devices if device.device == name]
    served = [device for device in found if device.outcome == OUTCOMES[0]]
    fields = ("tokens", "serialise_ms", "send_ms", "queue_ms", "compute_ms", "receive_ms")
    means = [sum(getattr(device, one) for device in served) / len(served) if served else 0.0 for one in fields]
    kibibytes = sum(device.down_bytes + device.up_bytes for device in served) / 1024 / max(1, len(served))
    return [
        name,
        "away" if away else "there",
        *(f"{mean:.1f}" for mean in means),
        f"{kibibytes:.0f}",
        str(len(found) - len(served)),
    ]
