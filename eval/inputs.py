"""Where the files are that a configuration names, and their hashes: a replay of changed files says which changed."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import replace
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

import torch

from eval.plan import RunConfig
from wdmoe_env.config import SUITE_SUFFIXES, TEXT_PREFIX, EnvConfig, names_texts
from wdmoe_env.episodes import text_path
from wdmoe_env.moe.split import SplitModel
from wdmoe_env.moe.zoo import KNOWN_MODELS
from wdmoe_env.policies.registry import trained_names, weights_file
from wdmoe_env.text.own import text_files

TRACE = "trace"
BESIDE_WEIGHTS = ("config.json", "tokenizer.json")


def policy_hashes(config: RunConfig) -> dict[str, str]:
    """SHA-256 of the weights and of the description of each learned policy."""
    found = {}
    for policy in config.policies:
        file = weights_file(config.located(policy))
        if file:
            for name, suffix in (("file", ".safetensors"), ("description", ".json")):
                found[f"the {name} of policy {policy}"] = file_hash(file.with_suffix(suffix))
    return found


def channel_hashes(source: str) -> dict[str, str]:
    """SHA-256 of the file that a source of gains replays, if it is of that kind."""
    file = trace_file(source)
    return {} if file is None else {f"the trace {file}": file_hash(file)}


def text_hashes(split: str) -> dict[str, str]:
    """SHA-256 of the names and hashes of the files of one's own texts, if a split is of that kind."""
    if not names_texts(split):
        return {}
    path = text_path(split)
    lines = [f"{file.relative_to(path)} {file_hash(file)}" for file in text_files(path)]
    return {f"the text {path}": hashlib.sha256("\n".join(lines).encode()).hexdigest()}


def trace_file(source: str) -> Path | None:
    """The file of a source of gains that replays one."""
    kind, _, path = source.partition(":")
    return Path(path).expanduser() if kind == TRACE and path else None


def located_policies(policies: Iterable[str]) -> dict[str, str]:
    """The absolute path of each policy that is a file, so that it is found from another folder too."""
    files = {policy: weights_file(policy) for policy in policies}
    return {policy: str(file.absolute()) for policy, file in files.items() if file and policy not in trained_names()}


def located_environment(environment: EnvConfig) -> EnvConfig:
    """An environment whose model, suite, texts and trace are named by absolute paths, where they are files."""
    changes: dict[str, Any] = {}
    folder = Path(environment.model).expanduser()
    if environment.model not in KNOWN_MODELS and folder.is_dir():
        changes["model"] = str(folder.absolute())
    if names_texts(environment.split):
        changes["split"] = f"{TEXT_PREFIX}{text_path(environment.split).absolute()}"
    elif environment.split.endswith(SUITE_SUFFIXES):
        changes["split"] = str(Path(environment.split).absolute())
    trace = trace_file(environment.channel.source)
    if trace is not None:
        changes["channel"] = replace(environment.channel, source=f"{TRACE}:{trace.absolute()}")
    return replace(environment, **changes)


def file_hash(path: Traversable) -> str:
    """SHA-256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def beside_hashes(model: str) -> dict[str, str]:
    """SHA-256 of the configuration and the tokenizer beside the weights in a folder of one's own."""
    files = [Path(model).expanduser() / name for name in BESIDE_WEIGHTS]
    return {f"{file.name} of the model {model}": file_hash(file) for file in files if file.is_file()}


def model_hash(model: SplitModel) -> str:
    """SHA-256 of the names and bytes of a model's weights as they were loaded, wherever they came from."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
