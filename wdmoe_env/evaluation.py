"""Policies compared on the same episodes: ``wdmoe_env.evaluate``, and the runner behind every table of the project.

Each policy meets the same windows of text, devices, shadowing and fading, so that a difference between two policies is
due to what they decide. ``python -m eval`` of the repository adds intervals, reports and replays to these measurements.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from wdmoe_env.checks import check_integer
from wdmoe_env.config import EnvConfig
from wdmoe_env.metrics import results_of
from wdmoe_env.policies.named import PolicySpec, named, policy_of
from wdmoe_env.policies.policy import Policy
from wdmoe_env.policies.registry import reads_hidden_states
from wdmoe_env.vector_env import WDMoEVectorEnv

REFERENCE = "vanilla"
"""The policy that always runs: the model's own routing at equal shares."""

Measurements = dict[str, NDArray[Any]]
"""Names of metrics to arrays (n, ...) over episodes."""


@dataclass(frozen=True, slots=True)
class Episodes:
    """Episodes that every policy runs; everything else about them follows from the seeds.

    Attributes:
        windows: (n,) index of each window within its split.
        seeds: (n,) seed of each environment: devices, shadowing and fading.
    """

    windows: NDArray[np.int64]
    seeds: NDArray[np.int64]

    def __len__(self) -> int:
        """Number of episodes n."""
        return len(self.windows)

    def batches(self, size: int) -> Iterator[Episodes]:
        """Consecutive parts of at most ``size`` episodes."""
        for start in range(0, len(self), size):
            yield Episodes(self.windows[start : start + size], self.seeds[start : start + size])


@dataclass(frozen=True, slots=True)
class Evaluated:
    """What every policy measured on the same n episodes.

    Attributes:
        measurements: for each policy, by its name, the metrics that ``METRICS`` marks ``in_results``, each (n,):

            - ``latency_ms``: sum over blocks of equation (7), ms;
            - ``wlr``: mean over blocks of equation (8) in its block form, 1/ms;
            - ``nll``: nats per token;
            - ``added_nll``: that minus the NLL of ``vanilla`` on the same episode;
            - ``next_token_accuracy``: share of tokens whose most probable successor was right;
            - ``gate_weight_kept``: mean over blocks of the gate weight served over that of the own routing;
            - ``repaired_tokens``: sum over blocks of tokens that were left without an expert;
            - ``decision_ms``: wall time of ``predict`` per block and episode, ms; a batch shares its time evenly.
        episodes: what every policy ran.
        domains: n names, the kind of text of each episode.
    """

    measurements: dict[str, Measurements]
    episodes: Episodes
    domains: tuple[str, ...]


def evaluate(
    policies: Iterable[PolicySpec] | Mapping[str, PolicySpec],
    config: EnvConfig | Mapping[str, Any] | None = None,
    episodes: int = 64,
    seed: int = 0,
    batch_size: int = 64,
    progress: bool = True,
) -> Evaluated:
    """Measure policies on the same episodes.

    Args:
        policies: a list of names (``"wdmoe:0.9"``, ``"straight-through-10"``), files of learned policies, and rules of
            your own: functions from a ``Block`` of N episodes to a selection (N, J, E) and shares (N, U), which go by
            their ``__name__``. Or a mapping from names to any of these, or to objects with Stable-Baselines3's
            ``predict``. ``"vanilla"``, the reference, always runs.
        config: the environment or its dict; ``None`` is the default one on the split ``"test"``.
        episodes: how many windows of text, each on a channel of its own.
        seed: of the episodes, and of policies that draw at random.
        batch_size: episodes in one forward pass of the model.
        progress: whether to show a bar.

    Raises:
        ValueError, TypeError: a policy, a setting or a file is wrong; said before the first episode runs.
    """
    environment = EnvConfig(split="test") if config is None else EnvConfig.make(config)
    for name, value, least in (("episodes", episodes, 1), ("seed", seed, 0), ("batch_size", batch_size, 1)):
        check_integer(name, value, at_least=least)
    runner = Runner(with_reference(named(policies)), environment, min(batch_size, episodes), seed)
    text = runner.source.windows
    planned = plan_episodes(episodes, len(text), seed)
    measurements = with_added_nll(dict(runner.run(planned, run_batch, "episode", progress)))
    return Evaluated(measurements, planned, tuple(text.domains[window] for window in planned.windows))


def with_reference(policies: Mapping[str, PolicySpec]) -> dict[str, PolicySpec]:
    """Policies by name, ``REFERENCE`` first where it is missing.

    Args:
        policies: name of each and what stands for it.

    Raises:
        ValueError: another policy under the name of the reference.
    """
    if policies.get(REFERENCE, REFERENCE) != REFERENCE:
        raise ValueError(f"expected the model's own routing under the name {REFERENCE!r}, got another policy")
    return dict(policies) if REFERENCE in policies else {REFERENCE: REFERENCE, **policies}


class Runner:
    """A model and policies, loaded and checked, and the policies' turns on episodes.

    Args:
        policies: name of each and what stands for it, the reference among them.
        config: of the environment, with both decisions in the action.
        batch_size: episodes in one forward pass.
        seed: of policies that draw at random.

    Attributes:
        source: the windows.
        policies: the policy of each name.

    Raises:
        ValueError, TypeError: a policy, a setting or a file is wrong.
    """

    def __init__(self, policies: Mapping[str, PolicySpec], config: EnvConfig, batch_size: int, seed: int) -> None:
        check_decision(config)
        files = [spec for spec in policies.values() if isinstance(spec, (str, Path))]
        hidden = config.observe_hidden_states or any(map(reads_hidden_states, files))
        self._config = replace(config, observe_hidden_states=hidden)
        self._batch_size = batch_size
        self._environments: dict[int, WDMoEVectorEnv] = {}
        env = self.environment(batch_size)
        self.source = env.simulator.source
        self.policies = {name: policy_of(spec, env, seed) for name, spec in policies.items()}
        self._try([name for name, spec in policies.items() if not isinstance(spec, (str, Path))], env)

    def run(
        self,
        episodes: Episodes,
        measure: Callable[[WDMoEVectorEnv, Policy, Episodes], Measurements],
        unit: str,
        progress: bool,
    ) -> Iterator[tuple[str, Measurements]]:
        """Name of each policy, and what was measured, (n, ...), on all episodes.

        Args:
            episodes: n of them.
            measure: runs a policy on as many episodes as the environment has.
            unit: what the bar calls an episode.
            progress: whether to show a bar.
        """
        with tqdm(total=len(self.policies) * len(episodes), unit=unit, disable=not progress) as bar:
            for name, policy in self.policies.items():
                bar.set_description(name)
                parts = []
                for batch in episodes.batches(self._batch_size):
                    parts.append(measure(self.environment(len(batch)), policy, batch))
                    bar.update(len(batch))
                yield name, {metric: np.concatenate([part[metric] for part in parts]) for metric in parts[0]}

    def _try(self, names: Iterable[str], env: WDMoEVectorEnv) -> None:
        """Let policies of the user's own decide once, so that a mistake in one shows before anything has run.

        Raises:
            ValueError, TypeError: what a policy gives is no action; a note names the policy.
        """
        for name in names:
            observation, _ = env.reset(seed=0)
            start = np.ones(env.num_envs, dtype=bool)
            try:
                actions, _ = self.policies[name].predict(observation, state=None, episode_start=start)
                env.codec.decode(actions, (env.num_envs,))
            except Exception as error:
                error.add_note(f"in policy {name!r}")
                raise

    def environment(self, size: int) -> WDMoEVectorEnv:
        """The environment of ``size`` episodes; only the last batch may need a smaller one."""
        if size not in self._environments:
            self._environments[size] = gym.make_vec(  # type: ignore[assignment]
                "wdmoe_env:WDMoE-v0", num_envs=size, autoreset_mode="DISABLED", config=self._config
            )
        return self._environments[size]


def check_decision(config: EnvConfig) -> None:
    """Refuse an environment that decides a half by itself.

    Raises:
        ValueError: its actions hold one decision of the two.
    """
    if config.decision != "joint":
        raise ValueError(
            "decision must be 'joint' in an evaluation: elsewhere the reference would not be the model's own "
            f"routing at equal shares; got {config.decision!r}"
        )


def plan_episodes(count: int, num_windows: int, seed: int) -> Episodes:
    """Draw episodes: windows without repetition while they last, each with a seed of its own.

    The first n episodes are the same for any ``count`` of n or more.

    Args:
        count: episodes.
        num_windows: windows of the split.
        seed: of the draw.
    """
    order, seeds = (np.random.default_rng(child) for child in np.random.SeedSequence(seed).spawn(2))
    rounds = -(-count // num_windows)
    windows = np.concatenate([order.permutation(num_windows) for _ in range(rounds)])[:count]
    return Episodes(windows, seeds.integers(2**31, size=count))


def run_batch(env: WDMoEVectorEnv, policy: Policy, episodes: Episodes) -> Measurements:
    """Run one policy on as many episodes as the environment has, and measure it."""
    return measured(*play(env, policy, episodes), len(episodes))


def measured(blocks: list[dict[str, Any]], decision_s: float, count: int) -> Measurements:
    """The metrics of ``Evaluated``, each (n,); ``added_nll`` is against ``reference_nll``, see ``with_added_nll``.

    Args:
        blocks: of n episodes the info of every block.
        decision_s: seconds per decision for the whole batch.
        count: episodes n.
    """
    return results_of(blocks) | {"decision_ms": np.full(count, 1e3 * decision_s / count)}


def with_added_nll(measurements: dict[str, Measurements]) -> dict[str, Measurements]:
    """Measurements with the NLL that each policy adds to the reference's on the same episode, nats per token."""
    reference = measurements[REFERENCE]["nll"]
    return {name: {**values, "added_nll": values["nll"] - reference} for name, values in measurements.items()}


def play(env: WDMoEVectorEnv, policy: Policy, episodes: Episodes) -> tuple[list[dict[str, Any]], float]:
    """Run one policy on as many episodes as the environment has.

    Args:
        env: of n episodes.
        policy: acts in it.
        episodes: n of them.

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
