"""Find where the experts of a model should be: ``python -m wdmoe_env.deploy.placement``; see ``main``."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from wdmoe_env.command import end_with, mistakes_in_one_sentence
from wdmoe_env.config import DeploymentConfig, EnvConfig
from wdmoe_env.deploy.auto import WINDOWS, as_rows, placement_problem
from wdmoe_env.deploy.problem import PlacementProblem, Table
from wdmoe_env.deploy.search import exchange, greedy, in_order, popularity_first, round_robin
from wdmoe_env.physics.latency import Float
from wdmoe_env.reading import parse_json, read_text
from wdmoe_env.writing import check_file, write_files

EXAMPLES = """
examples:
  python -m wdmoe_env.deploy.placement --devices 4                       # the model that ships, on four boards
  python -m wdmoe_env.deploy.placement --devices 4 --boards --weight-bits 4.5
  python -m wdmoe_env.deploy.placement --boards --usable-gb 2.5          # every device has 2.5e9 bytes for experts
  python -m wdmoe_env.deploy.placement --model runs/olmoe --config olmoe.json --out placement.json

The routing is measured on windows of the train split. "latency" is the block latency of the own routing under optimal
shares, summed over the blocks: its mean over these windows, and over as many of the test split, to which nothing was
fitted. The lower bound holds for every placement that fits, on the windows of the train split. Links are typical
ones. With --boards the devices read weights (equation 5r) and have the memory of their profiles; without it
neither counts.

--out writes {"placement": [[...], ...]}, which --config of `python -m eval` and `gym.make(..., **settings)` take.
Exit code 2: a mistake in the command, named in one sentence. Nothing is written then.
"""


@mistakes_in_one_sentence("python -m wdmoe_env.deploy.placement")
def main(argv: Sequence[str] | None = None) -> int:
    """Search, and print a table of placements beside a lower bound; returns the exit code."""
    parser = _parser()
    options = parser.parse_args(argv)
    config, memory_bytes = _settings(options)
    problem = placement_problem(config, "train", options.windows, memory_bytes)
    unseen = placement_problem(config, "test", options.windows, memory_bytes)
    best, tables = _placements(problem)
    print(_table(tables, problem, unseen))
    if options.out is not None:
        text = json.dumps({"placement": as_rows(best)})
        write_files(options.out.parent, {options.out.name: text.encode()})
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m wdmoe_env.deploy.placement",
        description="Find a placement of a model's experts that fits the devices' memory and is fast.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--model", help="tiny, micro, or the folder of a transformers mixture of experts (tiny)")
    add("--devices", type=int, metavar="U", help="number of devices (8)")
    add("--num-tokens", type=int, metavar="J", help="tokens of a window (32)")
    add("--boards", action="store_true", help="devices read weights, and have the memory of their profiles")
    add("--weight-bits", type=float, help="bits of one weight in a device's memory (16)")
    add("--usable-gb", type=float, nargs="+", metavar="GB", help="memory for experts, in 1e9 bytes; one or U numbers")
    add("--windows", type=int, default=WINDOWS, help=f"windows of each split ({WINDOWS})")
    add("--config", type=Path, metavar="FILE", help="JSON of the environment's settings; flags go before it")
    add("--out", type=Path, metavar="FILE", help="where to write the placement that was found")
    return parser


def _settings(options: argparse.Namespace) -> tuple[EnvConfig, Float | None]:
    """The configuration, and the memory (U,) in bytes of each device where it is given."""
    if options.out is not None:
        check_file(options.out)
    read: Any = {} if options.config is None else parse_json(read_text(options.config))
    if not isinstance(read, dict):
        raise ValueError(f"{options.config}: expected a JSON object of settings, got {type(read).__name__}")
    read.setdefault("min_share", 1e-12)  # of the default, so that any number of devices is taken
    if options.boards:
        read.setdefault("devices", "boards")
    config = EnvConfig.make(read)
    given = {name: getattr(options, name) for name in ("model", "num_tokens") if getattr(options, name) is not None}
    config = replace(config, **given)
    if options.devices is not None:
        config = replace(config, devices=replace(config.devices, count=options.devices))
    if options.weight_bits is not None:
        if not isinstance(config.deployment, DeploymentConfig):
            raise ValueError("--weight-bits needs widths of a deployment, got deployment 'model'")
        config = replace(config, deployment=replace(config.deployment, weight_bits=options.weight_bits))
    if options.windows < 1:
        raise ValueError(f"--windows must be at least 1, got {options.windows}")
    return config, _memory_bytes(options.usable_gb, config)


def _memory_bytes(usable_gb: list[float] | None, config: EnvConfig) -> Float | None:
    """What experts may fill of each device's memory (U,), where ``--usable-gb`` was given."""
    if usable_gb is None:
        return None
    count = config.devices.count
    if len(usable_gb) not in (1, count) or not all(0 < one < float("inf") for one in usable_gb):
        raise ValueError(f"--usable-gb takes one number above 0 or {count}, got {usable_gb}")
    if not isinstance(config.deployment, DeploymentConfig):
        raise ValueError("--usable-gb needs widths of a deployment, got deployment 'model'")
    return np.broadcast_to(1e9 * np.array(usable_gb), (count,))


def _placements(problem: PlacementProblem) -> tuple[Table, dict[str, Table | None]]:
    """The best one found, and all by name, with a bar of progress."""
    experts = problem.popularity.size
    with tqdm(total=experts, desc="greedy", unit="expert") as bar:
        first = greedy(problem, bar.update)
    with tqdm(desc="exchange", unit="expert") as bar:
        best = exchange(problem, first, bar.update)
    return best, {
        "in order": in_order(problem),
        "load-balanced round robin": round_robin(problem),
        "popularity greedy": popularity_first(problem),
        "greedy": first,
        "greedy and exchange": best,
    }


def _table(tables: dict[str, Table | None], problem: PlacementProblem, unseen: PlacementProblem) -> str:
    """Markdown: a row for each placement, and the lower bound."""
    bound = problem.lower_bound_s()
    lines = [
        "| placement | latency, ms | over the bound | test split, ms | experts of each device | room |",
        "|---|---:|---:|---:|---|---|",
    ]
    everywhere = problem.popularity.size
    room = ", ".join("any" if one >= everywhere else str(one) for one in problem.capacity)
    for name, table in tables.items():
        if table is None:
            lines.append(f"| {name} | does not fit | | | | {room} |")
            continue
        latency, there = problem.latency_s(table), unseen.latency_s(table)
        held = ", ".join(map(str, np.bincount(table.ravel(), minlength=problem.num_devices)))
        lines.append(f"| {name} | {1e3 * latency:.3f} | {latency / bound:.3f} | {1e3 * there:.3f} | {held} | {room} |")
    return "\n".join([*lines, f"| lower bound | {1e3 * bound:.3f} | 1 | | | |"])


if __name__ == "__main__":
    end_with("python -m wdmoe_env.deploy.placement", main, lambda: "nothing was written")
