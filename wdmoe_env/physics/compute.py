"""Computing speed of the devices: C[u] of design equation (5) is a profile's peak times the utilization."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np

from wdmoe_env.config import DeviceConfig
from wdmoe_env.physics.latency import Float


@dataclass(frozen=True, slots=True)
class DeviceProfile:
    """Hardware of one kind of device.

    Attributes:
        name: key in ``DEVICE_PROFILES``.
        peak_flops: dense FP16 FLOP/s of the vector units, Tensor Cores and sparsity left out.
        source: where the number comes from, its arithmetic, and what of it could not be confirmed.
    """

    name: str
    peak_flops: float
    source: str


_CONFIRMED_RATE = "FP16 rate of compute capability {} in the CUDA C++ Programming Guide's throughput table"
# NVIDIA's technical brief gives 5.3 FP32 TFLOPs for AGX Orin 64GB, which fits cores and clock but not the FP16 rate.
_ORIN_RATE = "FP16 at twice the FP32 rate is taken as on earlier Jetsons, not confirmed for compute capability 8.7"


def _jetson(name: str, sheet: str, cuda_cores: int, clock_mhz: float, remark: str) -> DeviceProfile:
    """CUDA cores x 2 (multiply-add) x 2 (FP16 in pairs) x clock."""
    arithmetic = f"{cuda_cores} CUDA cores x 2 x 2 (FP16) x {clock_mhz:g} MHz"
    return DeviceProfile(
        name,
        cuda_cores * 4 * clock_mhz * 1e6,
        f"NVIDIA {sheet} data sheet, as resellers repeat it: {arithmetic}; {remark}",
    )


_PROFILES = (
    _jetson("jetson-agx-orin-64gb", "Jetson AGX Orin", 2048, 1300, _ORIN_RATE),
    _jetson("jetson-agx-orin-32gb", "Jetson AGX Orin", 1792, 930, _ORIN_RATE),
    _jetson("jetson-orin-nx-16gb", "Jetson Orin NX", 1024, 918, _ORIN_RATE),
    _jetson("jetson-orin-nx-8gb", "Jetson Orin NX", 1024, 765, f"clock not confirmed; {_ORIN_RATE}"),
    _jetson("jetson-orin-nano-8gb", "Jetson Orin Nano", 1024, 625, f"clock before the 2024 update; {_ORIN_RATE}"),
    _jetson("jetson-agx-xavier-32gb", "Jetson AGX Xavier", 512, 1377, _CONFIRMED_RATE.format("7.x")),
    _jetson("jetson-xavier-nx-16gb", "Jetson Xavier NX", 384, 1100, _CONFIRMED_RATE.format("7.x")),
    _jetson("jetson-tx2", "Jetson TX2", 256, 1300, _CONFIRMED_RATE.format("6.2")),
    _jetson("jetson-nano", "Jetson Nano", 128, 921, _CONFIRMED_RATE.format("5.3")),
    DeviceProfile(
        "raspberry-pi-5",
        4 * 2 * 8 * 2 * 2.4e9,
        "Raspberry Pi 5 product brief: 4 Cortex-A76 cores at 2.4 GHz, x 2 SIMD pipes x 8 FP16 lanes x 2; the two "
        "128-bit pipes per core are Arm's figure for Cortex-A76, not confirmed",
    ),
    DeviceProfile(
        "iphone-15-pro",
        768 * 2 * 1.398e9,
        "A17 Pro GPU: 768 lanes x 2 x 1398 MHz from a third-party hardware database (hmc-tech.com), which gives "
        "FP16 the FP32 rate; Apple publishes neither figure",
    ),
)

DEVICE_PROFILES: Mapping[str, DeviceProfile] = MappingProxyType({profile.name: profile for profile in _PROFILES})


def device_flops(devices: DeviceConfig) -> Float:
    """C[u] of equation (5): the FLOP/s that an expert reaches on each device.

    Args:
        devices: profiles, repeated in order until every device has one, and utilization.

    Returns:
        (U,) FLOP/s.

    Raises:
        ValueError: a profile name is unknown; the message names the nearest known ones.
    """
    for name in devices.profiles:
        if name not in DEVICE_PROFILES:
            near = difflib.get_close_matches(name, DEVICE_PROFILES, n=3) or list(DEVICE_PROFILES)
            raise ValueError(f"unknown device profile {name!r}; the nearest known are {', '.join(near)}")
    peaks = [DEVICE_PROFILES[name].peak_flops for name in devices.profiles]
    return devices.utilization * np.resize(np.array(peaks), devices.count)
