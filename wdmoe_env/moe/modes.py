"""Torch's modes at a switch between a paused forward and its caller."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch

_NEUTRAL_ALREADY: AbstractContextManager[None] = nullcontext()


def neutral_modes(device_type: str, inference: bool = False) -> AbstractContextManager[Any]:
    """A context without gradients and autocast, in inference mode or not; the former modes come back after it.

    These modes belong to the thread, and a greenlet switch does not exchange them. Where both sides of every
    switch are in this context, neither sees the other's modes: a learner's ``backward`` works while a forward
    pass is paused, and a learner's autocast does not reach the model.

    Args:
        device_type: of the model, ``"cpu"`` or ``"cuda"``.
        inference: whether in inference mode, which is faster; a learner's graph cannot use what is made there.
    """
    if torch.is_autocast_enabled(device_type):
        return _without_autocast(device_type, inference)
    if torch.is_inference_mode_enabled() != inference:
        return torch.inference_mode() if inference else _OutsideInference()
    return torch.no_grad() if torch.is_grad_enabled() else _NEUTRAL_ALREADY


class _OutsideInference(torch.inference_mode):
    """No inference mode, and no gradients either, which leaving it alone would turn on."""

    def __init__(self) -> None:
        super().__init__(False)

    def __enter__(self) -> None:
        super().__enter__()
        torch.set_grad_enabled(False)  # the former mode comes back with the inference mode


@contextmanager
def _without_autocast(device_type: str, inference: bool) -> Iterator[None]:
    # Without the cache, or the other side's autocast would go on using casts of weights that have changed.
    with torch.autocast(device_type, enabled=False, cache_enabled=False), neutral_modes(device_type, inference):
        yield
