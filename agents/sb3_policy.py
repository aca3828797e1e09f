"""The token-shared network as a policy of Stable-Baselines3's on-policy algorithms."""

from __future__ import annotations

from typing import Any

import torch
from gymnasium import spaces
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.type_aliases import PyTorchObs, Schedule
from torch import Tensor

from agents.distribution import evaluate
from agents.spaces import check_spaces
from wdmoe_env.config import DecisionKind
from wdmoe_env.policies.distribution import ActionDistribution
from wdmoe_env.policies.network import Architecture, TokenSharedNetwork


class TokenSharedPolicy(ActorCriticPolicy):
    """``PPO(TokenSharedPolicy, vec_env)`` for the environments of this package with ``box`` actions.

    Args:
        observation_space: of a single environment.
        action_space: likewise.
        *args: what SB3 passes beside them: the learning-rate schedule.
        decision: which halves the action holds.
        architecture: sizes of the network.
        **kwargs: passed on to SB3.

    Raises:
        ValueError: the spaces are not of this package, or the network is for another decision or another model.
    """

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        *args: Any,
        decision: DecisionKind = "selection",
        architecture: Architecture | None = None,
        **kwargs: Any,
    ) -> None:
        self.decision = decision
        self.architecture = architecture or Architecture()
        check_spaces(self.architecture, decision, observation_space, action_space)
        super().__init__(observation_space, action_space, *args, **kwargs)

    def _build(self, lr_schedule: Schedule) -> None:
        """Make the network and its optimizer in place of SB3's layers."""
        self.network = TokenSharedNetwork(self.architecture)
        self.optimizer = self.optimizer_class(self.parameters(), lr=lr_schedule(1), **self.optimizer_kwargs)  # type: ignore[call-arg]

    def forward(self, obs: Any, deterministic: bool = False) -> tuple[Tensor, Tensor, Tensor]:
        """Actions (N, A), values (N, 1) and log-probabilities (N,)."""
        distribution = ActionDistribution(self.network, obs, self.decision)
        actions = distribution.act(deterministic)
        return actions, self.network.value(distribution.seen)[:, None], evaluate(distribution, actions).log_prob

    def evaluate_actions(self, obs: PyTorchObs, actions: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Values (N, 1), log-probabilities (N,) and entropies (N,) of actions."""
        distribution = ActionDistribution(self.network, obs, self.decision)  # type: ignore[arg-type]
        evaluated = evaluate(distribution, actions)
        return self.network.value(distribution.seen)[:, None], evaluated.log_prob, evaluated.entropy

    def predict_values(self, obs: PyTorchObs) -> Tensor:
        """Values (N, 1)."""
        return self.network.value(self.network.see(obs))[:, None]  # type: ignore[arg-type]

    def _predict(self, observation: PyTorchObs, deterministic: bool = False) -> Tensor:
        """Actions (N, A)."""
        with torch.no_grad():
            return ActionDistribution(self.network, observation, self.decision).act(deterministic)  # type: ignore[arg-type]
