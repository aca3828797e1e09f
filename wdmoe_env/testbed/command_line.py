"""The commands of the testbed."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from wdmoe_env.command import say_mistake
from wdmoe_env.testbed.station_commands import STATION_COMMANDS, add_station_commands

EXAMPLES = """
examples:
  python -m wdmoe_env.testbed device --model tiny --device 0 --of 8          # one of eight, on loopback
  python -m wdmoe_env.testbed certificates --out certificates orin-1=192.168.1.21 pi-1=192.168.1.31
  python -m wdmoe_env.testbed device --model FOLDER --experts 0,1 --listen 192.168.1.21:50051 --tls orin-1
  python -m wdmoe_env.testbed run --inventory hosts.toml --policy wdmoe:0.8  # the base station
  python -m wdmoe_env.testbed local --devices 8 --live                       # all of it on this machine
  python -m wdmoe_env.testbed fidelity --devices 8 --episodes 16 --bandwidth-hz 2.5e6 --out runs/fidelity
  python -m wdmoe_env.testbed fidelity --shaping kernel --bandwidth-hz 2.5e6 --out runs/kernel  # by Linux itself
  python -m wdmoe_env.testbed traces --out traces --devices 8                # the channel as mahimahi files

Exit code 2: a mistake in the command, or a device that is not as it should be, named in one sentence.
Exit code 130: interrupted.
"""


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one sentence."""

    def error(self, message: str) -> NoReturn:
        """Print the sentence alone and exit with 2."""
        self.exit(2, f"{self.prog}: {message}\n")


def parser() -> Parser:
    """The command line."""
    result = Parser(
        prog="python -m wdmoe_env.testbed",
        description="Experts on hosts of their own, tokens over a real wire, latency measured.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = result.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=Parser)
    _add_device(commands.add_parser("device", help="serve the experts of one device"))
    _add_certificates(commands.add_parser("certificates", help="make credentials for mutual TLS"))
    add_station_commands(commands)
    return result


def _add_device(device: argparse.ArgumentParser) -> None:
    from wdmoe_env.config import Dtype

    add = device.add_argument
    add("--model", default="tiny", help="tiny, micro, or the folder of a checkpoint (tiny)")
    add("--dtype", default="float32", choices=Dtype.__args__, help="type of the weights (float32)")  # type: ignore[attr-defined]
    add("--device", type=int, help="number of this device where experts are spread evenly in order")
    add("--of", type=int, help="number of devices that the experts are spread over")
    add("--experts", type=_experts, help="the experts in every block, such as 0,1; or of each block: 0,1;2,3")
    add("--listen", default="127.0.0.1:50051", metavar="HOST:PORT", help="port 0 is any (127.0.0.1:50051)")
    add("--tls", type=Path, metavar="DIR", help="folder with ca.pem, cert.pem and key.pem")
    add("--insecure", action="store_true", help="serve others on the network without TLS")
    add("--max-message-mib", type=int, default=64, help="bound of a message (64)")
    add("--threads", type=int, default=1, help="torch's threads (1)")
    add("--name", default="device", help="what it calls itself (device)")
    add("--with-parent", action="store_true", help="end when the standard input is closed, as by the end of a parent")


def _add_certificates(certificates: argparse.ArgumentParser) -> None:
    certificates.add_argument("--out", type=Path, required=True, help="folder to make them in")
    certificates.add_argument("devices", nargs="+", metavar="NAME=HOST", help="name and address of each device")


def _experts(text: str) -> tuple[tuple[int, ...], ...]:
    """Rows of experts, ``"0,1;2,3"``.

    Raises:
        argparse.ArgumentTypeError: they are none.
    """
    rows = [[part.strip() for part in row.split(",") if part.strip()] for row in text.split(";")]
    if not all(part.isdecimal() for row in rows for part in row):
        raise argparse.ArgumentTypeError(f"expected numbers such as 0,1 or 0,1;2,3, got {text!r}")
    return tuple(tuple(map(int, row)) for row in rows)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code."""
    options = parser().parse_args(argv)
    commands = {"device": _device, "certificates": _certificates, **STATION_COMMANDS}
    options.arguments = list(sys.argv[1:] if argv is None else argv)
    options.said = shlex.join(["python", "-m", "wdmoe_env.testbed", *options.arguments])
    try:
        return commands[options.command](options)
    except (ValueError, TypeError, OSError, ImportError, FloatingPointError) as error:
        return say_mistake(f"python -m wdmoe_env.testbed {options.command}", error)


def _device(options: argparse.Namespace) -> int:
    """Serve one device's experts.

    Raises:
        ValueError: the experts are said twice, or not at all.
    """
    from wdmoe_env.checks import check_integer
    from wdmoe_env.testbed.device import DeviceSettings, run_device

    check_integer("--max-message-mib", options.max_message_mib, at_least=1, at_most=2047)
    check_integer("--threads", options.threads, at_least=1, at_most=1024)
    if (options.experts is None) == (options.device is None or options.of is None):
        raise ValueError("expected either --experts, or --device and --of")
    settings = DeviceSettings(
        options.listen,
        options.tls,
        options.insecure,
        options.max_message_mib * 2**20,
        options.name,
        options.with_parent,
    )
    run_device(settings, lambda: _weights(options))
    return 0


def _weights(options: argparse.Namespace) -> Any:
    import torch

    from wdmoe_env.testbed.weights import load_weights

    torch.set_num_threads(options.threads)
    return load_weights(options.model, options.experts, options.dtype, options.of or 0, options.device or 0)


def _certificates(options: argparse.Namespace) -> int:
    """Make certificates.

    Raises:
        ValueError: a device without a name or an address, or two of one name.
    """
    from wdmoe_env.testbed.security import make_certificates

    pairs = [text.partition("=") for text in options.devices]
    devices = {name: host for name, _, host in pairs}
    if len(devices) != len(pairs) or not all(name and host and "/" not in name for name, _, host in pairs):
        raise ValueError(f"expected devices of different names as NAME=HOST, got {' '.join(options.devices)}")
    make_certificates(options.out, devices)
    print(f"credentials of the base station: {options.out / 'station'}; of each device: {options.out}/NAME")
    return 0
