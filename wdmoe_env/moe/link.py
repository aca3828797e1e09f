"""The link of equation (11) between a pass and whoever runs its experts: what crosses it is rounded.

A message belongs to one token and one device. The hidden state goes down, and what comes back is the weighted sum over
all of the token's experts on that device. So the rows of a call become messages here, one for each token and device,
and the experts run on messages. A runner with a wire of its own, which has ``rounds_link`` set, is left alone.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from wdmoe_env.moe.runner import ExpertAnswer, ExpertCall, ExpertRunner
from wdmoe_env.physics.latency import Float
from wdmoe_env.precision import LINK_BITS, rounded


def link_runner(
    runner: ExpertRunner | None, placement: Float, link_bits: int, decided: bool = False
) -> ExpertRunner | None:
    """The runner with a link before it that rounds, or the runner itself where nothing has to be rounded.

    Args:
        runner: runs the experts; ``None`` is the model's own.
        placement: (I, E, U) 1 where a device holds an expert.
        link_bits: bits of an element on the link.
        decided: whether the bits of later calls may be others.
    """
    if (link_bits == LINK_BITS[0] and not decided) or getattr(runner, "rounds_link", False):
        return runner
    return RoundingRunner(runner, placement)


class RoundingRunner:
    """Rounds the messages of a call, and has the experts run on them.

    Args:
        inner: runs the experts; ``None`` is the model's own runner.
        placement: (I, E, U) 1 where a device holds an expert.
    """

    def __init__(self, inner: ExpertRunner | None, placement: Float) -> None:
        self._inner, self._is_own = inner, inner is None
        self._holds = torch.from_numpy(np.ascontiguousarray(placement) > 0)

    def open(self, model: Any) -> None:
        """Open the inner runner; the model's own one is open."""
        if self._inner is None:
            self._inner = model.runner
        elif not self._is_own:
            self._inner.open(model)

    def run(self, call: ExpertCall) -> ExpertAnswer:
        """Round what goes down, run the experts, round what each device sends up, and add it up by token.

        Raises:
            ConnectionError, TimeoutError: of the inner runner.
            RuntimeError: the runner is not open.
        """
        if self._inner is None:
            raise RuntimeError("expected open() before run()")
        if isinstance(call.link_bits, int) and call.link_bits == LINK_BITS[0]:
            return self._inner.run(call)
        holds = self._holds[call.block]  # (E, U)
        selection = call.selection.cpu()
        token, device = (selection.float() @ holds.float()).nonzero(as_tuple=True)
        bits = call.link_bits if isinstance(call.link_bits, int) else call.link_bits[token, device][:, None]
        where = call.hidden_states.device
        row = token.to(where)
        down = _through(call.hidden_states.index_select(0, row), _on(bits, where))
        messages = ExpertCall(
            call.block,
            down,
            selection[token] & holds.T[device],
            call.weights.index_select(0, row),
            call.sequences,
            rows=token,
            num_rows=len(call.hidden_states),
        )
        answer = self._inner.run(messages)
        up = _through(answer.outputs, _on(bits, where))
        outputs = torch.zeros_like(call.hidden_states).index_add_(0, row, up)
        return ExpertAnswer(outputs, _of_rows(answer.served, token, selection), answer.timings_s)

    def close(self) -> None:
        """Close the inner runner, but not the model's own."""
        if self._inner is not None and not self._is_own:
            self._inner.close()


class _StraightThrough(torch.autograd.Function):
    """Rounds forward, and lets the gradient through as it is (Bengio et al., arXiv 1308.3432)."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, bits: int | Tensor) -> Tensor:
        """Rounded values."""
        result: Tensor = rounded(values, bits)
        return result

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        """The gradient itself, and none by the bits."""
        return gradients[0], None


def _through(values: Tensor, bits: int | Tensor) -> Tensor:
    """What arrives of messages (R, H)."""
    through = _StraightThrough.apply if values.requires_grad else rounded
    result: Tensor = through(values, bits)
    return result


def _on(bits: int | Tensor, device: torch.device) -> int | Tensor:
    return bits if isinstance(bits, int) else bits.to(device)


def _of_rows(served: Tensor | None, token: Tensor, selection: Tensor) -> Tensor | None:
    """Which pairs (T, E) were served, of the messages (R, E) and the token (R,) of each."""
    if served is None:
        return None
    of_rows = torch.zeros_like(selection)
    message, expert = served.cpu().nonzero(as_tuple=True)
    of_rows[token[message], expert] = True
    return of_rows
