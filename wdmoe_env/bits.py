"""The part of an action that decides how many bits cross the link, ``WDMoE-Precision-v0``.

Either each device has a number of bits for all of its messages, or each token for its messages to all devices. Fewer
bits are sooner over the air, and the text pays for the rounding; see ``wdmoe_env.precision``.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from wdmoe_env.actions import DECISIONS, PARTS, ActionPart, BandwidthPart, Plan
from wdmoe_env.checks import real_array
from wdmoe_env.config import DeploymentConfig, EnvConfig
from wdmoe_env.observations import Sizes
from wdmoe_env.physics.latency import Float, experts_per_device, sum_over_tokens
from wdmoe_env.precision import payload_bits


class BitsPart(ActionPart):
    """Bits of an element on the link, one number for each device or for each token.

    In a flat action the interval [-1, 1] is cut into as many equal pieces as there are choices, the first choice
    lowest. In a ``dict`` action an entry is the number of a choice. Where no bits are given, the first choice is taken.

    Args:
        sizes: J, E and U.
        choices: bits, the most first.
        width: elements of a message of the deployment.

    Attributes:
        choices: (K,) as given.
        payload_ratio: (K,) bits of a message under each choice over those of 16 bits.
    """

    name, argument = "bits", "bits"

    def __init__(self, sizes: Sizes, choices: Sequence[int], width: int) -> None:
        self.choices = np.array(choices, dtype=np.int64)
        whole = payload_bits(width, 16)
        self.payload_ratio = np.array([payload_bits(width, bits) / whole for bits in choices])
        self.space = spaces.MultiDiscrete(np.full(self.shape, len(choices)))

    def checked(self, name: str, value: Any, batch: tuple[int, ...]) -> NDArray[np.int64]:
        """See ``ActionPart.checked``.

        Args:
            name: what a message calls it.
            value: what came.
            batch: its leading axes.

        Returns:
            (..., U) or (..., J) bits.

        Raises:
            ValueError: another shape, or bits that are no choice.
            TypeError: no real numbers.
        """
        bits = _shaped(name, value, (*batch, *self.shape))
        if not np.isin(bits, self.choices).all():
            raise ValueError(f"expected {name} of {', '.join(map(str, self.choices))}, got other values")
        return bits.astype(np.int64)

    def to_entry(self, value: NDArray[Any]) -> NDArray[np.int64]:
        """Numbers of the choices (..., U) or (..., J)."""
        return (value[..., None] == self.choices).argmax(axis=-1)

    def from_entry(self, name: str, entry: Any, batch: tuple[int, ...]) -> NDArray[np.int64]:
        """Bits (..., U) or (..., J) of the numbers of choices.

        Raises:
            ValueError: another shape, or no number of a choice.
            TypeError: no real numbers.
        """
        number = _shaped(name, entry, (*batch, *self.shape))
        if not np.isin(number, np.arange(len(self.choices))).all():
            raise ValueError(f"expected {name} of 0 to {len(self.choices) - 1}, the numbers of choices, got others")
        return self.choices[number.astype(np.int64)]

    def to_flat(self, value: NDArray[Any]) -> Float:
        """Middles of the pieces (..., U) or (..., J)."""
        return (2.0 * self.to_entry(value) + 1.0) / len(self.choices) - 1.0

    def from_flat(self, numbers: Float) -> NDArray[np.int64]:
        """Bits (..., U) or (..., J) of numbers in [-1, 1]."""
        piece = np.floor((numbers + 1.0) / 2.0 * len(self.choices))
        return self.choices[np.clip(piece, 0, len(self.choices) - 1).astype(np.int64)]

    def default(self, batch: tuple[int, ...]) -> NDArray[np.int64]:
        """The first choice everywhere (..., U) or (..., J), for rules that know no bits."""
        return np.full((*batch, *self.shape), self.choices[0])

    def ratio(self, bits: NDArray[np.int64]) -> Float:
        """Bits of a message over those of 16 bits, of the shape of ``bits`` (...)."""
        return self.payload_ratio[self.to_entry(bits)]

    def settle(self, plan: Plan, value: NDArray[Any] | None) -> Plan:  # type: ignore[override]
        """The plan with the bits (N, U) or (N, J), and a load in which a token counts as its message's part of L."""
        bits = self.default((len(plan.selection),)) if value is None else value
        whole = plan.load.tokens
        load = replace(plan.load, tokens=self.radio_tokens(plan, self.ratio(bits)))
        return plan._replace(bits=self.of_messages(bits), tokens=whole, load=load)

    @abstractmethod
    def of_messages(self, values: NDArray[Any]) -> NDArray[Any]:
        """Values (N, U) or (N, J) as such of messages, (N, 1, U) or (N, J, 1)."""

    @abstractmethod
    def radio_tokens(self, plan: Plan, ratio: Float) -> Float:
        """Tokens (N, U) that each device serves, counted by the part of L (N, U) or (N, J) that each message has."""


class DeviceBitsPart(BitsPart):
    """Bits of each device, (U,)."""

    def __init__(self, sizes: Sizes, choices: Sequence[int], width: int) -> None:
        self.shape = (sizes.num_devices,)
        super().__init__(sizes, choices, width)

    def of_messages(self, values: NDArray[Any]) -> NDArray[Any]:
        """Values (N, U) as (N, 1, U)."""
        return values[:, None]

    def radio_tokens(self, plan: Plan, ratio: Float) -> Float:
        """Tokens (N, U) times the ratio (N, U)."""
        return plan.load.tokens * ratio


class TokenBitsPart(BitsPart):
    """Bits of each token, (J,)."""

    def __init__(self, sizes: Sizes, choices: Sequence[int], width: int) -> None:
        self.shape = (sizes.num_tokens,)
        super().__init__(sizes, choices, width)

    def of_messages(self, values: NDArray[Any]) -> NDArray[Any]:
        """Values (N, J) as (N, J, 1)."""
        return values[..., None]

    def radio_tokens(self, plan: Plan, ratio: Float) -> Float:
        """Sum (N, U) over the tokens sent of the ratio (N, J) of each."""
        sent = np.minimum(experts_per_device(plan.selection, plan.block.links.placement), 1.0)
        return sum_over_tokens(sent * ratio[..., None])


def parts_of(
    config: EnvConfig, sizes: Sizes, deployment: DeploymentConfig
) -> tuple[tuple[ActionPart, ...], tuple[ActionPart | type[ActionPart], ...]]:
    """What an environment's action is made of, and what is settled in each block, in order.

    Args:
        config: says what the agent decides.
        sizes: J, E and U.
        deployment: says how wide a message is.

    Returns:
        The parts of the action, and the parts to settle.
    """
    decided: tuple[ActionPart, ...] = tuple(kind(sizes) for kind in DECISIONS[config.decision])
    if config.decide_bits is None:
        return decided, PARTS
    kind = DeviceBitsPart if config.decide_bits == "device" else TokenBitsPart
    bits = kind(sizes, config.bits_choices, deployment.hidden_size)
    before = tuple(part for part in PARTS if part is not BandwidthPart)  # shares are solved for the bits
    return (*decided, bits), (*before, bits, BandwidthPart)


def _shaped(name: str, value: Any, shape: tuple[int, ...]) -> Float:
    array = real_array(name, value)
    if array.shape != shape:
        raise ValueError(f"expected {name} of shape {shape}, got {array.shape}")
    return array
