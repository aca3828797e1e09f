"""A plain multilayer perceptron over the flattened observation: what stock algorithms learn, as a file.

It is tied to the sizes of its environment, unlike the token-shared network. The file is read as that of a learned
policy is: weights in safetensors, the rest in JSON, no code.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from wdmoe_env.actions import ActionCodec
from wdmoe_env.observations import Sizes, observation_space
from wdmoe_env.policies.network import check_outputs
from wdmoe_env.policies.policy import StatelessPolicy


def perceptron(sizes: list[int]) -> nn.Sequential:
    """Linear layers of these sizes, ReLU between them, and a last tanh."""
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(sizes):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*layers[:-1], nn.Tanh())


class FlatPolicy(StatelessPolicy):
    """Acts with a perceptron.

    Args:
        network: from the flattened observation to the flat ``box`` action of both decisions.
        codec: of the environment it acts in.
    """

    def __init__(self, network: Any, codec: ActionCodec) -> None:
        super().__init__(codec)
        self.network = network
        self._own = ActionCodec(codec.sizes, "joint", "box")

    def actions(self, batch: dict[str, Any], deterministic: bool) -> Any:
        """Actions of N observations; see ``StatelessPolicy.actions``.

        Args:
            batch: entries (N, ...).
            deterministic: of no effect.

        Raises:
            ValueError: an observation of other sizes, or outputs that are not finite.
        """
        width = self.network[0].in_features
        if width == flattened_sizes(self.codec.sizes)[1]:
            batch.pop("weights_latency", None)
        rows = flatten(batch)
        if rows.shape[1] != width:
            raise ValueError(f"this policy is for observations of {width} numbers, got {rows.shape[1]}")
        with torch.no_grad():
            flat = check_outputs(self.network(rows), "outputs").numpy()
        decided = self._own.decode(np.clip(flat, -1.0, 1.0), (len(flat),))
        return self.codec.encode(**self._own.arguments(decided))


def flattened_sizes(sizes: Sizes) -> tuple[int, int]:
    """The length of a row that ``flatten`` makes of an environment's observation, and of one from before the roofline.

    The latter has no ``weights_latency``.
    """
    size = sum(math.prod(space.shape or ()) for space in observation_space(sizes).spaces.values())
    return size, size - sizes.num_devices


def flatten(observation: dict[str, Any]) -> Tensor:
    """Entries (N, ...) in alphabetical order, one row each; hidden states and availability are not read."""
    names = sorted(set(observation) - {"hidden_states", "availability"})
    return torch.cat([torch.as_tensor(observation[name], dtype=torch.float32).flatten(1) for name in names], dim=1)
