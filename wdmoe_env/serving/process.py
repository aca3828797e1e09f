"""The decision process of cells that serve requests: actions in; observations, rewards and info out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from wdmoe_env.actions import ActionCodec, Decided, settled_plan
from wdmoe_env.config import DEVICE_SETS, EnvConfig
from wdmoe_env.metrics import REWARD_TERMS, MetricReader, Terms, evaluate_reward, reward_function
from wdmoe_env.observations import Block, Sizes, encode_observation, observation_space
from wdmoe_env.physics.latency import Float
from wdmoe_env.serving.cache import SlotCache
from wdmoe_env.serving.cell import QUEUE_ENTRIES
from wdmoe_env.serving.metrics import Served, block_figures, episode_figures
from wdmoe_env.serving.rollout import PassRollout, view_of
from wdmoe_env.serving.simulator import Episode, ServingSimulator
from wdmoe_env.serving_config import ServingConfig

REWARD = "serving"
BY_DIVERGENCE = "serving_divergence"
QUALITY_TERMS = {REWARD: "added_nll", BY_DIVERGENCE: "divergence"}
"""Rewards of cells by their names, and the term that says what a text lost."""

ConfigT = TypeVar("ConfigT", bound=EnvConfig)
MOST_QUEUE = 1e9

DEFAULTS: Mapping[str, Any] = {
    "serving": {},
    "reward": REWARD,
    "devices": dict(DEVICE_SETS["boards"]),
    "deployment": {"weight_bits": 4.5},
}
"""Settings of the ids ``WDMoE-Serve-*`` that differ from those of ``WDMoE-v0``; nested ones field by field."""


def serving_config(
    config: EnvConfig | Mapping[str, Any] | None,
    keywords: Mapping[str, Any],
    kind: type[ConfigT] = EnvConfig,  # type: ignore[assignment]
) -> ConfigT:
    """The configuration of an environment that serves: an ``EnvConfig`` is taken as it is, else ``DEFAULTS`` hold.

    Args:
        config: the configuration, its dict, or nothing.
        keywords: fields that replace those of ``config``.
        kind: of the configuration.

    Raises:
        ValueError, TypeError: a field is wrong.
    """
    if isinstance(config, EnvConfig):
        if config.serving is None and "serving" not in keywords:
            keywords = {**keywords, "serving": ServingConfig()}
        return kind.make(config, **keywords)
    given = {**(config or {}), **keywords}
    for name, default in DEFAULTS.items():
        value = given.get(name, default)
        given[name] = {**default, **value} if isinstance(value, Mapping) and isinstance(default, Mapping) else value
    return kind.make(given)


@dataclass(frozen=True, slots=True)
class ServingTransition:
    """One block of n cells.

    Attributes:
        reward: (n,).
        terminated: (n,) whether all requests have been served.
        truncated: (n,) whether the horizon has been reached.
        info: entries (n, ...).
    """

    reward: Float
    terminated: NDArray[np.bool_]
    truncated: NDArray[np.bool_]
    info: dict[str, Any]

    @property
    def ended(self) -> NDArray[np.bool_]:
        """(n,) whether the episode is over."""
        return self.terminated | self.truncated


class ServingProcess:
    """Spaces, codec and step of a configuration.

    Args:
        config: the configuration, see ``serving_config``.

    Attributes:
        config: as given.
        simulator: model, text, radio, devices and requests.
        codec: actions to decisions and back.
        observation_space: of a single environment: that of ``WDMoE-v0``, ``queue`` and ``row_phase``.

    Raises:
        ValueError: a reward that is not known here, or needs the document's text where the model says its own.
    """

    def __init__(self, config: EnvConfig) -> None:
        self.config = config
        self._serving = config.serving or ServingConfig()
        self._compares = config.reward == BY_DIVERGENCE
        if self._compares and self._serving.generate:
            raise ValueError("reward 'serving_divergence' needs generate=False: what the model says has no own routing")
        self._reward = self._reward_function()
        self._metrics = MetricReader(config.requested)
        self.simulator = ServingSimulator(config)
        self.codec: Any
        self.observation_space: spaces.Space[Any]
        self.codec, self.observation_space = self._faces(self.simulator.sizes)

    def _faces(self, sizes: Sizes) -> tuple[Any, spaces.Space[Any]]:
        """The codec of actions and the space of observations."""
        config = self.config
        away = config.devices.outage_mean_s > 0.0
        boxes = observation_space(sizes, config.observe_hidden_states, availability=away).spaces
        boxes["queue"] = spaces.Box(0.0, MOST_QUEUE, (len(QUEUE_ENTRIES),), dtype=np.float32)
        boxes["row_phase"] = spaces.Box(0.0, 1.0, (sizes.num_tokens,), dtype=np.float32)
        return ActionCodec(sizes, config.decision, config.action_type), spaces.Dict(boxes)

    def _reward_function(self) -> Any:
        config = self.config
        if config.reward in QUALITY_TERMS:
            of_text = QUALITY_TERMS[config.reward]
            return partial(serving_reward, self._serving.latency_scale_ms, config.quality_weight, of_text)
        if config.decide_bits is not None:
            raise ValueError(f"decide_bits is not known where requests are served, got {config.decide_bits!r}")
        if config.reward == "latency_divergence":
            raise ValueError(
                "reward 'latency_divergence' needs whole windows; where requests are served it is 'serving_divergence'"
            )
        try:
            return reward_function(config.reward, config.quality_weight, config.energy_weight)
        except ValueError as error:
            raise ValueError(str(error).replace("one of ", f"one of {', '.join(QUALITY_TERMS)}, ", 1)) from None

    def cache(self, count: int) -> SlotCache:
        """Room for the keys and values of ``count`` cells.

        Raises:
            ValueError: they are more than the memory of the machine.
        """
        return self.simulator.cache(count)

    def begin_pass(self, cache: SlotCache, episodes: Sequence[Episode], rows: NDArray[np.int64]) -> PassRollout:
        """Begin a pass of n cells; see ``PassRollout``.

        Args:
            cache: keys and values of all slots.
            episodes: n cells between two passes, none of them done.
            rows: (n,) number of each among the cells of the cache.
        """
        return PassRollout(self.simulator, cache, episodes, rows, self._compares)

    def step(self, rollout: PassRollout, decided: Decided) -> ServingTransition:
        """Carry out a decision for the block of n cells, and reward it.

        Args:
            rollout: a pass that has not ended.
            decided: values (n, ...) of the parts that the action held, by name.
        """
        plan = settled_plan(rollout.block, decided, self.config.min_share)
        result, served = rollout.step(plan)
        info = self._metrics.read(result, {})
        figures, terms = block_figures(served)
        info.update(figures)
        info[REWARD_TERMS].update(terms)
        reward = evaluate_reward(self._reward, info[REWARD_TERMS])
        cells = [episode.cell for episode in rollout.episodes]
        terminated = np.array([rollout.done and cell.done for cell in cells])
        truncated = np.array([rollout.done and not cell.done and cell.out_of_time for cell in cells])
        return ServingTransition(reward, terminated, truncated, info)

    def figures(self, episodes: Sequence[Episode]) -> Mapping[str, Any]:
        """What ``info`` gains where episodes have ended: entries (m, ...)."""
        documents = self.simulator.texts.documents
        return episode_figures([Served.of(episode, self._serving, documents) for episode in episodes])

    def observation(self, rollout: PassRollout) -> Any:
        """What the n cells of a pass see: entries (n, ...)."""
        return self._seen(rollout.block, rollout.episodes, rollout.row_phase)

    def last_observation(self, episodes: Sequence[Episode]) -> Any:
        """What m cells see whose episodes are over: entries (m, ...) of a block without a token."""
        nothing = np.zeros((len(episodes), self.simulator.sizes.num_tokens))
        return self._seen(view_of(self.simulator, episodes, nothing > 0).block([]), episodes, nothing)

    def _seen(self, block: Block, episodes: Sequence[Episode], row_phase: Float) -> Any:
        """What n cells see of a block: entries (n, ...); ``row_phase`` (n, J) is 1 where a row is of an answer."""
        return seen_in_cells(block, episodes, row_phase)


def seen_in_cells(block: Block, episodes: Sequence[Episode], row_phase: Float) -> dict[str, Any]:
    """The observation (n, ...) of a block of n cells, with what they see of their queues.

    Args:
        block: of n cells.
        episodes: the cells.
        row_phase: (n, J) 1 where a row is a generated token.
    """
    queue = np.stack([episode.cell.queue() for episode in episodes])
    return {
        **encode_observation(block),
        "queue": np.minimum(queue, MOST_QUEUE).astype(np.float32),
        "row_phase": row_phase.astype(np.float32),
    }


def serving_reward(latency_scale_ms: float, quality_weight: float, of_text: str, terms: Terms) -> Float:
    """Rewards (n,): minus the time in the system over the scale, and less the weighted loss of quality in nats.

    Over an episode the first part sums to minus the time in the system of all requests, and the second to minus the sum
    of the added NLL, or of the divergence, of all requests, each in nats a token.

    Args:
        latency_scale_ms: ms that cost a reward of 1.
        quality_weight: cost of a nat.
        of_text: the term that says what a text lost, ``"added_nll"`` or ``"divergence"``, which carries less noise.
        terms: entries (n,) of the reward.
    """
    return -terms["time_in_system_ms"] / latency_scale_ms - quality_weight * terms[of_text]
