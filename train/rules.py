"""Choose the two constants of the rules on training windows: ``python -m train.rules``.

The paper promises lower latency without loss of quality, and leaves open when its threshold stops growing. Here
the stopping gain is the least of a grid whose loss of next-token accuracy stays within a bound, and the price of
``marginal-price`` is the least of a grid at which it is as fast as ``wdmoe`` at that gain. Prints both tables;
the constants stand in ``wdmoe_env/policies/rules.py``. With ``--serve`` the numbers of the rules that see a queue are
chosen instead, see ``train.queue_rules``; those stand in ``wdmoe_env/policies/queue.py``.
"""

from __future__ import annotations

import argparse
import sys
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np

from wdmoe_env.command import end_with
from wdmoe_env.config import DEVICE_SETS
from wdmoe_env.evaluation import Episodes, plan_episodes, run_batch
from wdmoe_env.policies import rules
from wdmoe_env.policies.policy import Rule, RulePolicy

STOPPING_GAINS = (0.3, 0.2, 0.15, 0.1, 0.07, 0.05, 0.04, 0.03, 0.025, 0.02, 0.01, 0.007, 0.005, 0.003, 0.002, 0.0)
PRICES_PER_MS = (0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.5, 0.6, 0.7, 0.8, 1.0, 1.25, 1.5)
BATCH = 64


def measure(env: Any, rule: Rule, episodes: Episodes) -> dict[str, Any]:
    """Means over episodes of what ``run_batch`` measures."""
    parts = [run_batch(env, RulePolicy(rule, env.codec), batch) for batch in episodes.batches(BATCH)]
    return {name: np.concatenate([part[name] for part in parts]).mean() for name in parts[0]}


def main(argv: list[str] | None = None) -> None:
    """Measure both grids and print what they choose."""
    parser = argparse.ArgumentParser(prog="python -m train.rules", description=__doc__)
    parser.add_argument("--model", default="tiny", help="language model (tiny)")
    parser.add_argument("--serve", action="store_true", help="choose the numbers of the rules that see a queue")
    parser.add_argument("--episodes", type=int, help="training windows, a multiple of 64 (1024), or cells (16)")
    devices = "with --serve: sets of devices, whose ratios are averaged (paper)"
    parser.add_argument("--devices", nargs="+", choices=tuple(DEVICE_SETS), default=["paper"], help=devices)
    parser.add_argument("--seed", type=int, default=0, help="seed of windows and channels (0)")
    parser.add_argument("--max-loss-points", type=float, default=0.3, help="accuracy that wdmoe may lose (0.3)")
    options = parser.parse_args(argv)
    if options.serve:
        from train.queue_rules import search

        search(options.model, options.devices, options.episodes or 16, options.seed)
        return

    env: Any = gym.make_vec(
        "wdmoe_env:WDMoE-v0", num_envs=BATCH, autoreset_mode="DISABLED", model=options.model, split="train"
    )
    episodes = plan_episodes(options.episodes or 1024, len(env.simulator.source.windows), options.seed)
    own = measure(env, rules.vanilla_optimal, episodes)
    print(f"{'':24}latency_ms  added_nll  accuracy_points")

    def row(label: str, rule: Rule) -> tuple[float, float]:
        """Print a rule's means; returns latency and points of accuracy."""
        measured = measure(env, rule, episodes)
        added = measured["nll"] - own["nll"]
        points = 100.0 * (measured["next_token_accuracy"] - own["next_token_accuracy"])
        print(f"{label:24}{measured['latency_ms']:10.2f} {added:10.4f} {points:16.2f}", flush=True)
        return measured["latency_ms"], points

    row("vanilla-optimal", rules.vanilla_optimal)
    gains = {g: row(f"wdmoe, gain {g:g}", partial(rules.wdmoe, stopping_gain=g)) for g in STOPPING_GAINS}
    fitting = [g for g, (_, points) in gains.items() if points >= -options.max_loss_points]
    if not fitting:
        sys.exit(f"python -m train.rules: no stopping gain of the grid loses at most {options.max_loss_points} points")
    gain = min(fitting)
    prices = {p: row(f"marginal-price:{p:g}", partial(rules.marginal_price, price_per_ms=p)) for p in PRICES_PER_MS}
    as_fast = [p for p, (latency, _) in prices.items() if latency <= gains[gain][0]]
    if not as_fast:
        sys.exit("python -m train.rules: no price of the grid is as fast as wdmoe")
    price = min(as_fast)
    print(f"STOPPING_GAIN = {gain:g}\nDEFAULT_PRICE_PER_MS = {price:g}")


if __name__ == "__main__":
    end_with("python -m train.rules", main)
