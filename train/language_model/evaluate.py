"""Held-out losses of a model and of n-grams, and where its routers send the tokens."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional
from transformers import AutoModelForCausalLM

from train.language_model.ngram import Bigram, Tokens, Unigram

WINDOW_BATCH = 16


@dataclass(frozen=True)
class HeldOut:
    """Documents of one domain, cut into windows that begin with the token before the first target.

    Attributes:
        inputs: (windows, context) token ids, padded with 0.
        targets: (windows, context) the ids that follow, padded with -100.
        size: Bytes of text.
    """

    inputs: NDArray[np.int64]
    targets: NDArray[np.int64]
    size: int


@dataclass(frozen=True)
class DomainResult:
    """Losses on one domain, in nats per token; ``bits_per_byte`` is the model's.

    Attributes:
        tokens: Number of targets.
        model: The model with its own routing.
        top1: The same weights with one expert per token.
        unigram: See ``Unigram``.
        bigram: See ``Bigram``.
        bits_per_byte: The model's loss per byte of text.
    """

    tokens: int
    model: float
    top1: float
    unigram: float
    bigram: float
    bits_per_byte: float


@dataclass(frozen=True)
class Evaluation:
    """All of a model's figures.

    Attributes:
        domains: Result of each domain, and of all together under ``"all"``.
        load: Per domain (and ``"all"``): share of assignments, (blocks, experts), rows sum to 1.
    """

    domains: dict[str, DomainResult]
    load: dict[str, list[list[float]]]


def cut(tokens: Tokens, index: list[tuple[str, str, int, int, int]], context: int) -> dict[str, HeldOut]:
    """Cut a shard's documents into windows, per domain.

    Every token but each document's leading end-of-text is a target exactly once; a
    target sees only the tokens of its own window.
    """
    rows: dict[str, list[tuple[Tokens, Tokens]]] = {}
    sizes: dict[str, int] = {}
    for domain, _, start, length, size in index:
        sizes[domain] = sizes.get(domain, 0) + size
        for a in range(start, start + length - 1, context):
            b = min(a + context, start + length - 1)
            rows.setdefault(domain, []).append((tokens[a:b], tokens[a + 1 : b + 1]))
    return {domain: _padded(pairs, sizes[domain], context) for domain, pairs in rows.items()}


def _padded(pairs: list[tuple[Tokens, Tokens]], size: int, context: int) -> HeldOut:
    inputs = np.zeros((len(pairs), context), dtype=np.int64)
    targets = np.full((len(pairs), context), -100, dtype=np.int64)
    for row, (before, after) in enumerate(pairs):
        inputs[row, : len(before)], targets[row, : len(after)] = before, after
    return HeldOut(inputs, targets, size)


@torch.no_grad()
def model_loss(model: Any, text: HeldOut) -> tuple[float, NDArray[np.float64]]:
    """Return the summed loss in nats and the number of assignments, (blocks, experts)."""
    total, load = 0.0, np.zeros((model.config.num_hidden_layers, model.config.num_local_experts))
    for start in range(0, len(text.inputs), WINDOW_BATCH):
        inputs = torch.from_numpy(text.inputs[start : start + WINDOW_BATCH]).to(model.device)
        targets = torch.from_numpy(text.targets[start : start + WINDOW_BATCH]).to(model.device)
        output = model(input_ids=inputs, output_router_logits=True, use_cache=False)
        total += functional.cross_entropy(output.logits.flatten(0, 1), targets.flatten(), reduction="sum").item()
        real = targets.flatten() >= 0
        for block, logits in enumerate(output.router_logits):
            chosen = logits[real].topk(model.config.num_experts_per_tok, dim=-1).indices
            load[block] += torch.bincount(chosen.flatten(), minlength=load.shape[1]).cpu().numpy()
    return total, load


def evaluate(folder: Path, training: Tokens, held_out: dict[str, HeldOut], device: torch.device) -> Evaluation:
    """Measure a model against n-grams of its training tokens.

    Args:
        folder: An exported model.
        training: Tokens the n-grams are counted on.
        held_out: From ``cut``.
        device: Where the model runs, in float32.
    """
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).to(device).eval()
    top1 = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, num_experts_per_tok=1).to(device).eval()
    unigram, bigram = (kind(training, model.config.vocab_size) for kind in (Unigram, Bigram))
    sums: dict[str, NDArray[np.float64]] = {}
    load: dict[str, NDArray[np.float64]] = {}
    for domain, text in held_out.items():
        real = text.targets >= 0
        before, after = text.inputs[real], text.targets[real]
        nats, load[domain] = model_loss(model, text)
        ngrams = [-ngram.log_prob(before, after).sum() for ngram in (unigram, bigram)]
        sums[domain] = np.array([len(after), text.size, nats, model_loss(top1, text)[0], *ngrams])
    sums["all"] = np.sum(list(sums.values()), axis=0)
    load["all"] = np.sum(list(load.values()), axis=0)
    return Evaluation(
        {domain: _result(row) for domain, row in sums.items()},
        {domain: (counts / counts.sum(1, keepdims=True)).round(4).tolist() for domain, counts in load.items()},
    )


def _result(sums: NDArray[np.float64]) -> DomainResult:
    tokens, size, model, top1, unigram, bigram = sums.tolist()
    losses = {"model": model, "top1": top1, "unigram": unigram, "bigram": bigram}
    per_token = {name: nats / tokens for name, nats in losses.items()}
    return DomainResult(tokens=int(tokens), bits_per_byte=model / math.log(2) / size, **per_token)
