"""One interface for everything that acts: Stable-Baselines3's ``predict`` on observations.

A rule is a function from a ``Block`` to a selection and shares; ``RulePolicy`` makes a policy of it. The
observation alone is decoded, so a rule sees no more than a network does. What acts without a memory is a
``StatelessPolicy``: it says only how a batch of observations becomes actions.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np

from wdmoe_env.actions import ActionCodec
from wdmoe_env.observations import Block, Sizes, decode_observation, observation_space
from wdmoe_env.physics.latency import Bool, Float

ObservationMapping = Mapping[str, Any]
Rule = Callable[[Block], tuple[Bool, Float]]
State = tuple[Any, ...] | None

# Entries that a policy needs: those of every observation but the time of weights, which older ones lack and which is
# then 0. Hidden states are there where they are asked for.
ENTRIES = frozenset(observation_space(Sizes(1, 1, 1, 1, 1)).spaces) - {"weights_latency"}


class Policy(Protocol):
    """What acts: SB3's ``predict``."""

    def predict(
        self,
        observation: ObservationMapping,
        state: State = None,
        episode_start: Any = None,
        deterministic: bool = True,
    ) -> tuple[Any, State]:
        """Actions of observations.

        Args:
            observation: entries (N, ...), or without the leading axis.
            state: what the policy returned before; ``None`` at first.
            episode_start: (N,) True where an episode has just begun; a policy with memory forgets there.
            deterministic: whether a stochastic policy takes its mode.

        Returns:
            Actions with the leading axis that came in, and the next state.
        """
        ...


class StatelessPolicy(ABC):
    """A policy that decides on each observation alone.

    Args:
        codec: of the environment that it acts in.
    """

    def __init__(self, codec: Any) -> None:
        self.codec = codec

    @abstractmethod
    def actions(self, batch: dict[str, Any], deterministic: bool) -> Any:
        """Actions of N observations.

        Args:
            batch: entries (N, ...).
            deterministic: whether a stochastic policy takes its mode.
        """

    def predict(
        self,
        observation: ObservationMapping,
        state: State = None,
        episode_start: Any = None,
        deterministic: bool = True,
    ) -> tuple[Any, State]:
        """Actions of observations, and the state as it came; see ``Policy``.

        Raises:
            ValueError: see ``batched`` and ``actions``.
        """
        batch, single = batched(observation, self.codec)
        actions = self.actions(batch, deterministic)
        return (first(actions) if single else actions), state


class RulePolicy(StatelessPolicy):
    """A policy of a rule.

    Args:
        rule: from a block of N episodes to selection (N, J, E) and shares (N, U).
        codec: translates the decision into the environment's action.
    """

    def __init__(self, rule: Rule, codec: ActionCodec) -> None:
        super().__init__(codec)
        self.rule = rule

    def actions(self, batch: dict[str, Any], deterministic: bool) -> Any:
        """Actions of N observations; see ``StatelessPolicy.actions``.

        Args:
            batch: entries (N, ...).
            deterministic: of no effect.

        Raises:
            ValueError: see ``ActionCodec.encode``.
            TypeError: the rule gives something else than a selection and shares.
        """
        decided = self.rule(decode_observation(batch))
        if not isinstance(decided, tuple) or len(decided) != 2:
            raise TypeError(
                f"expected a rule to give selection (N, J, E) and shares (N, U), got {type(decided).__name__}"
            )
        return self.codec.encode(*decided)


def batched(observation: ObservationMapping, codec: ActionCodec) -> tuple[dict[str, Any], bool]:
    """The observation with a leading axis, and whether it had none.

    Args:
        observation: entries (N, ...), or without the leading axis.
        codec: of the environment that the policy was made for.

    Raises:
        ValueError: an array in place of entries with names, an entry too few, or the sizes of another environment.
    """
    if not hasattr(observation, "keys"):
        came = f"an array of shape {observation.shape}" if hasattr(observation, "shape") else type(observation).__name__
        raise ValueError(
            f"expected an observation whose entries have names, such as gate_probs, got {came}: a policy reads the "
            "environment's Dict observation, not a flattened one"
        )
    missing = sorted(ENTRIES - observation.keys())
    if missing:
        raise ValueError(f"expected a WDMoE observation, got one without {', '.join(missing)}")
    single = np.ndim(observation["gate_probs"]) == 2
    shapes = np.shape(observation["gate_probs"])[-2:], np.shape(observation["placement"])[-2:]
    sizes = codec.sizes
    own = (sizes.num_tokens, sizes.num_experts), (sizes.num_experts, sizes.num_devices)
    if shapes != own:
        raise ValueError(
            f"this policy was made for an environment with gate_probs {own[0]} and placement {own[1]}, got an "
            f"observation with {shapes[0]} and {shapes[1]}"
        )
    return {name: np.asarray(v)[None] if single else np.asarray(v) for name, v in observation.items()}, single


def first(actions: Any) -> Any:
    """The only action of a batch of one."""
    return {name: value[0] for name, value in actions.items()} if isinstance(actions, dict) else actions[0]
