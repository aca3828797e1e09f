"""``python -m benchmarks.stock token``: stock PPO on the token or the price environment, measured as it learns.

    python -m benchmarks.stock token --blocks 40000 --out runs/stock/token
    python -m benchmarks.stock price --blocks 32000 --out runs/stock/price

Trains PPO of Stable-Baselines3 with an ``MlpPolicy`` on training windows. Every ``--every`` blocks it measures the
policy in ``WDMoE-v0`` on ``--episodes`` windows of a split, and sets its latency against what rules need at the same
added NLL: ``wdmoe:THRESHOLD`` and ``marginal-price:PRICE``, with straight lines between. ``OUT.safetensors``
is the policy, and its card ``OUT.json`` holds the curve.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from stable_baselines3 import PPO

from wdmoe_env import evaluate
from wdmoe_env.integrations.sb3 import SB3VecEnv
from wdmoe_env.integrations.stock_file import export_policy
from wdmoe_env.integrations.token_vec import TokenVectorEnv

FRONTS = {
    "wdmoe": [f"wdmoe:{threshold}" for threshold in (0.6, 0.7, 0.8, 0.85, 0.9, 0.93, 0.97)],
    "marginal-price": [f"marginal-price:{price}" for price in (0.5, 0.7, 1, 1.5, 2, 3)],
}
SETTINGS: dict[str, dict[str, Any]] = {
    "token": {"learning_rate": 1e-3, "n_epochs": 4},
    "price": {"learning_rate": 3e-4, "n_epochs": 8, "policy_kwargs": {"log_std_init": -1.0}},
}
NUM_ENVS = 32
STEPS = {"token": 6, "price": 12}
BATCHES = {"token": 8, "price": 6}
SEED = 777


def main(argv: Sequence[str] | None = None) -> int:
    """Train and measure; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("face", choices=("token", "price"))
    parser.add_argument("--blocks", type=int, default=40_000)
    parser.add_argument("--every", type=int, default=8_000)
    parser.add_argument("--quality-weight", type=float, default=10.0)
    parser.add_argument("--episodes", type=int, default=256)
    parser.add_argument("--split", default="test")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    chosen = parser.parse_args(argv)
    chosen.out.parent.mkdir(parents=True, exist_ok=True)
    model, tokens = algorithm(chosen.face, chosen.quality_weight, chosen.seed)
    fronts = {name: front(rules, chosen.split, chosen.episodes) for name, rules in FRONTS.items()}
    curve: list[dict[str, float]] = []
    learning_s = 0.0
    while True:
        path = export_policy(model, chosen.out, curve=curve)
        latency_ms, added_nll = measured([path], chosen.split, chosen.episodes)[str(path)]
        against = {f"against_{name}": latency_ms / line(added_nll) for name, line in fronts.items()}
        point = {"blocks": model.num_timesteps // tokens, "latency_ms": latency_ms, "added_nll": added_nll, **against}
        curve.append({**point, "processor_s": learning_s})
        print({name: round(value, 4) for name, value in curve[-1].items()}, flush=True)
        if model.num_timesteps >= chosen.blocks * tokens:
            export_policy(model, chosen.out, curve=curve)
            return 0
        began = time.process_time()
        model.learn(min(chosen.every * tokens, chosen.blocks * tokens - model.num_timesteps), reset_num_timesteps=False)
        learning_s += time.process_time() - began


def algorithm(face: str, quality_weight: float, seed: int) -> tuple[PPO, int]:
    """PPO on a face, and the steps that Stable-Baselines3 counts for a block.

    Args:
        face: ``"token"`` or ``"price"``.
        quality_weight: of the reward ``"latency_divergence"``.
        seed: of weights, episodes and actions.
    """
    name = f"wdmoe_env:WDMoE-{face.capitalize()}-v0"
    batch = gym.make_vec(name, num_envs=NUM_ENVS, autoreset_mode="SAME_STEP", quality_weight=quality_weight)
    env = SB3VecEnv(TokenVectorEnv(batch) if face == "token" else batch)
    count = env.num_envs * STEPS[face]
    size = count // BATCHES[face]
    settings = {"n_steps": STEPS[face], "batch_size": size, "gamma": 1.0, "gae_lambda": 1.0, **SETTINGS[face]}
    return PPO("MlpPolicy", env, seed=seed, device="cpu", **settings), env.num_envs // NUM_ENVS


def measured(policies: list[Any], split: str, episodes: int) -> dict[str, tuple[float, float]]:
    """Mean latency in ms and mean added NLL of policies on the same episodes of a split."""
    found = evaluate(policies, {"split": split}, episodes=episodes, seed=SEED, progress=False).measurements
    return {name: (float(one["latency_ms"].mean()), float(one["added_nll"].mean())) for name, one in found.items()}


def front(rules: list[str], split: str, episodes: int) -> Any:
    """From added NLL to the latency in ms that a family of rules needs, from own routing at optimal shares on."""
    points = measured(["vanilla-optimal", *rules], split, episodes)
    line = sorted((points[name][1], points[name][0]) for name in ("vanilla-optimal", *rules))
    added_nll, latency_ms = np.array(line).T
    return lambda at: float(np.interp(at, added_nll, latency_ms))


if __name__ == "__main__":
    sys.exit(main())
