"""Checkpoints of a network and its optimizers in one safetensors file, replaced atomically."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch.nn import Module
from torch.optim import Optimizer

from wdmoe_env.writing import write_whole


def save_checkpoint(path: Path, network: Module, optimizers: Mapping[str, Optimizer], timesteps: int) -> None:
    """Write weights, Adam's moments and the number of environment steps.

    Args:
        path: of the file.
        network: what is trained.
        optimizers: of its parameters, by names of one's own.
        timesteps: environment steps so far.
    """
    tensors = {f"policy.{name}": tensor for name, tensor in network.state_dict().items()}
    for name, optimizer in optimizers.items():
        for index, moments in optimizer.state_dict()["state"].items():
            tensors |= {f"{name}.{index}.{moment}": tensor for moment, tensor in moments.items()}
    whole = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    write_whole(path, save(whole, {"timesteps": str(timesteps)}))


def load_checkpoint(path: Path, network: Module, optimizers: Mapping[str, Optimizer]) -> int:
    """Restore what ``save_checkpoint`` wrote; returns the number of environment steps.

    Raises:
        ValueError: a truncated file, or a checkpoint of another policy.
    """
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
            timesteps = int(file.metadata()["timesteps"])
        network.load_state_dict({k.removeprefix("policy."): v for k, v in tensors.items() if k.startswith("policy.")})
    except (SafetensorError, RuntimeError, KeyError, TypeError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"expected a checkpoint of this policy in {path}, got a file that is not: {reason}") from None
    for name, optimizer in optimizers.items():
        state: dict[str, Any] = optimizer.state_dict()
        for key, tensor in tensors.items():
            if key.startswith(f"{name}."):
                _, index, moment = key.split(".", 2)
                state["state"].setdefault(int(index), {})[moment] = tensor
        optimizer.load_state_dict(state)
    return timesteps
