"""Train an agent with the algorithm that its arguments name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from train.arguments import Arguments, hyperparameters
from train.ppo import train_ppo
from train.sac import train_sac
from train.straight_through import train_straight_through
from wdmoe_env.writing import held_folder

TRAINERS: dict[str, Callable[[Arguments, dict[str, Any]], Path]] = {
    "ppo": train_ppo,
    "straight-through": train_straight_through,
    "sac": train_sac,
}


def train(arguments: Arguments) -> Path:
    """Train, and save the policy.

    Returns:
        Path of the policy's weights; the JSON lies beside it.

    Raises:
        ValueError, TypeError, OSError: an argument is wrong, the run folder is in use, or cannot be written to, or
            it holds no checkpoint of this run to resume; nothing was trained.
        ImportError: the backend is not installed; the message says how to install it.
    """
    arguments.check()
    settings = hyperparameters(arguments.algorithm, arguments.env_id, arguments.reward)
    with held_folder(Path(arguments.out)):
        if arguments.backend == "rllib":
            from train.rllib import train_rllib

            return train_rllib(arguments, settings)
        return TRAINERS[arguments.algorithm](arguments, settings)
