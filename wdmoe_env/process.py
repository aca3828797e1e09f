"""The decision process of N episodes in lock-step: actions in; observations, rewards and info out.

Both faces, the single and the batched environment, are thin wrappers of this. Each lets one call run at a time: two
threads that step an environment at once would mix up its blocks.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import wraps
from typing import Any, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from wdmoe_env.actions import ActionCodec, Decided, settled_plan
from wdmoe_env.bits import parts_of
from wdmoe_env.config import EnvConfig
from wdmoe_env.metrics import REWARD_TERMS, MetricReader, evaluate_reward, reward_function
from wdmoe_env.observations import Observation, encode_observation, observation_space
from wdmoe_env.physics.latency import Float
from wdmoe_env.rollout.rollout import Rollout
from wdmoe_env.simulator import Simulator

Info = dict[str, Any]
Method = TypeVar("Method", bound=Callable[..., Any])


def window_config(config: EnvConfig | Mapping[str, Any] | None, keywords: Mapping[str, Any]) -> EnvConfig:
    """The configuration of an environment whose episodes are windows of text.

    Args:
        config: the configuration, its dict, or nothing.
        keywords: fields that replace those of ``config``.

    Raises:
        ValueError, TypeError: a field is wrong, or there are requests to serve.
    """
    made = EnvConfig.make(config, **keywords)
    if made.serving is not None:
        raise ValueError("serving is a setting of the ids WDMoE-Serve-v0 and its like, got it in one without requests")
    return made


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
        self._reward = reward_function(config.reward, config.quality_weight, config.energy_weight)
        self._metrics = MetricReader(config.requested)
        self.simulator = Simulator(config)
        sizes = self.simulator.sizes
        parts, self._settled = parts_of(config, sizes, self.simulator.deployment)
        self.codec = ActionCodec(sizes, parts, config.action_type)
        away = config.devices.outage_mean_s > 0.0 or self.simulator.world.clock is not None
        self.observation_space = observation_space(sizes, config.observe_hidden_states, availability=away)

    def step(self, rollout: Rollout, decided: Decided) -> Transition:
        """Carry out a decision for every episode of a rollout, and reward it.

        Args:
            rollout: N episodes that have not ended, with the reference that rewards are made of.
            decided: values (N, ...) of the parts that the action held, by name.
        """
        info = self.run(rollout, decided)
        self._metrics.add_episode(info, rollout.finish() if rollout.done else None)
        reward = evaluate_reward(self._reward, info[REWARD_TERMS])
        return Transition(encode_observation(rollout.block), reward, rollout.done, info)

    def run(self, rollout: Rollout, decided: Decided) -> Info:
        """Carry out a decision for every episode of a rollout, of texts from anywhere, without a reward.

        Args:
            rollout: N episodes that have not ended.
            decided: values (N, ...) of the parts that the action held, by name.

        Returns:
            Info of the block, entries (N, ...). Its ``reward_terms`` are those of the block: ``added_nll`` is not
            among them.
        """
        plan = settled_plan(rollout.block, decided, self.config.min_share, self._settled)
        return self._metrics.of_block(rollout.step(plan))


class Turn:
    """A context that one call of an environment is in at a time. It refuses a second one and never waits."""

    def __init__(self) -> None:
        self._lock = threading.Lock()

    def __enter__(self) -> None:
        """Begin the turn.

        Raises:
            RuntimeError: another call is under way; it goes on undisturbed.
        """
        if not self._lock.acquire(blocking=False):
            raise RuntimeError(
                "expected one call at a time, but another one, mostly of another thread, is in reset() or step() of "
                "this environment"
            )

    def __exit__(self, *_: object) -> None:
        """End the turn."""
        self._lock.release()

    def __reduce__(self) -> tuple[type[Turn], tuple[()]]:
        """A copy is free."""
        return Turn, ()


def in_turn(method: Method) -> Method:
    """Let a method run only in the turn of its object, which has it as ``_turn``."""

    @wraps(method)
    def alone(self: Any, *args: Any, **keywords: Any) -> Any:
        with self._turn:
            return method(self, *args, **keywords)

    return cast("Method", alone)


def _rows_of(values: Mapping[str, Any], marked: NDArray[np.bool_]) -> dict[str, Any]:
    """The marked rows of entries (N, ...), which may nest."""
    return {name: _rows_of(v, marked) if isinstance(v, dict) else v[marked] for name, v in values.items()}
