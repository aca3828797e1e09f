"""What an action is made of: parts, each with its space, its encoding, its decoding and its repair.

``ExpertsPart`` is the experts of each token, ``BandwidthPart`` the bandwidth shares of the devices. An action holds the
parts that the agent decides; the environment decides the others. There are two types of action:

``box``   one flat vector in [-1, 1]: the numbers of each part, one part after the other.
``dict``  an entry for each part, under its name.

A new part is a new subclass of ``ActionPart`` in ``PARTS``.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from wdmoe_env.checks import real_array, shown
from wdmoe_env.config import ActionType, DecisionKind
from wdmoe_env.observations import Block, Sizes
from wdmoe_env.optimize.bandwidth import min_max_bandwidth
from wdmoe_env.physics.latency import Bool, Float, Load, device_load
from wdmoe_env.physics.outages import next_best

# exp(2 * 4) = 2981: the largest ratio between two shares that are not zero.
LOGIT_SCALE = 4.0
# The least logit that stands for a share above zero.
LEAST_LOGIT = -1.0 + 1e-3

Decided = Mapping[str, NDArray[Any]]
"""What an action decides: the value of each part that it holds, by the part's name."""


class Plan(NamedTuple):
    """What will run in one block of N episodes; each part of the action settles some of it.

    Attributes:
        block: what is decided on.
        min_share: least bandwidth share of a device that serves a token.
        selection: (N, J, E) experts that will run.
        load: what the selection asks of each device.
        shares: (N, U) bandwidth shares, which sum to 1.
        repaired_tokens: (N,) tokens that the action left without an expert.
        replaced_pairs: (N,) chosen pairs whose device is away, which the next best expert serves; ``None`` where no
            device can be away.
        unserved_tokens: (N,) tokens that go on without the block, since no expert is there; likewise.
        bits: (N, J, U), or with 1 in place of J or U, bits of an element of each message; ``None`` where the action
            does not decide them.
        tokens: (N, U) tokens of each device where ``load`` counts them by their messages; ``None`` where it does not.
    """

    block: Block
    min_share: float
    selection: Bool
    load: Load
    shares: Float
    repaired_tokens: NDArray[np.int64]
    replaced_pairs: NDArray[np.int64] | None = None
    unserved_tokens: NDArray[np.int64] | None = None
    bits: NDArray[np.int64] | None = None
    tokens: Float | None = None


class ActionPart(ABC):
    """One part of an action.

    Args:
        sizes: J, E and U.

    Attributes:
        name: key of the part in a ``dict`` action.
        argument: name of the part's value in ``encode_action``.
        shape: of the part's value, without leading axes.
        space: of the part in a ``dict`` action.
    """

    name: str
    argument: str
    shape: tuple[int, ...]
    space: spaces.Space[Any]

    @abstractmethod
    def __init__(self, sizes: Sizes) -> None: ...

    @property
    def size(self) -> int:
        """Numbers of the part in a ``box`` action."""
        return math.prod(self.shape)

    @abstractmethod
    def checked(self, name: str, value: Any, batch: tuple[int, ...]) -> NDArray[Any]:
        """The part's value (..., shape) out of what a ``dict`` action or a caller holds.

        Args:
            name: what a message calls it.
            value: what came.
            batch: its leading axes.

        Raises:
            ValueError: another shape, or values out of range.
            TypeError: no real numbers.
        """

    @abstractmethod
    def to_flat(self, value: NDArray[Any]) -> Float:
        """Numbers in [-1, 1], (..., size), of a checked value (..., *shape)."""

    @abstractmethod
    def from_flat(self, numbers: Float) -> NDArray[Any]:
        """The part's value (..., *shape) of numbers (..., size)."""

    def to_entry(self, value: NDArray[Any]) -> NDArray[Any]:
        """What a ``dict`` action holds of a checked value (..., *shape), of the same shape."""
        return value.astype(self.space.dtype)

    def from_entry(self, name: str, entry: Any, batch: tuple[int, ...]) -> NDArray[Any]:
        """The part's value (..., *shape) out of what a ``dict`` action holds; raises what ``checked`` does."""
        return self.checked(name, entry, batch)

    def default(self, batch: tuple[int, ...]) -> NDArray[Any] | None:
        """The value (..., *shape) of an encoded decision that gives none; ``None`` where it has to be given."""
        return None

    @staticmethod
    @abstractmethod
    def settle(plan: Plan, value: NDArray[Any] | None) -> Plan:
        """The plan with this part settled, after the parts before it.

        Args:
            plan: as the parts before have settled it.
            value: (N, *shape) what the action decides, or ``None`` where the environment decides.
        """


class ExpertsPart(ActionPart):
    """Which experts each token uses, (J, E) bool.

    In a flat action an expert is chosen where its score is above 0. A token left without an expert gets its most
    probable one. Where the action does not hold this part, the model's own choice runs. An expert whose device is away
    gives its place to the next best one that is there; a token goes on without the block where none is there.
    """

    name, argument = "experts", "selection"

    def __init__(self, sizes: Sizes) -> None:
        self.shape = (sizes.num_tokens, sizes.num_experts)
        self.space = spaces.MultiBinary(self.shape)

    def checked(self, name: str, value: Any, batch: tuple[int, ...]) -> Bool:
        """See ``ActionPart.checked``.

        Args:
            name: what a message calls it.
            value: what came.
            batch: its leading axes.

        Returns:
            (..., J, E) the experts chosen.

        Raises:
            ValueError: another shape, or values other than 0 and 1.
            TypeError: no real numbers.
        """
        chosen = _checked(name, value, (*batch, *self.shape))
        if not ((chosen == 0) | (chosen == 1)).all():
            raise ValueError(f"expected {name} of 0 or 1, got other values")
        return chosen > 0

    def to_flat(self, value: NDArray[Any]) -> Float:
        """Scores (..., J * E) of +-1 of a selection (..., J, E)."""
        return np.where(value, 1.0, -1.0).reshape(*value.shape[:-2], self.size)

    def from_flat(self, numbers: Float) -> Bool:
        """Selection (..., J, E) of scores (..., J * E)."""
        return numbers.reshape(*numbers.shape[:-1], *self.shape) > 0

    @staticmethod
    def settle(plan: Plan, value: NDArray[Any] | None) -> Plan:
        """The plan with the selection (N, J, E), mended, or the model's own choice where ``value`` is ``None``."""
        block = plan.block
        wanted = block.routed if value is None else value
        present = None if block.available is None else block.present
        if present is not None:
            plan, wanted = _among_present(plan, wanted & block.token_mask[..., None], present)
        selection, repaired = repair_selection(wanted, block.gate_probs, block.token_mask, present)
        load = device_load(selection, block.links)
        return plan._replace(selection=selection, load=load, repaired_tokens=repaired)


class BandwidthPart(ActionPart):
    """Bandwidth shares of the devices, (U,), which sum to 1.

    In a flat action the shares are a softmax of ``LOGIT_SCALE`` times the logits, where a logit of -1 stands for a
    share of zero. Shares whose ratio to the largest is below 1/2981 are raised to that on encoding. A device that
    serves a token never has less than the least share. Where the action does not hold this part, the shares that
    minimise block latency are solved.
    """

    name, argument = "bandwidth", "shares"

    def __init__(self, sizes: Sizes) -> None:
        self.shape = (sizes.num_devices,)
        self.space = spaces.Box(0.0, 1.0, self.shape, dtype=np.float32)

    def checked(self, name: str, value: Any, batch: tuple[int, ...]) -> Float:
        """See ``ActionPart.checked``.

        Args:
            name: what a message calls it.
            value: what came.
            batch: its leading axes.

        Returns:
            (..., U) the shares, scaled to a sum of 1.

        Raises:
            ValueError: another shape, a negative share, or no share at all.
            TypeError: no real numbers.
        """
        shares = _checked(name, value, (*batch, *self.shape))
        if (shares < 0).any():
            raise ValueError(f"expected {name} of at least 0, got {shares.min():g}")
        with np.errstate(over="ignore"):
            total = shares.sum(axis=-1, keepdims=True)
        if (total <= 0).any():
            raise ValueError(f"expected {name} with at least one share above 0, got none")
        if np.isinf(total).any():
            raise ValueError(f"expected {name} with a finite sum, got values up to {shares.max():g}")
        return shares / total

    def to_flat(self, value: NDArray[Any]) -> Float:
        """Logits (..., U) of shares (..., U); the largest share has the logit 1."""
        relative = value / value.max(axis=-1, keepdims=True)
        safe = np.where(relative > 0, relative, 1.0)
        return np.where(relative > 0, np.maximum(1.0 + np.log(safe) / LOGIT_SCALE, LEAST_LOGIT), -1.0)

    def from_flat(self, numbers: Float) -> Float:
        """Shares (..., U) of logits (..., U); all logits at -1 are equal shares."""
        weight = (numbers > -1.0) * np.exp(LOGIT_SCALE * np.minimum(numbers, 1.0))
        total = weight.sum(axis=-1, keepdims=True)
        if not total.all():
            weight, total = np.where(total > 0, weight, 1.0), np.where(total > 0, total, weight.shape[-1])
        return weight / total

    @staticmethod
    def settle(plan: Plan, value: NDArray[Any] | None) -> Plan:
        """The plan with the shares (N, U), raised to the least one, or solved where ``value`` is ``None``."""
        if value is None:
            return plan._replace(shares=min_max_bandwidth(plan.block.links, plan.load, plan.min_share).shares)
        return plan._replace(shares=enforce_min_share(value, plan.load.tokens > 0, plan.min_share))


PARTS: tuple[type[ActionPart], ...] = (ExpertsPart, BandwidthPart)
"""All parts, in the order in which they stand in a flat action and are settled."""

DECISIONS: dict[DecisionKind, tuple[type[ActionPart], ...]] = {
    "joint": (ExpertsPart, BandwidthPart),
    "selection": (ExpertsPart,),
    "bandwidth": (BandwidthPart,),
}
"""Parts that the agent decides, by ``EnvConfig.decision``."""


def rows_of(decided: Decided, index: NDArray[np.int64]) -> dict[str, NDArray[Any]]:
    """What is decided for some episodes (n,) of a batch."""
    return {name: value[index] for name, value in decided.items()}


def settled_plan(
    block: Block, decided: Decided, min_share: float, parts: Sequence[ActionPart | type[ActionPart]] = PARTS
) -> Plan:
    """What will run in a block (N episodes): each part as decided and mended, or by the environment's own rule.

    Args:
        block: what was decided on.
        decided: values (N, ...) of the parts that the agent decides.
        min_share: least bandwidth share of a device that serves a token.
        parts: what is settled, in this order.
    """
    plan = Plan(block, min_share, block.routed, _NO_LOAD, _NO_SHARES, _NO_TOKENS)
    for part in parts:
        plan = part.settle(plan, decided.get(part.name))
    return plan


# Placeholders of a plan's fields until a part settles them.
_NO_SHARES, _NO_TOKENS = np.empty((0, 0)), np.empty(0, dtype=np.int64)
_NO_LOAD = Load(_NO_SHARES, _NO_SHARES)


class ActionCodec:
    """Translates between decisions and actions; both directions take leading batch axes.

    Args:
        sizes: J, E and U.
        decision: ``"joint"``, ``"selection"`` or ``"bandwidth"``, see ``DECISIONS``; or the parts, or their classes.
        action_type: ``"box"`` or ``"dict"``.

    Attributes:
        sizes: as given.
        parts: what the action is made of.
        space: action space of a single environment.
    """

    def __init__(
        self,
        sizes: Sizes,
        decision: DecisionKind | Sequence[ActionPart | type[ActionPart]],
        action_type: ActionType,
    ) -> None:
        self.sizes = sizes
        parts = DECISIONS[decision] if isinstance(decision, str) else decision
        self.parts = tuple(part if isinstance(part, ActionPart) else part(sizes) for part in parts)
        self._coder = _CODERS[action_type](self.parts)
        self.space = self._coder.space

    def encode(self, selection: Any = None, shares: Any = None, **others: Any) -> Any:
        """Action of a decision.

        Args:
            selection: (..., J, E); ignored where the action does not hold it.
            shares: (..., U), not negative; ignored where the action does not hold them.
            **others: values of further parts, by their ``argument``.

        Raises:
            ValueError: a part of the action was not given; another shape; shares that are negative, not finite or all
                zero; leading axes that differ.
            TypeError: no real numbers.
        """
        given = {"selection": selection, "shares": shares, **others}
        values: dict[str, NDArray[Any]] = {}
        batch = None
        for part in self.parts:
            value = given.get(part.argument)
            if value is None and batch is not None:
                value = part.default(batch)
            if value is None:
                wanted = f"{part.argument} (..., {', '.join(map(str, part.shape))})"
                raise ValueError(f"expected {wanted}, which this action holds, got None")
            batch = _leading(part.argument, value, part) if batch is None else batch
            values[part.name] = part.checked(part.argument, value, batch)
        return self._coder.encode(values)

    def decode(self, action: Any, batch: tuple[int, ...] = ()) -> dict[str, NDArray[Any]]:
        """What an action decides: the value (..., shape) of each part that it holds, by name.

        Args:
            action: an action of this codec's type.
            batch: its leading axes, ``()`` or ``(N,)``.

        Raises:
            ValueError: wrong shape, NaN, a negative share, no bandwidth at all.
            TypeError: not an action of this type, or no real numbers.
        """
        return self._coder.decode(action, batch)

    def decode_one(self, action: Any) -> dict[str, NDArray[Any]]:
        """What an action without leading axes decides, as a batch of one: values (1, ...); see ``decode``."""
        decided = self._coder.decode(action, ())
        for name, value in decided.items():
            decided[name] = value[None]
        return decided

    def arguments(self, decided: Decided) -> dict[str, NDArray[Any]]:
        """What ``encode`` takes, out of the values (N, ...) that ``decode`` gave, by the names of its arguments."""
        return {part.argument: decided[part.name] for part in self.parts}

    def batch_of(self, action: Any) -> tuple[int, ...]:
        """Leading axes of an action, whose own axes are known.

        Raises:
            TypeError: not an action of this type.
        """
        return self._coder.batch_of(action)


class _Coder(ABC):
    """Actions of one type, made of parts."""

    space: spaces.Space[Any]

    @abstractmethod
    def __init__(self, parts: Sequence[ActionPart]) -> None: ...

    @abstractmethod
    def encode(self, values: Decided) -> Any: ...

    @abstractmethod
    def decode(self, action: Any, batch: tuple[int, ...]) -> dict[str, NDArray[Any]]: ...

    @abstractmethod
    def batch_of(self, action: Any) -> tuple[int, ...]: ...


class _FlatCoder(_Coder):
    """Actions that are one vector."""

    def __init__(self, parts: Sequence[ActionPart]) -> None:
        self._parts = parts
        self._ends = np.cumsum([part.size for part in parts]).tolist()
        self.space = spaces.Box(-1.0, 1.0, (self._ends[-1],), dtype=np.float32)

    def encode(self, values: Decided) -> Any:
        flat = [part.to_flat(values[part.name]) for part in self._parts]
        return np.concatenate(flat, axis=-1).astype(np.float32)

    def decode(self, action: Any, batch: tuple[int, ...]) -> dict[str, NDArray[Any]]:
        flat = _checked("action", action, (*batch, self._ends[-1]))
        decided, start = {}, 0
        for part, end in zip(self._parts, self._ends, strict=True):
            decided[part.name] = part.from_flat(flat[..., start:end])
            start = end
        return decided

    def batch_of(self, action: Any) -> tuple[int, ...]:
        return real_array("action", action).shape[:-1]


class _DictCoder(_Coder):
    """Actions that are a dict with an entry for each part."""

    def __init__(self, parts: Sequence[ActionPart]) -> None:
        self._parts = parts
        self.space = spaces.Dict({part.name: part.space for part in parts})

    def encode(self, values: Decided) -> Any:
        return {part.name: part.to_entry(values[part.name]) for part in self._parts}

    def decode(self, action: Any, batch: tuple[int, ...]) -> dict[str, NDArray[Any]]:
        self._check_keys(action)
        return {part.name: part.from_entry(part.name, action[part.name], batch) for part in self._parts}

    def batch_of(self, action: Any) -> tuple[int, ...]:
        self._check_keys(action)
        first = self._parts[0]
        return _leading(first.name, action[first.name], first)

    def _check_keys(self, action: Any) -> None:
        expected = sorted(part.name for part in self._parts)
        if not isinstance(action, Mapping) or set(action) != set(expected):
            came = (
                f"[{', '.join(sorted(map(shown, action)))}]" if isinstance(action, Mapping) else type(action).__name__
            )
            raise TypeError(f"expected an action with the keys {expected}, got {came}")


_CODERS: dict[ActionType, type[_Coder]] = {"box": _FlatCoder, "dict": _DictCoder}


def _among_present(plan: Plan, wanted: Bool, present: Bool) -> tuple[Plan, Bool]:
    """The plan with what the absence of devices leads to counted, and the experts wanted (N, J, E) that are there."""
    tokens = plan.block.token_mask
    wanted, replaced = next_best(wanted, plan.block.gate_probs, present)
    unserved = np.where(present.any(axis=-1), 0, tokens.sum(axis=-1))
    return plan._replace(replaced_pairs=replaced, unserved_tokens=unserved), wanted


def repair_selection(
    selection: Bool, gate_probs: Float, token_mask: Bool, present: Bool | None = None
) -> tuple[Bool, Any]:
    """Give every token without an expert its most probable one, and clear padding.

    Args:
        selection: (N, J, E).
        gate_probs: (N, J, E).
        token_mask: (N, J).
        present: (N, E) experts that are there; ``None`` is all. Where none is, a token stays without an expert.

    Returns:
        The mended selection and the number of mended tokens (N,).
    """
    left_out = token_mask > selection.any(axis=-1)
    mended = selection & token_mask[..., None]
    if present is not None:
        left_out &= present.any(axis=-1, keepdims=True)
    if left_out.any():
        rows = np.nonzero(left_out)
        probs = gate_probs[rows] if present is None else np.where(present[rows[0]], gate_probs[rows], -np.inf)
        mended[(*rows, probs.argmax(axis=-1))] = True
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
    plain = type(value) is np.ndarray and value.dtype.char in "fd"  # as an action mostly is
    array = value.astype(np.float64, copy=False) if plain else real_array(name, value)
    if array.shape != shape:
        raise ValueError(f"expected {name} of shape {shape}, got {array.shape}")
    if not np.isfinite(array).all():
        raise ValueError(f"expected {name} without NaN or infinity, got {np.sum(~np.isfinite(array))} such values")
    return array


def _leading(name: str, value: Any, part: ActionPart) -> tuple[int, ...]:
    """The axes of a part's value but for its own, which are its last."""
    return real_array(name, value).shape[: -len(part.shape)]


def _normalised(shares: Float) -> Float:
    return shares / shares.sum(axis=-1, keepdims=True)
