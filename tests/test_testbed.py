"""The parts of a testbed that need no device: wire, inventories, recorded links, reports, commands."""

from __future__ import annotations

import json
import urllib.request
from importlib import resources

import numpy as np
import pytest
import torch
from transformers import OlmoeConfig

from wdmoe_env import __version__
from wdmoe_env.config import ChannelConfig, DeviceConfig
from wdmoe_env.moe.blank import blank_model
from wdmoe_env.physics.latency import DOWNLINK, equal_shares, spectral_efficiency
from wdmoe_env.precision import rounded
from wdmoe_env.testbed.command_line import main
from wdmoe_env.testbed.comparison import Compared
from wdmoe_env.testbed.fidelity import errors_percent, fidelity_page, fidelity_report, rank_correlation
from wdmoe_env.testbed.inventory import Host, read_inventory
from wdmoe_env.testbed.link import DeviceLink
from wdmoe_env.testbed.mahimahi import LinkTrace, read_trace, trace_of_rates, trace_text
from wdmoe_env.testbed.rates import gains_of_rates
from wdmoe_env.testbed.records import BlockRecord, Counters, DeviceRecord
from wdmoe_env.testbed.watch import live_row, watched
from wdmoe_env.testbed.weights import even_share, expected_digests, load_weights
from wdmoe_env.testbed.wire import (
    FILLER_OF_REPLY,
    PROTOCOL,
    STATES,
    Description,
    RunReply,
    TensorMessage,
    read_rows,
    write_rows,
    zeros_field,
)

FOLDER = resources.files("wdmoe_env") / "testbed"


def test_the_descriptor_is_that_of_the_protocol_file(tmp_path):
    protoc = pytest.importorskip("grpc_tools.protoc")
    made = tmp_path / "device.binpb"
    assert protoc.main(["protoc", f"-I{FOLDER}", f"--descriptor_set_out={made}", str(FOLDER / "device.proto")]) == 0
    assert made.read_bytes() == (FOLDER / "device.binpb").read_bytes()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_rows_cross_as_they_are(dtype):
    rows = torch.randn(5, 7, generator=torch.Generator().manual_seed(0)).to(dtype)
    sent = TensorMessage.FromString(write_rows(rows).SerializeToString())
    assert torch.equal(read_rows(sent, 7, dtype), rows)


@pytest.mark.parametrize(("bits", "size"), [(8, 7), (4, 4)])
def test_rows_of_few_bits_cross_as_codes(bits, size):
    """What arrives is what the simulated link makes of it; a row of 7 elements takes 7 or 4 bytes."""
    rows = torch.randn(5, 7, generator=torch.Generator().manual_seed(0))
    sent = write_rows(rows, bits)
    assert (len(sent.data), len(sent.scale)) == (5 * size, 5 * 4)
    assert torch.equal(read_rows(sent, 7, torch.float32), rounded(rows, bits))


@pytest.mark.parametrize("count", [0, 1, 127, 128, 300_000])
def test_zeros_are_written_as_protocol_buffers_writes_them(count):
    assert zeros_field(FILLER_OF_REPLY, count) == RunReply(filler=bytes(count)).SerializeToString()


def test_a_device_of_another_version_is_one_sentence(tmp_path):
    path = tmp_path / "hosts.toml"
    path.write_text(INVENTORY)
    inventory = read_inventory(path)
    link = DeviceLink(inventory.devices[0], inventory)
    ready = {"protocol": PROTOCOL, "state": STATES["READY"], "dtype": "float32", "hidden_size": 8}
    assert link.problem_of(Description(version=__version__, **ready), "float32", 8) == ""
    problem = link.problem_of(Description(version="0.0.9", **ready), "float32", 8)
    assert problem == f"expected wdmoe-env {__version__} of device-0, as here, got '0.0.9'"


def test_a_digest_is_of_the_weights_and_of_nothing_else():
    whole, half = expected_digests("tiny", "float32"), load_weights("tiny", None, "float32", 4, 1)
    assert half.held == ((2, 3),) * 6
    assert all(of_block == {e: whole[block][e] for e in (2, 3)} for block, of_block in enumerate(half.digests))
    assert len({digest for of_block in whole for digest in of_block.values()}) == 48
    assert expected_digests("tiny", "bfloat16")[0][0] != whole[0][0]
    assert half.num_bytes == 4 * 2 * 6 * 3 * 128 * 256


def test_experts_are_spread_as_an_environment_spreads_them():
    shares = [even_share(3, device, 1, 8)[0] for device in range(3)]
    assert shares == [(0, 1, 2), (3, 4, 5), (6, 7)]
    with pytest.raises(ValueError, match="expected a device of 0 to 2 among 1 to 8, got 3 of 3"):
        even_share(3, 3, 1, 8)


def test_a_station_of_64_experts_holds_little():
    """Bytes of an OLMoE of 64 experts that are not experts': under 40 % of the whole."""
    config = OlmoeConfig(
        vocab_size=512, hidden_size=64, intermediate_size=32, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=4, num_experts=64, num_experts_per_tok=8,
    )  # fmt: skip
    blank = blank_model(config)
    total = sum(one.numel() for one in blank.model.parameters())
    experts = sum(one.numel() for block in range(4) for one in blank.parameters(block).values())
    assert len(blank.experts) == 4
    assert (total - experts) / total < 0.4


INVENTORY = '[[devices]]\naddress = "127.0.0.1:1"\n'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[[", "expected a TOML file"),
        ("", r"expected a table \[\[devices\]\] for each device, got None"),
        ("links = 'fast'\n" + INVENTORY, "links must be one of paced, trace, real, got 'fast'"),
        ("time_scale = 0\n" + INVENTORY, "time_scale must be a finite number at least 0.001 and at most"),
        ("speed = 1\n" + INVENTORY, "an inventory may hold model, .*, got 'speed'"),
        (INVENTORY + INVENTORY, "expected devices of different address, got '127.0.0.1:1' twice"),
        ("[[devices]]\nname = 'a'\n", "expected the address of device 0 as HOST:PORT, got none"),
        ("[[devices]]\naddress = 'host'\n", "expected an address as HOST:PORT, got 'host'"),
        ("[[devices]]\naddress = '192.0.2.1:5'\n", "expected --tls DIR for 192.0.2.1:5"),
        ("links = 'trace'\n" + INVENTORY, "needs downlink_trace and uplink_trace of device-0, found none"),
        (INVENTORY + "experts = [0, -1]\n", "experts of device 0 must be a list of numbers of at least 0"),
        (INVENTORY + "experts = [0, 2]\n", "expected a device for every expert, none holds expert 1"),
        (
            INVENTORY + "experts = [0]\n[[devices]]\naddress = '127.0.0.1:2'\n",
            "or of none, not device-1",
        ),
    ],
)
def test_an_inventory_that_is_wrong_is_one_sentence(tmp_path, text, message):
    path = tmp_path / "hosts.toml"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        read_inventory(path).placement()


def test_a_recorded_link_lets_packets_pass_when_it_may():
    """Chances at 2, 2, 5 and 10 ms, again and again; a half share needs twice as many."""
    trace = LinkTrace(np.array([2, 2, 5, 10]))
    assert trace.rate_bps == 4 * 1500 * 8 / 0.010
    assert trace.transfer_s(1500, 0.0) == pytest.approx(0.002)
    assert trace.transfer_s(3001, 0.0) == pytest.approx(0.005)
    assert trace.transfer_s(1500, 0.006) == pytest.approx(0.004)
    assert trace.transfer_s(6001, 0.0) == pytest.approx(0.012)
    assert trace.transfer_s(1500, 0.0, share=0.5) == pytest.approx(0.002)
    assert trace.transfer_s(3000, 0.0, share=0.5) == pytest.approx(0.010)
    assert trace.transfer_s(0, 0.0) == 0.0


def test_a_channel_becomes_a_recorded_link_and_back(tmp_path):
    """12 Mbit/s is a line a millisecond, as mahimahi's manual page says."""
    trace = trace_of_rates(np.array([12e6, 24e6]), 0.005)
    path = tmp_path / "link.down"
    path.write_text(trace_text(trace))
    assert path.read_text().split() == [str(ms) for ms in (1, 2, 3, 4, 5, 6, 6, 7, 7, 8, 8, 9, 9, 10, 10)]
    assert (read_trace(path).chances_ms == trace.chances_ms).all()
    for text, message in (("3\n2\n", "line 2: expected at least 3, got 2"), ("x\n", "line 1: expected a whole number")):
        path.write_text(text)
        with pytest.raises(ValueError, match=message):
            read_trace(path)


def test_a_rate_becomes_the_gain_that_gives_it():
    channel = ChannelConfig(bandwidth_hz=20e6)
    rates = np.array([[100e6, 40e6], [20e6, 5e6]])
    gains = gains_of_rates(rates, channel)
    noise = 10 ** ((channel.noise_dbm_per_hz - 30) / 10) * channel.bandwidth_hz
    snr = gains * np.array([[channel.base_station_power_w], [channel.device_power_w]]) / noise
    efficiency = spectral_efficiency(snr[None], equal_shares(1, 2))[0]
    np.testing.assert_allclose(efficiency * channel.bandwidth_hz, rates, rtol=1e-9)


def test_traces_are_written_for_each_device(tmp_path, capsys):
    assert main(["traces", "--out", str(tmp_path / "traces"), "--devices", "2", "--blocks", "16"]) == 0
    assert "4 files" in capsys.readouterr().out
    trace = read_trace(tmp_path / "traces" / "device-0.down")
    assert trace.chances_ms[-1] <= 16 * 20
    assert DOWNLINK == 0
    assert DeviceConfig().count == 8


def compared():
    """Two policies of two episodes of two blocks; the clock says 3 ms a block more, and 1 % of the second's."""
    first, second = np.array([[10.0, 20.0], [30.0, 40.0]]), np.array([[100.0, 100.0], [100.0, 100.0]])
    lost, added = np.zeros(2), np.zeros(2)
    return [Compared("a", first, first + 3, lost, added), Compared("b", second, second * 1.01 + 3, lost, added)]


def record(outcome="served", **times):
    device = DeviceRecord("d0", outcome, tokens=4, pairs=6, down_bytes=100, up_bytes=50, **times)
    return BlockRecord(1, 0, True, 1.0, 20.0, 15.0, 2000.0, (device,))


def test_a_fidelity_report_by_hand():
    """The four means of what a block takes longer are 3, 3, 4 and 4 ms: the floor is 3.5."""
    times = {"send_ms": 10.2, "paced_send_ms": 10.0, "receive_ms": 5.0, "paced_receive_ms": 5.0, "total_ms": 16.0}
    report = fidelity_report(compared(), [record(**times)])
    assert report["overhead_ms"] == pytest.approx(3.5)
    assert report["policies"][0]["simulated_ms"] == [30.0, 70.0]
    assert report["policies"][0]["measured_ms"] == [36.0, 76.0]
    assert report["policies"][0]["error_percent"]["episode_median"] == pytest.approx(100 * (6 / 30 + 6 / 70) / 2)
    assert errors_percent(compared()[1], 3.0)["episode_median"] == pytest.approx(100 * (208 / 206 - 1))
    assert report["order"]["simulated"] == report["order"]["measured"] == ["a", "b"]
    assert report["order"]["rank_correlation"] == pytest.approx(1.0)
    assert report["links"]["downlink"]["p50_percent"] == pytest.approx(100 * (1 - 10 / 10.2))
    assert report["links"]["uplink"]["p99_percent"] == 0.0
    parts = {name: part["median"] for name, part in report["difference_ms"]["last_device"].items()}
    assert sum(value for name, value in parts.items() if name != "block") == pytest.approx(parts["block"])
    made = {"machine": "m", "command": "c", "episodes": 2, "bandwidth_hz": 1e6, "links_are": "paced"}
    made |= {"compute": "profile", "time_scale": 1.0, "floor_ms": {"empty_call_p50": 1.0}}
    assert "| `a` | 50 | 56 |" in fidelity_page(json.loads(json.dumps(report | made)))


def test_ranks():
    assert rank_correlation([1, 2, 3], [10, 30, 20]) == pytest.approx(0.5)
    assert np.isnan(rank_correlation([1], [1]))


def test_what_one_sees(tmp_path):
    """A line of JSON for each block, counters over HTTP, and a row of the live table."""

    class Station:
        listeners = []  # noqa: RUF012
        links = ()

    station, log = Station(), tmp_path / "blocks.jsonl"
    with watched(station, log=log):
        for outcome in ("served", "late"):
            for listener in station.listeners:
                listener(record(outcome, compute_ms=4.0))
    assert not station.listeners
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert [line["misses"] for line in lines] == [0, 1]
    assert lines[0]["devices"][0]["down_bytes"] == 100
    counters = Counters()
    counters.add(record(compute_ms=4.0))
    counters.add(record("late"))
    text = counters.text()
    assert 'wdmoe_testbed_calls_total{device="d0",outcome="late"} 1' in text
    assert 'wdmoe_testbed_phase_seconds_total{device="d0",phase="compute"} 0.004' in text
    assert text.count("# TYPE wdmoe_testbed_bytes_total counter") == 1
    assert live_row("d0", "", [record(compute_ms=4.0), record("late")])[-1] == "1"


def test_the_live_table_follows_the_blocks(capsys):
    pytest.importorskip("rich")

    class Link:
        host, away = Host("d0", "127.0.0.1:1"), ""

    class Station:
        listeners = []  # noqa: RUF012
        links = (Link,)

    with watched(Station(), live=True):
        Station.listeners[0](record(compute_ms=4.0))
    said = capsys.readouterr().out
    assert "call 1: block 1, 20.0 ms, 15.0 ms by the simulator" in " ".join(said.split())
    assert "d0" in said


def test_counters_are_served_on_loopback_alone():
    import socket

    class Station:
        listeners = []  # noqa: RUF012

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with watched(Station(), prometheus=f"127.0.0.1:{port}"):
        Station.listeners[0](record())
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
            assert b"wdmoe_testbed_blocks_total 1" in answer.read()
    outside = r"expected an address on loopback for the counters, got 0\.0\.0\.0:1"
    with pytest.raises(ValueError, match=outside), watched(Station(), prometheus="0.0.0.0:1"):
        pass


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["device"], "expected either --experts, or --device and --of"),
        (["device", "--device", "0", "--of", "2", "--listen", "0.0.0.0:1"], "expected --tls DIR for 0.0.0.0:1"),
        (["device", "--device", "0", "--of", "2", "--listen", "nowhere"], "expected an address as HOST:PORT"),
        (["device", "--device", "9", "--of", "2", "--model", "micro", "--listen", "127.0.0.1:0"], "a device of 0 to 1"),
        (["run", "--inventory", "/no/such/file"], "expected a file, found none at /no/such/file"),
        (
            ["fidelity", "--shaping", "kernel", "--inventory", "a", "--out", "b"],
            "for devices that are started here, got an",
        ),
        (["certificates", "--out", "x", "board"], "expected devices of different names as NAME=HOST, got board"),
    ],
)
def test_a_mistake_in_a_command_is_one_sentence(arguments, message, capsys):
    assert main(arguments) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1
