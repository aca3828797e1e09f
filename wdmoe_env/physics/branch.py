"""Randomness beside the channel's: a generator that follows from an episode's and leaves it where it is.

What can be switched on, such as outages, must not move what is drawn without it: an episode has the same window and the
same channel with it and without, and so has the next one of the same generator.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy

import numpy as np
from numpy.typing import NDArray

OUTAGES, CHANNEL_ESTIMATE = 0, 1
"""What a branch is for: two branches of one generator have nothing to do with each other."""


def branch(generator: np.random.Generator, purpose: int) -> np.random.Generator:
    """A generator whose seed is what ``generator`` would draw next. It is not advanced.

    Args:
        generator: of an episode.
        purpose: what is drawn from the branch.
    """
    seed = deepcopy(generator).integers(2**63, size=2)
    return np.random.default_rng([*map(int, seed), purpose])


def branch_uniforms(
    generators: Sequence[np.random.Generator], purpose: int, shape: tuple[int, int]
) -> NDArray[np.float64]:
    """Uniforms (I, N, U), the I blocks of each episode out of its own branch, one block after the other.

    Args:
        generators: N of them.
        purpose: what is drawn.
        shape: (I, U).
    """
    return _stacked([branch(generator, purpose).random(shape) for generator in generators], shape)


def branch_normals(
    generators: Sequence[np.random.Generator], purpose: int, shape: tuple[int, int]
) -> NDArray[np.float64]:
    """Standard normals (I, N, U); see ``branch_uniforms``.

    Args:
        generators: N of them.
        purpose: what is drawn.
        shape: (I, U).
    """
    return _stacked([branch(generator, purpose).standard_normal(shape) for generator in generators], shape)


def _stacked(drawn: list[NDArray[np.float64]], shape: tuple[int, int]) -> NDArray[np.float64]:
    """(I, N, U) of N draws (I, U), which may be none."""
    return np.stack(drawn, axis=1) if drawn else np.empty((shape[0], 0, shape[1]))
