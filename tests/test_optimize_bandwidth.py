"""Min-max shares and those of the device form, against certified solvers, constructed optima and theory."""

from __future__ import annotations

import re

import cvxpy as cp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optimize_instances import PAYLOAD_S, edge_cases, links_of
from scipy.optimize import minimize

from wdmoe_env.optimize.bandwidth import first_token_latency_s, marginal_latency_s, min_max_bandwidth
from wdmoe_env.optimize.device_bandwidth import wlr_device_bandwidth
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

    In x = b / scale and y = snr / scale the rate is scale / ln 2 * (x ln y - x ln(x / (1 + x / y))).
    """

    def __init__(self, devices: int) -> None:
        self.x = cp.Variable(devices, nonneg=True)
        self.rate = cp.Variable((2, devices), nonneg=True)
        self.latency = cp.Variable()
        self.log_y = cp.Parameter((2, devices))
        self.inverse_y = cp.Parameter((2, devices), nonneg=True)
        self.radio = cp.Parameter(devices, nonneg=True)
        self.compute = cp.Parameter(devices, nonneg=True)
        self.scale = cp.Parameter(devices, nonneg=True)
        constraints = [self.scale @ self.x == 1]
        inverse = []
        for link in range(2):
            bent = -cp.rel_entr(self.x, 1 + cp.multiply(self.inverse_y[link], self.x))
            constraints.append(self.rate[link] <= cp.multiply(self.log_y[link], self.x) + bent)
            inverse.append(cp.multiply(self.radio, cp.inv_pos(self.rate[link])))
        constraints.append(inverse[0] + inverse[1] + self.compute <= self.latency)
        self.problem = cp.Problem(cp.Minimize(self.latency), constraints)
        assert self.problem.is_dcp(dpp=True)

    def solve(self, links: BlockLinks, load: Load, row: int) -> float:
        """Certified block latency of one row: solved, then again with the shares found as the scale."""
        loaded = load.tokens[row] > 0
        uniform = equal_shares(*load.tokens.shape)
        unit_s = float(device_latency_s(links, load, uniform)[row].max())
        radio_s = (load.tokens * radio_latency_s(links, uniform))[row][loaded]
        compute_s = (load.experts * links.compute_s)[row][loaded]
        tokens, snr = load.tokens[row][loaded], links.full_band_snr[row][:, loaded]
        scale = radio_s / radio_s.sum()
        for _ in range(3):
            self.log_y.value, self.inverse_y.value, self.scale.value = np.log(snr / scale), scale / snr, scale
            self.radio.value = tokens * links.payload_s[row] * np.log(2) / scale / unit_s
            self.compute.value = compute_s / unit_s
            self.problem.solve(solver=cp.CLARABEL, tol_gap_abs=3e-9, tol_gap_rel=3e-9, tol_feas=3e-9)
            scale, unit_s = scale * self.x.value, unit_s * float(self.latency.value)
        assert self.problem.status == cp.OPTIMAL
        return unit_s


def test_within_a_millionth_of_a_conic_solver_on_1000_instances() -> None:
    links, load = edge_cases(np.random.default_rng(0), 1000, 6)
    solvers = {count: ConicMinMax(count) for count in range(1, 7)}
    ours = min_max_bandwidth(links, load).latency_s
    conic = np.array([solvers[int((load.tokens[n] > 0).sum())].solve(links, load, n) for n in range(1000)])
    np.testing.assert_allclose(ours, conic, rtol=1e-6)


