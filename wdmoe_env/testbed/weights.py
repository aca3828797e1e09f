"""The experts that a device holds: read alone from a checkpoint, known by a digest, run on the rows of a call."""

from __future__ import annotations

import hashlib
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from wdmoe_env.moe.blank import BlankModel, blank_model, read_config
from wdmoe_env.moe.partial import HeldExperts, each_expert, load_device_experts
from wdmoe_env.moe.runner import expert_widths, order_weights, run_expert, run_experts
from wdmoe_env.moe.zoo import load_model, model_folder
from wdmoe_env.testbed.wire import bytes_of

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

Held = tuple[tuple[int, ...], ...]
"""Per block the experts of a device, ascending."""

Digests = tuple[dict[int, bytes], ...]
"""Per block the SHA-256 of experts by number."""


@dataclass(frozen=True, slots=True, eq=False)
class DeviceWeights:
    """What a device holds.

    Attributes:
        model: as its user named it.
        dtype: name of the type of the weights.
        held: per block the numbers of its experts.
        modules: per block an experts module of these experts alone, in their order.
        digests: per block the digest of each expert.
    """

    model: str
    dtype: str
    held: Held
    modules: tuple[Any, ...]
    digests: Digests

    @property
    def hidden_size(self) -> int:
        """Width H of the rows."""
        return expert_widths(self.modules[0])[0]

    @property
    def num_bytes(self) -> int:
        """Bytes of all weights that are held."""
        return sum(one.numel() * one.element_size() for module in self.modules for one in module.parameters())

    @property
    def digest(self) -> bytes:
        """SHA-256 of what is held, (32,) bytes."""
        return digest_of(self.digests)

    def prepared(
        self,
        block: int,
        rows: Tensor,
        row: NDArray[np.int64],
        expert: NDArray[np.int64],
        weight: NDArray[np.float32],
    ) -> Callable[[], Tensor]:
        """A call that gives the weighted sums (R, H) of the experts' outputs; all that can be done before is done.

        A device that has slept runs from memory what others' programs drove out of the caches, so that few operations
        on few libraries are faster here than they look.

        Args:
            block: of the model.
            rows: (R, H) hidden states.
            row: (P,) row of each pair.
            expert: (P,) number of its expert.
            weight: (P,) weight of its output.

        Raises:
            ValueError: no such block, an expert that is not held, a row that is not there, or a pair that comes twice.
        """
        if not 0 <= block < len(self.held):
            raise ValueError(f"expected a block of 0 to {len(self.held) - 1}, got {block}")
        place = {number: at for at, number in enumerate(self.held[block])}
        numbers = expert.tolist()
        missing = sorted(set(numbers) - place.keys())
        if missing:
            raise ValueError(f"expected experts {list(place)} of block {block}, which are held, got {missing[0]}")
        if len(row) and not 0 <= row.min() <= row.max() < len(rows):
            raise ValueError(f"expected pairs of rows 0 to {len(rows) - 1}, got {row.min()} to {row.max()}")
        column = [place[number] for number in numbers]
        selection = np.zeros((len(rows), len(place)), dtype=np.bool_)
        selection[row, column] = True
        if np.count_nonzero(selection) != len(row):
            raise ValueError("expected each pair of row and expert once, got one twice")
        weights = np.zeros(selection.shape, dtype=np.float32)
        weights[row, column] = weight
        return partial(_run, self.modules[block], rows, selection, torch.from_numpy(weights).to(rows.dtype))


def _run(module: Any, rows: Tensor, selection: NDArray[np.bool_], weights: Tensor) -> Tensor:
    """Weighted sums (R, H) of the experts of a module: as of ``run_experts``, or with less where one expert has all."""
    if not len(rows):
        return rows
    with torch.inference_mode():
        if selection.shape[1] == 1 and selection.all():
            return run_expert(module, 0, rows) * weights
        return run_experts(module, rows, torch.from_numpy(selection), weights)


def load_weights(model: str, held: Held | None, dtype: str, devices: int = 0, device: int = 0) -> DeviceWeights:
    """Read the experts of one device, and nothing else of a checkpoint.

    Args:
        model: ``"tiny"``, ``"micro"`` or the folder of a checkpoint.
        held: per block the experts; one row stands for all blocks; ``None`` is the share of ``device`` where
            experts are spread evenly in order.
        dtype: type of the weights.
        devices: how many devices the experts are spread over.
        device: which of them.

    Raises:
        ValueError, FileNotFoundError: no such model, experts that it does not have, or weights that cannot be read.
    """
    if dtype not in DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, got {dtype!r}")
    folder = model_folder(model)
    blocks, experts = _sizes(model, folder)
    wanted = even_share(devices, device, blocks, experts) if held is None else _each_block(held, blocks, experts)
    modules, digests = _from_micro(wanted, dtype) if folder is None else _from_folder(folder, wanted, dtype)
    return DeviceWeights(model, dtype, wanted, modules, digests)


@lru_cache(maxsize=4)
def expected_digests(model: str, dtype: str) -> Digests:
    """The digest of every expert of a model, read from its checkpoint one expert at a time.

    Args:
        model: as of ``load_weights``.
        dtype: type of the weights.

    Raises:
        ValueError: weights that cannot be read.
    """
    folder = model_folder(model)
    if folder is None:
        _, experts = _sizes(model, folder)
        return _from_micro((tuple(range(experts)),) * load_model(model).num_blocks, dtype)[1]
    found: dict[int, dict[int, bytes]] = defaultdict(dict)
    for block, expert, parameters in each_expert(folder, DTYPES[dtype]):
        found[block][expert] = _digest(parameters)
    return tuple(found[block] for block in sorted(found))


def digest_of(digests: Digests) -> bytes:
    """SHA-256 of the digests of all experts of all blocks, in order."""
    whole = hashlib.sha256()
    for block, of_block in enumerate(digests):
        for expert in sorted(of_block):
            whole.update(f"{block} {expert} ".encode() + of_block[expert])
    return whole.digest()


def even_share(devices: int, device: int, blocks: int, experts: int) -> Held:
    """The experts of a device where they are spread evenly in order, as ``placement=None`` does.

    Args:
        devices: how many.
        device: which of them.
        blocks: of the model.
        experts: of each block.

    Raises:
        ValueError: no such device, or more devices than experts.
    """
    if not 1 <= devices <= experts or not 0 <= device < devices:
        raise ValueError(f"expected a device of 0 to {devices - 1} among 1 to {experts}, got {device} of {devices}")
    own = tuple(expert for expert in range(experts) if expert * devices // experts == device)
    return (own,) * blocks


def speed_of(weights: DeviceWeights, seconds: float = 0.05) -> tuple[float, float]:
    """FLOP/s of an expert on many rows, and bytes/s of weights on one row, as measured here.

    Args:
        weights: of a device with an expert in some block.
        seconds: how long to measure each, in seconds.
    """
    block = next((number for number, experts in enumerate(weights.held) if experts), None)
    if block is None:
        return 0.0, 0.0
    outer, inner = expert_widths(weights.modules[block])
    expert = weights.held[block][0]
    flops = 6.0 * outer * inner
    itemsize = DTYPES[weights.dtype].itemsize
    many = _runs_per_second(weights, block, expert, 64, seconds) * 64 * flops
    return many, _runs_per_second(weights, block, expert, 1, seconds) * 3 * outer * inner * itemsize


def _runs_per_second(weights: DeviceWeights, block: int, expert: int, rows: int, seconds: float) -> float:
    values = torch.zeros(rows, weights.hidden_size, dtype=DTYPES[weights.dtype])
    run = weights.prepared(block, values, np.arange(rows), np.full(rows, expert), np.ones(rows, dtype=np.float32))
    run()
    began, count = time.perf_counter(), 0
    while time.perf_counter() - began < seconds or not count:
        run()
        count += 1
    return count / (time.perf_counter() - began)


def _sizes(model: str, folder: Path | None) -> tuple[int, int]:
    """Blocks and experts of a model."""
    if folder is None:
        micro = load_model(model)
        return micro.num_blocks, micro.num_experts
    blank = blank_model(read_config(str(folder)))
    return len(blank.experts), blank.num_experts


def _each_block(held: Held, blocks: int, experts: int) -> Held:
    rows = held * blocks if len(held) == 1 else held
    wrong = [number for row in rows for number in row if not 0 <= number < experts]
    if len(rows) != blocks or wrong:
        got = f"{len(rows)} rows" if not wrong else f"expert {wrong[0]}"
        raise ValueError(f"expected experts of 0 to {experts - 1} in one row or in {blocks}, got {got}")
    return tuple(tuple(sorted(set(row))) for row in rows)


def _from_folder(folder: Path, held: Held, dtype: str) -> tuple[tuple[Any, ...], Digests]:
    blank: BlankModel = blank_model(read_config(str(folder)))
    placement = np.zeros((len(held), blank.num_experts), dtype=np.int64)
    for block, experts in enumerate(held):
        placement[block, list(experts)] = 1
    return _modules_and_digests(load_device_experts(folder, placement.tolist(), [1], DTYPES[dtype]))


def _from_micro(held: Held, dtype: str) -> tuple[tuple[Any, ...], Digests]:
    """The experts of "micro", which is made and not read."""
    model = load_model("micro", dtype=dtype)
    parameters = tuple(
        {name: values[list(experts)].clone() for name, values in whole.named_parameters()}
        for experts, whole in zip(held, model.experts, strict=True)
    )
    read = HeldExperts(held, parameters, 0, blank_model(model.model.config))
    return _modules_and_digests(read)


def _modules_and_digests(read: HeldExperts) -> tuple[tuple[Any, ...], Digests]:
    digests = tuple(
        {
            expert: _digest({name: values[row] for name, values in parameters.items()})
            for row, expert in enumerate(experts)
        }
        for experts, parameters in zip(read.experts, read.parameters, strict=True)
    )
    modules = tuple(read.module(block) for block in range(len(read.experts)))
    order_weights(nn.Module(), modules)  # as the base station's model does, so that few rows are as fast
    return modules, digests


def _digest(parameters: Mapping[str, Tensor]) -> bytes:
    """SHA-256 of an expert's parameters: names, type, shapes and bytes."""
    digest = hashlib.sha256()
    for name, values in sorted(parameters.items()):
        digest.update(f"{name} {values.dtype} {tuple(values.shape)} ".encode() + bytes_of(values))
    return digest.digest()
