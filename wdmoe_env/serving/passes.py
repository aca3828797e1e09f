"""A pass over what runs in the slots of n cells, paused at each MoE block: one padded batch on the stock forward.

Where prompts are read beside answers, most of a batch with a row for each slot is padding: an answer has one token, a
prompt's chunk has many. Such a pass takes a row for each token instead. All rows of a slot read the same keys, and a
mask lets each token see itself and what lies before it, so that both layouts compute the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
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
    """What a pass reads: n cells of S slots, a pass of J = S x C rows each. Tokens stand slot by slot.

    Attributes:
        row: (B,) of each busy slot in the cache.
        place: (B,) its number among the n x S slots of these cells.
        start: (B,) tokens that the cache holds of it.
        count: (B,) tokens that the pass reads of it.
        token_ids: (M,) those tokens.
        targets: (M,) the tokens that follow them.
        chunk: C.
        num_rows: n x J.
        say: whether the model's best guess after each slot's last token is asked for.
        slot: (M,) number of each token's slot among the B busy ones.
        position: (M,) place of each token in its request's text.
        among_rows: (M,) number of each token among the n x J rows.
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
    slot: Whole = field(init=False)
    position: Whole = field(init=False)
    among_rows: Whole = field(init=False)

    def __post_init__(self) -> None:
        """Find once where each token stands."""
        slot = np.repeat(np.arange(len(self.row)), self.count)
        number = np.arange(len(self.token_ids)) - (np.cumsum(self.count) - self.count)[slot]
        object.__setattr__(self, "slot", slot)
        object.__setattr__(self, "position", self.start[slot] + number)
        object.__setattr__(self, "among_rows", self.place[slot] * self.chunk + number)

    @property
    def layout(self) -> Layout:
        """How the model is given the tokens: a row for each, where a row for each slot would be padding for half."""
        if 2 * len(self.token_ids) <= len(self.row) * self.count.max():
            return Layout(self.slot, self.row[self.slot], self.position, np.ones_like(self.position))
        return Layout(np.arange(len(self.row)), self.row, self.start, self.count)


@dataclass(frozen=True, slots=True, eq=False)
class Layout:
    """Rows of a padded batch, each of tokens that follow each other in a slot.

    Attributes:
        slot: (P,) number of the slot among the B busy ones.
        row: (P,) of the slot in the cache.
        start: (P,) place of the first token in the request's text.
        count: (P,) tokens.
    """

    slot: Whole
    row: Whole
    start: Whole
    count: Whole

    @property
    def width(self) -> int:
        """Tokens w of the longest row."""
        return int(self.count.max())

    @property
    def filled(self) -> Bool:
        """(P, w) where there is a token."""
        return np.arange(self.width) < self.count[:, None]


class SlotPasses:
    """One pass of n cells as ``Passes``: its rows are spread over the n x J of the cells, the others are 0.

    Args:
        model: the split model.
        cache: keys and values of all slots; what the pass reads is written there.
        batch: what it reads.
        service: who runs the experts, and at what bits; its episodes are the B busy slots, whatever it says. ``None``
            is the model's own runner.
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
        self._batch, self._hidden_states, self._layout = batch, hidden_states, batch.layout
        layout = self._layout
        self._from = torch.from_numpy(np.flatnonzero(layout.filled))
        self._to = torch.from_numpy(batch.among_rows)
        function = partial(_run, model, cache, batch, layout, own_rows)
        service = replace(service or Service(None, ()), sequences=tuple(layout.slot.tolist()))
        self._forward = SplitForward(model.model, function, inference=True, service=service)

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
        unserved, service = np.zeros(len(self._batch.row), dtype=np.int64), self._forward.service
        if service is not None:
            np.add.at(unserved, self._layout.slot, service.unserved_pairs)
        return unserved

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
    model: SplitModel, cache: SlotCache, batch: Batch, layout: Layout, own_rows: Tensor | None, transformer: Any
) -> Any:
    """The forward of a pass; it must not refer to the ``SlotPasses``, or neither would ever be freed."""
    rows = read_rows(model, cache, batch.token_ids, layout)
    targets = torch.from_numpy(batch.targets)[None]
    scores = score_tokens(rows[None], targets, model.output_layer, None if own_rows is None else own_rows[None])
    if not batch.say:
        return scores, None
    last = rows[torch.from_numpy(np.cumsum(batch.count) - 1)]
    logits = last if model.output_layer is None else model.output_layer(last)
    return scores, logits.argmax(dim=-1).numpy(force=True)


def read_rows(model: SplitModel, cache: SlotCache, token_ids: Whole, layout: Layout) -> Tensor:
    """Run tokens on the cache.

    Args:
        model: the split model; its experts are chosen as its context says.
        cache: keys and values of all slots.
        token_ids: (M,) in the order of the layout.
        layout: their rows.

    Returns:
        Last hidden states (M, H), or logits (M, V) where these are more than one layer of them.
    """
    filled, width = layout.filled, layout.width
    padded = np.zeros(filled.shape, dtype=np.int64)
    padded[filled] = token_ids
    position = np.minimum(layout.start[:, None] + np.arange(width), model.context_length - 1)
    inputs = {
        "input_ids": torch.from_numpy(padded).to(model.device),
        "attention_mask": attention_mask(layout.start, width, model.dtype).to(model.device),
        "position_ids": torch.from_numpy(position).to(model.device),
        "past_key_values": PassCache(cache, layout.row, layout.start, width),
        "use_cache": True,
    }
    if model.output_layer is None:
        rows: Tensor = model.model(**inputs).logits
    else:
        rows = model.model.base_model(**inputs).last_hidden_state
    return rows.flatten(0, 1)[torch.from_numpy(np.flatnonzero(filled)).to(rows.device)]
