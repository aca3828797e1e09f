"""Train the gate of ``channel-gate``: ``python -m train.channel_gate``.

A few weights for each block, by the straight-through gradient of the return under ``latency_quality``: each candidate
of a token is drawn by the odds that the gate gives it, and the model runs under what was drawn.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import save
from torch import Tensor, nn

from train.folder import commit
from train.straight_through import episode_returns
from train.updates import LAST_LEARNING_RATE
from wdmoe_env import __version__
from wdmoe_env.checks import check_integer, check_number
from wdmoe_env.command import end_with
from wdmoe_env.config import EnvConfig
from wdmoe_env.metrics import reward_function
from wdmoe_env.observations import decode_observation
from wdmoe_env.policies.channel_gate import FIGURES, block_numbers, gate_candidates, gate_figures
from wdmoe_env.relaxed import Draw, relaxed_episodes
from wdmoe_env.simulator import Simulator
from wdmoe_env.writing import check_file, write_files

START = (3.0, 0.0, 0.0, -4.0, 4.0)
"""Weights before training, in the order of ``FIGURES``: mostly the own routing, and blind to the link."""


class ChannelGate(nn.Module):
    """The gate as an actor of relaxed episodes.

    Args:
        num_blocks: I.
        seed: of the draws.
    """

    def __init__(self, num_blocks: int, seed: int) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.tensor(START).repeat(num_blocks, 1))
        self.noise = torch.Generator().manual_seed(seed)

    def forward(self, observation: dict[str, Tensor]) -> Draw:
        """Draw a selection (N, J, E) of an observation, entries (N, ...)."""
        block = decode_observation({name: value.numpy() for name, value in observation.items()})
        own = self.weights[torch.from_numpy(block_numbers(block, len(self.weights)))]
        logits = torch.einsum("njef,nf->nje", torch.from_numpy(gate_figures(block)).float(), own)
        candidates = torch.from_numpy(gate_candidates(block))
        probs = logits.sigmoid() * candidates
        used = torch.rand(probs.shape, generator=self.noise) < probs
        return Draw(used, probs, candidates)


def train(
    config: EnvConfig, updates: int, batch: int, learning_rate: float, seed: int
) -> tuple[ChannelGate, list[float]]:
    """The trained gate, and the mean return of each update.

    Args:
        config: of the environment, with its reward.
        updates: gradient steps.
        batch: episodes of each.
        learning_rate: of Adam at the start; it falls linearly to a twentieth.
        seed: of episodes and draws.
    """
    simulator = Simulator(config)
    gate, reward = ChannelGate(simulator.sizes.num_blocks, seed), reward_function(config.reward, config.quality_weight)
    optimizer = torch.optim.Adam(gate.parameters(), lr=learning_rate)
    returns = []
    for update in range(updates):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * max(LAST_LEARNING_RATE, 1.0 - update / updates)
        generators = [np.random.default_rng([seed, update, n]) for n in range(batch)]
        value = episode_returns(relaxed_episodes(simulator, generators, gate), reward, 1.0).mean()
        optimizer.zero_grad()
        torch.autograd.backward(-value)
        optimizer.step()
        returns.append(value.item())
    return gate, returns


def main(argv: list[str] | None = None) -> None:
    """Train, write weights and card, and print the weights."""
    options = _parser().parse_args(argv)
    try:
        for name in ("updates", "batch"):
            check_integer(name, getattr(options, name), at_least=1)
        check_integer("seed", options.seed, at_least=0)
        check_number("learning_rate", options.learning_rate, at_least=0.0, at_most=10.0)
        if options.out.suffix != ".safetensors":
            raise ValueError(f"--out must end in .safetensors, got {options.out}")
        check_file(options.out)
        config = EnvConfig.make(
            devices=options.devices, reward="latency_quality", quality_weight=options.quality_weight
        )
        gate, returns = train(config, options.updates, options.batch, options.learning_rate, options.seed)
        weights = gate.weights.detach().numpy()
        card = json.dumps(_card(options, argv, returns), indent=2) + "\n"
        files = {options.out.name: save({"weights": weights}), options.out.with_suffix(".json").name: card.encode()}
        write_files(options.out.parent, files)
    except (ValueError, TypeError, OSError, FloatingPointError) as error:
        _parser().exit(2, f"python -m train.channel_gate: {' '.join(str(error).split())}\n")
    print(f"mean return of the first tenth {_tenth(returns, True):.4f}, of the last {_tenth(returns, False):.4f}")
    for number, row in enumerate(weights):
        print(f"block {number + 1}: " + ", ".join(f"{n} {v:+.2f}" for n, v in zip(FIGURES, row, strict=True)))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m train.channel_gate", description=__doc__)
    parser.add_argument("--devices", default="paper", help="set of devices (paper)")
    parser.add_argument("--quality-weight", type=float, default=10.0, help="cost of a nat of added NLL (10)")
    parser.add_argument("--updates", type=int, default=150, help="gradient steps (150)")
    parser.add_argument("--batch", type=int, default=32, help="windows of each (32)")
    parser.add_argument("--learning-rate", type=float, default=0.1, help="of Adam (0.1)")
    parser.add_argument("--seed", type=int, default=0, help="of episodes and draws (0)")
    parser.add_argument("--out", type=Path, default=Path("runs/channel-gate.safetensors"), help="file to write")
    return parser


def _card(options: argparse.Namespace, argv: list[str] | None, returns: list[float]) -> dict[str, Any]:
    """What the JSON beside the weights says of them."""
    words = sys.argv[1:] if argv is None else argv
    arguments = {name: value for name, value in vars(options).items() if name != "out"}
    return {
        "figures": FIGURES,
        "model": "tiny",
        "command": shlex.join(["python", "-m", "train.channel_gate", *words]),
        "arguments": arguments,
        "returns": {"first_tenth": _tenth(returns, True), "last_tenth": _tenth(returns, False)},
        "version": __version__,
        "commit": commit(),
    }


def _tenth(returns: list[float], first: bool) -> float:
    """Mean return of the first or the last tenth of the updates."""
    tenth = max(len(returns) // 10, 1)
    return float(np.mean(returns[:tenth] if first else returns[-tenth:]))


if __name__ == "__main__":
    end_with("python -m train.channel_gate", main)
