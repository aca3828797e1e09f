"""How results were made: where the files of a configuration lie, their hashes, the versions and the machine.

A replay of files that have changed since says which of them.
"""

from __future__ import annotations

import hashlib
import os
import platform
from collections.abc import Iterable
from dataclasses import replace
from importlib import resources
from importlib.metadata import version
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

import torch

import wdmoe_env
from eval.plan import RunConfig
from eval.results import Results
from eval.statistics import Summary
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


def absent_policies(config: RunConfig) -> frozenset[str]:
    """The policies of a configuration whose files are not here."""
    files = {policy: weights_file(config.located(policy)) for policy in config.policies}
    return frozenset(
        policy for policy, file in files.items() if file and not file.with_suffix(".safetensors").is_file()
    )


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


def code_hash(package: Traversable | None = None) -> str:
    """SHA-256 of all Python files of a package, by name: rules and physics are figures of a result too.

    Args:
        package: its folder; ``None`` is that of ``wdmoe_env``.
    """
    digest = hashlib.sha256()

    def add(folder: Traversable, name: str) -> None:
        for entry in sorted(folder.iterdir(), key=lambda one: one.name):
            if entry.is_dir():
                add(entry, f"{name}{entry.name}/")
            elif entry.name.endswith(".py"):
                digest.update(f"{name}{entry.name} {file_hash(entry)}\n".encode())

    add(resources.files(wdmoe_env) if package is None else package, "")
    return digest.hexdigest()


def beside_hashes(model: str) -> dict[str, str]:
    """SHA-256 of the configuration and the tokenizer beside the weights in a folder of one's own."""
    files = [Path(model).expanduser() / name for name in BESIDE_WEIGHTS]
    return {f"{file.name} of the model {model}": file_hash(file) for file in files if file.is_file()}


def model_hash(model: SplitModel) -> str:
    """SHA-256 of the names and bytes of a model's weights as they were loaded, wherever they came from."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.model.state_dict().items()):
        if tensor.is_meta:  # an expert on another host, whose digest its base station has compared
            continue
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


PACKAGES = ("gymnasium", "numpy", "torch", "transformers")

HOW_MADE = frozenset({"config", "sha256", "made_by"})
"""Keys of ``how_made``; the rest of a results folder's JSON are statistics."""


def how_made(results: Results, command: str) -> Summary:
    """What a results folder's JSON says beside its figures."""
    made_by = {"command": command, "versions": versions(), "machine": machine()}
    if is_measured(results.config.environment):
        made_by["latency"] = f"measured on the testbed {results.config.environment.runner.partition(':')[2]}"
    return {"config": results.config.to_dict(), "sha256": results.sha256, "made_by": made_by}


def is_measured(environment: EnvConfig) -> bool:
    """Whether latency is measured by a clock, and does not come again."""
    return environment.runner.partition(":")[0] == "testbed"


def versions() -> dict[str, str]:
    """Versions of what the numbers depend on."""
    own = {"python": platform.python_version(), "wdmoe-env": wdmoe_env.__version__}
    return own | {package: version(package) for package in PACKAGES}


def machine() -> str:
    """What decision times were measured on."""
    system, threads = f"{platform.system()} {platform.machine()}", torch.get_num_threads()
    return f"{system}, {os.cpu_count()} processors, torch on {threads} of them"
