"""Time of ``min_max_bandwidth`` beside SciPy's SLSQP on the same instances: ``python benchmarks/bandwidth.py``.

Blocks of the shipped model on test windows, own routing, 8 devices. Prints milliseconds per instance and the ratio
within this run; SLSQP starts from equal shares with numerical derivatives, as a user would call it.
"""

from __future__ import annotations

import time
from typing import Any

import gymnasium as gym
import numpy as np
from scipy.optimize import minimize

from wdmoe_env.observations import decode_observation
from wdmoe_env.optimize.bandwidth import min_max_bandwidth
from wdmoe_env.physics.latency import BlockLinks, Float, Load, device_latency_s, device_load

INSTANCES = 256
REPEATS = 20


def slsqp_latency_s(links: BlockLinks, load: Load) -> float:
    """Block latency of one instance by SLSQP over shares and the latency in ms; NaN where it fails."""
    num_devices = links.num_devices

    def slack_ms(x: Float) -> Float:
        return np.asarray(x[-1] - 1e3 * device_latency_s(links, load, x[None, :-1])[0])

    start = np.full(num_devices, 1.0 / num_devices)
    worst_ms = 1e3 * device_latency_s(links, load, start[None]).max()
    result: Any = minimize(
        lambda x: x[-1],
        np.append(start, worst_ms),
        method="SLSQP",
        bounds=[(1e-6, 1.0)] * num_devices + [(0.0, None)],
        constraints=[{"type": "eq", "fun": lambda x: x[:-1].sum() - 1.0}, {"type": "ineq", "fun": slack_ms}],
        options={"ftol": 1e-10, "maxiter": 300},
    )
    return 1e-3 * float(result.x[-1]) if result.success else np.nan


def milliseconds(function: Any, repeats: int) -> float:
    """Median wall time of a call."""
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        function()
        times.append(time.perf_counter() - began)
    return 1e3 * float(np.median(times))


def main() -> None:
    """Measure and print."""
    env: Any = gym.make_vec("wdmoe_env:WDMoE-v0", num_envs=INSTANCES, split="test")
    block = decode_observation(env.reset(seed=0)[0])
    load = device_load(block.routed, block.links.placement)
    rows = [(block.links.row(n), Load(load.tokens[n : n + 1], load.experts[n : n + 1])) for n in range(INSTANCES)]

    exact = min_max_bandwidth(block.links, load).latency_s
    began = time.perf_counter()
    theirs = np.array([slsqp_latency_s(*one) for one in rows])
    slsqp_ms = 1e3 * (time.perf_counter() - began) / INSTANCES
    solved = np.isfinite(theirs)
    single_ms = milliseconds(lambda: min_max_bandwidth(*rows[0]), REPEATS)
    batch_ms = milliseconds(lambda: min_max_bandwidth(block.links, load), REPEATS) / INSTANCES

    print(f"{'':34}ms per instance   ratio to SLSQP")
    print(f"{'SLSQP':34}{slsqp_ms:15.3f}{1:17.1f}")
    print(f"{'min_max_bandwidth, one':34}{single_ms:15.3f}{slsqp_ms / single_ms:17.1f}")
    print(f"{f'min_max_bandwidth, batch of {INSTANCES}':34}{batch_ms:15.4f}{slsqp_ms / batch_ms:17.1f}")
    excess = (theirs[solved] / exact[solved] - 1.0).max()
    print(f"SLSQP failed on {(~solved).sum()} of {INSTANCES}; elsewhere its latency is up to {excess:.1e} above ours")


if __name__ == "__main__":
    main()
