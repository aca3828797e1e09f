"""Many blocks while a device dies and comes back: is any pass lost?"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np

from wdmoe_env.testbed.local import local_testbed

BACK_S = 120.0
"""How long a device may take to come back, in seconds."""


@dataclass(slots=True)
class Soaked:
    """What came of it.

    Attributes:
        blocks: that ran.
        passes: whole episodes.
        lost_passes: episodes that did not end with a finite NLL.
        deaths: of the device.
        returns: times that it was back.
        unserved_blocks: blocks in which something was not served.
    """

    blocks: int = 0
    passes: int = 0
    lost_passes: int = 0
    deaths: int = 0
    returns: int = 0
    unserved_blocks: int = 0

    def sentence(self) -> str:
        """All of it."""
        return (
            f"{self.blocks} blocks in {self.passes} passes, of which {self.lost_passes} were lost; the device died "
            f"{self.deaths} times and came back {self.returns} times; in {self.unserved_blocks} blocks a pair was not "
            "served"
        )


def soak(model: str, devices: int, blocks: int, every: int, seed: int, settings: Mapping[str, Any]) -> Soaked:
    """Run blocks of the own routing on local devices; the last device is killed, and started again half-way.

    Args:
        model: as of ``load_model``.
        devices: how many.
        blocks: to run.
        every: blocks between a death and the next.
        seed: of the episodes.
        settings: of the inventory.

    Raises:
        ConnectionError: a device did not start, or did not come back within ``BACK_S``.
    """
    outcome, killed = Soaked(), False
    with local_testbed(model, devices, settings=settings) as (path, processes):
        env: Any = gym.make("wdmoe_env:WDMoE-Testbed-v0", inventory=path).unwrapped
        shares, runner = np.full(devices, 1.0 / devices), env.simulator.runner
        observation, _ = env.reset(seed=seed)
        while outcome.blocks < blocks:
            turn = outcome.blocks % every
            if turn == every // 2:
                processes[-1].kill()
                outcome.deaths, killed = outcome.deaths + 1, True
            if turn == 0 and killed:
                processes[-1].start_again(time.monotonic() + BACK_S)
                _wait_for_all(runner)
                outcome.returns, killed = outcome.returns + 1, False
            observation, _, ended, _, info = env.step(env.encode_action(observation["routed"] > 0, shares))
            outcome.blocks += 1
            outcome.unserved_blocks += info["unserved_pairs"] > 0
            if ended:
                outcome.passes += 1
                outcome.lost_passes += not np.isfinite(info["nll"])
                observation, _ = env.reset()
        env.close()
    return outcome


def _wait_for_all(runner: Any) -> None:
    until_s = time.monotonic() + BACK_S
    while not runner.available().all():
        if time.monotonic() > until_s:
            away = next(link.away for link in runner.links if link.away)
            raise ConnectionError(f"expected every device back within {BACK_S:g} s: {away}")
        time.sleep(0.05)
