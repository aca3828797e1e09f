"""The suite with each context computed once for its four choices.

An item is one sequence: the context, then its choices one after another. A choice sees the context and itself, at
the positions that it would have in a window of its own, so that every score is that of its own window.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional
from tqdm import tqdm

from train.language_model.held_out import routed_by
from wdmoe_env.moe.hook import ExpertChooser
from wdmoe_env.moe.split import SplitModel
from wdmoe_env.text.suite import NUM_CHOICES, SuiteWindows, window_rows

TOKENS_PER_BATCH = 4096

_CONTEXT, _PADDING = 0, -1


@dataclass(frozen=True)
class _Packed:
    """One item as a sequence of L tokens.

    Attributes:
        tokens: (L,) ids.
        position: (L,) of each token in the window of its choice.
        segment: (L,) 0 in the context, 1 to 4 in the choices.
        reads: (S,) the place whose output predicts each scored token, choice after choice.
    """

    tokens: NDArray[np.int64]
    position: NDArray[np.int64]
    segment: NDArray[np.int64]
    reads: NDArray[np.int64]


def right_items(
    model: SplitModel, suite: SuiteWindows, items: NDArray[np.int64], policy: ExpertChooser | None, label: str
) -> NDArray[np.bool_]:
    """Whether the answer has the highest score, (m,); arguments as of ``item_scores``."""
    answers = np.array([suite.items[item].answer for item in items])
    right: NDArray[np.bool_] = item_scores(model, suite, items, policy, label).argmax(axis=-1) == answers
    return right


def item_scores(
    model: SplitModel, suite: SuiteWindows, items: NDArray[np.int64], policy: ExpertChooser | None, label: str
) -> NDArray[np.float64]:
    """Score of every choice, (m, 4), as of ``SuiteWindows.choice_scores``.

    Args:
        model: The split model.
        suite: All windows of the suite.
        items: (m,) which items.
        policy: Which experts run.
        label: Name of the progress bar.
    """
    token_nll = np.zeros((len(items), NUM_CHOICES, suite.scored.shape[1]))
    packed = [_pack(suite, int(item)) for item in items]
    with tqdm(total=len(items), desc=label, unit="item", leave=False) as bar:
        for batch in _batches([len(item.tokens) for item in packed]):
            scored = suite.scored[window_rows(items[batch])].reshape(len(batch), NUM_CHOICES, -1)
            part = np.zeros(scored.shape)
            part[scored] = _losses(model, suite, items[batch], [packed[k] for k in batch], policy)
            token_nll[batch] = part
            bar.update(len(batch))
    return suite.choice_scores(token_nll.reshape(-1, token_nll.shape[-1]), items)


def _pack(suite: SuiteWindows, item: int) -> _Packed:
    rows = window_rows(np.array([item]))
    ids, scored = suite.windows.token_ids[rows], suite.scored[rows]
    lengths, last = suite.windows.mask[rows].sum(axis=1), int(scored[0].argmax())  # last token of the context
    places = [np.arange(last + 1), *(np.arange(last + 1, length) for length in lengths)]
    tokens = [ids[0, : last + 1], *(ids[choice, last + 1 : length] for choice, length in enumerate(lengths))]
    begins = np.cumsum([len(place) for place in places])
    reads = [np.array([last, *range(begins[choice], begins[choice + 1])]) for choice in range(NUM_CHOICES)]
    segment = np.repeat(np.arange(NUM_CHOICES + 1), [len(place) for place in places])
    return _Packed(np.concatenate(tokens), np.concatenate(places), segment, np.concatenate(reads))


def _batches(lengths: list[int]) -> Iterator[NDArray[np.int64]]:
    """Groups of sequences of like length, of about ``TOKENS_PER_BATCH`` with their padding."""
    order = np.argsort(lengths, kind="stable")
    while len(order):
        size = max(1, TOKENS_PER_BATCH // lengths[order[0]])
        size = max(1, TOKENS_PER_BATCH // lengths[order[:size][-1]])
        yield order[:size]
        order = order[size:]


def _losses(
    model: SplitModel,
    suite: SuiteWindows,
    items: NDArray[np.int64],
    packed: list[_Packed],
    policy: ExpertChooser | None,
) -> NDArray[np.float64]:
    """Loss of every scored token in nats, item after item and choice after choice."""
    tokens, position = _grid([item.tokens for item in packed], 0), _grid([item.position for item in packed], 0)
    segment = _grid([item.segment for item in packed], _PADDING)
    visible = (segment[:, None, :] == _CONTEXT) | (segment[:, None, :] == segment[:, :, None])
    visible &= torch.ones(visible.shape[1:], dtype=torch.bool).tril()
    mask = torch.zeros(visible.shape).masked_fill_(~visible, torch.finfo(torch.float32).min)[:, None]
    row = torch.from_numpy(np.repeat(np.arange(len(packed)), [len(item.reads) for item in packed]))
    read = torch.from_numpy(np.concatenate([item.reads for item in packed]))
    rows = window_rows(items)
    targets = torch.from_numpy(suite.windows.targets[rows][suite.scored[rows]])
    with routed_by(model, policy) as transformer:
        device = model.device
        hidden = transformer.base_model(
            input_ids=tokens.to(device),
            position_ids=position.to(device),
            attention_mask=mask.to(device, model.dtype),
            use_cache=False,
        ).last_hidden_state
        logits = transformer.get_output_embeddings()(hidden[row.to(device), read.to(device)])
        losses = functional.cross_entropy(logits.float(), targets.to(device), reduction="none")
    return losses.double().numpy(force=True)


def _grid(rows: list[NDArray[np.int64]], padding: int) -> torch.Tensor:
    grid = np.full((len(rows), max(map(len, rows))), padding)
    for place, row in enumerate(rows):
        grid[place, : len(row)] = row
    return torch.from_numpy(grid)
