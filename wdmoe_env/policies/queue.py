"""Rules whose worth of a millisecond grows with those who wait for it: the analytical competitor of a learned queue.

A saved millisecond is saved for everybody in the system. So ``queue-price:P`` is the marginal price with P x (1 + s n),
where n requests are in the system, and ``wdmoe-queue:T`` is the paper's rule with 1 - (1 - T) / (1 + s n).
``load-price:P`` estimates the load in place of the number: from the arrivals lately, P x (1 + s r). Without an entry
``queue`` in the observation, as in ``WDMoE-v0``, nobody waits.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from wdmoe_env.actions import ActionCodec
from wdmoe_env.observations import Block, decode_observation
from wdmoe_env.physics.latency import Bool, Float
from wdmoe_env.policies import rules
from wdmoe_env.policies.policy import StatelessPolicy

PRICE_SLOPE = 0.5
"""s of ``queue-price``, by each request in the system."""
THRESHOLD_SLOPE = 0.6
"""s of ``wdmoe-queue``, by each request in the system."""
LOAD_SLOPE = 0.1
"""s of ``load-price``, by each request a second."""
DEFAULT_PRICE_PER_MS = 0.4
DEFAULT_LOAD_PRICE_PER_MS = 0.55
DEFAULT_THRESHOLD = 0.15
"""Settings where no number is given, chosen with the slopes by ``python -m train.rules --serve``."""

QueueRule = Callable[[Block, Float], tuple[Bool, Float]]
"""From a block of N episodes and their queues (N, 4) to a selection (N, J, E) and shares (N, U)."""


class QueuePolicy(StatelessPolicy):
    """A policy of a rule that sees the queue.

    Args:
        rule: from a block and its queues to a decision.
        codec: translates decisions into actions.
    """

    def __init__(self, rule: QueueRule, codec: ActionCodec) -> None:
        super().__init__(codec)
        self.rule = rule

    def actions(self, batch: dict[str, Any], deterministic: bool) -> Any:
        """Actions of N observations; see ``StatelessPolicy.actions``.

        Args:
            batch: entries (N, ...).
            deterministic: of no effect.
        """
        queue = np.asarray(batch.get("queue", np.zeros((len(batch["gate_probs"]), 4))), dtype=np.float64)
        return self.codec.encode(*self.rule(decode_observation(batch), queue))


class QueuePrice:
    """The marginal price, raised by each request in the system.

    Args:
        price_per_ms: gate weight that a millisecond is worth where nobody is there.
        slope: part of it that each request in the system adds.
    """

    def __init__(self, price_per_ms: float = DEFAULT_PRICE_PER_MS, slope: float = PRICE_SLOPE) -> None:
        self.price_per_ms, self.slope = price_per_ms, slope

    def __call__(self, block: Block, queue: Float) -> tuple[Bool, Float]:
        """Decide for a block (N episodes) and its queues (N, 4)."""
        return rules.marginal_price(block, self.price_per_ms * (1.0 + self.slope * queue[:, :2].sum(axis=-1)))


class LoadPrice(QueuePrice):
    """The marginal price, raised by the rate of arrivals over the last second.

    Args:
        price_per_ms: gate weight that a millisecond is worth where nobody arrives.
        slope: part of it that each request a second adds.
    """

    def __init__(self, price_per_ms: float = DEFAULT_LOAD_PRICE_PER_MS, slope: float = LOAD_SLOPE) -> None:
        super().__init__(price_per_ms, slope)

    def __call__(self, block: Block, queue: Float) -> tuple[Bool, Float]:
        """Decide for a block (N episodes) and its queues (N, 4)."""
        return rules.marginal_price(block, self.price_per_ms * (1.0 + self.slope * queue[:, 3]))


class QueueThreshold:
    """The paper's rule, whose threshold is raised by each request in the system.

    Args:
        threshold: where nobody is there.
        slope: of what is left up to 1, how fast it shrinks by each request.
    """

    def __init__(self, threshold: float = DEFAULT_THRESHOLD, slope: float = THRESHOLD_SLOPE) -> None:
        self.threshold, self.slope = threshold, slope

    def __call__(self, block: Block, queue: Float) -> tuple[Bool, Float]:
        """Decide for a block (N episodes) and its queues (N, 4)."""
        present = queue[:, :2].sum(axis=-1)
        selection, shares = rules.wdmoe(block, self._at(present[0]))
        for number in np.unique(present[present != present[0]]):
            here = present == number
            selected, divided = rules.wdmoe(block, self._at(number))
            selection, shares = selection.copy(), shares.copy()
            selection[here], shares[here] = selected[here], divided[here]
        return selection, shares

    def _at(self, present: float) -> float:
        return 1.0 - (1.0 - self.threshold) / (1.0 + self.slope * float(present))
