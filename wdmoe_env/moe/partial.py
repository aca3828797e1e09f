"""Loading only the experts of some devices, out of a checkpoint that may be larger than their memory.

A saved checkpoint mostly holds one tensor per expert and layer, which transformers fuses on loading. Here the tensors
of the wanted experts alone are read, and fused in the same way.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from wdmoe_env.moe.blank import BlankModel, Placement, blank_model, read_config
from wdmoe_env.moe.checkpoint import tensor_files

# What a fused layer is called in a file that has a tensor for each expert.
_PARTS = {
    "gate_up_proj": (("gate_proj", "up_proj"), ("w1", "w3")),
    "up_proj": (("up_proj",),),
    "down_proj": (("down_proj",), ("w2",)),
}


@dataclass(frozen=True, eq=False)
class HeldExperts:
    """The experts that some devices hold.

    Attributes:
        experts: per block the numbers of the experts, ascending.
        parameters: per block, by name, the rows (n, ...) of these experts in transformers' experts module.
        bytes_read: bytes of tensors read from the files.
    """

    experts: tuple[tuple[int, ...], ...]
    parameters: tuple[dict[str, Tensor], ...]
    bytes_read: int
    _blank: BlankModel

    def module(self, block: int) -> Any:
        """An experts module with these experts alone, for ``run_expert``; expert i of it is ``experts[block][i]``."""
        module = copy.deepcopy(self._blank.model.get_submodule(self._blank.experts[block]))
        for name, values in self.parameters[block].items():
            module.register_parameter(name, nn.Parameter(values, requires_grad=False))
        return module


def load_device_experts(
    folder: str | Path, placement: Placement, devices: Sequence[int], dtype: torch.dtype | None = None
) -> HeldExperts:
    """Read the experts of some devices from a folder with safetensors, one file or many, and nothing else.

    Args:
        folder: of a transformers MoE model.
        placement: device of each expert.
        devices: whose experts to read.
        dtype: of the result; that of the file by default.

    Raises:
        ValueError: no checkpoint that can be read so, or a placement that does not fit it.
    """
    blank = blank_model(read_config(str(folder)))
    own = np.isin(blank.placement_table(placement), list(devices))
    held = tuple(tuple(np.flatnonzero(row).tolist()) for row in own)
    try:
        with ExitStack() as stack:
            files = _Files(Path(folder), stack)
            parameters = tuple(_read_block(files, blank, block, experts) for block, experts in enumerate(held))
    except SafetensorError as error:
        raise ValueError(f"the weights of the model {folder} are truncated or damaged: {error}") from error
    typed = tuple({name: values.to(dtype or values.dtype) for name, values in block.items()} for block in parameters)
    return HeldExperts(held, typed, files.bytes_read, blank)


def each_expert(folder: str | Path, dtype: torch.dtype | None = None) -> Iterator[tuple[int, int, dict[str, Tensor]]]:
    """Every expert of a folder, one in memory at a time.

    Args:
        folder: of a transformers MoE model.
        dtype: of the parameters; that of the file by default.

    Yields:
        Block, number, and the parameters by name, each of any shape.

    Raises:
        ValueError: no checkpoint that can be read so.
    """
    blank = blank_model(read_config(str(folder)))
    with ExitStack() as stack:
        try:
            files = _Files(Path(folder), stack)
            for block in range(len(blank.experts)):
                for expert in range(blank.num_experts):
                    read = _read_block(files, blank, block, (expert,))
                    yield block, expert, {name: values[0].to(dtype or values.dtype) for name, values in read.items()}
        except SafetensorError as error:
            raise ValueError(f"the weights of the model {folder} are truncated or damaged: {error}") from error


def _read_block(files: _Files, blank: BlankModel, block: int, experts: tuple[int, ...]) -> dict[str, Tensor]:
    prefix = files.prefix_of(blank.experts[block])
    values = {}
    for name, parameter in blank.parameters(block).items():
        rows = [files.read_expert(prefix, name, expert) for expert in experts]
        if any(row.shape != parameter.shape[1:] for row in rows):
            shapes = f"{tuple(parameter.shape[1:])}, got {tuple(rows[0].shape)}"
            raise ValueError(f"expected each expert's {name} in {prefix} with shape {shapes}")
        values[name] = torch.stack(rows) if rows else torch.empty(0, *parameter.shape[1:])
    return values


class _Files:
    """The tensors of a folder's safetensors files, each read when asked for.

    Args:
        folder: with ``model.safetensors`` or its index.
        stack: keeps the files open.

    Attributes:
        bytes_read: so far.
    """

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self._folder, self._stack = folder, stack
        self._open: dict[str, Any] = {}
        self.bytes_read = 0
        self._file_of = tensor_files(folder)
        places = (re.match(r"(.*\.experts)\.", name) for name in self._file_of)
        self._prefixes = sorted({place[1] for place in places if place})

    def prefix_of(self, module: str) -> str:
        """What the tensors of an experts module begin with in the files, where another name may stand for its block."""
        layer = re.findall(r"\d+", module)
        same = [prefix for prefix in self._prefixes if re.findall(r"\d+", prefix) == layer]
        if module in same:
            return module
        if len(same) != 1:
            found = ", ".join(same) or "none of that layer"
            raise ValueError(f"expected the experts of {module} in {self._folder}, found {found}")
        return same[0]

    def read_expert(self, prefix: str, name: str, expert: int) -> Tensor:
        """One expert's part of a fused parameter, out of a fused tensor or of one for each expert."""
        fused = f"{prefix}.{name}"
        if fused in self._file_of:
            return self._count(self._handle(self._file_of[fused]).get_slice(fused)[expert : expert + 1])[0]
        layer, kind = (name.removesuffix("_bias"), "bias") if name.endswith("_bias") else (name, "weight")
        for parts in _PARTS.get(layer, ()):
            names = [f"{prefix}.{expert}.{part}.{kind}" for part in parts]
            if all(one in self._file_of for one in names):
                return torch.cat([self._count(self._handle(self._file_of[one]).get_tensor(one)) for one in names])
        raise ValueError(f"expected {fused} in {self._folder}, or its parts for each expert by a known name")

    def _handle(self, file: str) -> Any:
        if file not in self._open:
            self._open[file] = self._stack.enter_context(safe_open(str(self._folder / file), framework="pt"))
        return self._open[file]

    def _count(self, values: Tensor) -> Tensor:
        self.bytes_read += values.numel() * values.element_size()
        return values
