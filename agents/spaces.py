"""Whether a token-shared network fits the spaces that a library hands to it."""

from __future__ import annotations

from typing import Any

from gymnasium import spaces

from wdmoe_env.actions import ActionCodec
from wdmoe_env.config import DecisionKind
from wdmoe_env.observations import Sizes
from wdmoe_env.policies.network import Architecture, check_sizes
from wdmoe_env.policies.policy import ENTRIES


def check_spaces(architecture: Architecture, decision: DecisionKind, observation: Any, action: Any) -> None:
    """Refuse spaces that the network cannot act in, before anything is learned.

    Args:
        architecture: of the network.
        decision: which halves its action holds.
        observation: space of a single environment's observations.
        action: space of its actions.

    Raises:
        ValueError: not the spaces of this package's environments, or those of another decision or another model.
    """
    if not isinstance(observation, spaces.Dict) or ENTRIES - set(observation.spaces):
        raise ValueError(f"expected the Dict observations of a WDMoE environment, not flattened, got {observation}")
    hidden = observation.spaces.get("hidden_states")
    if architecture.hidden_size and hidden is None:
        raise ValueError(
            "expected observations with hidden_states, which this network reads, got some without: make the "
            "environment with observe_hidden_states=True"
        )
    shapes = {name: space.shape or () for name, space in observation.spaces.items()}
    tokens, experts = shapes["gate_probs"]
    width = shapes.get("hidden_states", (0,))[-1]
    # No space tells the number of blocks: it is taken to be the network's own.
    sizes = Sizes(tokens, experts, shapes["placement"][1], architecture.num_blocks, width)
    check_sizes(architecture, sizes, "this network")
    expected = ActionCodec(sizes, decision, "box").space.shape
    if not isinstance(action, spaces.Box) or action.shape != expected:
        raise ValueError(f"expected box actions of shape {expected} for the decision {decision!r}, got {action}")
