"""Who runs the experts: in this process, or wherever a runner of one's own sends the rows.

A runner has a life: it is opened with a model, runs one block's experts at a time, and is closed. It says which pairs
of token and expert were served, so that a pass goes on without those that were not. ``register_runner`` gives one a
name, by which ``EnvConfig.runner`` and ``gymnasium.make(..., runner="KIND:ARGUMENT")`` choose it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wdmoe_env.moe.experts import ExpertFunction, run_experts
from wdmoe_env.named import NamedFactories

UNREACHABLE = (ConnectionError, TimeoutError)
"""What a runner may raise where nothing at all was served; the pass goes on. Any other exception ends it."""


@dataclass(frozen=True, slots=True, eq=False)
class ExpertCall:
    """One block's work, of all the rows of a pass: E experts, T rows, of N episodes.

    Attributes:
        block: 0-based number of the MoE block.
        hidden_states: (T, H) input of the block.
        selection: (T, E) bool, the pairs that are to be served.
        weights: (T, E) weight of each expert's output; read only where selected.
        sequences: N numbers of the episodes, whose rows follow each other; empty where the pass is of no episode.
    """

    block: int
    hidden_states: Tensor
    selection: Tensor
    weights: Tensor
    sequences: tuple[int, ...] = ()

    @property
    def episodes(self) -> NDArray[np.int64]:
        """Number of the episode of each row, (T,); -1 where the pass is of none."""
        sequences = self.sequences or (-1,)
        return np.repeat(np.array(sequences, dtype=np.int64), len(self.hidden_states) // len(sequences))


@dataclass(frozen=True, slots=True, eq=False)
class ExpertAnswer:
    """What a runner made of a call.

    Attributes:
        outputs: (T, H), of the type and on the device of the hidden states: per row the sum of the outputs of the
            experts that served it, by the weights of the call; zero where none did.
        served: (T, E) bool, the pairs that were served; ``None`` says all that were selected.
        timings_s: seconds by name, as the runner likes; they reach ``SplitForward.service`` and no observation,
            reward or info.
    """

    outputs: Tensor
    served: Tensor | None = None
    timings_s: Mapping[str, float] = field(default_factory=dict)


@runtime_checkable
class ExpertRunner(Protocol):
    """Runs the experts of a split model. A large batch on the CPU asks it from two threads at once."""

    def open(self, model: Any) -> None:
        """Get ready.

        Args:
            model: the ``SplitModel`` whose experts these are.
        """

    def run(self, call: ExpertCall) -> ExpertAnswer:
        """Run the selected experts of one block.

        Args:
            call: what to run on which experts.

        Raises:
            ConnectionError, TimeoutError: nothing was served; every row goes on without the block's experts.
        """

    def close(self) -> None:
        """Let go of what ``open`` took; more than once does no harm."""


class LocalRunner:
    """The experts of the model itself, in this process.

    Args:
        function: runs one block's experts; another of the same signature may take its place.
    """

    def __init__(self, function: ExpertFunction = run_experts) -> None:
        self._function = function
        self._experts: list[Any] = []

    def open(self, model: Any) -> None:
        """Take the model's experts modules."""
        self._experts = model.experts

    def run(self, call: ExpertCall) -> ExpertAnswer:
        """Run all that was selected.

        Raises:
            RuntimeError: a model that was loaded without the weights of its experts.
        """
        experts = self._experts[call.block]
        if experts.down_proj.is_meta:
            raise RuntimeError("expected a runner that holds experts, since the model was loaded without any")
        return ExpertAnswer(self._function(experts, call.hidden_states, call.selection, call.weights))

    def close(self) -> None:
        """Nothing: the model keeps its experts."""


@dataclass(slots=True, eq=False)
class Service:
    """Who serves the experts of one pass, and what came of the last block.

    Attributes:
        runner: ``None`` is the model's own.
        sequences: numbers of the N episodes of the pass, whose rows follow each other.
        unserved_pairs: (N,) pairs of the last block that were selected and not served.
        timings_s: of the last answer.
    """

    runner: ExpertRunner | None
    sequences: tuple[int, ...]
    unserved_pairs: NDArray[np.int64] = field(init=False)
    timings_s: Mapping[str, float] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        """Nothing was dropped so far."""
        self.unserved_pairs = np.zeros(len(self.sequences), dtype=np.int64)


def serve(runner: ExpertRunner, call: ExpertCall, service: Service | None) -> Tensor:
    """Outputs (T, H) of a block by whoever runs its experts.

    A row goes on with what was served of it. Its weights are scaled to the sum that they had over all that was
    selected, which is the rule of ``combination_weights``. A row of which nothing was served gets zeros, so that the
    residual stream alone goes on.

    Args:
        runner: runs the experts.
        call: what to run.
        service: is told what was not served; ``None`` where nobody asks.

    Raises:
        ValueError: an answer of another shape or type.
    """
    try:
        answer = runner.run(call)
    except UNREACHABLE:
        answer = ExpertAnswer(torch.zeros_like(call.hidden_states), torch.zeros(call.selection.shape, dtype=torch.bool))
    _check_answer(answer, call)
    if service is not None:
        service.timings_s = answer.timings_s
    if answer.served is None:
        if service is not None:
            service.unserved_pairs = np.zeros(len(service.sequences), dtype=np.int64)
        return answer.outputs
    served = answer.served.to(call.selection.device) & call.selection
    if service is not None:
        unserved = (call.selection & ~served).sum(dim=1).numpy(force=True)
        service.unserved_pairs = unserved.reshape(len(service.sequences), -1).sum(axis=1)
    return _scaled(answer.outputs, call, served)


def _scaled(outputs: Tensor, call: ExpertCall, served: Tensor) -> Tensor:
    """Outputs (T, H) of what was served, as if it had the weight of all that was selected."""
    weights = call.weights
    selected, served = call.selection.to(weights.device), served.to(weights.device)
    whole, part = (weights.where(pairs, 0.0).sum(dim=1, keepdim=True) for pairs in (selected, served))
    scale = torch.where((served == selected).all(dim=1, keepdim=True), 1.0, whole / part).to(outputs.dtype)
    return (outputs * scale).where(served.any(dim=1, keepdim=True) & (part != 0.0), 0.0)


def _check_answer(answer: ExpertAnswer, call: ExpertCall) -> None:
    outputs, served, like = answer.outputs, answer.served, call.hidden_states
    if outputs.shape != like.shape or outputs.dtype != like.dtype:
        wanted, got = ((one.dtype, tuple(one.shape)) for one in (like, outputs))
        raise ValueError(
            f"expected a runner's outputs to be {wanted[0]} of shape {wanted[1]}, got {got[0]} of {got[1]}"
        )
    if served is not None and (served.dtype != torch.bool or served.shape != call.selection.shape):
        wanted_shape = tuple(call.selection.shape)
        raise ValueError(
            f"expected a runner's served to be a bool tensor of shape {wanted_shape}, "
            f"got {served.dtype} of {tuple(served.shape)}"
        )


Factory = Callable[[str], ExpertRunner]
"""Argument (what follows the colon, or nothing) to a runner that is not open yet."""


def make_runner(name: str) -> ExpertRunner:
    """The runner that a configuration names, not yet open.

    Args:
        name: ``"KIND"`` or ``"KIND:ARGUMENT"``.

    Raises:
        ValueError: no such kind, or an argument that it does not take.
    """
    factory, argument = _RUNNERS.find(name)
    return factory(argument)


def register_runner(kind: str, factory: Factory | str) -> None:
    """Add a kind of runner, so that ``runner="KIND:ARGUMENT"`` names it; a kind of your own is replaced.

    Register in the module that worker processes import too, such as that of ``gym.make("module:WDMoE-v0")``.

    Args:
        kind: its name, without a colon.
        factory: makes the runner, or its entry point ``"module:function"``, imported when first asked for.

    Raises:
        ValueError: a name with a colon, or one that the package keeps for itself.
    """
    _RUNNERS.register(kind, factory)


def _local(argument: str) -> ExpertRunner:
    if argument:
        raise ValueError(f"runner 'local' takes nothing behind a colon, got {argument!r}")
    return LocalRunner()


_RUNNERS: NamedFactories[Factory] = NamedFactories("runner", {"local": _local})
