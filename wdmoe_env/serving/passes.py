"""A pass over what runs in the slots of n cells, paused at each MoE block: one padded batch on the stock forward."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wdmoe_env.moe.hook import BlockInput
from wdmoe_env.moe.runner import Service
from wdmoe_env.moe.split import SplitForward, SplitModel
from wdmoe_env.moe.token_scores import TokenScores, score_tokens
from wdmoe_env.physics.latency import Bool
from wdmoe_env.serving.arrivals import Whole
from wdmoe_env.serving.cache import PassCache, SlotCache, attention_mask


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """What a pass reads, slot by slot: n cells of S slots, a pass of J = S x C rows each.

    Attributes:
        row: (B,) of each busy slot in the cache.
        place: (B,) its number among the n x S slots of these cells.
        start: (B,) tokens that the cache holds of it.
        count: (B,) tokens that the pass reads of it.
        token_ids: (B, w) those tokens; 0 behind them.
        targets: (B, w) the tokens that follow them.
        chunk: C.
        num_rows: n x J.
        say: whether the model's best guess after each slot's last token is asked for.
    """

    row: Whole
    place: Whole
    start: Whole
    count: Whole
    token_ids: Whole
    targets: Whole
    chunk: int
    num_rows: int
    say: bool = False

    @property
    def filled(self) -> Bool:
        """(B, w) where there is a token."""
        return np.arange(self.token_ids.shape[1]) < self.count[:, None]

    @property
    def among_rows(self) -> Whole:
        """(M,) number of each token among the n x J rows, in the order of the batch."""
        width = np.arange(self.token_ids.shape[1])
        return (self.place[:, None] * self.chunk + width)[self.filled]


class SlotPasses:
    """One pass of n cells as ``Passes``: its rows are spread over the n x J of the cells, the others are 0.

    Args:
        model: the split model.
        cache: keys and values of all slots; what the pass reads is written there.
        batch: what it reads.
        service: who runs the experts of its B slots; ``None`` is the model's own runner.
        hidden_states: whether anybody looks at them; else those of ``blocks`` are not spread, and empty.
        own_rows: (M, H) last hidden states, or logits (M, V), of the same tokens under the own routing, from whose
            predictions the divergence is wanted; ``None`` where it is not.
    """

    def __init__(
        self,
        model: SplitModel,
        cache: SlotCache,
        batch: Batch,
        service: Service | None = None,
        hidden_states: bool = True,
        own_rows: Tensor | None = None,
    ) -> None:
        self._batch, self._hidden_states = batch, hidden_states
        filled = torch.from_numpy(batch.filled)
        self._from = filled.flatten().nonzero()[:, 0]
        self._to = torch.from_numpy(batch.among_rows)
        function = partial(_run, model, cache, batch, self._from, own_rows)
        self._forward = SplitForward(
            model.model, function, inference=True, service=service or Service(None, tuple(range(len(batch.row))))
        )

    @property
    def blocks(self) -> Sequence[BlockInput]:
        """Where the pass is paused, spread over all rows; empty after the last block."""
        at = self._forward.block
        if at is None:
            return []
        width = at.hidden_states.shape[-1]
        seen = self._hidden_states
        hidden = self._spread(at.hidden_states.reshape(-1, width)) if seen else at.hidden_states.new_zeros(0, width)
        return [BlockInput(at.index, hidden, self._spread(at.gate_probs), self._spread(at.routed))]

    def _spread(self, tensor: Tensor) -> Tensor:
        whole = tensor.new_zeros(self._batch.num_rows, tensor.shape[-1])
        return whole.index_copy_(0, self._to.to(tensor.device), tensor[self._from.to(tensor.device)])

    def resume(self, selection: Tensor | None) -> None:
        """Run the selected experts and go on to the next block.

        Args:
            selection: (N * J, E) bool; ``None`` means the model's own routing, at padding too.
        """
        block = self._forward.block
        if selection is None or block is None:
            self._forward.resume(None)
            return
        own = torch.zeros(block.routed.shape, dtype=torch.bool)
        own[self._from] = selection[self._to]
        self._forward.resume(own)

    def unserved_pairs(self) -> NDArray[np.int64]:
        """Pairs (B,) of each busy slot that were selected in the last block and not served."""
        service = self._forward.service
        return np.zeros(len(self._batch.row), dtype=np.int64) if service is None else service.unserved_pairs

    def scores(self) -> TokenScores:
        """NLL and divergence (1, M) in nats, and whether the best guess was right, of the tokens as in the batch."""
        scores: TokenScores = self._forward.result[0]
        return scores

    def said(self) -> Whole | None:
        """(B,) the model's best guess after the last token of each slot; ``None`` where it was not asked for."""
        said: Whole | None = self._forward.result[1]
        return said

    def close(self) -> None:
        """End the pass where it is."""
        self._forward.close()


def _run(
    model: SplitModel, cache: SlotCache, batch: Batch, filled: Tensor, own_rows: Tensor | None, transformer: Any
) -> Any:
    """The forward of a pass; it must not refer to the ``SlotPasses``, or neither would ever be freed."""
    rows = read_rows(model, cache, batch)
    flat = rows.flatten(0, 1)
    tokens = flat.index_select(0, filled.to(flat.device))[None]
    targets = torch.from_numpy(batch.targets).flatten()[filled][None]
    scores = score_tokens(tokens, targets, model.output_layer, None if own_rows is None else own_rows[None])
    if not batch.say:
        return scores, None
    last = rows[torch.arange(len(rows)), torch.from_numpy(batch.count) - 1]
    logits = last if model.output_layer is None else model.output_layer(last)
    return scores, logits.argmax(dim=-1).numpy(force=True)


def read_rows(model: SplitModel, cache: SlotCache, batch: Batch) -> Tensor:
    """Run the batch on the cache.

    Args:
        model: the split model; its experts are chosen as its context says.
        cache: keys and values of all slots.
        batch: what to read.

    Returns:
        Last hidden states (B, w, H), or logits (B, w, V) where these are more than one layer of them.
    """
    width = batch.token_ids.shape[1]
    position = np.minimum(batch.start[:, None] + np.arange(width), model.context_length - 1)
    inputs = {
        "input_ids": torch.from_numpy(batch.token_ids).to(model.device),
        "attention_mask": attention_mask(batch.start, width, model.dtype).to(model.device),
        "position_ids": torch.from_numpy(position).to(model.device),
        "past_key_values": PassCache(cache, batch.row, batch.start, width),
        "use_cache": True,
    }
    if model.output_layer is None:
        logits: Tensor = model.model(**inputs).logits
        return logits
    hidden: Tensor = model.model.base_model(**inputs).last_hidden_state
    return hidden
