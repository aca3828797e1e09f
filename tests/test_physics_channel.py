"""The channel as a whole: units, shadowing, Doppler, seeding and independence of the batch."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import special

from wdmoe_env.config import ChannelConfig, DeviceConfig
from wdmoe_env.physics.channel import MOST_BLOCKS, Channel
from wdmoe_env.physics.gains import Gains
from wdmoe_env.physics.sources import register_source


def generators(count, seed=0):
    return [np.random.default_rng(s) for s in np.random.SeedSequence(seed).spawn(count)]


def plain(**changes):
    """A channel of path loss alone, unless changed."""
    return ChannelConfig(**{"fading": "none", "shadowing_std_db": 0.0, **changes})


def test_shapes_and_default_ring():
    trace = Channel(ChannelConfig(), DeviceConfig(), num_blocks=4).sample(generators(3))
    assert trace.gain.shape == trace.distance_m.shape == (4, 3, 8)
    assert trace.full_band_snr.shape == (4, 3, 2, 8)
    assert np.all((trace.distance_m >= 20.0) & (trace.distance_m <= 200.0))
    assert np.all(trace.gain > 0)
    np.testing.assert_array_equal(trace.distance_m, np.broadcast_to(trace.distance_m[:1], trace.distance_m.shape))


def test_link_budget_in_db():
    # 100 m free space at 3.5 GHz: 92.45 + 10.88 - 20 = 83.33 dB. Downlink 10 W = 40 dBm, uplink 0.2 W = 23.01 dBm;
    # noise over 100 MHz: -174 + 80 = -94 dBm. So 40 - 83.33 + 94 = 50.67 dB and 23.01 - 83.33 + 94 = 33.68 dB.
    devices = DeviceConfig(count=1, distances_m=(100.0,))
    trace = Channel(plain(path_loss="free_space"), devices, num_blocks=2).sample(generators(1))
    snr_db = 10 * np.log10(trace.full_band_snr)
    np.testing.assert_allclose(snr_db[:, 0, 0, 0], 50.67, atol=0.01)
    np.testing.assert_allclose(snr_db[:, 0, 1, 0], 33.68, atol=0.01)
    np.testing.assert_allclose(10 * np.log10(trace.gain), -83.33, atol=0.01)


@pytest.mark.parametrize(("std_db", "expected"), [(None, 4.0), (6.5, 6.5), (0.0, 0.0)])
def test_shadowing_is_log_normal_and_holds_for_the_episode(std_db, expected):
    devices = DeviceConfig(count=1000, distances_m=(100.0,) * 1000)
    channel = plain(shadowing_std_db=std_db)
    gain_db = 10 * np.log10(Channel(channel, devices, num_blocks=3).sample(generators(100)).gain)
    assert gain_db[0].std() == pytest.approx(expected, rel=0.01, abs=1e-9)
    assert gain_db[0].mean() == pytest.approx(-85.3142, abs=0.05)  # the median is the path loss
    np.testing.assert_allclose(gain_db, np.broadcast_to(gain_db[0], gain_db.shape))


def test_shadowing_and_fading_are_drawn_apart():
    # Same seeds with and without shadowing: the quotient is the shadowing alone.
    devices = DeviceConfig(count=100, distances_m=(100.0,) * 100)
    plain_fading, both = (
        Channel(plain(fading="rayleigh", shadowing_std_db=std), devices, 2).sample(generators(1000)).gain
        for std in (0.0, 5.0)
    )
    shadowing = np.abs(np.log(both / plain_fading))[0].ravel()
    for block in np.log(plain_fading):
        assert np.corrcoef(shadowing, block.ravel())[0, 1] == pytest.approx(0.0, abs=0.015)


def test_exponent_reaches_the_path_loss():
    devices = DeviceConfig(count=1, distances_m=(100.0,))
    gains = [
        Channel(plain(path_loss="log_distance", path_loss_exponent=n), devices, 1).sample(generators(1)).gain.item()
        for n in (2.0, 3.0)
    ]
    assert gains[0] / gains[1] == pytest.approx(100.0)


@pytest.mark.parametrize("speed_mps", [0.0, 0.83, 3.0])
def test_doppler_follows_from_speed_and_carrier(speed_mps):
    devices = DeviceConfig(count=500, distances_m=(100.0,) * 500, speed_mps=speed_mps)
    channel = Channel(plain(fading="rayleigh", block_interval_s=0.02), devices, num_blocks=4)
    gain = channel.sample(generators(2000)).gain.reshape(4, -1)
    # f_d = v f / c, so 2 pi f_d T = 2 pi x 0.83 x 3.5e9 x 0.02 / 2.99792458e8 = 1.21769 at walking speed.
    lags = special.j0(1.21769 * speed_mps / 0.83 * np.arange(4))
    np.testing.assert_allclose(np.corrcoef(gain)[0], lags**2, atol=0.01)


def test_moving_devices_change_distance_between_blocks():
    devices = DeviceConfig(mobility="gauss_markov", speed_mps=20.0)
    trace = Channel(plain(block_interval_s=0.1), devices, num_blocks=5).sample(generators(200))
    steps = np.abs(np.diff(trace.distance_m, axis=0))
    assert np.all(steps.max(axis=(1, 2)) > 1.0)
    assert np.all((trace.distance_m >= 20.0) & (trace.distance_m <= 200.0))
    # Without fading and shadowing the gain is the path loss of where the device is.
    order = np.argsort(trace.distance_m, axis=None)
    assert np.all(np.diff(trace.gain.ravel()[order]) <= 0)


CONFIGS = {
    "default": (ChannelConfig(), DeviceConfig()),
    "moving_rician": (ChannelConfig(fading="rician"), DeviceConfig(mobility="gauss_markov", count=5)),
    "nakagami": (ChannelConfig(fading="nakagami", nakagami_m=2.5, path_loss="uma_nlos"), DeviceConfig(count=3)),
    "none": (ChannelConfig(fading="none"), DeviceConfig(distances_m=(50.0,) * 8)),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_same_seed_same_trace_other_seed_other_trace(name):
    channel = Channel(*CONFIGS[name], num_blocks=4)
    first, again, other = (channel.sample(generators(3, seed)).full_band_snr for seed in (7, 7, 8))
    np.testing.assert_array_equal(first, again)
    assert not np.isclose(first, other).any()


@pytest.mark.parametrize("name", CONFIGS)
def test_a_row_depends_on_its_own_generator_alone(name):
    channel = Channel(*CONFIGS[name], num_blocks=4)
    batch = channel.sample(generators(5))
    for row, generator in enumerate(generators(5)):
        alone = channel.sample([generator])
        np.testing.assert_allclose(alone.full_band_snr[:, 0], batch.full_band_snr[:, row], rtol=1e-12)
        np.testing.assert_allclose(alone.distance_m[:, 0], batch.distance_m[:, row], rtol=1e-12)


def test_one_generator_gives_new_episodes_one_after_the_other():
    channel = Channel(*CONFIGS["default"], num_blocks=2)
    (generator,) = generators(1)
    first, second = (channel.sample([generator]).full_band_snr for _ in range(2))
    assert not np.isclose(first, second).any()


def test_rows_and_devices_are_independent():
    gain = Channel(*CONFIGS["default"], num_blocks=1).sample(generators(20_000)).gain[0]
    correlation = np.corrcoef(np.log(gain.T))
    assert np.abs(correlation - np.eye(8)).max() < 0.03


def test_no_blocks_is_refused():
    with pytest.raises(ValueError, match="num_blocks must be at least 1, got 0"):
        Channel(ChannelConfig(), DeviceConfig(), num_blocks=0)


SHAPE = (2, 3, 4)  # blocks, episodes, devices


def sampled(gains):
    """What a channel makes of the gains that a source of one's own gives."""

    class Given:
        def __init__(self, argument, channel, devices, num_blocks):
            pass

        def sample(self, generators):
            return gains() if callable(gains) else gains

    register_source("given", Given)
    return Channel(ChannelConfig(source="given"), DeviceConfig(count=SHAPE[2]), SHAPE[0]).sample(generators(SHAPE[1]))


def with_one(value, dtype=np.float64):
    """Gains of which one is another."""
    gain = np.full(SHAPE, 1e-9).astype(dtype)
    gain[1, 2, 3] = value
    return gain


@pytest.mark.parametrize(
    "gain",
    [
        np.full(SHAPE, 0.25, dtype=np.float32),
        np.full(SHAPE, 0.25, dtype=np.float16),
        np.full(SHAPE, 0.25, dtype=np.longdouble),
        np.full(SHAPE, 0.25).tolist(),
        np.full(SHAPE, 0.25, order="F"),
        np.broadcast_to(0.25, SHAPE),
    ],
    ids=["float32", "float16", "longdouble", "list", "fortran", "broadcast"],
)
def test_gains_of_any_real_kind_are_those_in_float64(gain):
    expected = sampled(Gains.of(np.full(SHAPE, 0.25)))
    for given in (Gains.of(gain), Gains.of(np.full(SHAPE, 0.25), gain), Gains.of(gain, np.full(SHAPE, 0.25))):
        trace = sampled(given)
        for name in ("gain", "uplink_gain", "full_band_snr"):
            assert getattr(trace, name).dtype == np.float64
            np.testing.assert_array_equal(getattr(trace, name), getattr(expected, name))
    ones = sampled(Gains.of(np.ones(SHAPE, dtype=np.int64), distance_m=np.full(SHAPE, 20)))
    assert ones.gain.dtype == ones.distance_m.dtype == np.float64


BAD_GAINS = {
    "zero": (with_one(0.0), ValueError, r"expected finite {} above 0 from the source 'given', got 0 for device 3 in"),
    "infinite": (with_one(np.inf), ValueError, "got inf for device 3 in block 1"),
    "nan": (with_one(np.nan), ValueError, "got nan for device 3 in block 1"),
    "negative": (with_one(-1e-9), ValueError, "got -1e-09 for device 3 in block 1"),
    "integers with a zero": (with_one(0, np.int64), ValueError, "got 0 for device 0 in block 0"),
    "complex": (with_one(1e-9, np.complex128), TypeError, "{} from the source 'given' must hold real numbers"),
    "masked": (np.ma.array(with_one(1.0), mask=with_one(1.0) > 0.5), TypeError, "{} .* got a masked one"),
    "object": (with_one(1e-9, object), TypeError, "{} from the source 'given' must hold real numbers"),
    "strings": (with_one(1e-9).astype(str), TypeError, "{} from the source 'given' must hold real numbers"),
    "without an axis": (np.full(SHAPE[1:], 1e-9), ValueError, r"expected {} of shape \(2, 3, 4\).*got \(3, 4\)"),
    "of fewer devices": (np.full((2, 3, 1), 1e-9), ValueError, r"expected {} of shape .* got \(2, 3, 1\)"),
    "ragged": ([[[1e-9]], [1e-9]], ValueError, "{} from the source 'given' must be an array"),
}


@pytest.mark.parametrize("direction", ["gains", "uplink gains"])
@pytest.mark.parametrize("kind", BAD_GAINS)
def test_gains_that_are_none_are_refused_in_both_directions_by_the_name_of_the_source(kind, direction):
    value, error, message = BAD_GAINS[kind]
    fine = np.full(SHAPE, 1e-9)
    gains = Gains(value, fine, fine) if direction == "gains" else Gains(fine, value, fine)
    with pytest.raises(error, match=message.format(direction)) as caught:
        sampled(gains)
    assert "'given'" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("gain", [1e300, 1e60, 1e-60, 5e-324])
def test_a_gain_that_no_radio_has_names_the_source(gain):
    for gains in (Gains.of(with_one(gain)), Gains.of(with_one(1e-9), with_one(gain))):
        with pytest.raises(
            ValueError, match=r"expected a signal-to-noise ratio from 1e-44 .* the source 'given' do not"
        ):
            sampled(gains)


@pytest.mark.parametrize(
    ("gains", "error", "message"),
    [
        (None, TypeError, "expected Gains from the source 'given', got None"),
        (np.full(SHAPE, 1e-9), TypeError, "expected Gains from the source 'given', got array"),
        (Gains.of(np.full(SHAPE, 1e-9), distance_m=np.full((2, 3), 9.0)), ValueError, "expected distances of shape"),
        (
            Gains.of(np.full(SHAPE, 1e-9), distance_m=with_one(-2.0)),
            ValueError,
            "expected distances of at least 0 or NaN",
        ),
        (Gains.of(np.full(SHAPE, 1e-9), distance_m=with_one(9j, complex)), TypeError, "distances from .* real numbers"),
    ],
)
def test_what_else_a_source_may_get_wrong_is_one_sentence(gains, error, message):
    with pytest.raises(error, match=message) as caught:
        sampled(gains)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_longer_channel_begins_as_a_short_one(name):
    short = Channel(*CONFIGS[name], num_blocks=4)
    long = short.longer().sample(generators(3))
    assert long.gain.shape[0] == MOST_BLOCKS
    first, again = long.of_pass(0, 4), long.of_pass(MOST_BLOCKS // 4, 4)
    expected = short.sample(generators(3))
    for part in ("gain", "distance_m", "full_band_snr"):
        np.testing.assert_allclose(getattr(first, part), getattr(expected, part), rtol=1e-9)
        np.testing.assert_array_equal(getattr(again, part), getattr(first, part))


def test_a_source_of_ones_own_is_asked_for_what_it_has():
    """It has 20 blocks: four passes of four are what is found by halves."""

    def factory(argument, channel, devices, num_blocks):
        if num_blocks > 20:
            raise ValueError(f"expected at most 20 blocks, got {num_blocks}")
        return Twenty(devices, num_blocks)

    class Twenty:
        def __init__(self, devices, num_blocks):
            self.shape = (num_blocks, devices.count)

        def sample(self, generators):
            drawn = [generator.uniform(1e-10, 1e-9, self.shape) for generator in generators]
            return Gains.of(np.stack(drawn, axis=1))

    register_source("twenty", factory)
    channel = Channel(ChannelConfig(source="twenty"), DeviceConfig(), num_blocks=4).longer()
    assert channel.num_blocks == 16
    assert channel.sample(generators(2)).gain.shape == (16, 2, 8)
