"""Learned policies: a token-shared network that acts, and what reads one from its file."""

from __future__ import annotations

from typing import Any

import torch

from wdmoe_env.actions import ActionCodec, settled_plan
from wdmoe_env.config import DecisionKind
from wdmoe_env.policies.distribution import ActionDistribution
from wdmoe_env.policies.flat import FlatPolicy, flattened_sizes
from wdmoe_env.policies.network import TokenSharedNetwork, check_sizes
from wdmoe_env.policies.policy import ObservationMapping, Policy, State, batched, first
from wdmoe_env.policies.policy_file import read_policy


class LearnedPolicy:
    """A token-shared network that acts; where it learned no shares, they are solved exactly.

    Args:
        network: the actor.
        decision: which halves it learned.
        codec: of the environment it acts in.
    """

    def __init__(self, network: TokenSharedNetwork, decision: DecisionKind, codec: ActionCodec) -> None:
        self.network = network
        self.decision = decision
        self.codec = codec
        self._own = ActionCodec(codec.sizes, decision, "box")

    def predict(
        self,
        observation: ObservationMapping,
        state: State = None,
        episode_start: Any = None,
        deterministic: bool = True,
    ) -> tuple[Any, State]:
        """Actions of observations; see ``Policy``.

        Raises:
            ValueError: the policy reads hidden states, and the observation holds none, or those of another model; see
                ``batched``.
        """
        batch, single = batched(observation, self.codec)
        self._check_hidden_states(batch)
        tensors = {name: torch.as_tensor(value, dtype=torch.float32) for name, value in batch.items()}
        with torch.no_grad():
            distribution = ActionDistribution(self.network, tensors, self.decision)
            flat = distribution.act(deterministic).numpy()
        decided = self._own.decode(flat, (len(flat),))
        # Settled here too: shares that the network did not learn are solved for what the environment will run.
        plan = settled_plan(distribution.seen.pairs.block, decided, min_share=0.0)
        actions = self.codec.encode(plan.selection, plan.shares)
        return (first(actions) if single else actions), state

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
    actions = sizes.num_tokens * sizes.num_experts + sizes.num_devices
    if card["layers"][-1] != actions:
        raise ValueError(f"policy {spec} is for actions of {card['layers'][-1]} numbers, the environment has {actions}")
    if card["layers"][0] not in flattened_sizes(sizes):
        raise ValueError(
            f"policy {spec} is for observations of {card['layers'][0]} numbers, the environment has "
            f"{flattened_sizes(sizes)[0]}"
        )
    return FlatPolicy(network, codec)
