"""Moments, distribution and autocorrelation of the fading on a million samples, against theory."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import special, stats

from wdmoe_env.config import ChannelConfig
from wdmoe_env.physics.fading import (
    bessel_j0,
    continued_root,
    correlation_root,
    fading_power,
    jakes_autocorrelation,
    num_components,
)

SAMPLES = 1_000_000
KINDS = {
    "rayleigh": ChannelConfig(fading="rayleigh"),
    "rician_6_db": ChannelConfig(fading="rician", rician_k_db=6.0),
    "rician_minus_3_db": ChannelConfig(fading="rician", rician_k_db=-3.0),
    "nakagami_half": ChannelConfig(fading="nakagami", nakagami_m=0.5),
    "nakagami_1_half": ChannelConfig(fading="nakagami", nakagami_m=1.5),
    "nakagami_4": ChannelConfig(fading="nakagami", nakagami_m=4.0),
}


def k_factor(channel):
    return 10 ** (channel.rician_k_db / 10)


def shape_m(channel):
    return {"rayleigh": 1.0, "nakagami": channel.nakagami_m}[channel.fading]


def law_of(channel):
    """The power's distribution as SciPy has it."""
    if channel.fading == "rician":
        k = k_factor(channel)
        return stats.ncx2(df=2, nc=2 * k, scale=1 / (2 * (k + 1)))
    return stats.gamma(shape_m(channel), scale=1 / shape_m(channel))


def powers(channel, seed, num_blocks=1, lag_phase=0.0, samples=SAMPLES):
    """(I, samples) powers whose components correlate as J0(lag_phase k)."""
    normals = np.random.default_rng(seed).standard_normal((num_components(channel), num_blocks, samples))
    root = correlation_root(special.j0(lag_phase * np.arange(num_blocks)))
    return fading_power(channel, normals, root)


@pytest.mark.parametrize("name", KINDS)
def test_mean_and_second_moment(name):
    channel = KINDS[name]
    power = powers(channel, seed=1)
    if channel.fading == "rician":
        k = k_factor(channel)
        second = (k**2 + 4 * k + 2) / (k + 1) ** 2
    else:
        second = 1 + 1 / shape_m(channel)
    assert power.mean() == pytest.approx(1.0, rel=0.01)
    assert np.square(power).mean() == pytest.approx(second, rel=0.01)


@pytest.mark.parametrize("name", KINDS)
def test_distribution(name):
    law, power = law_of(KINDS[name]), powers(KINDS[name], seed=2)
    for quantile in (0.1, 0.5, 0.9, 0.99):
        assert (power <= law.ppf(quantile)).mean() == pytest.approx(quantile, rel=0.01)


def test_no_fading_is_a_power_of_one():
    channel = ChannelConfig(fading="none")
    assert num_components(channel) == 0
    np.testing.assert_array_equal(fading_power(channel, np.empty((0, 3, 2, 5)), np.eye(3)), np.ones((3, 2, 5)))


def test_nakagami_one_is_rayleigh_on_the_same_numbers():
    nakagami = ChannelConfig(fading="nakagami", nakagami_m=1.0)
    np.testing.assert_array_equal(
        powers(nakagami, 3, 4, 0.7, samples=100), powers(KINDS["rayleigh"], 3, 4, 0.7, samples=100)
    )


def test_bessel_j0_at_known_values():
    # Abramowitz and Stegun, Table 9.1, and the first two zeros.
    np.testing.assert_allclose(
        bessel_j0(np.array([0.0, 1.0, 2.0, 5.0, 10.0])),
        [1.0, 0.7651976866, 0.2238907791, -0.1775967713, -0.2459357645],
        atol=1e-10,
    )
    np.testing.assert_allclose(bessel_j0(np.array([2.404825557695773, 5.520078110286311])), 0.0, atol=1e-12)


def test_bessel_j0_everywhere():
    x = np.concatenate([np.linspace(-5.0, 3000.0, 20_001), [999.9999, 1000.0, 1000.0001, 1e5, 1e9]])
    np.testing.assert_allclose(bessel_j0(x), special.j0(x), atol=1e-11)


@pytest.mark.parametrize("doppler_hz", [0.0, 0.05, 9.7, 300.0])
@pytest.mark.parametrize("num_blocks", [1, 4, 32])
def test_blocks_go_on_after_the_first_ones(doppler_hz, num_blocks):
    """The first ones are those of a short episode, and all have the autocorrelation that the long one should have."""
    autocorrelation = jakes_autocorrelation(128, doppler_hz, interval_s=0.02)
    root, lags = continued_root(autocorrelation, num_blocks), np.arange(128)
    assert root.shape == (128, num_blocks + 128)
    np.testing.assert_array_equal(root[:num_blocks, :num_blocks], correlation_root(autocorrelation[:num_blocks]))
    assert not root[:num_blocks, num_blocks:].any()
    np.testing.assert_allclose(root @ root.T, autocorrelation[np.abs(lags[:, None] - lags)], atol=2e-4)


def test_without_doppler_shift_later_blocks_are_as_the_first():
    root = continued_root(jakes_autocorrelation(64, 0.0, 0.02), num_blocks=4)
    values = root @ np.random.default_rng(0).standard_normal(root.shape[1])
    np.testing.assert_allclose(values, values[0], atol=1e-6)


@pytest.mark.parametrize("doppler_hz", [0.0, 2.0, 9.7, 60.0, 5000.0])
@pytest.mark.parametrize("num_blocks", [1, 4, 32])
def test_every_component_has_the_exact_autocorrelation(doppler_hz, num_blocks):
    root = correlation_root(jakes_autocorrelation(num_blocks, doppler_hz, interval_s=0.02))
    lags = np.abs(np.subtract.outer(np.arange(num_blocks), np.arange(num_blocks)))
    # Components are root @ independent normals, whose covariance is root root^T; this is the complex gain's too.
    np.testing.assert_allclose(root @ root.T, special.j0(2 * np.pi * doppler_hz * 0.02 * lags), atol=1e-12)


@pytest.mark.parametrize("lag_phase", [0.3, 1.2, 4.0])
@pytest.mark.parametrize("name", ["rayleigh", "rician_6_db", "nakagami_1_half"])
def test_autocorrelation_of_the_power(name, lag_phase):
    channel, num_blocks = KINDS[name], 4
    measured = np.corrcoef(powers(channel, 4, num_blocks, lag_phase))[0]
    j0 = special.j0(lag_phase * np.arange(num_blocks))
    k = k_factor(channel) if channel.fading == "rician" else 0.0
    np.testing.assert_allclose(measured, (j0**2 + 2 * k * j0) / (1 + 2 * k), atol=0.01)


def test_autocorrelation_of_the_complex_gain():
    normals = np.random.default_rng(5).standard_normal((2, 5, SAMPLES))
    in_phase, quadrature = np.einsum("ij,cjs->cis", correlation_root(jakes_autocorrelation(5, 9.7, 0.02)), normals)
    gain = (in_phase + 1j * quadrature) / np.sqrt(2)
    measured = (gain * gain[0].conj()).mean(axis=-1)
    np.testing.assert_allclose(measured, special.j0(2 * np.pi * 9.7 * 0.02 * np.arange(5)), atol=0.01)


def test_without_doppler_the_gain_stays():
    power = powers(KINDS["nakagami_4"], seed=6, num_blocks=6, lag_phase=0.0, samples=100)
    np.testing.assert_allclose(power, np.broadcast_to(power[0], power.shape), rtol=1e-6)
