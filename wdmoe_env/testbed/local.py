"""A testbed on one machine: a process for each device, started and ended here."""

from __future__ import annotations

import os
import re
import selectors
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from wdmoe_env.testbed.inventory import inventory_text
from wdmoe_env.writing import write_whole

START_S = 300.0
"""How long all devices together may take to start, in seconds."""

_READY = re.compile(r" is ready on (\S+): ")


@dataclass(slots=True, eq=False)
class DeviceProcess:
    """A device in a process of its own.

    Attributes:
        arguments: of ``python -m wdmoe_env.testbed device``.
        before: what stands before the command, such as one that enters a network namespace.
        address: where it listens, once it is ready.
        process: that runs.
    """

    arguments: tuple[str, ...]
    before: tuple[str, ...] = ()
    address: str = ""
    process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        """Start it; ``wait`` says when it is ready. It ends when this process does."""
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
        command = [*self.before, sys.executable, "-m", "wdmoe_env.testbed", "device", *self.arguments]
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,  # open until it is to end: see --with-parent
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
            start_new_session=True,  # an interrupt of the terminal reaches the base station alone, which ends this
        )

    def wait(self, until_s: float) -> None:
        """Wait until it is ready.

        Args:
            until_s: moment of the monotonic clock, seconds.

        Raises:
            ConnectionError: it ended, or was not ready in time.
        """
        assert self.process is not None
        assert self.process.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(self.process.stdout, selectors.EVENT_READ)
            ready = selector.select(max(0.0, until_s - time.monotonic()))
        line = self.process.stdout.readline() if ready else ""
        found = _READY.search(line)
        if found is None:
            self.process.terminate()
            said = self.process.stderr.read().strip() if self.process.stderr else ""
            self.stop()
            raise ConnectionError(f"a device did not start: {said.splitlines()[-1] if said else 'it took too long'}")
        self.address = found[1]

    def kill(self) -> None:
        """End it at once, without a word to it."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    def start_again(self, until_s: float) -> None:
        """Start another in its place, on its port, and wait until that is ready.

        Args:
            until_s: moment of the monotonic clock, seconds.

        Raises:
            ConnectionError: it did not start.
        """
        listen = self.arguments.index("--listen") + 1
        self.arguments = (*self.arguments[:listen], self.address, *self.arguments[listen + 1 :])
        self.stop()
        self.start()
        self.wait(until_s)

    def stop(self) -> None:
        """End it: by a signal, and by force if that is of no use."""
        process, self.process = self.process, None
        if process is None:
            return
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(8.0)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        for pipe in (process.stdin, process.stdout, process.stderr):
            if pipe is not None:
                pipe.close()


@contextmanager
def local_devices(
    arguments: Sequence[Sequence[str]], before: Sequence[Sequence[str]] | None = None
) -> Iterator[list[DeviceProcess]]:
    """Device processes, ready, and ended when the body ends.

    Args:
        arguments: of each.
        before: what stands before the command of each.

    Raises:
        ConnectionError: one did not start.
    """
    with ExitStack() as stack:
        commands = zip(arguments, before or [()] * len(arguments), strict=True)
        devices = [DeviceProcess(tuple(own), tuple(entering)) for own, entering in commands]
        for device in devices:
            device.start()
            stack.callback(device.stop)
        until_s = time.monotonic() + START_S
        for device in devices:
            device.wait(until_s)
        yield devices


def device_arguments(
    model: str,
    dtype: str,
    devices: int,
    device: int,
    listen: str = "127.0.0.1:0",
    more: Sequence[str] = (),
) -> tuple[str, ...]:
    """Arguments of one of several devices that share the experts of a model evenly.

    Args:
        model: as of ``load_model``.
        dtype: type of its weights.
        devices: how many there are.
        device: which of them.
        listen: its address.
        more: further arguments.
    """
    share = ("--device", str(device), "--of", str(devices))
    name = ("--name", f"device-{device}", "--with-parent")
    return ("--model", model, "--dtype", dtype, *share, "--listen", listen, *name, *more)


@contextmanager
def local_testbed(
    model: str, devices: int, dtype: str = "float32", settings: Mapping[str, Any] | None = None
) -> Iterator[tuple[Path, list[DeviceProcess]]]:
    """A testbed on this machine, and its inventory in a temporary file.

    Args:
        model: as of ``load_model``.
        devices: how many.
        dtype: type of the weights.
        settings: more of the inventory, such as ``{"time_scale": 40}``.

    Raises:
        ConnectionError: a device did not start.
    """
    arguments = [device_arguments(model, dtype, devices, device) for device in range(devices)]
    merged = {"model": model, "dtype": dtype, **(settings or {})}
    with local_devices(arguments) as processes, local_inventory(merged, processes) as path:
        yield path, processes


@contextmanager
def local_inventory(settings: Mapping[str, Any], processes: Sequence[DeviceProcess]) -> Iterator[Path]:
    """An inventory of devices that run here, in a temporary file.

    Args:
        settings: of the inventory.
        processes: of its devices, ready.
    """
    hosts = [{"name": f"device-{number}", "address": process.address} for number, process in enumerate(processes)]
    with TemporaryDirectory(prefix="wdmoe-testbed-") as folder:
        path = Path(folder, "hosts.toml")
        write_whole(path, inventory_text(settings, hosts).encode())
        yield path
