"""What every algorithm makes of its arguments: the environment, the size of the network, where it starts."""

from __future__ import annotations

from typing import Any

import gymnasium as gym

from train.arguments import Arguments
from wdmoe_env.observations import Sizes
from wdmoe_env.policies.network import Architecture, TokenSharedNetwork
from wdmoe_env.policies.policy_file import read_policy
from wdmoe_env.policies.registry import weights_file


def make_env(arguments: Arguments, num_envs: int) -> Any:
    """The batched environment over the training split."""
    name, keywords = f"wdmoe_env:{arguments.env_id}", env_keywords(arguments)
    return gym.make_vec(name, num_envs=num_envs, autoreset_mode="SAME_STEP", **keywords)


def env_keywords(arguments: Arguments) -> dict[str, Any]:
    """Keywords of the environment."""
    return {
        "model": arguments.model,
        "devices": arguments.devices,
        "num_tokens": arguments.num_tokens,
        "reward": arguments.reward,
        "quality_weight": arguments.quality_weight,
        "observe_hidden_states": arguments.hidden_states,
        "split": "train",
    }


def architecture_of(arguments: Arguments, sizes: Sizes) -> Architecture:
    """The network for an environment; only one that reads hidden states is made for the sizes of its model."""
    if not arguments.hidden_states:
        return Architecture(extra_experts=arguments.extra_experts)
    return Architecture(
        extra_experts=arguments.extra_experts,
        hidden_size=sizes.hidden_size,
        num_blocks=sizes.num_blocks,
        num_experts=sizes.num_experts,
    )


def start_from(arguments: Arguments, network: TokenSharedNetwork) -> None:
    """Load the weights that the run starts from, where it is told any.

    Raises:
        ValueError: no policy, or one of another architecture.
    """
    if not arguments.start:
        return
    trained, _ = read_policy(str(weights_file(arguments.start) or arguments.start))
    found = getattr(trained, "architecture", None)
    if found != network.architecture:
        raise ValueError(f"expected a policy to start from of {network.architecture}, got one of {found}")
    network.load_state_dict(trained.state_dict())
