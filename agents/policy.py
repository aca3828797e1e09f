"""One interface for everything that acts: Stable-Baselines3's ``predict`` on observations.

A rule is a function from a ``Block`` to a selection and shares; ``RulePolicy`` makes a policy of it. The
observation alone is decoded, so a rule sees no more than a network does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np

from wdmoe_env.actions import ActionCodec
from wdmoe_env.observations import Block, decode_observation
from wdmoe_env.physics.latency import Bool, Float

Observation = Mapping[str, Any]
Rule = Callable[[Block], tuple[Bool, Float]]
State = tuple[Any, ...] | None


class Policy(Protocol):
    """What acts: SB3's ``predict``."""

    def predict(
        self,
        observation: Observation,
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


class RulePolicy:
    """A policy of a rule.

    Args:
        rule: from a block of N episodes to selection (N, J, E) and shares (N, U).
        codec: translates the decision into the environment's action.
    """

    def __init__(self, rule: Rule, codec: ActionCodec) -> None:
        self.rule = rule
        self.codec = codec

    def predict(
        self,
        observation: Observation,
        state: State = None,
        episode_start: Any = None,
        deterministic: bool = True,
    ) -> tuple[Any, State]:
        """Actions of observations; see ``Policy``."""
        batch, single = batched(observation)
        actions = self.codec.encode(*self.rule(decode_observation(batch)))
        return (first(actions) if single else actions), state


def batched(observation: Observation) -> tuple[dict[str, Any], bool]:
    """The observation with a leading axis, and whether it had none."""
    single = np.ndim(observation["gate_probs"]) == 2
    return {name: np.asarray(v)[None] if single else np.asarray(v) for name, v in observation.items()}, single


def first(actions: Any) -> Any:
    """The only action of a batch of one."""
    return {name: value[0] for name, value in actions.items()} if isinstance(actions, dict) else actions[0]
