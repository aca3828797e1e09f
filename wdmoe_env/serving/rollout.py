"""One pass of n cells, block by block: the only place where the model, the physics and the queues meet."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from wdmoe_env.actions import Plan
from wdmoe_env.metrics import BlockResult
from wdmoe_env.moe.finite import check_finite
from wdmoe_env.moe.split import this_thread
from wdmoe_env.observations import Conditions
from wdmoe_env.physics.channel import ChannelTrace
from wdmoe_env.physics.latency import Bool, Float
from wdmoe_env.rollout.rollout import Radio, View, World, measure, with_energy
from wdmoe_env.serving.arrivals import Whole
from wdmoe_env.serving.cache import SlotCache
from wdmoe_env.serving.cell import Rows
from wdmoe_env.serving.passes import Batch, SlotPasses
from wdmoe_env.serving.simulator import Episode, ServingSimulator
from wdmoe_env.text.windows import TokenWindows


@dataclass(frozen=True, slots=True)
class ServingResult:
    """What a block meant to the requests of n cells.

    Attributes:
        seconds: (n,) s of simulated time that the block took, the base station's own included.
        system_s: (n,) time in the system of all requests together: their number, integrated over these seconds.
        clock_s: (n,) simulated time since each episode began, after the block.
        added_nll: (n,) NLL that the pass's text lost to the own routing: over its requests the sum of their tokens'
            nats by the tokens of the whole request; 0 before the last block.
        divergence: (n,) that of the pass's predictions from the own routing's, summed alike; ``None`` unless they are
            compared.
    """

    seconds: Float
    system_s: Float
    clock_s: Float
    added_nll: Float
    divergence: Float | None


class PassRollout:
    """A pass of n cells under way. Picklable and deep-copyable like ``wdmoe_env.rollout.rollout.Rollout``.

    Args:
        simulator: what all episodes share.
        cache: keys and values of all slots.
        episodes: n cells between two passes, none of them done.
        rows: (n,) number of each among the cells of the cache.
        compares: whether the predictions are compared with those of the own routing.

    Attributes:
        rows: as given.
        episodes: as given.
        block: what a policy may see now; after the last block all probabilities are 0.
        row_phase: (n, J) 1 where a row is a generated token.
        row_added_nll: (n, J) nats that the token of each row lost to the own routing, over the tokens of its request; 0
            before the last block and at padding.
        row_divergence: (n, J) nats by which the predictions at each row differ from those of the own routing, as
            ``row_added_nll``; 0 throughout unless they are compared.
    """

    def __init__(
        self,
        simulator: ServingSimulator,
        cache: SlotCache,
        episodes: Sequence[Episode],
        rows: Whole,
        compares: bool = False,
    ) -> None:
        self.simulator, self.rows, self.episodes = simulator, rows, list(episodes)
        self._compares = compares
        self._cache = cache
        self._read = [self._begin_pass(episode, int(row)) for episode, row in zip(episodes, rows, strict=True)]
        self._set_batch()
        self._selections: list[Bool] = []
        self._thread: object = this_thread.mark
        self._start()

    def _begin_pass(self, episode: Episode, row: int) -> Rows:
        before_s = episode.cell.clock_s
        read, taken = episode.cell.begin_pass()
        episode.cool(episode.cell.clock_s - before_s)
        if taken.size:
            self._cache.clear(row * self.simulator.serving.slots + taken)
        return read

    def _set_batch(self) -> None:
        self._batch = self._whole_batch()
        shape = (len(self.rows), self.simulator.sizes.num_tokens)
        self.token_mask, self.row_phase = np.zeros(shape, dtype=bool), np.zeros(shape)
        self.row_added_nll, self.row_divergence = np.zeros(shape), np.zeros(shape)
        self.token_mask.reshape(-1)[self._batch.among_rows] = True
        self.row_phase.reshape(-1)[self._batch.among_rows] = self._generated()
        self._num_tokens = self.token_mask.sum(axis=-1)

    def _whole_batch(self) -> Batch:
        """What all cells read, one row for each busy slot."""
        serving, windows = self.simulator.serving, self.simulator.texts.windows
        request = np.concatenate([read.request for read in self._read])
        place = np.flatnonzero(request >= 0)
        start, count = (
            np.concatenate([getattr(read, name) for read in self._read])[place] for name in ("start", "count")
        )
        cell, slot = np.divmod(place, serving.slots)
        window = np.array([self.episodes[n].cell.requests.window[r] for n, r in zip(cell, request[place], strict=True)])
        at = np.concatenate([np.arange(first, first + n) for first, n in zip(start, count, strict=True)])
        batch = Batch(
            row=self.rows[cell] * serving.slots + slot,
            place=place,
            start=start,
            count=count,
            token_ids=windows.token_ids[np.repeat(window, count), at],
            targets=windows.targets[np.repeat(window, count), at],
            chunk=serving.chunk,
            num_rows=len(self.rows) * self.simulator.sizes.num_tokens,
            say=serving.generate,
        )
        if serving.generate:
            self._feed_said(batch, cell, request[place])
        return batch

    def _feed_said(self, batch: Batch, cell: Whole, request: Whole) -> None:
        """Put what the model said in place of the document's tokens."""
        last = np.cumsum(batch.count) - 1  # of each slot: a generated token is read alone
        for n, (here, one) in enumerate(zip(cell, request, strict=True)):
            episode = self.episodes[here]
            number = batch.start[n] - episode.cell.requests.prompt[one]
            if number >= 0 and episode.said is not None:
                batch.token_ids[last[n]] = episode.said[one, number]

    def _generated(self) -> NDArray[np.bool_]:
        """(M,) whether each token of the batch is one of an answer."""
        prompt = np.concatenate([read.prompt for read in self._read])[self._batch.place]
        return np.asarray(self._batch.position >= prompt[self._batch.slot])

    def _start(self) -> None:
        service = self.simulator.service(len(self._batch.row))
        own = self._own_rows() if self._compares else None
        hidden = self.world.config.observe_hidden_states or self._compares
        self._passes = SlotPasses(self.simulator.source.model, self._cache, self._batch, service, hidden, own)
        self._look()

    def _own_rows(self) -> torch.Tensor:
        """(M, H) last hidden states of the batch's tokens under the own routing."""
        slot, at = torch.from_numpy(self._batch.slot), torch.from_numpy(self._batch.position)
        return self.simulator.texts.own_rows(self._requests("window"))[slot, at]

    def _requests(self, name: str) -> Whole:
        """(B,) what the request in each busy slot is about: its window, prompt or answer."""
        cell = self._batch.place // self.simulator.serving.slots
        request = np.concatenate([read.request for read in self._read])[self._batch.place]
        requests = [self.episodes[n].cell.requests for n in cell]
        return np.array([getattr(one, name)[r] for one, r in zip(requests, request, strict=True)])

    @property
    def hidden_states(self) -> torch.Tensor:
        """What the rows hold before the block, (n, J, H); 0 at padding."""
        return self._passes.blocks[0].hidden_states.view(*self.token_mask.shape, -1)

    @property
    def row_texts(self) -> tuple[Whole, Whole]:
        """(n, J) number of each row's request in its cell, and the row's place in the request's text; -1 at padding."""
        request, place = np.full((2, *self.token_mask.shape), -1, dtype=np.int64)
        batch = self._batch
        busy = np.concatenate([read.request for read in self._read])[batch.place]
        request.reshape(-1)[batch.among_rows] = busy[batch.slot]
        place.reshape(-1)[batch.among_rows] = batch.position
        return request, place

    def _look(self) -> None:
        try:
            self._view = view_of(self.simulator, self.episodes, self.token_mask)
            self.block = self._view.block(self._passes.blocks, heat_of(self.episodes))
        except FloatingPointError:
            self._passes.close()
            raise

    @property
    def world(self) -> World:
        """What all episodes share."""
        return self.simulator.world

    @property
    def windows(self) -> Whole:
        """(n,) number of the pass in each episode, from 1, where a window's index stands elsewhere."""
        return np.array([episode.cell.passes for episode in self.episodes])

    @property
    def trace(self) -> ChannelTrace:
        """The channels (I, n, U) at the clocks."""
        return trace_now(self.episodes, self.simulator.sizes.num_blocks)

    @property
    def texts(self) -> TokenWindows:
        """What the n x J rows read, 0 at padding, and what follows."""
        batch, shape = self._batch, self.token_mask.shape
        ids, targets = np.zeros((2, *shape), dtype=np.int64)
        ids.reshape(-1)[batch.among_rows] = batch.token_ids
        targets.reshape(-1)[batch.among_rows] = batch.targets
        return TokenWindows(ids, targets, self.token_mask, ("",) * len(ids))

    @property
    def done(self) -> bool:
        """Whether the last block has run."""
        return self.blocks_done == self.simulator.sizes.num_blocks

    @property
    def blocks_done(self) -> int:
        """Blocks that have run, or begun to."""
        return len(self._selections)

    def step(self, plan: Plan) -> tuple[BlockResult, ServingResult]:
        """Run the block's experts under a decision, let time go on, and go to the next block.

        Args:
            plan: what runs; every token has an expert, padding has none.

        Raises:
            FloatingPointError: the model's next gates, hidden states or scores are not finite; the episodes are over.
        """
        if self._thread is not this_thread.mark:
            self._passes.close()
            self._run_again()
        selection = plan.selection
        own = np.array_equal(selection, self.block.routed)
        result = measure(plan, own, self._num_tokens, self.world.config.has_token_terms)
        if self.world.powers is not None:
            result = with_energy(result, plan, self.world.powers, self._num_tokens)
            self._count_energy(result)
        seconds = result.block_latency_s + 1e-3 * self.simulator.serving.base_station_ms
        self._selections.append(selection.copy())
        cells = [episode.cell for episode in self.episodes]
        self._warm(plan, result.block_latency_s)
        system_s = np.array([cell.advance(float(one)) for cell, one in zip(cells, seconds, strict=True)])
        self._passes.resume(torch.from_numpy(selection.reshape(-1, selection.shape[-1])))
        added_nll = self._end_pass() if self.done else np.zeros(len(cells))
        self._look()
        clock_s = np.array([cell.clock_s for cell in cells])
        divergence = self.row_divergence.sum(axis=-1) if self._compares else None
        return result, ServingResult(seconds, system_s, clock_s, added_nll, divergence)

    def _count_energy(self, result: BlockResult) -> None:
        for part in (result.device_energy_j, result.radio_energy_j):
            for episode, one in zip(self.episodes, () if part is None else part.sum(axis=-1), strict=False):
                episode.energy_j += float(one)

    def _warm(self, plan: Plan, block_latency_s: Float) -> None:
        """Heat the devices that compute; those that wait cool down."""
        heat = self._view.later_heat(heat_of(self.episodes), self.block, plan.load, block_latency_s)
        base_station_s = 1e-3 * self.simulator.serving.base_station_ms
        for episode, one in zip(self.episodes, () if heat is None else heat, strict=False):
            episode.heat = one
            episode.cool(base_station_s)

    def _end_pass(self) -> Float:
        """Note what the pass said and lost, and let the finished requests go; returns what each cell lost, (n,)."""
        added = self._score()
        said = self._passes.said()
        lost = np.zeros(len(self.rows))
        first = 0
        for n, (episode, read) in enumerate(zip(self.episodes, self._read, strict=True)):
            request = read.request[read.request >= 0]
            here = slice(first, first + len(request))
            first += len(request)
            episode.cell.added_nll[request] += added[here]
            lost[n] = (added[here].sum(axis=-1) / self._scored(episode, request)).sum()
            if said is not None and episode.said is not None:
                number = self._batch.start[here] + self._batch.count[here] - episode.cell.requests.prompt[request]
                now = number >= 0
                episode.said[request[now], number[now]] = said[here][now]
            episode.cell.end_pass(read)
        return lost

    def _score(self) -> Float:
        """(B, 2) nats that the tokens of each busy slot lost, those of the prompt and those of the answer."""
        batch, model = self._batch, self.simulator.source.model
        scores = self._passes.scores()
        nll = scores.nll[0]
        check_finite(model.model, "scores of the text", nll)
        slot, at = batch.slot, batch.position
        cell = batch.place // self.simulator.serving.slots
        request = np.concatenate([read.request for read in self._read])[batch.place]
        window, prompt = self._requests("window"), self._requests("prompt")
        difference = nll - self.simulator.texts.own_nll(window)[slot, at]
        of_answer = at + 1 >= prompt[slot]  # what is predicted is the token behind
        if self.simulator.serving.generate:  # the document's next tokens are no measure of a text that left it
            difference = np.where(of_answer, 0.0, difference)
        scored = np.array([self._scored(self.episodes[n], one) for n, one in zip(cell, request, strict=True)])
        self.row_added_nll.reshape(-1)[batch.among_rows] = difference / scored[slot]
        if scores.divergence is not None:
            self.row_divergence.reshape(-1)[batch.among_rows] = scores.divergence[0] / scored[slot]
        added = np.zeros((len(batch.row), 2))
        np.add.at(added, (slot, of_answer.astype(np.int64)), difference)
        return added

    def _scored(self, episode: Episode, request: Whole) -> Whole:
        return scored_tokens(episode, self.simulator.serving.generate)[request]

    def keep(self, marked: NDArray[np.bool_]) -> None:
        """Go on with the marked cells (n,) alone: their pass is run again up to where it was."""
        self._passes.close()
        self.rows = self.rows[marked]
        self.episodes = [one for one, kept in zip(self.episodes, marked, strict=True) if kept]
        self._read = [one for one, kept in zip(self._read, marked, strict=True) if kept]
        self._selections = [selection[marked] for selection in self._selections]
        self._set_batch()
        self._run_again()

    def close(self) -> None:
        """End the paused pass."""
        self._passes.close()

    def __getstate__(self) -> dict[str, Any]:
        """Everything but the paused pass and what follows from it."""
        left_out = ("_passes", "_thread", "_view", "block")
        return {name: value for name, value in self.__dict__.items() if name not in left_out}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Begin the pass again, and run it up to where it was."""
        self.__dict__.update(state)
        self._run_again()

    def _run_again(self) -> None:
        """Run the pass on this thread up to where it was; it writes the same into the cache."""
        self._thread = None
        self._start()
        for selection in self._selections:
            self._passes.resume(torch.from_numpy(selection.reshape(-1, selection.shape[-1])))
        self._look()
        self._thread = this_thread.mark


def view_of(simulator: ServingSimulator, episodes: Sequence[Episode], token_mask: Bool) -> View:
    """How a paused pass of n cells becomes a block at their clocks.

    Args:
        simulator: what all episodes share.
        episodes: n cells.
        token_mask: (n, J) True where there is a token.
    """
    world, num_blocks = simulator.world, simulator.sizes.num_blocks
    known, available = _now(episodes, "observed_snr"), _now(episodes, "available")
    return View(
        world,
        token_mask,
        not token_mask.all(),
        _still(world, _now(episodes, "full_band_snr")),
        None if known is None else _still(world, known),
        None if available is None else np.broadcast_to(available, (num_blocks, *available.shape)),
    )


def _still(world: World, full_band_snr: Float) -> Radio:
    """The radio of n cells whose channels (n, 2, U) are the same in all I blocks; it is computed once."""
    one = Radio.of(replace(world, placement=world.placement[:1]), full_band_snr[None])
    links, unit_latency_s = one.conditions[0].links, one.conditions[0].unit_latency_s
    blocks = [Conditions(replace(links, placement=placement), unit_latency_s) for placement in world.placement]
    return Radio(np.broadcast_to(one.spectral_efficiency, (len(blocks), *one.spectral_efficiency.shape[1:])), blocks)


def _now(episodes: Sequence[Episode], name: str) -> Any:
    """An entry (n, ...) of the channels of n cells at their clocks; ``None`` where they have none."""
    if getattr(episodes[0].trace, name) is None:
        return None
    return np.stack([getattr(one.trace, name)[one.now, 0] for one in episodes])


def heat_of(episodes: Sequence[Episode]) -> Float | None:
    """Heat (n, U) of the devices of n cells; ``None`` where none slows down."""
    heat = [episode.heat for episode in episodes if episode.heat is not None]
    return np.stack(heat) if heat else None


def trace_now(episodes: Sequence[Episode], num_blocks: int) -> ChannelTrace:
    """The channels of n cells at their clocks, the same in all I blocks.

    Args:
        episodes: n cells.
        num_blocks: I.
    """

    def of_blocks(name: str) -> Any:
        value = _now(episodes, name)
        return None if value is None else np.broadcast_to(value, (num_blocks, *value.shape))

    return ChannelTrace(**{field.name: of_blocks(field.name) for field in fields(ChannelTrace)})


def scored_tokens(episode: Episode, generate: bool) -> Whole:
    """(R,) tokens of each request that are scored: all that the model reads, or what follows in the prompt alone."""
    requests = episode.cell.requests
    return np.maximum(requests.prompt - 1, 1) if generate else requests.rows
