"""Links that the kernel shapes, a second opinion beside those that programs pace.

Each device runs in a network namespace of its own, at the end of a pair of virtual Ethernet interfaces. A token bucket
(TBF) at each end lets its payload pass at the rate that channel and shares give; nothing waits in the programs. A
bucket holds 2 kB, so that messages of some kilobytes are shaped too. The base station has a namespace as well, so that
nothing of all this is seen outside.

No namespace has a name: each belongs to its processes, and the kernel removes it, with its interfaces, when the last of
them ends, however that comes about. Devices end when the base station does, since it holds their standard input open.

Needs Linux, ``ip`` and ``tc`` of iproute2, ``unshare`` and ``nsenter`` of util-linux, and the right to make namespaces:
that of root, or user namespaces.
"""

from __future__ import annotations

import os
import selectors
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wdmoe_env.testbed.local import DeviceProcess, device_arguments, local_devices, local_inventory
from wdmoe_env.testbed.pace import BlockPlan

INSIDE = "WDMOE_TESTBED_INSIDE"
"""Variable of the environment of a process that has a network namespace of its own."""

BURST_BYTES = 2048
"""Bytes that a token bucket holds: what passes at once."""

QUEUE_BYTES = 2**24
"""Bytes that may wait for a token bucket; TCP holds back long before, so that nothing is lost."""

WIRE_BYTES, SEGMENT_BYTES = 1514, 1448
"""A full Ethernet frame, and what of it is payload behind the headers of Ethernet, IP and TCP with time stamps."""

LEAST_RATE_BPS, MOST_RATE_BPS = 1e3, 1e11
MOST_DEVICES = 250
ANSWER_S = 10.0
_TOOLS = ("ip", "tc", "unshare", "nsenter")
_PORT = 50051
_WAYS = (("unshare", "--net"), ("unshare", "--user", "--map-root-user", "--net"))
_TRY = "ip link add dev air type veth peer name two && tc qdisc add dev air root tbf rate 1mbit burst 2kb limit 100kb"

# What a device's namespace needs before the device starts in it: $1 process of the base station, $2 name of its end,
# $3 address here, $4 address there. Bbr, the default of some machines, would keep to the rate of the block before.
_DEVICE = """set -e
ip link set dev lo up
ip link add dev air type veth peer name "$2" netns "$1"
ip address add "$3/32" dev air
ip link set dev air up
ip route add "$4/32" dev air src "$3" congctl reno
shift 4
exec "$@"
"""


def why_not() -> str:
    """Why the kernel cannot shape links here, in one sentence; empty where it can."""
    if sys.platform != "linux":
        return f"expected Linux, whose kernel shapes links, got {sys.platform}"
    missing = [tool for tool in _TOOLS if shutil.which(tool) is None]
    if missing:
        return f"expected {', '.join(_TOOLS)} to shape links, found no {missing[0]}: install iproute2 and util-linux"
    said = [_tried(way) for way in _WAYS]
    if "" in said:
        return ""
    return f"expected the right to make network namespaces and to shape their links, got: {said[-1]}"


def _tried(way: Sequence[str]) -> str:
    """What came of shaping an interface in a namespace that is made in some way; empty where it worked."""
    done = subprocess.run([*way, "sh", "-c", _TRY], capture_output=True, text=True, check=False, timeout=60)
    lines = done.stderr.strip().splitlines()
    return "" if done.returncode == 0 else (lines[0] if lines else f"exit code {done.returncode}")


def enter(arguments: Sequence[str]) -> None:
    """Be in a network namespace of one's own; outside of one, this process becomes the same command inside one.

    Args:
        arguments: of ``python -m wdmoe_env.testbed``.

    Raises:
        OSError: it cannot be had here; the message says why.
    """
    if os.environ.pop(INSIDE, ""):
        _command("ip", "link", "set", "dev", "lo", "up")
        return
    reason = why_not()
    if reason:
        raise OSError(reason)
    way = next(way for way in _WAYS if not _tried(way))
    sys.stdout.flush()
    command = [*way, sys.executable, "-m", "wdmoe_env.testbed", *arguments]
    os.execvpe(command[0], command, {**os.environ, INSIDE: "1"})


def _command(*words: str) -> None:
    """Run a command of the system.

    Raises:
        OSError: it failed.
    """
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=60)
    if done.returncode:
        raise OSError(f"{' '.join(words)}: {' '.join(done.stderr.split())}")


@dataclass(frozen=True, slots=True)
class Ends:
    """The two ends of a device's link.

    Attributes:
        device: its number.
    """

    device: int

    @property
    def interface(self) -> str:
        """The base station's end; a device's own is called ``air``."""
        return f"device{self.device}"

    @property
    def station(self) -> str:
        """Address of the base station on this link."""
        return f"10.0.{self.device}.1"

    @property
    def own(self) -> str:
        """Address of the device."""
        return f"10.0.{self.device}.2"

    def entering(self, station: int) -> tuple[str, ...]:
        """What stands before a device's command: a namespace, and its end of the link.

        Args:
            station: number of the base station's process.
        """
        names = (str(station), self.interface, self.own, self.station)
        return ("unshare", "--net", "sh", "-c", _DEVICE, "sh", *names)

    def join(self) -> None:
        """Set up the base station's end.

        Raises:
            OSError: it is not there, or cannot be set up.
        """
        name = self.interface
        _command("ip", "address", "add", f"{self.station}/32", "dev", name)
        _command("ip", "link", "set", "dev", name, "up")
        _command("ip", "route", "add", f"{self.own}/32", "dev", name, "src", self.station, "congctl", "reno")


class TrafficControl:
    """A ``tc`` that reads commands as they come, in some namespace, since starting one for each takes longer.

    Args:
        interface: whose rate it sets.
        before: what enters the namespace.
    """

    def __init__(self, interface: str, before: Sequence[str] = ()) -> None:
        self._interface = interface
        self._process = subprocess.Popen(
            [*before, "tc", "-batch", "-"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def ask(self, rate_bps: float) -> None:
        """Ask for a rate of what crosses the wire; ``answered`` waits until it holds.

        Args:
            rate_bps: bit/s.

        Raises:
            OSError: ``tc`` has ended.
        """
        assert self._process.stdin is not None
        rate = round(min(max(rate_bps, LEAST_RATE_BPS), MOST_RATE_BPS))
        bucket = f"tbf rate {rate}bit burst {BURST_BYTES} limit {QUEUE_BYTES}"
        lines = (f"qdisc replace dev {self._interface} root {bucket}", f"qdisc show dev {self._interface}")
        try:
            self._process.stdin.write("\n".join([*lines, ""]))
            self._process.stdin.flush()
        except OSError:
            raise OSError(self._failed()) from None

    def answered(self) -> str:
        """Wait until a rate that was asked for holds; what ``tc`` says of the interface.

        Raises:
            OSError: it does not.
        """
        assert self._process.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            line = self._process.stdout.readline() if selector.select(ANSWER_S) else ""
        if " tbf " not in line:
            raise OSError(self._failed())
        return line

    def _failed(self) -> str:
        self.close()
        assert self._process.stderr is not None
        said = " ".join(self._process.stderr.read().split())
        return f"expected tc to set the rate of {self._interface}, it says: {said or 'nothing'}"

    def close(self) -> None:
        """End it."""
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()


class KernelShaper:
    """Sets the rates of the links before each block.

    Args:
        devices: processes of the devices, in order.
        stack: ends what is started.

    Raises:
        OSError: an interface cannot be set up.
    """

    def __init__(self, devices: Sequence[DeviceProcess], stack: ExitStack) -> None:
        self._controls: list[tuple[TrafficControl, TrafficControl]] = []
        for number, device in enumerate(devices):
            assert device.process is not None
            ends = Ends(number)
            ends.join()
            entering = ("nsenter", f"--net=/proc/{device.process.pid}/ns/net")
            pair = (TrafficControl(ends.interface), TrafficControl("air", entering))
            self._controls.append(pair)
            for control in pair:
                stack.callback(control.close)

    def shape(self, plan: BlockPlan) -> None:
        """Let the payload of each device cross at the rate of its pace, both ways.

        Args:
            plan: of the block that runs next.

        Raises:
            OSError: a rate cannot be set.
        """
        asked = []
        for device, pace in plan.devices.items():
            for control, seconds in zip(self._controls[device], (pace.downlink_s, pace.uplink_s), strict=True):
                if seconds > 0 and pace.payload_bytes:
                    control.ask(wire_rate_bps(pace.payload_bytes, seconds))
                    asked.append(control)
        for control in asked:
            control.answered()


def wire_rate_bps(payload_bytes: int, seconds: float) -> float:
    """Bit/s of the wire at which a payload crosses in some seconds, with the headers of its packets."""
    return 8.0 * payload_bytes / seconds * WIRE_BYTES / SEGMENT_BYTES


@contextmanager
def shaped_testbed(
    model: str, devices: int, dtype: str = "float32", settings: Mapping[str, Any] | None = None
) -> Iterator[tuple[Path, list[DeviceProcess], KernelShaper]]:
    """A testbed on this machine whose links the kernel shapes; in a network namespace of one's own, see ``enter``.

    Args:
        model: as of ``load_model``.
        devices: how many.
        dtype: type of the weights.
        settings: more of the inventory.

    Raises:
        ValueError: more devices than there are addresses for.
        ConnectionError: a device did not start.
        OSError: a link cannot be set up.
    """
    if devices > MOST_DEVICES:
        raise ValueError(f"expected at most {MOST_DEVICES} devices with links of the kernel, got {devices}")
    ends = [Ends(number) for number in range(devices)]
    arguments = [
        device_arguments(model, dtype, devices, one.device, f"{one.own}:{_PORT}", ("--insecure",)) for one in ends
    ]
    before = [one.entering(os.getpid()) for one in ends]
    with local_devices(arguments, before) as processes, ExitStack() as stack:
        shaper = KernelShaper(processes, stack)
        # Nobody else is on these networks, so that nothing has to be kept from others.
        more = {"model": model, "dtype": dtype, "insecure": True, **(settings or {})}
        path = stack.enter_context(local_inventory(more, processes))
        yield path, processes, shaper
