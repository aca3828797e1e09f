"""Selection and bandwidth together, problem (9): the WDMoE paper's alternation, and a fractional program.

Both raise the weight-to-latency ratio (8) from the model's own routing, and neither ever lets it fall. The
paper's alternation is a reconstruction.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from wdmoe_env.checks import check_number, real_array
from wdmoe_env.optimize.problem import BlockProblem, Decision, Index
from wdmoe_env.optimize.selection import (
    expert_token_latency_s,
    gate_latency_similarity,
    marginal_price_search,
    paper_selection,
    starts,
)
from wdmoe_env.physics.latency import Bool, Float, equal_shares

LEAST_GAIN = 1e-12
THRESHOLD_STEP = 0.05
MOST_ALTERNATIONS = 20  # at one threshold
MOST_RATIOS = 50  # values of lambda that the fractional program tries

_Solve = Callable[[BlockProblem, Bool], Decision]
"""(problem of some rows, their selection) -> the decision, with the shares that belong to it."""

_Proposal = Callable[[BlockProblem, Decision, Index], Bool]
"""(problem of some rows, their present decision, which rows they are) -> their next selection."""


def joint_optimize(
    problem: BlockProblem,
    threshold: float | None = None,
    stopping_gain: float = 0.0,
    solve_bandwidth: bool = True,
) -> Decision:
    """The WDMoE paper's optimizer as reconstructed: alternate its selection rule and the min-max shares.

    From the model's own routing and uniform shares, each iteration selects by ``paper_selection`` at the present
    shares, then solves the shares for that selection. It ends at a fixed point, or before a step that would not
    raise (8). Without a given threshold this is done for one threshold after another, in steps of
    ``THRESHOLD_STEP`` from the largest at which nothing is dropped, while (8) improves by ``stopping_gain``. A
    step that changes no selection tells nothing and is passed over.

    Args:
        problem: the blocks; their candidates and price are not used.
        threshold: fixes the threshold of the selection rule.
        stopping_gain: relative gain of (8) below which a step is undone and the threshold stops.
        solve_bandwidth: whether shares are solved; otherwise they stay uniform, which is the paper's ablation.

    Raises:
        TypeError: a mask is not boolean.
        ValueError: a shape or a value is wrong.
    """
    problem = problem.checked()
    stopping_gain = check_number("stopping_gain", stopping_gain)
    if not stopping_gain >= 0:
        raise ValueError(f"stopping_gain must not be negative, got {stopping_gain}")
    solve = BlockProblem.with_optimal_shares if solve_bandwidth else _with_uniform_shares
    start = _with_uniform_shares(problem, problem.routed)
    if threshold is not None:
        number = real_array("threshold", threshold)
        if number.ndim:
            raise ValueError(f"threshold must be a number, got an array of shape {number.shape}")
        fixed = np.full(len(problem.weights), number)
        return _climb(problem, start, _paper_proposal(fixed), solve, MOST_ALTERNATIONS, solved=False)
    return _grow_threshold(problem, start, solve(problem, problem.routed), solve, stopping_gain)


def fractional_program(problem: BlockProblem, keep_best: bool = False) -> Decision:
    """Raise (8) itself: Dinkelbach's iteration on W - lambda t with the marginal-price rule inside.

    lambda is the ratio W / t of the present decision, at which W - lambda t is 0. A decision that raises the
    difference above 0 has a greater ratio, and becomes the next. The iteration ends where the rule finds none. Where
    weights are read, the best end of all ``starts`` of ``wdmoe_env.optimize.selection`` is taken.

    Args:
        problem: the blocks; their price is not used.
        keep_best: whether a token always keeps its routed expert of most weight.

    Raises:
        TypeError: a mask is not boolean.
        ValueError: a shape or a value is wrong.
    """
    problem = problem.checked()

    def propose(part: BlockProblem, present: Decision, active: Index) -> Bool:
        priced = replace(part, price_per_ms=present.wlr_per_ms)
        return marginal_price_search(priced, present.selection, keep_best).selection

    solve = BlockProblem.with_optimal_shares
    best, *others = (
        _climb(problem, solve(problem, start), propose, solve, MOST_RATIOS, solved=True) for start in starts(problem)
    )
    for other in others:
        rows = np.flatnonzero(other.wlr_per_ms > best.wlr_per_ms)
        best = best.replaced(rows, other.rows(rows))
    return best


def _with_uniform_shares(problem: BlockProblem, selection: Bool) -> Decision:
    return problem.with_shares(selection, equal_shares(*problem.links.compute_s.shape))


def _paper_proposal(threshold: Float) -> _Proposal:
    """The paper's rule under a threshold (N,), at the present shares."""

    def propose(part: BlockProblem, present: Decision, active: Index) -> Bool:
        latency = expert_token_latency_s(part.links, present.shares, present.selection)
        return paper_selection(part.weights, part.routed, latency, threshold[active])

    return propose


def _climb(
    problem: BlockProblem, decision: Decision, propose: _Proposal, solve: _Solve, most_tries: int, solved: bool
) -> Decision:
    """Take proposals in every row, one after another until one does not raise (8), which is refused.

    Args:
        problem: the blocks.
        decision: where to begin.
        propose: the next selection of some rows.
        solve: the shares of a selection.
        most_tries: proposals of a row at most.
        solved: whether the decision at the beginning has the shares that ``solve`` would give it.
    """
    active = np.arange(len(problem.weights))
    for _ in range(most_tries):
        if not active.size:
            break
        proposed = propose(problem.rows(active), decision.rows(active), active)
        decision, better = _attempt(problem, decision, active, proposed, np.full(len(active), solved), solve)
        active, solved = active[better], True
    return decision


def _attempt(
    problem: BlockProblem, decision: Decision, active: Index, selection: Bool, solved: Bool, solve: _Solve
) -> tuple[Decision, Bool]:
    """Take selections where they raise (8).

    Args:
        problem: the blocks.
        decision: the present one of all rows.
        active: (n,) rows that try something.
        selection: (n, J, E) what they try.
        solved: (n,) whether the row has the shares of its present selection, so that trying it again is idle.
        solve: the shares of a selection.

    Returns:
        The next decision of all rows, and which of the active rows (n,) it is better for.
    """
    better = ~solved | _differ(selection, decision.selection[active])
    rows = active[better]
    if rows.size:
        trial = solve(problem.rows(rows), selection[better])
        raised = trial.wlr_per_ms > decision.wlr_per_ms[rows] * (1.0 + LEAST_GAIN)
        decision = decision.replaced(rows[raised], trial.rows(raised))
        better[better] = raised
    return decision, better


def _grow_threshold(
    problem: BlockProblem, start: Decision, best: Decision, solve: _Solve, stopping_gain: float
) -> Decision:
    """Raise the threshold of each row step by step while its objective improves enough, each row at its own pace.

    At its next threshold a row alternates from the start to a fixed point, which is then set against its best so far.
    """
    latency = expert_token_latency_s(problem.links, start.shares, start.selection)
    least = gate_latency_similarity(problem.weights, problem.routed, latency).min(axis=-1)
    last = np.ceil(1.0 / THRESHOLD_STEP)
    steps = np.where(np.isfinite(least), np.maximum(np.ceil(least / THRESHOLD_STEP) - 1.0, 0.0), last)
    rows, trial, tries = steps < last, start, np.zeros(len(steps), dtype=np.int64)
    while rows.any():
        active = np.flatnonzero(rows)
        propose = _paper_proposal(np.minimum((steps + 1.0) * THRESHOLD_STEP, 1.0))
        proposed = propose(problem.rows(active), trial.rows(active), active)
        trial, better = _attempt(problem, trial, active, proposed, tries[active] > 0, solve)
        tries[active] += 1
        ended = active[~better | (tries[active] >= MOST_ALTERNATIONS)]
        passed = ended[_is_enough(trial.rows(ended), best.rows(ended), stopping_gain)]
        kept = passed[trial.wlr_per_ms[passed] > best.wlr_per_ms[passed]]
        best = best.replaced(kept, trial.rows(kept))
        trial, tries[ended] = trial.replaced(ended, start.rows(ended)), 0
        steps[passed] += 1.0
        rows[ended], rows[passed] = False, steps[passed] < last
    return best


def _is_enough(trial: Decision, best: Decision, stopping_gain: float) -> Bool:
    """Whether a threshold's outcome lets it grow on (n,): it gained enough, or changed no selection."""
    changed = _differ(trial.selection, best.selection)
    return trial.wlr_per_ms >= best.wlr_per_ms * np.where(changed, 1.0 + stopping_gain, 1.0 - LEAST_GAIN)


def _differ(one: Bool, other: Bool) -> Bool:
    """Whether two selections (n, J, E) differ, (n,)."""
    return (one != other).any(axis=(1, 2))
