"""The action codec: decisions to actions of any type and back, and what the environment mends.

``box``   one flat vector in [-1, 1]: J x E scores, then U logits. An expert is chosen where its score is
          positive. Shares are a softmax of ``LOGIT_SCALE`` times the logits, where a logit of -1 stands for
          a share of zero. Shares whose ratio to the largest is below 1/2981 are raised to that on encoding.
``dict``  ``{"experts": MultiBinary((J, E)), "bandwidth": Box(0, 1, (U,))}``; the bandwidth is normalised.

Where the environment decides one half itself, the action holds the other half alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from wdmoe_env.checks import real_array, shown
from wdmoe_env.config import ActionType, DecisionKind
from wdmoe_env.observations import Sizes
from wdmoe_env.physics.latency import Bool, Float
from wdmoe_env.physics.reductions import any_over_last

# exp(2 * 4) = 2981: the largest ratio between two shares that are not zero.
LOGIT_SCALE = 4.0
# The least logit that stands for a share above zero.
LEAST_LOGIT = -1.0 + 1e-3


@dataclass(frozen=True, slots=True)
class Decision:
    """What a policy decides for one block.

    Attributes:
        selection: (..., J, E) bool, or ``None`` where the environment selects.
        shares: (..., U) bandwidth shares that sum to 1, or ``None`` where the environment solves them.
    """

    selection: Bool | None
    shares: Float | None

    def rows(self, index: NDArray[np.int64]) -> Decision:
        """The decisions of some rows (n,) of a batch."""
        return Decision(*(None if part is None else part[index] for part in (self.selection, self.shares)))  # type: ignore[arg-type]


class ActionCodec:
    """Translates between decisions and actions; both directions take leading batch axes.

    Args:
        sizes: J, E and U.
        decision: ``"joint"``, ``"selection"`` or ``"bandwidth"``.
        action_type: ``"box"`` or ``"dict"``.

    Attributes:
        sizes: as given.
        space: action space of a single environment.
    """

    def __init__(self, sizes: Sizes, decision: DecisionKind, action_type: ActionType) -> None:
        self.sizes = sizes
        self.scores_shape = (sizes.num_tokens, sizes.num_experts)
        self.num_scores = sizes.num_tokens * sizes.num_experts if decision != "bandwidth" else 0
        self.num_logits = sizes.num_devices if decision != "selection" else 0
        self.num_devices = sizes.num_devices
        self.action_type = action_type
        self.space = self._space()

    def _space(self) -> spaces.Space[Any]:
        if self.action_type == "box":
            return spaces.Box(-1.0, 1.0, (self.num_scores + self.num_logits,), dtype=np.float32)
        parts: dict[str, spaces.Space[Any]] = {}
        if self.num_scores:
            parts["experts"] = spaces.MultiBinary(self.scores_shape)
        if self.num_logits:
            parts["bandwidth"] = spaces.Box(0.0, 1.0, (self.num_devices,), dtype=np.float32)
        return spaces.Dict(parts)

    def encode(self, selection: Bool | None = None, shares: Float | None = None) -> Any:
        """Action of a decision.

        Args:
            selection: (..., J, E); ignored where the action holds none.
            shares: (..., U), not negative; ignored where the action holds none.

        Raises:
            ValueError: the action holds a half that was not given; another shape; shares that are negative, not
                finite or all zero; leading axes that differ.
            TypeError: no real numbers.
        """
        if self.num_scores and selection is None:
            raise ValueError("expected a selection (..., J, E): this action holds one, got None")
        if self.num_logits and shares is None:
            raise ValueError("expected shares (..., U): this action holds them, got None")
        parts: dict[str, Any] = {}
        batch = _leading("selection", selection, 2) if self.num_scores else _leading("shares", shares, 1)
        if self.num_scores:
            parts["experts"] = self._decode_experts(selection, batch, name="selection")
        if self.num_logits:
            parts["bandwidth"] = self._decode_bandwidth(shares, batch, name="shares")
        if self.action_type == "dict":
            kinds = {"experts": np.int8, "bandwidth": np.float32}
            return {name: value.astype(kinds[name]) for name, value in parts.items()}
        flat = []
        if "experts" in parts:
            scores = np.where(parts["experts"], 1.0, -1.0)
            flat.append(scores.reshape(*scores.shape[:-2], self.num_scores))
        if "bandwidth" in parts:
            flat.append(_logits(parts["bandwidth"]))
        return np.concatenate(flat, axis=-1).astype(np.float32)

    def decode(self, action: Any, batch: tuple[int, ...] = ()) -> Decision:
        """Decision of an action.

        Args:
            action: an action of this codec's type.
            batch: its leading axes, ``()`` or ``(N,)``.

        Raises:
            ValueError: wrong shape, NaN, a negative share, no bandwidth at all.
            TypeError: not an action of this type, or no real numbers.
        """
        if self.action_type == "box":
            flat = _checked("action", action, (*batch, self.num_scores + self.num_logits))
            scores, logits = flat[..., : self.num_scores], flat[..., self.num_scores :]
            selection = scores.reshape(*batch, *self.scores_shape) > 0 if self.num_scores else None
            return Decision(selection, _softmax(logits) if self.num_logits else None)
        self._check_keys(action)
        return Decision(
            self._decode_experts(action["experts"], batch) if self.num_scores else None,
            self._decode_bandwidth(action["bandwidth"], batch) if self.num_logits else None,
        )

    def decode_one(self, action: Any) -> Decision:
        """Decision, as a batch of one, of an action without leading axes; see ``decode``."""
        decision = self.decode(action)
        parts = decision.selection, decision.shares
        return Decision(*(None if part is None else part[None] for part in parts))  # type: ignore[arg-type]

    def batch_of(self, action: Any) -> tuple[int, ...]:
        """Leading axes of an action, whose own axes are known.

        Raises:
            TypeError: not an action of this type.
        """
        if self.action_type == "box":
            return _leading("action", action, 1)
        self._check_keys(action)
        if self.num_scores:
            return _leading("experts", action["experts"], 2)
        return _leading("bandwidth", action["bandwidth"], 1)

    def _check_keys(self, action: Any) -> None:
        expected = sorted(self.space.spaces)  # type: ignore[attr-defined]
        if not isinstance(action, Mapping) or set(action) != set(expected):
            came = (
                f"[{', '.join(sorted(map(shown, action)))}]" if isinstance(action, Mapping) else type(action).__name__
            )
            raise TypeError(f"expected an action with the keys {expected}, got {came}")

    def _decode_experts(self, experts: Any, batch: tuple[int, ...], name: str = "experts") -> Bool:
        chosen = _checked(name, experts, (*batch, *self.scores_shape))
        if not ((chosen == 0) | (chosen == 1)).all():
            raise ValueError(f"expected {name} of 0 or 1, got other values")
        return chosen > 0

    def _decode_bandwidth(self, bandwidth: Any, batch: tuple[int, ...], name: str = "bandwidth") -> Float:
        shares = _checked(name, bandwidth, (*batch, self.num_devices))
        if (shares < 0).any():
            raise ValueError(f"expected {name} of at least 0, got {shares.min():g}")
        with np.errstate(over="ignore"):
            total = shares.sum(axis=-1, keepdims=True)
        if (total <= 0).any():
            raise ValueError(f"expected {name} with at least one share above 0, got none")
        if np.isinf(total).any():
            raise ValueError(f"expected {name} with a finite sum, got values up to {shares.max():g}")
        return shares / total


def repair_selection(selection: Bool, gate_probs: Float, token_mask: Bool) -> tuple[Bool, Any]:
    """Give every token without an expert its most probable one, and clear padding.

    Args:
        selection: (N, J, E).
        gate_probs: (N, J, E).
        token_mask: (N, J).

    Returns:
        The mended selection and the number of mended tokens (N,).
    """
    left_out = token_mask > any_over_last(selection)
    mended = selection & token_mask[..., None]
    if left_out.any():
        rows = np.nonzero(left_out)
        mended[(*rows, gate_probs[rows].argmax(axis=-1))] = True
    return mended, left_out.sum(axis=-1)


def enforce_min_share(shares: Float, loaded: Bool, min_share: float) -> Float:
    """Raise loaded devices to ``min_share`` and scale the others down so that the sum stays 1.

    Args:
        shares: (N, U), sums of 1.
        loaded: (N, U) True where a device serves a token.
        min_share: at most 1 / U.

    Returns:
        (N, U).
    """
    below = loaded & (shares < min_share)
    if not below.any():
        return shares
    floored = below
    while below.any():
        rest = np.where(floored, 0.0, shares)
        total = rest.sum(axis=-1, keepdims=True)
        spare = 1.0 - min_share * floored.sum(axis=-1, keepdims=True)
        scaled = np.where(floored, min_share, np.divide(rest * spare, total, out=np.zeros_like(rest), where=total > 0))
        below = loaded & ~floored & (scaled < min_share)
        floored = floored | below
    return _normalised(scaled)


def _checked(name: str, value: Any, shape: tuple[int, ...]) -> Float:
    array = real_array(name, value)
    if array.shape != shape:
        raise ValueError(f"expected {name} of shape {shape}, got {array.shape}")
    if not np.isfinite(array).all():
        raise ValueError(f"expected {name} without NaN or infinity, got {np.sum(~np.isfinite(array))} such values")
    return array


def _leading(name: str, value: Any, own_axes: int) -> tuple[int, ...]:
    """The axes of an array but for its own, which are its last."""
    return real_array(name, value).shape[:-own_axes]


def _normalised(shares: Float) -> Float:
    return shares / shares.sum(axis=-1, keepdims=True)


def _softmax(logits: Float) -> Float:
    """Shares of logits; -1 is a share of zero, and all at -1 are equal shares."""
    weight = (logits > -1.0) * np.exp(LOGIT_SCALE * np.minimum(logits, 1.0))
    total = weight.sum(axis=-1, keepdims=True)
    if not total.all():
        weight, total = np.where(total > 0, weight, 1.0), np.where(total > 0, total, weight.shape[-1])
    return weight / total


def _logits(shares: Float) -> Float:
    """Logits of shares, the largest at 1; the inverse of ``_softmax`` within its range of ratios."""
    relative = shares / shares.max(axis=-1, keepdims=True)
    safe = np.where(relative > 0, relative, 1.0)
    return np.where(relative > 0, np.maximum(1.0 + np.log(safe) / LOGIT_SCALE, LEAST_LOGIT), -1.0)
