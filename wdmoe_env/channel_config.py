"""Settings of the radio, as a frozen dataclass; see ``wdmoe_env.config``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from wdmoe_env.checks import check_choice, check_integer, check_number, plain, shown
from wdmoe_env.fields import put

PathLoss = Literal["umi_los", "umi_nlos", "uma_los", "uma_nlos", "log_distance", "free_space"]
Fading = Literal["rayleigh", "rician", "nakagami", "none"]

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
        put(self, "source", source)
        put(self, "path_loss", check_choice("path_loss", self.path_loss, get_args(PathLoss)))
        put(self, "fading", check_choice("fading", self.fading, get_args(Fading)))
        for name, (least, most) in CHANNEL_RANGES.items():
            value = getattr(self, name)
            if name != "shadowing_std_db" or value is not None:
                put(self, name, check_number(name, value, at_least=least, at_most=most))
        put(self, "csi_delay", check_integer("csi_delay", self.csi_delay, at_least=0, at_most=1_000_000))
        if (2 * self.nakagami_m) % 1:
            raise ValueError(f"nakagami_m must be a multiple of 0.5, got {self.nakagami_m}")
