"""A joint decision with its objective, and the record of how an optimizer came to it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from wdmoe_env.optimize.bandwidth import BandwidthSolution
from wdmoe_env.physics.latency import Bool, Float


@dataclass(frozen=True, slots=True)
class JointSolution:
    """A joint decision and how it was reached.

    Attributes:
        selection: (N, J, E).
        shares: (N, U).
        latency_s: (N,) block latency.
        wlr_per_ms: (N,) objective (8), 0 where nothing is loaded.
        threshold: (N,) of the paper's rule; NaN where the rule has none.
        iterations: (N,) alternations tried, the last and refused one included.
        history: (K, N) objective at the start and after each round of alternations; it never falls.
    """

    selection: Bool
    shares: Float
    latency_s: Float
    wlr_per_ms: Float
    threshold: Float
    iterations: NDArray[np.int64]
    history: Float


@dataclass(frozen=True, slots=True)
class Point:
    """A joint decision with its objective.

    Attributes:
        selection: (N, J, E).
        bandwidth: shares and latency.
        wlr: (N,) objective (8) in 1/ms.
    """

    selection: Bool
    bandwidth: BandwidthSolution
    wlr: Float

    def rows(self, index: NDArray[np.int64] | Bool) -> Point:
        """The point of some rows, by indices (n,) or marks (N,)."""
        return Point(self.selection[index], self.bandwidth.rows(index), self.wlr[index])

    def replaced(self, index: NDArray[np.int64], other: Point) -> Point:
        """This point with the rows ``index`` (n,) taken from ``other``, a point of n rows."""
        copy = Point(
            self.selection.copy(),
            BandwidthSolution(self.bandwidth.shares.copy(), self.bandwidth.latency_s.copy()),
            self.wlr.copy(),
        )
        copy.selection[index], copy.wlr[index] = other.selection, other.wlr
        copy.bandwidth.shares[index], copy.bandwidth.latency_s[index] = (
            other.bandwidth.shares,
            other.bandwidth.latency_s,
        )
        return copy


@dataclass(frozen=True, slots=True)
class Run:
    """Where an optimizer stands.

    Attributes:
        point: the best decision so far.
        iterations: (N,) alternations tried.
        history: objective (N,) in 1/ms at the start and after each iteration.
    """

    point: Point
    iterations: NDArray[np.int64]
    history: list[Float]

    @classmethod
    def at(cls, point: Point) -> Run:
        """A run that has just begun; its history holds the start."""
        return cls(point, np.zeros(len(point.wlr), dtype=np.int64), [point.wlr])

    def after(self, rows: Bool, point: Point) -> Run:
        """One more iteration in the marked rows (N,)."""
        return Run(point, self.iterations + rows, [*self.history, point.wlr])

    def solution(self, threshold: Float) -> JointSolution:
        """The public form, with the threshold (N,) that was used."""
        point = self.point
        return JointSolution(
            selection=point.selection,
            shares=point.bandwidth.shares,
            latency_s=point.bandwidth.latency_s,
            wlr_per_ms=point.wlr,
            threshold=threshold,
            iterations=self.iterations,
            history=np.stack(self.history),
        )
