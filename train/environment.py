"""What every algorithm makes of its arguments: the environment, the size of the network, where it starts."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import gymnasium as gym

from train.arguments import Arguments, parsed_settings
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
        **_shape(arguments),
        "reward": arguments.reward,
        "quality_weight": arguments.quality_weight,
        "observe_hidden_states": arguments.hidden_states,
        "split": "train",
    }


def _shape(arguments: Arguments) -> dict[str, Any]:
    """Windows of so many tokens, or requests.

    Raises:
        ValueError: settings of the requests in another form.
    """
    if not arguments.serves:
        return {"num_tokens": arguments.num_tokens}
    settings = parsed_settings(arguments.serving, "serving")
    ranges = {name: tuple(map(int, value.split("-"))) for name, value in settings.items() if _is_range(value)}
    return {"serving": {"load": arguments.load, **settings, **ranges}}


def _is_range(value: Any) -> bool:
    return isinstance(value, str) and re.fullmatch("[0-9]{1,9}-[0-9]{1,9}", value) is not None


def architecture_of(arguments: Arguments, sizes: Sizes) -> Architecture:
    """The network for an environment; only one that reads hidden states is made for the sizes of its model."""
    queue = arguments.serving_features if arguments.serves else 0
    if not arguments.hidden_states:
        return Architecture(extra_experts=arguments.extra_experts, serving_features=queue)
    return Architecture(
        extra_experts=arguments.extra_experts,
        serving_features=queue,
        hidden_size=sizes.hidden_size,
        num_blocks=sizes.num_blocks,
        num_experts=sizes.num_experts,
    )


def start_from(arguments: Arguments, network: TokenSharedNetwork) -> None:
    """Load the weights that the run starts from, where it is told any.

    A policy that sees no queue starts a network that does with the weights of the queue at 0: it acts as before.

    Raises:
        ValueError: no policy, or one of another architecture.
    """
    if not arguments.start:
        return
    trained, _ = read_policy(str(weights_file(arguments.start) or arguments.start))
    found, wanted = getattr(trained, "architecture", None), network.architecture
    if found not in (wanted, replace(wanted, serving_features=0)):
        raise ValueError(f"expected a policy to start from of {network.architecture}, got one of {found}")
    network.load_state_dict({**network.state_dict(), **trained.state_dict()})
