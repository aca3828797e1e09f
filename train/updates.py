"""What trainers with numbered updates share: the loop over them, with curves and checkpoints, and parts of losses."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from stable_baselines3.common.logger import Logger
from torch import Tensor
from tqdm import tqdm

from train.arguments import Arguments
from train.checkpoint import check_weights
from train.folder import curves
from wdmoe_env.actions import LOGIT_SCALE
from wdmoe_env.policies.features import Features
from wdmoe_env.policies.network import TokenSharedNetwork
from wdmoe_env.relaxed import RelaxedBlock
from wdmoe_env.simulator import Simulator

LOG_EVERY = 10  # updates
LAST_LEARNING_RATE = 0.05  # of the first


class Updates(Protocol):
    """A network that learns by numbered updates."""

    network: TokenSharedNetwork

    def update(self, number: int, progress: float) -> dict[str, float]:
        """Learn once; what the update came to, by name."""

    def save(self, path: Path, timesteps: int) -> None:
        """Write a checkpoint."""


def terms_of(block: RelaxedBlock, lost: Tensor) -> dict[str, Any]:
    """Terms (N,) of the environment's reward, with the gradients of a relaxed block.

    Args:
        block: of N episodes.
        lost: (N,) what the text lost, in nats, by its NLL or its divergence; 0 before the last block.
    """
    return {
        "gate_weight_served": block.gate_weight_served,
        "block_latency_ms": block.latency_ms,
        "vanilla_latency_ms": block.vanilla_latency_ms,
        "wlr": block.gate_weight_served / block.latency_ms,
        "latency_ratio": block.latency_ms / block.vanilla_latency_ms,
        "added_nll": lost,
        "divergence": lost,
    }


def share_loss(network: TokenSharedNetwork, seen: Features, selection: Tensor, shares: Tensor) -> Tensor:
    """Mean over loaded devices of the squared error in the logarithm of the share, against the optimum.

    Args:
        network: whose shares they are.
        seen: what it looks at, of N blocks.
        selection: (N, J, E) what runs.
        shares: (N, U) the optimum for it.
    """
    logits, loaded = network.share_logits(seen, selection)
    scaled = (LOGIT_SCALE * logits).masked_fill(~loaded, -torch.inf).log_softmax(-1)
    error = torch.where(loaded, scaled - shares.clamp_min(1e-6).log(), 0.0)
    return (error**2).sum() / loaded.sum()


def windows_without(simulator: Simulator, domains: str) -> NDArray[np.int64]:
    """Indices of the windows of all kinds of text but some.

    Args:
        simulator: of the windows.
        domains: names with commas between.

    Raises:
        ValueError: an unknown kind, or none is left.
    """
    names = np.array(simulator.source.windows.domains)
    out = [name.strip() for name in domains.split(",") if name.strip()]
    unknown = sorted(set(out) - set(names))
    left = np.flatnonzero(~np.isin(names, out))
    if unknown or not left.size:
        raise ValueError(f"without_domains must leave some of {', '.join(sorted(set(names)))}, got {domains!r}")
    return left


def learn(
    trainer: Updates, arguments: Arguments, checkpoint: Path, done: int, steps: int, log_every: int = LOG_EVERY
) -> dict[str, float]:
    """Learn for the updates that are left, with curves and checkpoints.

    Args:
        trainer: where the run stands.
        arguments: of the run.
        checkpoint: path of it.
        done: updates so far.
        steps: environment steps of an update.
        log_every: updates between two points of the curves.

    Returns:
        What the last update came to, by name; nothing where none was left.

    Raises:
        ValueError: the weights are not finite any more; what was saved before stays.
    """
    updates = -(-arguments.timesteps // steps)
    every = max(1, arguments.checkpoint_every // steps)
    results: dict[str, float] = {}
    unit = "request" if arguments.serves else "block"
    progress = tqdm(total=updates * steps, initial=done * steps, unit=unit, disable=not arguments.progress)
    with closing(curves(Path(arguments.out), done * steps)) as log, progress as bar:
        for number in range(done, updates):
            results = trainer.update(number, progress=number / updates)
            now, last = (number + 1) * steps, number + 1 == updates
            check_weights(trainer.network, now)
            bar.update(steps)
            if last or (number + 1) % log_every == 0:
                bar.set_postfix({name: f"{value:.4g}" for name, value in results.items()})
                record(log, results, now)
            if last or (number + 1) % every == 0:
                trainer.save(checkpoint, now)
    return results


def record(log: Logger, results: dict[str, float], timesteps: int) -> None:
    """Add a point to the curves."""
    for name, value in results.items():
        log.record(f"train/{name}", value)
    log.record("time/total_timesteps", timesteps)
    log.dump(timesteps)
