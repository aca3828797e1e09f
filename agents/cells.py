"""Experience of cells that serve requests: K rollouts of the same arrivals, texts and channel.

The rollouts of a cell part ways in time, since their blocks take as long as what they draw. What they share is their
texts: token by token each is a baseline of the others. A block's latency is told by the prices of its pairs, times the
requests that it delays (``agents.delay``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from agents.delay import expected_behind, requests_behind
from agents.experience import Choice, Experience, Sample, choose
from wdmoe_env.actions import ExpertsPart, settled_plan
from wdmoe_env.physics.latency import Float
from wdmoe_env.policies.network import TokenSharedNetwork
from wdmoe_env.relaxed import PRICES, RelaxedBlock
from wdmoe_env.serving.process import seen_in_cells
from wdmoe_env.serving.rollout import PassRollout
from wdmoe_env.serving.simulator import Episode, ServingSimulator

DELAYS = ("exact", "expected")
"""Of the requests behind a block: those that came about, or those that the queue foretells."""


@dataclass(slots=True)
class Cells:
    """W cells, each K times, under way.

    Args:
        simulator: of the requests.
        episodes: W * K of them; those of one cell stand together.
        rollouts: K.
        own_states: I of (W * R, L, H) hidden states before the block under the own routing.
        prices: of the pairs, one of ``wdmoe_env.relaxed.PRICES``.
    """

    simulator: ServingSimulator
    episodes: list[Episode]
    rollouts: int
    own_states: list[Tensor]
    prices: str = PRICES[0]
    passes: list[_Pass] = field(default_factory=list)
    deviations: list[Tensor] = field(init=False)
    divergence: Tensor = field(init=False)
    added_nll: Tensor = field(init=False)
    latency_ms: float = 0.0
    vanilla_latency_ms: float = 0.0

    def __post_init__(self) -> None:
        """Begin with texts of which nothing is known."""
        shape = (len(self.episodes) * self.simulator.serving.requests, self.simulator.serving.longest)
        self.deviations = [torch.zeros(shape) for _ in self.own_states]
        self.divergence, self.added_nll = torch.zeros(shape), torch.zeros(shape)

    def run(self, network: TokenSharedNetwork, noise: torch.Generator) -> None:
        """Serve all requests."""
        cache = self.simulator.cache(len(self.episodes))
        live = np.arange(len(self.episodes))
        while live.size:
            episodes = [self.episodes[n] for n in live]
            with closing(PassRollout(self.simulator, cache, episodes, live, compares=True)) as rollout:
                self._run_pass(network, rollout, noise)
            live = live[[not episode.cell.done for episode in episodes]]

    def _run_pass(self, network: TokenSharedNetwork, rollout: PassRollout, noise: torch.Generator) -> None:
        cells = [episode.cell for episode in rollout.episodes]
        begin_s, queue = np.array([cell.clock_s for cell in cells]), np.stack([cell.queue() for cell in cells])
        to_come = np.array([int((cell.requests.arrival_s > cell.clock_s).sum()) for cell in cells])
        own, text, place = self._places(rollout)
        filled = torch.from_numpy(place >= 0)
        at = torch.where(filled, torch.from_numpy(text * self.divergence.shape[1] + place), -1).flatten()
        samples = []
        while not rollout.done:
            number = rollout.blocks_done
            states = rollout.hidden_states.float()[filled]
            apart = (states - self.own_states[number][own[place >= 0], place[place >= 0]]).square().mean(-1)
            self.deviations[number].view(-1)[at[at >= 0]] = apart
            samples.append(self._run_block(network, rollout, noise, number, at))
        end_s = np.array([cell.clock_s for cell in cells])
        for mine, rows in ((self.divergence, rollout.row_divergence), (self.added_nll, rollout.row_added_nll)):
            mine.view(-1)[at[at >= 0]] = torch.from_numpy(rows).float().flatten()[at >= 0]
        self.passes.append(_Pass(rollout.rows, begin_s, end_s, queue, to_come, samples))

    def _places(self, rollout: PassRollout) -> tuple[Any, Any, Any]:
        """Of each row (n, J) the text among the W * R of the own routing, among all, and the place in it."""
        request, place = rollout.row_texts
        cell, copy = (part[:, None] for part in np.divmod(rollout.rows, self.rollouts))
        own = cell * self.simulator.serving.requests + request
        return own, own * self.rollouts + copy, place

    def _run_block(
        self, network: TokenSharedNetwork, rollout: PassRollout, noise: torch.Generator, number: int, at: Tensor
    ) -> Sample:
        block, min_share = rollout.block, self.simulator.config.min_share
        entries = seen_in_cells(block, rollout.episodes, rollout.row_phase)
        seen = {name: torch.from_numpy(value) for name, value in entries.items()}
        choice = choose(network, block, seen, _minus_latency, noise, min_share, self.prices)
        rollout.step(settled_plan(block, {ExpertsPart.name: choice.selection.numpy()}, min_share))
        self._count(choice)
        return Sample.of(number, choice, network.inputs_of(choice.seen), at)

    def _count(self, choice: Choice) -> None:
        self.latency_ms += choice.latency_ms.sum().item()
        self.vanilla_latency_ms += choice.vanilla_latency_ms.sum().item()

    def experience(self, delay: str) -> Experience:
        """What came of it.

        Args:
            delay: one of ``DELAYS``.
        """
        serving, count = self.simulator.serving, len(self.episodes)
        behind = self._behind()
        told = behind if delay == "exact" else self._expected(behind)
        samples = [
            replace(sample, slope=sample.slope * _of_pairs(sample, weights / serving.latency_scale_ms))
            for one, weights in zip(self.passes, told, strict=True)
            for sample in one.samples
        ]
        rows = np.stack([episode.cell.requests.rows for episode in self.episodes])  # (W * K, R)
        by_text = torch.from_numpy(rows.reshape(-1, self.rollouts, serving.requests).swapaxes(1, 2).reshape(-1))
        e2e_ms = 1e3 * float(np.mean([episode.cell.system_s() for episode in self.episodes]))
        measured = {
            "reward": -e2e_ms / serving.latency_scale_ms,
            "e2e_ms": e2e_ms,
            "latency_ratio": self.latency_ms / self.vanilla_latency_ms,
            "requests_behind": float(np.concatenate(behind).mean()),
            "passes": sum(len(one.cells) for one in self.passes) / count,
        }
        mask = torch.arange(serving.longest) < by_text[:, None]
        divergence, added_nll = (values * by_text[:, None] for values in (self.divergence, self.added_nll))
        return Experience(tuple(samples), tuple(self.deviations), mask, divergence, added_nll, measured)

    def _behind(self) -> list[Float]:
        """Requests behind each pass, of its cells (n,)."""
        found = [np.zeros(len(one.cells)) for one in self.passes]
        for number, episode in enumerate(self.episodes):
            mine = [(n, int(np.flatnonzero(one.cells == number)[0])) for n, one in self._passes_of(number)]
            begin_s, end_s = (
                np.array([getattr(self.passes[n], name)[row] for n, row in mine]) for name in ("begin_s", "end_s")
            )
            for (n, row), behind in zip(mine, requests_behind(begin_s, end_s, episode.cell.finish_s), strict=True):
                found[n][row] = behind
        return found

    def _passes_of(self, number: int) -> list[tuple[int, _Pass]]:
        return [(n, one) for n, one in enumerate(self.passes) if number in one.cells]

    def _expected(self, behind: list[Float]) -> list[Float]:
        queue, to_come = (np.concatenate([getattr(one, name) for one in self.passes]) for name in ("queue", "to_come"))
        told = expected_behind(queue, to_come.astype(np.float64), np.concatenate(behind))
        return np.split(told, np.cumsum([len(one) for one in behind])[:-1])


@dataclass(frozen=True, slots=True)
class _Pass:
    """A pass of n cells: which they were, when it began and ended, the queue then, who was to come, what was drawn."""

    cells: NDArray[np.int64]
    begin_s: Float
    end_s: Float
    queue: Float
    to_come: NDArray[np.int64]
    samples: list[Sample]


def gather_cells(
    network: TokenSharedNetwork,
    simulator: ServingSimulator,
    generators: Sequence[Callable[[], np.random.Generator]],
    rollouts: int,
    noise: torch.Generator,
    delay: str = "exact",
    prices: str = PRICES[0],
) -> Experience:
    """Serve the requests of W cells, each K times.

    Args:
        network: draws the selections.
        simulator: the configuration's.
        generators: W makers of the generator of a cell; each of its rollouts has the same.
        rollouts: K.
        noise: of the draws.
        delay: one of ``DELAYS``.
        prices: one of ``wdmoe_env.relaxed.PRICES``.

    Raises:
        FloatingPointError: what the model hands out is not finite.
    """
    episodes = [simulator.begin(make()) for make in generators for _ in range(rollouts)]
    windows = np.concatenate([episode.cell.requests.window for episode in episodes[::rollouts]])
    cells = Cells(simulator, episodes, rollouts, own_states(simulator, windows), prices)
    cells.run(network, noise)
    return cells.experience(delay)


def own_states(simulator: ServingSimulator, windows: NDArray[np.int64]) -> list[Tensor]:
    """Hidden states (n, L, H) before each of the I blocks of windows (n,) under the model's own routing."""
    token_ids, found = torch.from_numpy(simulator.texts.windows.token_ids[windows]), []
    with closing(simulator.source.model.forward(token_ids, None, lambda rows: rows, inference=True)) as run:
        while run.block is not None:
            found.append(run.block.hidden_states.float().view(*token_ids.shape, -1).clone())
            run.resume(None)
    return found


def _minus_latency(block: RelaxedBlock) -> Tensor:
    return -block.latency_ms


def _of_pairs(sample: Sample, values: Float) -> Tensor:
    """(M,) of values (n,) of the cells."""
    return torch.from_numpy(values).float()[sample.inputs.token // sample.inputs.num_rows]
