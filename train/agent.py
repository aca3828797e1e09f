"""Train an agent with the algorithm that its arguments name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from train.arguments import Arguments, hyperparameters, parsed_settings
from train.ppo import train_ppo
from train.sac import train_sac
from train.sb3_ppo import train_sb3_ppo
from train.straight_through import train_straight_through
from wdmoe_env.writing import held_folder

TRAINERS: dict[str, Callable[[Arguments, dict[str, Any]], Path]] = {
    "ppo": train_ppo,
    "straight-through": train_straight_through,
    "sb3-ppo": train_sb3_ppo,
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
    settings = settings_of(arguments)
    with held_folder(Path(arguments.out)):
        if arguments.backend == "rllib":
            from train.rllib import train_rllib

            return train_rllib(arguments, settings)
        return TRAINERS[arguments.algorithm](arguments, settings)


def settings_of(arguments: Arguments) -> dict[str, Any]:
    """Settings of a run's algorithm: those of the table, and what its arguments change of them.

    Raises:
        ValueError: there are none, or a setting that the algorithm does not have.
    """
    algorithm = "sb3-ppo" if arguments.backend == "rllib" else arguments.algorithm  # RLlib has PPO of its own
    settings = hyperparameters(algorithm, arguments.env_id, arguments.reward)
    changed = parsed_settings(arguments.settings)
    unknown = sorted(set(changed) - set(settings))
    if unknown:
        raise ValueError(f"settings of {arguments.algorithm} are {', '.join(settings)}, got {unknown[0]!r}")
    return settings | changed
