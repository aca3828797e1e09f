"""EleutherAI's evaluation harness, ``lm_eval``: any policy on any channel as one of its models.

The tasks and their scoring are the harness's own; here a model answers its requests, and keeps how long the answers
would have taken over the air.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from importlib import resources
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm
from transformers import AutoTokenizer

from wdmoe_env.checks import check_integer
from wdmoe_env.config import EnvConfig
from wdmoe_env.generation import check_settings, generate
from wdmoe_env.integrations.airtime import Airtime
from wdmoe_env.integrations.lm_eval_arguments import Chosen, batch_size_of, device_of, document_seed, nested
from wdmoe_env.moe.zoo import load_model
from wdmoe_env.optional import optional
from wdmoe_env.scoring import PolicyMaker, Scorer, WindowScores
from wdmoe_env.text.continuations import Continuation, cut_contexts, encode_continuations

with optional("lm-eval", extra="lm-eval"):
    from lm_eval.api.instance import Instance
    from lm_eval.api.model import LM
    from lm_eval.models.utils import (
        handle_stop_sequences,
        has_bos_prefix,
        normalize_gen_kwargs,
        postprocess_generated_text,
    )
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

MOST_TOKENS = 2048
"""Length of the longest window where none is asked for and the model's context is longer."""

MOST_NEW_TOKENS = 256
"""Tokens to generate where a task does not say."""

VANILLA = "vanilla"


@dataclass(frozen=True, slots=True)
class _Asked:
    """A text to generate: token ids before it, the most tokens of it, where it stops, settings of ``generate``."""

    prompt: list[int]
    count: int
    until: list[str]
    settings: dict[str, Any]


class WDMoELM(LM):  # type: ignore[misc]
    """A split model under a policy, as ``lm_eval`` takes it.

    Every request is a window of its own, of its context and what follows. All requests of a document meet the same
    devices and the same channel. A document that has a number in a field ``channel_seed`` meets that one; others meet
    one that follows from ``seed``, the task and the document, whatever else is evaluated. Where a text is generated,
    its passes meet one part of the channel after the other, see ``wdmoe_env.generation``.

    Args:
        policy: ``"vanilla"``, the model's own routing at equal shares, or a function from an environment (anything with
            its ``codec``) to what has Stable-Baselines3's ``predict``.
        seed: of the channels.
        num_tokens: tokens of the longest window; a longer context loses its beginning. ``None`` takes the model's
            context, at most ``MOST_TOKENS``.
        reference: whether every window runs a second time with the model's own routing at equal shares, for the ratio
            of the latencies.
        add_bos_token: whether texts begin with the tokenizer's BOS; ``None`` does as the tokenizer does by itself.
        batch_size: windows at once, or ``"auto"``: as many as hold 8,192 tokens.
        max_batch_size: the harness passes it; nothing depends on it.
        device: torch device; where there is no CUDA, one that begins with ``cuda`` is the CPU.
        **environment: fields of ``EnvConfig``; ``channel.fading`` stands for a field of a nested one.

    Attributes:
        airtime: latency of the requests, task by task.
        max_length: tokens of the longest window.
        tokenizer: the model's, as transformers loads it.

    Raises:
        ValueError, TypeError: a policy or a setting is wrong or unknown.
    """

    def __init__(
        self,
        policy: str | PolicyMaker = VANILLA,
        seed: int = 7,
        num_tokens: int | None = None,
        reference: bool = True,
        add_bos_token: bool | None = None,
        batch_size: int | str = "auto",
        max_batch_size: int | None = None,
        device: str | None = None,
        **environment: Any,
    ) -> None:
        super().__init__()
        check_integer("seed", seed, at_least=0)
        if "split" in environment:
            raise ValueError(
                f"split does not go with lm_eval, whose tasks bring the texts; got {environment['split']!r}"
            )
        self.policy, self.seed = policy, seed
        self._batch_size = batch_size_of(batch_size)
        chosen = self.choose(policy, seed)
        settings = {"device": device_of(device), **chosen.settings, **nested(environment)}
        config = EnvConfig.make(settings, split="test")
        model = load_model(config.model, config.device, config.dtype)
        self.max_length = min(model.context_length, MOST_TOKENS) if num_tokens is None else num_tokens
        self._scorer = Scorer(chosen.make, replace(config, num_tokens=self.max_length), reference, chosen.one_length)
        own = model.model.name_or_path or resources.files("wdmoe_env") / "assets" / "tiny"  # "micro" has no folder
        self.tokenizer = AutoTokenizer.from_pretrained(str(own), trust_remote_code=False)
        self._add_bos_token = add_bos_token
        self.airtime = Airtime()
        self.contexts_cut = 0

    def choose(self, policy: str | PolicyMaker, seed: int) -> Chosen:
        """What makes the policy, and what it needs.

        Args:
            policy: as given.
            seed: for what draws.

        Raises:
            ValueError: an unknown name.
        """
        if callable(policy):
            return Chosen(policy, one_length=True)
        if policy != VANILLA:
            raise ValueError(
                f"policy must be {VANILLA!r} or a function from an environment to a policy, got {policy!r}"
            )
        return Chosen(None)

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Log-probability in nats of what follows each context, and whether it is what greedy decoding gives.

        Args:
            requests: each with ``args`` (context, text that follows).
            disable_tqdm: whether to show no bars.

        Raises:
            ValueError: a text is longer than a window, or has no token.
        """
        seeds = [self._seed_of(request) for request in requests]
        continuations = self._encoded(requests, seeds, disable_tqdm)
        answers: list[Any] = [None] * len(requests)
        for rows, scores in self._scores("loglikelihood", requests, continuations, seeds, disable_tqdm):
            for row, logprob, greedy in zip(rows, scores.logprob.tolist(), scores.greedy.tolist(), strict=True):
                answers[row] = (logprob, greedy)
                self.cache_hook.add_partial("loglikelihood", requests[row].args, answers[row])
        return answers

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """Log-probability in nats of whole texts, cut into windows in which each token is predicted once.

        Args:
            requests: each with ``args`` (text,).
            disable_tqdm: whether to show no bars.
        """
        pieces = [(n, piece) for n, request in enumerate(requests) for piece in self._rolling(request.args[0])]
        owners, continuations = [n for n, _ in pieces], [piece for _, piece in pieces]
        parts = [requests[n] for n in owners]
        seeds = [self._seed_of(request) for request in parts]
        totals = np.zeros(len(requests))
        for rows, scores in self._scores("loglikelihood_rolling", parts, continuations, seeds, disable_tqdm):
            np.add.at(totals, np.array(owners)[rows], scores.logprob)
        return totals.tolist()

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Text that goes on from each context, one request after the other, up to where it shall stop.

        Args:
            requests: each with ``args`` (context, settings of the generation), those of transformers' ``generate``.
            disable_tqdm: whether to show no bar.

        Raises:
            ValueError: no room for a token of context beside those to generate; a setting that ``generate`` does not
                take, or that cannot be simulated. All requests are looked at before the first text.
        """
        texts = []
        asked = [self._asked(*request.args) for request in requests]
        bar = tqdm(requests, desc="Running generate_until requests", disable=disable_tqdm)
        for request, one in zip(bar, asked, strict=True):
            texts.append(self._generated(request, one))
            self.cache_hook.add_partial("generate_until", request.args, texts[-1])
        return texts

    def tok_encode(self, text: str, add_special_tokens: bool | None = None) -> list[int]:
        """Token ids of a text.

        Args:
            text: the text.
            add_special_tokens: whether with BOS; ``None`` does as the model was told, but where the text has its own.
        """
        special = self._add_bos_token if add_special_tokens is None else add_special_tokens
        if add_special_tokens is None and has_bos_prefix(text, self.tokenizer.bos_token or self.tokenizer.eos_token):
            special = False
        keywords = {} if special is None else {"add_special_tokens": special}
        ids: list[int] = self.tokenizer.encode(text, verbose=False, **keywords)
        return ids

    @property
    def prefix_token_id(self) -> int:
        """What stands before a text without a context: BOS, or EOS where there is none.

        Raises:
            ValueError: a tokenizer with neither.
        """
        for token in (self.tokenizer.bos_token_id, self.tokenizer.eos_token_id):
            if token is not None:
                return int(token)
        raise ValueError(f"expected a tokenizer with BOS or EOS, got {self.tokenizer.name_or_path} with neither")

    def get_model_info(self) -> dict[str, Any]:
        """What the harness writes into its results under ``config``: policy, environment and latency."""
        name = self.policy if isinstance(self.policy, str) else getattr(self.policy, "__name__", repr(self.policy))
        return {
            "wdmoe": {
                "policy": name,
                "seed": self.seed,
                "environment": {**self._scorer.config.to_dict(), "split": None},
                "contexts_cut": self.contexts_cut,
                "latency": self.airtime.summary(),
            }
        }

    def _encoded(self, requests: Sequence[Instance], seeds: Sequence[int], disable_tqdm: bool) -> list[Continuation]:
        """Continuations of all requests; those of a document that share their context are split and cut alike."""
        together: dict[tuple[int, str], list[int]] = defaultdict(list)
        for row, (request, seed) in enumerate(zip(requests, seeds, strict=True)):
            together[seed, request.args[0]].append(row)
        result: list[Any] = [None] * len(requests)
        for (_, context), rows in tqdm(together.items(), desc="Tokenizing inputs", disable=disable_tqdm):
            texts = [requests[row].args[1] for row in rows]
            whole = encode_continuations(context, texts, self._encoder(context), self.prefix_token_id)
            for row, one, cut in zip(rows, whole, cut_contexts(whole, self.max_length), strict=True):
                result[row] = cut
                self.contexts_cut += len(cut.context) < len(one.context)
        return result

    def _encoder(self, context: str) -> Any:
        """No BOS where there is no context: the prefix stands there."""
        return self.tok_encode if context else lambda text: self.tok_encode(text, add_special_tokens=False)

    def _seed_of(self, request: Instance) -> int:
        return document_seed(request.doc, request.task_name, self.seed)

    def _rolling(self, text: str) -> Iterator[Continuation]:
        windows = get_rolling_token_windows(
            token_list=self.tok_encode(text),
            prefix_token=self.prefix_token_id,
            max_seq_len=self.max_length,
            context_len=1,
        )
        for context, tokens in map(make_disjoint_window, windows):
            yield Continuation(context, tokens)

    def _asked(self, context: str, settings: dict[str, Any]) -> _Asked:
        options = dict(normalize_gen_kwargs(settings, MOST_NEW_TOKENS))
        until, count = options.pop("until"), options.pop("max_gen_toks")
        if count >= self.max_length:
            raise ValueError(f"max_gen_toks must be below num_tokens, {self.max_length}, got {count}")
        prompt = (self.tok_encode(context) or [self.prefix_token_id])[count - self.max_length :]
        if options.get("max_length") is not None:  # of prompt and text together, which the harness's ``hf`` takes too
            count = self._count(options.pop("max_length"), len(prompt))
        if not options["do_sample"]:
            options.pop("temperature", None)  # the harness writes 0, which is of sampling alone
        padding = self.tokenizer.eos_token_id if self.tokenizer.pad_token_id is None else self.tokenizer.pad_token_id
        options = {"pad_token_id": padding, "tokenizer": self.tokenizer, **options}
        check_settings(self._scorer, len(prompt), count, options)
        return _Asked(prompt, count, handle_stop_sequences(until, self.tokenizer.eos_token), options)

    def _count(self, max_length: Any, prompt_tokens: int) -> int:
        """The most tokens to generate where a task says how long prompt and text are together."""
        check_integer("max_length", max_length, at_least=1)
        if not prompt_tokens < max_length <= self.max_length:
            between = f"above the {prompt_tokens} tokens of the prompt and at most num_tokens, {self.max_length}"
            raise ValueError(f"max_length must be {between}, got {max_length}")
        return int(max_length) - prompt_tokens

    def _generated(self, request: Instance, asked: _Asked) -> str:
        tokens, terms = generate(
            self._scorer,
            asked.prompt,
            self._seed_of(request),
            asked.count,
            stop=lambda tokens: any(text in self.tokenizer.decode(tokens) for text in asked.until),
            **asked.settings,
        )
        latency_ms, vanilla_ms = (terms[name].sum(axis=0) for name in ("block_latency_ms", "vanilla_latency_ms"))
        self.airtime.add([request.task_name], latency_ms, vanilla_ms, terms["wlr"].mean(axis=0))
        text = self.tokenizer.decode(tokens, skip_special_tokens=True)
        return str(postprocess_generated_text(text, asked.until, None))

    def _scores(
        self,
        kind: str,
        requests: Sequence[Instance],
        continuations: Sequence[Continuation],
        seeds: Sequence[int],
        disable_tqdm: bool,
    ) -> Iterator[tuple[NDArray[np.int64], WindowScores]]:
        """Rows and scores of every batch, whose latency is kept and which the bar counts."""
        with tqdm(total=len(requests), desc=f"Running {kind} requests", disable=disable_tqdm) as bar:
            for rows, scores in self._scorer.batches(continuations, seeds, self._batch_size):
                tasks = [requests[row].task_name for row in rows]
                self.airtime.add(tasks, scores.latency_ms, scores.vanilla_latency_ms, scores.wlr)
                bar.update(len(rows))
                yield rows, scores
