"""Scores of a text under a model: the logits of some tokens at a time, never those of all.

A model's vocabulary is many times as wide as its hidden states, so that the logits of a batch are most of its memory.
Most models make them by one layer from the last hidden states. There the layer runs on a few rows, which are scored
while they are in a core's cache. A model that does more, such as a soft cap, hands out all its logits.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

LOGITS_AT_ONCE = 2**17  # 512 KiB, which stay in a core's cache from one use to the next
ROWS_AT_ONCE = 32  # at least, however wide: the weights of the output layer are read for each part

TokenScores = tuple[NDArray[np.float64], NDArray[np.bool_]]
"""NLL in nats, and whether the best guess was right; both (N, J)."""


def output_layer(model: Any, probe_tokens: Tensor) -> nn.Linear | None:
    """The linear layer that turns the last hidden states into logits; ``None`` where a model does more than that.

    Args:
        model: a transformers model.
        probe_tokens: (1, T) token ids, run to see whether the layer's outputs are the logits.
    """
    base, layer = model.base_model, model.get_output_embeddings()
    if base is model or not isinstance(layer, nn.Linear):
        return None
    hidden_states = getattr(base(input_ids=probe_tokens, use_cache=False), "last_hidden_state", None)
    logits = model(input_ids=probe_tokens, use_cache=False).logits
    return layer if hidden_states is not None and torch.equal(layer(hidden_states), logits) else None


def score_tokens(rows: Tensor, targets: Tensor, layer: nn.Linear | None = None) -> TokenScores:
    """Scores of tokens; a guess that ties with the best one is right.

    Args:
        rows: (n, J, V) logits, or (n, J, H) last hidden states, which the layer turns into logits.
        targets: (n, J) int64, the token that follows each.
        layer: the output layer.
    """
    both = _score_rows(layer, rows.flatten(0, 1), targets.flatten())
    nll, correct = both.view(2, *targets.shape).cpu().numpy()
    return nll.astype(np.float64), correct > 0


def _score_rows(layer: nn.Linear | None, rows: Tensor, targets: Tensor) -> Tensor:
    """NLL of rows (T, V or H), and whether the best guess was right, (2, T), against targets (T,)."""
    vocabulary_size = rows.shape[-1] if layer is None else layer.out_features
    at_once = max(ROWS_AT_ONCE, LOGITS_AT_ONCE // vocabulary_size) if rows.device.type == "cpu" else len(rows)
    scores = []
    for part, target in zip(torch.split(rows, at_once), torch.split(targets, at_once), strict=True):
        logits = (part if layer is None else layer(part)).float()
        wanted = target.to(logits.device)
        nll = functional.cross_entropy(logits, wanted, reduction="none")
        correct = logits.gather(1, wanted[:, None])[:, 0] >= logits.amax(dim=1)
        scores.append(torch.stack((nll, correct.float())))
    return torch.cat(scores, dim=1)
