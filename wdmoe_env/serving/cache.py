"""Keys and values of all slots in one place, for passes of one batch.

A slot's request lies at positions 0, 1, ... of its row, whatever else runs, so that nothing has to be moved when a
request ends: the next one overwrites its row from the left. A pass reads only as many positions as the longest of its
requests has. Rows are cleared when a slot is taken, because a masked value counts for nothing only where it is finite.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import Cache

from wdmoe_env.serving.arrivals import Whole


class SlotCache:
    """Keys and values of a number of slots.

    Args:
        slots: number of rows R.
        positions: tokens that a row holds.

    Attributes:
        layers: number of the layer to its keys and values, each (R, heads, positions, width), once it has been met.
    """

    def __init__(self, slots: int, positions: int) -> None:
        self._slots, self._positions = slots, positions
        self.layers: dict[int, tuple[Tensor, Tensor]] = {}

    @property
    def bytes_per_token(self) -> int:
        """Bytes that a token of a slot takes in the layers that have been met."""
        tensors = [tensor for both in self.layers.values() for tensor in both]
        return sum(one.shape[1] * one.shape[3] * one.element_size() for one in tensors)

    def clear(self, rows: Whole) -> None:
        """Forget what was in some rows (n,)."""
        index = torch.from_numpy(rows)
        with torch.inference_mode():
            for both in self.layers.values():
                for tensor in both:
                    tensor[index] = 0.0

    def layer(self, number: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of a layer, made when it is first met.

        Args:
            number: of the layer.
            keys: (n, heads, w, width) that are to be kept there.
            values: (n, heads, w, width) likewise.
        """
        if number not in self.layers:
            with torch.inference_mode(False):
                self.layers[number] = (self._empty(keys), self._empty(values))
        return self.layers[number]

    def _empty(self, like: Tensor) -> Tensor:
        shape = (self._slots, like.shape[1], self._positions, like.shape[3])
        return torch.zeros(shape, dtype=like.dtype, device=like.device)


class PassCache(Cache):  # type: ignore[misc]
    """The rows of a ``SlotCache`` that one pass reads and writes, as transformers wants to see them.

    Args:
        store: keys and values of all slots.
        rows: (n,) slot of each row of the batch; a slot may have several, which see each other's tokens.
        start: (n,) tokens that each holds before the pass.
        width: tokens w of the longest row.
    """

    def __init__(self, store: SlotCache, rows: Whole, start: Whole, width: int) -> None:
        super().__init__(layers=[])
        self._store, self._width = store, width
        self._rows = torch.from_numpy(rows)
        self._at = torch.from_numpy(start)[:, None] + torch.arange(width)
        self.length = int(start.max()) + width

    def update(self, keys: Tensor, values: Tensor, layer: int, *args: Any, **keywords: Any) -> tuple[Tensor, Tensor]:
        """Keep what is new, and give all keys and values (n, heads, L, width) of the same rows.

        Args:
            keys: (n, heads, w, width) of the pass's tokens.
            values: (n, heads, w, width) likewise.
            layer: number of the layer.
            *args: what else transformers says.
            **keywords: likewise.
        """
        both = self._store.layer(layer, keys, values)
        return self._kept(both[0], keys), self._kept(both[1], values)

    def _kept(self, store: Tensor, new: Tensor) -> Tensor:
        rows = self._rows.to(store.device)
        store[rows[:, None], :, self._at.to(store.device)] = new.transpose(1, 2)
        return store[rows, :, : self.length]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Tokens before the pass of the longest row."""
        return self.length - self._width


def attention_mask(start: Whole, width: int, dtype: torch.dtype) -> Tensor:
    """Additive mask (n, 1, w, L): a token sees its own request up to itself.

    Args:
        start: (n,) tokens that each row holds before the pass.
        width: tokens w of the longest row.
        dtype: of the model.
    """
    last = start[:, None] + np.arange(width)
    seen = torch.from_numpy(np.arange(int(start.max()) + width) <= last[:, :, None])
    empty = torch.full(seen.shape, torch.finfo(dtype).min, dtype=dtype)
    return empty.masked_fill_(seen, 0.0)[:, None]
