"""The experts of a block: who runs them, and how they run in this process.

A runner has a life: it is opened with a model, runs one block's experts at a time, and is closed. It says which pairs
of token and expert were served, so that a pass goes on without those that were not. ``register_runner`` gives one a
name, by which ``EnvConfig.runner`` and ``gymnasium.make(..., runner="KIND:ARGUMENT")`` choose it.

``LocalRunner`` runs the model's own experts by one of two strategies. Both compute the same sum, and run every expert
on exactly the tokens that were sent to it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from wdmoe_env.named import NamedFactories

ExpertFunction = Callable[[Any, Tensor, Tensor, Tensor], Tensor]
"""(experts module, hidden states (T, H), selection (T, E) bool, weights (T, E)) -> outputs (T, H)."""

_Linear = Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""(inputs, weight (E, outputs, inputs), bias (E, outputs)) of a fused layer -> outputs."""

_GROUPED_MOST_HIDDEN = 2**18  # tokens x width, on the CPU; above, what a layer of all experts puts out outgrows caches

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
        link_bits: bits of an element that crosses the link; one number, or (T, U) int64 for each row's messages to and
            from each device.
        rows: (T,) for each row which row of the pass it is; ``None`` where these are all of them, in order.
        num_rows: how many rows the pass has, where ``rows`` are given.
    """

    block: int
    hidden_states: Tensor
    selection: Tensor
    weights: Tensor
    sequences: tuple[int, ...] = ()
    link_bits: int | Tensor = 16
    rows: Tensor | None = None
    num_rows: int | None = None

    @property
    def episodes(self) -> NDArray[np.int64]:
        """Number of the episode of each row, (T,); -1 where the pass is of none."""
        sequences = self.sequences or (-1,)
        count = len(self.hidden_states) if self.num_rows is None else self.num_rows
        of_pass = np.repeat(np.array(sequences, dtype=np.int64), count // len(sequences))
        return of_pass if self.rows is None else of_pass[self.rows.numpy(force=True)]


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


@dataclass(slots=True, eq=False)
class Service:
    """Who serves the experts of one pass, and what came of the last block.

    Attributes:
        runner: ``None`` is the model's own.
        sequences: numbers of the N episodes of the pass, whose rows follow each other.
        link_bits: of the next call, one number or (T, U), as of ``ExpertCall``.
        unserved_pairs: (N,) pairs of the last block that were selected and not served.
        timings_s: of the last answer.
    """

    runner: ExpertRunner | None
    sequences: tuple[int, ...]
    link_bits: int | Tensor = 16
    unserved_pairs: NDArray[np.int64] = field(init=False)
    timings_s: Mapping[str, float] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        """Nothing was dropped so far."""
        self.unserved_pairs = np.zeros(len(self.sequences), dtype=np.int64)


def run_experts(
    experts: Any, hidden_states: Tensor, selection: Tensor, weights: Tensor, strategy: str | None = None
) -> Tensor:
    """Weighted sum of the selected experts' outputs, per token.

    Args:
        experts: an experts module of transformers: the fused weights of the E experts of one block.
        hidden_states: (T, H) input of the block.
        selection: (T, E) bool; a token may have any number of experts, none included. Best on the CPU, wherever the
            model is: its pairs are listed there, so that no device has to be waited for.
        weights: (T, E) weight of each expert's output; read only where selected.
        strategy: of ``STRATEGIES``; ``None`` takes the faster one.

    Returns:
        (T, H); zero for a token without expert.
    """
    by_expert = selection.numpy(force=True).T
    expert, token = by_expert.nonzero()
    pairs = np.empty((2, len(token)), dtype=np.int64)  # one array, since it may have to be sent to a device
    pairs[0], pairs[1] = token, token * len(by_expert) + expert
    there = torch.from_numpy(pairs).to(hidden_states.device)
    token_of_row, pair_of_row = there[0], there[1]
    run = STRATEGIES[strategy or choose_strategy(experts, hidden_states)]
    counts = np.bincount(expert, minlength=len(by_expert))
    outputs = run(experts, hidden_states.index_select(0, token_of_row), counts)
    weighted = (outputs * weights.take(pair_of_row)[:, None]).to(hidden_states.dtype)
    return torch.zeros_like(hidden_states).index_add_(0, token_of_row, weighted)


def choose_strategy(experts: Any, hidden_states: Tensor) -> str:
    """Name of the faster strategy for a block's input (T, H), as measured in ``docs/performance.md``."""
    weight = experts.down_proj
    # The numbers of a matrix over its outer width are the width inside an expert.
    if hidden_states.is_cpu and len(hidden_states) * weight[0].numel() > _GROUPED_MOST_HIDDEN * hidden_states.shape[1]:
        return "slices"
    size = weight.element_size()
    can_group = (  # the operands that torch's grouped product takes: of one type and 16-byte aligned
        hasattr(functional, "grouped_mm")
        and (hidden_states.is_cpu or (hidden_states.is_cuda and _has_grouped_kernel(hidden_states.device)))
        and hidden_states.dtype == weight.dtype
        and weight.dtype in (torch.float32, torch.bfloat16, torch.float16)
        and (weight.data_ptr() % 16, weight.shape[1] * size % 16, weight.shape[2] * size % 16) == (0, 0, 0)
    )
    return "grouped" if can_group else "slices"


def run_expert(experts: Any, expert: int, hidden_states: Tensor) -> Tensor:
    """Output (T, H) of one expert on tokens (T, H), unweighted."""

    def linear(inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return functional.linear(inputs, weight[expert], None if bias is None else bias[expert])

    return _feed_forward(experts, hidden_states, linear)


def expert_widths(experts: Any) -> tuple[int, int]:
    """Width of an expert's input and output, and width inside it."""
    outer, inner = experts.down_proj.shape[1:]
    return (inner, outer) if experts.is_transposed else (outer, inner)


def order_weights(model: nn.Module, blocks: Sequence[Any]) -> None:
    """Store the weights of experts and linear layers in the order in which a product of few rows reads them.

    That is inputs first. Checkpoints mostly have the outputs first, and MKL then turns the weights around in each
    product. Shapes, values and memory in use stay as they are. Nothing happens but on the CPU in single precision.

    Args:
        model: a frozen transformers model.
        blocks: its experts modules.
    """
    weights = [module._parameters["weight"] for module in model.modules() if type(module) is nn.Linear]
    for experts in blocks:
        names = () if experts.is_transposed else ("gate_up_proj", "up_proj", "down_proj")
        weights += [experts._parameters.get(name) for name in names]
    for weight in weights:
        if weight is not None and weight.is_cpu and weight.dtype == torch.float32:
            weight.data = weight.data.transpose(-2, -1).contiguous().transpose(-2, -1)


def _slices(experts: Any, rows: Tensor, counts: NDArray[np.int64]) -> Tensor:
    """Each expert runs from its first layer to its last on a slice of the rows."""
    parts = enumerate(torch.split_with_sizes(rows, counts.tolist()))
    outputs = [run_expert(experts, expert, part) for expert, part in parts if len(part)]
    return torch.cat(outputs) if outputs else rows


def _grouped(experts: Any, rows: Tensor, counts: NDArray[np.int64]) -> Tensor:
    """Torch's grouped product: a layer of all experts in one call."""
    ends = torch.from_numpy(counts.cumsum(dtype=np.int32)).to(rows.device)

    def linear(inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        outputs = functional.grouped_mm(inputs, weight.transpose(-2, -1), offs=ends)
        if bias is None:
            return outputs
        each = torch.from_numpy(counts).to(bias.device)
        return outputs + bias.repeat_interleave(each, dim=0, output_size=len(inputs))

    return _feed_forward(experts, rows, linear)


STRATEGIES: dict[str, Callable[[Any, Tensor, NDArray[np.int64]], Tensor]] = {"slices": _slices, "grouped": _grouped}
"""(experts module, rows (R, H) in the order of their experts, rows of each of the E experts) -> outputs (R, H)."""


def _feed_forward(experts: Any, inputs: Tensor, linear: _Linear) -> Tensor:
    """One or many experts on rows (T, H), of any layout that transformers' experts modules declare."""
    rows = inputs
    for name in ("gate_up_proj" if experts.has_gate else "up_proj", "down_proj"):
        weight = getattr(experts, name)
        bias = getattr(experts, f"{name}_bias") if experts.has_bias else None
        rows = linear(rows, weight.transpose(-2, -1) if experts.is_transposed else weight, bias)
        if name != "down_proj":
            rows = experts._apply_gate(rows) if experts.has_gate else experts.act_fn(rows)
    return experts.post_expert_norm(rows) if getattr(experts, "has_post_expert_norm", False) else rows


def _has_grouped_kernel(device: torch.device) -> bool:
    """Whether torch's grouped product runs on a GPU, as on those of 2020 on; transformers asks in the same way."""
    return torch.cuda.get_device_capability(device) >= (8, 0)


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


def _local(_: str) -> ExpertRunner:
    return LocalRunner()


_RUNNERS: NamedFactories[Factory] = NamedFactories(
    "runner", {"local": _local, "testbed": "wdmoe_env.testbed.station:testbed_runner"}, bare=("local",)
)
