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

_Linear = Callable[[str, Tensor], Tensor]
"""(name of a fused layer, inputs) -> outputs."""

_GROUPED_MAX_TOKENS = 256  # on the CPU; above, what a layer of all experts puts out no longer stays in its caches

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


def run_experts(experts: Any, hidden_states: Tensor, selection: Tensor, weights: Tensor) -> Tensor:
    """Weighted sum of the selected experts' outputs, per token.

    Args:
        experts: an experts module of transformers: the fused weights of the E experts of one block.
        hidden_states: (T, H) input of the block.
        selection: (T, E) bool; a token may have any number of experts, none included. Best on the CPU, wherever the
            model is: its rows are listed there.
        weights: (T, E) weight of each expert's output; read only where selected.

    Returns:
        (T, H); zero for a token without expert.
    """
    return STRATEGIES[choose_strategy(experts, hidden_states)](experts, hidden_states, selection, weights)


def choose_strategy(experts: Any, hidden_states: Tensor) -> str:
    """Name of the faster strategy for a block's input (T, H), as measured in ``docs/performance.md``."""
    few = len(hidden_states) <= _GROUPED_MAX_TOKENS or not hidden_states.is_cpu
    return "grouped" if few and _can_group(experts.down_proj, hidden_states) else "slices"


def run_expert(experts: Any, expert: int, hidden_states: Tensor) -> Tensor:
    """Output (T, H) of one expert on tokens (T, H), unweighted."""

    def linear(name: str, inputs: Tensor) -> Tensor:
        weight, bias = _layer_parameters(experts, name)
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
        weights += [experts._parameters[name] for name in _layer_names(experts) if not experts.is_transposed]
    for weight in weights:
        if weight is not None and weight.is_cpu and weight.dtype == torch.float32:
            weight.data = weight.data.transpose(-2, -1).contiguous().transpose(-2, -1)


def _slices(experts: Any, hidden_states: Tensor, selection: Tensor, weights: Tensor) -> Tensor:
    """One gather and one add for all experts; each runs from its first layer to its last on a slice of the rows."""
    rows = _Rows.of(selection, hidden_states.device)
    parts = torch.split_with_sizes(hidden_states.index_select(0, rows.token), rows.counts)
    outputs = [run_expert(experts, expert, part) for expert, part in enumerate(parts) if len(part)]
    return rows.weighted_sum(torch.cat(outputs) if outputs else parts[0], hidden_states, weights)


def _grouped(experts: Any, hidden_states: Tensor, selection: Tensor, weights: Tensor) -> Tensor:
    """Torch's grouped product: a layer of all experts in one call."""
    rows = _Rows.of(selection, hidden_states.device)
    each = torch.tensor(rows.counts, device=hidden_states.device)
    ends = each.cumsum(dim=0, dtype=torch.int32)

    def linear(name: str, inputs: Tensor) -> Tensor:
        weight, bias = _layer_parameters(experts, name)
        outputs = functional.grouped_mm(inputs, weight.transpose(-2, -1), offs=ends)
        return outputs if bias is None else outputs + bias.repeat_interleave(each, dim=0, output_size=len(inputs))

    outputs = _feed_forward(experts, hidden_states.index_select(0, rows.token), linear)
    return rows.weighted_sum(outputs, hidden_states, weights)


STRATEGIES: dict[str, ExpertFunction] = {"slices": _slices, "grouped": _grouped}


@dataclass(frozen=True, slots=True)
class _Rows:
    """Selected pairs in the order of their experts.

    Attributes:
        token: (R,) token of each row.
        pair: (R,) index of each row in a flattened (T, E) matrix.
        counts: rows of each of the E experts.
    """

    token: Tensor
    pair: Tensor
    counts: list[int]

    @classmethod
    def of(cls, selection: Tensor, device: torch.device) -> _Rows:
        """List a selection (T, E) on the CPU, so that no device has to be waited for."""
        by_expert = selection.numpy(force=True).T
        expert, token = by_expert.nonzero()
        rows = np.empty((2, len(token)), dtype=np.int64)  # one array, since it may have to be sent to a device
        rows[0], rows[1] = token, token * len(by_expert) + expert
        on_device = torch.from_numpy(rows).to(device)
        return cls(on_device[0], on_device[1], np.bincount(expert, minlength=len(by_expert)).tolist())

    def weighted_sum(self, outputs: Tensor, hidden_states: Tensor, weights: Tensor) -> Tensor:
        """Sum (T, H), like hidden states (T, H), of the rows' outputs (R, H) by weights (T, E)."""
        weighted = (outputs * weights.take(self.pair)[:, None]).to(hidden_states.dtype)
        return torch.zeros_like(hidden_states).index_add_(0, self.token, weighted)


def _feed_forward(experts: Any, inputs: Tensor, linear: _Linear) -> Tensor:
    """One or many experts on rows (T, H), of any layout that transformers' experts modules declare."""
    first, last = _layer_names(experts)
    hidden = linear(first, inputs)
    outputs = linear(last, experts._apply_gate(hidden) if experts.has_gate else experts.act_fn(hidden))
    return experts.post_expert_norm(outputs) if getattr(experts, "has_post_expert_norm", False) else outputs


def _layer_names(experts: Any) -> tuple[str, str]:
    """The fused layers of an experts module, first and last."""
    return ("gate_up_proj" if experts.has_gate else "up_proj"), "down_proj"


def _layer_parameters(experts: Any, name: str) -> tuple[Tensor, Tensor | None]:
    """Weight (E, outputs, inputs) and bias (E, outputs) of a fused layer."""
    weight = getattr(experts, name)
    bias = getattr(experts, f"{name}_bias") if experts.has_bias else None
    return weight.transpose(-2, -1) if experts.is_transposed else weight, bias


def _can_group(weight: Tensor, hidden_states: Tensor) -> bool:
    """Whether torch's grouped product takes the operands: present, of one type, 16-byte aligned, a GPU of 2020 on."""
    strides = [size * weight.element_size() for size in weight.shape[1:]]
    return (
        hasattr(functional, "grouped_mm")
        and (hidden_states.is_cpu or (hidden_states.is_cuda and _has_grouped_kernel(hidden_states.device)))
        and hidden_states.dtype == weight.dtype
        and weight.dtype in (torch.float32, torch.bfloat16, torch.float16)
        and all(address % 16 == 0 for address in (weight.data_ptr(), *strides))
    )


def _has_grouped_kernel(device: torch.device) -> bool:
    """Whether a GPU is one that torch's grouped product runs on, which transformers asks in the same way."""
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


def _local(argument: str) -> ExpertRunner:
    if argument:
        raise ValueError(f"runner 'local' takes nothing behind a colon, got {argument!r}")
    return LocalRunner()


_RUNNERS: NamedFactories[Factory] = NamedFactories(
    "runner", {"local": _local, "testbed": "wdmoe_env.testbed.station:testbed_runner"}
)
