"""A batch in lock-step: forward passes over its parts, all paused at the same block, then scored.

On a CPU one pass over a large batch is slower than several over parts of it: what a part needs stays in the caches and
in memory that the process holds already, and its logits are gone before those of the next part are made. So a pass
takes at most ``TOKENS_PER_PASS`` tokens for each of its threads, and where there are many tokens the passes are spread
over lanes. On another device one pass takes the whole batch.

A thread that has few tokens costs more than it brings. So a pass of few tokens runs on one thread, one of some on one
and a helper (``helper``), a larger one on a thread for every ``TOKENS_PER_THREAD`` tokens. All lanes together never use
more than torch is set to, and the setting is the user's again whenever the passes are paused.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from wdmoe_env.moe.helper import helped
from wdmoe_env.moe.hook import BlockInput
from wdmoe_env.moe.lanes import MOST_LANES, Result, side_by_side
from wdmoe_env.moe.modes import neutral_modes
from wdmoe_env.moe.split import SplitForward, SplitModel
from wdmoe_env.moe.token_scores import Scores, score_tokens

TOKENS_PER_PASS = 1024
TOKENS_PER_LANE = 512
TOKENS_PER_THREAD = 128
TOKENS_FOR_HELPER = 128  # from which it is worth being woken
ONE_THREAD_ACTIVATIONS = 2**15  # tokens times width, up to which torch itself runs most operators on one thread


class LockStep:
    """A batch of sequences under way, paused at one MoE block.

    Args:
        model: the split model.
        token_ids: (N, J) int64, on the CPU like the rest.
        attention_mask: (N, J), 0 at padding.
        targets: (N, J) int64, the tokens that the text goes on with.

    Attributes:
        blocks: where each pass is paused, in the order of the sequences; empty after the last block.
    """

    def __init__(self, model: SplitModel, token_ids: Tensor, attention_mask: Tensor, targets: Tensor) -> None:
        self._thread = threading.get_ident()
        self._plan = _Plan.of(model, token_ids)
        parts = self._plan.parts(token_ids, attention_mask, targets)
        self._passes = self._plan.run([partial(_start, model, *part) for part in parts])
        self.blocks = self._paused()

    def resume(self, selection: Tensor | None) -> None:
        """Run the selected experts and go on to the next block.

        Args:
            selection: (N * J, E) bool; ``None`` means the model's own routing.

        Raises:
            RuntimeError: another thread started it; the batch stays where it was.
            Exception: whatever the model's code raises.
        """
        if self._thread != threading.get_ident():  # some passes belong to other lanes, and would go on
            raise RuntimeError("a batch can be resumed only by the thread that started it")
        rows = [len(block.routed) for block in self.blocks]
        parts = [None] * len(rows) if selection is None else torch.split(selection, rows)
        try:
            self._plan.run([partial(one.resume, part) for one, part in zip(self._passes, parts, strict=True)])
        except BaseException:
            if self._paused() != self.blocks:  # some have gone on or ended, so that they stand at different blocks
                self.close()
            raise
        self.blocks = self._paused()

    def scores(self) -> Scores:
        """Scores of the text, after the last block."""
        return _joined([one.result for one in self._passes])

    def close(self) -> None:
        """End the passes where they are."""
        self.blocks = []
        for one in self._passes:
            one.close()

    def _paused(self) -> list[BlockInput]:
        return [one.block for one in self._passes if one.block is not None]


def own_scores(model: SplitModel, token_ids: Tensor, attention_mask: Tensor, targets: Tensor) -> Scores:
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


@dataclass(frozen=True, slots=True)
class _Plan:
    """How a batch goes through the model.

    Attributes:
        passes: number of parts of the batch.
        lanes: on which they run side by side.
        threads: torch's threads of each lane.
        helper: whether the only lane has a helper.
    """

    passes: int
    lanes: int
    threads: int
    helper: bool = False

    @classmethod
    def of(cls, model: SplitModel, token_ids: Tensor) -> _Plan:
        """The plan for token ids (N, J)."""
        setting = torch.get_num_threads()
        if model.device.type != "cpu":
            return cls(passes=1, lanes=1, threads=setting)
        sequences, tokens = len(token_ids), token_ids.numel()
        lanes = max(1, min(MOST_LANES, setting, sequences, tokens // TOKENS_PER_LANE))
        narrow = tokens * model.hidden_size <= ONE_THREAD_ACTIVATIONS
        if lanes == 1 and setting > 1 and narrow and tokens >= TOKENS_FOR_HELPER:
            return cls(passes=1, lanes=1, threads=1, helper=True)
        threads = max(1, min(setting, tokens // TOKENS_PER_THREAD) // lanes)
        passes = max(lanes, -(-tokens // (TOKENS_PER_PASS * threads)))
        return cls(min(passes, sequences), lanes, threads)

    def parts(self, token_ids: Tensor, attention_mask: Tensor, targets: Tensor) -> list[tuple[Tensor, Tensor, Tensor]]:
        """The batch of each pass, as equal as can be."""
        whole = (token_ids, attention_mask, targets)
        return list(zip(*(tensor.tensor_split(self.passes) for tensor in whole), strict=True))

    def run(self, tasks: Sequence[Callable[[], Result]]) -> list[Result]:
        """Results of a task for each pass."""
        with helped() if self.helper else nullcontext():
            return side_by_side(tasks, self.lanes, self.threads)


def _start(model: SplitModel, token_ids: Tensor, attention_mask: Tensor, targets: Tensor) -> SplitForward:
    """A pass, paused at its first block, that is scored where it ends."""
    read_out = partial(score_tokens, targets=targets, layer=model.output_layer)
    return model.forward(token_ids, attention_mask, read_out, inference=True)


def _own_scores(model: SplitModel, token_ids: Tensor, attention_mask: Tensor, targets: Tensor) -> Scores:
    with neutral_modes(model.device.type, inference=True):
        return score_tokens(model.own_rows(token_ids, attention_mask), targets, model.output_layer)


def _joined(scores: Sequence[Scores]) -> Scores:
    nll, correct = zip(*scores, strict=True)
    return np.concatenate(nll), np.concatenate(correct)
