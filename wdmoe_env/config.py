"""Settings of the environment as frozen dataclasses: the ground floor.

Every unit stands in the field's name. Every field is checked on construction, so that a wrong setting is
one sentence before any model is loaded. A number may be NumPy's, and a tuple a list or an array: the field then holds
Python's own, so that configs stay hashable and plain.

The ranges are wide, but such as physics can have: within them every latency is finite and every observation is inside
its space.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Self, get_args

from wdmoe_env.channel_config import CHANNEL_RANGES, ChannelConfig, Fading, PathLoss
from wdmoe_env.checks import check_choice, check_integer, check_number, items_of, plain, plain_path, shown
from wdmoe_env.device_config import (
    DEVICE_RANGES,
    DEVICE_SETS,
    DISTANCES_M,
    ComputeModel,
    DeploymentConfig,
    DeviceConfig,
    Mobility,
)
from wdmoe_env.fields import from_mapping, put
from wdmoe_env.precision import LINK_BITS
from wdmoe_env.serving_config import ServingConfig

__all__ = [
    "CHANNEL_RANGES",
    "DEVICE_RANGES",
    "DEVICE_SETS",
    "DISTANCES_M",
    "SUITE_SUFFIXES",
    "TEXT_PREFIX",
    "ActionType",
    "ChannelConfig",
    "ComputeModel",
    "DecisionKind",
    "DeploymentConfig",
    "DeviceConfig",
    "Dtype",
    "EnvConfig",
    "Fading",
    "Mobility",
    "PathLoss",
    "Split",
    "from_mapping",
    "names_texts",
]

DecisionKind = Literal["joint", "selection", "bandwidth"]
ActionType = Literal["box", "dict", "discrete"]
Split = Literal["train", "test", "shifted", "suite"]
Dtype = Literal["float32", "bfloat16", "float16"]

SUITE_SUFFIXES = (".jsonl", ".jsonl.gz")
"""How the name of a suite's file ends."""

TEXT_PREFIX = "text:"
"""How a split of one's own texts begins; the path of a file or a folder follows."""

WINDOW_TOKENS = 32
"""Tokens J of a window where nothing else is said."""

RewardTerms = Mapping[str, Any]

_PLAIN_KINDS = {
    "model": str,
    "device": str,
    "runner": str,
    "observe_hidden_states": bool,
    "token_terms": bool,
    "energy": bool,
}


@dataclass(frozen=True, slots=True)
class EnvConfig:
    """Everything that defines an environment; each field is also a keyword of ``gymnasium.make``.

    Attributes:
        model: ``"tiny"`` (trained, ships), ``"micro"`` (random, for tests), or a transformers MoE checkpoint, by
            name or path.
        decision: what the action decides: ``"joint"`` is selection and shares; under ``"selection"`` the shares
            are solved exactly, under ``"bandwidth"`` the selection is the model's own. Each registered id sets it.
        num_tokens: tokens J of a window, at most as many as the model's context holds.
        split: where the windows come from: ``"train"`` or ``"test"``, which are disjoint sets of documents;
            ``"shifted"``, text of kinds that neither the language model nor a policy has learned from; or the
            multiple-choice suite, ``"suite"`` for the one that ships or the path of another (.jsonl, .jsonl.gz), with
            a window for each choice of each item; see ``wdmoe_env.text.suite``. ``"text:PATH"`` takes texts of your
            own: JSON Lines (.jsonl, .jsonl.gz) with ``text`` and, if you like, ``domain``, a plain text, or a folder
            of such files; see ``wdmoe_env.text.own``.
        reward: ``"wlr"``, ``"wlr_device"``, ``"latency_quality"``, ``"latency_divergence"``,
            ``"latency_quality_energy"``, or a function from the named terms, each an array (n, ...), to rewards (n,),
            row by row: n is however many episodes are in step with each other. Where requests are served also
            ``"serving"`` and ``"serving_divergence"``; see ``wdmoe_env.serve_env``.
        quality_weight: reward lost per nat of added NLL under ``"latency_quality"``, of divergence under
            ``"latency_divergence"``, 0 to 1e12.
        energy_weight: reward lost per joule that a token takes under ``"latency_quality_energy"``, 0 to 1e12.
        action_type: ``"box"`` (one flat vector, which every RL library takes) or ``"dict"``.
        min_share: least bandwidth share of a device that serves a token, 1e-12 to 1 / U.
        observe_hidden_states: whether the observation holds the hidden states (J, H).
        placement: device of each expert, one row of E for all blocks or I rows; ``None`` spreads the experts
            evenly in order, ``"auto"`` finds a fast one that fits, see ``wdmoe_env.deploy``. Where devices read weights
            (``compute_model="roofline"``), one that does not fit their memory is refused.
        channel: the radio; a string is short for its ``source``.
        devices: the mobile devices; ``"paper"`` and ``"boards"`` are those of ``DEVICE_SETS``.
        deployment: widths that latency is simulated for; ``"model"`` takes the running model's own.
        device: torch device on which the model runs.
        dtype: type of the model's weights: ``"float32"``, ``"bfloat16"`` or ``"float16"``.
        runner: who runs the experts: ``"local"`` is this process, ``"KIND:ARGUMENT"`` a kind registered in
            ``wdmoe_env.moe.runner``.
        token_terms: whether the terms of the reward hold those for credit per token too: ``pair_price_ms``,
            ``token_price_ms``, ``token_divergence``, ``divergence`` and ``reference_token_nll``.
            ``"latency_divergence"`` brings them in any case.
        energy: whether the terms of the reward hold the energy of equation (12) too: ``device_energy_j``,
            ``radio_energy_j`` and ``energy_per_token_j``. ``"latency_quality_energy"`` brings them in any case. Each
            device must be of a profile with known powers.
        decide_bits: whether the action decides bits on the link too, and whether for each ``"device"`` or each
            ``"token"``; ``None`` leaves them at ``link_bits``, which otherwise must be 16.
        bits_choices: bits that the action may decide for, two at least; some of 16, 8 and 4, the most first.
        serving: how requests arrive and how many run at once, for the ids ``WDMoE-Serve-*`` alone, where ``num_tokens``
            is its slots x chunk; ``None`` elsewhere.

    Raises:
        ValueError: a field is out of its range, or no name of those known.
        TypeError: a field of another type, or an unknown field in a nested mapping.
    """

    _ACTION_TYPES: ClassVar[tuple[str, ...]] = ("box", "dict")

    model: str = "tiny"
    decision: DecisionKind = "joint"
    num_tokens: int = WINDOW_TOKENS
    split: Split | str = "train"
    reward: str | Callable[[RewardTerms], Any] = "wlr"
    quality_weight: float = 10.0
    action_type: ActionType = "box"
    min_share: float = 1e-3
    observe_hidden_states: bool = False
    placement: tuple[int, ...] | tuple[tuple[int, ...], ...] | Literal["auto"] | None = None
    channel: ChannelConfig = field(default_factory=ChannelConfig)
    devices: DeviceConfig = field(default_factory=DeviceConfig)
    deployment: DeploymentConfig | Literal["model"] = field(default_factory=DeploymentConfig)
    device: str = "cpu"
    dtype: Dtype = "float32"
    runner: str = "local"
    token_terms: bool = False
    energy: bool = False
    decide_bits: Literal["device", "token"] | None = None
    bits_choices: tuple[int, ...] = LINK_BITS
    energy_weight: float = 1.0
    serving: ServingConfig | None = None

    def __post_init__(self) -> None:
        """Turn nested mappings into dataclasses, check every field, and make it Python's own."""
        self._check_nested()
        put(self, "placement", _placement(self.placement))
        put(self, "model", plain_path(self.model))
        for name, kind in _PLAIN_KINDS.items():
            put(self, name, plain(getattr(self, name)))
            if not isinstance(getattr(self, name), kind):
                raise TypeError(f"{name} must be a {kind.__name__}, got {shown(getattr(self, name))}")
        put(self, "num_tokens", check_integer("num_tokens", self.num_tokens, at_least=1, at_most=10**9))
        if self.serving is not None:
            if self.num_tokens not in (WINDOW_TOKENS, self.serving.num_rows):
                rows = f"{self.serving.num_rows}, slots x chunk"
                raise ValueError(f"num_tokens must be {rows}, where requests are served, got {self.num_tokens}")
            put(self, "num_tokens", self.serving.num_rows)
        put(self, "split", plain_path(self.split))
        if not isinstance(self.split, str) or not (names_texts(self.split) or self.split.endswith(SUITE_SUFFIXES)):
            check_choice("split", self.split, get_args(Split))
        put(self, "reward", plain(self.reward))
        if not isinstance(self.reward, str) and not callable(self.reward):
            raise TypeError(f"reward must be a name or a function of the terms, got {shown(self.reward)}")
        put(self, "action_type", check_choice("action_type", self.action_type, self._ACTION_TYPES))
        for name, choices in (("decision", DecisionKind), ("dtype", Dtype)):
            put(self, name, check_choice(name, getattr(self, name), get_args(choices)))
        weights = (("quality_weight", 0.0, 1e12), ("energy_weight", 0.0, 1e12))
        for name, least, most in (*weights, ("min_share", 1e-12, 1.0 / self.devices.count)):
            put(self, name, check_number(name, getattr(self, name), at_least=least, at_most=most))
        self._check_bits()

    def _check_bits(self) -> None:
        if self.decide_bits is not None:
            put(self, "decide_bits", check_choice("decide_bits", self.decide_bits, ("device", "token")))
        choices = items_of(self.bits_choices) or ()
        if len(choices) < 2 or choices != tuple(bits for bits in LINK_BITS if bits in choices):
            expected = "bits_choices must be two or more of 16, 8 and 4 in this order"
            raise ValueError(f"{expected}, got {shown(self.bits_choices)}")
        put(self, "bits_choices", choices)
        bits = getattr(self.deployment, "link_bits", LINK_BITS[0])
        if self.decide_bits is not None and bits != LINK_BITS[0]:
            raise ValueError(f"link_bits must be 16 where the action decides bits, got {bits}")

    @property
    def has_token_terms(self) -> bool:
        """Whether the terms for credit per token are worked out."""
        return self.token_terms or self.reward == "latency_divergence"

    @property
    def has_energy(self) -> bool:
        """Whether energy is counted."""
        return self.energy or self.reward == "latency_quality_energy"

    @property
    def requested(self) -> tuple[str, ...]:
        """Which terms are there that are not always there, as ``Metric.on_request`` names them."""
        asked = {"token_terms": self.has_token_terms, "energy": self.has_energy, "bits": self.decide_bits is not None}
        return tuple(name for name, wanted in asked.items() if wanted)

    def _check_nested(self) -> None:
        for name, kind in (
            ("channel", ChannelConfig),
            ("devices", DeviceConfig),
            ("deployment", DeploymentConfig),
            ("serving", ServingConfig),
        ):
            value = plain(getattr(self, name))
            if name == "serving" and value is None:
                continue
            if name == "channel" and isinstance(value, str):
                value = {"source": value}
            if name == "devices" and isinstance(value, str):
                value = DEVICE_SETS[check_choice(name, value, tuple(DEVICE_SETS))]
            if isinstance(value, Mapping):
                value = from_mapping(kind, value, prefix=f"{name}.")
            elif not isinstance(value, kind) and not (name == "deployment" and _is_model(value)):
                also = {
                    "channel": " or the name of a source",
                    "devices": " or the name of a set",
                    "deployment": " or 'model'",
                }[name]
                raise TypeError(f"{name} must be a {kind.__name__}, a mapping of its fields{also}, got {shown(value)}")
            put(self, name, value)

    @classmethod
    def make(cls, config: EnvConfig | Mapping[str, Any] | None = None, **overrides: Any) -> Self:
        """Build a config from a dataclass or its dict, with keywords on top.

        Args:
            config: a config, its ``to_dict()``, or nothing.
            **overrides: fields that replace those of ``config``.

        Raises:
            TypeError: a keyword is not a field; the message names the nearest ones.
        """
        if config is None:
            return from_mapping(cls, overrides)
        if isinstance(config, cls):
            return from_mapping(cls, {**_shallow(config), **overrides})
        if isinstance(config, Mapping):
            return from_mapping(cls, {**config, **overrides})
        raise TypeError(f"config must be an EnvConfig or its dict, got {type(config).__name__}")

    def to_dict(self) -> dict[str, Any]:
        """Plain nested dict; JSON-ready unless ``reward`` is a function."""
        return dataclasses.asdict(self)


def names_texts(split: str) -> bool:
    """Whether a split is texts of one's own, ``"text:PATH"``.

    Raises:
        ValueError: no path follows.
    """
    if split == TEXT_PREFIX:
        raise ValueError(f"split must name a file or a folder behind {TEXT_PREFIX!r}, got nothing")
    return split.startswith(TEXT_PREFIX)


def _is_model(value: Any) -> bool:
    return isinstance(value, str) and value == "model"


def _shallow(config: Any) -> dict[str, Any]:
    return {f.name: getattr(config, f.name) for f in dataclasses.fields(config)}


def _placement(placement: Any) -> tuple[int, ...] | tuple[tuple[int, ...], ...] | Literal["auto"] | None:
    """A placement as a tuple of device numbers, or of such tuples.

    Raises:
        ValueError: it is neither, or its rows differ in length.
    """
    if placement is None:
        return None
    if isinstance(plain(placement), str) and plain(placement) == "auto":
        return "auto"
    items = items_of(placement)
    rows = () if items is None else tuple(map(items_of, items))
    nested = bool(rows) and None not in rows
    for row in rows if nested else (items,):
        if row is None or not all(isinstance(item, int) and not isinstance(item, bool) for item in row):
            expected = "placement must be a tuple of device numbers or of such tuples, or 'auto'"
            raise ValueError(f"{expected}, got {shown(placement)}")
    lengths = sorted({len(row) for row in rows if row is not None})
    if len(lengths) > 1:
        raise ValueError(f"placement must have rows of one length, got rows of {lengths[0]} to {lengths[-1]} devices")
    return rows if nested else items  # type: ignore[return-value]
