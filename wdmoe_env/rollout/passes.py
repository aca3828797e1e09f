"""Passes under way: the one thing that a rollout asks of a model.

``wdmoe_env.moe.lockstep.LockStep`` makes them of windows of text, ``wdmoe_env.generation`` of a text that is being
generated.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from wdmoe_env.moe.hook import BlockInput
from wdmoe_env.moe.token_scores import TokenScores


class Passes(Protocol):
    """Forward passes of N texts, all paused at the same MoE block."""

    @property
    def blocks(self) -> Sequence[BlockInput]:
        """Where each pass is paused, in the order of the texts; empty after the last block."""

    def resume(self, selection: Tensor | None, link_bits: Tensor | int | None = None) -> None:
        """Run the selected experts and go on to the next block.

        Args:
            selection: (N * J, E) bool; ``None`` means the model's own routing.
            link_bits: bits of each row's messages to each device, (N * J, U); one number; or ``None``, as before.

        Raises:
            RuntimeError: another thread began the passes.
        """

    def unserved_pairs(self) -> NDArray[np.int64]:
        """Pairs (N,) of each text that were selected in the last block and not served."""

    def scores(self) -> TokenScores | None:
        """Scores of the texts after the last block; ``None`` where the passes score no text."""

    def close(self) -> None:
        """End the passes where they are; more than once does no harm."""


Begin = Callable[[], Passes]
"""Begins the same passes anew at their first block, on the thread that calls it. It is called once at the start, and
again for each copy and each change of thread. It has to be picklable where the rollout is to be pickled or copied."""
