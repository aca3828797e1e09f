"""Selection and bandwidth together, problem (9): the WDMoE paper's alternation, and a fractional program.

Both raise the weight-to-latency ratio (8) from the model's own routing with uniform shares, and neither ever
lets it fall. The paper's alternation is a reconstruction.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from wdmoe_env.optimize.bandwidth import BandwidthSolution, solve_min_max
from wdmoe_env.optimize.decision import JointSolution, Point, Run
from wdmoe_env.optimize.selection import (
    expert_token_latency_s,
    gate_latency_similarity,
    marginal_price_selection,
    paper_selection,
)
from wdmoe_env.optimize.validate import check_links, check_selection
from wdmoe_env.physics.latency import (
    BlockLinks,
    Bool,
    Float,
    block_latency_s,
    device_latency_s,
    device_load,
    equal_shares,
)
from wdmoe_env.physics.metric import weight_served, wlr_per_ms

LEAST_GAIN = 1e-12


@dataclass(frozen=True, slots=True)
class _Problem:
    """What the alternation needs to score a selection."""

    links: BlockLinks
    weights: Float
    routed: Bool
    min_share: float
    solve_bandwidth: bool
    max_iterations: int

    def point(self, selection: Bool, uniform: bool = False) -> Point:
        """The selection with optimal shares, or with uniform ones."""
        load = device_load(selection, self.links.placement)
        if self.solve_bandwidth and not uniform:
            bandwidth = solve_min_max(self.links, load, self.min_share)
        else:
            shares = equal_shares(*self.links.compute_s.shape)
            bandwidth = BandwidthSolution(shares, block_latency_s(device_latency_s(self.links, load, shares)))
        # A row of padding has neither weight nor latency; its ratio is 0.
        latency = np.where(bandwidth.latency_s > 0, bandwidth.latency_s, np.inf)
        return Point(selection, bandwidth, wlr_per_ms(weight_served(self.weights, selection), latency))

    def rows(self, index: NDArray[np.int64]) -> _Problem:
        """The problem of some rows."""
        return replace(self, links=self.links.rows(index), weights=self.weights[index], routed=self.routed[index])

    def climb(self, run: Run, rows: Bool, propose: _Proposal) -> Run:
        """Take proposals in the marked rows, one after another until one does not raise (8), which is refused."""
        for _ in range(self.max_iterations):
            active = np.flatnonzero(rows)
            if not active.size:
                break
            part, present = self.rows(active), run.point.rows(active)
            trial = part.point(propose(part, present, active))
            better = trial.wlr > present.wlr * (1.0 + LEAST_GAIN)
            run = run.after(rows, run.point.replaced(active[better], trial.rows(better)))
            rows = np.zeros_like(rows)
            rows[active[better]] = True
        return run

    def alternate(self, point: Point, threshold: Float, rows: Bool) -> Run:
        """Alternate the paper's selection and the shares to a fixed point in the marked rows."""

        def propose(part: _Problem, present: Point, active: NDArray[np.int64]) -> Bool:
            latency = expert_token_latency_s(part.links, present.bandwidth.shares)
            return paper_selection(part.weights, part.routed, latency, threshold[active])

        return self.climb(Run.at(point), rows, propose)


_Proposal = Callable[[_Problem, Point, NDArray[np.int64]], Bool]
"""(problem of some rows, their present point, which rows they are) -> their next selection."""


def joint_optimize(
    links: BlockLinks,
    weights: Float,
    routed: Bool,
    threshold: float | None = None,
    stopping_gain: float = 0.0,
    threshold_step: float = 0.05,
    min_share: float = 0.0,
    max_iterations: int = 20,
    solve_bandwidth: bool = True,
    select: bool = True,
) -> JointSolution:
    """The WDMoE paper's optimizer as reconstructed: alternate its selection rule and the min-max shares.

    From the model's own routing and uniform shares, each iteration selects by ``paper_selection`` at the present
    shares, then solves the shares for that selection; it ends at a fixed point, or before a step that would not
    raise (8). Without a given threshold this is done for one threshold after another, in steps from the largest
    at which nothing is dropped, while (8) improves by ``stopping_gain``; a step that changes no selection tells
    nothing and is passed over.

    Args:
        links: the block's links.
        weights: (N, J, E) gate weights.
        routed: (N, J, E) the model's own choice; a row without any is padding and stays empty.
        threshold: fixes the threshold of the selection rule.
        stopping_gain: relative gain of (8) below which a step is undone and the threshold stops.
        threshold_step: step of the growing threshold.
        min_share: least share of a loaded device.
        max_iterations: most alternations at one threshold.
        solve_bandwidth: whether shares are solved; uniform otherwise (ablation).
        select: whether experts are dropped; the model's own choice otherwise (ablation).

    Returns:
        The decision; ``threshold`` is 0 where none was applied.

    Raises:
        TypeError: a mask is not boolean.
        ValueError: a shape or a value is wrong.
    """
    check_links(links)
    check_selection(links, weights, ("routed", routed))
    if not threshold_step > 0:
        raise ValueError(f"threshold_step must be positive, got {threshold_step}")
    if not stopping_gain >= 0:
        raise ValueError(f"stopping_gain must not be negative, got {stopping_gain}")
    problem = _Problem(links, weights, routed, min_share, solve_bandwidth, max_iterations)
    start = problem.point(routed, uniform=True)
    everywhere = np.ones(len(weights), dtype=np.bool_)
    if select and threshold is not None:
        fixed = np.full(len(weights), float(threshold))
        return problem.alternate(start, fixed, everywhere).solution(fixed)
    run = Run.at(start).after(everywhere, problem.point(routed))
    if not select:
        return run.solution(np.zeros(len(weights)))
    return _grow_threshold(problem, start, run, stopping_gain, threshold_step)


def _grow_threshold(problem: _Problem, start: Point, run: Run, stopping_gain: float, step: float) -> JointSolution:
    """Raise the threshold of each row step by step while its objective improves enough."""
    latency = expert_token_latency_s(problem.links, start.bandwidth.shares)
    least = gate_latency_similarity(problem.weights, problem.routed, latency).min(axis=-1)
    last = np.ceil(1.0 / step)
    steps = np.where(np.isfinite(least), np.maximum(np.ceil(least / step) - 1.0, 0.0), last)
    rows = steps < last
    while rows.any():
        trial = problem.alternate(start, np.minimum((steps + 1.0) * step, 1.0), rows)
        same = (trial.point.selection == run.point.selection).all(axis=(1, 2))
        needed = np.where(same, 1.0 - LEAST_GAIN, 1.0 + stopping_gain)
        rows = rows & (trial.point.wlr >= run.point.wlr * needed)
        run = run.then(trial, rows & (trial.point.wlr > run.point.wlr))
        steps = steps + rows
        rows = rows & (steps < last)
    return run.solution(np.minimum(steps * step, 1.0))


def fractional_program(
    links: BlockLinks,
    weights: Float,
    routed: Bool,
    candidates: Bool | None = None,
    min_share: float = 0.0,
    max_iterations: int = 50,
    keep_best: bool = False,
) -> JointSolution:
    """Raise (8) itself: Dinkelbach's iteration on W - lambda t with the marginal-price rule inside.

    lambda is the ratio W / t of the present decision, at which W - lambda t is 0; a decision that raises the
    difference above 0 has a greater ratio, and becomes the next. Ends where the rule finds none.

    Args:
        links: the block's links.
        weights: (N, J, E) gate weights.
        routed: (N, J, E) the model's own choice; a row without any is padding and stays empty.
        candidates: (N, J, E) experts that a token may use besides its routed ones.
        min_share: least share of a loaded device.
        max_iterations: most values of lambda.
        keep_best: whether a token always keeps its routed expert of most weight.

    Returns:
        The decision; ``threshold`` is NaN.

    Raises:
        TypeError: a mask is not boolean.
        ValueError: a shape or a value is wrong.
    """
    check_links(links)
    check_selection(links, weights, ("routed", routed))
    problem = _Problem(links, weights, routed, min_share, solve_bandwidth=True, max_iterations=max_iterations)
    rows = np.ones(len(weights), dtype=np.bool_)
    run = Run.at(problem.point(routed, uniform=True)).after(rows, problem.point(routed))

    def propose(part: _Problem, present: Point, active: NDArray[np.int64]) -> Bool:
        usable = None if candidates is None else candidates[active]
        selection, _ = marginal_price_selection(
            part.links, part.weights, part.routed, present.wlr, usable, min_share, present.selection, keep_best
        )
        return selection

    return problem.climb(run, rows, propose).solution(np.full(len(weights), np.nan))
