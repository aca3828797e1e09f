"""Hashes of what a configuration only names: a replay of changed files says which changed."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from importlib.resources.abc import Traversable

import torch

from agents.registry import weights_file
from wdmoe_env.moe.split import SplitModel


def policy_hashes(policies: Iterable[str]) -> dict[str, str]:
    """SHA-256 of the weights of each learned policy."""
    files = {policy: file for policy in policies if (file := weights_file(policy))}
    weights = {policy: file.with_suffix(".safetensors") for policy, file in files.items()}
    return {f"the file of policy {policy}": file_hash(path) for policy, path in weights.items()}


def file_hash(path: Traversable) -> str:
    """SHA-256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def model_hash(model: SplitModel) -> str:
    """SHA-256 of the names and bytes of a model's weights as they were loaded, wherever they came from."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
