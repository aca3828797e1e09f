"""Contexts and what may follow them, as windows of tokens.

A context is split from what follows it, and cut, alike for everything that follows it, so that all are asked for the
same. The suite and lm-eval's tasks become windows by these rules.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import takewhile

import numpy as np
from numpy.typing import NDArray

from wdmoe_env.text.windows import TokenWindows


@dataclass(frozen=True, slots=True)
class Continuation:
    """Token ids of a context, one or more, and of what follows it.

    Attributes:
        context: what is given.
        tokens: what is scored, one or more.
    """

    context: list[int]
    tokens: list[int]

    @property
    def length(self) -> int:
        """Tokens of its window: the last one is predicted, not read."""
        return len(self.context) + len(self.tokens) - 1


def encode_continuations(
    context: str, texts: Sequence[str], encode: Callable[[str], list[int]], prefix: int | None = None
) -> list[Continuation]:
    """Token ids of a context and of each text that may follow it.

    Context and text are tokenized together. White space that ends the context goes over to the texts first: most
    tokenizers make one token of a space and the word behind it, and of a space alone one that texts rarely hold. Where
    a text melts into the last tokens of the context, the context ends before them for all texts, so that all are asked
    for the same.

    Args:
        context: may be empty. White space alone goes over too where there is a ``prefix`` to stand in its place.
        texts: appended to the context as they are.
        encode: text to token ids.
        prefix: the token that stands where no token of context is left; ``None`` refuses that.

    Raises:
        ValueError: a text has no token of its own, or the context none.
    """
    kept = context.rstrip() or (context if prefix is None else "")
    texts = [context[len(kept) :] + text for text in texts]
    given = encode(kept) if context else []
    wholes = [encode(kept + text) for text in texts]
    shared = sum(1 for _ in takewhile(lambda column: len(set(column)) == 1, zip(given, *wholes, strict=False)))
    empty = next((text for text, whole in zip(texts, wholes, strict=True) if len(whole) == shared), None)
    if empty is not None:
        raise ValueError(f"expected a token of every text that follows {kept!r}, got {empty!r}")
    before = given[:shared] if shared or prefix is None else [prefix]
    if not before:
        raise ValueError(f"expected a token of context before {', '.join(map(repr, texts))}, got {context!r}")
    return [Continuation(before, whole[shared:]) for whole in wholes]


def cut_contexts(continuations: Sequence[Continuation], num_tokens: int) -> list[Continuation]:
    """Continuations of one context, which loses its beginning where the longest of them does not fit.

    Args:
        continuations: of one context.
        num_tokens: the most tokens of a window.

    Raises:
        ValueError: one is longer than a window.
    """
    longest = max(len(one.tokens) for one in continuations)
    if longest > num_tokens:
        raise ValueError(f"num_tokens must be at least {longest}, the longest continuation, got {num_tokens}")
    room = num_tokens + 1 - longest
    return [Continuation(one.context[-room:], one.tokens) for one in continuations]


def continuation_windows(
    continuations: Sequence[Continuation], num_tokens: int
) -> tuple[TokenWindows, NDArray[np.bool_]]:
    """A window of J tokens for each continuation, and (M, J) where a token of the continuation is predicted.

    Args:
        continuations: M of them, each of at most J + 1 tokens with its context.
        num_tokens: J.
    """
    grid = np.zeros((len(continuations), num_tokens + 1), dtype=np.int64)
    begins = np.array([len(one.context) for one in continuations])[:, None]
    ends = np.array([one.length for one in continuations])[:, None]
    for row, one in enumerate(continuations):
        grid[row, : one.length + 1] = one.context + one.tokens
    position = np.arange(1, num_tokens + 1)
    mask = position <= ends
    windows = TokenWindows(grid[:, :-1], grid[:, 1:], mask, ("",) * len(continuations))
    return windows, mask & (position >= begins)
