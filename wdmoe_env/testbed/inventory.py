"""The inventory of a testbed: which devices there are, where, and how their links behave.

A TOML file such as::

    model = "tiny"            # what the devices hold; the environment's default
    dtype = "float32"
    links = "paced"           # "paced": at the rate that channel and shares give; "trace"; "real": as fast as they are
    time_scale = 1            # every pace, and the measured time, is so many times longer; figures are divided by it
    compute = "profile"       # "profile": stretched to the device's profile; "real"
    deadline_ms = 2000        # how much later than its pace a block may end
    tls = "certificates/station"

    [[devices]]
    name = "orin-1"
    address = "192.168.1.21:50051"
    profile = "jetson-orin-nano-8gb"
    experts = [0]
    downlink_trace = "lte.down"
    uplink_trace = "lte.up"
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wdmoe_env.checks import check_choice, check_keys, check_number, shown
from wdmoe_env.reading import read_text, shown_path
from wdmoe_env.testbed.security import check_exposure, split_address

LINKS = ("paced", "trace", "real")
COMPUTE = ("profile", "real")
OBSERVED = ("commanded", "measured")
_DEFAULTS: dict[str, Any] = {
    "model": None,
    "dtype": None,
    "links": "paced",
    "time_scale": 1.0,
    "compute": "profile",
    "deadline_ms": 2000.0,
    "observe": "commanded",
    "tls": None,
    "insecure": False,
}
_OF_DEVICE = ("name", "address", "profile", "experts", "downlink_trace", "uplink_trace")


@dataclass(frozen=True, slots=True)
class Host:
    """A device of an inventory.

    Attributes:
        name: unique.
        address: ``HOST:PORT``.
        profile: hardware by name in ``DEVICE_PROFILES``; ``None`` where it is not said.
        experts: that it is to run in every block; ``None`` where experts are spread evenly in order.
        downlink_trace: a mahimahi file of its downlink.
        uplink_trace: of its uplink.
    """

    name: str
    address: str
    profile: str | None = None
    experts: tuple[int, ...] | None = None
    downlink_trace: Path | None = None
    uplink_trace: Path | None = None


@dataclass(frozen=True, slots=True)
class Inventory:
    """What a base station is told of its testbed.

    Attributes:
        path: of the file.
        devices: in the order of the environment's devices.
        model: that they hold; ``None`` where it is not said.
        dtype: of their weights; ``None`` where it is not said.
        links: ``"paced"``, ``"trace"`` or ``"real"``.
        time_scale: times that every pace is longer.
        compute: ``"profile"`` or ``"real"``.
        deadline_ms: how much later than its pace a block may end, ms of the wall's clock.
        observe: ``"commanded"``: a policy sees the links that the block will have; ``"measured"``: those of the last
            block that used them.
        tls: folder of the base station's credentials.
        insecure: whether to call others than loopback without TLS.
    """

    path: Path
    devices: tuple[Host, ...]
    model: str | None
    dtype: str | None
    links: str
    time_scale: float
    compute: str
    deadline_ms: float
    observe: str
    tls: Path | None
    insecure: bool

    def placement(self) -> tuple[int, ...] | None:
        """Device of each expert, where every device says its experts; ``None`` where none does.

        Raises:
            ValueError: some say theirs and some do not, an expert has two devices, or one has none.
        """
        said = {device.name: device.experts for device in self.devices if device.experts is not None}
        if not said:
            return None
        silent = [device.name for device in self.devices if device.name not in said]
        if silent:
            raise ValueError(f"{shown_path(self.path)}: expected experts of every device or of none, not {silent[0]}")
        of_expert: dict[int, int] = {}
        for number, device in enumerate(self.devices):
            for expert in device.experts or ():
                if expert in of_expert:
                    other = self.devices[of_expert[expert]].name
                    raise ValueError(f"expert {expert} stands with {other} and with {device.name}: expected one")
                of_expert[expert] = number
        missing = sorted(set(range(max(of_expert, default=-1) + 1)) - of_expert.keys())
        if missing or not of_expert:
            which = missing[0] if missing else 0
            raise ValueError(f"{shown_path(self.path)}: expected a device for every expert, none holds expert {which}")
        return tuple(of_expert[expert] for expert in sorted(of_expert))


def read_inventory(path: str | Path) -> Inventory:
    """Read an inventory.

    Args:
        path: of the TOML file; paths in it are relative to it.

    Raises:
        ValueError: not such a file; the message says what was expected.
        OSError: it cannot be read.
    """
    path = Path(path).expanduser()
    try:
        values = tomllib.loads(read_text(path))
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"expected a TOML file in {shown_path(path)}: {error}") from None
    try:
        return _inventory(path, values)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{shown_path(path)}: {error}") from None


def _inventory(path: Path, values: Mapping[str, Any]) -> Inventory:
    check_keys("an inventory", values, (*_DEFAULTS, "devices"))
    hosts = values.get("devices")
    if not isinstance(hosts, list) or not hosts or not all(isinstance(host, dict) for host in hosts):
        raise ValueError(f"expected a table [[devices]] for each device, got {shown(hosts)}")
    devices = tuple(_host(path, number, host) for number, host in enumerate(hosts))
    _check_unique("name", [device.name for device in devices])
    _check_unique("address", [device.address for device in devices])
    merged = {**_DEFAULTS, **{name: value for name, value in values.items() if name != "devices"}}
    for name in ("model", "dtype", "tls"):
        if merged[name] is not None and not isinstance(merged[name], str):
            raise ValueError(f"{name} must be text, got {shown(merged[name])}")
    if not isinstance(merged["insecure"], bool):
        raise ValueError(f"insecure must be true or false, got {shown(merged['insecure'])}")
    merged["tls"] = None if merged["tls"] is None else _beside(path, merged["tls"])
    for name, choices in (("links", LINKS), ("compute", COMPUTE), ("observe", OBSERVED)):
        merged[name] = check_choice(name, merged[name], choices)
    for name, most in (("time_scale", 1e6), ("deadline_ms", 3.6e6)):
        merged[name] = check_number(name, merged[name], at_least=1e-3, at_most=most)
    for device in devices:
        check_exposure(device.address, merged["tls"], merged["insecure"])
        if merged["links"] == "trace" and not (device.downlink_trace and device.uplink_trace):
            raise ValueError(f"links = 'trace' needs downlink_trace and uplink_trace of {device.name}, found none")
    return Inventory(path=path, devices=devices, **merged)


def _host(path: Path, number: int, values: Mapping[str, Any]) -> Host:
    where = f"device {number}"
    check_keys(where, values, _OF_DEVICE)
    for name in ("name", "address", "profile", "downlink_trace", "uplink_trace"):
        if name in values and not (isinstance(values[name], str) and values[name]):
            raise ValueError(f"{name} of {where} must be text, got {shown(values[name])}")
    if "address" not in values:
        raise ValueError(f"expected the address of {where} as HOST:PORT, got none")
    split_address(values["address"])
    experts = values.get("experts")
    numbers = isinstance(experts, list) and all(type(one) is int and one >= 0 for one in experts)
    if not numbers and experts is not None:
        raise ValueError(f"experts of {where} must be a list of numbers of at least 0, got {shown(experts)}")
    traces = {name: _beside(path, values[name]) for name in ("downlink_trace", "uplink_trace") if name in values}
    return Host(
        name=values.get("name", where.replace(" ", "-")),
        address=values["address"],
        profile=values.get("profile"),
        experts=None if experts is None else tuple(experts),
        **traces,
    )


def _beside(path: Path, name: str) -> Path:
    return path.parent / Path(name).expanduser()


def _check_unique(name: str, values: Sequence[str]) -> None:
    twice = sorted({value for value in values if values.count(value) > 1})
    if twice:
        raise ValueError(f"expected devices of different {name}, got {twice[0]!r} twice")


def inventory_text(settings: Mapping[str, Any], devices: Sequence[Mapping[str, Any]]) -> str:
    """The text of an inventory.

    Args:
        settings: by name.
        devices: the settings of each.
    """
    tables = [_lines(settings), *("[[devices]]\n" + _lines(device) for device in devices)]
    return "\n".join(tables)


def _lines(values: Mapping[str, Any]) -> str:
    import json

    return "".join(f"{name} = {json.dumps(value)}\n" for name, value in values.items() if value is not None)
