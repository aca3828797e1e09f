"""The decision process of N episodes in lock-step: actions in; observations, rewards and info out.

Both faces, the single and the batched environment, are thin wrappers of this. Each lets one call run at a time: two
threads that step an environment at once would mix up its blocks.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any, NamedTuple, TypeVar, cast

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from wdmoe_env.actions import ActionCodec, Decided, settled_plan
from wdmoe_env.bits import parts_of
from wdmoe_env.config import EnvConfig
from wdmoe_env.metrics import REWARD_TERMS, MetricReader, evaluate_reward, reward_function
from wdmoe_env.observations import Block, Observation, Sizes, encode_observation, observation_space
from wdmoe_env.physics.latency import Float
from wdmoe_env.rollout.rollout import Rollout
from wdmoe_env.simulator import Simulator

Info = dict[str, Any]
Observed = Observation | NDArray[np.float32]
"""Observations of N episodes: entries (N, ...) by name, or one array (N, ...)."""

Observer = Callable[[Block], Observed]
"""Makes what a policy sees of a block, in memory of its own."""

Seen = Callable[[Block, Info], None]
"""Is told of each block that has run: what was decided on, and its info."""

ConfigT = TypeVar("ConfigT", bound=EnvConfig)
Method = TypeVar("Method", bound=Callable[..., Any])


def window_config(config: EnvConfig | Mapping[str, Any] | None, keywords: Mapping[str, Any]) -> EnvConfig:
    """The configuration of an environment whose episodes are windows of text.

    Args:
        config: the configuration, its dict, or nothing.
        keywords: fields that replace those of ``config``.

    Raises:
        ValueError, TypeError: a field is wrong, or there are requests to serve.
    """
    return without_requests(EnvConfig.make(config, **keywords))


def without_requests(config: ConfigT) -> ConfigT:
    """A configuration, where it has no requests to serve.

    Raises:
        ValueError: it has.
    """
    if config.serving is not None:
        raise ValueError("serving is a setting of the ids WDMoE-Serve-v0 and its like, got it in one without requests")
    return config


class Transition(NamedTuple):
    """One step of N episodes.

    Attributes:
        observation: entries (N, ...), or one array (N, ...).
        reward: (N,).
        terminated: whether the episodes ended; all of a rollout end together.
        info: entries (N, ...), and ``reward_terms`` with entries (N,).
    """

    observation: Observed
    reward: Float
    terminated: bool
    info: Info

    def rows(self, marked: NDArray[np.bool_]) -> Transition:
        """That of the marked episodes (N,)."""
        observation, info = _rows_of(self.observation, marked), _rows_of(self.info, marked)
        return Transition(observation, self.reward[marked], self.terminated, info)


class DecisionProcess:
    """Spaces, codec and step of a configuration.

    Args:
        config: the configuration.

    Attributes:
        simulator: model, text, radio and devices.
        codec: actions to decisions and back.
        observation_space: of a single environment.
        observe: makes what a policy sees of a block of N episodes: entries (N, ...), or one array.
    """

    def __init__(self, config: EnvConfig) -> None:
        self.config = config
        self._reward = reward_function(config.reward, config.quality_weight, config.energy_weight)
        self._metrics = MetricReader(config.requested)
        self.simulator = Simulator(config)
        self._parts, self._settled = parts_of(config, self.simulator.sizes, self.simulator.deployment)
        self.codec: Any
        self.observation_space: spaces.Space[Any]
        self.observe: Observer
        self.codec, self.observation_space, self.observe = self._faces(self.simulator.sizes)

    def _faces(self, sizes: Sizes) -> tuple[Any, spaces.Space[Any], Observer]:
        """The codec of actions, the space of observations, and what makes an observation of a block."""
        codec = ActionCodec(sizes, self._parts, self.config.action_type)
        away = self.config.devices.outage_mean_s > 0.0 or self.simulator.world.clock is not None
        space = observation_space(sizes, self.config.observe_hidden_states, availability=away)
        return codec, space, encode_observation

    def step(self, rollout: Rollout, decided: Decided, seen: Seen | None = None, observed: bool = True) -> Transition:
        """Carry out a decision for every episode of a rollout, and reward it.

        Args:
            rollout: N episodes that have not ended, with the reference that rewards are made of.
            decided: values (N, ...) of the parts that the action held, by name.
            seen: is told of the block, as a renderer is.
            observed: whether the next observation is wanted; else there is none.
        """
        block = rollout.block
        info = self.run(rollout, decided)
        if rollout.done:
            self._metrics.read(rollout.finish(), info)
        else:
            self._metrics.add_terms_to_come(info)
        reward = evaluate_reward(self._reward, info[REWARD_TERMS])
        if seen is not None:
            seen(block, info)
        observation = self.observe(rollout.block) if observed else {}
        return Transition(observation, reward, rollout.done, info)

    def run(self, rollout: Rollout, decided: Decided) -> Info:
        """Carry out a decision for every episode of a rollout without a reward, which texts of a caller have not.

        Args:
            rollout: N episodes that have not ended.
            decided: values (N, ...) of the parts that the action held, by name.

        Returns:
            Info of the block, entries (N, ...). Its ``reward_terms`` are those of the block: ``added_nll`` is not
            among them.
        """
        plan = settled_plan(rollout.block, decided, self.config.min_share, self._settled)
        return self._metrics.read(rollout.step(plan), {})


class Turn:
    """What one call of an environment holds at a time.

    Attributes:
        lock: held by the call under way.
    """

    def __init__(self) -> None:
        self.lock = threading.Lock()

    def __reduce__(self) -> tuple[type[Turn], tuple[()]]:
        """A copy is free."""
        return Turn, ()


def in_turn(method: Method) -> Method:
    """Let a method run only in the turn of its object, which has it as ``_turn``.

    A second call never waits: it is a ``RuntimeError``, and the first one goes on undisturbed.
    """

    @wraps(method)
    def alone(self: Any, *args: Any, **keywords: Any) -> Any:
        lock = self._turn.lock
        if not lock.acquire(blocking=False):
            raise RuntimeError(
                "expected one call at a time, but another one, mostly of another thread, is in reset() or step() of "
                "this environment"
            )
        try:
            return method(self, *args, **keywords)
        finally:
            lock.release()

    return cast("Method", alone)


def _rows_of(values: Any, marked: NDArray[np.bool_]) -> Any:
    """The marked rows of an array (N, ...), or of a mapping to such, which may nest."""
    if not isinstance(values, dict):
        return values[marked]
    return {name: _rows_of(value, marked) for name, value in values.items()}
