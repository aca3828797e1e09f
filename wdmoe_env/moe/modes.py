"""Torch's modes at a switch between a paused forward and its caller."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch


@contextmanager
def neutral_modes(device_type: str) -> Iterator[None]:
    """No gradients, no inference mode, no autocast inside; the former modes after.

    These modes belong to the thread, and a greenlet switch does not exchange them. Where both sides of every
    switch are in this context, neither sees the other's modes: a learner's ``backward`` works while a forward
    pass is paused, and a learner's autocast does not reach the model.

    Args:
        device_type: of the model, ``"cpu"`` or ``"cuda"``.
    """
    with ExitStack() as stack:
        if torch.is_inference_mode_enabled():
            stack.enter_context(torch.inference_mode(False))  # turns gradients on, so it comes first
        if torch.is_grad_enabled():
            stack.enter_context(torch.no_grad())
        if torch.is_autocast_enabled(device_type):
            stack.enter_context(torch.autocast(device_type, enabled=False))
        yield
