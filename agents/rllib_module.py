"""The token-shared network as a module of RLlib's on-policy algorithms."""

from __future__ import annotations

from typing import Any, Self

import torch
from torch import Tensor

from agents.distribution import evaluate
from agents.spaces import check_spaces
from wdmoe_env.optional import optional
from wdmoe_env.policies.distribution import ActionDistribution
from wdmoe_env.policies.network import Architecture, TokenSharedNetwork

with optional("ray", extra="rllib"):
    from ray.rllib.core.columns import Columns
    from ray.rllib.core.rl_module.apis.value_function_api import ValueFunctionAPI
    from ray.rllib.core.rl_module.torch.torch_rl_module import TorchRLModule


class EvaluatedActions:
    """What RLlib's loss asks of a distribution, already worked out: the shares' distribution depends on the selection.

    Args:
        inputs: (N, 2) log-probability and entropy.
    """

    def __init__(self, inputs: Tensor) -> None:
        self.inputs = inputs

    @classmethod
    def from_logits(cls, logits: Tensor) -> Self:
        """RLlib's name for the constructor."""
        return cls(logits)

    def logp(self, actions: Tensor) -> Tensor:
        """Log-probability (N,) of the actions that the module was given."""
        return self.inputs[:, 0]

    def entropy(self) -> Tensor:
        """Entropy (N,)."""
        return self.inputs[:, 1]


class TokenSharedModule(TorchRLModule, ValueFunctionAPI):  # type: ignore[misc]
    """``RLModuleSpec(TokenSharedModule)`` for the environments of this package with ``box`` actions.

    Its ``model_config`` is ``{"decision": ..., "architecture": ...}``: which halves the action holds, and the sizes of
    the network.
    """

    def setup(self) -> None:
        """Make the network.

        Raises:
            ValueError: the spaces are not of this package, or the network is for another decision or another model.
        """
        architecture = Architecture(**self.model_config["architecture"])
        check_spaces(architecture, self.model_config["decision"], self.observation_space, self.action_space)
        self.network = TokenSharedNetwork(architecture)

    def get_train_action_dist_cls(self) -> type[EvaluatedActions]:
        """For the loss."""
        return EvaluatedActions

    get_exploration_action_dist_cls = get_inference_action_dist_cls = get_train_action_dist_cls

    def compute_values(self, batch: dict[str, Any], embeddings: Any = None) -> Tensor:
        """Values (N,), from the features of the forward pass where there was one."""
        return self.network.value(embeddings or self.network.see(batch[Columns.OBS]))

    def _forward_inference(self, batch: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        return self._act(batch, deterministic=True)

    def _forward_exploration(self, batch: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        return self._act(batch, deterministic=False)

    def _forward_train(self, batch: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        distribution = self._distribution(batch)
        evaluated = _evaluated(distribution, batch[Columns.ACTIONS])
        return {Columns.ACTION_DIST_INPUTS: evaluated, Columns.EMBEDDINGS: distribution.seen}

    def _act(self, batch: dict[str, Any], deterministic: bool) -> dict[str, Any]:
        with torch.no_grad():
            distribution = self._distribution(batch)
            actions = distribution.act(deterministic)
            evaluated = _evaluated(distribution, actions)
        return {
            Columns.ACTIONS: actions,
            Columns.ACTION_LOGP: evaluated[:, 0],
            Columns.ACTION_DIST_INPUTS: evaluated,
        }

    def _distribution(self, batch: dict[str, Any]) -> ActionDistribution:
        return ActionDistribution(self.network, batch[Columns.OBS], self.model_config["decision"])


def _evaluated(distribution: ActionDistribution, actions: Tensor) -> Tensor:
    """(N, 2) log-probability and entropy."""
    evaluated = evaluate(distribution, actions)
    return torch.stack([evaluated.log_prob, evaluated.entropy], dim=1)
