"""Path loss in dB, design equation (1), and the shadowing that belongs to each law."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import get_args

import numpy as np

from wdmoe_env.config import PathLoss
from wdmoe_env.physics.latency import Float

SPEED_OF_LIGHT_MPS = 299_792_458.0
# TR 38.901 rounds the speed of light in its breakpoint distance.
_BREAKPOINT_LIGHT_MPS = 3.0e8
_USER_HEIGHT_M = 1.5
_ENVIRONMENT_HEIGHT_M = 1.0
_URBAN_MIN_DISTANCE_M = 10.0
_REFERENCE_DISTANCE_M = 1.0


@dataclass(frozen=True, slots=True)
class UrbanScenario:
    """Constants of one scenario of 3GPP TR 38.901 Table 7.4.1-1 for a user at 1.5 m, where h_UT terms vanish.

    Attributes:
        base_station_height_m: h_BS.
        los_intercept_db: line of sight at 1 m and 1 GHz.
        los_slope_db: dB per decade of 3-D distance before the breakpoint; 40 after it.
        breakpoint_db: factor of the breakpoint term.
        nlos_intercept_db: without line of sight, at 1 m and 1 GHz.
        nlos_slope_db: dB per decade of 3-D distance.
        nlos_carrier_db: dB per decade of carrier frequency.
    """

    base_station_height_m: float
    los_intercept_db: float
    los_slope_db: float
    breakpoint_db: float
    nlos_intercept_db: float
    nlos_slope_db: float
    nlos_carrier_db: float

    def breakpoint_m(self, carrier_hz: float) -> float:
        """2-D distance in m, d'_BP = 4 (h_BS - h_E)(h_UT - h_E) f / c, at which the slope changes."""
        effective_base_m = self.base_station_height_m - _ENVIRONMENT_HEIGHT_M
        effective_user_m = _USER_HEIGHT_M - _ENVIRONMENT_HEIGHT_M
        return 4.0 * effective_base_m * effective_user_m * carrier_hz / _BREAKPOINT_LIGHT_MPS

    def los_db(self, distance_m: Float, carrier_hz: float) -> Float:
        """Loss in dB with line of sight at 2-D distances of at least 10 m, of any shape."""
        height_m = self.base_station_height_m - _USER_HEIGHT_M
        log_distance = np.log10(np.hypot(distance_m, height_m))
        breakpoint_m = self.breakpoint_m(carrier_hz)
        near = self.los_slope_db * log_distance
        far = 40.0 * log_distance - self.breakpoint_db * np.log10(breakpoint_m**2 + height_m**2)
        carrier_db = 20.0 * np.log10(carrier_hz / 1e9)
        return self.los_intercept_db + carrier_db + np.where(distance_m <= breakpoint_m, near, far)

    def nlos_db(self, distance_m: Float, carrier_hz: float) -> Float:
        """Loss in dB without line of sight, at distances of any shape: never below the loss with it."""
        log_distance = np.log10(np.hypot(distance_m, self.base_station_height_m - _USER_HEIGHT_M))
        blocked = self.nlos_slope_db * log_distance + self.nlos_carrier_db * np.log10(carrier_hz / 1e9)
        return np.maximum(self.los_db(distance_m, carrier_hz), self.nlos_intercept_db + blocked)


URBAN_MICRO = UrbanScenario(10.0, 32.4, 21.0, 9.5, 22.4, 35.3, 21.3)
URBAN_MACRO = UrbanScenario(25.0, 28.0, 22.0, 9.0, 13.54, 39.08, 20.0)


def free_space_db(distance_m: Float, carrier_hz: float) -> Float:
    """Friis: 20 lg(4 pi d f / c) in dB, at distances of any shape."""
    return 20.0 * np.log10(4.0 * np.pi * distance_m * carrier_hz / SPEED_OF_LIGHT_MPS)


@dataclass(frozen=True, slots=True)
class PathLossLaw:
    """A law and what belongs to it.

    Attributes:
        loss_db: function of distance in m, carrier in Hz and exponent; only ``log_distance`` reads the exponent.
        shadowing_std_db: the law's own log-normal shadowing.
        min_distance_m: nearer distances are taken as this one.
    """

    loss_db: Callable[[Float, float, float], Float]
    shadowing_std_db: float
    min_distance_m: float


# 8.2 dB is TR 38.901's figure for its optional UMi NLOS law, which is log-distance with exponent 3.19.
PATH_LOSS_LAWS: Mapping[str, PathLossLaw] = MappingProxyType(
    {
        "umi_los": PathLossLaw(lambda d, f, _: URBAN_MICRO.los_db(d, f), 4.0, _URBAN_MIN_DISTANCE_M),
        "umi_nlos": PathLossLaw(lambda d, f, _: URBAN_MICRO.nlos_db(d, f), 7.82, _URBAN_MIN_DISTANCE_M),
        "uma_los": PathLossLaw(lambda d, f, _: URBAN_MACRO.los_db(d, f), 4.0, _URBAN_MIN_DISTANCE_M),
        "uma_nlos": PathLossLaw(lambda d, f, _: URBAN_MACRO.nlos_db(d, f), 6.0, _URBAN_MIN_DISTANCE_M),
        "log_distance": PathLossLaw(
            lambda d, f, n: free_space_db(np.ones_like(d), f) + 10.0 * n * np.log10(d), 8.2, _REFERENCE_DISTANCE_M
        ),
        "free_space": PathLossLaw(lambda d, f, _: free_space_db(d, f), 0.0, _REFERENCE_DISTANCE_M),
    }
)


def path_loss_db(law: PathLoss, distance_m: Float, carrier_hz: float, exponent: float = 3.0) -> Float:
    """Median path loss, design equation (1).

    The 38.901 laws are stated for 10 m to 5 km on the ground and 0.5 to 100 GHz: below 10 m they take the value
    at 10 m, beyond 5 km they are extrapolated. The other two laws take distances below 1 m as 1 m.

    Args:
        law: a name of ``PATH_LOSS_LAWS``.
        distance_m: any shape; distance on the ground for the 38.901 laws, which add the antennas' heights.
        carrier_hz: carrier frequency.
        exponent: path-loss exponent of ``log_distance``.

    Returns:
        dB, shape of ``distance_m``.

    Raises:
        ValueError: unknown law.
    """
    chosen = _law(law)
    return chosen.loss_db(np.maximum(distance_m, chosen.min_distance_m), carrier_hz, exponent)


def shadowing_std_db(law: PathLoss) -> float:
    """The law's own standard deviation of log-normal shadowing in dB."""
    return _law(law).shadowing_std_db


def _law(name: str) -> PathLossLaw:
    if name not in PATH_LOSS_LAWS:
        raise ValueError(f"path loss law must be one of {', '.join(get_args(PathLoss))}, got {name!r}")
    return PATH_LOSS_LAWS[name]
