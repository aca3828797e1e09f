"""The policy that an algorithm of Stable-Baselines3 learned on a token or a price environment, as a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from wdmoe_env.optional import optional
from wdmoe_env.policies.policy_file import save_stock_policy
from wdmoe_env.policies.tokens import num_token_features
from wdmoe_env.price_env import PriceConfig

with optional("stable-baselines3", extra="sb3"):
    from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm


def export_policy(model: OnPolicyAlgorithm, path: str | Path, **card: Any) -> Path:
    """Write what PPO or A2C has learned as safetensors and JSON, which ``make_policy`` takes by its path.

    Args:
        model: with an ``MlpPolicy``, on a ``SB3VecEnv`` of ``WDMoE-Price-v0``, ``WDMoE-Serve-Price-v0`` or of a
            ``TokenVectorEnv``.
        path: of the weights; its suffix becomes .safetensors.
        **card: what else the JSON should say.

    Returns:
        Path of the weights.

    Raises:
        ValueError: another policy, or an environment of discrete prices, or on windows of a price for each block.
    """
    env: Any = model.get_env()
    target = Path(path).with_suffix(".safetensors")
    layers = [*model.policy.mlp_extractor.policy_net, model.policy.action_net]
    linear = [layer for layer in layers if isinstance(layer, nn.Linear)]
    if len(layers) != 2 * len(linear) - 1 or not all(isinstance(layer, nn.Tanh) for layer in layers[1::2]):
        raise ValueError(f"expected an MlpPolicy of linear layers with tanh between them, got {layers}")
    sizes, config = env.get_attr("simulator")[0].sizes, env.get_attr("config")[0]
    hidden_size = sizes.hidden_size if config.observe_hidden_states else 0
    described = {"family": type(model).__name__.lower(), "timesteps": model.num_timesteps, **card}
    if isinstance(config, PriceConfig):
        if config.action_type != "box" or (config.per_block and config.serving is None):
            raise ValueError("expected prices of a Box, on windows one a step, got an environment of other actions")
        described["price_per_ms"] = config.price_per_ms
        if config.serving is None:
            save_stock_policy(target, "price", linear, sizes.num_blocks, 0, described)
        else:
            described["slots"] = config.serving.slots
            save_stock_policy(target, "pass-price", linear, sizes.num_blocks, 0, described)
        return target
    if linear[0].in_features != num_token_features(sizes, bool(hidden_size)):
        raise ValueError(f"expected a policy of one token, got one that reads {linear[0].in_features} numbers")
    save_stock_policy(target, "token", linear, sizes.num_blocks, hidden_size, described)
    return target
