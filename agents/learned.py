"""Learned policies: a token-shared network that acts, and what reads one from its file."""

from __future__ import annotations

from typing import Any

import torch

from agents.distribution import ActionDistribution
from agents.flat import FlatPolicy
from agents.network import TokenSharedNetwork
from agents.policy import Observation, Policy, State, batched, first
from agents.policy_file import read_policy
from agents.rules import with_optimal_shares
from wdmoe_env.actions import ActionCodec, repair_selection
from wdmoe_env.config import DecisionKind
from wdmoe_env.observations import Sizes


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
        sizes = Sizes(*codec.scores_shape, codec.num_devices, 0, 0)
        self._own = ActionCodec(sizes, decision, "box")

    def predict(
        self,
        observation: Observation,
        state: State = None,
        episode_start: Any = None,
        deterministic: bool = True,
    ) -> tuple[Any, State]:
        """Actions of observations; see ``Policy``.

        Raises:
            ValueError: the policy reads hidden states, and the observation holds none.
        """
        batch, single = batched(observation)
        if self.network.architecture.hidden_size and "hidden_states" not in batch:
            raise ValueError(
                "expected an observation with hidden_states, which this policy reads, got one without: make the "
                "environment with observe_hidden_states=True"
            )
        tensors = {name: torch.as_tensor(value, dtype=torch.float32) for name, value in batch.items()}
        with torch.no_grad():
            distribution = ActionDistribution(self.network, tensors, self.decision)
            flat = distribution.act(deterministic).numpy()
        decided, block = self._own.decode(flat, (len(flat),)), distribution.seen.pairs.block
        selection = block.routed
        if decided.selection is not None:  # mended here too: the shares are for what the environment will run
            selection, _ = repair_selection(decided.selection, block.gate_probs, block.token_mask)
        shares = with_optimal_shares(block, selection)[1] if decided.shares is None else decided.shares
        actions = self.codec.encode(selection, shares)
        return (first(actions) if single else actions), state


def load_policy(spec: str, codec: ActionCodec) -> Policy:
    """The policy of a file.

    Args:
        spec: path of the weights, of the JSON, or of both without suffix.
        codec: of the environment it will act in.

    Raises:
        ValueError: what ``read_policy`` raises, or made for other sizes than the environment's.
    """
    network, card = read_policy(spec)
    num_experts = codec.scores_shape[1]
    if isinstance(network, TokenSharedNetwork):
        if network.architecture.num_experts not in (0, num_experts):
            raise ValueError(
                f"policy {spec} is for {network.architecture.num_experts} experts, the environment has {num_experts}"
            )
        return LearnedPolicy(network, card["decision"], codec)
    actions = codec.scores_shape[0] * num_experts + codec.num_devices
    if card["layers"][-1] != actions:
        raise ValueError(f"policy {spec} is for actions of {card['layers'][-1]} numbers, the environment has {actions}")
    return FlatPolicy(network, codec)
