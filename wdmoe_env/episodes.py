"""The windows of one model, with the results of its own routing kept per window.

Every quality figure is a difference to the model's own routing on the same window, and windows lie on a
fixed grid, so that each result is computed once in a process.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from wdmoe_env.moe.split import SplitModel
from wdmoe_env.moe.zoo import load_model
from wdmoe_env.physics.latency import Float
from wdmoe_env.text.windows import TokenWindows, load_documents, token_windows


class EpisodeSource:
    """A model, its windows, and the NLL of its own routing on them.

    Args:
        model: the split model.
        windows: token windows made with its tokenizer.
    """

    def __init__(self, model: SplitModel, windows: TokenWindows) -> None:
        self.model = model
        self.windows = windows
        self._reference_nll = np.full(len(windows), np.nan)

    def tokens(self, index: NDArray[np.int64]) -> tuple[torch.Tensor, torch.Tensor]:
        """Token ids and mask, both (N, J), of windows (N,), on the model's device."""
        token_ids = torch.from_numpy(self.windows.token_ids[index]).to(self.model.device)
        mask = torch.from_numpy(self.windows.mask[index]).to(self.model.device)
        return token_ids, mask

    def reference_nll(self, index: NDArray[np.int64]) -> Float:
        """Mean NLL (N,) of the model's own routing on windows (N,), nats per token."""
        missing = np.unique(index[np.isnan(self._reference_nll[index])])
        if missing.size:
            logits = self.model.own_logits(*self.tokens(missing))
            token_nll, _ = self.score(logits, missing)
            self._reference_nll[missing] = mean_over_tokens(token_nll, self.windows.mask[missing])
        return self._reference_nll[index]

    def score(self, logits: torch.Tensor, index: NDArray[np.int64]) -> tuple[Float, NDArray[np.bool_]]:
        """Per-token NLL in nats and whether the best guess was right, both (N, J) and 0 at padding.

        Args:
            logits: (N, J, V).
            index: (N,) windows that the logits belong to.
        """
        mask = self.windows.mask[index]
        targets = torch.from_numpy(self.windows.targets[index]).to(logits.device)
        token_nll = torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), targets.flatten(), reduction="none")
        correct = logits.argmax(dim=-1) == targets
        nll = token_nll.view(targets.shape).double().cpu().numpy()
        return np.where(mask, nll, 0.0), correct.cpu().numpy() & mask


def mean_over_tokens(values: NDArray[Any], mask: NDArray[np.bool_]) -> Float:
    """Mean (N,) of values (N, J) over the tokens of each window; values are 0 at padding."""
    return values.sum(axis=-1) / mask.sum(axis=-1)


@lru_cache(maxsize=16)
def load_episodes(model: str, num_tokens: int, split: str, device: str) -> EpisodeSource:
    """Windows of a named model over the shipped text, one per process.

    Raises:
        ValueError: windows longer than the model's context; or what ``load_model`` raises.
    """
    split_model = load_model(model, device)
    if num_tokens > split_model.context_length:
        raise ValueError(
            f"num_tokens must be at most {split_model.context_length}, the context of model {model!r}, got {num_tokens}"
        )
    windows = token_windows(load_documents(split), split_model.tokenizer.encode, num_tokens)
    return EpisodeSource(split_model, windows)
