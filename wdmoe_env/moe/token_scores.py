"""Scores of a text under a model: the logits of some tokens at a time, never those of all.

A model's vocabulary is many times as wide as its hidden states, so that the logits of a batch are most of its memory.
Most models make them by one layer from the last hidden states. There the layer runs on a few rows, which are scored
while they are in a core's cache. A model that does more, such as a soft cap, hands out all its logits.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

LOGITS_AT_ONCE = 2**20  # 4 MiB: fewer reads of the layer's weights weigh more than a core's cache
ROWS_AT_ONCE = 32  # at least, however wide: the weights of the output layer are read for each part


class TokenScores(NamedTuple):
    """Scores of the tokens of N texts.

    Attributes:
        nll: (N, J) nats.
        correct: (N, J) whether the best guess was right.
        divergence: (N, J) nats, KL of the predictions from the own routing's; ``None`` where those are not known.
    """

    nll: NDArray[np.float64]
    correct: NDArray[np.bool_]
    divergence: NDArray[np.float64] | None = None


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


def score_tokens(
    rows: Tensor, targets: Tensor, layer: nn.Linear | None = None, own_rows: Tensor | None = None
) -> TokenScores:
    """Scores of tokens; a guess that ties with the best one is right.

    The divergence of token j is the sum over the vocabulary of p (ln p - ln q), where p are the predictions of the
    model's own routing and q those of the rows.

    Args:
        rows: (n, J, V) logits, or (n, J, H) last hidden states, which the layer turns into logits.
        targets: (n, J) int64, the token that follows each.
        layer: the output layer.
        own_rows: (n, J, V) or (n, J, H) of the own routing, for the divergence; ``None`` leaves that out.
    """
    flat_own = None if own_rows is None else own_rows.to(rows.device).flatten(0, 1)
    scores = _score_rows(layer, rows.flatten(0, 1), targets.flatten(), flat_own)
    nll, correct, *compared = scores.view(len(scores), *targets.shape).cpu().numpy()
    return TokenScores(nll.astype(np.float64), correct > 0, *(kl.astype(np.float64) for kl in compared))


def _score_rows(layer: nn.Linear | None, rows: Tensor, targets: Tensor, own_rows: Tensor | None) -> Tensor:
    """NLL of rows (T, V or H) against targets (T,), whether the best guess was right, divergence; (2 or 3, T)."""
    vocabulary_size = rows.shape[-1] if layer is None else layer.out_features
    at_once = max(ROWS_AT_ONCE, LOGITS_AT_ONCE // vocabulary_size) if rows.device.type == "cpu" else len(rows)
    scores = []
    own_parts = [None] * -(-len(rows) // at_once) if own_rows is None else torch.split(own_rows, at_once)
    for part, target, own in zip(torch.split(rows, at_once), torch.split(targets, at_once), own_parts, strict=True):
        logits = _logits(part, layer)
        wanted = target.to(logits.device)
        nll = functional.cross_entropy(logits, wanted, reduction="none")
        correct = logits.gather(1, wanted[:, None])[:, 0] >= logits.amax(dim=1)
        compared = () if own is None else (_divergence(logits, _logits(own, layer)),)
        scores.append(torch.stack((nll, correct.float(), *compared)))
    return torch.cat(scores, dim=1)


def _logits(rows: Tensor, layer: nn.Linear | None) -> Tensor:
    return (rows if layer is None else layer(rows)).float()


def _divergence(logits: Tensor, own_logits: Tensor) -> Tensor:
    """KL (T,) in nats of predictions from the own ones; rounding below 0 is cut."""
    return divergence(logits.log_softmax(dim=-1), own_logits.log_softmax(dim=-1)).clamp(min=0.0)


def divergence(log_probs: Tensor, own_log_probs: Tensor) -> Tensor:
    """Kullback-Leibler divergence (...) in nats of predictions from those of the own routing.

    Args:
        log_probs: (..., V) of the tokens that may follow.
        own_log_probs: (..., V) under the model's own routing.
    """
    apart: Tensor = functional.kl_div(log_probs, own_log_probs, reduction="none", log_target=True)
    return apart.sum(dim=-1)
