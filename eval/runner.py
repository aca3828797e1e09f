"""Run every policy on the same episodes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import gymnasium as gym
import numpy as np
from tqdm import tqdm

from eval.drops import count_drops
from eval.inputs import beside_hashes, channel_hashes, model_hash, policy_hashes, text_hashes
from eval.members import member, reads_hidden_states
from eval.oracle import make_policy
from eval.plan import REFERENCE, Episodes, EvaluationConfig, RunConfig, plan_episodes, windows_of
from eval.results import EpisodeResults, Measurements
from wdmoe_env.config import EnvConfig
from wdmoe_env.policies import policy_names
from wdmoe_env.vector_env import WDMoEVectorEnv

# How a block's value becomes an episode's; the rest is in the info of the last block.
MEAN_OVER_BLOCKS = ("wlr", "gate_weight_kept")
SUM_OVER_BLOCKS = ("repaired_tokens",)
OF_EPISODE = ("latency_ms", "nll", "next_token_accuracy")

MeasureBatch = Callable[[WDMoEVectorEnv, Any, Episodes], Measurements]


def evaluate(
    policies: Sequence[str] | None = None,
    config: EnvConfig | Mapping[str, Any] | None = None,
    episodes: int = 256,
    seed: int = 7,
    batch_size: int = 64,
    progress: bool = True,
) -> EpisodeResults:
    """Measure policies on the same episodes.

    Args:
        policies: names and files as ``make_policy`` takes them; ``None`` takes every named rule. ``vanilla``
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
    settings = EvaluationConfig(
        policies=chosen, environment=environment, episodes=episodes, seed=seed, batch_size=batch_size
    )
    return Evaluation(settings).run(progress)


class Evaluation:
    """An evaluation whose model and policies are loaded and checked, and that can run.

    Args:
        config: what to evaluate.

    Attributes:
        sha256: hashes of what was loaded.

    Raises:
        ValueError, TypeError: a policy, a setting or a file is wrong.
    """

    def __init__(self, config: EvaluationConfig) -> None:
        self.config = config
        self._runner = Runner(config, config.episodes)
        self.sha256 = self._runner.sha256
        self._windows = windows_of(self._runner.source.windows.domains, config.domains)

    def run(self, progress: bool = True) -> EpisodeResults:
        """Run every policy on every episode.

        Args:
            progress: whether to show a bar.
        """
        text = self._runner.source.windows
        drawn = plan_episodes(self.config.episodes, len(self._windows), self.config.seed)
        episodes = Episodes(self._windows[drawn.windows], drawn.seeds)
        measurements = dict(self._runner.run(episodes, run_and_count, "episode", progress))
        reference = measurements[REFERENCE]["nll"]
        for values in measurements.values():
            values["added_nll"] = values["nll"] - reference
        domains = tuple(text.domains[window] for window in episodes.windows)
        return EpisodeResults(self.config, self.sha256, self._runner.members, measurements, episodes, domains)


class Runner:
    """Model and policies of a configuration, loaded and checked, and their turns on episodes.

    Args:
        config: what to run.
        episodes: how many there will be, at least.

    Attributes:
        source: the windows.
        policies: the policy of each name.
        members: the place of each in its family.
        sha256: hashes of the model, of the policies' files and of the recorded channel.

    Raises:
        ValueError, TypeError: a policy, a setting or a file is wrong.
    """

    def __init__(self, config: RunConfig, episodes: int) -> None:
        self.config = config
        hidden = (
            any(map(reads_hidden_states, map(config.located, config.policies)))
            or config.environment.observe_hidden_states
        )
        self._settings = replace(config.environment, observe_hidden_states=hidden)
        self._environments: dict[int, WDMoEVectorEnv] = {}
        env = self._environment(min(config.batch_size, episodes))
        self.source = env.simulator.source
        self.policies = {spec: make_policy(config.located(spec), env, config.seed) for spec in config.policies}
        self.members = tuple(replace(member(config.located(spec)), policy=spec) for spec in config.policies)
        model = config.environment.model
        weights = {f"the model {model}": model_hash(self.source.model), **beside_hashes(model)}
        files = channel_hashes(config.environment.channel.source) | text_hashes(config.environment.split)
        self.sha256 = weights | policy_hashes(config) | files

    def run(
        self, episodes: Episodes, measure: MeasureBatch, unit: str, progress: bool
    ) -> Iterator[tuple[str, Measurements]]:
        """Name of each policy, and what was measured, (n, ...), on all episodes.

        Args:
            episodes: n of them.
            measure: runs a policy on as many episodes as the environment has.
            unit: what the bar calls an episode.
            progress: whether to show a bar.
        """
        with tqdm(total=len(self.policies) * len(episodes), unit=unit, disable=not progress) as bar:
            for spec, policy in self.policies.items():
                bar.set_description(spec)
                parts = []
                for batch in episodes.batches(self.config.batch_size):
                    parts.append(measure(self._environment(len(batch)), policy, batch))
                    bar.update(len(batch))
                yield spec, {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def _environment(self, size: int) -> WDMoEVectorEnv:
        """The environment of ``size`` episodes; only the last batch may need a smaller one."""
        if size not in self._environments:
            self._environments[size] = gym.make_vec(  # type: ignore[assignment]
                "wdmoe_env:WDMoE-v0",
                num_envs=size,
                autoreset_mode="DISABLED",
                config=self._settings,
            )
        return self._environments[size]


def run_batch(env: WDMoEVectorEnv, policy: Any, episodes: Episodes) -> Measurements:
    """Run one policy on as many episodes as the environment has, and measure all but ``added_nll``."""
    return _measure(*play(env, policy, episodes), len(episodes))


def run_and_count(env: WDMoEVectorEnv, policy: Any, episodes: Episodes) -> Measurements:
    """What ``run_batch`` measures, and by block what ``eval.drops`` counts."""
    blocks, decision_s = play(env, policy, episodes)
    return _measure(blocks, decision_s, len(episodes)) | count_drops(blocks)


def _measure(blocks: list[dict[str, Any]], decision_s: float, count: int) -> Measurements:
    measured = {name: np.mean([info[name] for info in blocks], axis=0) for name in MEAN_OVER_BLOCKS}
    measured |= {name: np.sum([info[name] for info in blocks], axis=0) for name in SUM_OVER_BLOCKS}
    measured |= {name: blocks[-1][name] for name in OF_EPISODE}
    measured["decision_ms"] = np.full(count, 1e3 * decision_s / count)
    return {name: np.asarray(value, dtype=np.float64) for name, value in measured.items()}


def play(env: WDMoEVectorEnv, policy: Any, episodes: Episodes) -> tuple[list[dict[str, Any]], float]:
    """Run one policy on as many episodes as the environment has.

    Returns:
        The info of every block, with the ``observation`` that was decided on, and seconds per decision.
    """
    observation, _ = env.reset(seed=episodes.seeds.tolist(), options={"window": episodes.windows})
    state, episode_start = None, np.ones(len(episodes), dtype=bool)
    blocks: list[dict[str, Any]] = []
    decision_s = []
    ended = False
    while not ended:
        began = time.perf_counter()
        actions, state = policy.predict(observation, state=state, episode_start=episode_start, deterministic=True)
        decision_s.append(time.perf_counter() - began)
        following, _, terminated, _, info = env.step(actions)
        blocks.append({**info, "observation": observation})
        observation = following
        episode_start = np.zeros(len(episodes), dtype=bool)
        ended = bool(terminated.all())
    return blocks, float(np.mean(decision_s))
