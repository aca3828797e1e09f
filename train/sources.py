"""Where the token-wise learner has its experience from: windows of text, or cells that serve requests."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from agents.cells import gather_cells
from agents.experience import BlockReward, Experience, gather
from train.arguments import Arguments
from train.updates import terms_of, windows_without
from wdmoe_env.metrics import reward_function
from wdmoe_env.policies.network import TokenSharedNetwork
from wdmoe_env.relaxed import RelaxedBlock
from wdmoe_env.serving.simulator import ServingSimulator
from wdmoe_env.simulator import Simulator

Generators = Sequence[Callable[[], np.random.Generator]]
Windows = NDArray[np.int64]


class Rollouts(Protocol):
    """How the settings of a learner say how to roll out."""

    @property
    def rollouts(self) -> int:
        """K of each window or cell."""

    @property
    def delay(self) -> str:
        """Which requests are behind a block."""

    @property
    def prices(self) -> str:
        """What a pair is said to cost."""


class Source(Protocol):
    """A way to gather experience.

    Attributes:
        steps: that count in a rollout: blocks of a window, requests of a cell.
    """

    steps: int

    def windows(self, draws: np.random.Generator, count: int) -> Windows:
        """Which windows an update is about, (count,)."""

    def gather(
        self, network: TokenSharedNetwork, generators: Generators, windows: Windows, noise: torch.Generator
    ) -> Experience:
        """Experience of W windows or cells.

        Args:
            network: draws.
            generators: W makers of the generator of a channel, and of a cell's requests.
            windows: (W,) of ``windows``.
            noise: of the draws.
        """


def source_of(arguments: Arguments, settings: Rollouts, simulator: Simulator | ServingSimulator) -> Source:
    """Windows or cells, by the simulator.

    Raises:
        ValueError: an unknown reward or domain, or requests of which a learner can make nothing.
    """
    if isinstance(simulator, ServingSimulator):
        return CellSource(arguments, settings, simulator)
    return WindowSource(arguments, settings, simulator)


class WindowSource:
    """Windows of text, each an episode.

    Args:
        arguments: of the run.
        settings: of the rollouts.
        simulator: of the training split.
    """

    def __init__(self, arguments: Arguments, settings: Rollouts, simulator: Simulator) -> None:
        self.simulator, self._settings = simulator, settings
        self.steps = simulator.sizes.num_blocks
        self._reward = block_reward(arguments)
        self._windows = windows_without(simulator, arguments.without_domains)

    def windows(self, draws: np.random.Generator, count: int) -> Windows:
        """See ``Source``."""
        return self._windows[draws.integers(len(self._windows), size=count)]

    def gather(
        self, network: TokenSharedNetwork, generators: Generators, windows: Windows, noise: torch.Generator
    ) -> Experience:
        """See ``Source``."""
        settings = self._settings
        return gather(
            network, self.simulator, generators, windows, settings.rollouts, self._reward, noise, settings.prices
        )


class CellSource:
    """Cells that serve requests.

    Args:
        arguments: of the run.
        settings: of the rollouts.
        simulator: of the training split.

    Raises:
        ValueError: kinds of text to leave out, or requests that do not end or are not the document's.
    """

    def __init__(self, arguments: Arguments, settings: Rollouts, simulator: ServingSimulator) -> None:
        serving = simulator.serving
        if arguments.without_domains:
            raise ValueError(f"without_domains is not known where requests are served, got {arguments.without_domains}")
        if serving.generate or serving.horizon_s is not None:
            raise ValueError(
                "expected serving with generate=false and no horizon_s to learn from, since a loss is that of whole "
                f"requests of the document, got generate={serving.generate} and horizon_s={serving.horizon_s}"
            )
        self.simulator, self._settings = simulator, settings
        self.steps = serving.requests

    def windows(self, draws: np.random.Generator, count: int) -> Windows:
        """Requests draw their texts themselves."""
        return np.arange(count)

    def gather(
        self, network: TokenSharedNetwork, generators: Generators, windows: Windows, noise: torch.Generator
    ) -> Experience:
        """See ``Source``."""
        settings = self._settings
        return gather_cells(
            network, self.simulator, generators, settings.rollouts, noise, settings.delay, settings.prices
        )


def block_reward(arguments: Arguments) -> BlockReward:
    """The environment's reward of a block before its last, where no text is lost yet.

    Raises:
        ValueError: an unknown reward.
    """
    function = reward_function(arguments.reward, arguments.quality_weight)

    def reward(block: RelaxedBlock) -> Tensor:
        rewards: Any = function(terms_of(block, torch.zeros_like(block.latency_ms)))
        return rewards

    return reward
