"""Checkpoints of a network and its optimizers in one safetensors file, replaced atomically."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor
from torch.nn import Module
from torch.optim import Optimizer

from train.tensors import MOMENTS, Names, check_finite, read_tensors
from wdmoe_env.writing import write_whole

WEIGHTS = "policy."


def save_checkpoint(path: Path, network: Module, optimizers: Mapping[str, Optimizer], timesteps: int) -> None:
    """Write weights, Adam's moments and the number of environment steps.

    Args:
        path: of the file.
        network: what is trained.
        optimizers: of its parameters, by names of one's own.
        timesteps: environment steps so far.

    Raises:
        ValueError: a weight or a moment is not finite; the file stays as it is.
    """
    tensors = _weights(network)
    for name, optimizer in optimizers.items():
        for index, moments in optimizer.state_dict()["state"].items():
            tensors |= {f"{name}.{index}.{moment}": tensor for moment, tensor in moments.items()}
    check_finite(tensors, _after(timesteps))
    whole = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    write_whole(path, save(whole, {"timesteps": str(timesteps), "tensors": str(len(whole))}))


def check_weights(network: Module, timesteps: int) -> None:
    """Stop a training whose weights are not finite.

    Raises:
        ValueError: they are not.
    """
    check_finite(_weights(network), _after(timesteps))


def load_checkpoint(path: Path, network: Module, optimizers: Mapping[str, Optimizer], first_update: int = 0) -> int:
    """Restore what ``save_checkpoint`` wrote; returns the number of environment steps.

    Args:
        path: of the file.
        network: gets the weights.
        optimizers: get the moments.
        first_update: environment steps up to which no optimizer moves anything, and so has no moments.

    Raises:
        ValueError: a truncated file, a checkpoint of another policy, or one with weights or moments that no training
            leaves; network and optimizers stay as they are.
    """
    weights = _weights(network)
    moments = list(_moments(optimizers))
    try:
        timesteps = _timesteps(path)
        tensors = read_tensors(path, weights, moments)
        for name in optimizers:
            if timesteps > first_update and not any(key.startswith(f"{name}.") for key in tensors):
                raise RuntimeError(f"it has no moments of {name}, which has moved weights in {timesteps} steps")
    except (SafetensorError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"expected a checkpoint of this policy in {path}, got a file that is not: {reason}") from None
    network.load_state_dict({name.removeprefix(WEIGHTS): tensors[name] for name in weights})
    for name, optimizer in optimizers.items():
        state = optimizer.state_dict()
        state["state"] = {
            index: {moment: tensors[f"{name}.{index}.{moment}"] for moment in MOMENTS}
            for index, _ in enumerate(_parameters(optimizer))
            if f"{name}.{index}.step" in tensors
        }
        optimizer.load_state_dict(state)
    return timesteps


def _timesteps(path: Path) -> int:
    """Environment steps that a checkpoint says were taken.

    Raises:
        RuntimeError: it does not say so, or lacks some of the tensors that it was written with.
    """
    with safe_open(path, framework="pt") as file:
        header, held = file.metadata() or {}, len(file.keys())
    told = header.get("timesteps", "")
    if not re.fullmatch("[0-9]{1,15}", told):
        raise RuntimeError(f"its timesteps are {told[:40]!a} in place of a whole number")
    if header.get("tensors", str(held)) != str(held):
        raise RuntimeError(f"it holds {held} tensors in place of the {header['tensors'][:40]} it was written with")
    return int(told)


def _weights(network: Module) -> dict[str, Tensor]:
    return {f"{WEIGHTS}{name}": tensor for name, tensor in network.state_dict().items()}


def _moments(optimizers: Mapping[str, Optimizer]) -> Iterator[tuple[Names, Tensor]]:
    for name, optimizer in optimizers.items():
        for index, parameter in enumerate(_parameters(optimizer)):
            yield {moment: f"{name}.{index}.{moment}" for moment in MOMENTS}, parameter


def _parameters(optimizer: Optimizer) -> list[Tensor]:
    """Of all groups, in the order of their numbers in ``state_dict``."""
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _after(timesteps: int) -> str:
    return f"after {timesteps} environment steps"
