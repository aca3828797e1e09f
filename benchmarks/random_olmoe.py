"""Save a random OLMoE of four blocks of 64 experts, with the tokenizer of the model that ships.

``python -m benchmarks.random_olmoe runs/olmoe-64``
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

import torch
from transformers import OlmoeConfig, OlmoeForCausalLM

from wdmoe_env.command import end_with, mistakes_in_one_sentence
from wdmoe_env.writing import held_folder


def save(folder: Path) -> None:
    """Write the model and its tokenizer into a folder."""
    config = OlmoeConfig(
        vocab_size=4096,
        hidden_size=64,
        intermediate_size=32,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        num_experts=64,
        num_experts_per_tok=8,
        eos_token_id=0,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        OlmoeForCausalLM(config).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        text = (resources.files("wdmoe_env") / "assets" / "tiny" / name).read_text(encoding="utf-8")
        (folder / name).write_text(text, encoding="utf-8")


@mistakes_in_one_sentence("python -m benchmarks.random_olmoe")
def main(argv: Sequence[str] | None = None) -> int:
    """Save it; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.random_olmoe", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("folder", type=Path, help="where to save it")
    options = parser.parse_args(argv)
    with held_folder(options.folder) as folder:
        save(folder)
    return 0


if __name__ == "__main__":
    end_with("python -m benchmarks.random_olmoe", main)
