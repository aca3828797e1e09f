"""Min-max shares and those of the device form, against certified solvers, constructed optima and theory."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import cvxpy as cp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optimize_instances import PAYLOAD_S, edge_cases, links_of
from scipy.optimize import minimize

from benchmarks.device_form import device_form_shares
from wdmoe_env.optimize.bandwidth import (
    BandwidthSolution,
    first_token_latency_s,
    marginal_latency_s,
    min_max_bandwidth,
)
from wdmoe_env.optimize.validate import RANGES as WIDE
from wdmoe_env.physics.latency import (
    BlockLinks,
    Float,
    Load,
    block_latency_s,
    device_latency_s,
    equal_shares,
    radio_latency_s,
)


class ConicMinMax:
    """Min-max bandwidth for a number of loaded devices as an exponential-cone program, compiled once.

    In x = b / scale and y = snr / scale the rate is scale / ln 2 * (x ln y - x ln(x / (1 + x / y))), here
    divided by its value at x = 1.
    """

    def __init__(self, devices: int) -> None:
        self.x = cp.Variable(devices, nonneg=True)
        self.rate = cp.Variable((2, devices), nonneg=True)
        self.latency = cp.Variable()
        self.log_y = cp.Parameter((2, devices))
        self.inverse_y = cp.Parameter((2, devices), nonneg=True)
        self.rate_scale = cp.Parameter((2, devices), nonneg=True)
        self.radio = cp.Parameter((2, devices), nonneg=True)
        self.compute = cp.Parameter(devices, nonneg=True)
        self.scale = cp.Parameter(devices, nonneg=True)
        constraints = [self.scale @ self.x == 1]
        latency = self.compute
        for link in range(2):
            bent = cp.rel_entr(self.x, 1 + cp.multiply(self.inverse_y[link], self.x))
            rate = cp.multiply(self.rate_scale[link], self.rate[link])
            constraints.append(rate <= cp.multiply(self.log_y[link], self.x) - bent)
            latency = latency + cp.multiply(self.radio[link], cp.inv_pos(self.rate[link]))
        constraints.append(latency <= self.latency)
        self.problem = cp.Problem(cp.Minimize(self.latency), constraints)
        assert self.problem.is_dcp(dpp=True)

    def solve(self, links: BlockLinks, load: Load, row: int, guess: BandwidthSolution) -> float:
        """Certified block latency of one row; the guess sets the scale of the variables, not the solution.

        The scale is in powers of two, so that nothing hangs on the last digits of the guess.
        """
        loaded = load.tokens[row] > 0
        scale, unit_s = 2.0 ** np.round(np.log2(guess.shares[row][loaded])), float(guess.latency_s[row])
        snr = links.full_band_snr[row][:, loaded]
        y, rate = snr / scale, np.log1p(snr / scale)
        self.log_y.value, self.inverse_y.value, self.rate_scale.value = np.log(y), 1 / y, rate
        self.scale.value = scale
        self.radio.value = load.tokens[row][loaded] * links.payload_s[row] * np.log(2) / (scale * rate * unit_s)
        reading_s = np.zeros_like(load.tokens) if load.reading_s is None else load.reading_s
        self.compute.value = (load.experts * links.compute_s + reading_s)[row][loaded] / unit_s
        self.problem.solve(cp.CLARABEL, equilibrate_enable=False, max_step_fraction=0.9)
        assert self.problem.status == cp.OPTIMAL
        return unit_s * float(self.latency.value)


def test_within_a_millionth_of_a_conic_solver_on_1000_instances_with_fixed_charges() -> None:
    """Seven in ten loaded devices read weights, from next to nothing up to all that counts; others have no load."""
    rng = np.random.default_rng(0)
    links, load = edge_cases(rng, 1000, 6)
    charged = (load.tokens > 0) & (rng.random(load.tokens.shape) < 0.7)
    load = replace(load, reading_s=charged * 10 ** rng.uniform(-8, 1, load.tokens.shape))
    solvers = {count: ConicMinMax(count) for count in range(1, 7)}
    ours = min_max_bandwidth(links, load)
    count = (load.tokens > 0).sum(axis=-1)
    conic = [solvers[count[n]].solve(links, load, n, guess=ours) for n in range(1000)]
    np.testing.assert_allclose(ours.latency_s, conic, rtol=1e-6)


def test_constructed_optima_at_every_signal_to_noise_ratio() -> None:
    """Shares that sum to 1 and end all devices together are optimal, so that compute can be chosen to make any so."""
    rng = np.random.default_rng(1)
    for devices in (1, 2, 8, 64, 1024):
        batch = 20000 // devices
        shares = rng.dirichlet(np.full(devices, 0.1), batch) + 1e-9
        shares /= shares.sum(axis=-1, keepdims=True)
        latency_s = 10 ** rng.uniform(-3, 3, (batch, 1))
        radio_part = 10 ** -rng.uniform(0, 12, (batch, devices))
        links = links_of(10 ** rng.uniform(-6, 12, (batch, 2, devices)), np.zeros((batch, devices)))
        tokens = latency_s * radio_part / radio_latency_s(links, shares)
        links = links_of(links.full_band_snr, latency_s * (1 - radio_part) / tokens)
        solution = min_max_bandwidth(links, Load(tokens, tokens))
        np.testing.assert_allclose(solution.latency_s, latency_s[:, 0], rtol=1e-12)
        np.testing.assert_allclose(solution.shares.sum(axis=-1), 1.0, atol=1e-12)


def test_shares_keep_their_constraints() -> None:
    links, load = edge_cases(np.random.default_rng(2), 2000, 8)
    for min_share in (0.0, 1e-3, 1 / 8):
        solution = min_max_bandwidth(links, load, min_share)
        np.testing.assert_allclose(solution.shares.sum(axis=-1), 1.0, atol=1e-12)
        assert (solution.shares[load.tokens > 0] >= min_share).all()
        assert (solution.shares[load.tokens == 0] == 0).all()
        latency = device_latency_s(links, load, solution.shares)
        np.testing.assert_array_equal(solution.latency_s, block_latency_s(latency))
        above = solution.shares > min_share * (1 + 1e-9)
        slowest = np.broadcast_to(solution.latency_s[:, None], above.shape)
        np.testing.assert_allclose(latency[above], slowest[above], rtol=1e-10)


def test_no_load_one_device_and_one_token() -> None:
    links = links_of(np.full((3, 2, 4), [[3.0], [2.0]]), np.full((3, 4), 1e-3))
    tokens = np.array([[0, 0, 0, 0], [0, 5, 0, 0], [0, 0, 1, 0]], dtype=float)
    solution = min_max_bandwidth(links, Load(tokens, tokens), min_share=0.1)
    np.testing.assert_array_equal(solution.shares, [[0.25] * 4, [0, 1, 0, 0], [0, 0, 1, 0]])
    whole_band_s = PAYLOAD_S * (1 / np.log2(4) + 1 / np.log2(3)) + 1e-3
    np.testing.assert_allclose(solution.latency_s, [0, 5 * whole_band_s, whole_band_s], rtol=1e-14)


def test_agrees_with_slsqp() -> None:
    rng = np.random.default_rng(3)
    links = links_of(10 ** rng.uniform(0, 4, (20, 2, 5)), 10 ** rng.uniform(-4, -2, (20, 5)))
    tokens = rng.integers(1, 30, (20, 5)).astype(float)
    load = Load(tokens, tokens)
    ours = min_max_bandwidth(links, load, min_share=0.02).latency_s

    for n in range(20):

        def device_latency(x: Float, n: int = n) -> Float:
            shares = np.broadcast_to(x[:-1], (20, 5))
            return device_latency_s(links, load, shares)[n] / ours[n]

        start = np.append(np.full(5, 0.2), 0.0)
        start[-1] = device_latency(start).max()
        result = minimize(
            lambda x: x[-1],
            start,
            method="SLSQP",
            bounds=[(0.02, 1)] * 5 + [(0, None)],
            constraints=[
                {"type": "eq", "fun": lambda x: x[:-1].sum() - 1},
                {"type": "ineq", "fun": lambda x: x[-1] - device_latency(x)},
            ],
            options={"ftol": 1e-12, "maxiter": 500},
        )
        assert result.success
        np.testing.assert_allclose(result.x[-1], 1.0, rtol=1e-6)


@given(seed=st.integers(0, 2**32 - 1))
@settings(max_examples=50, deadline=None)
def test_order_scale_and_monotony(seed: int) -> None:
    rng = np.random.default_rng(seed)
    links, load = edge_cases(rng, 4, 5)
    solution = min_max_bandwidth(links, load)

    order = rng.permutation(5)
    permuted = links_of(links.full_band_snr[..., order], links.compute_s[:, order])
    again = min_max_bandwidth(permuted, Load(load.tokens[:, order], load.experts[:, order]))
    np.testing.assert_allclose(again.latency_s, solution.latency_s, rtol=1e-11)

    factor = 10 ** rng.uniform(-3, 3)
    slower = BlockLinks(links.full_band_snr, factor * links.payload_s, factor * links.compute_s, links.placement)
    np.testing.assert_allclose(min_max_bandwidth(slower, load).latency_s, factor * solution.latency_s, rtol=1e-11)

    extra = rng.integers(0, 3, (4, 5))
    more = Load(load.tokens + extra, load.experts + 2 * extra)
    assert (min_max_bandwidth(links, more).latency_s >= solution.latency_s * (1 - 1e-12)).all()
    assert (min_max_bandwidth(links, load, 0.1).latency_s >= solution.latency_s * (1 - 1e-12)).all()


@pytest.mark.parametrize("min_share", [0.0, 0.08])
def test_marginal_latency_is_the_derivative(min_share: float) -> None:
    rng = np.random.default_rng(4)
    links = links_of(10 ** rng.uniform(-2, 5, (200, 2, 6)), 10 ** rng.uniform(-5, -2, (200, 6)))
    tokens = np.floor(10 ** rng.uniform(0, 2, (200, 6))) * (rng.random((200, 6)) < 0.8)
    tokens[:, 0] += 1
    load = Load(tokens, 2 * tokens)
    solution = min_max_bandwidth(links, load, min_share)
    token_price, expert_price, _ = marginal_latency_s(links, load, solution)
    for device in range(6):
        step = 1e-5 * tokens * (np.arange(6) == device)
        width = np.where(tokens[:, device] > 0, 2e-5 * tokens[:, device], 1.0)
        for price, moved in (
            (token_price, (Load(tokens + step, load.experts), Load(tokens - step, load.experts))),
            (expert_price, (Load(tokens, load.experts + step), Load(tokens, load.experts - step))),
        ):
            after, before = (min_max_bandwidth(links, load, min_share).latency_s for load in moved)
            error = np.abs((after - before) / width - price[:, device]) * width / solution.latency_s
            # Second order in the step of 1e-5, except where a least share begins or ends to bind between the two.
            assert (error < 1e-9).mean() >= (1.0 if min_share == 0 else 0.99)
    assert (token_price[tokens == 0] == 0).all()
    assert ((token_price == 0) & (tokens > 0)).any() == (min_share > 0)


def test_first_token_latency_predicts_what_one_token_costs() -> None:
    rng = np.random.default_rng(5)
    links = links_of(10 ** rng.uniform(0, 4, (200, 2, 6)), 10 ** rng.uniform(-5, -3, (200, 6)))
    tokens = rng.integers(50, 100, (200, 6)).astype(float)
    tokens[:, 0] = 0
    before = Load(tokens, tokens)
    after = Load(tokens + np.eye(6)[0], tokens + np.eye(6)[0])
    solution = min_max_bandwidth(links, before, 1e-3)
    predicted = first_token_latency_s(links, before, solution, 1e-3)
    cost = min_max_bandwidth(links, after, 1e-3).latency_s - solution.latency_s
    assert (predicted[:, 1:] == 0).all()
    np.testing.assert_allclose(predicted[:, 0], cost, rtol=0.05)


def test_device_form_starves_a_slow_device() -> None:
    """The caveat of the documentation: the shares of highest device form make the block slower than equal ones do."""
    links = links_of(np.array([[[1e4, 1e-1]] * 2]), np.full((1, 2), 1e-4))
    load, weight = Load(np.full((1, 2), 10.0), np.full((1, 2), 10.0)), np.full((1, 2), 5.0)
    greedy = device_latency_s(links, load, device_form_shares(links, load, weight)[None])
    uniform = device_latency_s(links, load, equal_shares(1, 2))
    assert (weight / greedy).sum() > (weight / uniform).sum()
    assert greedy.max() > uniform.max()


def least_shares(links: BlockLinks, load: Load, target_s: Float) -> Float:
    """The share (N, U) that each loaded device needs to end by a time (N,), by bisection of the latency itself."""
    low, high = np.full(load.tokens.shape, -400.0), np.full(load.tokens.shape, 1.0)
    for _ in range(60):
        middle = 0.5 * (low + high)
        late = device_latency_s(links, load, np.exp(middle)) > target_s[:, None]
        low, high = np.where(late, middle, low), np.where(late, high, middle)
    return np.where(load.tokens > 0, np.exp(high), 0.0)


def assert_optimal(links: BlockLinks, load: Load, min_share: float) -> None:
    """The shares are shares, they end the block when the solution says, and no shares end it a millionth sooner."""
    solution = min_max_bandwidth(links, load, min_share)
    loaded = load.tokens > 0
    np.testing.assert_allclose(solution.shares.sum(axis=-1), 1.0, atol=1e-12)
    assert (solution.shares >= 0).all()
    assert (solution.shares[loaded] >= min_share * (1 - 1e-12)).all()
    ended = block_latency_s(device_latency_s(links, load, solution.shares))
    np.testing.assert_allclose(solution.latency_s, ended, rtol=1e-12)
    sooner = least_shares(links, load, (1 - 1e-6) * solution.latency_s)
    needed = np.where(loaded, np.maximum(sooner, min_share), 0.0).sum(axis=-1)
    assert (needed[loaded.any(axis=-1)] > 1 - 1e-9).all()


LEAST_LOAD, MOST_LOAD = WIDE.load
RANGES = {name: getattr(WIDE, name) for name in ("full_band_snr", "payload_s", "compute_s")}
RANGES |= {name: (0.0, MOST_LOAD) for name in ("load.tokens", "load.experts")}
EXPONENTS = {name: (np.log10(least) if least else -300.0, np.log10(most)) for name, (least, most) in RANGES.items()}


def numbers_of(name: str) -> st.SearchStrategy[float]:
    """From 1e-300 to 1e300, and within the documented range, its ends included, as often as not."""
    least, most = EXPONENTS[name]
    within = st.sampled_from(RANGES[name]) | st.floats(least, most).map(lambda e: min(10.0**e, RANGES[name][1]))
    return within if name == "payload_s" else within | st.floats(least, most).map(lambda e: 10.0 ** (0.999 * e))


@st.composite
def blocks(draw: st.DrawFn, anywhere: bool) -> tuple[BlockLinks, Load]:
    """One block of 1 to 5 devices, with numbers within the documented ranges or from anywhere."""

    def numbers(name: str, *shape: int) -> Float:
        one = numbers_of(name)
        if anywhere:
            one |= st.floats(-300, 300).map(lambda e: 10.0**e)
        size = int(np.prod(shape))
        return np.array(draw(st.lists(one, min_size=size, max_size=size))).reshape(shape)

    devices = draw(st.integers(1, 5))
    links = BlockLinks(
        np.maximum(numbers("full_band_snr", 1, 2, devices), 0.0 if anywhere else WIDE.full_band_snr[0]),
        np.maximum(numbers("payload_s", 1), 0.0 if anywhere else WIDE.payload_s[0]),
        numbers("compute_s", 1, devices),
        np.eye(devices),
    )
    tokens, experts = numbers("load.tokens", 1, devices), numbers("load.experts", 1, devices)
    if not anywhere:
        tokens, experts = (np.where(load < LEAST_LOAD, 0.0, load) for load in (tokens, experts))
    return links, Load(tokens, np.where(tokens > 0, experts, 0.0))


def in_range(links: BlockLinks, load: Load) -> bool:
    """Whether every number is within its documented range."""
    values = {
        "full_band_snr": links.full_band_snr,
        "payload_s": links.payload_s,
        "compute_s": links.compute_s,
        "load.tokens": load.tokens,
        "load.experts": load.experts,
    }
    inside = all(((v >= RANGES[name][0]) & (v <= RANGES[name][1])).all() for name, v in values.items())
    return inside and all(((v == 0) | (v >= LEAST_LOAD)).all() for v in (load.tokens, load.experts))


@settings(max_examples=300, deadline=None)
@given(block=blocks(anywhere=False), min_share=st.sampled_from([0.0, 1e-300, 1e-12, 1e-3, 0.2]))
def test_every_block_within_the_documented_ranges_is_solved(block: tuple[BlockLinks, Load], min_share: float) -> None:
    assert in_range(*block)
    assert_optimal(*block, min_share)


@settings(max_examples=300, deadline=None)
@given(block=blocks(anywhere=True))
def test_any_block_is_solved_or_refused_by_name(block: tuple[BlockLinks, Load]) -> None:
    if in_range(*block):
        assert_optimal(*block, 0.0)
        return
    with pytest.raises(ValueError, match=r"^(full_band_snr|payload_s|compute_s|load\.(tokens|experts)) must hold "):
        min_max_bandwidth(*block)


def test_thousands_of_blocks_at_the_ends_of_the_ranges_are_solved() -> None:
    rng = np.random.default_rng(11)
    for devices in (1, 2, 3, 8, 40):
        batch = 3000 // devices

        def ends(name: str, *shape: int) -> Float:
            least, most = EXPONENTS[name] if name in ("full_band_snr", "payload_s") else (-30.0, EXPONENTS[name][1])
            exponent = np.where(
                rng.random(shape) < 0.5, rng.choice([least, most], shape), rng.uniform(least, most, shape)
            )
            return np.clip(10.0**exponent, 10.0**least, 10.0**most)

        loaded = rng.random((batch, devices)) < 0.8
        compute_s = ends("compute_s", batch, devices) * (rng.random((batch, devices)) < 0.7)
        snr, payload_s = ends("full_band_snr", batch, 2, devices), ends("payload_s", batch)
        links = BlockLinks(snr.clip(*WIDE.full_band_snr), payload_s.clip(*WIDE.payload_s), compute_s, np.eye(devices))
        tokens, experts = (ends("load.tokens", batch, devices) * loaded for _ in range(2))
        for min_share in (0.0, 1e-30, 0.5 / devices):
            assert_optimal(links, Load(tokens.clip(0, MOST_LOAD), experts.clip(0, MOST_LOAD)), min_share)


@pytest.mark.parametrize("snr", [1e-145, 1e-51, 1e51, 1e155, 1e200])
def test_a_signal_far_beyond_any_radio_is_refused(snr: float) -> None:
    links = links_of(np.array([[[1e3, snr]] * 2]), np.zeros((1, 2)))
    with pytest.raises(ValueError, match=r"full_band_snr must hold finite positive numbers from 1e-50 to 1e\+50, got"):
        min_max_bandwidth(links, Load([[5, 5]], [[5, 5]]))


@pytest.mark.parametrize("snr", [1e-50, 1e-20, 1.0, 1e20, 1e50])
def test_a_signal_within_the_range_is_solved_beside_a_usual_one(snr: float) -> None:
    assert_optimal(links_of(np.array([[[1e3, snr]] * 2]), np.zeros((1, 2))), Load([[5, 5]], [[5, 5]]), 0.0)


SNR = np.array([[[8.0, 2.0, 64.0], [4.0, 1.0, 32.0]], [[1.0, 1.0, 1.0], [16.0, 2.0, 4.0]]])
TOKENS = np.array([[3, 0, 5], [1, 2, 4]])
KINDS = {
    "int64": lambda a: a.astype(np.int64),
    "uint8": lambda a: a.astype(np.uint8),
    "float32": lambda a: a.astype(np.float32),
    "float16": lambda a: a.astype(np.float16),
    "longdouble": lambda a: a.astype(np.longdouble),
    "lists": lambda a: a.tolist(),
    "lists of integers": lambda a: a.astype(int).tolist(),
    "read-only": lambda a: np.broadcast_to(a, a.shape),
    "fortran": np.asfortranarray,
}


@pytest.mark.parametrize("kind", KINDS)
def test_arrays_of_any_real_kind_give_what_float64_gives(kind: str) -> None:
    of = KINDS[kind]
    tokens = TOKENS.astype(float)
    links = BlockLinks(SNR, np.ones(2), np.ones((2, 3)), np.eye(3))
    expected = min_max_bandwidth(links, Load(tokens, tokens), 0.125)
    given = BlockLinks(of(SNR), of(np.ones(2)), of(np.ones((2, 3))), of(np.eye(3)))
    load = Load(of(tokens), of(tokens))
    solution = min_max_bandwidth(given, load, np.float32(0.125))
    np.testing.assert_array_equal(solution.shares, expected.shares)
    np.testing.assert_array_equal(solution.latency_s, expected.latency_s)
    for ours, theirs in zip(
        marginal_latency_s(given, load, solution),
        marginal_latency_s(links, Load(tokens, tokens), expected),
        strict=True,
    ):
        np.testing.assert_array_equal(ours, theirs)
    np.testing.assert_array_equal(radio_latency_s(given, [[0.5, 0, 0.5]] * 2)[:, 1], np.inf)


NO_ARRAYS = {
    "complex": (np.ones((2, 3), dtype=complex), TypeError, "must hold real numbers, got an array of dtype complex128"),
    "masked": (np.ma.array(np.ones((2, 3)), mask=np.eye(2, 3)), TypeError, "must be a plain array, got a masked one"),
    "masked rows": ([np.ma.array([1.0] * 3)] * 2, TypeError, "must be a plain array, got a masked one"),
    "object": (np.ones((2, 3), dtype=object), TypeError, "must hold real numbers, got an array of dtype object"),
    "strings": (np.full((2, 3), "1"), TypeError, "must hold real numbers, got an array of dtype <U1"),
    "dates": (
        np.zeros((2, 3), dtype="M8[D]"),
        TypeError,
        "must hold real numbers, got an array of dtype datetime64[D]",
    ),
    "nothing": (None, TypeError, "must hold real numbers, got a value of type NoneType"),
    "ragged": ([[1.0, 2.0], [3.0]], ValueError, "must be an array, got what NumPy makes none of"),
}


@pytest.mark.parametrize("kind", NO_ARRAYS)
def test_what_is_no_array_of_real_numbers_is_refused_by_name(kind: str) -> None:
    value, error, message = NO_ARRAYS[kind]
    links, load = links_of(np.ones((2, 2, 3)), np.ones((2, 3))), Load(np.ones((2, 3)), np.ones((2, 3)))
    for name in ("full_band_snr", "payload_s", "compute_s", "placement"):
        with pytest.raises(error, match=re.escape(f"{name} {message}")):
            replace(links, **{name: value})
    for name in ("tokens", "experts"):
        with pytest.raises(error, match=re.escape(f"load.{name} {message}")):
            replace(load, **{name: value})
    with pytest.raises(error, match=re.escape(f"shares {message}")):
        device_latency_s(links, load, value)


@pytest.mark.parametrize("min_share", [1j, "0.1", None, np.full(3, 0.1), True, np.ma.masked])
def test_a_least_share_that_is_no_number_is_one_sentence(min_share: Any) -> None:
    links, load = links_of(np.ones((2, 2, 3)), np.ones((2, 3))), Load(np.ones((2, 3)), np.ones((2, 3)))
    with pytest.raises(ValueError, match="min_share must be a finite number, got "):
        min_max_bandwidth(links, load, min_share)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"payload_s": np.ones(3)}, "payload_s must have shape (2,), got (3,)"),
        ({"compute_s": np.ones(3)}, "compute_s must have shape (N, U), got (3,)"),
        ({"full_band_snr": np.zeros((2, 2, 3))}, "full_band_snr must hold finite positive numbers"),
        ({"compute_s": np.full((2, 3), np.nan)}, "compute_s must hold finite non-negative numbers"),
        ({"placement": np.eye(4)}, "placement must have shape (N, E, 3) or (E, 3), got (4, 4)"),
        ({"placement": np.ones((5, 3, 3))}, "placement must hold a batch of 2, got shape (5, 3, 3)"),
    ],
)
def test_bad_links_are_one_sentence(change: dict[str, Float], message: str) -> None:
    links = links_of(np.ones((2, 2, 3)), np.ones((2, 3)))
    load = Load(np.ones((2, 3)), np.ones((2, 3)))
    with pytest.raises(ValueError, match=re.escape(message)):
        min_max_bandwidth(replace(links, **change), load)


@pytest.mark.parametrize(
    ("tokens", "experts", "min_share", "message"),
    [
        (np.ones((2, 4)), np.ones((2, 3)), 0.0, "load.tokens must have shape (2, 3), got (2, 4)"),
        (np.full((2, 3), np.inf), np.ones((2, 3)), 0.0, "load.tokens must hold finite non-negative numbers"),
        (np.ones((2, 3)), -np.ones((2, 3)), 0.0, "load.experts must hold finite non-negative numbers"),
        (np.zeros((2, 3)), np.ones((2, 3)), 0.0, "a device that computes without a token"),
        (np.ones((2, 3)), np.ones((2, 3)), 0.4, "min_share must be between 0 and 1 / 3 loaded devices, got 0.4"),
        (np.ones((2, 3)), np.ones((2, 3)), np.nan, "min_share must be between 0 and 1 / 3 loaded devices, got nan"),
    ],
)
def test_bad_load_is_one_sentence(tokens: Float, experts: Float, min_share: float, message: str) -> None:
    links = links_of(np.ones((2, 2, 3)), np.ones((2, 3)))
    with pytest.raises(ValueError, match=re.escape(message)):
        min_max_bandwidth(links, Load(tokens, experts), min_share)
