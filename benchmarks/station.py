"""Memory of a base station whose experts are elsewhere, beside the whole model's: ``python -m benchmarks.station``.

A random OLMoE of 64 experts a block, large enough that weights outweigh the libraries, is saved into a temporary
folder. One process loads it whole and runs a pass. Another is a base station, whose experts a device process holds, and
runs the same pass. Both tell their resident memory after it, and the most that they ever had.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym
import torch
from transformers import OlmoeConfig, OlmoeForCausalLM

from benchmarks.growth import peak_mib, resident_mib
from benchmarks.step import TINY
from wdmoe_env.testbed.local import local_testbed

TARGET = 0.40
"""Part of the whole model's memory that a base station may take."""

SIZES = {
    "hidden_size": 512,
    "intermediate_size": 512,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
    "num_experts": 64,
    "num_experts_per_tok": 8,
}


def save(folder: Path) -> float:
    """Save the model and the tokenizer of the one that ships; returns MiB of its weights."""
    vocabulary = json.loads((TINY / "config.json").read_text(encoding="utf-8"))["vocab_size"]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = OlmoeForCausalLM(OlmoeConfig(vocab_size=vocabulary, eos_token_id=0, **SIZES))
    model.save_pretrained(folder)
    for file in TINY.glob("tokenizer*"):
        shutil.copy(file, folder)
    return sum(one.numel() * one.element_size() for one in model.parameters()) / 2**20


def measure(name: str, keywords: dict[str, Any]) -> dict[str, float]:
    """Memory of this process after an episode of an environment, MiB."""
    env = gym.make(f"wdmoe_env:{name}", num_tokens=8, **keywords)
    env.reset(seed=0)
    ended = False
    while not ended:
        *_, ended, _, _ = env.step(env.action_space.sample())
    found = {"resident": resident_mib(), "peak": peak_mib()}
    env.close()
    return found


def in_own_process(name: str, keywords: dict[str, Any]) -> dict[str, float]:
    """What ``measure`` gives in a process of its own.

    Raises:
        RuntimeError: it failed.
    """
    command = [sys.executable, "-m", "benchmarks.station", "--one", json.dumps([name, keywords])]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[1], check=False)
    if done.returncode:
        raise RuntimeError(f"the measurement of {name} failed: {done.stderr[-2000:]}")
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Print both, and their ratio; 1 where it misses its target."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.station", description=__doc__)
    parser.add_argument("--one", metavar="JSON", help="name and keywords of the only process to measure, as a list")
    chosen = parser.parse_args(argv)
    if chosen.one is not None:
        print(json.dumps(measure(*json.loads(chosen.one))))
        return 0
    with tempfile.TemporaryDirectory() as folder:
        weights = save(Path(folder))
        whole = in_own_process("WDMoE-v0", {"model": folder, "devices": {"count": 1}})
        with local_testbed(folder, 1) as (inventory, _):
            station = in_own_process("WDMoE-Testbed-v0", {"inventory": str(inventory)})
    print(f"weights {weights:,.0f} MiB")
    for kind in whole:
        ratio = station[kind] / whole[kind]
        print(f"{kind}: whole {whole[kind]:,.0f} MiB, base station {station[kind]:,.0f} MiB, {100 * ratio:.1f} %")
    return 0 if station["resident"] <= TARGET * whole["resident"] else 1


if __name__ == "__main__":
    sys.exit(main())
