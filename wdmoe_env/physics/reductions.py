"""Reductions over the short axes of tokens, experts and devices, as products with ones.

NumPy reduces an axis of eight one row at a time; a product gives the same sums, to their rounding, several times
faster. The ones are kept, since making them takes as long as the product.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray


def any_over_last(flags: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Whether any of flags (..., X) is set, (...)."""
    found: NDArray[np.bool_] = flags @ _ones(flags.shape[-1], np.bool_)  # a product of booleans: "or" of "and"s
    return found


def sum_over_last(values: NDArray[Any]) -> NDArray[np.float64]:
    """Sums (...) of values, or counts of flags, (..., X)."""
    total: NDArray[np.float64] = values @ _ones(values.shape[-1], np.float64)
    return total


def sum_over_tokens(values: NDArray[Any]) -> NDArray[np.float64]:
    """Sums (..., X) of values, or counts of flags, (..., J, X)."""
    total: NDArray[np.float64] = _ones(values.shape[-2], np.float64) @ values
    return total


@lru_cache(maxsize=64)
def _ones(size: int, kind: type[np.generic]) -> NDArray[Any]:
    ones = np.ones(size, dtype=kind)
    ones.flags.writeable = False
    return ones
