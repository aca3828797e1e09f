"""Held-out documents as windows, and what a model loses on them under any routing."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from wdmoe_env.moe.hook import BlockInput, ExpertChooser, policy_of_context
from wdmoe_env.moe.split import SplitModel, neutral_modes
from wdmoe_env.moe.token_scores import score_tokens

BATCH = 32

Index = list[tuple[str, str, int, int, int]]
"""Domain, name, first token, tokens and bytes of every document, as ``train.text.shards`` writes it."""


@dataclass(frozen=True)
class HeldOut:
    """Documents cut into windows that begin with the token before the first target.

    Attributes:
        inputs: (windows, context) token ids, padded with 0.
        targets: (windows, context) the ids that follow, padded with 0.
        real: (windows, context) False at padding.
        domains: (windows,) names.
        sizes: Bytes of text of each domain.
    """

    inputs: NDArray[np.int64]
    targets: NDArray[np.int64]
    real: NDArray[np.bool_]
    domains: NDArray[np.str_]
    sizes: dict[str, int]


def cut(tokens: NDArray[np.integer], index: Index, context: int) -> HeldOut:
    """Cut a shard's documents into windows.

    Every token but each document's leading end-of-text is a target exactly once; a
    target sees only the tokens of its own window.
    """
    pieces, domains, sizes = [], [], dict.fromkeys((row[0] for row in index), 0)
    for domain, _, start, length, size in index:
        sizes[domain] += size
        for first in range(start, start + length - 1, context):
            pieces.append(tokens[first : min(first + context + 1, start + length)])
            domains.append(domain)
    grid = np.zeros((len(pieces), context + 1), dtype=np.int64)
    for row, piece in enumerate(pieces):
        grid[row, : len(piece)] = piece
    real = np.arange(1, context + 1) < np.array([len(piece) for piece in pieces])[:, None]
    return HeldOut(grid[:, :-1], grid[:, 1:], real, np.array(domains), sizes)


@contextmanager
def routed_by(model: SplitModel, policy: ExpertChooser | None) -> Iterator[Any]:
    """The transformers model, whose blocks ask ``policy`` for their experts; ``None`` is its own routing."""
    token = policy_of_context.set(policy)
    try:
        with neutral_modes(model.device.type):
            yield model.model
    finally:
        policy_of_context.reset(token)


def token_losses(model: SplitModel, text: HeldOut, policy: ExpertChooser | None, label: str) -> NDArray[np.float64]:
    """Loss of every target, (windows, context) in nats; 0 at padding.

    Args:
        model: The split model.
        text: The windows.
        policy: Which experts run.
        label: Name of the progress bar.
    """
    losses = []
    for start in tqdm(range(0, len(text.inputs), BATCH), desc=label, unit="batch", leave=False):
        rows = slice(start, start + BATCH)
        inputs = torch.from_numpy(text.inputs[rows]).to(model.device)
        with routed_by(model, policy) as transformer:
            logits = transformer(input_ids=inputs, use_cache=False).logits
            losses.append(score_tokens(logits, torch.from_numpy(text.targets[rows]))[0])
    return np.concatenate(losses) * text.real


class RoutingRecord:
    """A policy that leaves the model its own routing and keeps it."""

    def __init__(self) -> None:
        self._routed: defaultdict[int, list[NDArray[np.bool_]]] = defaultdict(list)

    def __call__(self, block: BlockInput) -> None:
        """Keep the own choice of every token, padding included."""
        self._routed[block.index].append(block.routed.numpy(force=True))

    def counts(self, text: HeldOut) -> dict[str, NDArray[np.int64]]:
        """Assignments of each domain's targets, (blocks, experts)."""
        real = text.real.ravel()
        domains = np.repeat(text.domains, text.real.shape[1])
        routed = np.stack([np.concatenate(self._routed[block]) for block in sorted(self._routed)])
        return {domain: routed[:, real & (domains == domain)].sum(axis=1) for domain in text.sizes}
