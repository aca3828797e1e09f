"""How the device form of WLR is gamed by shares: ``python benchmarks/device_form.py``.

The model's own routing on 256 test windows with three ways of sharing the bandwidth: equal, min-max, and the
shares that maximise the device form. Prints the mean block-sum latency, and both forms per block.
"""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np

from wdmoe_env.observations import Block, decode_observation
from wdmoe_env.optimize.bandwidth import min_max_bandwidth
from wdmoe_env.optimize.device_bandwidth import wlr_device_bandwidth
from wdmoe_env.physics.latency import Float, device_load, equal_shares
from wdmoe_env.physics.metric import device_weight_served


def shares_of(kind: str, block: Block) -> Float:
    """Bandwidth shares (N, U) for the model's own routing."""
    load = device_load(block.routed, block.links.placement)
    if kind == "equal":
        return equal_shares(*block.links.compute_s.shape)
    if kind == "min-max":
        return min_max_bandwidth(block.links, load).shares
    served = device_weight_served(block.weights, block.routed, block.links.placement)
    return wlr_device_bandwidth(block.links, load, served, min_share=1e-3)


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
