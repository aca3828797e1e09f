"""Min-max shares and those of the device form, against certified solvers, constructed optima and theory."""

from __future__ import annotations

import re
from dataclasses import replace

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
        self.compute.value = (load.experts * links.compute_s)[row][loaded] / unit_s
        self.problem.solve(cp.CLARABEL, equilibrate_enable=False, max_step_fraction=0.9)
        assert self.problem.status == cp.OPTIMAL
        return unit_s * float(self.latency.value)


def test_within_a_millionth_of_a_conic_solver_on_1000_instances() -> None:
    links, load = edge_cases(np.random.default_rng(0), 1000, 6)
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
    token_price, expert_price = marginal_latency_s(links, load, solution)
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
