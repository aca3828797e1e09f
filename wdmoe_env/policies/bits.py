"""``marginal-price-bits``: experts, shares and bits of the link by one price per millisecond."""

from __future__ import annotations

from typing import Any

import numpy as np

from wdmoe_env.actions import ActionCodec
from wdmoe_env.bits import BitsPart, TokenBitsPart
from wdmoe_env.observations import decode_observation
from wdmoe_env.optimize.bits import BitChoices, marginal_price_with_bits
from wdmoe_env.policies.policy import StatelessPolicy
from wdmoe_env.policies.rules import DEFAULT_PRICE_PER_MS, problem_of

# NLL added per message over its squared gate weight, in nats, on 256 training windows of ``tiny``, and the same of a
# message that is dropped: `python -m train.precision`, whose table stands in docs/results.md.
ROUNDING_NATS = {16: 0.0, 8: 0.000136, 4: 0.0186}
DROPPING_NATS = 0.3

# Gate weight of the pairs that the price of a millisecond decides on. Dropping one costs DROPPING_NATS times its
# square, and the rule counts it once, so that this weight is what turns nats into gate weight.
MARGINAL_WEIGHT = 0.25


def rounding_damage(bits: int) -> float:
    """Gate weight that rounding a message to these bits costs, over its squared gate weight, without unit."""
    return ROUNDING_NATS[bits] / (DROPPING_NATS * MARGINAL_WEIGHT)


class BitsPolicy(StatelessPolicy):
    """The marginal-price rule with bits.

    Args:
        codec: of an environment whose action decides bits and experts.
        part: of that action which holds the bits.
        price_per_ms: gate weight that a millisecond is worth.
        damage_scale: factor to the measured damage of rounding.
    """

    def __init__(
        self, codec: ActionCodec, part: BitsPart, price_per_ms: float | None = None, damage_scale: float = 1.0
    ) -> None:
        super().__init__(codec)
        self._part = part
        self.price_per_ms = DEFAULT_PRICE_PER_MS if price_per_ms is None else price_per_ms
        damage = np.array([damage_scale * rounding_damage(int(bits)) for bits in part.choices])
        self._choices = BitChoices(part.payload_ratio, damage, isinstance(part, TokenBitsPart))

    def actions(self, batch: dict[str, Any], deterministic: bool) -> Any:
        """Actions of N observations; see ``StatelessPolicy.actions``.

        Args:
            batch: entries (N, ...).
            deterministic: of no effect.
        """
        problem = problem_of(decode_observation(batch), self.price_per_ms)
        found = marginal_price_with_bits(problem, self._choices)
        bits = self._part.choices[found.levels].reshape(len(found.levels), -1)
        return self.codec.encode(found.selection, found.bandwidth.shares, bits=bits)
