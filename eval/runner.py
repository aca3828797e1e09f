"""The evaluation on windows of text: every policy on the same episodes, counted block by block."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from eval.drops import count_drops
from eval.members import member
from eval.plan import EvaluationConfig, RunConfig, windows_of
from eval.provenance import beside_hashes, channel_hashes, model_hash, policy_hashes, text_hashes
from eval.results import SIMULATED, EpisodeResults
from wdmoe_env.config import EnvConfig
from wdmoe_env.evaluation import (
    Episodes,
    Measurements,
    Runner,
    measured,
    plan_episodes,
    play,
    run_batch,
    with_added_nll,
)
from wdmoe_env.metrics import METRICS
from wdmoe_env.observations import Block
from wdmoe_env.optimize.oracle import exhaustive_oracle
from wdmoe_env.physics.latency import Bool, Float
from wdmoe_env.policies import policy_names
from wdmoe_env.policies.named import PolicySpec
from wdmoe_env.policies.policy import ObservationMapping, Policy, State
from wdmoe_env.policies.rules import problem_of
from wdmoe_env.vector_env import WDMoEVectorEnv

ORACLE = "oracle"
MOST_ORACLE_TOKENS = 8
ROUNDING = 1e-6
"""Relative change of gate probabilities that another processor's float32 arithmetic makes in a forward pass."""
ROUNDING_TRIES = 8


def evaluate(
    policies: Sequence[str] | None = None,
    config: EnvConfig | Mapping[str, Any] | None = None,
    episodes: int = 256,
    seed: int = 7,
    batch_size: int = 64,
    progress: bool = True,
) -> EpisodeResults:
    """Measure policies on the same episodes, for statistics, tables and pictures.

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
        self._runner = ConfiguredRunner(config, config.episodes)
        self.sha256 = self._runner.sha256
        self._windows = windows_of(self._runner.source.windows.domains, config.domains)

    def run(self, progress: bool = True) -> EpisodeResults:
        """Run every policy on every episode.

        Args:
            progress: whether to show a bar.
        """
        text, episodes = self._runner.source.windows, self._episodes()
        measurements = with_added_nll(dict(self._runner.run(episodes, run_and_count, "episode", progress)))
        domains = tuple(text.domains[window] for window in episodes.windows)
        documents = text.documents[episodes.windows] if self.config.resample == "documents" else None
        members = self._runner.members
        return EpisodeResults(self.config, self.sha256, members, measurements, episodes, domains, documents)

    def rounded_otherwise(self, policy: str, number: int) -> Iterator[dict[str, float]]:
        """What ``run_batch`` measures on an episode with gate probabilities rounded otherwise before the policy.

        A decision at a tie falls otherwise on a processor that rounds otherwise; that is tried here a few times.

        Args:
            policy: its name.
            number: of the episode.
        """
        size = self.config.batch_size
        batch = list(self._episodes().batches(size))[number // size]
        for seed in range(ROUNDING_TRIES):
            nudged = Nudged(self._runner.policies[policy], seed)
            values = run_batch(self._runner.environment(len(batch)), nudged, batch)
            yield {name: float(of_episodes[number % size]) for name, of_episodes in values.items()}

    def _episodes(self) -> Episodes:
        drawn = plan_episodes(self.config.episodes, len(self._windows), self.config.seed)
        return Episodes(self._windows[drawn.windows], drawn.seeds)


class Nudged:
    """A policy that sees gate probabilities as another processor may round them.

    Args:
        policy: that decides.
        seed: of the rounding.
    """

    def __init__(self, policy: Policy, seed: int) -> None:
        self._policy = policy
        self._generator = np.random.default_rng(seed)

    def predict(
        self,
        observation: ObservationMapping,
        state: State = None,
        episode_start: Any = None,
        deterministic: bool = True,
    ) -> tuple[Any, State]:
        """Actions of observations; see ``Policy``."""
        exact = observation["gate_probs"]
        nudged = exact * (1.0 + ROUNDING * self._generator.uniform(-1.0, 1.0, exact.shape))
        seen = {**observation, "gate_probs": nudged.astype(exact.dtype)}
        return self._policy.predict(seen, state, episode_start, deterministic)


class ConfiguredRunner(Runner):
    """The runner of a configuration that can be saved, with what results say of its policies and files.

    Args:
        config: what to run.
        episodes: how many there will be, at least.

    Attributes:
        members: the place of each policy in its family.
        sha256: hashes of the model, of the policies' files and of the recorded channel.

    Raises:
        ValueError, TypeError: a policy, a setting or a file is wrong.
    """

    def __init__(self, config: RunConfig, episodes: int) -> None:
        policies = {policy: _spec(config, policy) for policy in config.policies}
        super().__init__(policies, config.environment, min(config.batch_size, episodes), config.seed)
        self.members = tuple(replace(member(config.located(policy)), policy=policy) for policy in config.policies)
        model = config.environment.model
        weights = {f"the model {model}": model_hash(self.source.model), **beside_hashes(model)}
        files = channel_hashes(config.environment.channel.source) | text_hashes(config.environment.split)
        self.sha256 = weights | policy_hashes(config) | files


def run_and_count(env: WDMoEVectorEnv, policy: Policy, episodes: Episodes) -> Measurements:
    """What ``run_batch`` measures, and by block what ``eval.drops`` counts."""
    blocks, decision_s = play(env, policy, episodes)
    both = measured(blocks, decision_s, len(episodes)) | count_drops(blocks)
    if SIMULATED in blocks[0]:  # latency was measured by a testbed
        both |= {name: METRICS[name].of_episode(blocks) for name in (SIMULATED, "unserved_pairs")}
    return both


def _spec(config: RunConfig, policy: str) -> PolicySpec:
    """What the runner takes for a policy: its name, its file, or the oracle.

    Raises:
        ValueError: the oracle on windows of more than ``MOST_ORACLE_TOKENS`` tokens.
    """
    if policy != ORACLE:
        return config.located(policy)
    num_tokens = config.environment.num_tokens
    if num_tokens > MOST_ORACLE_TOKENS:
        raise ValueError(
            f"the oracle tries every selection: num_tokens must be at most {MOST_ORACLE_TOKENS}, got {num_tokens}"
        )
    return oracle


def oracle(block: Block) -> tuple[Bool, Float]:
    """The selection of routed experts and the shares of greatest WLR (8) in each block, found by exhaustion."""
    solution = exhaustive_oracle(problem_of(block))
    return solution.selection, solution.shares
