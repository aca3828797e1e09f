"""What the algorithms of Stable-Baselines3 share: learning with curves and checkpoints, from where a run stopped."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from stable_baselines3.common.callbacks import BaseCallback

from train.arguments import Arguments
from train.checkpoint import check_weights
from train.folder import curves


class Checkpoints(BaseCallback):
    """Saves at the first rollout past every ``every`` environment steps, and stops where weights are not finite."""

    def __init__(self, save: Callable[[], None], every: int) -> None:
        super().__init__()
        self.save = save
        self.every = every
        self._saved_at = 0

    def _on_rollout_start(self) -> None:
        check_weights(self.model.policy, self.num_timesteps)
        if self.num_timesteps - self._saved_at >= self.every:
            self.save()
            self._saved_at = self.num_timesteps

    def _on_step(self) -> bool:
        return True


def learn(algorithm: Any, arguments: Arguments, save: Callable[[], None]) -> dict[str, Any]:
    """Learn for the steps that are left.

    Args:
        algorithm: of Stable-Baselines3, at the step where the run stands.
        arguments: of the run.
        save: writes a checkpoint.

    Returns:
        What the policy's card says of the result.

    Raises:
        ValueError: the weights are not finite any more; what was saved before stays.
    """
    log = curves(Path(arguments.out), algorithm.num_timesteps)
    algorithm.set_logger(log)
    try:
        algorithm.learn(
            max(arguments.timesteps - algorithm.num_timesteps, 0),
            callback=Checkpoints(save, arguments.checkpoint_every),
            reset_num_timesteps=not arguments.resume,
            progress_bar=arguments.progress,
        )
    except ValueError:  # torch and the environment say so of what comes out of such weights
        check_weights(algorithm.policy, algorithm.num_timesteps)
        raise
    finally:
        log.close()
    save()
    returns = [episode["r"] for episode in algorithm.ep_info_buffer or ()]
    return {"final_mean_return": np.mean(returns).item() if returns else None}
