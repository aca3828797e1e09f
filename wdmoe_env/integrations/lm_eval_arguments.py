"""What a user of ``lm_eval`` writes behind ``--model_args``, and the seed of a document's channel."""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from wdmoe_env.checks import check_integer
from wdmoe_env.scoring import PolicyMaker


@dataclass(frozen=True, slots=True)
class Chosen:
    """A policy before it is made.

    Attributes:
        make: makes it; ``None`` is the model's own routing at equal shares.
        one_length: whether padding may matter to it, see ``Scorer``.
        settings: fields of ``EnvConfig`` that it needs.
    """

    make: PolicyMaker | None
    one_length: bool = False
    settings: Mapping[str, Any] = field(default_factory=dict)


def nested(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings in which ``channel.fading`` is a field ``fading`` of ``channel``.

    Args:
        settings: names to values.

    Raises:
        ValueError: both the whole and a field of it.
    """
    result = {name: value for name, value in settings.items() if "." not in name}
    fields: dict[str, dict[str, Any]] = defaultdict(dict)
    for name in settings.keys() - result.keys():
        outer, _, inner = name.partition(".")
        fields[outer][inner] = settings[name]
    both = sorted(result.keys() & fields.keys())
    if both:
        raise ValueError(f"expected {both[0]} as a whole or field by field, got both")
    return result | fields


def batch_size_of(value: int | str) -> int | None:
    """Windows at once, ``None`` for ``"auto"``, which the harness also writes ``"auto:4"``.

    Args:
        value: a number, its digits, or ``"auto"``.

    Raises:
        ValueError: anything else.
    """
    if isinstance(value, str) and value.partition(":")[0] == "auto":
        return None
    number = int(value) if isinstance(value, str) and value.isdecimal() else value
    check_integer("batch_size", number, at_least=1)
    return int(number)


def device_of(device: str | None) -> str:
    """The torch device; the harness asks for ``cuda:0`` where its user names none.

    Args:
        device: as given; ``None``, and CUDA where there is none, is the CPU.
    """
    there = device is not None and (torch.cuda.is_available() or not device.startswith("cuda"))
    return str(device) if there else "cpu"


def document_seed(document: Any, task: str | None, seed: int) -> int:
    """Seed of the channel that all requests of a document meet: its own ``channel_seed``, or one that follows from it.

    Args:
        document: of the task, with or without a whole number ``channel_seed``.
        task: its name.
        seed: of the model.
    """
    if isinstance(document, dict) and isinstance(document.get("channel_seed"), int):
        return int(document["channel_seed"])
    named = json.dumps([seed, task, document], sort_keys=True, default=str)
    return int.from_bytes(hashlib.sha256(named.encode()).digest()[:4], "big") // 2
