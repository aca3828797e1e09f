"""Episodes of one policy, many cells at once: what evaluations and searches of rules run.

Each episode has a seed of its own, so that it is that of ``WDMoEServeEnv.reset(seed=...)`` whatever runs beside it. A
cell whose episode has ended begins the next one at the next pass. Where none is left, the batch shrinks. How many run
at once changes nothing but the rounding of a batched forward pass, and what a policy draws from a generator that it
shares among cells, as ``random`` does.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from gymnasium.utils import seeding
from numpy.typing import NDArray

from wdmoe_env.checks import check_integer
from wdmoe_env.physics.latency import Float
from wdmoe_env.policies.policy import Policy, State
from wdmoe_env.serving.process import ServingProcess
from wdmoe_env.serving.rollout import PassRollout
from wdmoe_env.serving.simulator import Episode

AT_ONCE = 64
"""Cells in one forward pass, at most, where no number is given."""


Seen = Callable[[Sequence[int], Mapping[str, Any]], object]
"""Is told of each block: the numbers of the n episodes that ran it, and its info, entries (n, ...)."""


@dataclass(frozen=True, slots=True)
class Played:
    """What one policy came to in n episodes of R requests.

    Attributes:
        figures: what ``info`` holds where an episode has ended, by name, each (n, ...).
        returns: (n,) sums of rewards.
        decision_ms: wall time of a decision, by block and cell.
    """

    figures: Mapping[str, NDArray[Any]]
    returns: Float
    decision_ms: float


@dataclass(slots=True, eq=False)
class _Running:
    """An episode under way.

    Attributes:
        number: of the episode.
        row: of the cell in the cache.
        episode: the cell.
        begins: whether its first block is still to come.
        total: of its rewards.
    """

    number: int
    row: int
    episode: Episode
    begins: bool = True
    total: float = 0.0


def play(
    process: ServingProcess,
    policy: Policy,
    seeds: Sequence[int],
    at_once: int = AT_ONCE,
    ended: Callable[[], object] = lambda: None,
    seen: Seen | None = None,
) -> Played:
    """Run a policy on episodes.

    Args:
        process: of the configuration.
        policy: what acts; made for the process's codec.
        seeds: n seeds, of one episode each.
        at_once: cells in one forward pass, at most.
        ended: called whenever an episode has ended, as by a bar.
        seen: is told of each block.

    Raises:
        ValueError, TypeError: ``at_once`` below 1, or a policy whose actions do not fit.
        FloatingPointError: what the model hands out is not finite.
    """
    return _Play(process, policy, seeds, check_integer("at_once", at_once, at_least=1), ended, seen).run()


class _Play:
    """The cells that run now, and what has ended."""

    def __init__(
        self,
        process: ServingProcess,
        policy: Policy,
        seeds: Sequence[int],
        at_once: int,
        ended: Callable[[], object],
        seen: Seen | None,
    ) -> None:
        self._process, self._policy, self._seeds = process, policy, seeds
        self._ended, self._seen = ended, seen
        count = min(at_once, len(seeds))
        self._cache = process.cache(count)
        self._running = [self._begin(number, row=number) for number in range(count)]
        self._next = count
        self._state: State = None
        self._figures: list[Mapping[str, Any]] = [{}] * len(seeds)
        self._returns = np.zeros(len(seeds))
        self._decision_s, self._decisions = 0.0, 0

    def _begin(self, number: int, row: int) -> _Running:
        generator, _ = seeding.np_random(int(self._seeds[number]))
        return _Running(number, row, self._process.simulator.begin(generator))

    def run(self) -> Played:
        while self._running:
            over = self._pass()
            if over.any():
                self._replace(over)
        names = self._figures[0] if self._figures else ()
        figures = {name: np.stack([one[name] for one in self._figures]) for name in names}
        return Played(figures, self._returns, 1e3 * self._decision_s / max(self._decisions, 1))

    def _pass(self) -> NDArray[np.bool_]:
        """Run a pass of all cells; returns which episodes (n,) are over."""
        cells, rows = [one.episode for one in self._running], np.array([one.row for one in self._running])
        rollout = self._process.begin_pass(self._cache, cells, rows)
        try:
            while not rollout.done:
                transition = self._process.step(rollout, self._decide(rollout))
                if self._seen is not None:
                    self._seen([one.number for one in self._running], transition.info)
                for one, reward in zip(self._running, transition.reward.tolist(), strict=True):
                    one.total += reward
        finally:
            rollout.close()
        return transition.ended

    def _decide(self, rollout: PassRollout) -> Mapping[str, NDArray[Any]]:
        observation = self._process.observation(rollout)
        start = np.array([one.begins for one in self._running])
        began = time.perf_counter()
        actions, self._state = self._policy.predict(
            observation, state=self._state, episode_start=start, deterministic=True
        )
        self._decision_s += time.perf_counter() - began
        self._decisions += len(start)
        for one in self._running:
            one.begins = False
        decided: Mapping[str, NDArray[Any]] = self._process.codec.decode(actions, (len(start),))
        return decided

    def _replace(self, over: NDArray[np.bool_]) -> None:
        """Note what has ended, and begin the next episodes in those cells; where none is left, the batch shrinks."""
        stays = ~over
        for place in np.flatnonzero(over):
            one = self._running[place]
            figures = self._process.figures([one.episode])
            self._figures[one.number] = {name: values[0] for name, values in figures.items()}
            self._returns[one.number] = one.total
            self._ended()
            if self._next < len(self._seeds):
                self._running[place] = self._begin(self._next, one.row)
                self._next += 1
                stays[place] = True
        self._running = [one for one, kept in zip(self._running, stays, strict=True) if kept]
        if self._state is not None and not stays.all():
            self._state = tuple(np.asarray(part)[stays] for part in self._state)
