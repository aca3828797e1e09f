"""Whether a model's attention takes slots: it is tried out on two short texts, read in chunks side by side.

A model with state-space layers keeps no keys and values, one with a sliding window drops some, and some compute their
own masks. Whatever the reason, its rows would not be those of a whole forward, and it is refused.
"""

from __future__ import annotations

import os
import weakref
from typing import Any

import numpy as np
import torch

from wdmoe_env.moe.finite import name_of
from wdmoe_env.moe.split import SplitModel, neutral_modes
from wdmoe_env.serving.cache import SlotCache
from wdmoe_env.serving.passes import Layout, read_rows

LENGTHS = (9, 6)
TURNS = ((0,), (0, 1), (1,), (0, 1), (0, 1), (0, 1), (0, 1))
"""Of which of the two texts a pass reads, three tokens of the first and two of the second while there are some."""
TOLERANCE = {torch.float32: 1e-3}
COARSE = 5e-2
"""Largest difference to a whole forward, by the largest number there; of types with fewer bits, ``COARSE``."""

_found: weakref.WeakKeyDictionary[SplitModel, tuple[str, int]] = weakref.WeakKeyDictionary()
"""By model why it cannot, empty where it can, and the bytes that the cache keeps of a token."""

BYTES_OF_GATE = 64
"""Of a row and expert, in what is seen, decided and measured of a block, about."""


def why_not(model: SplitModel, longest: int) -> str:
    """Why a model cannot serve requests of at most so many tokens; empty where it can.

    Args:
        model: the split model.
        longest: tokens of the longest request.
    """
    window = attention_window(model.model.config.get_text_config())
    if window is not None and window < longest:
        return f"its attention looks back {window} tokens, and a request may have {longest}"
    return _tried_once(model)[0]


def _tried_once(model: SplitModel) -> tuple[str, int]:
    if model not in _found:
        _found[model] = _tried(model)
    return _found[model]


def check_memory(model: SplitModel, slots: int, chunk: int, longest: int, cells: int = 1) -> None:
    """Refuse slots whose cache, or whose rows, are more than the memory of the machine.

    Args:
        model: the split model.
        slots: S of a cell.
        chunk: tokens C of a prompt in a pass.
        longest: tokens of the longest request.
        cells: N.

    Raises:
        ValueError: they are.
    """
    kept = cells * slots * (longest + chunk) * _tried_once(model)[1]
    rows = cells * slots * chunk * model.num_experts * BYTES_OF_GATE
    there = memory_bytes()
    if kept + rows > there:
        raise ValueError(
            f"slots and chunk must fit the memory of {there / 2**30:.1f} GiB: {cells} x {slots} slots with chunks of "
            f"{chunk} tokens take {kept / 2**30:.1f} GiB in the cache and about {rows / 2**30:.1f} GiB beside it"
        )


def memory_bytes() -> int:
    """Bytes of memory that the machine has; beyond any need where the system does not say."""
    if not hasattr(os, "sysconf"):
        return 2**62
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def check_serves(model: SplitModel, longest: int) -> None:
    """Refuse a model whose attention does not take slots.

    Args:
        model: the split model.
        longest: tokens of the longest request.

    Raises:
        ValueError: it does not.
    """
    reason = why_not(model, longest)
    if reason:
        raise ValueError(f"the model {name_of(model.model)} cannot serve requests in slots: {reason}")


def attention_window(config: Any) -> int | None:
    """Tokens that the attention of some layer looks back at most; ``None`` where it looks back at all."""
    if getattr(config, "use_sliding_window", True) is False:
        return None
    layers = getattr(config, "layer_types", None) or ("sliding_attention", "chunked_attention")
    named = {"sliding_attention": "sliding_window", "chunked_attention": "attention_chunk_size"}
    sizes = [getattr(config, field, None) for kind, field in named.items() if kind in layers]
    known = [size for size in sizes if isinstance(size, int) and size > 0]
    return min(known) if known else None


def _tried(model: SplitModel) -> tuple[str, int]:
    length = max(LENGTHS)
    ids = np.linspace(1, model.vocabulary_size - 1, 2 * length, dtype=np.int64).reshape(2, length)
    cache = SlotCache(2, length + length)
    read: list[list[torch.Tensor]] = [[], []]
    start = [0, 0]
    try:
        with neutral_modes(model.device.type, inference=True):
            for texts in TURNS:
                _read(model, cache, ids, texts, start, read)
            whole = [model.own_rows(torch.from_numpy(ids[n : n + 1, : LENGTHS[n]]))[0] for n in range(2)]
    except Exception as error:  # whatever a model raises that was not made for such a cache
        return f"its attention does not take a cache of slots ({type(error).__name__})", 0
    difference = max(float((torch.cat(read[n]) - whole[n]).abs().max() / whole[n].abs().max()) for n in range(2))
    if not difference <= TOLERANCE.get(model.dtype, COARSE):
        return "text read in chunks beside another does not come out as in a whole forward", 0
    return "", cache.bytes_per_token


def _read(
    model: SplitModel,
    cache: SlotCache,
    ids: np.ndarray[Any, np.dtype[np.int64]],
    texts: tuple[int, ...],
    start: list[int],
    read: list[list[torch.Tensor]],
) -> None:
    """One pass over up to three further tokens of each of these texts that has some left."""
    left = [n for n in texts if start[n] < LENGTHS[n]]
    if not left:
        return
    count = np.array([min(3 - n, LENGTHS[n] - start[n]) for n in left])
    begin, rows = np.array([start[n] for n in left]), np.array(left)
    tokens = np.concatenate([ids[n, start[n] : start[n] + one] for n, one in zip(left, count, strict=True)])
    found = read_rows(model, cache, tokens, Layout(np.arange(len(rows)), rows, begin, count))
    for n, one, end in zip(left, count, np.cumsum(count), strict=True):
        read[n].append(found[end - one : end])
        start[n] += int(one)
