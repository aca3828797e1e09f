"""Run every policy on the same episodes."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from tqdm import tqdm

from agents import make_policy, policy_names
from eval.plan import REFERENCE, Episodes, EvaluationConfig, plan_episodes
from eval.results import Measurements, Results
from wdmoe_env.config import EnvConfig
from wdmoe_env.vector_env import WDMoEVectorEnv

# How a block's value becomes an episode's; the rest is in the info of the last block.
MEAN_OVER_BLOCKS = ("wlr", "gate_weight_kept")
SUM_OVER_BLOCKS = ("repaired_tokens",)
OF_EPISODE = ("latency_ms", "nll", "next_token_accuracy")


def evaluate(
    policies: Sequence[str] | None = None,
    config: EnvConfig | Mapping[str, Any] | None = None,
    episodes: int = 256,
    seed: int = 7,
    batch_size: int = 64,
    progress: bool = True,
) -> Results:
    """Measure policies on the same episodes.

    Args:
        policies: names and files as ``agents.make_policy`` takes them; ``None`` takes every named rule. ``vanilla``
            always runs.
        config: the environment or its dict; ``None`` is the default one on the split ``"test"``.
        episodes: how many.
        seed: of episodes, policies and resamples.
        batch_size: episodes in one forward pass.
        progress: whether to show a bar.

    Raises:
        ValueError, TypeError: a policy, a setting or a file is wrong; before the first episode.
    """
    environment = EnvConfig(split="test") if config is None else EnvConfig.make(config)
    chosen = policy_names() if policies is None else tuple(policies)
    return Evaluation(EvaluationConfig(chosen, environment, episodes, seed, batch_size)).run(progress)


class Evaluation:
    """An evaluation whose model and policies are loaded and checked, and that can run, once.

    Args:
        config: what to evaluate.

    Raises:
        ValueError, TypeError: a policy, a setting or a file is wrong.
    """

    def __init__(self, config: EvaluationConfig) -> None:
        self.config = config
        self._environments: dict[int, WDMoEVectorEnv] = {}
        env = self._environment(min(config.batch_size, config.episodes))
        self._text = env.simulator.source.windows
        self.policies = {spec: make_policy(spec, env, config.seed) for spec in config.policies}

    def run(self, progress: bool = True) -> Results:
        """Run every policy on every episode.

        Args:
            progress: whether to show a bar.
        """
        episodes = plan_episodes(self.config.episodes, len(self._text), self.config.seed)
        measurements = {}
        with tqdm(total=len(self.policies) * len(episodes), unit="episode", disable=not progress) as bar:
            for spec, policy in self.policies.items():
                bar.set_description(spec)
                measurements[spec] = self._run_policy(policy, episodes, bar)
        reference = measurements[REFERENCE]["nll"]
        for values in measurements.values():
            values["added_nll"] = values["nll"] - reference
        domains = tuple(self._text.domains[window] for window in episodes.windows)
        return Results(self.config, episodes, domains, measurements)

    def _run_policy(self, policy: Any, episodes: Episodes, bar: tqdm[Any]) -> Measurements:
        parts = []
        for batch in episodes.batches(self.config.batch_size):
            parts.append(run_batch(self._environment(len(batch)), policy, batch))
            bar.update(len(batch))
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def _environment(self, size: int) -> WDMoEVectorEnv:
        """The environment of ``size`` episodes; only the last batch may need a smaller one."""
        if size not in self._environments:
            self._environments[size] = gym.make_vec(  # type: ignore[assignment]
                "wdmoe_env:WDMoE-v0",
                num_envs=size,
                autoreset_mode="DISABLED",
                config=self.config.environment,
            )
        return self._environments[size]


def run_batch(env: WDMoEVectorEnv, policy: Any, episodes: Episodes) -> Measurements:
    """Run one policy on as many episodes as the environment has, and measure all but ``added_nll``."""
    size = len(episodes)
    observation, _ = env.reset(seed=episodes.seeds.tolist(), options={"window": episodes.windows})
    state, episode_start = None, np.ones(size, dtype=bool)
    blocks: list[dict[str, Any]] = []
    decision_s = []
    ended = False
    while not ended:
        began = time.perf_counter()
        actions, state = policy.predict(observation, state=state, episode_start=episode_start, deterministic=True)
        decision_s.append(time.perf_counter() - began)
        observation, _, terminated, _, info = env.step(actions)
        blocks.append(info)
        episode_start = np.zeros(size, dtype=bool)
        ended = bool(terminated.all())
    measured = {name: np.mean([info[name] for info in blocks], axis=0) for name in MEAN_OVER_BLOCKS}
    measured |= {name: np.sum([info[name] for info in blocks], axis=0) for name in SUM_OVER_BLOCKS}
    measured |= {name: blocks[-1][name] for name in OF_EPISODE}
    measured["decision_ms"] = np.full(size, 1e3 * np.mean(decision_s) / size)
    return {name: np.asarray(value, dtype=np.float64) for name, value in measured.items()}
