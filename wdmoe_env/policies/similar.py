"""SiftMoE-like selection: a token's expert may be skipped, or replaced by a similar one, where the link makes it dear.

How similar two experts are is measured on calibration text by ``python -m train.similarity``. Of the paper (arXiv
2603.23888) an abstract was at hand; the measure, the bound and the search are our reconstruction.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from wdmoe_env.checks import check_number
from wdmoe_env.observations import Block, Sizes
from wdmoe_env.physics.latency import Bool, Float
from wdmoe_env.policies.related import pair_costs
from wdmoe_env.policies.rules import with_optimal_shares

Index = NDArray[np.intp]

DEFAULT_DAMAGE = 0.2
SHIPPED = Path(__file__).parents[1] / "assets" / "similarity" / "tiny.safetensors"
SHIPPED_SIZES = (6, 8, 128)
"""Blocks, experts and width of the model that the shipped distances are of, ``tiny``."""
BISECTIONS = 40
MOST_RATE = 1e9  # ms of latency for all of a token's weight, at which nothing is worth its damage


class SiftRule:
    """Of the ways to keep, skip or replace each of a token's routed experts the cheapest within a bound on the damage.

    A replaced expert's damage is its gate weight times its distance to the other, D(e, f) = E |E_e(x) - E_f(x)| /
    E |E_e(x)|, and a skipped one's all of its weight, D = 1. The sum over a token's experts stays within the bound. The
    routed expert of most weight may be replaced and not skipped. Costs are prices of block latency, as for ``des``. The
    bound is kept by a rate at which damage is priced, found by bisection for each token, which is exact on the convex
    hull of cost and damage. The model then weighs a replacement by its own gate probability.

    Args:
        distances: (I, E, E) of the experts of each block, as shares of an output's length; ``None`` where none are
            known: then experts are only skipped.
        damage: the bound, in gate weight; a token has 1.

    Raises:
        ValueError: distances of another shape, or negative ones; or a damage that is no number from 0 to 1e6.
    """

    def __init__(self, distances: Float | None, damage: float = DEFAULT_DAMAGE) -> None:
        if distances is not None:
            distances = np.asarray(distances, dtype=np.float64)
            if distances.ndim != 3 or distances.shape[1] != distances.shape[2] or not (distances >= 0).all():
                raise ValueError(f"expected distances (I, E, E) of at least 0, got an array of {distances.shape}")
        self.distances, self.damage = distances, check_number("damage", damage, at_least=0.0, at_most=1e6)

    def __call__(self, block: Block) -> tuple[Bool, Float]:
        """Decide for a block of N episodes."""
        selection = self.select(block, pair_costs(block, block.routed))
        return with_optimal_shares(block, selection)

    def select(self, block: Block, costs: Float) -> Bool:
        """The selection (N, J, E) at costs (N, E) of a pair of each expert, in ms."""
        most = block.routed.sum(axis=-1).max(initial=1)
        slots = np.argsort(-np.where(block.routed, block.weights, -1.0), axis=-1, kind="stable")[..., :most]
        filled = np.take_along_axis(block.routed, slots, axis=-1)
        weight = np.take_along_axis(block.weights, slots, axis=-1)
        damage, cost = self._options(block, slots, costs)
        known = np.isfinite(damage)
        damage = np.where(known, np.where(known, damage, 0.0) * weight[..., None], np.inf)
        low, high = np.zeros(filled.shape[:2]), np.full(filled.shape[:2], MOST_RATE)
        for _ in range(BISECTIONS):
            rate = np.sqrt(np.maximum(low, 1e-12) * high)
            done = _damage_of(_choice(cost, damage, rate), damage, filled) <= self.damage
            low, high = np.where(done, low, rate), np.where(done, rate, high)
        choice = _choice(cost, damage, high)
        marks = np.zeros((*block.routed.shape[:2], block.routed.shape[-1] + 1), dtype=np.bool_)
        rows = np.nonzero(filled)
        marks[rows[0], rows[1], choice[rows]] = True
        return marks[..., :-1] & block.usable

    def _options(self, block: Block, slots: Index, costs: Float) -> tuple[Float, Float]:
        """Distance and cost (N, J, k, E + 1) of what may stand for each routed expert; the last is to skip it."""
        batch, tokens, experts = block.routed.shape
        distance = self._of_blocks(block, experts)[np.arange(batch)[:, None, None], slots]
        usable = block.usable[:, :, None]
        distance = np.where(usable, distance, np.inf)
        skip = np.ones((batch, tokens, slots.shape[-1], 1))
        skip[:, :, 0] = np.inf
        price = np.broadcast_to(costs[:, None, None], distance.shape)
        return np.concatenate([distance, skip], axis=-1), np.concatenate([price, np.zeros_like(skip)], axis=-1)

    def _of_blocks(self, block: Block, experts: int) -> Float:
        """Distances (N, E, E) in the block of each episode."""
        if self.distances is None:
            alone = np.full((experts, experts), np.inf)
            np.fill_diagonal(alone, 0.0)
            return np.broadcast_to(alone, (len(block.index), experts, experts))
        number = np.rint(block.index * len(self.distances)).astype(np.int64)
        return self.distances[np.minimum(number, len(self.distances) - 1)]


def _choice(cost: Float, damage: Float, rate: Float) -> Index:
    """The option (N, J, k) of least cost and priced damage; of equal ones that of least damage comes by the rate."""
    total = np.where(
        np.isfinite(damage), cost + rate[..., None, None] * np.where(np.isfinite(damage), damage, 0.0), np.inf
    )
    chosen: Index = total.argmin(axis=-1)
    return chosen


def _damage_of(choice: Index, damage: Float, filled: Bool) -> Float:
    """Damage (N, J) of a choice (N, J, k)."""
    taken = np.take_along_axis(damage, choice[..., None], axis=-1)[..., 0]
    return np.where(filled, taken, 0.0).sum(axis=-1)


@lru_cache(maxsize=8)
def read_distances(path: Path = SHIPPED) -> Float:
    """Distances (I, E, E) of a file that ``python -m train.similarity`` wrote.

    Raises:
        ValueError: the file has none.
        OSError: it cannot be read.
    """
    from safetensors.numpy import load  # only here: most rules need no file

    tensors = load(path.read_bytes())
    if "distances" not in tensors:
        raise ValueError(f"expected distances in {path}, found {', '.join(sorted(tensors)) or 'nothing'}")
    return tensors["distances"].astype(np.float64)


def sift_rule(sizes: Sizes | None, damage: float = DEFAULT_DAMAGE) -> SiftRule:
    """The rule for an environment's sizes: with the distances that ship for ``tiny``, or without any.

    Args:
        sizes: of the environment; ``None`` where it is not known.
        damage: see ``SiftRule``.
    """
    ships = sizes is not None and (sizes.num_blocks, sizes.num_experts, sizes.hidden_size) == SHIPPED_SIZES
    return SiftRule(read_distances() if ships else None, damage)
