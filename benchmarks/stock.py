"""``python -m benchmarks.stock token``: stock PPO on an environment of tokens or of prices, measured as it learns.

    python -m benchmarks.stock token --blocks 40000 --out runs/stock/token
    python -m benchmarks.stock price --blocks 32000 --out runs/stock/price
    python -m benchmarks.stock serve-price --blocks 98304 --quality-weight 0.7 --out runs/stock/serve-price

Trains PPO of Stable-Baselines3 with an ``MlpPolicy`` on training windows, or on cells that serve requests. Every
``--every`` decisions it measures the policy on ``--episodes`` windows or cells of a split, and sets its latency, or
mean E2E, against what rules need at the same added NLL: ``wdmoe:THRESHOLD`` and ``marginal-price:PRICE``, with straight
lines between. A decision is a block, or with ``serve-price`` a pass. ``OUT.safetensors`` is the policy, and its card
``OUT.json`` holds the curve.
"""

from __future__ import annotations

import argparse
import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from stable_baselines3 import PPO

from eval.serve import measure
from train.folder import commit
from wdmoe_env import __version__, evaluate
from wdmoe_env.checks import check_integer
from wdmoe_env.command import end_with, mistakes_in_one_sentence
from wdmoe_env.config import DEVICE_SETS
from wdmoe_env.integrations.sb3 import SB3VecEnv
from wdmoe_env.integrations.stock_file import export_policy
from wdmoe_env.integrations.token_vec import TokenVectorEnv
from wdmoe_env.serving.process import serving_config
from wdmoe_env.writing import check_file

FRONTS = {
    "wdmoe": [f"wdmoe:{threshold}" for threshold in (0.6, 0.7, 0.8, 0.85, 0.9, 0.93, 0.97)],
    "marginal-price": [f"marginal-price:{price}" for price in (0.3, 0.5, 0.7, 1, 1.5, 2, 3)],
}
OF_PRICE: dict[str, Any] = {"learning_rate": 3e-4, "n_epochs": 8, "policy_kwargs": {"log_std_init": -1.0}}
SETTINGS: dict[str, dict[str, Any]] = {
    "token": {"learning_rate": 1e-3, "n_epochs": 4},
    "price": OF_PRICE,
    # The reward of a pass counts all who wait for it. What comes later is mostly who arrives: noise to its price.
    "serve-price": {**OF_PRICE, "learning_rate": 1e-3, "gamma": 0.0},
}
FACES = {"token": "Token", "price": "Price", "serve-price": "Serve-Price"}
REWARDS = {"token": "latency_divergence", "price": "latency_divergence", "serve-price": "serving_divergence"}
NUM_ENVS = {"token": 32, "price": 32, "serve-price": 256}
STEPS = {"token": 6, "price": 12, "serve-price": 24}
BATCHES = {"token": 8, "price": 6, "serve-price": 4}
SEED = 777


@mistakes_in_one_sentence("python -m benchmarks.stock")
def main(argv: Sequence[str] | None = None) -> int:
    """Train and measure; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("face", choices=tuple(FACES))
    parser.add_argument("--blocks", type=int, default=40_000)
    parser.add_argument("--every", type=int, default=8_000)
    parser.add_argument("--quality-weight", type=float, default=10.0)
    parser.add_argument("--devices", choices=tuple(DEVICE_SETS), default="paper")
    parser.add_argument("--episodes", type=int, default=256)
    parser.add_argument("--split", default="test")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    words = sys.argv[1:] if argv is None else list(argv)
    chosen = parser.parse_args(words)
    for name in ("blocks", "every", "episodes"):
        check_integer(name, getattr(chosen, name), at_least=1)
    check_file(chosen.out.with_suffix(".safetensors"))
    chosen.out.parent.mkdir(parents=True, exist_ok=True)
    face = Face(chosen.face, chosen.devices, chosen.split, chosen.episodes)
    model, tokens = face.algorithm(chosen.quality_weight, chosen.seed)
    fronts = {name: face.front(rules) for name, rules in FRONTS.items()}
    curve: list[dict[str, float]] = []
    made_by = {
        "env_id": env_id(chosen.face),
        "command": shlex.join(["python", "-m", "benchmarks.stock", *words]),
        "arguments": {**vars(chosen), "out": str(chosen.out), "reward": REWARDS[chosen.face]},
        "version": __version__,
        "commit": commit(),
    }
    learning_s = 0.0
    while True:
        path = export_policy(model, chosen.out, curve=curve, **made_by)
        latency_ms, added_nll = face.measured([str(path)])[str(path)]
        against = {f"against_{name}": latency_ms / line(added_nll) for name, line in fronts.items()}
        point = {"blocks": model.num_timesteps // tokens, "latency_ms": latency_ms, "added_nll": added_nll, **against}
        curve.append({**point, "processor_s": learning_s})
        print({name: round(value, 4) for name, value in curve[-1].items()}, flush=True)
        if model.num_timesteps >= chosen.blocks * tokens:
            export_policy(model, chosen.out, curve=curve, **made_by)
            return 0
        began = time.process_time()
        model.learn(min(chosen.every * tokens, chosen.blocks * tokens - model.num_timesteps), reset_num_timesteps=False)
        learning_s += time.process_time() - began


def env_id(face: str) -> str:
    """The environment of a name in ``FACES``."""
    return f"WDMoE-{FACES[face]}-v0"


@dataclass(frozen=True, slots=True)
class Face:
    """An environment to learn in, and the episodes to measure on.

    Attributes:
        name: one of ``FACES``.
        devices: name of a set of devices.
        split: of the texts to measure on.
        episodes: windows, or cells.
    """

    name: str
    devices: str
    split: str
    episodes: int

    def algorithm(self, quality_weight: float, seed: int) -> tuple[PPO, int]:
        """PPO, and the steps that Stable-Baselines3 counts for a decision.

        Args:
            quality_weight: of the reward in ``REWARDS``.
            seed: of weights, episodes and actions.
        """
        settings = {"reward": REWARDS[self.name], "quality_weight": quality_weight, "devices": self.devices}
        name, count = f"wdmoe_env:{env_id(self.name)}", NUM_ENVS[self.name]
        batch = gym.make_vec(name, num_envs=count, autoreset_mode="SAME_STEP", split="train", **settings)
        env = SB3VecEnv(TokenVectorEnv(batch) if self.name == "token" else batch)
        steps = STEPS[self.name]
        size = env.num_envs * steps // BATCHES[self.name]
        of_face = {"n_steps": steps, "batch_size": size, "gamma": 1.0, "gae_lambda": 1.0, **SETTINGS[self.name]}
        return PPO("MlpPolicy", env, seed=seed, device="cpu", **of_face), env.num_envs // count

    def measured(self, policies: list[str]) -> dict[str, tuple[float, ...]]:
        """Mean latency in ms, or mean E2E, and mean added NLL of policies on the same episodes."""
        settings = {"split": self.split, "devices": self.devices}
        if self.name == "serve-price":
            runs = measure(policies, serving_config(settings, {}), self.episodes, SEED)
            figures = ("request_e2e_ms", "request_added_nll")
            return {name: tuple(float(run.requests[one].mean()) for one in figures) for name, run in runs.items()}
        found = evaluate(list(policies), settings, episodes=self.episodes, seed=SEED, progress=False).measurements
        return {name: (float(one["latency_ms"].mean()), float(one["added_nll"].mean())) for name, one in found.items()}

    def front(self, rules: list[str]) -> Any:
        """From added NLL to the ms that a family of rules needs, from own routing at optimal shares on.

        NaN beyond the family's last setting, where nothing can be compared.
        """
        points = self.measured(["vanilla-optimal", *rules])
        line = sorted((points[name][1], points[name][0]) for name in ("vanilla-optimal", *rules))
        added_nll, latency_ms = np.array(line).T
        return lambda at: float(np.interp(at, added_nll, latency_ms, left=np.nan, right=np.nan))


if __name__ == "__main__":
    end_with("python -m benchmarks.stock", main)
