"""The case worked by hand in docs/system-model.md: every printed number, to six digits."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from wdmoe_env.config import DeploymentConfig
from wdmoe_env.physics import latency

DOCUMENT = Path(__file__).parents[1] / "docs" / "system-model.md"

BANDWIDTH_HZ, NOISE_DBM_PER_HZ = 100e6, -174.0
BASE_STATION_W, DEVICE_W = 10.0, 0.2
GAIN = np.array([[1e-9, 1e-10]])
SPEED_FLOPS = np.array([[2e12, 1e12]])
PLACEMENT = np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
GATE_PROBS = np.array([[[0.5, 0.3, 0.2], [0.1, 0.3, 0.6]]])
ROUTED = np.array([[[1, 1, 0], [0, 1, 1]]], dtype=bool)
SELECTION = np.array([[[1, 1, 0], [1, 0, 1]]], dtype=bool)

# Worked with 40-digit decimals from equations (3) to (8), apart from the library.
HAND = {
    "carrier_to_noise_hz": ["2.51189e+12", "2.51189e+11", "5.02377e+10", "5.02377e+09"],
    "rate_bps": ["6.37537e+08", "7.21912e+08", "4.11828e+08", "3.84288e+08"],
    "radio_ms": ["0.26193", "0.26132"],
    "compute_ms": ["0.176197", "0.352393"],
    "token_ms": ["0.614323", "0", "0.438126", "0.613713"],
    "device_ms": ["1.05245", "0.613713"],
    "block_ms": ["1.05245"],
    "weights": ["0.625", "0.375", "0.25", "0.111111", "0.333333", "0.666667"],
    "served": ["1.77778"],
    "wlr": ["1.68918"],
    "wlr_device": ["2.14202"],
}


def links():
    deployment = DeploymentConfig()
    gammas = [latency.carrier_to_noise_hz(GAIN, power, NOISE_DBM_PER_HZ) for power in (BASE_STATION_W, DEVICE_W)]
    return latency.BlockLinks(
        full_band_snr=np.stack(gammas, axis=-2) / BANDWIDTH_HZ,
        payload_s=np.array([deployment.payload_bits / BANDWIDTH_HZ]),
        compute_s=deployment.expert_flops / SPEED_FLOPS,
        placement=PLACEMENT,
    )


def worked(shares):
    """All quantities of the example by the library."""
    block, shares = links(), np.array([shares])
    weights = latency.gate_weights(GATE_PROBS, ROUTED)
    device = latency.device_latency_s(block, latency.device_load(SELECTION, block), shares)
    slowest, served = latency.block_latency_s(device), latency.weight_served(weights, SELECTION)
    efficiency = latency.spectral_efficiency(block.full_band_snr, shares)
    return {
        "carrier_to_noise_hz": block.full_band_snr * BANDWIDTH_HZ,
        "rate_bps": efficiency * shares[:, None] * BANDWIDTH_HZ,
        "radio_ms": 1e3 * latency.radio_latency_s(block, shares),
        "compute_ms": 1e3 * block.compute_s,
        "token_ms": 1e3 * latency.token_latency_s(block, SELECTION, shares),
        "device_ms": 1e3 * device,
        "block_ms": 1e3 * slowest,
        "weights": weights,
        "served": served,
        "wlr": latency.wlr_per_ms(served, slowest),
        "wlr_device": latency.wlr_device_per_ms(latency.device_weight_served(weights, SELECTION, PLACEMENT), device),
    }


@pytest.mark.parametrize("quantity", HAND)
def test_the_library_agrees_with_the_hand_calculation(quantity):
    assert [f"{value:.6g}" for value in worked((0.4, 0.6))[quantity].ravel()] == HAND[quantity]


def test_the_device_form_prefers_the_slower_block():
    equal, better = worked((0.5, 0.5)), worked((0.7, 0.3))
    assert [f"{case['block_ms'].item():.6g}" for case in (equal, better)] == ["0.959279", "0.849664"]
    assert [f"{case['wlr_device'].item():.6g}" for case in (equal, better)] == ["2.17507", "2.12532"]
    assert [f"{case['wlr'].item():.6g}" for case in (equal, better)] == ["1.85324", "2.09233"]


# (5r) with M = 400e9 and 200e9 byte/s and 4.5 bits a weight, worked likewise.
ROOFLINE = {
    "weights_ms": ["0.247726", "0.495452"],
    "device_ms": ["1.12398", "0.756772"],
    "block_ms": ["1.12398"],
    "wlr": ["1.58168"],
}


def test_the_roofline_agrees_with_the_hand_calculation():
    deployment = DeploymentConfig(weight_bits=4.5)
    assert deployment.expert_weight_bytes == 99_090_432
    block = replace(links(), weights_s=deployment.expert_weight_bytes / np.array([[400e9, 200e9]]))
    device = latency.device_latency_s(block, latency.device_load(SELECTION, block), np.array([[0.4, 0.6]]))
    slowest = latency.block_latency_s(device)
    served = latency.weight_served(latency.gate_weights(GATE_PROBS, ROUTED), SELECTION)
    found = {
        "weights_ms": 1e3 * block.weights_s,
        "device_ms": 1e3 * device,
        "block_ms": 1e3 * slowest,
        "wlr": latency.wlr_per_ms(served, slowest),
    }
    assert {name: [f"{number:.6g}" for number in value.ravel()] for name, value in found.items()} == ROOFLINE


def test_the_document_prints_these_numbers():
    text = DOCUMENT.read_text()
    for numbers in (*HAND.values(), *ROOFLINE.values()):
        for number in numbers:
            mantissa = number.split("e")[0]
            assert mantissa in text, number
    for number in ("0.959279", "0.849664", "2.17507", "2.12532", "1.85324", "2.09233"):
        assert number in text
