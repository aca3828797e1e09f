"""The decision process of N episodes in lock-step: actions in; observations, rewards and info out.

Both faces, the single and the batched environment, are thin wrappers of this.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wdmoe_env.actions import ActionCodec, Decided, settled_plan
from wdmoe_env.config import EnvConfig
from wdmoe_env.metrics import REWARD_TERMS, MetricReader, evaluate_reward, reward_function
from wdmoe_env.observations import Observation, encode_observation, observation_space
from wdmoe_env.physics.latency import Float
from wdmoe_env.simulator import Rollout, Simulator

Info = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Transition:
    """One step of N episodes.

    Attributes:
        observation: entries (N, ...).
        reward: (N,).
        terminated: whether the episodes ended; all of a rollout end together.
        info: entries (N, ...), and ``reward_terms`` with entries (N,).
    """

    observation: Observation
    reward: Float
    terminated: bool
    info: Info

    def rows(self, marked: NDArray[np.bool_]) -> Transition:
        """That of the marked episodes (N,)."""
        parts = _rows_of(self.observation, marked), self.reward[marked], self.terminated, _rows_of(self.info, marked)
        return Transition(*parts)


class DecisionProcess:
    """Spaces, codec and step of a configuration.

    Args:
        config: the configuration.

    Attributes:
        simulator: model, text, radio and devices.
        codec: actions to decisions and back.
        observation_space: of a single environment.
    """

    def __init__(self, config: EnvConfig) -> None:
        self.config = config
        self._reward = reward_function(config.reward, config.quality_weight)
        self._metrics = MetricReader()
        self.simulator = Simulator(config)
        sizes = self.simulator.sizes
        self.codec = ActionCodec(sizes, config.decision, config.action_type)
        self.observation_space = observation_space(sizes, config.observe_hidden_states)

    def step(self, rollout: Rollout, decided: Decided) -> Transition:
        """Carry out a decision for every episode of a rollout.

        Args:
            rollout: N episodes that have not ended.
            decided: values (N, ...) of the parts that the action held, by name.
        """
        plan = settled_plan(rollout.block, decided, self.config.min_share)
        block = rollout.step(plan)
        episode = rollout.finish() if rollout.done else None
        info = self._metrics.info(block, episode)
        reward = evaluate_reward(self._reward, info[REWARD_TERMS])
        return Transition(encode_observation(rollout.block), reward, rollout.done, info)


def _rows_of(values: Mapping[str, Any], marked: NDArray[np.bool_]) -> dict[str, Any]:
    """The marked rows of entries (N, ...), which may nest."""
    return {name: _rows_of(v, marked) if isinstance(v, dict) else v[marked] for name, v in values.items()}
