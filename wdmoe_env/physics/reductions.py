"""Reductions over the short axes of tokens, experts and devices, as products with ones.

NumPy reduces an axis of eight one row at a time; a product gives the same sums, to their rounding, several times
faster.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def any_over_last(flags: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Whether any of flags (..., X) is set, (...)."""
    found: NDArray[np.bool_] = flags @ np.ones(flags.shape[-1], dtype=bool)  # a product of booleans: "or" of "and"s
    return found


def sum_over_last(values: NDArray[Any]) -> NDArray[np.float64]:
    """Sums (...) of values, or counts of flags, (..., X)."""
    total: NDArray[np.float64] = values @ np.ones(values.shape[-1])
    return total


def sum_over_tokens(values: NDArray[Any]) -> NDArray[np.float64]:
    """Sums (..., X) of values, or counts of flags, (..., J, X)."""
    total: NDArray[np.float64] = np.ones(values.shape[-2]) @ values
    return total
