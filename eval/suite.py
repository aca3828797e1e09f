"""The multiple-choice suite under every policy: the same items, each on a channel of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eval.plan import RunConfig
from eval.provenance import file_hash
from eval.results import Results
from eval.runner import ConfiguredRunner
from wdmoe_env.checks import check_integer
from wdmoe_env.config import EnvConfig, names_texts
from wdmoe_env.episodes import load_suite_windows, suite_path
from wdmoe_env.evaluation import Episodes, Measurements, play
from wdmoe_env.policies import policy_names
from wdmoe_env.policies.policy import Policy
from wdmoe_env.text.suite import NUM_CHOICES, SUITE_TOKENS, Item, suite_file, window_rows
from wdmoe_env.text.windows import DOCUMENT_SPLITS
from wdmoe_env.vector_env import WDMoEVectorEnv

DEFAULTS: Mapping[str, Any] = {"split": "suite", "num_tokens": SUITE_TOKENS}
"""Settings of the environment that differ from those of an evaluation on windows of text."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SuiteConfig(RunConfig):
    """An evaluation on the suite.

    Attributes:
        suite_items: how many items, drawn from each format and domain in proportion; ``None`` takes all.
    """

    environment: EnvConfig = field(default_factory=lambda: EnvConfig.make(DEFAULTS))
    suite_items: int | None = None

    def __post_init__(self) -> None:
        """Check every field, and put the reference in."""
        RunConfig.__post_init__(self)
        if self.environment.split in DOCUMENT_SPLITS or names_texts(self.environment.split):
            raise ValueError(f"split must be 'suite' or the file of a suite, got {self.environment.split!r}")
        if self.suite_items is not None:
            check_integer("suite_items", self.suite_items, at_least=1)


@dataclass(frozen=True, slots=True)
class SuiteResults(Results):
    """What an evaluation on the suite measured.

    Attributes:
        numbers: (n,) of the items within the suite.
        items: n of them.
        seeds: (n,) of each item's devices, shadowing and fading, the same for its four choices.
        context_cut: (n,) whether the item's context was too long and lost its beginning.
        measurements: for each policy the metrics, each (n,):

            - ``choice``: the choice of highest score;
            - ``correct``: 1 where that is the answer, else 0;
            - ``margin``: score of the answer minus the best score of another choice, nats (or nats per byte);
            - ``latency_ms``: of a window, equation (7) summed over blocks and averaged over the four choices, ms.
    """

    UNIT = ("item", "format", "domain", "answer", "seed")

    numbers: NDArray[np.int64]
    items: tuple[Item, ...]
    seeds: NDArray[np.int64]
    context_cut: NDArray[np.bool_]

    @classmethod
    def metrics(cls) -> tuple[str, ...]:
        """What is measured of an item."""
        return ("choice", "correct", "margin", "latency_ms")

    def units(self) -> list[tuple[object, ...]]:
        """Number, format, domain, answer and seed of each item."""
        described = zip(self.numbers, self.items, self.seeds, strict=True)
        return [(number, item.format, item.domain, item.answer, seed) for number, item, seed in described]


def evaluate_suite(
    policies: Sequence[str] | None = None,
    config: EnvConfig | Mapping[str, Any] | None = None,
    suite_items: int | None = None,
    seed: int = 7,
    batch_size: int = 64,
    progress: bool = True,
) -> SuiteResults:
    """Score the suite under policies.

    Args:
        policies: names and files as ``make_policy`` takes them; ``None`` takes every named rule. ``vanilla``
            always runs.
        config: the environment or its dict, whose split is ``"suite"`` or the path of a suite; ``None`` is the
            default one on the suite that ships, with windows of 128 tokens.
        suite_items: how many items, drawn from each format and domain in proportion; ``None`` takes all.
        seed: of items, channels, policies and resamples.
        batch_size: windows in one forward pass.
        progress: whether to show a bar.

    Raises:
        ValueError, TypeError: a policy, a setting or a file is wrong; before the first item.
    """
    environment = EnvConfig.make(DEFAULTS if config is None else config)
    chosen = policy_names() if policies is None else tuple(policies)
    settings = SuiteConfig(
        policies=chosen, environment=environment, suite_items=suite_items, seed=seed, batch_size=batch_size
    )
    return SuiteEvaluation(settings).run(progress)


class SuiteEvaluation:
    """An evaluation on the suite whose model, items and policies are loaded and checked, and that can run.

    Args:
        config: what to evaluate.

    Attributes:
        sha256: hashes of what was loaded.

    Raises:
        ValueError, TypeError: a policy, a setting or a file is wrong.
    """

    def __init__(self, config: SuiteConfig) -> None:
        self.config = config
        env = config.environment
        self._suite = load_suite_windows(env.model, env.num_tokens, env.split, env.device, env.dtype)
        self._numbers, self._seeds = plan_items(self._suite.items, config.suite_items, config.seed)
        self._runner = ConfiguredRunner(config, NUM_CHOICES * len(self._numbers))
        self.sha256 = {"the suite": file_hash(suite_file(suite_path(env.split))), **self._runner.sha256}

    def run(self, progress: bool = True) -> SuiteResults:
        """Run every policy on every choice of every item.

        Args:
            progress: whether to show a bar.
        """
        numbers = self._numbers
        windows = Episodes(window_rows(numbers), self._seeds.repeat(NUM_CHOICES))
        items = tuple(self._suite.items[number] for number in numbers)
        measurements = {}
        for policy, measured in self._runner.run(windows, score_batch, "window", progress):
            scores = self._suite.choice_scores(measured["token_nll"], numbers)
            latency_ms = measured["latency_ms"].reshape(-1, NUM_CHOICES).mean(axis=1)
            measurements[policy] = judged(scores, items) | {"latency_ms": latency_ms}
        cut = self._suite.context_cut[numbers]
        return SuiteResults(
            self.config, self.sha256, self._runner.members, measurements, numbers, items, self._seeds, cut
        )


def score_batch(env: WDMoEVectorEnv, policy: Policy, episodes: Episodes) -> Measurements:
    """Latency (n,) and the NLL (n, J) of every token of as many windows as the environment has."""
    blocks, _ = play(env, policy, episodes)
    return {name: blocks[-1][name] for name in ("latency_ms", "token_nll")}


def judged(scores: NDArray[np.float64], items: Sequence[Item]) -> Measurements:
    """The choice of highest score, whether it is right, and by what margin, from scores (n, 4)."""
    answers = np.array([item.answer for item in items])[:, None]
    right = np.take_along_axis(scores, answers, axis=1)[:, 0]
    others = np.where(np.arange(NUM_CHOICES) == answers, -np.inf, scores).max(axis=1)
    choice = scores.argmax(axis=1)
    return {"choice": choice, "correct": (choice == answers[:, 0]).astype(np.int64), "margin": right - others}


def plan_items(items: Sequence[Item], count: int | None, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Numbers of items, rising, and the seed of each one's channel, which does not depend on the count.

    Args:
        items: the suite.
        count: how many to draw, from each format and domain in proportion; ``None`` takes all.
        seed: of the draw.

    Raises:
        ValueError: the suite has fewer.
    """
    if count is not None and count > len(items):
        raise ValueError(f"suite_items must be at most {len(items)}, what the suite has, got {count}")
    order, channels = (np.random.default_rng(child) for child in np.random.SeedSequence(seed).spawn(2))
    seeds = channels.integers(2**31, size=len(items))
    cells = [f"{item.format} {item.domain}" for item in items]
    numbers = np.arange(len(items)) if count is None else stratified(cells, count, order)
    return numbers, seeds[numbers]


def stratified(cells: Sequence[str], count: int, generator: np.random.Generator) -> NDArray[np.int64]:
    """Positions, rising, of ``count`` members, from each cell in proportion to its size.

    What whole numbers leave over goes to the cells that lost most by rounding down, by lot where they lost alike.

    Args:
        cells: the cell of each member.
        count: at most as many as there are members.
        generator: draws lots, and within the cells.
    """
    cell = np.unique(cells, return_inverse=True)[1]
    share, lost = np.divmod(np.bincount(cell) * count, len(cells))
    share[np.lexsort((generator.random(len(lost)), -lost))[: count - share.sum()]] += 1
    drawn = [generator.permutation(np.flatnonzero(cell == c))[:size] for c, size in enumerate(share)]
    return np.sort(np.concatenate(drawn))
