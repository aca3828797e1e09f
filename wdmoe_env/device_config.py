"""Settings of the mobile devices, and of the model whose latency they have, as frozen dataclasses.

See ``wdmoe_env.config``, which says how they are checked.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal, get_args

from wdmoe_env.checks import check_choice, check_integer, check_number, check_numbers, items_of, plain, shown
from wdmoe_env.fields import put
from wdmoe_env.precision import LINK_BITS, payload_bits

Mobility = Literal["static", "gauss_markov"]
ComputeModel = Literal["flops", "roofline"]

DISTANCES_M = (1e-3, 1e9)
"""Least and greatest distance of a device: a millimetre to beyond the moon."""

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

# SwiGLU's activation on one hidden unit: exp, add, divide, multiply by x, multiply by the linear branch.
ACTIVATION_FLOPS = 5


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
        put(self, "count", check_integer("count", self.count, at_least=1, at_most=1_000_000))
        profiles = items_of(self.profiles)
        if not profiles or not all(isinstance(name, str) for name in profiles):
            raise ValueError(f"profiles must be a tuple of device profile names, got {shown(self.profiles)}")
        put(self, "profiles", profiles)
        for name, choices in (("mobility", Mobility), ("compute_model", ComputeModel)):
            put(self, name, check_choice(name, getattr(self, name), get_args(choices)))
        for name, (least, most) in DEVICE_RANGES.items():
            put(self, name, check_number(name, getattr(self, name), at_least=least, at_most=most))
        put(self, "distance_range_m", check_numbers("distance_range_m", self.distance_range_m, 2, *DISTANCES_M))
        if self.distance_range_m[0] > self.distance_range_m[1]:
            raise ValueError(f"distance_range_m must be (low, high) with low <= high, got {self.distance_range_m}")
        if self.distances_m is not None:
            put(self, "distances_m", check_numbers("distances_m", self.distances_m, self.count, *DISTANCES_M))


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
        num_blocks: MoE blocks of the deployed model, at most 10,000: each block of the running model then stands for as
            many in the memory of the devices (10) as the one has for each of the other. ``None`` takes the running
            model's own. Latency and energy stay those of the blocks that run.

    Raises:
        ValueError: a width is not a whole number of at least 1, or a field is out of its range; or other bits.
    """

    hidden_size: int = 4096
    intermediate_size: int = 14336
    link_bits: int = 16
    weight_bits: float = 16.0
    num_blocks: int | None = None

    def __post_init__(self) -> None:
        """Check every field, and make it Python's own."""
        for name, most in (("hidden_size", 2**20), ("intermediate_size", 2**24)):
            put(self, name, check_integer(name, getattr(self, name), at_least=1, at_most=most))
        bits = plain(self.link_bits)
        if isinstance(bits, bool) or not isinstance(bits, int) or bits not in LINK_BITS:
            raise ValueError(f"link_bits must be 16, 8 or 4, got {shown(bits)}")
        put(self, "link_bits", bits)
        put(self, "weight_bits", check_number("weight_bits", self.weight_bits, at_least=0.5, at_most=64.0))
        if plain(self.num_blocks) is not None:
            put(self, "num_blocks", check_integer("num_blocks", self.num_blocks, at_least=1, at_most=10_000))

    @property
    def expert_weight_bytes(self) -> float:
        """W_e of equation (5r): bytes of the three matrices of one SwiGLU expert."""
        return 3 * self.hidden_size * self.intermediate_size * self.weight_bits / 8

    def held_weight_bytes(self, num_blocks: int) -> float:
        """Bytes of a device's memory that an expert of a running block takes: W_e of each deployed block it stands for.

        Args:
            num_blocks: I of the running model.
        """
        return self.expert_weight_bytes * (self.num_blocks or num_blocks) / num_blocks

    @property
    def payload_bits(self) -> int:
        """L of equation (5): bits of one hidden state, its scale included where it is rounded."""
        return payload_bits(self.hidden_size, self.link_bits)

    @property
    def expert_flops(self) -> int:
        """F of equation (5): FLOPs of one SwiGLU expert on one token, three matrices and the activation."""
        return 6 * self.hidden_size * self.intermediate_size + ACTIVATION_FLOPS * self.intermediate_size
