"""Devices for tests: servers on threads of this process, or processes of their own; all on loopback."""

from __future__ import annotations

import asyncio
import threading
import time
from contextlib import ExitStack, contextmanager
from queue import Queue

from wdmoe_env.testbed.device import DeviceServer, DeviceSettings
from wdmoe_env.testbed.inventory import inventory_text
from wdmoe_env.testbed.weights import load_weights


@contextmanager
def device_thread(load, **settings):
    """A device on a thread: yields its server, ready."""
    server, started = DeviceServer(DeviceSettings(**settings), load), Queue()

    def serve():
        try:
            asyncio.run(server.serve(started.put))
        except BaseException as error:
            started.put(error)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    found = started.get(timeout=60)
    if isinstance(found, BaseException):
        raise found
    try:
        yield server
    finally:
        server.end()
        thread.join(timeout=20)
        assert not thread.is_alive()


@contextmanager
def threaded_testbed(folder, model, devices, dtype="float32", **settings):
    """A testbed of devices on threads: yields the path of its inventory, and the servers."""
    with ExitStack() as stack:
        servers = [
            stack.enter_context(
                device_thread(lambda number=number: load_weights(str(model), None, dtype, devices, number))
            )
            for number in range(devices)
        ]
        hosts = [{"name": f"d{number}", "address": f"127.0.0.1:{one.port}"} for number, one in enumerate(servers)]
        path = folder / f"hosts-{time.monotonic_ns()}.toml"
        path.write_text(inventory_text({"model": str(model), "dtype": dtype, **settings}, hosts))
        yield path, servers
