"""From a block to an observation and back.

What a policy sees is enough to recover the block's physics exactly, so every rule works from the
observation alone: the same interface serves the optimizer and a network.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from wdmoe_env.physics.latency import DOWNLINK, UPLINK, BlockLinks, Bool, Float, gate_weights
from wdmoe_env.physics.outages import experts_present

Observation = dict[str, NDArray[np.float32]]

# Finite bounds, which libraries ask for, far beyond what physics gives; latencies are clipped to them. Softmax and
# sigmoid scores are at most 1, but some routers score by the root of a softplus.
MOST_GATE_PROB = 1e3
MOST_SPECTRAL_EFFICIENCY = 128.0
MOST_LATENCY_MS = 1e9
MOST_HIDDEN = float(np.finfo(np.float32).max)


@dataclass(frozen=True, slots=True)
class Sizes:
    """Sizes that spaces are made of.

    Attributes:
        num_tokens: J.
        num_experts: E.
        num_devices: U.
        num_blocks: I.
        hidden_size: H of the running model.
    """

    num_tokens: int
    num_experts: int
    num_devices: int
    num_blocks: int
    hidden_size: int


@dataclass(frozen=True, slots=True)
class Conditions:
    """What the latency of a block comes from.

    Attributes:
        links: radio, compute and placement.
        unit_latency_s: (N, U) radio time of one token, both ways, at equal shares.
    """

    links: BlockLinks
    unit_latency_s: Float


@dataclass(frozen=True, slots=True)
class Block:
    """One MoE block of N episodes, as a policy may know it.

    Attributes:
        gate_probs: (N, J, E) scores of all experts; 0 at padding.
        routed: (N, J, E) the model's own choice among the experts that are there; False at padding.
        token_mask: (N, J) True where there is a token.
        links: radio, compute and placement.
        spectral_efficiency: (N, 2, U) bit/s/Hz at equal shares, downlink then uplink.
        unit_latency_s: (N, U) radio time of one token, both ways, at equal shares.
        index: (N,) block number i - 1 over I; 1 after the last block.
        hidden_states: (N, J, H) float32, or ``None`` where they are not observed.
        available: (N, U) True where the device is there; ``None`` where none can be away.
        hidden_conditions: what is true where ``links`` and ``unit_latency_s`` are old or off; never observed.
    """

    gate_probs: Float
    routed: Bool
    token_mask: Bool
    links: BlockLinks
    spectral_efficiency: Float
    unit_latency_s: Float
    index: Float
    hidden_states: NDArray[np.float32] | None = None
    available: Bool | None = None
    hidden_conditions: Conditions | None = None

    @property
    def conditions(self) -> Conditions:
        """What is true, known or not: latencies are measured by it."""
        return self.hidden_conditions or Conditions(self.links, self.unit_latency_s)

    @property
    def present(self) -> Bool | None:
        """(N, E) experts whose device is there; ``None`` where none can be away."""
        return None if self.available is None else experts_present(self.available, self.links.placement)

    @property
    def usable(self) -> Bool:
        """(N, J, E) experts that a token may use: all whose device is there, and none at padding."""
        present = self.present
        experts = np.ones((1, self.routed.shape[-1]), dtype=np.bool_) if present is None else present
        return self.token_mask[..., None] & experts[:, None]

    @property
    def weights(self) -> Float:
        """(N, J, E) gate weights w."""
        return gate_weights(self.gate_probs, self.routed)


def observation_space(sizes: Sizes, hidden_states: bool = False, availability: bool = False) -> spaces.Dict:
    """The one-level Dict space of a single environment.

    Args:
        sizes: of the environment.
        hidden_states: whether they are observed.
        availability: whether devices can be away.
    """
    J, E, U = sizes.num_tokens, sizes.num_experts, sizes.num_devices
    boxes: dict[str, spaces.Space[Any]] = {
        "gate_probs": _box(0, MOST_GATE_PROB, J, E),
        "routed": _box(0, 1, J, E),
        "spectral_efficiency": _box(0, MOST_SPECTRAL_EFFICIENCY, 2, U),
        "compute_latency": _box(0, MOST_LATENCY_MS, U),
        "weights_latency": _box(0, MOST_LATENCY_MS, U),
        "unit_latency": _box(0, MOST_LATENCY_MS, U),
        "placement": _box(0, 1, E, U),
        "token_mask": _box(0, 1, J),
        "block": _box(0, 1, 1),
    }
    if availability:
        boxes["availability"] = _box(0, 1, U)
    if hidden_states:
        boxes["hidden_states"] = _box(-MOST_HIDDEN, MOST_HIDDEN, J, sizes.hidden_size)
    return spaces.Dict(boxes)


def encode_observation(block: Block) -> Observation:
    """Observation of a block, every entry float32 with a leading axis N and its own memory."""
    placement, compute_s = block.links.placement, block.links.compute_s
    weights_s = np.zeros_like(compute_s) if block.links.weights_s is None else block.links.weights_s
    observation = {
        "gate_probs": block.gate_probs,
        "routed": block.routed,
        "spectral_efficiency": block.spectral_efficiency,
        "compute_latency": np.minimum(1e3 * compute_s, MOST_LATENCY_MS),
        "weights_latency": np.minimum(1e3 * weights_s, MOST_LATENCY_MS),
        "unit_latency": np.minimum(1e3 * block.unit_latency_s, MOST_LATENCY_MS),
        "placement": placement if placement.ndim == 3 else placement[None].repeat(len(block.index), axis=0),
        "token_mask": block.token_mask,
        "block": block.index[:, None],
    }
    if block.available is not None:
        observation["availability"] = block.available
    if block.hidden_states is not None:
        observation["hidden_states"] = block.hidden_states
    encoded = {}
    for name, value in observation.items():
        encoded[name] = np.array(value, dtype=np.float32)
    return encoded


def decode_observation(observation: Mapping[str, Any]) -> Block:
    """Recover a block from a batched observation.

    The inverse of ``encode_observation`` up to float32: gamma follows from the spectral efficiency at equal
    shares, and L / B from the latency of one token there. Without ``weights_latency``, as observations were before
    there was a roofline, reading weights counts nothing.

    Args:
        observation: entries with a leading axis N.

    Raises:
        ValueError: an entry is missing, or the batch axis is.
    """
    missing = sorted({"gate_probs", "spectral_efficiency", "placement", "block"} - set(observation))
    if missing:
        raise ValueError(f"expected a WDMoE observation, got one without {', '.join(missing)}")
    values = {name: np.asarray(value, dtype=np.float64) for name, value in observation.items()}
    if values["gate_probs"].ndim != 3:
        raise ValueError(f"expected gate_probs of shape (N, J, E), got {values['gate_probs'].shape}")
    efficiency = values["spectral_efficiency"]
    num_devices = efficiency.shape[-1]
    inverse = 1.0 / efficiency[:, DOWNLINK] + 1.0 / efficiency[:, UPLINK]
    unit_latency_s, weights_ms = 1e-3 * values["unit_latency"], values.get("weights_latency")
    links = BlockLinks(
        full_band_snr=np.expm1(efficiency * np.log(2.0)) / num_devices,
        # The same for every device, but lower where a latency was clipped.
        payload_s=(unit_latency_s / (num_devices * inverse)).max(axis=-1),
        compute_s=1e-3 * values["compute_latency"],
        placement=values["placement"],
        weights_s=1e-3 * weights_ms if weights_ms is not None and weights_ms.any() else None,
    )
    return Block(
        gate_probs=values["gate_probs"],
        routed=values["routed"] > 0.5,
        token_mask=values["token_mask"] > 0.5,
        links=links,
        spectral_efficiency=efficiency,
        unit_latency_s=unit_latency_s,
        index=values["block"][:, 0],
        hidden_states=observation.get("hidden_states"),
        available=values["availability"] > 0.5 if "availability" in values else None,
    )


def _box(low: float, high: float, *shape: int) -> spaces.Box:
    return spaces.Box(low, high, shape, dtype=np.float32)
