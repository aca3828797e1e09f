"""Torch's modes at a switch between a paused forward and its caller."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext

import torch

_NEUTRAL_ALREADY: AbstractContextManager[None] = nullcontext()


def neutral_modes(device_type: str) -> AbstractContextManager[None]:
    """A context with no gradients, no inference mode and no autocast; the former modes come back after it.

    These modes belong to the thread, and a greenlet switch does not exchange them. Where both sides of every
    switch are in this context, neither sees the other's modes: a learner's ``backward`` works while a forward
    pass is paused, and a learner's autocast does not reach the model.

    Args:
        device_type: of the model, ``"cpu"`` or ``"cuda"``.
    """
    if torch.is_inference_mode_enabled() or torch.is_autocast_enabled(device_type):
        return _without_any_mode(device_type)
    return torch.no_grad() if torch.is_grad_enabled() else _NEUTRAL_ALREADY


@contextmanager
def _without_any_mode(device_type: str) -> Iterator[None]:
    with ExitStack() as stack:
        if torch.is_inference_mode_enabled():
            stack.enter_context(torch.inference_mode(False))  # turns gradients on, so it comes first
        stack.enter_context(torch.no_grad())
        # Without the cache, or the other side's autocast would go on using casts of weights that have changed.
        stack.enter_context(torch.autocast(device_type, enabled=False, cache_enabled=False))
        yield
