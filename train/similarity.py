"""How far the experts of each block are from each other, on calibration text: ``python -m train.similarity``.

D[i, e, f] = E |E_e(x) - E_f(x)| / E |E_e(x)| over the hidden states x that reach block i under the model's own routing
on windows of the training split. ``wdmoe_env.policies.similar.SiftRule`` takes the file that it writes.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import save

from wdmoe_env.episodes import EpisodeSource, load_episodes
from wdmoe_env.moe.hook import BlockInput
from wdmoe_env.moe.runner import run_expert
from wdmoe_env.physics.latency import Float
from wdmoe_env.writing import write_whole


def expert_distances(source: EpisodeSource, windows: int, seed: int) -> Float:
    """Distances (I, E, E) of a model's experts.

    Args:
        source: the model and its windows.
        windows: how many of them.
        seed: of which.
    """
    model, count = source.model, len(source.windows)
    drawn = np.sort(np.random.default_rng(seed).choice(count, min(windows, count), replace=False))
    mask = torch.from_numpy(source.windows.mask[drawn]).flatten()
    found = np.zeros((model.num_blocks, model.num_experts, model.num_experts))

    def measure(at: BlockInput) -> None:
        states = at.hidden_states[mask]
        outputs = torch.stack([run_expert(model.experts[at.index], e, states) for e in range(model.num_experts)])
        for expert, own in enumerate(outputs):
            apart = (own - outputs).norm(dim=-1).mean(-1) / own.norm(dim=-1).mean()
            found[at.index, expert] = apart.double().numpy(force=True)

    with torch.no_grad():
        model.logits_under(measure, *source.tokens(drawn)[:2])
    return found


def main(argv: list[str] | None = None) -> None:
    """Measure, write the file, and print the mean distance of each block."""
    parser = argparse.ArgumentParser(prog="python -m train.similarity", description=__doc__)
    parser.add_argument("--model", default="tiny", help="language model (tiny)")
    parser.add_argument("--windows", type=int, default=512, help="training windows of 32 tokens (512)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the windows (0)")
    parser.add_argument("--out", type=Path, default=Path("runs/similarity.safetensors"), help="file to write")
    options = parser.parse_args(argv)
    if options.windows < 1:
        parser.error(f"windows must be at least 1, got {options.windows}")
    try:
        source = load_episodes(options.model, 32, "train", "cpu", "float32")
        distances = expert_distances(source, options.windows, options.seed)
        options.out.parent.mkdir(parents=True, exist_ok=True)
        write_whole(options.out, save({"distances": distances.astype(np.float32)}))
    except (ValueError, OSError) as error:
        parser.error(str(error))
    apart = ~np.eye(distances.shape[-1], dtype=bool)
    for block, each in enumerate(distances):
        print(f"block {block + 1}: mean distance {each[apart].mean():.3f}, least {each[apart].min():.3f}")


if __name__ == "__main__":
    main(sys.argv[1:])
