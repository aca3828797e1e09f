"""All figures of a trained model: losses, routing, and what changed routings cost."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoModelForCausalLM

from eval.suite import DEFAULTS
from train.language_model.ablation import (
    DROPPED,
    OWN,
    Bench,
    Effect,
    Outcome,
    ablate,
    first_expert,
    sensitivity,
    wrong_runner,
)
from train.language_model.held_out import HeldOut, Index, RoutingRecord, cut, token_losses
from train.language_model.ngram import KneserNey
from train.language_model.packed_suite import right_items
from train.language_model.specialisation import Specialisation, specialisations
from wdmoe_env.moe.split import SplitModel
from wdmoe_env.moe.zoo import load_model
from wdmoe_env.text.suite import load_suite, suite_windows

NGRAM_ORDER = 5
SUITE_TOKENS = int(DEFAULTS["num_tokens"])

Tokens = NDArray[np.integer]
Sums = NDArray[np.float64]


@dataclass(frozen=True)
class Losses:
    """Three losses on the same tokens.

    Attributes:
        model: The model with its own routing.
        top1: The same weights with the most probable expert alone.
        kneser_ney: The n-gram model.
    """

    model: float
    top1: float
    kneser_ney: float


@dataclass(frozen=True)
class DomainResult:
    """Losses on one domain.

    Attributes:
        tokens: Number of targets.
        nats_per_token: Losses.
        bits_per_byte: The same per byte of text.
    """

    tokens: int
    nats_per_token: Losses
    bits_per_byte: Losses


@dataclass(frozen=True)
class Evaluation:
    """All of a model's figures.

    Attributes:
        domains: Result of each domain, and of all together under ``"all"``.
        load: Per domain (and ``"all"``): share of assignments, (blocks, experts), rows sum to 1.
        suite_items: Items of the suite.
        suite_accuracy: Share that own routing answers.
        ablation: What changed routings cost.
        sensitivity: What the second expert of each block is worth.
        specialisation: What each domain's experts are worth to it.
    """

    domains: dict[str, DomainResult]
    load: dict[str, list[list[float]]]
    suite_items: int
    suite_accuracy: float
    ablation: list[Effect]
    sensitivity: list[Effect]
    specialisation: dict[str, Specialisation]


def evaluate(
    folder: Path, training: Tokens, held_out: tuple[Tokens, Index], suite: Path | None, device: torch.device
) -> Evaluation:
    """Measure a model against an n-gram model of its training tokens, and against itself with other routings.

    Args:
        folder: An exported model.
        training: Tokens that the n-grams are counted on.
        held_out: Validation tokens and their index.
        suite: Multiple-choice items; ``None`` is the suite that ships.
        device: Where the model runs, in float32.
    """
    model = load_model(str(folder), str(device))
    text = cut(*held_out, model.context_length)
    windows = suite_windows(load_suite(suite), model.tokenizer.encode, min(SUITE_TOKENS, model.context_length))
    bench, record = Bench(text, windows), RoutingRecord()
    losses = token_losses(model, text, record, OWN)
    own = Outcome(losses.sum(axis=1), right_items(model, windows, bench.all_items, None, OWN))
    dropped = bench.outcome(model, first_expert, DROPPED)
    counts = record.counts(text)
    return Evaluation(
        domains=_results(text, own.nats, dropped.nats, _ngram_nats(training, held_out, model.vocabulary_size)),
        load=_shares(counts | {"all": np.sum(list(counts.values()), axis=0)}),
        suite_items=len(own.right),
        suite_accuracy=float(own.right.mean()),
        ablation=ablate(bench, model, _answering_wrongly(folder, model), own, dropped),
        sensitivity=sensitivity(bench, model, own),
        specialisation=specialisations(model, text, losses, counts),
    )


def _answering_wrongly(folder: Path, model: SplitModel) -> SplitModel:
    """The same model once more, with an expert runner of its own."""
    again = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).to(model.device)
    return SplitModel(again, model.tokenizer, wrong_runner(torch.Generator().manual_seed(0)))


def _ngram_nats(training: Tokens, held_out: tuple[Tokens, Index], vocabulary: int) -> dict[str, float]:
    """Loss of the n-gram model summed over each domain; it sees the whole document before a token."""
    tokens, index = held_out
    losses = -KneserNey(training, vocabulary, NGRAM_ORDER).log_prob(tokens)
    sums: dict[str, float] = {}
    for domain, _, start, length, _ in index:
        sums[domain] = sums.get(domain, 0.0) + float(losses[start + 1 : start + length].sum())
    return sums


def _results(text: HeldOut, own: Sums, dropped: Sums, ngram: dict[str, float]) -> dict[str, DomainResult]:
    rows = {domain: text.domains == domain for domain in text.sizes}
    sums = {
        domain: np.array([text.real[row].sum(), text.sizes[domain], own[row].sum(), dropped[row].sum(), ngram[domain]])
        for domain, row in rows.items()
    }
    sums["all"] = np.sum(list(sums.values()), axis=0)
    return {domain: _result(*row.tolist()) for domain, row in sums.items()}


def _result(tokens: float, size: float, *nats: float) -> DomainResult:
    per_token = Losses(*(loss / tokens for loss in nats))
    return DomainResult(int(tokens), per_token, Losses(*(loss / math.log(2) / size for loss in nats)))


def _shares(counts: dict[str, NDArray[np.int64]]) -> dict[str, list[list[float]]]:
    return {name: (count / count.sum(axis=1, keepdims=True)).round(4).tolist() for name, count in counts.items()}
