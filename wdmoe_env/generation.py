"""Text generated under a policy: each pass of ``generate``, over the prompt and then token by token, is an episode.

A pass sends what it reads over the air: all of the prompt, then one token. Time goes on from pass to pass. With I
blocks in a pass, pass k = 0, 1, ... of a text meets the blocks k * I to k * I + I - 1 of one channel of the same
devices. That channel has at most ``wdmoe_env.physics.channel.MOST_BLOCKS`` blocks. After its last whole pass it begins
again from its first block, and so does a recorded channel after the last whole pass of its recording. A policy with a
state keeps it from pass to pass, and the devices keep their heat.

One text at a time goes this way, under any of the settings of transformers' own ``generate``. Many texts at once, whose
prompts are read in chunks beside answers, are those of ``WDMoE-Serve-v0`` with ``generate=True``, which decodes
greedily: ``generate`` can hold no such batch. Both give the same greedy tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import pad
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    StoppingCriteria,
    StoppingCriteriaList,
)

from wdmoe_env.checks import check_integer, did_you_mean
from wdmoe_env.episodes import check_tokens
from wdmoe_env.moe.finite import check_finite
from wdmoe_env.moe.hook import BlockInput
from wdmoe_env.moe.split import SplitForward
from wdmoe_env.physics.channel import ChannelTrace
from wdmoe_env.physics.latency import Float
from wdmoe_env.rollout.passes import Passes
from wdmoe_env.rollout.rollout import Rollout
from wdmoe_env.scoring import Memory, Player, Scorer, Terms, channel_generator
from wdmoe_env.text.windows import TokenWindows

REFUSED = {
    "assistant_early_exit": "its drafts leave the last blocks out",
    "assistant_model": "the passes of a second model would not go over the air",
    "compile_config": "a compiled pass cannot pause at its blocks",
    "continuous_batching_config": "it mixes passes of many texts",
    "custom_generate": "it runs code from elsewhere",
    "generation_config": "its fields are given one by one",
    "max_length": "max_new_tokens alone ends a text",
    "token_healing": "it writes the prompt anew",
    "trust_remote_code": "it runs code from elsewhere",
    "use_mtp": "its drafts come from layers that are not split",
}
"""Settings that are not taken, and why: mostly, what they do cannot be simulated."""

_FIELDS = frozenset(name for name in vars(GenerationConfig()) if not name.startswith("_"))

TAKEN = (_FIELDS | {"logits_processor", "prefix_allowed_tokens_fn", "streamer", "tokenizer"}) - REFUSED.keys()
"""Settings that are passed on: the other fields of transformers' ``GenerationConfig``, and four objects beside them."""


def generate(
    scorer: Scorer,
    prompt: Sequence[int],
    seed: int,
    max_new_tokens: int,
    stop: Callable[[list[int]], bool] = lambda tokens: False,
    **settings: Any,
) -> tuple[list[int], Terms]:
    """Go on with a prompt under a policy.

    Args:
        scorer: policy, model and radio.
        prompt: token ids, as many as the longest window holds at most.
        seed: of the channel; the first pass meets the episode of an environment of that seed.
        max_new_tokens: the most to generate.
        stop: called with the tokens generated so far, of the best beam where there are several; True ends the text.
        **settings: for transformers' ``generate``, as of ``check_settings``; none is greedy decoding.

    Returns:
        Token ids of what was generated, the first where several texts were asked for, and the terms of the reward, each
        (blocks of all passes, 1). A pass reads the rows of all beams.

    Raises:
        ValueError: a setting is unknown, or cannot be simulated, or a token of the prompt that the model does not know.
        FloatingPointError: what the model hands out is not finite.
    """
    check_settings(scorer, len(prompt), max_new_tokens, settings)
    check_tokens(scorer.model, np.asarray(prompt))
    ids = torch.tensor([list(prompt)], device=scorer.model.device)
    criteria = StoppingCriteriaList([_Stop(len(prompt), stop)])
    given = {name: value for name, value in settings.items() if name in TAKEN and value is not None}
    options = {"do_sample": False, **given, "max_new_tokens": max_new_tokens, "disable_compile": True}
    options["stopping_criteria"] = criteria
    # Before the caller's own, which may rule tokens out by scores that are not finite.
    checks = [_Check(scorer.model.model), *(given.get("logits_processor") or ())]
    options["logits_processor"] = LogitsProcessorList(checks)
    simulator = scorer.player(scorer.padded(len(prompt))).process.simulator
    trace, num_blocks = scorer.channel.sample([channel_generator(seed)]), simulator.sizes.num_blocks
    forward = scorer.model.run(
        lambda model: model.generate(ids, attention_mask=torch.ones_like(ids), **options),
        simulator.service(1),
    )
    passes: list[Terms] = []
    heat, memory = None, Memory()
    try:
        while forward.block is not None:
            player = scorer.player(scorer.padded(len(forward.block.routed)))
            of_pass = trace.of_pass(len(passes), num_blocks)
            rollout = _pass_rollout(player, forward, of_pass, heat)
            passes.append(player.play(rollout, memory))
            heat = rollout.heat
        texts = getattr(forward.result, "sequences", forward.result)  # of ``return_dict_in_generate``
        tokens: list[int] = texts[0, len(prompt) :].tolist()
    finally:
        forward.close()
    return tokens, {name: np.concatenate([terms[name] for terms in passes]) for name in passes[0]}


def check_settings(scorer: Scorer, prompt_tokens: int, max_new_tokens: int, settings: Mapping[str, Any]) -> None:
    """Refuse settings that would be ignored or cannot be simulated, before the first pass.

    Args:
        scorer: policy, model and radio.
        prompt_tokens: length of the prompt.
        max_new_tokens: the most to generate.
        settings: for transformers' ``generate``, of ``TAKEN``; ``None`` is as good as none.

    Raises:
        ValueError: a name that ``generate`` does not take (the nearest ones are named), one of ``REFUSED``, values that
            exclude each other, or more beams than fit a window.
    """
    check_integer("max_new_tokens", max_new_tokens, at_least=1)
    for name, value in settings.items():
        if name not in TAKEN and name not in REFUSED:
            hint = did_you_mean(name, TAKEN)
            raise ValueError(f"expected settings of transformers' generate, got {name!r}{hint}")
        if name in REFUSED and value is not None and value is not False:
            raise ValueError(f"the setting {name} is not taken, since {REFUSED[name]}; got {value!r}")
    if settings.get("cache_implementation") == "paged":
        reason = REFUSED["continuous_batching_config"]
        raise ValueError(f"the setting cache_implementation is not taken, since {reason}; got 'paged'")
    _check_rows(scorer, prompt_tokens, max_new_tokens, settings)
    GenerationConfig(**{name: value for name, value in settings.items() if name in _FIELDS})  # refuses contradictions


def _check_rows(scorer: Scorer, prompt_tokens: int, max_new_tokens: int, settings: Mapping[str, Any]) -> None:
    """Refuse more beams than a window holds: ``generate`` puts the prompt of each into one pass."""

    def chosen(name: str, default: Any) -> Any:
        """Of the settings, else of the model's own ones."""
        own = getattr(scorer.model.model.generation_config, name, None)
        values = (settings.get(name), own, default)
        return next(value for value in values if value is not None)

    copies = {name: chosen(name, 1) for name in ("num_beams", "num_return_sequences")}
    for name, count in copies.items():
        check_integer(name, count, at_least=1)
    sequences = max(copies.values())
    read = prompt_tokens if chosen("use_cache", True) else prompt_tokens + max_new_tokens - 1
    if sequences * read > scorer.config.num_tokens:
        raise ValueError(
            f"num_tokens must be at least {sequences * read}, a pass over {sequences} sequences of {read} tokens "
            f"(num_beams, num_return_sequences), got {scorer.config.num_tokens}"
        )


def _pass_rollout(player: Player, forward: SplitForward, trace: ChannelTrace, heat: Float | None) -> Rollout:
    """One pass of a generation under way, as an episode of a window that it fills from the left.

    Args:
        player: of windows that are long enough.
        forward: the generation, paused at the pass's first block.
        trace: the channel of the pass.
        heat: (1, U) of the devices when it begins; ``None`` in the first pass.

    Raises:
        ValueError: the pass reads more tokens than a window holds.
    """
    world = player.process.simulator.world
    num_tokens = world.sizes.num_tokens
    passes = _Pass(forward, world.sizes.num_blocks, num_tokens)
    read = len(passes.paused.routed)
    if read > num_tokens:  # the rest would be cut off without a word
        raise ValueError(f"a pass must fit a window of num_tokens, {num_tokens}, got {read} tokens")
    ids = np.zeros((1, num_tokens), dtype=np.int64)
    texts = TokenWindows(ids, ids, np.arange(num_tokens)[None] < read, ("",))
    return Rollout(world, texts, trace, passes.begin, heat=heat)


class _Pass:
    """One pass of a generation as ``Passes`` of one text: its blocks, padded to a window."""

    def __init__(self, forward: SplitForward, num_blocks: int, num_tokens: int) -> None:
        self._generation, self._left, self._num_tokens = forward, num_blocks, num_tokens
        self._begun = False

    def begin(self) -> Passes:
        """The pass itself, once: what came before it in the generation cannot be run again.

        Raises:
            RuntimeError: it has begun already.
        """
        if self._begun:
            raise RuntimeError("a pass of a generation cannot begin again: it belongs to the thread that generates")
        self._begun = True
        return self

    @property
    def paused(self) -> BlockInput:
        """Where the generation is."""
        block = self._generation.block
        if block is None:
            raise RuntimeError("a generation that has ended has no block")
        return block

    @property
    def blocks(self) -> list[BlockInput]:
        """Where the pass is, padded; nothing after its last block."""
        if not self._left:
            return []
        at = self.paused
        tensors = (at.hidden_states.flatten(0, -2), at.gate_probs, at.routed)
        below = self._num_tokens - len(at.routed)
        return [BlockInput(at.index, *(pad(tensor, (0, 0, 0, below)) for tensor in tensors))]

    def resume(self, selection: Tensor | None, link_bits: Tensor | int | None = None) -> None:
        """Go on to the next block."""
        self._left -= 1
        rows = len(self.paused.routed)
        if link_bits is not None and self._generation.service is not None:
            self._generation.service.link_bits = link_bits if isinstance(link_bits, int) else link_bits[:rows]
        self._generation.resume(None if selection is None else selection[:rows])

    def unserved_pairs(self) -> NDArray[np.int64]:
        """Pairs (1,) that were selected in the last block and not served."""
        service = self._generation.service
        return np.zeros(1, dtype=np.int64) if service is None else service.unserved_pairs

    def scores(self) -> None:
        """None: the text is not there yet."""

    def close(self) -> None:
        """Nothing: the generation is its maker's to close."""


class _Check(LogitsProcessor):  # type: ignore[misc]
    """Refuses scores that a token cannot be chosen by; greedy decoding would take some token all the same."""

    def __init__(self, model: Any) -> None:
        self._model = model

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        # The best one shows NaN and infinity, and not the -inf of a token that may not be chosen.
        check_finite(self._model, "scores of the next token", scores.amax(dim=-1).float().numpy(force=True))
        return scores


class _Stop(StoppingCriteria):  # type: ignore[misc]
    def __init__(self, prompt: int, stop: Callable[[list[int]], bool]) -> None:
        self._prompt, self._stop = prompt, stop

    def __call__(self, input_ids: Tensor, scores: Any, **keywords: Any) -> Tensor:
        done = self._stop(input_ids[0, self._prompt :].tolist())  # the first row is the best beam's
        return torch.full((len(input_ids),), done, device=input_ids.device)
