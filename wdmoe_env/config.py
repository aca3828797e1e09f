"""Settings of the environment as frozen dataclasses: the ground floor.

Every unit stands in the field's name. Every field is checked on construction, so that a wrong setting is
one sentence before any model is loaded. A number may be NumPy's, and a tuple a list or an array: the field then holds
Python's own, so that configs stay hashable and plain.

The ranges are wide, but such as physics can have: within them every latency is finite and every observation is inside
its space.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, ClassVar, Literal, Self, TypeVar, get_args

from wdmoe_env.checks import (
    check_choice,
    check_integer,
    check_number,
    check_numbers,
    items_of,
    plain,
    plain_path,
    shown,
)
from wdmoe_env.precision import LINK_BITS, payload_bits
from wdmoe_env.serving_config import ServingConfig

PathLoss = Literal["umi_los", "umi_nlos", "uma_los", "uma_nlos", "log_distance", "free_space"]
Fading = Literal["rayleigh", "rician", "nakagami", "none"]
Mobility = Literal["static", "gauss_markov"]
ComputeModel = Literal["flops", "roofline"]
DecisionKind = Literal["joint", "selection", "bandwidth"]
ActionType = Literal["box", "dict", "discrete"]
Split = Literal["train", "test", "shifted", "suite"]
Dtype = Literal["float32", "bfloat16", "float16"]

ConfigT = TypeVar("ConfigT")

SUITE_SUFFIXES = (".jsonl", ".jsonl.gz")
"""How the name of a suite's file ends."""

TEXT_PREFIX = "text:"
"""How a split of one's own texts begins; the path of a file or a folder follows."""

DISTANCES_M = (1e-3, 1e9)
"""Least and greatest distance of a device: a millimetre to beyond the moon."""

CHANNEL_RANGES = {
    "carrier_hz": (1e6, 3e12),
    "bandwidth_hz": (1.0, 1e12),
    "base_station_power_w": (1e-9, 1e6),
    "device_power_w": (1e-9, 1e6),
    "noise_dbm_per_hz": (-300.0, 0.0),
    "path_loss_exponent": (0.0, 10.0),
    "rician_k_db": (-100.0, 100.0),
    "nakagami_m": (0.5, 1000.0),
    "block_interval_s": (0.0, 1e5),
    "delay_spread_s": (0.0, 1e-3),
    "shadowing_std_db": (0.0, 30.0),
    "csi_error_db": (0.0, 30.0),
}
"""Least and greatest value of each number of ``ChannelConfig``."""

FORMER_NAMES = {"bits_per_element": "link_bits"}
"""Fields of configurations written by former versions, and what they are called now."""
DEVICE_RANGES = {
    "utilization": (1e-6, 1.0),
    "memory_efficiency": (1e-6, 1.0),
    "speed_mps": (0.0, 1e5),
    "mobility_memory": (0.0, 1.0),
    "outage_mean_s": (0.0, 1e9),
    "uptime_mean_s": (1e-6, 1e9),
    "hot_speed_factor": (0.01, 1.0),
    "throttling_heat": (0.0, 0.99),
    "heat_time_s": (1e-6, 1e9),
    "initial_heat": (0.0, 1.0),
    "overhead_ms": (0.0, 1e6),
}
"""Least and greatest value of each number of ``DeviceConfig`` that is no size or place."""

WINDOW_TOKENS = 32
"""Tokens J of a window where nothing else is said."""

# SwiGLU's activation on one hidden unit: exp, add, divide, multiply by x, multiply by the linear branch.
ACTIVATION_FLOPS = 5


@dataclass(frozen=True, slots=True)
class ChannelConfig:
    """The radio between the base station and the devices; design equations (1) to (4).

    Together with the distances, the path loss must leave a signal-to-noise ratio that a radio can have: see
    ``wdmoe_env.physics.statistical.check_link_budget``.

    Attributes:
        source: where the gains come from: ``"statistical"`` is path loss, shadowing and fading as set below;
            ``"sionna:tdl-a"`` and the like take the fading from Sionna, ``"trace:gains.csv"`` all gains from a file
            (.csv, .npz), and ``"KIND:ARGUMENT"`` from a kind registered in ``wdmoe_env.physics.sources``.
        path_loss: path-loss law. ``umi_*`` and ``uma_*`` are 3GPP TR 38.901 Table 7.4.1-1.
        carrier_hz: carrier frequency, 1 MHz to 3 THz.
        bandwidth_hz: total bandwidth B, shared by all devices, 1 Hz to 1 THz.
        base_station_power_w: transmit power of the downlink, 1 nW to 1 MW.
        device_power_w: transmit power of the uplink, 1 nW to 1 MW.
        noise_dbm_per_hz: noise power spectral density N0, -300 to 0.
        shadowing_std_db: log-normal shadowing, 0 to 30; ``None`` takes the path-loss law's own (0 for
            ``free_space``).
        path_loss_exponent: exponent of ``log_distance``, which starts from free space at one metre; 0 to 10.
        fading: small-scale fading, constant within a block.
        rician_k_db: power of the line of sight over that of the scattered paths, for ``rician``; -100 to 100.
        nakagami_m: shape of ``nakagami``, a multiple of 1/2 (m = 1 is Rayleigh), 0.5 to 1000.
        block_interval_s: time T between the fading of one block and of the next, 0 to 1e5.
        delay_spread_s: RMS delay spread of Sionna's TDL and CDL models, 0 to 1 ms; 0 is a flat channel.
        csi_delay: age of the gains that the policy sees, and that shares are solved for, in blocks; 0 to 1e6. Latency
            is always of the true ones. See ``wdmoe_env.physics.knowledge``.
        csi_error_db: standard deviation of the error of these gains, 0 to 30.

    Raises:
        ValueError: a field is out of its range, or no name of those known.
        TypeError: ``source`` is no string.
    """

    source: str = "statistical"
    path_loss: PathLoss = "umi_los"
    carrier_hz: float = 3.5e9
    bandwidth_hz: float = 100e6
    base_station_power_w: float = 10.0
    device_power_w: float = 0.2
    noise_dbm_per_hz: float = -174.0
    shadowing_std_db: float | None = None
    path_loss_exponent: float = 3.0
    fading: Fading = "rayleigh"
    rician_k_db: float = 6.0
    nakagami_m: float = 2.0
    block_interval_s: float = 0.02
    delay_spread_s: float = 100e-9
    csi_delay: int = 0
    csi_error_db: float = 0.0

    def __post_init__(self) -> None:
        """Check every field, and make it Python's own."""
        source = plain(self.source)
        if not isinstance(source, str):
            expected = "source must be a string such as 'statistical' or 'trace:gains.csv'"
            raise TypeError(f"{expected}, got {shown(source)}")
        _put(self, "source", source)
        _put(self, "path_loss", check_choice("path_loss", self.path_loss, get_args(PathLoss)))
        _put(self, "fading", check_choice("fading", self.fading, get_args(Fading)))
        for name, (least, most) in CHANNEL_RANGES.items():
            value = getattr(self, name)
            if name != "shadowing_std_db" or value is not None:
                _put(self, name, check_number(name, value, at_least=least, at_most=most))
        _put(self, "csi_delay", check_integer("csi_delay", self.csi_delay, at_least=0, at_most=1_000_000))
        if (2 * self.nakagami_m) % 1:
            raise ValueError(f"nakagami_m must be a multiple of 0.5, got {self.nakagami_m}")


@dataclass(frozen=True, slots=True)
class DeviceConfig:
    """The mobile devices: how many, which hardware, where, and how they move.

    Attributes:
        profiles: hardware of each device, by name in ``wdmoe_env.physics.compute.DEVICE_PROFILES``; a shorter
            tuple is repeated until ``count`` devices have one.
        count: number of devices U, 1 to a million.
        utilization: share of a profile's peak FLOP/s that an expert reaches, 1e-6 to 1.
        compute_model: ``flops`` is equation (5), computing alone; ``roofline`` is (5r): in every block a device reads
            the weights of each expert that it uses once, and the longer of reading and computing counts.
        memory_efficiency: share of a profile's memory bandwidth that reading weights reaches, 1e-6 to 1; boards were
            seen at 0.4 to 0.8.
        distance_range_m: each episode places every device uniformly over this ring around the base station; both
            radii from 1e-3 to 1e9.
        distances_m: fixed distances, one per device, in place of ``distance_range_m``; 1e-3 to 1e9.
        mobility: ``static``, or ``gauss_markov`` (velocity remembers itself from block to block).
        speed_mps: speed of the devices, or of the scatterers around static ones; it sets the Doppler shift; 0 to 1e5.
        mobility_memory: Gauss-Markov's alpha in [0, 1]; 1 is a straight line, 0 a random walk.
        outage_mean_s: mean time for which a device is away once it has gone, 0 to 1e9; 0 is never. Devices go and come
            independently of each other; see ``wdmoe_env.physics.outages``.
        uptime_mean_s: mean time for which a device is there between two outages, 1e-6 to 1e9.
        hot_speed_factor: speed of a device that is as hot as can be, over that of a cool one, 0.01 to 1; 1 is no
            throttling. See ``wdmoe_env.physics.heat``.
        throttling_heat: heat from which on a device slows down, 0 to 0.99.
        heat_time_s: time constant of warming up and cooling down, 1e-6 to 1e9.
        initial_heat: heat of every device at the start of an episode, 0 to 1.
        overhead_ms: what a call to a device takes beside radio and compute, for every device that serves a token, 0 to
            1e6 ms. Policies do not see it: it is the same for all. A testbed's fidelity report fits it.

    Raises:
        ValueError: a field is out of its range, or no name of those known.
    """

    profiles: tuple[str, ...] = (
        "jetson-agx-orin-64gb",
        "jetson-agx-orin-32gb",
        "jetson-orin-nx-16gb",
        "jetson-orin-nx-8gb",
        "jetson-orin-nano-8gb",
        "jetson-xavier-nx-16gb",
        "jetson-agx-xavier-32gb",
        "jetson-tx2",
    )
    count: int = 8
    utilization: float = 0.5
    compute_model: ComputeModel = "flops"
    memory_efficiency: float = 0.6
    distance_range_m: tuple[float, float] = (20.0, 200.0)
    distances_m: tuple[float, ...] | None = None
    mobility: Mobility = "static"
    speed_mps: float = 0.83
    mobility_memory: float = 0.85
    outage_mean_s: float = 0.0
    uptime_mean_s: float = 60.0
    hot_speed_factor: float = 1.0
    throttling_heat: float = 0.0
    heat_time_s: float = 60.0
    initial_heat: float = 0.0
    overhead_ms: float = 0.0

    def __post_init__(self) -> None:
        """Check every field, and make it Python's own."""
        _put(self, "count", check_integer("count", self.count, at_least=1, at_most=1_000_000))
        profiles = items_of(self.profiles)
        if not profiles or not all(isinstance(name, str) for name in profiles):
            raise ValueError(f"profiles must be a tuple of device profile names, got {shown(self.profiles)}")
        _put(self, "profiles", profiles)
        for name, choices in (("mobility", Mobility), ("compute_model", ComputeModel)):
            _put(self, name, check_choice(name, getattr(self, name), get_args(choices)))
        for name, (least, most) in DEVICE_RANGES.items():
            _put(self, name, check_number(name, getattr(self, name), at_least=least, at_most=most))
        _put(self, "distance_range_m", check_numbers("distance_range_m", self.distance_range_m, 2, *DISTANCES_M))
        if self.distance_range_m[0] > self.distance_range_m[1]:
            raise ValueError(f"distance_range_m must be (low, high) with low <= high, got {self.distance_range_m}")
        if self.distances_m is not None:
            _put(self, "distances_m", check_numbers("distances_m", self.distances_m, self.count, *DISTANCES_M))


DEVICE_SETS: Mapping[str, Mapping[str, Any]] = MappingProxyType({"paper": {}, "boards": {"compute_model": "roofline"}})
"""Named sets of devices, as fields of ``DeviceConfig``: ``"paper"`` is the default, equation (5) alone; ``"boards"`` is
the same hardware under the roofline (5r)."""


@dataclass(frozen=True, slots=True)
class DeploymentConfig:
    """Widths of the model whose latency is simulated; the defaults are Mixtral-8x7B's.

    Attributes:
        hidden_size: width m of a hidden state, at most 2**20.
        intermediate_size: inner width m_h of a SwiGLU expert, at most 2**24.
        link_bits: bits of one element of a hidden state on the link: 16 rounds nothing; under 8 and 4 what goes down
            and what comes back is rounded in the running model, see ``wdmoe_env.precision``. A mapping may call it
            ``bits_per_element``, its former name.
        weight_bits: bits of one weight of an expert in a device's memory, such as 16, 8 or 4.5; 0.5 to 64. Only the
            ``roofline`` of ``DeviceConfig`` reads weights.

    Raises:
        ValueError: a width is not a whole number of at least 1, or a field is out of its range; or other bits.
    """

    hidden_size: int = 4096
    intermediate_size: int = 14336
    link_bits: int = 16
    weight_bits: float = 16.0

    def __post_init__(self) -> None:
        """Check every field, and make it Python's own."""
        for name, most in (("hidden_size", 2**20), ("intermediate_size", 2**24)):
            _put(self, name, check_integer(name, getattr(self, name), at_least=1, at_most=most))
        bits = plain(self.link_bits)
        if isinstance(bits, bool) or not isinstance(bits, int) or bits not in LINK_BITS:
            raise ValueError(f"link_bits must be 16, 8 or 4, got {shown(bits)}")
        _put(self, "link_bits", bits)
        _put(self, "weight_bits", check_number("weight_bits", self.weight_bits, at_least=0.5, at_most=64.0))

    @property
    def expert_weight_bytes(self) -> float:
        """W_e of equation (5r): bytes of the three matrices of one SwiGLU expert."""
        return 3 * self.hidden_size * self.intermediate_size * self.weight_bits / 8

    @property
    def payload_bits(self) -> int:
        """L of equation (5): bits of one hidden state, its scale included where it is rounded."""
        return payload_bits(self.hidden_size, self.link_bits)

    @property
    def expert_flops(self) -> int:
        """F of equation (5): FLOPs of one SwiGLU expert on one token, three matrices and the activation."""
        return 6 * self.hidden_size * self.intermediate_size + ACTIVATION_FLOPS * self.intermediate_size


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
            row by row: n is however many episodes are in step with each other.
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
        _put(self, "placement", _placement(self.placement))
        _put(self, "model", plain_path(self.model))
        for name, kind in _PLAIN_KINDS.items():
            _put(self, name, plain(getattr(self, name)))
            if not isinstance(getattr(self, name), kind):
                raise TypeError(f"{name} must be a {kind.__name__}, got {shown(getattr(self, name))}")
        _put(self, "num_tokens", check_integer("num_tokens", self.num_tokens, at_least=1, at_most=10**9))
        if self.serving is not None:
            if self.num_tokens not in (WINDOW_TOKENS, self.serving.num_rows):
                rows = f"{self.serving.num_rows}, slots x chunk"
                raise ValueError(f"num_tokens must be {rows}, where requests are served, got {self.num_tokens}")
            _put(self, "num_tokens", self.serving.num_rows)
        _put(self, "split", plain_path(self.split))
        if not isinstance(self.split, str) or not (names_texts(self.split) or self.split.endswith(SUITE_SUFFIXES)):
            check_choice("split", self.split, get_args(Split))
        _put(self, "reward", plain(self.reward))
        if not isinstance(self.reward, str) and not callable(self.reward):
            raise TypeError(f"reward must be a name or a function of the terms, got {shown(self.reward)}")
        _put(self, "action_type", check_choice("action_type", self.action_type, self._ACTION_TYPES))
        for name, choices in (("decision", DecisionKind), ("dtype", Dtype)):
            _put(self, name, check_choice(name, getattr(self, name), get_args(choices)))
        weights = (("quality_weight", 0.0, 1e12), ("energy_weight", 0.0, 1e12))
        for name, least, most in (*weights, ("min_share", 1e-12, 1.0 / self.devices.count)):
            _put(self, name, check_number(name, getattr(self, name), at_least=least, at_most=most))
        self._check_bits()

    def _check_bits(self) -> None:
        if self.decide_bits is not None:
            _put(self, "decide_bits", check_choice("decide_bits", self.decide_bits, ("device", "token")))
        choices = items_of(self.bits_choices) or ()
        if len(choices) < 2 or choices != tuple(bits for bits in LINK_BITS if bits in choices):
            expected = "bits_choices must be two or more of 16, 8 and 4 in this order"
            raise ValueError(f"{expected}, got {shown(self.bits_choices)}")
        _put(self, "bits_choices", choices)
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
            _put(self, name, value)

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


def from_mapping(kind: type[ConfigT], values: Mapping[Any, Any], prefix: str = "") -> ConfigT:
    """Build a config dataclass from a mapping, refusing unknown keys.

    Args:
        kind: the dataclass.
        values: field names to values.
        prefix: put before a key in messages, for nested configs.

    Raises:
        TypeError: a key is no string, or not a field; the message names the nearest ones.
    """
    known = [f.name for f in dataclasses.fields(kind)]  # type: ignore[arg-type]
    values = _with_present_names(known, values, prefix)
    for key in values:
        if not isinstance(key, str):
            name = prefix.rstrip(".") or "config"
            raise TypeError(f"{name} must have names of fields as its keys, got {shown(key)}")
        if key not in known:
            near = ", ".join(difflib.get_close_matches(key, known, n=3) or known)
            # In Python's own words: TorchRL looks for them, and then leaves out the keyword that it tried.
            raise TypeError(f"unexpected keyword argument {prefix + key!r}; the nearest known are {near}")
    return kind(**values)


def _with_present_names(known: list[str], values: Mapping[Any, Any], prefix: str) -> Mapping[Any, Any]:
    """The values with fields of former versions under the names that they have now.

    Raises:
        TypeError: a field under both names.
    """
    for former, name in FORMER_NAMES.items():
        if former in values and name in known:
            if name in values:
                raise TypeError(f"expected {prefix + name!r} or its former name {former!r}, got both")
            values = {name if key == former else key: value for key, value in values.items()}
    return values


def _is_model(value: Any) -> bool:
    return isinstance(value, str) and value == "model"


def _shallow(config: Any) -> dict[str, Any]:
    return {f.name: getattr(config, f.name) for f in dataclasses.fields(config)}


def _put(config: Any, name: str, value: Any) -> None:
    """Set a field of a frozen config while it is being made."""
    object.__setattr__(config, name, value)


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
