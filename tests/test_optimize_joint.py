"""The paper's alternation and the fractional program: they never worsen, fixed points, ablations."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
from optimize_instances import routing, spread_out, street_canyon

from wdmoe_env.optimize.bandwidth import min_max_bandwidth
from wdmoe_env.optimize.joint import fractional_program, joint_optimize
from wdmoe_env.optimize.oracle import exhaustive_oracle
from wdmoe_env.optimize.problem import BlockProblem, Decision
from wdmoe_env.optimize.selection import expert_token_latency_s, marginal_price_selection, paper_selection
from wdmoe_env.physics.latency import (
    BlockLinks,
    Bool,
    Float,
    block_latency_s,
    device_latency_s,
    device_load,
    equal_shares,
    weight_served,
    wlr_per_ms,
)


def instances(
    seed: int, batch: int = 300, experts: int = 8, devices: int = 8, top_k: int = 2
) -> tuple[BlockLinks, Float, Bool]:
    rng = np.random.default_rng(seed)
    return street_canyon(rng, batch, spread_out(experts, devices)), *routing(rng, batch, 16, experts, top_k)


def wlr_of(links: BlockLinks, weights: Float, selection: Bool, shares: Float) -> Float:
    latency = block_latency_s(device_latency_s(links, device_load(selection, links), shares))
    return wlr_per_ms(weight_served(weights, selection), latency)


def check_solution(links: BlockLinks, weights: Float, routed: Bool, solution: Decision) -> None:
    """What holds for every optimizer."""
    uniform = wlr_of(links, weights, routed, equal_shares(*links.compute_s.shape))
    assert (solution.wlr_per_ms >= uniform * (1 - 1e-12)).all()
    np.testing.assert_allclose(wlr_of(links, weights, solution.selection, solution.shares), solution.wlr_per_ms)
    assert not (solution.selection & ~routed).any()
    assert solution.selection.any(axis=-1).all()


@pytest.mark.parametrize(("experts", "devices", "top_k"), [(8, 8, 2), (8, 3, 3)])
@pytest.mark.parametrize("threshold", [None, 0.5, 0.8, 0.95, 1.0])
def test_paper_alternation_never_worsens(experts: int, devices: int, top_k: int, threshold: float | None) -> None:
    links, weights, routed = instances(0, experts=experts, devices=devices, top_k=top_k)
    for solve_bandwidth in (True, False):
        solution = joint_optimize(BlockProblem(links, weights, routed), threshold, solve_bandwidth=solve_bandwidth)
        check_solution(links, weights, routed, solution)
        assert (routed.sum(axis=-1) - solution.selection.sum(axis=-1) <= 1).all()


@pytest.mark.parametrize(("experts", "devices", "top_k"), [(8, 8, 2), (8, 3, 3)])
def test_fractional_program_never_worsens(experts: int, devices: int, top_k: int) -> None:
    links, weights, routed = instances(1, 150, experts=experts, devices=devices, top_k=top_k)
    solution = fractional_program(BlockProblem(links, weights, routed))
    check_solution(links, weights, routed, solution)
    assert (solution.wlr_per_ms >= joint_optimize(BlockProblem(links, weights, routed)).wlr_per_ms).mean() > 0.95


def test_alternation_ends_where_another_step_does_not_help() -> None:
    links, weights, routed = instances(2)
    solution = joint_optimize(BlockProblem(links, weights, routed), threshold=0.9)
    selection = paper_selection(weights, routed, expert_token_latency_s(links, solution.shares), 0.9)
    bandwidth = min_max_bandwidth(links, device_load(selection, links))
    assert (wlr_of(links, weights, selection, bandwidth.shares) <= solution.wlr_per_ms * (1 + 1e-11)).all()


def test_threshold_1_is_top_1() -> None:
    links, weights, routed = instances(3)
    top1 = np.arange(8) == weights.argmax(axis=-1)[..., None]
    solution = joint_optimize(BlockProblem(links, weights, routed), threshold=1.0)
    applied = (solution.selection == top1).all(axis=(1, 2))
    assert applied.mean() > 0.9
    refused = solution.selection[~applied]
    np.testing.assert_array_equal(refused, routed[~applied])


def test_adaptive_threshold_stops_earlier_at_a_greater_gain() -> None:
    links, weights, routed = instances(4)
    eager = joint_optimize(BlockProblem(links, weights, routed), stopping_gain=0.0)
    wary = joint_optimize(BlockProblem(links, weights, routed), stopping_gain=0.02)
    never = joint_optimize(BlockProblem(links, weights, routed), stopping_gain=1e9)
    dropped, less = (routed.sum(axis=(1, 2)) - one.selection.sum(axis=(1, 2)) for one in (eager, wary))
    assert (dropped > less).mean() > 0.1
    assert dropped.mean() > less.mean()
    assert eager.wlr_per_ms.mean() > wary.wlr_per_ms.mean()
    np.testing.assert_array_equal(never.selection, routed)
    optimal = min_max_bandwidth(links, device_load(routed, links))
    np.testing.assert_allclose(never.shares, optimal.shares, atol=1e-12)


def test_ablations() -> None:
    links, weights, routed = instances(5)
    whole = joint_optimize(BlockProblem(links, weights, routed, min_share=1e-3), stopping_gain=1e9)
    np.testing.assert_array_equal(whole.selection, routed)
    optimal = min_max_bandwidth(links, device_load(routed, links), 1e-3)
    np.testing.assert_array_equal(whole.shares, optimal.shares)

    selection = joint_optimize(BlockProblem(links, weights, routed), threshold=0.8, solve_bandwidth=False)
    uniform = equal_shares(300, 8)
    np.testing.assert_array_equal(selection.shares, uniform)
    rule = paper_selection(weights, routed, expert_token_latency_s(links, uniform), 0.8)
    expected = np.maximum(wlr_of(links, weights, rule, uniform), wlr_of(links, weights, routed, uniform))
    np.testing.assert_allclose(selection.wlr_per_ms, expected)


def test_a_row_does_not_depend_on_its_batch() -> None:
    links, weights, routed = instances(6, 20)
    row = BlockLinks(links.full_band_snr[7:8], links.payload_s[7:8], links.compute_s[7:8], links.placement)
    for optimize in (joint_optimize, fractional_program):
        whole = optimize(BlockProblem(links, weights, routed))
        alone = optimize(BlockProblem(row, weights[7:8], routed[7:8]))
        np.testing.assert_array_equal(whole.selection[7:8], alone.selection)
        np.testing.assert_allclose(whole.shares[7:8], alone.shares, atol=1e-12)


def test_padding_stays_empty() -> None:
    links, weights, routed = instances(7, 4)
    routed[:, 10:], weights[:, 10:] = False, 0.0
    routed[3], weights[3] = False, 0.0
    problem = BlockProblem(links, weights, routed)
    for solution in (joint_optimize(problem), fractional_program(problem)):
        np.testing.assert_array_equal(solution.selection.any(axis=-1), routed.any(axis=-1))
        np.testing.assert_array_equal(solution.wlr_per_ms > 0, [True, True, True, False])
        np.testing.assert_array_equal(solution.latency_s > 0, [True, True, True, False])
        np.testing.assert_allclose(solution.shares.sum(axis=-1), 1.0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stopping_gain": -0.1}, "stopping_gain must not be negative, got -0.1"),
        ({"threshold": float("nan")}, "threshold must be a number"),
    ],
)
def test_bad_options_are_one_sentence(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        joint_optimize(BlockProblem(*instances(8, 2)), **options)


# Every optimizer that takes gate weights and masks, with numbers of NumPy's own kinds.
OPTIMIZERS = {
    "joint": lambda links, w, r: joint_optimize(BlockProblem(links, w, r, min_share=np.float32(0.125))),
    "joint, fixed": lambda links, w, r: joint_optimize(BlockProblem(links, w, r), threshold=np.float32(0.5)),
    "fractional": lambda links, w, r: fractional_program(BlockProblem(links, w, r, candidates=r)),
    "price": lambda links, w, r: marginal_price_selection(BlockProblem(links, w, r, r, np.float32(0.5)), start=r),
    "prices": lambda links, w, r: marginal_price_selection(
        BlockProblem(links, w, r, None, [0.5, 1], np.float16(0.125))
    ),
    "paper": lambda links, w, r: paper_selection(w, r, expert_token_latency_s(links, [[0.5, 0.5]] * 2), [0.9, 1]),
    "oracle": lambda links, w, r: exhaustive_oracle(BlockProblem(links, w, r, candidates=r), np.int64(10**6)),
}
WEIGHTS = np.array([[[0.75, 0.25], [0.5, 0.5], [1.0, 0.0]], [[0.25, 0.75], [0.125, 0.875], [0.5, 0.5]]])
ROUTED = np.array([[[1, 1], [1, 1], [1, 0]], [[1, 1], [1, 1], [0, 0]]], dtype=bool)
LINKS = BlockLinks(np.array([[[64.0, 2], [8, 1]], [[1, 4], [2, 16]]]), [1, 1], np.full((2, 2), 0.5), np.eye(2))


def parts(solution: Any) -> list[Any]:
    """The arrays of what any optimizer gives."""
    if not isinstance(solution, Decision):
        return [solution]
    return [solution.selection, solution.shares, solution.latency_s, solution.wlr_per_ms]


@pytest.mark.parametrize(
    ("of", "mask"),
    [
        (lambda a: a.astype(np.float32), np.asarray),
        (lambda a: a.astype(np.float16), np.asfortranarray),
        (lambda a: a.tolist(), lambda a: a.tolist()),
        (lambda a: a.astype(np.longdouble), lambda a: np.broadcast_to(a, a.shape)),
    ],
    ids=["float32", "float16", "lists", "longdouble"],
)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_arrays_of_any_real_kind_give_what_float64_gives(optimizer: str, of: Any, mask: Any) -> None:
    solve = OPTIMIZERS[optimizer]
    given = BlockLinks(*(of(getattr(LINKS, n)) for n in ("full_band_snr", "payload_s", "compute_s", "placement")))
    expected, solution = solve(LINKS, WEIGHTS, ROUTED), solve(given, of(WEIGHTS), mask(ROUTED))
    for ours, theirs in zip(parts(solution), parts(expected), strict=True):
        assert ours.dtype == theirs.dtype
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        (WEIGHTS + 0j, TypeError, "weights must hold real numbers, got an array of dtype complex128"),
        (WEIGHTS.astype(object), TypeError, "weights must hold real numbers, got an array of dtype object"),
        (np.ma.array(WEIGHTS, mask=ROUTED), TypeError, "weights must be a plain array, got a masked one"),
        ([[[1.0, 2.0], [1.0]]] * 2, ValueError, "weights must be an array, got what NumPy makes none of"),
    ],
    ids=["complex", "object", "masked", "ragged"],
)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_weights_that_are_none_are_refused_by_name(
    optimizer: str, value: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        OPTIMIZERS[optimizer](LINKS, value, ROUTED)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_masks_that_are_none_are_refused_by_name(optimizer: str) -> None:
    for mask in (ROUTED.astype(int), ROUTED.astype(object), np.ma.array(ROUTED, mask=ROUTED), None):
        with pytest.raises(TypeError, match="routed must be a "):
            OPTIMIZERS[optimizer](LINKS, WEIGHTS, mask)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threshold": [0.5, 0.5]}, "threshold must be a number, got an array of shape (2,)"),
        ({"stopping_gain": 1j}, "stopping_gain must be a finite number, got 1j"),
    ],
)
def test_options_that_are_no_numbers_are_one_sentence(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        joint_optimize(BlockProblem(LINKS, WEIGHTS, ROUTED), **options)


def test_a_least_share_that_is_no_number_is_one_sentence() -> None:
    with pytest.raises(ValueError, match=re.escape("min_share must be a finite number, got array([0.1])")):
        joint_optimize(BlockProblem(LINKS, WEIGHTS, ROUTED, min_share=np.array([0.1])))


@pytest.mark.parametrize("price", [1e151, np.inf, -1.0, np.nan, [1.0, 2.0, 3.0]])
def test_a_price_beyond_its_range_is_one_sentence(price: Any) -> None:
    with pytest.raises(ValueError, match="price_per_ms must be "):
        marginal_price_selection(BlockProblem(LINKS, WEIGHTS, ROUTED, price_per_ms=price))


@pytest.mark.parametrize("placement", [np.full((2, 2), 0.5), 2 * np.eye(2), np.full((2, 2), np.nan), np.ones((2, 2))])
def test_a_placement_is_of_ones_and_zeros(placement: Float) -> None:
    links = BlockLinks(LINKS.full_band_snr, LINKS.payload_s, LINKS.compute_s, placement)
    with pytest.raises(ValueError, match="placement must put every expert on exactly one device"):
        joint_optimize(BlockProblem(links, WEIGHTS, ROUTED))
