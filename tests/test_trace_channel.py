"""Recorded gains: what is written is replayed, what is drawn comes from the generator, and every mistake is named."""

from __future__ import annotations

import io
import os
import pickle
import re
import sys
import zipfile
from collections import Counter

import gymnasium as gym
import numpy as np
import pytest
from numpy.lib import format as npy

from wdmoe_env.config import ChannelConfig, DeviceConfig, EnvConfig
from wdmoe_env.physics import recording_file
from wdmoe_env.physics.channel import Channel, check_channel
from wdmoe_env.physics.gains import Gains
from wdmoe_env.physics.path_loss import path_loss_db
from wdmoe_env.physics.recording_file import read_recording, write_recording
from wdmoe_env.physics.sources import register_source

CSV, NPZ = ".csv", ".npz"
TWO_DEVICES = DeviceConfig(count=2)


def generators(count, seed=0):
    return [np.random.default_rng(s) for s in np.random.SeedSequence(seed).spawn(count)]


def numbered(episodes, steps, devices):
    """Gains (I, N, U) each of which says where it is from."""
    episode, step, device = np.indices((episodes, steps, devices)).swapaxes(1, 2)
    return (1 + device + 10 * step + 1000 * episode) * 1e-6


def source_of(path, devices=TWO_DEVICES, num_blocks=1):
    return Channel(ChannelConfig(source=f"trace:{path}"), devices, num_blocks)


@pytest.mark.parametrize("suffix", [CSV, NPZ])
@pytest.mark.parametrize("mobility", ["static", "gauss_markov"])
def test_an_episode_recorded_from_our_channel_replays_to_identical_latencies(suffix, mobility, tmp_path, micro):
    micro["devices"] = {"mobility": mobility, "speed_mps": 20.0}
    original = gym.make("wdmoe_env:WDMoE-v0", **micro, channel={"fading": "rician"}).unwrapped
    _, trace = original.simulator.draw([np.random.default_rng(5)])
    write_recording(tmp_path / f"gains{suffix}", trace)
    replay = gym.make("wdmoe_env:WDMoE-v0", **micro, channel=f"trace:{tmp_path / 'gains'}{suffix}").unwrapped
    seen, again = original.reset(seed=5)[0], replay.reset(seed=5)[0]
    terminated = False
    while not terminated:
        assert all(np.array_equal(seen[name], again[name]) for name in seen)
        action = original.encode_action(seen["routed"] > 0, seen["unit_latency"] / seen["unit_latency"].sum())
        seen, _, terminated, _, info = original.step(action)
        again, *_, info_again = replay.step(action)
        assert info["block_latency_ms"] == info_again["block_latency_ms"]
    assert info["latency_ms"] == info_again["latency_ms"]
    np.testing.assert_array_equal(replay.simulator.draw([np.random.default_rng(5)])[1].distance_m, trace.distance_m)


@pytest.mark.parametrize("suffix", [CSV, NPZ])
def test_uplink_and_distance_are_kept_where_they_say_something(suffix, tmp_path):
    gain = numbered(3, 4, 2)
    write_recording(tmp_path / f"all{suffix}", Gains.of(gain, uplink_gain=gain / 2, distance_m=1e7 * gain))
    write_recording(tmp_path / f"gain{suffix}", Gains.of(gain))
    whole, bare = (read_recording(tmp_path / f"{name}{suffix}") for name in ("all", "gain"))
    flat = gain.swapaxes(0, 1).reshape(12, 2)
    np.testing.assert_array_equal(whole.gain, flat)
    np.testing.assert_array_equal(whole.uplink_gain, flat / 2)
    np.testing.assert_array_equal(whole.distance_m, 1e7 * flat)
    np.testing.assert_array_equal(bare.uplink_gain, flat)
    assert np.isnan(bare.distance_m).all()
    assert bare.lengths.tolist() == [4, 4, 4]


def test_powers_and_bandwidth_stay_those_of_the_configuration(tmp_path):
    # The link budget of tests/test_physics_channel.py: free space at 100 m, 50.67 dB down and 33.68 dB up.
    loss_db = path_loss_db("free_space", np.array([100.0]), 3.5e9)[0]
    (tmp_path / "gains.csv").write_text(f"step,device,gain_db,uplink_gain_db\n0,0,{-loss_db},{-loss_db - 10}\n")
    trace = source_of(tmp_path / "gains.csv", DeviceConfig(count=1)).sample(generators(1))
    np.testing.assert_allclose(10 * np.log10(trace.full_band_snr[0, 0, :, 0]), [50.67, 23.68], atol=0.01)
    assert np.isnan(trace.distance_m).all()


def test_every_start_that_lasts_is_as_likely_and_no_episode_runs_into_the_next(tmp_path):
    rows = [(e, s, d) for e, steps in ((7, 3), (8, 1), (9, 4)) for s in range(steps) for d in range(2)]
    np.random.default_rng(0).shuffle(rows)
    lines = [f"{d},{s + 5},{e},{(1 + d + 10 * s + 100 * e) * 1e-6:.17g}" for e, s, d in rows]
    (tmp_path / "gains.csv").write_text("\n".join(["device,step,episode,gain", *lines, ""]))
    gain = source_of(tmp_path / "gains.csv", num_blocks=2).sample(generators(5000)).gain
    np.testing.assert_allclose(gain[1] - gain[0], 10e-6)
    np.testing.assert_allclose(gain[..., 1] - gain[..., 0], 1e-6)
    counts = Counter(np.rint(gain[0, :, 0] * 1e6).astype(int).tolist())
    assert set(counts) == {701, 711, 901, 911, 921}
    assert min(counts.values()) > 1000 - 4 * np.sqrt(5000 * 0.2 * 0.8)


def test_a_recording_over_several_passes_goes_on_while_it_has_whole_ones(tmp_path):
    """Of 7 steps and passes of 3: two passes from the first two starts, one from the others, and then again."""
    write_recording(tmp_path / "gains.npz", Gains.of(1e-6 * (1.0 + np.arange(7.0)[:, None, None] * np.ones((1, 1, 2)))))
    short = source_of(tmp_path / "gains.npz", num_blocks=3)
    gain = short.longer().sample(generators(50)).gain[:9, :, 0]
    steps = np.rint(1e6 * gain).astype(int).T - 1
    expected = [list(range(start, start + 6 if start < 2 else start + 3)) for start in steps[:, 0]]
    assert {row[0] for row in expected} == {0, 1, 2, 3, 4}
    for row, whole in zip(steps.tolist(), expected, strict=True):
        assert row == (3 * whole)[:9]
    np.testing.assert_array_equal(short.sample(generators(50)).gain[..., 0], gain[:3])


def test_a_row_depends_on_its_own_generator_alone(tmp_path):
    write_recording(tmp_path / "gains.npz", Gains.of(numbered(20, 9, 2)))
    channel = source_of(tmp_path / "gains.npz", num_blocks=3)
    batch, again, other = (channel.sample(generators(6, seed)).full_band_snr for seed in (0, 0, 1))
    np.testing.assert_array_equal(batch, again)
    assert not np.array_equal(batch, other)
    for row, generator in enumerate(generators(6)):
        np.testing.assert_array_equal(channel.sample([generator]).full_band_snr[:, 0], batch[:, row])


@pytest.mark.parametrize("shape", [(5, 2), (1, 5, 2)])
def test_npz_arrays_may_have_an_axis_of_episodes_and_be_in_db(shape, tmp_path):
    gain_db = -np.arange(1.0, 11.0).reshape(shape)
    np.savez(tmp_path / "gains.npz", gain_db=gain_db.astype(np.float32))
    recording = read_recording(tmp_path / "gains.npz")
    np.testing.assert_allclose(recording.gain, 10 ** (gain_db.reshape(5, 2) / 10))
    assert recording.lengths.tolist() == [5]


def test_a_file_is_read_again_when_it_changes(tmp_path):
    path = tmp_path / "gains.npz"
    write_recording(path, Gains.of(numbered(1, 1, 2)))
    first = read_recording(path)
    assert read_recording(path) is first
    write_recording(path, Gains.of(numbered(2, 1, 2)))
    assert len(read_recording(path).lengths) == 2


def test_a_batched_environment_replays(tmp_path, micro):
    write_recording(tmp_path / "gains.npz", Gains.of(numbered(4, 10, 8)))
    env = gym.make_vec("wdmoe_env:WDMoE-v0", num_envs=3, **micro, channel={"source": f"trace:{tmp_path}/gains.npz"})
    observation, _ = env.reset(seed=0)
    assert np.isfinite(observation["unit_latency"]).all()
    assert len(np.unique(observation["unit_latency"], axis=0)) > 1


HEAD = "step,device,gain_db\n"
CSV_MISTAKES = {
    "": "expected the last line to end",
    "step,device,gain_db": "expected the last line to end",
    HEAD: "expected rows below the names of the columns, got none",
    HEAD + "0,0,-90\n0,1,-9": "expected the last line to end, as that of a whole file does: truncated",
    "\n0,0,-90\n": "line 1: expected names of columns, got none",
    HEAD + "0,0,-90\n0,1\n": "line 3: expected 3 columns in every row, one for each name, got 2",
    HEAD + "\n0,0,-90,\n0,1,-90\n": "line 3: expected 3 columns in every row, one for each name, got 4",
    HEAD + "0,0\n0,1\n": "line 2: expected 3 columns in every row, one for each name, got 2",
    HEAD + "0,0,-90\n0,1,strong\n": "line 3: expected a number in the column gain_db, got 'strong'$",
    HEAD + '0,0,-90\n\n0,1,"-90,5"\n': "line 4: .* in the column gain_db, got '-90,5'; decimals stand behind a point",
    HEAD.replace(",", ";") + "0;0;-90,5\n": "line 2: .* in the column gain_db, got '-90,5'; decimals stand behind",
    HEAD + "0,0," + "9" * 200_000 + "\n": "line 2: expected a row of numbers, got something else: field larger than",
    HEAD + "0,0,-90\n0,1," + "x" * 9_000 + "\n": "line 3: .* in the column gain_db, got 'x{50,200}[.]{3}$",
    HEAD + "0,0,-90\n0,1,90\n": "gain_db above -300 and at most 0, got 90 in line 3, .*; a loss in dB has the other",
    HEAD + "0,0,-90\n0,1,-90\n1,0,-90\n": "once in every step, which does not hold in step 1 of episode 0",
    HEAD + "0,0,-90\n0,0,-90\n0,1,-90\n": "once in every step, which does not hold in step 0 of episode 0",
    HEAD + "0,0,-90\n1,1,-90\n": "each device from 0 to 1 once in every step",
    HEAD + "0,1,-90\n0,2,-90\n": "each device from 0 to 2 once in every step",
    HEAD + "0,-1,-90\n0,0,-90\n": "each device from 0 to 0 once in every step",
    HEAD + "0,0,-90\n0,1,-90\n2,0,-90\n2,1,-90\n": "expected successive steps in an episode, got step 2 after 0",
    HEAD + "0,0,-90\n0.5,1,-90\n": "expected whole numbers in the columns .*, got 0.5 in line 3, column step",
    HEAD + "inf,0,-90\n0,1,-90\n": "expected whole numbers in the columns .*, got inf in line 2, column step",
    HEAD + "0,1e300,-90\n0,1,-90\n": "expected whole numbers in the columns .*, got 1e[+]300 in line 2, column device",
    HEAD + "0,0,-90\n": "expected gains of 2 devices, got 1",
    "step,gain_db\n0,-90\n": "line 1: expected a column device, got step, gain_db",
    "step device gain_db\n0 0 -90\n": "line 1: expected columns among episode, .*, got 'step device gain_db'",
    "step;device,gain_db\n0;0,-90\n": "line 1: expected names with commas, semicolons or tabs between them, got 'step;",
    '"step,device\n0,0\n': "line 1: expected names of columns, got '\"step,device': unexpected end of data",
    "0,0,-90\n0,1,-90\n": "line 1: expected columns among episode, .*, got '0'",
    ",step,device,gain_db\n0,0,0,-90\n5,0,1,-90\n": "line 1: expected a name for the first column, which is no count",
    "step,device\n0,0\n0,1\n": "expected gain or gain_db, got nothing",
    "step,device,gain,gain_db\n0,0,1e-9,-90\n0,1,1e-9,-90\n": "expected gain or gain_db, got both",
    "step,device,distance\n0,0,9\n": "expected columns among episode, step, device, gain, .* got 'distance'",
    "step,device,device,gain\n0,0,0,1e-9\n": "expected columns among .*, each once, got 'device'",
    "step,device,gain,distance_m\n0,0,1e-9,-5\n0,1,1e-9,5\n": "expected distance_m of 0 to 1e[+]09, or nan, got -5 in",
}


@pytest.mark.parametrize("text", CSV_MISTAKES)
def test_a_mistake_in_a_csv_is_one_sentence(text, tmp_path):
    path = tmp_path / "gains.csv"
    path.write_text(text)
    with pytest.raises(ValueError, match=CSV_MISTAKES[text]) as raised:
        check_channel(ChannelConfig(source=f"trace:{path}"), TWO_DEVICES)
    assert str(raised.value).startswith(f"{path}: ")
    assert "\n" not in str(raised.value)


SAVED_BY = {
    "byte-order mark": ("\ufeff" + HEAD + "0,0,-90\n0,1,-80\n", "utf-8"),
    "UTF-16": (HEAD + "0,0,-90\n0,1,-80\n", "utf-16"),
    "UTF-32": (HEAD + "0,0,-90\n0,1,-80\n", "utf-32"),
    "semicolons": ("step;device;gain_db\n0;0;-90\n0;1;-80\n", "utf-8"),
    "tabs": ("step\tdevice\tgain_db\n0\t0\t-90\n0\t1\t-80\n", "utf-16"),
    "quotes": ('"step","device","gain_db"\n"0","0","-90"\n"0","1","-80"\n', "utf-8"),
    "capitals": ("Step, Device, Gain_dB\n0, 0, -90\n0, 1, -80\n", "utf-8"),
    "index of pandas": (",step,device,gain_db\n0,0,0,-90\n1,0,1,-80\n", "utf-8"),
    "index of pandas, read again": ("Unnamed: 0,step,device,gain_db\n0,0,0,-90\n1,0,1,-80\n", "utf-8"),
    "index of R": ('"","step","device","gain_db"\n"1",0,0,-90\n"2",0,1,-80\n', "utf-8"),
    "blank lines": ("step,device,gain_db\n\n0,0,-90\n  \n0,1,-80\n\n", "utf-8"),
    "Windows": ("step,device,gain_db\r\n0,0,-90\r\n0,1,-80\r\n", "utf-8"),
    "old Mac": ("step,device,gain_db\r0,0,-90\r0,1,-80\r", "utf-8"),
}


@pytest.mark.parametrize("name", SAVED_BY)
def test_a_csv_is_read_whoever_saved_it(name, tmp_path):
    text, encoding = SAVED_BY[name]
    (tmp_path / "gains.csv").write_bytes(text.encode(encoding))
    np.testing.assert_allclose(read_recording(tmp_path / "gains.csv").gain, [[1e-9, 1e-8]])


NO_SIGNAL = "; such a value mostly means 'no signal'"
SENTINELS = [
    ("gain_db", "-999", NO_SIGNAL),
    ("gain_db", "-9999", NO_SIGNAL),
    ("gain_db", "-300", NO_SIGNAL),
    ("gain_db", "nan", NO_SIGNAL),
    ("gain_db", "-inf", NO_SIGNAL),
    ("gain_db", "1e30", NO_SIGNAL),
    ("gain", "0", NO_SIGNAL),
    ("gain", "1e-30", NO_SIGNAL),
    ("gain", "-999", NO_SIGNAL),
    ("gain", "inf", NO_SIGNAL),
    ("gain", "-93.1", "; gains in dB have the name gain_db"),
    ("gain", "1.5", ""),
    ("uplink_gain", "0", NO_SIGNAL),
    ("uplink_gain_db", "-999", NO_SIGNAL),
    ("uplink_gain_db", "3", "; a loss in dB has the other sign"),
    ("distance_m", "-999", "; such a value mostly means 'not known', which is nan"),
    ("distance_m", "1e30", "; such a value mostly means 'not known', which is nan"),
    ("distance_m", "inf", "; such a value mostly means 'not known', which is nan"),
    ("distance_m", "-1", ""),
]


FINE = {"gain": "1e-9", "gain_db": "-90", "uplink_gain": "1e-9", "uplink_gain_db": "-90", "distance_m": "5"}


@pytest.mark.parametrize(("name", "value", "hint"), SENTINELS)
def test_a_value_that_stands_for_none_is_refused_where_it_stands(name, value, hint, tmp_path):
    columns = {one: FINE[one] for one in (name if name.startswith("gain") else "gain", name)}
    good = ",".join(columns.values())
    bad = ",".join((columns | {name: value}).values())
    table = [f"step,device,{','.join(columns)}", "", f"1,0,{good}", f"1,1,{good}", f"0,0,{bad}", f"0,1,{good}", ""]
    (tmp_path / "gains.csv").write_text("\n".join(table))
    arrays = {one: np.full((2, 3, 2), float(fine)) for one, fine in columns.items()}
    arrays[name][1, 2, 0] = float(value)
    np.savez(tmp_path / "gains.npz", **arrays)
    np.savez(tmp_path / "one.npz", **{one: values[1] for one, values in arrays.items()})
    for file, place in (
        ("gains.csv", f"line 5, column {name}"),
        ("gains.npz", f"row 2, column 0, episode 1 of the array {name}"),
        ("one.npz", f"row 2, column 0 of the array {name}"),
    ):
        message = rf"{file}: expected {name} .*, got .* in {place}{re.escape(hint)}"
        with pytest.raises(ValueError, match=message) as raised:
            read_recording(tmp_path / file)
        assert str(raised.value).count(";") == bool(hint)


@pytest.mark.parametrize("value", ["-299", "0"])
def test_the_ends_of_the_range_are_read(value, tmp_path):
    (tmp_path / "gains.csv").write_text(f"step,device,gain_db,distance_m\n0,0,{value},0\n0,1,-90,1e9\n")
    np.testing.assert_allclose(read_recording(tmp_path / "gains.csv").gain, [[10 ** (float(value) / 10), 1e-9]])


def test_a_change_within_the_same_size_and_time_is_noticed(tmp_path):
    path = tmp_path / "gains.csv"
    path.write_text(HEAD + "0,0,-90\n")
    first, about = read_recording(path), path.stat()
    path.write_text(HEAD + "0,0,-80\n")
    os.utime(path, ns=(about.st_atime_ns, about.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (about.st_size, about.st_mtime_ns)
    assert first.gain != read_recording(path).gain == pytest.approx(1e-8)


def test_few_recordings_are_kept(tmp_path):
    for number in range(9):
        (tmp_path / "gains.csv").write_text(HEAD + f"0,0,-{number}\n")
        read_recording(tmp_path / "gains.csv")
    assert len(recording_file._recent) <= 4


def test_a_size_is_read_before_the_numbers(tmp_path, monkeypatch):
    monkeypatch.setattr(recording_file, "MOST_NUMBERS", 100)
    np.savez(tmp_path / "gains.npz", gain=np.full((5, 10), 1e-9), distance_m=np.ones((5, 10)))
    assert read_recording(tmp_path / "gains.npz").num_devices == 10
    monkeypatch.setattr(recording_file, "_array", lambda *_: pytest.fail("read"))
    for shape in ((6, 10), (2, 3, 10), (1, 60)):
        np.savez_compressed(tmp_path / "gains.npz", gain=np.zeros(shape, np.uint8), distance_m=np.zeros(shape))
        with pytest.raises(ValueError, match=r"expected at most 100 numbers, got 2 arrays of shape \("):
            read_recording(tmp_path / "gains.npz")
    rows = [f"{step},0,-90\n" for step in range(40)]
    (tmp_path / "gains.csv").write_text(HEAD + "".join(rows[:33]))
    assert len(read_recording(tmp_path / "gains.csv").gain) == 33
    (tmp_path / "gains.csv").write_text(HEAD + "".join(rows))
    with pytest.raises(ValueError, match="expected at most 100 numbers, got more"):
        read_recording(tmp_path / "gains.csv")


def test_a_shape_that_no_file_holds_makes_no_room(tmp_path):
    """The header of an array may say anything."""
    for shape in ((2**40, 2), (2**40, 0, 2), (2**62, 2**62)):
        header = io.BytesIO()
        npy.write_array_header_1_0(header, {"descr": "<f8", "fortran_order": False, "shape": shape})
        with zipfile.ZipFile(tmp_path / "gains.npz", "w") as archive:
            archive.writestr("gain.npy", header.getvalue() + bytes(16))
        with pytest.raises(ValueError, match=r"expected (at most|gains of at least one step)"):
            read_recording(tmp_path / "gains.npz")


@pytest.mark.parametrize(("suffix", "limit"), [(CSV, "MOST_CSV_BYTES"), (NPZ, "_MOST_NPZ_BYTES")])
def test_a_file_that_is_too_large_is_not_read(suffix, limit, tmp_path, monkeypatch):
    monkeypatch.setattr(recording_file, limit, 10)
    write_recording(tmp_path / f"gains{suffix}", Gains.of(numbered(1, 1, 2)))
    with pytest.raises(ValueError, match=rf"expected at most 10 bytes in .*gains{suffix}, got \d+"):
        read_recording(tmp_path / f"gains{suffix}")


def test_an_array_that_stands_twice_is_refused(tmp_path):
    array = io.BytesIO()
    np.save(array, GAIN)
    with zipfile.ZipFile(tmp_path / "gains.npz", "w") as archive:
        archive.writestr("gain.npy", array.getvalue())
        with pytest.warns(UserWarning, match="Duplicate name"):
            archive.writestr("gain.npy", array.getvalue())
    with pytest.raises(ValueError, match=r"expected arrays among gain, .*, each once, got 'gain'"):
        read_recording(tmp_path / "gains.npz")


@pytest.mark.parametrize("name", ["a\0b.csv", "a\udcff.csv", "a\ud800.npz", "~nobody-of-this-name/gains.csv"])
def test_a_name_that_no_file_has_is_one_sentence(name):
    with pytest.raises(FileNotFoundError, match="expected a file of recorded gains, found no file") as raised:
        read_recording(name)
    assert str(raised.value).isprintable()


def test_a_name_that_no_terminal_prints_is_escaped(tmp_path):
    path = tmp_path / "a\udcff\nb.csv"
    path.write_text(HEAD)
    with pytest.raises(ValueError, match=r"a\\udcff\\nb.csv: expected rows") as raised:
        read_recording(path)
    assert str(raised.value).isprintable()


def test_a_csv_of_other_bytes_is_one_sentence(tmp_path):
    path = tmp_path / "gains.csv"
    path.write_bytes(b"\x80\x81\xff\n")
    with pytest.raises(ValueError, match=r"gains.csv: .*codec can't decode"):
        check_channel(ChannelConfig(source=f"trace:{path}"), TWO_DEVICES)


GAIN = np.full((4, 2), 1e-9)
NPZ_MISTAKES = {
    "no gain": ({"distance_m": GAIN}, "expected gain or gain_db, got distance_m"),
    "nothing": ({}, "expected gain or gain_db, got nothing"),
    "another name": ({"gains": GAIN}, "expected arrays among gain, gain_db, .*, got 'gains'"),
    "nan": ({"gain": np.where(np.eye(4, 2), np.nan, GAIN)}, "got nan in row 0, column 0 of the array gain"),
    "other devices": ({"gain": GAIN[:, :1]}, "expected gains of 2 devices, got 1"),
    "no step": ({"gain": GAIN[:0]}, "expected gains of at least one step and one device"),
    "one axis": ({"gain": GAIN[0]}, r"expected arrays \(steps, devices\) or \(episodes, steps, devices\)"),
    "two shapes": ({"gain": GAIN, "distance_m": GAIN[:2]}, "expected arrays of one shape"),
    "complex": ({"gain": GAIN * 1j}, "expected real numbers in gain, got complex128"),
    "text": ({"gain": np.full((4, 2), "strong")}, "expected real numbers in gain"),
}


@pytest.mark.parametrize("name", NPZ_MISTAKES)
def test_a_mistake_in_an_npz_is_one_sentence(name, tmp_path):
    arrays, message = NPZ_MISTAKES[name]
    np.savez(tmp_path / "gains.npz", **arrays)
    with pytest.raises(ValueError, match=message):
        check_channel(ChannelConfig(source=f"trace:{tmp_path / 'gains.npz'}"), TWO_DEVICES)


class Touch:
    """Writes a file where it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_reading_runs_no_code(tmp_path):
    path, touched = tmp_path / "gains.npz", tmp_path / "touched"
    np.savez(path, gain=np.array([Touch(touched)], dtype=object))
    with pytest.raises(ValueError, match=r"gains.npz: expected a whole NPZ of plain arrays, .* allow_pickle=False"):
        read_recording(path)
    path.write_bytes(pickle.dumps(Touch(touched)))
    with pytest.raises(ValueError, match=r"gains.npz: expected a whole NPZ of plain arrays"):
        read_recording(path)
    assert not touched.exists()


@pytest.mark.parametrize("kept", [0, 1, 30, 0.5, 0.9, -1])
def test_a_truncated_npz_is_one_sentence(kept, tmp_path):
    path = tmp_path / "gains.npz"
    np.savez(path, gain=np.random.default_rng(0).random((50, 2)))
    whole = path.read_bytes()
    path.write_bytes(whole[: int(kept * len(whole)) if isinstance(kept, float) else kept])
    with pytest.raises(ValueError, match="expected a whole NPZ of plain arrays") as raised:
        read_recording(path)
    assert "\n" not in str(raised.value)


def test_a_damaged_npz_is_one_sentence(tmp_path):
    path = tmp_path / "gains.npz"
    np.savez_compressed(path, gain=np.random.default_rng(0).random((50, 2)))
    (member,) = zipfile.ZipFile(path).infolist()
    data = bytearray(path.read_bytes())
    data[200] ^= 0xFF
    assert member.compress_size > 200
    path.write_bytes(data)
    with pytest.raises(ValueError, match="expected a whole NPZ of plain arrays"):
        read_recording(path)


def test_an_array_alone_is_no_npz(tmp_path):
    with (tmp_path / "gains.npz").open("wb") as file:
        np.save(file, GAIN)
    with pytest.raises(ValueError, match="expected a whole NPZ of plain arrays"):
        read_recording(tmp_path / "gains.npz")


def test_too_few_steps_are_one_sentence(tmp_path):
    write_recording(tmp_path / "gains.npz", Gains.of(numbered(3, 4, 2)))
    assert source_of(tmp_path / "gains.npz", num_blocks=4).sample(generators(2)).gain.shape == (4, 2, 2)
    with pytest.raises(ValueError, match="expected an episode of 5 steps, one for each block, got 4 at most"):
        source_of(tmp_path / "gains.npz", num_blocks=5)


def test_no_file_and_another_kind_of_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"expected a file of recorded gains, found no file '.*gone.csv'"):
        read_recording(tmp_path / "gone.csv")
    for path in ("", "gains.txt", "gains.pkl"):
        with pytest.raises(ValueError, match=f"expected a file of gains that ends in .csv or .npz, got '{path}'"):
            check_channel(ChannelConfig(source=f"trace:{path}"), TWO_DEVICES)
    with pytest.raises(ValueError, match=r"ends in .csv or .npz"):
        write_recording(tmp_path / "gains.txt", Gains.of(numbered(1, 1, 1)))


def test_a_string_is_short_for_the_source():
    short, mapping = EnvConfig.make(channel="trace:gains.csv"), EnvConfig.make(channel={"source": "trace:gains.csv"})
    assert short == mapping == EnvConfig(channel=ChannelConfig(source="trace:gains.csv"))
    assert EnvConfig.make(short.to_dict()) == short


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("statistic", "channel source must be one of statistical, sionna, trace.*, got 'statistic'; did you mean"),
        ("", "channel source must be one of statistical, "),
        ("statistical:rician", "channel source 'statistical' takes nothing behind a colon, got 'rician'"),
    ],
)
def test_an_unknown_source_is_one_sentence(source, message):
    with pytest.raises(ValueError, match=message):
        check_channel(ChannelConfig(source=source), DeviceConfig())


def test_a_source_that_is_no_string_is_refused():
    with pytest.raises(TypeError, match=r"source must be a string such as 'statistical' or 'trace:gains.csv', got 3"):
        EnvConfig.make(channel={"source": 3})
    with pytest.raises(TypeError, match=r"channel must be a ChannelConfig, .* or the name of a source, got 3"):
        EnvConfig.make(channel=3)


class Ladder:
    """A source of one's own: the gain falls by so many dB from device to device."""

    def __init__(self, argument, channel, devices, num_blocks):
        self.shape = (num_blocks, devices.count)
        self.gain = 10 ** (-(80 + float(argument) * np.arange(devices.count)) / 10)

    def sample(self, generators):
        blocks, devices = self.shape
        return Gains.of(np.broadcast_to(self.gain, (blocks, len(generators), devices)))


@pytest.mark.parametrize("factory", [Ladder, f"{__name__}:Ladder"])
def test_a_kind_of_ones_own(factory, micro):
    register_source("ladder", factory)
    env = gym.make("wdmoe_env:WDMoE-v0", **micro, channel={"source": "ladder:3", "bandwidth_hz": 1e6})
    observation, _ = env.reset(seed=0)
    # At 1/8 MHz each, 3 dB is log2(10^0.3) = 0.9966 bit/s/Hz at high SNR.
    np.testing.assert_allclose(np.diff(observation["spectral_efficiency"]), -0.9966, atol=1e-3)


def test_a_source_of_another_shape_is_named():
    register_source("narrow", lambda argument, channel, devices, num_blocks: Ladder("0", channel, TWO_DEVICES, 1))
    with pytest.raises(
        ValueError, match=r"expected gains of shape \(1, 2, 8\) from the source 'narrow', got \(1, 2, 2\)"
    ):
        Channel(ChannelConfig(source="narrow"), DeviceConfig(), 1).sample(generators(2))


@pytest.mark.parametrize("kind", ["trace", "sionna", "statistical", "a:b", ""])
def test_the_kinds_of_the_package_are_kept(kind):
    with pytest.raises(ValueError, match="kind must be a name without a colon and none of statistical, sionna, trace"):
        register_source(kind, Ladder)


@pytest.mark.parametrize("model", ["tdl-f", "tdl", "", "umi"])
def test_an_unknown_model_of_sionna_is_one_sentence(model):
    with pytest.raises(ValueError, match=rf"'sionna:MODEL' must be one of rayleigh, tdl-a, .* cdl-e, got '{model}'"):
        check_channel(ChannelConfig(source=f"sionna:{model}"), DeviceConfig())


def test_a_missing_sionna_names_the_extra(monkeypatch):
    for name in ("sionna", "sionna.phy"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match=r"expected sionna-no-rt, .* pip install 'wdmoe-env\[sionna\]' brings it"):
        check_channel(ChannelConfig(source="sionna:tdl-a"), DeviceConfig())


def test_a_mistake_is_named_before_a_model_is_loaded():
    with pytest.raises(FileNotFoundError, match="expected a file of recorded gains"):
        gym.make("wdmoe_env:WDMoE-v0", model="./no/such/model", channel="trace:gone.csv")
