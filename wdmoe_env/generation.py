"""Text generated under a policy: each pass of ``generate``, over the prompt and then token by token, is an episode.

A pass sends what it reads over the air: all of the prompt, then one token. All passes of a text meet the same channel.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import pad
from transformers import StoppingCriteria, StoppingCriteriaList

from wdmoe_env.moe.hook import BlockInput
from wdmoe_env.moe.runner import Service
from wdmoe_env.moe.split import SplitForward
from wdmoe_env.scoring import Player, Scorer, Terms
from wdmoe_env.simulator import EpisodeResult, Rollout
from wdmoe_env.text.windows import TokenWindows


def generate(
    scorer: Scorer,
    prompt: Sequence[int],
    seed: int,
    max_new_tokens: int,
    stop: Callable[[list[int]], bool] = lambda tokens: False,
    **sampling: Any,
) -> tuple[list[int], Terms]:
    """Go on with a prompt under a policy.

    Args:
        scorer: policy, model and radio.
        prompt: token ids, as many as the longest window holds at most.
        seed: of the channel.
        max_new_tokens: the most to generate.
        stop: called with the tokens generated so far; True ends the text.
        **sampling: for transformers' ``generate``; none is greedy decoding.

    Returns:
        Token ids of what was generated, and the terms of the reward, each (blocks of all passes, 1).
    """
    ids = torch.tensor([list(prompt)], device=scorer.model.device)
    criteria = StoppingCriteriaList([_Stop(len(prompt), stop)])
    options = {"do_sample": False, "max_new_tokens": max_new_tokens, "stopping_criteria": criteria, **sampling}
    runner = scorer.player(scorer.padded(len(prompt))).process.simulator.runner
    forward = scorer.model.run(
        lambda model: model.generate(ids, attention_mask=torch.ones_like(ids), **options), Service(runner, (0,))
    )
    passes = []
    try:
        while forward.block is not None:
            player = scorer.player(scorer.padded(len(forward.block.routed)))
            passes.append(player.play(PassRollout(player, forward, seed)))
        tokens: list[int] = forward.result[0, len(prompt) :].tolist()
    finally:
        forward.close()
    return tokens, {name: np.concatenate([terms[name] for terms in passes]) for name in passes[0]}


class PassRollout(Rollout):
    """One pass of a generation under way, as an episode of a window that it fills from the left.

    Args:
        player: of windows that are long enough.
        forward: the generation, paused at a first block.
        seed: of the channel.
    """

    def __init__(self, player: Player, forward: SplitForward, seed: int) -> None:
        sizes = player.process.simulator.sizes
        self._given = _Pass(forward, sizes.num_blocks, sizes.num_tokens)
        ids = np.zeros((1, sizes.num_tokens), dtype=np.int64)
        mask = np.arange(sizes.num_tokens)[None] < len(self._given.paused.routed)
        trace = player.take(TokenWindows(ids, ids, mask, ("",)), [seed])
        super().__init__(player.process.simulator, np.arange(1), trace)

    def _begin(self) -> None:
        self._forward = self._given  # type: ignore[assignment]
        self.block = self._view.block(self._forward.blocks)

    def finish(self) -> EpisodeResult:
        """The latency; there is no text to score."""
        unknown = np.full(1, np.nan)
        return EpisodeResult(self._latency_s, unknown, np.full(self.token_mask.shape, np.nan), unknown, unknown)


class _Pass:
    """What ``LockStep`` is to a window: the blocks of one pass, in windows of one length."""

    def __init__(self, forward: SplitForward, num_blocks: int, num_tokens: int) -> None:
        self._generation, self._left, self._num_tokens = forward, num_blocks, num_tokens

    @property
    def paused(self) -> BlockInput:
        """Where the generation is."""
        block = self._generation.block
        if block is None:
            raise RuntimeError("a generation that has ended has no block")
        return block

    @property
    def blocks(self) -> list[BlockInput]:
        """Where the pass is, padded; nothing after its last block."""
        if not self._left:
            return []
        at = self.paused
        tensors = (at.hidden_states.flatten(0, -2), at.gate_probs, at.routed)
        below = self._num_tokens - len(at.routed)
        return [BlockInput(at.index, *(pad(tensor, (0, 0, 0, below)) for tensor in tensors))]

    def resume(self, selection: Tensor | None) -> None:
        """Go on to the next block."""
        self._left -= 1
        self._generation.resume(None if selection is None else selection[: len(self.paused.routed)])

    def unserved_pairs(self) -> NDArray[np.int64]:
        """Pairs (1,) that were selected in the last block and not served."""
        service = self._generation.service
        return np.zeros(1, dtype=np.int64) if service is None else service.unserved_pairs

    def close(self) -> None:
        """Nothing: the generation is its maker's to close."""


class _Stop(StoppingCriteria):  # type: ignore[misc]
    def __init__(self, prompt: int, stop: Callable[[list[int]], bool]) -> None:
        self._prompt, self._stop = prompt, stop

    def __call__(self, input_ids: Tensor, scores: Any, **keywords: Any) -> Tensor:
        done = [self._stop(row[self._prompt :].tolist()) for row in input_ids]
        return torch.tensor(done, device=input_ids.device)
