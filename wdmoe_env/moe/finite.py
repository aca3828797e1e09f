"""Whether the numbers that a model hands out are finite, asked where they leave it."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray


def check_finite(model: Any, what: str, values: NDArray[Any]) -> None:
    """Refuse numbers that are NaN or infinite.

    A NaN in one weight spreads to all that is computed from it, so that rewards and statistics would be wrong or none.

    Args:
        model: the transformers model that the numbers come from.
        what: they are, for the message.
        values: of any shape, without those at padding, which nothing reads.

    Raises:
        FloatingPointError: one is not finite. The message names the model, what it is, and a weight that is not finite
            if there is one.
    """
    if not np.isfinite(values).all():
        raise FloatingPointError(f"the model {name_of(model)} hands out {what} that are not finite{clues(model)}")


def name_of(model: Any) -> str:
    """What messages call a model: its folder or hub id, or its class where it was made in memory."""
    return str(model.name_or_path or type(model).__name__)


def clues(model: Any) -> str:
    """What can be seen of why a model hands out NaN or infinity: a weight that does, and a type that ends early."""
    weights = model.named_parameters()
    name, weight = next(((name, one) for name, one in weights if not _is_finite(one)), ("", None))
    seen = f"; its weight {name} is not finite" if name else ""
    if model.dtype != torch.float16 or (weight is not None and bool(weight.isnan().any())):
        return seen
    return f'{seen}; float16 ends at 65504, and dtype="bfloat16" has the range of float32'


def _is_finite(weight: torch.Tensor) -> bool:
    return weight.is_meta or bool(weight.isfinite().all())  # one on torch's meta device has been moved out of memory
