"""Learned policies: a token-shared network that acts, and what reads one from its file."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from wdmoe_env.actions import ActionCodec, settled_plan
from wdmoe_env.config import DecisionKind
from wdmoe_env.observations import Sizes
from wdmoe_env.policies.card import Card
from wdmoe_env.policies.distribution import ActionDistribution
from wdmoe_env.policies.flat import FlatPolicy, flattened_sizes
from wdmoe_env.policies.network import TokenSharedNetwork, check_sizes
from wdmoe_env.policies.policy import Policy, StatelessPolicy
from wdmoe_env.policies.policy_file import read_policy
from wdmoe_env.policies.price import QUEUE_FEATURES, num_price_features
from wdmoe_env.policies.stock import PassPricePolicy, PricePolicy, TokenPolicy
from wdmoe_env.policies.tokens import CHOICE_NAMES, num_token_features


class LearnedPolicy(StatelessPolicy):
    """A token-shared network that acts; where it learned no shares, they are solved exactly.

    Args:
        network: the actor.
        decision: which halves it learned.
        codec: of the environment it acts in.
    """

    def __init__(self, network: TokenSharedNetwork, decision: DecisionKind, codec: ActionCodec) -> None:
        super().__init__(codec)
        self.network = network
        self.decision = decision
        self._own = ActionCodec(codec.sizes, decision, "box")

    def actions(self, batch: dict[str, Any], deterministic: bool) -> Any:
        """Actions of N observations; see ``StatelessPolicy.actions``.

        Args:
            batch: entries (N, ...).
            deterministic: whether to take the most probable action.

        Raises:
            ValueError: the policy reads hidden states, and the observation holds none, or those of another model.
        """
        self._check_hidden_states(batch)
        tensors = {name: torch.as_tensor(value, dtype=torch.float32) for name, value in batch.items()}
        with torch.no_grad():
            distribution = ActionDistribution(self.network, tensors, self.decision)
            flat = distribution.act(deterministic).numpy()
        decided = self._own.decode(flat, (len(flat),))
        # Settled here too: shares that the network did not learn are solved for what the environment will run.
        plan = settled_plan(distribution.seen.pairs.block, decided, min_share=0.0)
        return self.codec.encode(plan.selection, plan.shares)

    def _check_hidden_states(self, batch: dict[str, Any]) -> None:
        size = self.network.architecture.hidden_size
        if size and "hidden_states" not in batch:
            raise ValueError(
                "expected an observation with hidden_states, which this policy reads, got one without: make the "
                "environment with observe_hidden_states=True"
            )
        if size and batch["hidden_states"].shape[-1] != size:
            raise ValueError(
                f"this policy reads hidden states of {size} numbers, got {batch['hidden_states'].shape[-1]}"
            )


def _token_policy(network: nn.Module, card: Card, codec: ActionCodec, name: str) -> Policy:
    _check_stock(card, codec.sizes, name, num_token_features(codec.sizes), len(CHOICE_NAMES))
    return TokenPolicy(network, codec, card["num_blocks"], card["hidden_size"])


def _price_policy(network: nn.Module, card: Card, codec: ActionCodec, name: str) -> Policy:
    _check_stock(card, codec.sizes, name, num_price_features(codec.sizes), 1)
    return PricePolicy(network, codec, card["num_blocks"], float(card["price_per_ms"]))


def _pass_price_policy(network: nn.Module, card: Card, codec: ActionCodec, name: str) -> Policy:
    outputs = 1 if card["layers"][-1] == 1 else codec.sizes.num_blocks
    _check_stock(card, codec.sizes, name, num_price_features(codec.sizes) + QUEUE_FEATURES, outputs)
    return PassPricePolicy(network, codec, card["num_blocks"], float(card["price_per_ms"]), card["slots"])


STOCK: dict[str, Callable[[nn.Module, Card, ActionCodec, str], Policy]] = {
    "token": _token_policy,
    "price": _price_policy,
    "pass-price": _pass_price_policy,
}
"""From network, card, codec and name to a policy that a stock algorithm learned."""


def _check_stock(card: Card, sizes: Sizes, name: str, inputs: int, outputs: int) -> None:
    expected = sizes.num_blocks, inputs + card["hidden_size"], outputs
    found = card["num_blocks"], card["layers"][0], card["layers"][-1]
    if found != expected:
        raise ValueError(
            f"{name} is for {found[0]} blocks with {found[1]} features and {found[2]} outputs, the environment has "
            f"{expected[0]} blocks with {expected[1]} and {expected[2]}"
        )


def load_policy(spec: str, codec: ActionCodec) -> Policy:
    """The policy of a file.

    Args:
        spec: path of the weights, of the JSON, or of both without suffix.
        codec: of the environment it will act in.

    Raises:
        ValueError: what ``read_policy`` raises, or made for other sizes than the environment's.
    """
    network, card = read_policy(spec)
    sizes = codec.sizes
    if isinstance(network, TokenSharedNetwork):
        check_sizes(network.architecture, sizes, f"policy {spec}")
        return LearnedPolicy(network, card["decision"], codec)
    if card["network"] in STOCK:
        return STOCK[card["network"]](network, card, codec, f"policy {spec}")
    actions = sizes.num_tokens * sizes.num_experts + sizes.num_devices
    if card["layers"][-1] != actions:
        raise ValueError(f"policy {spec} is for actions of {card['layers'][-1]} numbers, the environment has {actions}")
    if card["layers"][0] not in flattened_sizes(sizes):
        raise ValueError(
            f"policy {spec} is for observations of {card['layers'][0]} numbers, the environment has "
            f"{flattened_sizes(sizes)[0]}"
        )
    return FlatPolicy(network, codec)
