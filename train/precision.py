"""What rounding costs the text, measured on training windows: the constants of the rule that decides bits.

``python -m train.precision`` runs the own routing and changes the messages of one range of gate weights alone, in all
blocks: it rounds them to 8 or 4 bits, or drops their experts. It prints the NLL added per changed message, in
millinats, and what that is over the squared gate weight.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from wdmoe_env.command import end_with
from wdmoe_env.config import EnvConfig
from wdmoe_env.episodes import tensors_of
from wdmoe_env.moe.lockstep import LockStep
from wdmoe_env.simulator import Simulator
from wdmoe_env.text.windows import TokenWindows

RANGES = ((0.05, 0.2), (0.2, 0.35), (0.35, 0.5), (0.5, 0.65), (0.65, 0.8), (0.8, 0.95), (0.0, 1.0))
CHANGES = (8, 4, "drop")
NAMES = {8: "8 bits", 4: "4 bits", "drop": "dropped"}

Change = Callable[[NDArray[np.float64]], tuple[torch.Tensor, torch.Tensor | None]]


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(prog="python -m train.precision", description=__doc__)
    parser.add_argument("--windows", type=int, default=512, help="training windows, from the first on")
    arguments = parser.parse_args(argv)
    config = EnvConfig(decide_bits="device")
    simulator = Simulator(config)
    texts = simulator.source.windows.rows(np.arange(arguments.windows))
    print("| gate weight | change | messages | added NLL per message, millinats | over the squared weight |")
    print("|---|---|---:|---:|---:|")
    for low, high in RANGES:
        for change in CHANGES:
            if change == "drop" and high > 0.5:  # the better of two experts stays
                continue
            added, count, squares = measured(simulator, texts, low, high, change)
            row = f"{1e3 * added / count:.4f} | {1e3 * added / squares:.3f}"
            print(f"| {low:g} to {high:g} | {NAMES[change]} | {count} | {row} |", flush=True)


def measured(
    simulator: Simulator, texts: TokenWindows, low: float, high: float, change: int | str
) -> tuple[float, int, float]:
    """Added NLL of all texts in nats, messages that were changed, and the sum of their squared gate weights.

    Args:
        simulator: of the configuration; a device holds one expert.
        texts: windows.
        low: least gate weight of a message that is changed.
        high: greatest one.
        change: bits, or ``"drop"``.
    """
    passes = LockStep(simulator.source.model, *tensors_of(texts), runner=simulator.runner)
    held = torch.from_numpy(simulator.world.placement > 0)
    count, squares = 0, 0.0
    while passes.blocks:
        probs, routed = (torch.cat([getattr(at, name) for at in passes.blocks]) for name in ("gate_probs", "routed"))
        weights = probs.where(routed, 0.0)
        weights = (weights / weights.sum(dim=1, keepdim=True)).double()
        changed = routed & (weights > low) & (weights <= high) & torch.from_numpy(texts.mask.reshape(-1, 1))
        count, squares = count + int(changed.sum()), squares + float((weights[changed] ** 2).sum())
        if isinstance(change, int):
            at_device = (changed.float() @ held[passes.blocks[0].index].float()) > 0
            passes.resume(None, torch.where(at_device, change, 16))
        else:
            passes.resume(routed & ~changed)
    nll = np.where(texts.mask, passes.scores().nll, 0.0).sum()
    return float(nll - own_nll(simulator, texts)), count, squares


def own_nll(simulator: Simulator, texts: TokenWindows) -> float:
    """NLL in nats of all tokens under the own routing, without rounding."""
    passes = LockStep(simulator.source.model, *tensors_of(texts))
    while passes.blocks:
        passes.resume(None)
    return float(np.where(texts.mask, passes.scores().nll, 0.0).sum())


if __name__ == "__main__":
    end_with("python -m train.precision", main)
