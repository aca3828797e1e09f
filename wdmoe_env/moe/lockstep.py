"""A batch in lock-step: forward passes over its parts, all paused at the same block, then scored.

On a CPU one pass over a large batch is slower than several over parts of it: what a part needs stays in the caches and
in memory that the process holds already, and its logits are gone before those of the next part are made. So a pass
takes at most ``TOKENS_PER_PASS`` tokens for each of its threads. On another device one pass takes the whole batch.

A thread that has few tokens costs more than it brings. So a batch runs on a thread for every ``TOKENS_PER_THREAD``
tokens, never on more than torch is set to, and the setting is the user's again whenever it is paused.

From two times ``TOKENS_PER_LANE`` tokens on, passes run side by side on two lanes: the many small operators of a pass
wait for each other on two threads, and not on a thread for each pass. Only the thread that started a pass can resume
it. So one lane is the caller's thread, and the other a thread that lives as long as the process.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from functools import cache, partial
from operator import attrgetter, call
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wdmoe_env.moe.hook import BlockInput
from wdmoe_env.moe.runner import ExpertRunner, Service
from wdmoe_env.moe.split import SplitForward, SplitModel, neutral_modes
from wdmoe_env.moe.token_scores import TokenScores, score_tokens

TOKENS_PER_PASS = 1024
TOKENS_PER_LANE = 512
TOKENS_PER_THREAD = 128
MOST_LANES = 2  # more would wait for Python's lock, and have not been measured

Result = TypeVar("Result")


class LockStep:
    """A batch of sequences under way, paused at one MoE block.

    Args:
        model: the split model.
        token_ids: (N, J) int64, on the CPU like the rest.
        attention_mask: (N, J), 0 at padding.
        targets: (N, J) int64, the tokens that the text goes on with.
        runner: runs the experts; ``None`` is the model's own.
        own_rows: (N, J, H) what the own routing comes to on the same texts, see ``SplitModel.own_rows``; with it, the
            scores hold a divergence.
        link_bits: of an element that crosses the link, for a runner that rounds.

    Attributes:
        blocks: where each pass is paused, in the order of the sequences; empty after the last block.
    """

    def __init__(
        self,
        model: SplitModel,
        token_ids: Tensor,
        attention_mask: Tensor,
        targets: Tensor,
        runner: ExpertRunner | None = None,
        own_rows: Tensor | None = None,
        link_bits: int = 16,
    ) -> None:
        self._thread = threading.get_ident()
        self._plan = _Plan.of(model, token_ids)
        own = () if own_rows is None else (own_rows,)
        parts = self._plan.parts(token_ids, attention_mask, targets, torch.arange(len(token_ids)), *own)
        self._passes = self._plan.run([partial(_start, model, runner, link_bits, *part) for part in parts])
        self.blocks = self._paused()

    def resume(self, selection: Tensor | None, link_bits: Tensor | int | None = None) -> None:
        """Run the selected experts and go on to the next block.

        Args:
            selection: (N * J, E) bool; ``None`` means the model's own routing.
            link_bits: bits of each row's messages to each device, (N * J, U); one number; or ``None``, as before.

        Raises:
            RuntimeError: another thread started it; the batch stays where it was.
            Exception: whatever the model's code raises.
        """
        if self._thread != threading.get_ident():  # some passes belong to another lane, and would go on
            raise RuntimeError("a batch can be resumed only by the thread that started it")
        tasks, end = [], 0
        for one, block in zip(self._passes, self.blocks, strict=True):
            start, end = end, end + len(block.routed)
            tasks.append(partial(one.resume, None if selection is None else selection[start:end]))
            if link_bits is not None and one.service is not None:
                one.service.link_bits = link_bits if isinstance(link_bits, int) else link_bits[start:end]
        try:
            blocks = self._plan.run(tasks)
        except BaseException:
            if self._paused() != self.blocks:  # some have gone on or ended, so that they stand at different blocks
                self.close()
            raise
        self.blocks = list(filter(None, blocks))

    def unserved_pairs(self) -> NDArray[np.int64]:
        """Pairs (N,) of each sequence that were selected in the last block and not served."""
        return np.concatenate([one.service.unserved_pairs for one in self._passes if one.service])

    def scores(self) -> TokenScores:
        """Scores of the text, after the last block."""
        return _joined([one.result for one in self._passes])

    def close(self) -> None:
        """End the passes where they are."""
        self.blocks = []
        for one in self._passes:
            one.close()

    def _paused(self) -> list[BlockInput]:
        return list(filter(None, map(attrgetter("block"), self._passes)))


def own_scores(model: SplitModel, token_ids: Tensor, attention_mask: Tensor, targets: Tensor) -> TokenScores:
    """Scores under the model's own routing, without a stop.

    Args:
        model: the split model.
        token_ids: (N, J) int64, on the CPU like the rest.
        attention_mask: (N, J), 0 at padding.
        targets: (N, J) int64, the tokens that the text goes on with.
    """
    plan = _Plan.of(model, token_ids)
    parts = plan.parts(token_ids, attention_mask, targets)
    return _joined(plan.run([partial(_own_scores, model, *part) for part in parts]))


def own_rows_and_scores(
    model: SplitModel, token_ids: Tensor, attention_mask: Tensor, targets: Tensor
) -> tuple[Tensor, TokenScores]:
    """What the model's own routing comes to, (N, J, H) on the CPU as of ``SplitModel.own_rows``, and its scores.

    Args:
        model: the split model.
        token_ids: (N, J) int64, on the CPU like the rest.
        attention_mask: (N, J), 0 at padding.
        targets: (N, J) int64, the tokens that the text goes on with.
    """
    plan = _Plan.of(model, token_ids)
    parts = plan.parts(token_ids, attention_mask, targets)
    rows, scores = zip(*plan.run([partial(_own_rows_and_scores, model, *part) for part in parts]), strict=True)
    return torch.cat(rows), _joined(scores)


@dataclass(frozen=True, slots=True)
class _Plan:
    """How a batch goes through the model.

    Attributes:
        passes: number of parts of the batch.
        lanes: on which they run side by side, one or two.
        threads: torch's threads of each lane.
    """

    passes: int
    lanes: int
    threads: int

    @classmethod
    def of(cls, model: SplitModel, token_ids: Tensor) -> _Plan:
        """The plan for token ids (N, J)."""
        setting = torch.get_num_threads()
        if model.device.type != "cpu":
            return cls(passes=1, lanes=1, threads=setting)
        sequences, tokens = len(token_ids), token_ids.numel()
        lanes = max(1, min(MOST_LANES, setting, sequences, tokens // TOKENS_PER_LANE))
        threads = max(1, min(setting, tokens // TOKENS_PER_THREAD) // lanes)
        passes = max(lanes, -(-tokens // (TOKENS_PER_PASS * threads)))
        return cls(min(passes, sequences), lanes, threads)

    def parts(self, *whole: Tensor) -> list[tuple[Tensor, ...]]:
        """The batch (N, ...) of each pass, as equal as can be."""
        return list(zip(*(tensor.tensor_split(self.passes) for tensor in whole), strict=True))

    def run(self, tasks: Sequence[Callable[[], Result]]) -> list[Result]:
        """Results of a task for each pass, in their order; all have ended when it returns or raises.

        Raises:
            Exception: what a task raised; the caller's own lane goes first if there are many.
        """
        setting = torch.get_num_threads()
        torch.set_num_threads(self.threads)
        try:
            return list(map(call, tasks)) if self.lanes == 1 else self._on_two_lanes(tasks)
        finally:
            torch.set_num_threads(setting)  # the caller's, and what threads begin with that are started from here on

    def _on_two_lanes(self, tasks: Sequence[Callable[[], Result]]) -> list[Result]:
        """Every second task runs on the other lane; a pass is always on the same one."""

        def there(task: Callable[[], Result]) -> Result:
            torch.set_num_threads(self.threads)
            return task()

        lane = _lane(os.getpid())
        others = [lane.submit(there, task) for task in tasks[1::2]]
        try:
            own = list(map(call, tasks[::2]))
        finally:
            wait(others)
        results: list[Any] = [None] * len(tasks)
        results[::2], results[1::2] = own, [other.result() for other in others]
        return results


@cache
def _lane(process: int) -> ThreadPoolExecutor:
    """The second lane of a process; a forked child has none of its parent's threads, and makes its own."""
    return ThreadPoolExecutor(1, "wdmoe-lane")


def _start(
    model: SplitModel,
    runner: ExpertRunner | None,
    link_bits: int,
    token_ids: Tensor,
    attention_mask: Tensor,
    targets: Tensor,
    sequences: Tensor,
    own_rows: Tensor | None = None,
) -> SplitForward:
    """A pass, paused at its first block, that is scored where it ends."""
    read_out = partial(score_tokens, targets=targets, layer=model.output_layer, own_rows=own_rows)
    service = Service(runner, tuple(sequences.tolist()), link_bits)
    return model.forward(token_ids, attention_mask, read_out, inference=True, service=service)


def _own_scores(model: SplitModel, token_ids: Tensor, attention_mask: Tensor, targets: Tensor) -> TokenScores:
    with neutral_modes(model.device.type, inference=True):
        return score_tokens(model.own_rows(token_ids, attention_mask), targets, model.output_layer)


def _own_rows_and_scores(
    model: SplitModel, token_ids: Tensor, attention_mask: Tensor, targets: Tensor
) -> tuple[Tensor, TokenScores]:
    with neutral_modes(model.device.type, inference=True):
        rows = model.own_rows(token_ids, attention_mask)
        return rows.cpu(), score_tokens(rows, targets, model.output_layer)


def _joined(scores: Sequence[TokenScores]) -> TokenScores:
    nll, correct, divergence = zip(*scores, strict=True)
    known = None if divergence[0] is None else np.concatenate(divergence)
    return TokenScores(np.concatenate(nll), np.concatenate(correct), known)
