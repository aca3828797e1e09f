"""Hardware of the devices: speed C[u] of design equation (5), memory bandwidth M[u] of (5r), memory and power."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import cycle, islice
from types import MappingProxyType

import numpy as np

from wdmoe_env.checks import nearest
from wdmoe_env.config import DeploymentConfig, DeviceConfig
from wdmoe_env.physics.latency import Float


@dataclass(frozen=True, slots=True)
class DeviceProfile:
    """Hardware of one kind of device.

    Attributes:
        name: key in ``DEVICE_PROFILES``.
        peak_flops: dense FP16 FLOP/s of the vector units, Tensor Cores and sparsity left out.
        source: where the number comes from, its arithmetic, and what of it could not be confirmed.
        memory_bytes_per_s: peak bandwidth of the memory.
        memory_bytes: memory of the board, in units of 1e9 bytes as its maker counts.
        memory_source: where bandwidth and memory come from.
        idle_power_w: W at rest; ``None`` where no figure is known.
        active_power_w: W at work; ``None`` where no figure is known.
        power_source: where both come from, and what they really are.
    """

    name: str
    peak_flops: float
    source: str
    memory_bytes_per_s: float
    memory_bytes: float
    memory_source: str
    idle_power_w: float | None
    active_power_w: float | None
    power_source: str

    @property
    def usable_memory_bytes(self) -> float:
        """What experts may fill: ``memory_bytes`` less ``SYSTEM_MEMORY_BYTES``."""
        return self.memory_bytes - SYSTEM_MEMORY_BYTES


SYSTEM_MEMORY_BYTES = 2.8e9
"""What the system keeps for itself: 5.2 of 8 GB were free on the one board for which a figure was found, an Orin Nano
(ericxliu.me). That other boards keep as much is an assumption."""


_CONFIRMED_RATE = "FP16 rate of compute capability {} in the CUDA C++ Programming Guide's throughput table"
# NVIDIA's technical brief gives 5.3 FP32 TFLOPs for AGX Orin 64GB, which fits cores and clock but not the FP16 rate.
_ORIN_RATE = "FP16 at twice the FP32 rate is taken as on earlier Jetsons, not confirmed for compute capability 8.7"


_GUIDE = "the table of Jetson boards in Ultralytics' guide (docs/en/guides/nvidia-jetson.md)"
_COURSE = "an unofficial course's table of Jetson boards, not confirmed"
_JETSON_POWER = "lowest and highest power mode of the module, from " + _COURSE
_JETSON_POWER += "; the lowest mode's budget stands for idling, where a module takes less"


def _jetson(
    name: str,
    sheet: str,
    units: tuple[int, float, str],
    memory: tuple[float, float, str],
    power_w: tuple[float, float],
) -> DeviceProfile:
    """A Jetson board.

    Args:
        name: of the profile.
        sheet: name of the data sheet.
        units: CUDA cores, their clock in MHz, and a remark; cores x 2 (multiply-add) x 2 (FP16 in pairs) x clock.
        memory: GB, GB/s, and where they come from.
        power_w: of the lowest and of the highest power mode.
    """
    (cores, clock_mhz, remark), (memory_gb, gb_per_s, memory_source) = units, memory
    arithmetic = f"{cores} CUDA cores x 2 x 2 (FP16) x {clock_mhz:g} MHz"
    return DeviceProfile(
        name,
        cores * 4 * clock_mhz * 1e6,
        f"NVIDIA {sheet} data sheet, as resellers repeat it: {arithmetic}; {remark}",
        gb_per_s * 1e9,
        memory_gb * 1e9,
        f"{memory_gb:g} GB at {gb_per_s:g} GB/s: {memory_source}",
        *power_w,
        _JETSON_POWER,
    )


_VOLTA, _PASCAL, _MAXWELL = (_CONFIRMED_RATE.format(capability) for capability in ("7.x", "6.2", "5.3"))
_NX_8GB_RATE, _NANO_RATE = (
    f"{clock}; {_ORIN_RATE}" for clock in ("clock not confirmed", "clock before the update of 2024")
)
_PROFILES = (
    _jetson("jetson-agx-orin-64gb", "Jetson AGX Orin", (2048, 1300, _ORIN_RATE), (64, 204.8, _GUIDE), (15.0, 60.0)),
    _jetson("jetson-agx-orin-32gb", "Jetson AGX Orin", (1792, 930, _ORIN_RATE), (32, 204.8, _COURSE), (15.0, 40.0)),
    _jetson("jetson-orin-nx-16gb", "Jetson Orin NX", (1024, 918, _ORIN_RATE), (16, 102.4, _GUIDE), (10.0, 25.0)),
    _jetson("jetson-orin-nx-8gb", "Jetson Orin NX", (1024, 765, _NX_8GB_RATE), (8, 102.4, _COURSE), (10.0, 20.0)),
    _jetson("jetson-orin-nano-8gb", "Jetson Orin Nano", (1024, 625, _NANO_RATE), (8, 68.0, _COURSE), (7.0, 15.0)),
    _jetson("jetson-agx-xavier-32gb", "Jetson AGX Xavier", (512, 1377, _VOLTA), (32, 136.5, _GUIDE), (10.0, 30.0)),
    _jetson("jetson-xavier-nx-16gb", "Jetson Xavier NX", (384, 1100, _VOLTA), (16, 59.7, _GUIDE), (10.0, 20.0)),
    _jetson("jetson-tx2", "Jetson TX2", (256, 1300, _PASCAL), (8, 58.4, "hardwareluxx.de, not confirmed"), (7.5, 15.0)),
    _jetson("jetson-nano", "Jetson Nano", (128, 921, _MAXWELL), (4, 25.6, _GUIDE), (5.0, 10.0)),
    DeviceProfile(
        "raspberry-pi-5",
        4 * 2 * 8 * 2 * 2.4e9,
        "Raspberry Pi 5 product brief: 4 Cortex-A76 cores at 2.4 GHz, x 2 SIMD pipes x 8 FP16 lanes x 2; the two "
        "128-bit pipes per core are Arm's figure for Cortex-A76, not confirmed",
        17e9,
        8e9,
        "32 bit x 4267 MT/s = 17 GB/s; sold with 4 to 16 GB, of which 8 GB is taken",
        None,
        13.0,
        "13 W of a Pi 500+ that runs a 3-billion-parameter model (ai-benchmarks, issue 24); none found at rest",
    ),
    DeviceProfile(
        "iphone-15-pro",
        768 * 2 * 1.398e9,
        "A17 Pro GPU: 768 lanes x 2 x 1398 MHz from a third-party hardware database (hmc-tech.com), which gives "
        "FP16 the FP32 rate; Apple publishes neither figure",
        51.2e9,
        8e9,
        "51.2 GB/s is what third parties repeat, and Apple publishes it nowhere; 8 GB, of which an app gets less",
        None,
        None,
        "no figure found",
    ),
)

DEVICE_PROFILES: Mapping[str, DeviceProfile] = MappingProxyType({profile.name: profile for profile in _PROFILES})


def device_profiles(devices: DeviceConfig) -> tuple[DeviceProfile, ...]:
    """The profile of each of the U devices: those of the configuration, repeated in order until every device has one.

    Args:
        devices: profiles and count.

    Raises:
        ValueError: a profile name is unknown; the message names the nearest known ones.
    """
    for name in devices.profiles:
        if name not in DEVICE_PROFILES:
            raise ValueError(f"unknown device profile {name!r}; the nearest known are {nearest(name, DEVICE_PROFILES)}")
    own = [DEVICE_PROFILES[name] for name in devices.profiles]
    return tuple(islice(cycle(own), devices.count))


def device_flops(devices: DeviceConfig) -> Float:
    """C[u] of equation (5): the FLOP/s that an expert reaches on each device.

    Args:
        devices: profiles and utilization.

    Returns:
        (U,) FLOP/s.

    Raises:
        ValueError: see ``device_profiles``.
    """
    return devices.utilization * np.array([profile.peak_flops for profile in device_profiles(devices)])


def device_memory_bytes_per_s(devices: DeviceConfig) -> Float:
    """M[u] of equation (5r): the memory bandwidth that reading an expert's weights reaches on each device.

    Args:
        devices: profiles and ``memory_efficiency``.

    Returns:
        (U,) bytes/s.

    Raises:
        ValueError: see ``device_profiles``.
    """
    return devices.memory_efficiency * np.array([profile.memory_bytes_per_s for profile in device_profiles(devices)])


def device_times_s(devices: DeviceConfig, deployment: DeploymentConfig) -> tuple[Float, Float | None]:
    """What one expert takes on each device: F / C[u] for one token, and W_e / M[u] for its weights.

    Args:
        devices: profiles, compute model and efficiencies.
        deployment: widths and bits of the experts.

    Returns:
        (U,) seconds twice; the second is ``None`` where the compute model is ``"flops"``, which reads no weights.

    Raises:
        ValueError: see ``device_profiles``.
    """
    compute_s = deployment.expert_flops / device_flops(devices)
    if devices.compute_model == "flops":
        return compute_s, None
    return compute_s, deployment.expert_weight_bytes / device_memory_bytes_per_s(devices)
