"""Checkpoints of a policy and its optimizer in one safetensors file, replaced atomically."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from agents.files import write_whole


def save_checkpoint(path: Path, policy: Any, timesteps: int) -> None:
    """Write weights, Adam's moments and the number of environment steps.

    Args:
        path: of the file.
        policy: an SB3 policy with its ``optimizer``.
        timesteps: environment steps so far.
    """
    tensors = {f"policy.{name}": tensor for name, tensor in policy.state_dict().items()}
    for index, moments in policy.optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{name}": tensor for name, tensor in moments.items()}
    whole = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    write_whole(path, save(whole, {"timesteps": str(timesteps)}))


def load_checkpoint(path: Path, policy: Any) -> int:
    """Restore what ``save_checkpoint`` wrote; returns the number of environment steps.

    Raises:
        ValueError: a truncated file, or a checkpoint of another policy.
    """
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
            timesteps = int(file.metadata()["timesteps"])
        policy.load_state_dict({k.removeprefix("policy."): v for k, v in tensors.items() if k.startswith("policy.")})
    except (SafetensorError, RuntimeError, KeyError, TypeError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"expected a checkpoint of this policy in {path}, got a file that is not: {reason}") from None
    optimizer = policy.optimizer.state_dict()
    for key, tensor in tensors.items():
        if key.startswith("optimizer."):
            _, index, name = key.split(".", 2)
            optimizer["state"].setdefault(int(index), {})[name] = tensor
    policy.optimizer.load_state_dict(optimizer)
    return timesteps
