"""What a user of ``lm_eval`` writes behind ``--model_args``, and the seed of a document's channel."""

from __future__ import annotations

import hashlib
import json
import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from numbers import Number
from reprlib import recursive_repr
from types import SimpleNamespace
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

    It is the same in every process: neither the order of a set nor the address of an object is part of it.

    Args:
        document: of the task, with or without a whole number ``channel_seed``.
        task: its name.
        seed: of the model.
    """
    if isinstance(document, dict) and isinstance(document.get("channel_seed"), int):
        return int(document["channel_seed"])
    named = json.dumps([seed, task, document], sort_keys=True, default=_text)
    return int.from_bytes(hashlib.sha256(named.encode()).digest()[:4], "big") // 2


def _text(value: Any) -> str:
    """``str`` of a value that JSON has no form for, without parts that differ from process to process."""
    kind: Any = type(value)
    return _lasting_repr(value) if kind.__str__ is object.__str__ else _without_addresses(str(value))


@recursive_repr()
def _lasting_repr(value: Any) -> str:
    """``repr``, but sets are in order, and objects without a ``repr`` of their own show what they hold.

    Where ``repr`` is the same in every process this is ``repr``, so that no seed depends on which one was asked.
    """
    kind: Any = type(value)
    if kind in (set, frozenset) and value and not all(map(_has_a_lasting_hash, value)):
        inside = "{" + ", ".join(sorted(map(_lasting_repr, value))) + "}"
        return inside if kind is set else f"frozenset({inside})"
    if kind in (list, tuple):
        inside = ", ".join(map(_lasting_repr, value))
        return f"[{inside}]" if kind is list else f"({inside}{',' * (len(value) == 1)})"
    if kind is dict:
        return "{" + ", ".join(f"{_lasting_repr(key)}: {_lasting_repr(item)}" for key, item in value.items()) + "}"
    if kind is SimpleNamespace:
        return f"namespace({_held(vars(value))})"
    if is_dataclass(kind) and hasattr(kind.__repr__, "__wrapped__"):  # not one that the class wrote itself
        shown = {field.name: getattr(value, field.name) for field in fields(value) if field.repr}
        return f"{type(value).__qualname__}({_held(shown)})"
    if kind.__repr__ is object.__repr__:
        return f"<{kind.__qualname__} {_held(getattr(value, '__dict__', {}))}>"
    return _without_addresses(repr(value))


def _held(attributes: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={_lasting_repr(value)}" for name, value in attributes.items())


def _has_a_lasting_hash(value: Any) -> bool:
    """Whether ``hash`` is the same in every process, and with it the place in a set: of numbers, not of texts."""
    if type(value) in (tuple, frozenset):
        return all(map(_has_a_lasting_hash, value))
    return isinstance(value, Number) and bool(value == value)  # the hash of NaN is its address


def _without_addresses(text: str) -> str:
    return re.sub(r" at 0x[0-9A-Fa-f]{6,}(?=[>;,])", "", text)
