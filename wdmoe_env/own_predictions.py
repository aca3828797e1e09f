"""What a model's own routing predicts on each window, kept so that a policy's predictions can be compared with it.

The last hidden states are kept, some hundred numbers a token, and not the logits, which are as many as the vocabulary
has tokens: the output layer makes these anew for a few tokens at a time. Bytes are bounded: the windows
that were asked for longest ago are dropped first.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wdmoe_env.moe.finite import check_finite
from wdmoe_env.moe.lockstep import own_rows_and_scores
from wdmoe_env.moe.split import SplitModel
from wdmoe_env.physics.latency import Float

MOST_BYTES = 256 * 2**20

Tokens = Callable[[NDArray[np.int64]], tuple[Tensor, Tensor, Tensor]]
"""Token ids, mask and targets, all (N, J), of windows (N,)."""


class OwnPredictions:
    """Predictions of a model's own routing by window.

    Args:
        model: the split model.
        tokens: gives the texts of windows.
        most_bytes: of the hidden states that are kept.
    """

    def __init__(self, model: SplitModel, tokens: Tokens, most_bytes: int = MOST_BYTES) -> None:
        self._model, self._tokens, self._most_bytes = model, tokens, most_bytes
        self._kept: OrderedDict[int, tuple[Tensor, Float]] = OrderedDict()
        self._bytes = 0

    @property
    def kept_bytes(self) -> int:
        """Bytes of the hidden states that are kept now."""
        return self._bytes

    def rows(self, windows: NDArray[np.int64]) -> Tensor:
        """Last hidden states (N, J, H) of windows (N,); logits where the model has no output layer alone.

        Raises:
            FloatingPointError: a score under the own routing is not finite.
        """
        return torch.stack([rows for rows, _ in self._of(windows)])

    def token_nll(self, windows: NDArray[np.int64]) -> Float:
        """NLL (N, J) in nats of the tokens of windows (N,), 0 at padding.

        Raises:
            FloatingPointError: a score under the own routing is not finite.
        """
        return np.stack([nll for _, nll in self._of(windows)])

    def _of(self, windows: NDArray[np.int64]) -> list[tuple[Tensor, Float]]:
        asked = windows.tolist()
        found = {one: self._kept[one] for one in asked if one in self._kept}
        missing = sorted(set(asked) - found.keys())
        if missing:
            found |= self._computed(missing)
        for one, prediction in found.items():
            self._keep(one, prediction)
        return [found[one] for one in asked]

    def _computed(self, windows: list[int]) -> dict[int, tuple[Tensor, Float]]:
        token_ids, mask, targets = self._tokens(np.array(windows))
        rows, scores = own_rows_and_scores(self._model, token_ids, mask, targets)
        nll = np.where(mask.numpy() > 0, scores.nll, 0.0)
        check_finite(self._model.model, "scores of the text under its own routing", nll)
        return {one: (rows[n].clone(), nll[n].copy()) for n, one in enumerate(windows)}

    def _keep(self, window: int, prediction: tuple[Tensor, Float]) -> None:
        size = prediction[0].nbytes
        if self._kept.pop(window, None) is None:
            self._bytes += size
        self._kept[window] = prediction
        while self._bytes > self._most_bytes:
            _, (oldest, _) = self._kept.popitem(last=False)
            self._bytes -= oldest.nbytes
