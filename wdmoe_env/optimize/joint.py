"""Selection and bandwidth together, problem (9): the WDMoE paper's alternation, and a fractional program.

Both raise the weight-to-latency ratio (8) from the model's own routing with uniform shares, and neither ever
lets it fall. The paper's alternation is a reconstruction.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from wdmoe_env.checks import check_integer, check_number, real_array
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
from wdmoe_env.physics.reductions import any_over_last

LEAST_GAIN = 1e-12

Index = NDArray[np.int64]


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

    def rows(self, index: Index) -> _Problem:
        """The problem of some rows."""
        return replace(self, links=self.links.rows(index), weights=self.weights[index], routed=self.routed[index])

    def climb(self, run: Run, rows: Bool, propose: _Proposal) -> Run:
        """Take proposals in the marked rows, one after another until one does not raise (8), which is refused."""
        rows = rows.copy()
        for tries in range(self.max_iterations):
            active = np.flatnonzero(rows)
            if not active.size:
                break
            proposed = propose(self.rows(active), run.point.rows(active), active)
            point, better = self.attempt(run.point, active, proposed, np.full(len(active), tries > 0))
            run = run.after(rows, point)
            rows[active] = better
        return run

    def attempt(self, point: Point, active: Index, selection: Bool, solved: Bool) -> tuple[Point, Bool]:
        """Take selections where they raise (8).

        Args:
            point: the present one of all rows.
            active: (n,) rows that try something.
            selection: (n, J, E) what they try.
            solved: (n,) whether the row has the shares of its present selection, so that trying it again is idle.

        Returns:
            The next point of all rows, and which of the active rows (n,) it is better for.
        """
        better = ~solved | _differ(selection, point.selection[active])
        rows = active[better]
        if rows.size:
            trial = self.rows(rows).point(selection[better])
            raised = trial.wlr > point.wlr[rows] * (1.0 + LEAST_GAIN)
            point = point.replaced(rows[raised], trial.rows(raised))
            better[better] = raised
        return point, better


_Proposal = Callable[[_Problem, Point, Index], Bool]
"""(problem of some rows, their present point, which rows they are) -> their next selection."""


def _paper_proposal(threshold: Float) -> _Proposal:
    """The paper's rule under a threshold (N,), at the present shares."""

    def propose(part: _Problem, present: Point, active: Index) -> Bool:
        latency = expert_token_latency_s(part.links, present.bandwidth.shares)
        return paper_selection(part.weights, part.routed, latency, threshold[active])

    return propose


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
    weights, (routed,) = check_selection(links, weights, ("routed", routed))
    threshold_step = check_number("threshold_step", threshold_step)
    stopping_gain = check_number("stopping_gain", stopping_gain)
    if not threshold_step > 0:
        raise ValueError(f"threshold_step must be positive, got {threshold_step}")
    if not stopping_gain >= 0:
        raise ValueError(f"stopping_gain must not be negative, got {stopping_gain}")
    max_iterations = check_integer("max_iterations", max_iterations, at_least=0)
    problem = _Problem(links, weights, routed, min_share, solve_bandwidth, max_iterations)
    start = problem.point(routed, uniform=True)
    everywhere = np.ones(len(weights), dtype=np.bool_)
    if select and threshold is not None:
        number = real_array("threshold", threshold)
        if number.ndim:
            raise ValueError(f"threshold must be a number, got an array of shape {number.shape}")
        fixed = np.full(len(weights), number)
        return problem.climb(Run.at(start), everywhere, _paper_proposal(fixed)).solution(fixed)
    run = Run.at(start).after(everywhere, problem.point(routed))
    if not select:
        return run.solution(np.zeros(len(weights)))
    return _grow_threshold(problem, start, run, stopping_gain, threshold_step)


def _grow_threshold(problem: _Problem, start: Point, run: Run, stopping_gain: float, step: float) -> JointSolution:
    """Raise the threshold of each row step by step while its objective improves enough, each row at its own pace.

    At its next threshold a row alternates from the start to a fixed point, which is then set against its best so far.
    """
    latency = expert_token_latency_s(problem.links, start.bandwidth.shares)
    least = gate_latency_similarity(problem.weights, problem.routed, latency).min(axis=-1)
    last = np.ceil(1.0 / step)
    steps = np.where(np.isfinite(least), np.maximum(np.ceil(least / step) - 1.0, 0.0), last)
    rows, trial, tries = steps < last, start, np.zeros(len(steps), dtype=np.int64)
    while rows.any():
        active = np.flatnonzero(rows)
        propose = _paper_proposal(np.minimum((steps + 1.0) * step, 1.0))
        proposed = propose(problem.rows(active), trial.rows(active), active)
        trial, better = problem.attempt(trial, active, proposed, tries[active] > 0)
        tries[active] += 1
        ended = active[~better | (tries[active] >= problem.max_iterations)]
        passed = ended[_is_enough(trial.rows(ended), run.point.rows(ended), stopping_gain)]
        kept = passed[trial.wlr[passed] > run.point.wlr[passed]]
        run = run.after(rows, run.point.replaced(kept, trial.rows(kept)))
        trial, tries[ended] = trial.replaced(ended, start.rows(ended)), 0
        steps[passed] += 1.0
        rows[ended], rows[passed] = False, steps[passed] < last
    return run.solution(np.minimum(steps * step, 1.0))


def _is_enough(trial: Point, best: Point, stopping_gain: float) -> Bool:
    """Whether a threshold's outcome lets it grow on (n,): it gained enough, or changed no selection."""
    changed = _differ(trial.selection, best.selection)
    return trial.wlr >= best.wlr * np.where(changed, 1.0 + stopping_gain, 1.0 - LEAST_GAIN)


def _differ(one: Bool, other: Bool) -> Bool:
    """Whether two selections (n, J, E) differ, (n,)."""
    return any_over_last(any_over_last(one != other))


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
    masks = ("routed", routed), ("candidates", routed if candidates is None else candidates)
    weights, (routed, candidates) = check_selection(links, weights, *masks)
    max_iterations = check_integer("max_iterations", max_iterations, at_least=0)
    problem = _Problem(links, weights, routed, min_share, solve_bandwidth=True, max_iterations=max_iterations)
    rows = np.ones(len(weights), dtype=np.bool_)
    run = Run.at(problem.point(routed, uniform=True)).after(rows, problem.point(routed))

    def propose(part: _Problem, present: Point, active: Index) -> Bool:
        usable, start = candidates[active], present.selection
        selection, _ = marginal_price_selection(
            part.links, part.weights, part.routed, present.wlr, usable, min_share, start, keep_best
        )
        return selection

    return problem.climb(run, rows, propose).solution(np.full(len(weights), np.nan))
