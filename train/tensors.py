"""What checkpoints hold: weights and Adam's moments in one safetensors file, checked when read and when written."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

MOMENTS = ("step", "exp_avg", "exp_avg_sq")
"""What Adam keeps of a parameter: how often it moved, and the running means of its gradient and of that squared."""

Names = Mapping[str, str]
"""From each of ``MOMENTS`` to its name in the file."""


def check_finite(tensors: Mapping[str, Tensor], when: str) -> None:
    """Refuse to go on with weights that are NaN or infinite: nothing is ever learned from them again.

    Args:
        tensors: of a training, by name.
        when: the training stands, for the message, such as "after 640 environment steps".

    Raises:
        ValueError: one of them is not finite.
    """
    odd = next((name for name, tensor in tensors.items() if not tensor.isfinite().all()), None)
    if odd:
        raise ValueError(
            f"the training stops since {odd} is NaN or infinite {when}: nothing was saved, an earlier checkpoint and "
            "its policy stay as they are, and a lower learning rate may help"
        )


def read_tensors(
    path: Path, weights: Mapping[str, Tensor], moments: Sequence[tuple[Names, Tensor]], device: str = "cpu"
) -> dict[str, Tensor]:
    """The tensors of a checkpoint, by name, once they are known to be those of a network.

    Args:
        path: of the file.
        weights: of the network, whose names, shapes and types the file must have.
        moments: names in the file, and the parameter, for each that an optimizer moves; a parameter that was never
            moved has none.
        device: where to read them to.

    Raises:
        RuntimeError: other tensors, or values that no training leaves; the reason is one sentence.
        SafetensorError: not a whole file of safetensors.
    """
    with safe_open(path, framework="pt", device=device) as file:
        shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118 (not a dict)
        expected = dict(weights) | dict(_moments_in(shapes, moments))
        for name in sorted(expected.keys() | shapes.keys()):
            if name not in expected:
                raise RuntimeError(f"{name} is in the file, but not in what is trained")
            if shapes.get(name) != list(expected[name].shape):
                raise RuntimeError(f"{name} has shape {shapes.get(name)} in place of {list(expected[name].shape)}")
        tensors = {name: file.get_tensor(name) for name in expected}
    for name, tensor in tensors.items():
        _check_values(name, tensor, expected[name])
    _check_moments(tensors, moments)
    return tensors


def _moments_in(found: Mapping[str, Any], moments: Sequence[tuple[Names, Tensor]]) -> Iterator[tuple[str, Tensor]]:
    """Names of the moments that a file holds, and what they must look like."""
    for names, parameter in moments:
        if any(name in found for name in names.values()):
            yield names["step"], torch.zeros(())
            yield names["exp_avg"], parameter
            yield names["exp_avg_sq"], parameter


def _check_values(name: str, tensor: Tensor, expected: Tensor) -> None:
    if tensor.dtype != expected.dtype:
        raise RuntimeError(f"{name} is of type {tensor.dtype} in place of {expected.dtype}")
    if not tensor.isfinite().all():
        raise RuntimeError(f"{name} holds NaN or infinity")


def _check_moments(tensors: Mapping[str, Tensor], moments: Sequence[tuple[Names, Tensor]]) -> None:
    for names, _ in moments:
        if names["step"] in tensors:
            step, squared = tensors[names["step"]].item(), tensors[names["exp_avg_sq"]]
            if step < 1 or step != int(step):
                raise RuntimeError(f"{names['step']} is {step:g} in place of a number of updates")
            if (squared < 0).any():
                raise RuntimeError(f"{names['exp_avg_sq']} is negative, which no square is")
