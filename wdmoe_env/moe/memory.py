"""Memory of a split model's weights: on each device, and what stays at the base station.

``python -m wdmoe_env.moe.memory mixtral-8x7b`` prints the table; a folder's ``config.json`` works too, and no weights
are needed. Counted on transformers' own modules, without a formula.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoConfig

from wdmoe_env.checks import check_integer
from wdmoe_env.command import end_with, mistakes_in_one_sentence
from wdmoe_env.moe.blank import BlankModel, Placement, blank_model, read_config
from wdmoe_env.moe.published import PUBLISHED

MOST_DEVICES = 65_536
"""Far more than any published model has experts in all its blocks."""

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes of a model's weights.

    Attributes:
        num_parameters: of the whole model.
        num_blocks: MoE blocks I.
        num_experts: experts per block E.
        expert: one expert of one block.
        devices: per device, its experts of all blocks.
        base_station: everything else: embeddings, attention, routers, shared experts, head.
    """

    num_parameters: int
    num_blocks: int
    num_experts: int
    expert: int
    devices: tuple[int, ...]
    base_station: int


def memory_of(name: str, placement: Placement | None = None, devices: int = 8, dtype: str = "bfloat16") -> Memory:
    """Memory of a model's weights under a placement.

    Args:
        name: one of ``PUBLISHED``, or a folder with ``config.json``.
        placement: device of each expert, one row of E for all blocks or I rows; ``None`` spreads them evenly in order.
        devices: how many there are, at most ``MOST_DEVICES``.
        dtype: type of the weights.

    Raises:
        ValueError: no such model, a model that cannot be split, a placement that does not fit it, or too many
            devices.
    """
    check_integer("devices", devices, at_least=1)
    if devices > MOST_DEVICES:
        raise ValueError(f"devices must be at most {MOST_DEVICES:,}, got {devices}")
    config = AutoConfig.for_model(**PUBLISHED[name]) if name in PUBLISHED else read_config(name)
    model = blank_model(config)
    if placement is None:
        placement = [expert * devices // model.num_experts for expert in range(model.num_experts)]
    table = model.placement_table(placement)
    if table.min() < 0 or table.max() >= devices:
        raise ValueError(f"placement must name devices 0 to {devices - 1}, got {table.min()} to {table.max()}")
    return _count(model, table, devices, _DTYPES[dtype].itemsize)


def _count(model: BlankModel, placement: NDArray[np.int64], devices: int, itemsize: int) -> Memory:
    parts = [model.parameters(block).values() for block in range(len(model.experts))]
    of_one = np.array([sum(parameter[0].numel() for parameter in block) for block in parts])
    on_device = [int(((placement == device).sum(axis=1) * of_one).sum()) for device in range(devices)]
    total = sum(parameter.numel() for parameter in model.model.parameters())
    return Memory(
        num_parameters=total,
        num_blocks=len(model.experts),
        num_experts=model.num_experts,
        expert=int(of_one.max()) * itemsize,
        devices=tuple(parameters * itemsize for parameters in on_device),
        base_station=(total - sum(on_device)) * itemsize,
    )


def table(names: Sequence[str], devices: int = 8, dtype: str = "bfloat16") -> str:
    """Markdown table of several models, experts spread evenly in order."""
    lines = [
        f"| model | parameters | blocks x experts | one expert | each of {devices} devices | base station |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for name in names:
        memory = memory_of(name, devices=devices, dtype=dtype)
        least, most = min(memory.devices) / 2**30, max(memory.devices) / 2**30
        spread = f"{most:.2f} GiB" if least == most else f"{least:.2f} to {most:.2f} GiB"
        lines.append(
            f"| {name} | {memory.num_parameters / 1e9:.2f} billion | {memory.num_blocks} x {memory.num_experts} "
            f"| {memory.expert / 2**20:.0f} MiB | {spread} | {memory.base_station / 2**30:.2f} GiB |"
        )
    return "\n".join(lines)


@mistakes_in_one_sentence("python -m wdmoe_env.moe.memory")
def main(argv: Sequence[str] | None = None) -> int:
    """Print the table; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m wdmoe_env.moe.memory",
        description="Memory that the weights of a split model need: on each device, and at the base station.",
    )
    parser.add_argument("models", nargs="+", help=f"folders with config.json, or {', '.join(PUBLISHED)}")
    parser.add_argument("--devices", type=int, default=8, help=f"number of devices, at most {MOST_DEVICES:,} (8)")
    parser.add_argument("--dtype", choices=list(_DTYPES), default="bfloat16", help="type of the weights (bfloat16)")
    arguments = parser.parse_args(argv)
    print(table(arguments.models, arguments.devices, arguments.dtype))
    return 0


if __name__ == "__main__":
    end_with("python -m wdmoe_env.moe.memory", main)
