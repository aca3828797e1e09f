"""Passes of cells that serve: against the stock forward of the same padded batch, and against one request at a time."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from importlib import resources
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM

from benchmarks.table import Row, Settings
from benchmarks.timing import clocked, in_turn
from wdmoe_env.moe.split import SplitModel
from wdmoe_env.moe.token_scores import score_tokens
from wdmoe_env.moe.zoo import load_model
from wdmoe_env.serving.cache import PassCache, SlotCache, attention_mask
from wdmoe_env.serving.passes import Batch, SlotPasses

TINY = resources.files("wdmoe_env") / "assets" / "tiny"
POSITIONS = 88


def batch_of(cells: int, slots: int, chunk: int, longest: int, seed: int = 0) -> Batch:
    """A pass in which a third of the slots read a chunk of a prompt, and the others one token.

    Args:
        cells: N.
        slots: S of each.
        chunk: C.
        longest: tokens that a slot holds at most.
        seed: of the draw.
    """
    generator, count = np.random.default_rng(seed), cells * slots
    rows = np.arange(count)
    prompts = generator.random(count) < 1 / 3
    prompts[0] = True
    read = np.where(prompts, chunk, 1)
    start = generator.integers(0, longest - chunk, size=count)
    ids = generator.integers(1, 4096, size=(count, chunk))
    return Batch(rows, rows, start, read, ids, ids, chunk, count * chunk)


def stock_pass(model: Any, layer: Any, cache: SlotCache, batch: Batch) -> None:
    """The untouched model on the same padded batch with the same cache, and the scores of its tokens."""
    width = batch.token_ids.shape[1]
    with torch.inference_mode():
        hidden = model.base_model(
            input_ids=torch.from_numpy(batch.token_ids),
            attention_mask=attention_mask(batch.start, width, torch.float32),
            position_ids=torch.from_numpy(batch.start[:, None] + np.arange(width)),
            past_key_values=PassCache(cache, batch.row, batch.start, width),
            use_cache=True,
        ).last_hidden_state
        filled = torch.from_numpy(batch.filled)
        score_tokens(hidden[filled][None], torch.from_numpy(batch.targets)[filled][None], layer)


def paused_pass(model: SplitModel, cache: SlotCache, batch: Batch) -> None:
    """The same pass, paused at every block, under the model's own routing."""
    passes = SlotPasses(model, cache, batch)
    while blocks := passes.blocks:
        passes.resume(blocks[0].routed)
    passes.scores()


def one_by_one(model: SplitModel, cache: SlotCache, batch: Batch) -> None:
    """A pass for each slot."""
    for n in range(len(batch.row)):
        here, width = slice(n, n + 1), int(batch.count[n])
        ids = batch.token_ids[here, :width]
        place = np.zeros(1, dtype=np.int64)
        one = Batch(batch.row[here], place, batch.start[here], batch.count[here], ids, ids, width, width)
        paused_pass(model, cache, one)


def rows(settings: Settings) -> list[Row]:
    """The rows of the table."""
    return list(_rows(settings))


def _rows(settings: Settings) -> Iterator[Row]:
    model = load_model("tiny")
    stock = {
        name: AutoModelForCausalLM.from_pretrained(str(TINY), dtype=torch.float32, experts_implementation=name).eval()
        for name in ("eager", "grouped_mm")
    }
    batch, caches = batch_of(16, 4, 8, 72), {name: SlotCache(64, POSITIONS) for name in ("ours", "single", *stock)}
    layer = model.output_layer
    alternatives = {"ours": clocked(partial(paused_pass, model, caches["ours"], batch))}
    alternatives |= {name: clocked(partial(stock_pass, one, layer, caches[name], batch)) for name, one in stock.items()}
    alternatives["single"] = clocked(partial(one_by_one, model, caches["single"], batch))
    taken = in_turn(alternatives, settings.seconds(20.0))
    best = min(taken[name] for name in stock)
    yield Row(
        "serving",
        "pass of 16 cells of 4 slots over the stock forward of the batch",
        taken["ours"] / best,
        "",
        "<= 1.15",
    )
    yield Row("serving", "request by request over one batch", taken["single"] / taken["ours"], "", ">= 5")
    for name, sizes in {
        "8 slots over 4": (16, 8, 8, 72),
        "chunk of 16 over 8": (16, 4, 16, 72),
        "72 positions over 24": (16, 4, 8, 24),
    }.items():
        other = batch_of(*sizes)
        cache = SlotCache(len(other.row), POSITIONS + 16)
        both = {
            "other": clocked(partial(paused_pass, model, cache, other)),
            "ours": clocked(partial(paused_pass, model, caches["ours"], batch)),
        }
        found = in_turn(both, settings.seconds(6.0))
        ratio = found["other"] / found["ours"]
        yield Row("serving", f"growth: {name}", 1.0 / ratio if name.startswith("72") else ratio)
