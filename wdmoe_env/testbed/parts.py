"""A block's work, cut into one call for each device."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wdmoe_env.moe.runner import ExpertCall
from wdmoe_env.physics.latency import Float
from wdmoe_env.precision import rounded
from wdmoe_env.testbed.wire import RunRequest, read_rows, write_rows


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """What one device does of a block.

    Attributes:
        device: its number.
        rows: (R,) the rows of the call that it gets, ascending.
        pair_row: (P,) place of each pair's row among these.
        pair_expert: (P,) expert of each pair.
        pair_weight: (P,) weight of each pair's output.
    """

    device: int
    rows: NDArray[np.int64]
    pair_row: NDArray[np.int64]
    pair_expert: NDArray[np.int64]
    pair_weight: NDArray[np.float32]

    def bits(self, call: ExpertCall) -> int | Tensor:
        """Bits of an element on the link: one number, or (R, 1) int64 for each row."""
        if isinstance(call.link_bits, int):
            return call.link_bits
        return call.link_bits[torch.from_numpy(self.rows), self.device][:, None].cpu()

    def request(self, call: ExpertCall, number: int, digest: bytes) -> Any:
        """The message, without its times and its filler.

        Args:
            call: the whole block.
            number: of the request.
            digest: of what the device is to hold.
        """
        rows = call.hidden_states[torch.from_numpy(self.rows).to(call.hidden_states.device)]
        bits = self.bits(call)
        # Rows of different bits have no common code: they are rounded here and cross as they then are.
        written = write_rows(rows, bits) if isinstance(bits, int) else write_rows(rounded(rows.cpu(), bits))
        return RunRequest(
            request=number,
            block=call.block,
            rows=written,
            pair_row=self.pair_row.tolist(),
            pair_expert=self.pair_expert.tolist(),
            pair_weight=self.pair_weight.tolist(),
            digest=digest,
        )

    def read(self, reply: Any, call: ExpertCall, number: int, digest: bytes) -> Tensor:
        """The weighted sums (R, H) of an answer.

        Args:
            reply: the answer.
            call: the whole block.
            number: of the request.
            digest: of what the device is to hold.

        Raises:
            ValueError: an answer to another request, from other weights, or of another shape.
        """
        if (reply.request, reply.block) != (number, call.block):
            asked = f"request {number} of block {call.block}"
            raise ValueError(f"expected the answer to {asked}, got {reply.request} of {reply.block}")
        if reply.digest != digest:
            raise ValueError("expected an answer from the weights that were asked for, got one from others")
        like = call.hidden_states
        sums = read_rows(reply.rows, like.shape[1], like.dtype, len(self.rows))
        if len(sums) != len(self.rows):
            raise ValueError(f"expected {len(self.rows)} rows in an answer, got {len(sums)}")
        bits = self.bits(call)
        return sums if isinstance(bits, int) else rounded(sums, bits)


def parts_of(call: ExpertCall, placement: Float) -> list[Part]:
    """What each device does of a block, those without work left out.

    Args:
        call: the block.
        placement: (E, U) 1 where a device holds an expert.
    """
    selection = call.selection.numpy(force=True)
    weights = call.weights.float().numpy(force=True)
    holder = placement.argmax(axis=1)
    row, expert = selection.nonzero()
    at = holder[expert]
    found = []
    for device in np.unique(at):
        mine = at == device
        rows, place = np.unique(row[mine], return_inverse=True)
        experts = expert[mine]
        found.append(Part(int(device), rows, place, experts, weights[row[mine], experts]))
    return found
