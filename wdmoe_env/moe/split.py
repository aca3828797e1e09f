"""A mixture-of-experts model whose forward pass stops at every MoE block and waits for a decision.

The model's own code runs unmodified in a greenlet. At each block the hook switches to the caller, which
sees a ``BlockInput`` and answers with a selection; the experts run and the forward pass goes on.
"""

from __future__ import annotations

import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from functools import partial
from typing import Any, NoReturn

import torch
from greenlet import GreenletExit, getcurrent, greenlet
from greenlet import error as greenlet_error
from torch import Tensor

from wdmoe_env.moe.hook import (
    BlockInput,
    ExpertChooser,
    install_hook,
    policy_of_context,
    service_of_context,
    under,
    without_experts,
)
from wdmoe_env.moe.runner import ExpertFunction, ExpertRunner, LocalRunner, Service, expert_widths, order_weights
from wdmoe_env.moe.token_scores import output_layer

__all__ = ["BlockInput", "SplitForward", "SplitModel", "neutral_modes"]

_PROBE_TOKENS = 16
_PENDING = object()
_NEUTRAL_ALREADY: AbstractContextManager[None] = nullcontext()
_Modes = Callable[[], AbstractContextManager[Any]]
_orphans: list[tuple[greenlet, _Modes, int]] = []


class SplitModel:
    """A transformers MoE model, split at its MoE blocks.

    The model given is hooked in place, set to ``eval`` and frozen. Used directly it routes as before.

    Args:
        model: a causal language model whose experts transformers' experts registry serves.
        tokenizer: anything with ``encode(text) -> list[int]``.
        runner: runs the experts of a pass that names no other; the model's own by default. A function with the
            signature of ``run_experts`` is short for a ``LocalRunner`` of it.
        rebuild: function and arguments that load the same model again, for pickling.

    Attributes:
        model: the transformers model.
        tokenizer: as given.
        runner: as given, open.
        experts: the experts module of each block, in order.
        output_layer: makes the logits of the last hidden states; ``None`` where it is not that layer alone.
        num_blocks: number of MoE blocks, not of layers.
        num_experts: experts per block.
        top_k: experts per token by the model's own routing.
        hidden_size: width of what crosses the link, the input of a block.
        intermediate_size: width inside an expert.
        context_length: the most tokens of a sequence.
        vocabulary_size: token ids are below it.
        device: where the model is.
        dtype: type of its weights.

    Raises:
        ValueError: a model without MoE blocks that can be split.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any = None,
        runner: ExpertRunner | ExpertFunction | None = None,
        rebuild: tuple[Callable[..., SplitModel], tuple[Any, ...]] | None = None,
    ) -> None:
        self.model = model.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.runner = _runner(runner)
        self._rebuild = rebuild
        self.device: torch.device = model.device
        self.dtype: torch.dtype = model.dtype
        text_config = model.config.get_text_config()
        self.vocabulary_size = int(getattr(text_config, "vocab_size", 0))
        if not self.vocabulary_size:
            raise ValueError(f"expected a model of text, got {type(model).__name__}, which has no vocabulary")
        self.context_length = int(getattr(text_config, "max_position_embeddings", sys.maxsize))
        length = min(_PROBE_TOKENS, self.context_length, self.vocabulary_size)
        probe = torch.linspace(0, self.vocabulary_size - 1, length, device=self.device).long()[None]
        with neutral_modes(self.device.type):
            self.experts, self.top_k = install_hook(model, self.runner, probe)
            with without_experts():
                self.output_layer = output_layer(model, probe)
        self.num_blocks = len(self.experts)
        self.num_experts = int(self.experts[0].num_experts)
        self.hidden_size, self.intermediate_size = expert_widths(self.experts[0])
        order_weights(model, self.experts)
        self.runner.open(self)

    def forward(
        self,
        token_ids: Tensor,
        attention_mask: Tensor | None = None,
        read_out: Callable[[Any], Any] | None = None,
        inference: bool = False,
        service: Service | None = None,
    ) -> SplitForward:
        """Start a forward pass and stop at its first block.

        Args:
            token_ids: (N, J) int64.
            attention_mask: (N, J), 0 at padding; ``None`` means no padding.
            read_out: gets rows as of ``own_rows`` and returns the ``result``; the model's output is it by default.
            inference: run in torch's inference mode, which is faster; a learner's graph cannot use the tensors then.
            service: who runs the experts, for whom, and where it is kept what was not served; ``None`` is the model's
                own runner, for N episodes numbered from 0.

        Raises:
            ValueError: wrong shapes, types or token ids, or more tokens than the model's context.
        """
        inputs = self._inputs(token_ids, attention_mask)
        service = service or Service(None, tuple(range(len(token_ids))))
        if read_out is None:
            return SplitForward(self.model, lambda model: model(**inputs), inference, service)
        return SplitForward(self.model, lambda _: read_out(self._rows(inputs)), inference, service)

    def run(self, function: Callable[[Any], Any], service: Service | None = None) -> SplitForward:
        """Start any use of the model, such as ``lambda model: model.generate(...)``, and stop at its first block.

        Args:
            function: gets the transformers model; what it returns is the ``result``. It runs without gradients.
            service: who runs the experts, and for whom; ``None`` is the model's own runner, for no episode.
        """
        return SplitForward(self.model, function, service=service)

    def own_logits(self, token_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Logits (N, J, V) with the model's own routing, without stopping.

        Args:
            token_ids: (N, J) int64, as of ``forward``.
            attention_mask: (N, J), as of ``forward``.
        """
        with neutral_modes(self.device.type):
            return self.logits_under(None, token_ids, attention_mask)

    def logits_under(
        self,
        policy: ExpertChooser | None,
        token_ids: Tensor,
        attention_mask: Tensor | None = None,
        service: Service | None = None,
    ) -> Tensor:
        """Logits (N, J, V) under a policy that is called at each block, in the modes of the caller, without stopping.

        Where the caller has gradients on and the policy answers with a ``RelaxedSelection``, the logits have a gradient
        by its values.

        Args:
            policy: called at each block; ``None`` means the model's own routing.
            token_ids: (N, J) int64, as of ``forward``.
            attention_mask: (N, J), as of ``forward``.
            service: who runs the experts, as of ``forward``; ``None`` is the model's own runner, for no episode.
        """
        inputs = self._inputs(token_ids, attention_mask)
        with under(policy, service):
            logits: Tensor = self.model(**inputs).logits
        return logits

    def own_rows(self, token_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Last hidden states (N, J, H) under the model's own routing, in the modes of the caller.

        The service of the caller's context runs the experts, where there is one.

        A model whose logits are more than one layer's outputs gives its logits (N, J, V) instead.

        Args:
            token_ids: (N, J) int64, as of ``forward``.
            attention_mask: (N, J), as of ``forward``.
        """
        inputs = self._inputs(token_ids, attention_mask)
        with under(None, service_of_context.get()):
            return self._rows(inputs)

    def _rows(self, inputs: dict[str, Any]) -> Tensor:
        if self.output_layer is None:
            logits: Tensor = self.model(**inputs).logits
            return logits
        hidden_states: Tensor = self.model.base_model(**inputs).last_hidden_state
        return hidden_states

    def _inputs(self, token_ids: Tensor, attention_mask: Tensor | None) -> dict[str, Any]:
        if token_ids.dim() != 2 or token_ids.dtype != torch.int64 or not token_ids.numel():
            raise ValueError(f"token_ids must be int64 of shape (N, J), got {_describe(token_ids)}")
        if token_ids.shape[1] > self.context_length:
            raise ValueError(f"the model's context is {self.context_length} tokens, got {token_ids.shape[1]}")
        low, high = (int(bound) for bound in token_ids.aminmax())
        if low < 0 or high >= self.vocabulary_size:
            raise ValueError(f"token ids must lie in [0, {self.vocabulary_size}), got {low} to {high}")
        if attention_mask is not None and attention_mask.shape != token_ids.shape:
            shapes = f"{tuple(token_ids.shape)}, got {tuple(attention_mask.shape)}"
            raise ValueError(f"attention_mask must have the shape of token_ids, {shapes}")
        mask = None if attention_mask is None else attention_mask.long().to(self.device)
        return {"input_ids": token_ids.to(self.device), "attention_mask": mask, "use_cache": False}

    @property
    def name(self) -> str | None:
        """What ``load_model`` knows it by; ``None`` for one that was built from a model object."""
        return None if self._rebuild is None else str(self._rebuild[1][0])

    def __reduce__(self) -> tuple[Callable[..., SplitModel], tuple[Any, ...]]:
        """Pickle and copy by name: the copy is the process's one model of that name."""
        if self._rebuild is None:
            raise TypeError("a SplitModel built from a model object cannot be pickled or copied; load it by name")
        return self._rebuild


class SplitForward:
    """A use of a model under way, paused at an MoE block.

    It belongs to the thread that started it, and ends with it. Dropping the last reference ends it, like ``close``.

    Args:
        model: a transformers model with the hook installed.
        function: what to run; it holds no reference to this object.
        inference: whether to run it in inference mode.
        service: who runs the experts, and for whom; ``None`` is the model's own runner, for no episode.

    Attributes:
        block: where it is paused; ``None`` when it has finished, failed or was closed.
        service: as given.
    """

    def __init__(
        self, model: Any, function: Callable[[Any], Any], inference: bool = False, service: Service | None = None
    ) -> None:
        self.block: BlockInput | None = None
        self.service = service
        self._result: Any = _PENDING
        self._modes = partial(neutral_modes, model.device.type, inference)
        self._thread = threading.get_ident()
        self._greenlet = greenlet(partial(_run, model, function, self._modes, inference, service))
        this_thread.passes.add(self)
        # A finalizer rather than __del__, which may come too late at the end of the process.
        self._finalize = weakref.finalize(self, _end, self._greenlet, self._modes, self._thread)
        self._advance()

    @property
    def result(self) -> Any:
        """What the function returned.

        Raises:
            RuntimeError: it has not returned.
        """
        if self._result is _PENDING:
            raise RuntimeError("a forward pass has a result only after its last block")
        return self._result

    def resume(self, selection: Tensor | None) -> BlockInput | None:
        """Run the selected experts and go on to the next block.

        Args:
            selection: (T, E) bool, best on the CPU; ``None`` means the model's own routing.

        Returns:
            The next block, or ``None`` when the function has returned.

        Raises:
            ValueError: a selection of another shape or type; the forward pass stays where it was.
            RuntimeError: the forward pass is not paused, or was started by another thread.
            Exception: whatever the model's code raises; the forward pass is over then.
        """
        if self.block is None:
            raise RuntimeError("a forward pass that has ended cannot be resumed")
        if self._thread != threading.get_ident():
            raise RuntimeError("a paused forward pass can be resumed only by the thread that started it")
        expected = self.block.routed.shape
        fits = isinstance(selection, Tensor) and selection.dtype == torch.bool and selection.shape == expected
        if selection is not None and not fits:
            wanted = f"a bool tensor of shape {tuple(expected)}"
            raise ValueError(f"the selection must be {wanted} or None, got {_describe(selection)}")
        return self._advance(selection)

    def close(self) -> None:
        """End the forward pass where it is; more than once does no harm. Another thread only lets go of it."""
        self.block = None
        self._finalize()

    def _advance(self, *selection: Tensor | None) -> BlockInput | None:
        if _orphans:
            _end_orphans()
        self.block = None
        self._greenlet.parent = getcurrent()
        with self._modes():
            value = self._greenlet.switch(*selection)
        if self._greenlet.dead:
            self._result = value
        else:
            self.block = value
        return self.block

    def __reduce__(self) -> NoReturn:
        raise TypeError("a paused forward pass cannot be pickled or copied; start it again and replay the selections")


def _run(model: Any, function: Callable[[Any], Any], modes: _Modes, inference: bool, service: Service | None) -> Any:
    """Body of the greenlet. It must not refer to the ``SplitForward``, or neither would ever be freed."""
    policy_of_context.set(partial(_pause, modes, inference))
    service_of_context.set(service)
    return function(model)


def _pause(modes: _Modes, inference: bool, block: BlockInput) -> Tensor | None:
    """The policy of a paused forward pass: hand the block to the caller and wait for the selection."""
    with modes():
        if block.hidden_states.is_inference() and not inference:  # the function's own mode: a learner may want them
            tensors = (block.hidden_states, block.gate_probs, block.routed)
            block = BlockInput(block.index, *(tensor.clone() for tensor in tensors))
        selection: Tensor | None = getcurrent().parent.switch(block)
    return selection


def _end(paused: greenlet, modes: _Modes, thread: int) -> None:
    """Unwind a paused forward pass, as often as its code catches the exit and goes on.

    Only its own thread can. Let go by another, it is kept until that thread next runs a forward pass: greenlet
    itself would unwind it at any switch, outside the guard, and leave the thread in the modes of the forward pass.
    """
    if thread != threading.get_ident():
        _orphans.append((paused, modes, thread))
        return
    with modes(), suppress(greenlet_error):
        while not paused.dead and _adopted(paused):
            paused.throw(GreenletExit)


def _adopted(paused: greenlet) -> bool:
    """Whether a pass can be unwound here; not one of a former thread, or of a forked parent's, with the same number."""
    try:
        paused.parent = getcurrent()
    except ValueError:
        return False
    return True


def _end_orphans() -> None:
    """End what other threads let go of and this one started."""
    own = [orphan for orphan in _orphans if orphan[2] == threading.get_ident()]
    for orphan in own:
        _orphans.remove(orphan)
        _end(*orphan)


class _Life:
    """Is dropped when a thread ends."""


class _Thread(threading.local):
    """The thread at hand, and the passes that it has started.

    ``mark`` stands for the thread. Its number will not do: once a thread has ended, another may get its number.
    """

    def __init__(self) -> None:
        self.mark, self._life = object(), _Life()
        self.passes: weakref.WeakSet[SplitForward] = weakref.WeakSet()
        weakref.finalize(self._life, _end_all, self.passes)


def _end_all(passes: weakref.WeakSet[SplitForward]) -> None:
    """End the passes of a thread, which is about to end itself: afterwards nobody could, nor free their tensors."""
    for one in list(passes):
        one.close()
    _end_orphans()


this_thread = _Thread()


def _runner(runner: ExpertRunner | ExpertFunction | None) -> ExpertRunner:
    if runner is None:
        return LocalRunner()
    return runner if isinstance(runner, ExpertRunner) else LocalRunner(runner)


def neutral_modes(device_type: str, inference: bool = False) -> AbstractContextManager[Any]:
    """A context without gradients and autocast, in inference mode or not; the former modes come back after it.

    These modes belong to the thread, and a greenlet switch does not exchange them. Where both sides of every
    switch are in this context, neither sees the other's modes: a learner's ``backward`` works while a forward
    pass is paused, and a learner's autocast does not reach the model.

    Args:
        device_type: of the model, ``"cpu"`` or ``"cuda"``.
        inference: whether in inference mode, which is faster; a learner's graph cannot use what is made there.
    """
    if torch.is_autocast_enabled(device_type):
        return _without_autocast(device_type, inference)
    if torch.is_inference_mode_enabled() != inference:
        return torch.inference_mode() if inference else _OutsideInference()
    return torch.no_grad() if torch.is_grad_enabled() else _NEUTRAL_ALREADY


class _OutsideInference(torch.inference_mode):
    """No inference mode, and no gradients either, which leaving it alone would turn on."""

    def __init__(self) -> None:
        super().__init__(False)

    def __enter__(self) -> None:
        super().__enter__()
        torch.set_grad_enabled(False)  # the former mode comes back with the inference mode


@contextmanager
def _without_autocast(device_type: str, inference: bool) -> Iterator[None]:
    # Without the cache, or the other side's autocast would go on using casts of weights that have changed.
    with torch.autocast(device_type, enabled=False, cache_enabled=False), neutral_modes(device_type, inference):
        yield


def _describe(value: Any) -> str:
    return f"{value.dtype} of shape {tuple(value.shape)}" if isinstance(value, Tensor) else repr(value)
