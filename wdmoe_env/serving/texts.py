"""What requests are about: windows of text, and what the model's own routing makes of them."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray

from wdmoe_env.config import EnvConfig, names_texts
from wdmoe_env.episodes import EpisodeSource
from wdmoe_env.moe.hook import BlockInput
from wdmoe_env.moe.split import SplitModel, neutral_modes
from wdmoe_env.physics.latency import Bool, Float
from wdmoe_env.serving.arrivals import Whole
from wdmoe_env.serving_config import ServingConfig
from wdmoe_env.text.windows import DOCUMENT_SPLITS

AT_ONCE = 64
"""Windows whose NLL under the own routing is computed in one pass."""

LOOKED_AT = 8
"""Windows whose own routing is used to estimate how many requests a channel sustains."""


class RequestTexts:
    """Windows that requests take their tokens from, each as long as the longest request.

    Args:
        source: windows of that length.

    Attributes:
        source: as given.
        windows: of the text.
        documents: (M,) number of the document that each window is of.
        model: the split model.

    Raises:
        ValueError: no document is as long as a request may be.
    """

    def __init__(self, source: EpisodeSource) -> None:
        whole = np.flatnonzero(source.windows.mask.all(axis=1))
        longest = source.windows.mask.shape[1]
        if not whole.size:
            raise ValueError(
                f"expected a document of {longest + 1} tokens or more, the longest request (prompt_tokens, "
                "answer_tokens), got shorter ones"
            )
        self.model, self.source, self._whole = source.model, source, whole
        self.windows = source.windows.rows(whole)
        self.documents = source.windows.documents[whole]

    def __len__(self) -> int:
        """M."""
        return len(self.windows)

    def own_rows(self, index: Whole) -> torch.Tensor:
        """Last hidden states (n, L, H), or logits, of windows (n,) under the model's own routing; kept likewise."""
        return self.source.own_predictions.rows(self._whole[index])

    def own_nll(self, index: Whole) -> Float:
        """NLL (n, L) in nats of each token of windows (n,) under the model's own routing; kept within bounds.

        Raises:
            FloatingPointError: a score is not finite.
        """
        whole, predictions = self._whole[index], self.source.own_predictions
        parts = [whole[start : start + AT_ONCE] for start in range(0, len(whole), AT_ONCE)]
        return np.concatenate([predictions.token_nll(part) for part in parts])


@lru_cache(maxsize=4)
def own_routing(model: SplitModel, texts: RequestTexts) -> Bool:
    """Own routing (I, M, E) of the M tokens of some windows."""
    routed: list[NDArray[np.bool_]] = []

    def look(block: BlockInput) -> None:
        routed.append(block.routed.numpy(force=True).copy())

    token_ids = torch.from_numpy(texts.windows.token_ids[:LOOKED_AT])
    with neutral_modes(model.device.type, inference=True):
        model.logits_under(look, token_ids)
    return np.stack(routed)


def check_requests(config: EnvConfig, serving: ServingConfig, context_length: int) -> None:
    """Refuse requests that the model cannot take.

    Args:
        config: of the environment.
        serving: of the requests.
        context_length: of the model.

    Raises:
        ValueError: a request may be longer than the context, or the split is no text.
    """
    if serving.longest > context_length:
        raise ValueError(
            f"prompt_tokens and answer_tokens must sum to at most {context_length + 1}, the context of model "
            f"{config.model!r} and the last token, got {serving.longest + 1}"
        )
    if config.split not in DOCUMENT_SPLITS and not names_texts(config.split):
        raise ValueError(
            f"split must be 'train', 'test', 'shifted' or 'text:PATH' where requests are served, got {config.split!r}"
        )
