"""How the device form of WLR is gamed by shares: ``python benchmarks/device_form.py``.

The model's own routing on 256 test windows with three ways of sharing the bandwidth: equal, min-max, and the
shares that maximise the device form, which SciPy's SLSQP finds. Prints the mean block-sum latency, and both forms
per block. It takes some minutes.
"""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from scipy.optimize import minimize

from wdmoe_env.observations import Block, decode_observation
from wdmoe_env.optimize.bandwidth import min_max_bandwidth
from wdmoe_env.physics.latency import (
    BlockLinks,
    Float,
    Load,
    device_latency_s,
    device_load,
    device_weight_served,
    equal_shares,
    wlr_device_per_ms,
)

LEAST_SHARE = 1e-3


def shares_of(kind: str, block: Block) -> Float:
    """Bandwidth shares (N, U) for the model's own routing."""
    load = device_load(block.routed, block.links)
    if kind == "equal":
        return equal_shares(*block.links.compute_s.shape)
    if kind == "min-max":
        return min_max_bandwidth(block.links, load).shares
    served = device_weight_served(block.weights, block.routed, block.links.placement)
    rows = range(len(served))
    return np.stack([device_form_shares(block.links.row(n), load.row(n), served[n : n + 1]) for n in rows])


def device_form_shares(links: BlockLinks, load: Load, served: Float) -> Float:
    """Shares (U,) of one block that maximise the sum over loaded devices of W[u] / t[u], which is concave in them."""

    def loss(shares: Float) -> float:
        return -float(wlr_device_per_ms(served, device_latency_s(links, load, shares[None]))[0])

    start = np.full(links.num_devices, 1.0 / links.num_devices)
    result: Any = minimize(
        loss,
        start,
        method="SLSQP",
        bounds=[(LEAST_SHARE, 1.0)] * links.num_devices,
        constraints={"type": "eq", "fun": lambda shares: shares.sum() - 1.0},
        options={"ftol": 1e-10, "maxiter": 300},
    )
    shares = np.clip(result.x if result.success else start, 0.0, None)
    return np.asarray(shares / shares.sum())


def main() -> None:
    """Measure and print the table."""
    env: Any = gym.make_vec("wdmoe_env:WDMoE-Bandwidth-v0", num_envs=256, autoreset_mode="DISABLED", split="test")
    print(f"{'shares':12}{'latency_ms':>12}{'wlr_device':>12}{'wlr':>8}")
    for kind in ("equal", "min-max", "device form"):
        observation, _ = env.reset(seed=7)
        infos = []
        for _ in range(env.num_blocks):
            action = env.encode_action(shares=shares_of(kind, decode_observation(observation)))
            observation, _, _, _, info = env.step(action)
            infos.append(info)
        device, block = (np.mean([info[name] for info in infos]) for name in ("wlr_device", "wlr"))
        print(f"{kind:12}{infos[-1]['latency_ms'].mean():12.1f}{device:12.2f}{block:8.2f}")


if __name__ == "__main__":
    main()
