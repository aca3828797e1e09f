"""The windows of one model, with the results of its own routing kept per window.

Every quality figure is a difference to the model's own routing on the same window, and windows lie on a
fixed grid or belong to a suite's items, so that each result is computed once in a process.
"""

from __future__ import annotations

from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from wdmoe_env.config import TEXT_PREFIX, names_texts
from wdmoe_env.moe.finite import check_finite, name_of
from wdmoe_env.moe.lockstep import own_scores
from wdmoe_env.moe.split import SplitModel
from wdmoe_env.moe.zoo import load_model, read_tokenizer
from wdmoe_env.own_predictions import OwnPredictions
from wdmoe_env.physics.latency import Float
from wdmoe_env.reading import shown_path
from wdmoe_env.references import shipped_references
from wdmoe_env.text.own import load_texts
from wdmoe_env.text.suite import SuiteWindows, load_suite, suite_windows
from wdmoe_env.text.windows import DOCUMENT_SPLITS, Document, TokenWindows, load_documents, token_windows


class EpisodeSource:
    """A model, its windows, and the NLL of its own routing on them.

    Args:
        model: the split model.
        windows: token windows made with its tokenizer.
        reference_nll: (M,) mean NLL of the model's own routing on each window where it is known; else it is computed
            when a window is first asked for.
    """

    def __init__(self, model: SplitModel, windows: TokenWindows, reference_nll: Float | None = None) -> None:
        self.model = model
        self.windows = windows
        self._reference_nll = np.full(len(windows), np.nan) if reference_nll is None else reference_nll

    @cached_property
    def own_predictions(self) -> OwnPredictions:
        """What the own routing predicts on the windows, made where it is asked for."""
        return OwnPredictions(self.model, self.tokens)

    def tokens(self, index: NDArray[np.int64]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Token ids, mask and targets, all (N, J), of windows (N,)."""
        return tensors_of(self.windows.rows(index))

    def reference_nll(self, index: NDArray[np.int64]) -> Float:
        """Mean NLL (N,) of the model's own routing on windows (N,), nats per token.

        Raises:
            FloatingPointError: a score is not finite.
        """
        missing = index[np.isnan(self._reference_nll[index])]
        if missing.size:
            missing = np.unique(missing)
            token_nll = own_scores(self.model, *self.tokens(missing)).nll
            mask = self.windows.mask[missing]
            checked = checked_nll(self.model, token_nll, mask, " under its own routing")
            self._reference_nll[missing] = mean_over_tokens(checked, mask)
        return self._reference_nll[index]


def tensors_of(windows: TokenWindows) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Token ids, mask and targets, all (N, J), of windows as the model takes them."""
    return torch.from_numpy(windows.token_ids), torch.from_numpy(windows.mask), torch.from_numpy(windows.targets)


def check_tokens(model: SplitModel, *token_ids: NDArray[np.int64]) -> None:
    """Refuse tokens of a text that the model has no embedding of.

    Args:
        model: that is to read them.
        token_ids: of any shapes.

    Raises:
        ValueError: there is one, as where a tokenizer was given tokens that the model was not.
    """
    largest = max(int(ids.max()) for ids in token_ids)
    if largest >= model.vocabulary_size:
        known = f"the model {name_of(model.model)}, whose tokens are 0 to {model.vocabulary_size - 1}"
        raise ValueError(f"expected a tokenizer that fits {known}, got token {largest} of a text")


def checked_nll(model: SplitModel, token_nll: Float, mask: NDArray[np.bool_], routing: str = "") -> Float:
    """NLL (N, J) that is finite, and 0 at padding.

    Args:
        model: that scored.
        token_nll: (N, J) nats.
        mask: (N, J) True where there is a token.
        routing: what the message says of it.

    Raises:
        FloatingPointError: that of a token is not finite.
    """
    nll = np.where(mask, token_nll, 0.0)  # a product would let NaN at padding through
    check_finite(model.model, f"scores of the text{routing}", nll)
    return nll


def mean_over_tokens(values: NDArray[Any], mask: NDArray[np.bool_]) -> Float:
    """Mean (N,) of values (N, J) over the tokens of each window; values are 0 at padding."""
    return values.sum(axis=-1) / mask.sum(axis=-1)


@lru_cache(maxsize=16)
def load_episodes(
    model: str, num_tokens: int, split: str, device: str, dtype: str = "float32", experts: str = "local"
) -> EpisodeSource:
    """Windows of a named model over the shipped text or over a suite, one per process.

    Args:
        model: a name or path, see ``load_model``.
        num_tokens: J.
        split: ``"train"``, ``"test"``, ``"shifted"``, ``"suite"``, the path of a suite, or ``"text:PATH"``.
        device: torch device of the model.
        dtype: type of its weights.
        experts: ``"local"``, or ``"meta"`` for a base station without the weights of the experts.

    Raises:
        ValueError: windows longer than the model's context, or tokens that it does not know; or what ``load_model``,
            ``load_suite_windows`` or ``load_texts`` raises.
        OSError: a text that cannot be read.
    """
    read_tokenizer(model)  # before the model, which may take minutes
    texts = load_texts(text_path(split)) if names_texts(split) else None
    loaded = load_model(model, device, dtype, experts=experts)
    if num_tokens > loaded.context_length:
        raise ValueError(
            f"num_tokens must be at most {loaded.context_length}, the context of model {model!r}, got {num_tokens}"
        )
    if texts is not None:
        windows = _windows_of(split, texts, loaded, num_tokens)
    elif split in DOCUMENT_SPLITS:
        windows = token_windows(load_documents(split), loaded.tokenizer.encode, num_tokens)
    else:
        windows = load_suite_windows(model, num_tokens, split, device, dtype).windows
    check_tokens(loaded, windows.token_ids, windows.targets)
    return EpisodeSource(loaded, windows, shipped_references(model, device, dtype, windows))


@lru_cache(maxsize=4)
def load_suite_windows(model: str, num_tokens: int, split: str, device: str, dtype: str = "float32") -> SuiteWindows:
    """Windows of a named model over a suite, ``"suite"`` or the path of another, one per process.

    Args:
        model: a name or path, see ``load_model``.
        num_tokens: J.
        split: ``"suite"`` or a path.
        device: torch device of the model.
        dtype: type of its weights.

    Raises:
        ValueError: what ``load_model``, ``load_suite`` or ``suite_windows`` raises.
    """
    items = load_suite(suite_path(split))
    return suite_windows(items, load_model(model, device, dtype).tokenizer.encode, num_tokens)


def suite_path(split: str) -> Path | None:
    """The path of a split's suite, ``None`` for the one that ships."""
    return None if split == "suite" else Path(split)


def text_path(split: str) -> Path:
    """The path of a split of one's own texts, ``"text:PATH"``."""
    return Path(split.removeprefix(TEXT_PREFIX)).expanduser()


def _windows_of(split: str, texts: list[Document], model: SplitModel, num_tokens: int) -> TokenWindows:
    try:
        return token_windows(texts, model.tokenizer.encode, num_tokens)
    except ValueError as error:
        raise ValueError(f"{shown_path(text_path(split))}: {error}") from None
