"""The commands of the base station: ``run``, ``local``, ``fidelity``, ``soak`` and ``traces``."""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

POLICIES = ("vanilla", "vanilla-optimal", "wdmoe:0.8", "straight-through-10", "top1")
"""What runs where no policy is named."""

FIDELITY = "fidelity.json"
PAGE = "fidelity.md"


def add_station_commands(commands: Any) -> None:
    """Add the commands to a parser's."""
    run = commands.add_parser("run", help="run policies on the devices of an inventory")
    run.add_argument("--inventory", type=Path, required=True, metavar="FILE", help="hosts.toml")
    _add_episodes(run)
    _add_watching(run)
    local = commands.add_parser("local", help="start devices on this machine, and run policies on them")
    _add_devices(local)
    _add_episodes(local)
    _add_watching(local)
    fidelity = commands.add_parser("fidelity", help="the same episodes simulated and measured, into a folder")
    fidelity.add_argument("--inventory", type=Path, metavar="FILE", help="hosts.toml, in place of local devices")
    _add_devices(fidelity)
    _add_episodes(fidelity)
    fidelity.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of the report")
    by = "who keeps links to their pace: the programs, or Linux in network namespaces (program)"
    fidelity.add_argument("--shaping", choices=("program", "kernel"), default="program", help=by)
    soak = commands.add_parser("soak", help="many blocks on local devices, of which one is killed and started again")
    _add_devices(soak)
    soak.add_argument("--blocks", type=int, default=1000, help="of the own routing (1000)")
    soak.add_argument("--every", type=int, default=50, help="blocks between a death and the next (50)")
    soak.add_argument("--seed", type=int, default=7, help="of the episodes (7)")
    traces = commands.add_parser("traces", help="write the channel of an episode as mahimahi files")
    traces.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of the files")
    traces.add_argument("--devices", type=int, default=8, help="how many devices (8)")
    traces.add_argument("--seed", type=int, default=7, help="of the channel (7)")
    traces.add_argument("--bandwidth-hz", type=float, help="of all devices together (100e6)")
    traces.add_argument("--blocks", type=int, default=256, help="intervals of 20 ms (256)")


def _add_devices(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add("--devices", type=int, default=8, help="how many processes (8)")
    add("--model", default="tiny", help="tiny, micro, or the folder of a checkpoint (tiny)")
    stretched = "stretched to the devices' profiles, or real (profile)"
    add("--compute", choices=("profile", "real"), default="profile", help=stretched)
    add("--time-scale", type=float, default=1.0, help="times that every pace is longer (1)")
    add("--deadline-ms", type=float, default=2000.0, help="how much later than its pace a block may end (2000)")


def _add_episodes(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add("--policies", "--policy", nargs="+", default=list(POLICIES), metavar="POLICY", help=" ".join(POLICIES))
    add("--episodes", type=int, default=8, help="of each policy, the same for all (8)")
    add("--seed", type=int, default=7, help="of episodes and policies (7)")
    add("--bandwidth-hz", type=float, help="of all devices together (100e6)")
    add("--config", type=Path, metavar="FILE", help="JSON of the environment's settings")


def _add_watching(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add("--live", action="store_true", help="a table of the devices that follows the blocks")
    add("--log", type=Path, metavar="FILE", help="append a line of JSON for each block")
    add("--prometheus", metavar="HOST:PORT", help="answer with counters, on loopback")


def _run(options: argparse.Namespace) -> int:
    """Run policies on an inventory."""
    from wdmoe_env.testbed.watch import watched

    with _comparison(options, options.inventory) as comparison:
        print(_floor(comparison.runner), flush=True)
        with watched(comparison.runner, options.log, options.live, options.prometheus):
            compared = comparison.run(options.episodes, progress=not options.live)
        print(_table(compared))
    return 0


def _local(options: argparse.Namespace) -> int:
    """Start devices, and run policies on them."""
    with _local_inventory(options) as inventory:
        options.inventory = inventory
        return _run(options)


def _fidelity(options: argparse.Namespace) -> int:
    """Write a fidelity report.

    Raises:
        ValueError: links of an inventory that the kernel of this machine is to shape.
        OSError: the kernel cannot shape links here.
    """
    from wdmoe_env.testbed.fidelity import fidelity_page, fidelity_report
    from wdmoe_env.writing import held_folder, write_files

    kernel = options.shaping == "kernel"
    if kernel and options.inventory is not None:
        raise ValueError("expected --shaping kernel for devices that are started here, got an inventory")
    if kernel:
        from wdmoe_env.testbed.kernel import enter

        enter(options.arguments)
    with held_folder(options.out) as folder:
        with _devices(options) as (inventory, shaper), _comparison(options, inventory) as comparison:
            comparison.runner.shaper = shaper
            compared = comparison.run(options.episodes)
            report = fidelity_report(compared, comparison.records) | _how(options, comparison)
        page = fidelity_page(report)
        write_files(folder, {FIDELITY: json.dumps(report, indent=1).encode(), PAGE: page.encode()})
    print(page)
    print(f"report: {options.out / FIDELITY} and {options.out / PAGE}")
    return 0


def _how(options: argparse.Namespace, comparison: Any) -> dict[str, Any]:
    """How a report was made."""
    from wdmoe_env import __version__

    inventory, config = comparison.runner.inventory, comparison.config
    floors = sorted(1e3 * link.floor_s for link in comparison.runner.links)
    return {
        "measured": True,
        "command": options.said,
        "machine": machine(),
        "version": __version__,
        "episodes": options.episodes,
        "seed": options.seed,
        "bandwidth_hz": config.channel.bandwidth_hz,
        "links_are": inventory.links,
        "shaped_by": options.shaping,
        "compute": inventory.compute,
        "time_scale": inventory.time_scale,
        "floor_ms": {
            "empty_call_p50": floors[len(floors) // 2],
            "empty_block_p50": 1e3 * comparison.runner.floor_s,
            "of_each_device": floors,
        },
        "config": config.to_dict(),
    }


def machine() -> str:
    """What was measured on."""
    return f"{platform.system()} {platform.machine()}, {os.cpu_count()} processors"


@contextmanager
def _comparison(options: argparse.Namespace, inventory: Path) -> Iterator[Any]:
    from wdmoe_env.checks import check_integer
    from wdmoe_env.policies.registry import reads_hidden_states
    from wdmoe_env.reading import read_json
    from wdmoe_env.testbed.comparison import Comparison
    from wdmoe_env.testbed.env import config_of

    check_integer("--episodes", options.episodes, at_least=1, at_most=100_000)
    check_integer("--seed", options.seed, at_least=0)
    settings = {"split": "test", **({} if options.config is None else read_json(options.config))}
    if options.bandwidth_hz is not None:
        settings["channel"] = {**settings.get("channel", {}), "bandwidth_hz": options.bandwidth_hz}
    if any(map(reads_hidden_states, options.policies)):
        settings["observe_hidden_states"] = True
    comparison = Comparison(config_of(inventory, settings), options.policies, options.seed)
    gc.freeze()  # a collection that walks all that is loaded takes some 0.3 s, which would be measured
    try:
        yield comparison
    finally:
        comparison.close()


@contextmanager
def _devices(options: argparse.Namespace) -> Iterator[tuple[Path, Any]]:
    """The inventory of a report, of devices that are there or are started, and what shapes their links."""
    if options.inventory is not None:
        yield options.inventory, None
    elif options.shaping == "program":
        with _local_inventory(options) as inventory:
            yield inventory, None
    else:
        from wdmoe_env.testbed.kernel import shaped_testbed

        with shaped_testbed(options.model, options.devices, settings=_local_settings(options)) as (path, _, shaper):
            yield path, shaper


@contextmanager
def _local_inventory(options: argparse.Namespace) -> Iterator[Path]:
    from wdmoe_env.testbed.local import local_testbed

    with local_testbed(options.model, options.devices, settings=_local_settings(options)) as (path, _):
        yield path


def _local_settings(options: argparse.Namespace) -> dict[str, Any]:
    """Settings of the inventory of devices that are started here.

    Raises:
        ValueError, TypeError: a number outside its bounds.
    """
    from wdmoe_env.checks import check_integer, check_number

    check_integer("--devices", options.devices, at_least=1, at_most=1024)
    for name, value in (("time_scale", options.time_scale), ("deadline_ms", options.deadline_ms)):
        check_number(f"--{name.replace('_', '-')}", value, at_least=1e-3, at_most=1e6)
    return {name: getattr(options, name) for name in ("compute", "time_scale", "deadline_ms")}


def _soak(options: argparse.Namespace) -> int:
    """Run blocks while a device dies and comes back; 1 where a pass was lost."""
    from wdmoe_env.checks import check_integer
    from wdmoe_env.testbed.soak import soak

    check_integer("--blocks", options.blocks, at_least=1, at_most=10**9)
    check_integer("--every", options.every, at_least=2, at_most=10**9)
    settings = _local_settings(options)
    outcome = soak(options.model, options.devices, options.blocks, options.every, options.seed, settings)
    print(outcome.sentence())
    return 0 if outcome.lost_passes == 0 else 1


def _traces(options: argparse.Namespace) -> int:
    """Write the channel of an episode as mahimahi files, for ``links = "trace"`` and for mm-link."""
    from wdmoe_env.testbed.rates import write_traces

    names = write_traces(options.out, options.devices, options.seed, options.bandwidth_hz, options.blocks)
    print(f"{len(names)} files in {options.out}: {names[0]} to {names[-1]}")
    return 0


def _floor(runner: Any) -> str:
    """What the base station found when it connected."""
    lines = []
    for link in runner.links:
        seen, count = link.description, sum(len(block.experts) for block in link.description.blocks)
        speed = f"{seen.flops / 1e9:.1f} GFLOP/s, {seen.bytes_per_s / 1e9:.2f} GB/s"
        held = f"{count} experts, {seen.weight_bytes / 2**20:.1f} MiB, {speed}"
        down, up = (f"{rate / 1e6:,.0f}" for rate in link.rate_bps)
        wire = f"an empty call {1e3 * link.floor_s:.2f} ms, {down} Mbit/s down and {up} up"
        lines.append(f"{link.host.name} at {link.host.address}: {held}; {wire}")
    lines.append(f"a block of empty calls, one to each: {1e3 * runner.floor_s:.2f} ms")
    return "\n".join(lines)


def _table(compared: Any) -> str:
    """Measured and simulated latency beside each other, a row for each policy."""
    rows = [("policy", "measured ms", "simulated ms", "ratio", "added NLL", "unserved")]
    for one in compared:
        measured, simulated = (float(values.sum(axis=1).mean()) for values in (one.measured_ms, one.simulated_ms))
        numbers = (f"{measured:.1f}", f"{simulated:.1f}", f"{measured / simulated:.3f}", f"{one.added_nll.mean():+.4f}")
        rows.append((one.policy, *numbers, str(int(one.unserved_pairs.sum()))))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        padded = [cell.rjust(width) for cell, width in zip(row, widths, strict=True)]
        lines.append("  ".join([row[0].ljust(widths[0]), *padded[1:]]))
    return "\n".join(["", *lines, "", f"latency measured on {machine()}, mean over episodes"])


STATION_COMMANDS: dict[str, Callable[[argparse.Namespace], int]] = {
    "run": _run,
    "local": _local,
    "fidelity": _fidelity,
    "soak": _soak,
    "traces": _traces,
}
"""From the name of a command to what runs it."""
