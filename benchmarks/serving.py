"""Passes of cells that serve: against the stock forward of the same padded batch, and against one request at a time."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM

from benchmarks.growth import resident_mib
from benchmarks.table import Row, Settings
from benchmarks.timing import clocked, in_turn
from wdmoe_env.moe.split import SplitModel
from wdmoe_env.moe.token_scores import score_tokens
from wdmoe_env.moe.zoo import load_model
from wdmoe_env.policies.registry import make_policy
from wdmoe_env.serving.cache import PassCache, SlotCache, attention_mask
from wdmoe_env.serving.passes import Batch, SlotPasses
from wdmoe_env.serving.play import play
from wdmoe_env.serving.process import ServingProcess, serving_config

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
    ids = generator.integers(1, 4096, size=read.sum())
    return Batch(rows, rows, start, read, ids, ids, chunk, count * chunk)


def stock_pass(model: Any, layer: Any, cache: SlotCache, batch: Batch) -> None:
    """The untouched model on the same padded batch with the same cache, and the scores of its tokens."""
    width = int(batch.count.max())
    filled = np.arange(width) < batch.count[:, None]
    padded = np.zeros(filled.shape, dtype=np.int64)
    padded[filled] = batch.token_ids
    with torch.inference_mode():
        hidden = model.base_model(
            input_ids=torch.from_numpy(padded),
            attention_mask=attention_mask(batch.start, width, torch.float32),
            position_ids=torch.from_numpy(batch.start[:, None] + np.arange(width)),
            past_key_values=PassCache(cache, batch.row, batch.start, width),
            use_cache=True,
        ).last_hidden_state
        score_tokens(hidden[torch.from_numpy(filled)][None], torch.from_numpy(batch.targets)[None], layer)


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
        ids = batch.token_ids[batch.slot == n]
        place = np.zeros(1, dtype=np.int64)
        one = Batch(batch.row[here], place, batch.start[here], batch.count[here], ids, ids, width, width)
        paused_pass(model, cache, one)


SERVED = 10_000
"""Requests of the run over which memory is measured."""
LENGTHS = {"slots": 4, "chunk": 4, "prompt_tokens": (2, 6), "answer_tokens": (1, 3), "load": 0.9}


def rows(settings: Settings) -> list[Row]:
    """The rows of the table."""
    return [*_rows(settings), *memory_rows(settings)]


def memory_rows(settings: Settings) -> list[Row]:
    """Memory of a process that serves many requests, in episodes of 100, eight cells at once."""
    count = 800 if settings.quick else SERVED
    command = [sys.executable, "-m", "benchmarks.serving", str(count)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[1], check=False)
    if done.returncode:
        raise RuntimeError(f"the run of {count} requests failed: {done.stderr[-2000:]}")
    measured = json.loads(done.stdout.splitlines()[-1])
    return [
        Row("serving", f"memory after {count:,} requests", measured["end_mib"], "MiB"),
        Row("serving", "growth over the last three quarters of them", measured["growth_mib"], "MiB", "<= 8"),
        Row("serving", "requests of a few tokens", measured["requests_per_s"], "1/s"),
    ]


def measure_memory(count: int) -> dict[str, float]:
    """Serve so many requests, and see how resident memory grows from a quarter of them on.

    Args:
        count: of the requests, a multiple of 100.
    """
    torch.set_num_threads(1)
    settings = {"model": "micro", "serving": {**LENGTHS, "requests": 100}}
    process = ServingProcess(serving_config(settings, {}))
    texts = process.simulator.texts
    texts.own_nll(np.arange(len(texts)))  # what is kept of texts is bounded, and is no growth
    found: list[float] = []
    began = time.perf_counter()
    play(process, make_policy("wdmoe:0.8", process), range(count // 100), 8, lambda: found.append(resident_mib()))
    seconds = time.perf_counter() - began
    return {
        "end_mib": found[-1],
        "growth_mib": found[-1] - found[len(found) // 4],
        "requests_per_s": count / seconds,
    }


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


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m benchmarks.serving", description="Memory over many requests.")
    parser.add_argument("requests", type=int, help="requests of one episode, such as 10000")
    print(json.dumps(measure_memory(parser.parse_args().requests)))
