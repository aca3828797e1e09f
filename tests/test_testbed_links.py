"""Links that are recorded, that are as fast as the wire, and that the kernel shapes; with device processes."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from itertools import permutations
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
from testbed_devices import environment, run_episode, write_inventory

from wdmoe_env.testbed.kernel import why_not, wire_rate_bps
from wdmoe_env.testbed.mahimahi import PACKET_BYTES

TOKEN_BYTES = 8192
"""4,096 elements of 16 bits, the default deployment's."""

BOUND_S = 300.0


def paced_calls(env):
    """Lists of the calls and the infos of an episode."""
    calls, runner = [], env.unwrapped.simulator.runner
    runner.listeners.append(lambda record: calls.extend(record.devices if record.paced else ()))
    return calls, run_episode(env)


def simulated_nll():
    env = gym.make("wdmoe_env:WDMoE-v0", model="micro", num_tokens=8, devices={"count": 2})
    return run_episode(env)[-1]["nll"]


def test_recorded_links_let_payloads_pass_when_they_may(device_processes, tmp_path):
    """A chance a millisecond is 12 Mbit/s; at half a share a payload needs two for each 1,500 bytes."""
    (tmp_path / "link").write_text("1\n")
    traces = {f"{way}_trace": ["link", "link"] for way in ("downlink", "uplink")}
    addresses = [device.address for device in device_processes]
    inventory = write_inventory(tmp_path / "hosts.toml", addresses, links="trace", **traces)
    with environment(inventory) as env:
        observation, _ = env.reset(seed=0)
        mean_rate_bps = 8e3 * PACKET_BYTES  # which the observation holds, as an equal share of a radio link
        config = env.unwrapped.config
        np.testing.assert_allclose(observation["spectral_efficiency"], mean_rate_bps / config.channel.bandwidth_hz)
        calls, infos = paced_calls(env)
    assert calls
    for call in calls:
        chances = math.ceil(TOKEN_BYTES * call.tokens / (PACKET_BYTES / 2))
        assert call.outcome == "served"
        for way in ("send", "receive"):
            # The first chance comes within a millisecond.
            assert chances - 1 <= getattr(call, f"paced_{way}_ms") <= chances + 1e-6
            assert getattr(call, f"{way}_ms") > getattr(call, f"paced_{way}_ms") - 0.5
        assert min(call.down_bytes, call.up_bytes) >= TOKEN_BYTES * call.tokens
    assert infos[-1]["nll"] == pytest.approx(simulated_nll(), abs=1e-5)


def test_real_links_are_as_fast_as_they_are_measured(device_processes, tmp_path):
    """A share caps a link at its part of the measured rate."""
    addresses = [device.address for device in device_processes]
    inventory = write_inventory(tmp_path / "hosts.toml", addresses, links="real", compute="real")
    with environment(inventory) as env:
        links = env.unwrapped.simulator.runner.links
        rates = {link.host.name: np.minimum(link.rate_bps, 1e10) for link in links}  # 100 bit/s/Hz of 100 MHz at most
        calls, infos = paced_calls(env)
    assert calls
    for call in calls:
        assert call.outcome == "served"
        seconds = np.array([call.paced_send_ms, call.paced_receive_ms]) / 1e3
        np.testing.assert_allclose(8 * TOKEN_BYTES * call.tokens / seconds, rates[call.device] / 2, rtol=1e-3)
        assert call.compute_ms > 0
    assert infos[-1]["nll"] == pytest.approx(simulated_nll(), abs=1e-5)


def test_a_rate_of_the_wire_counts_headers():
    """1,448 bytes a millisecond need a whole frame of 1,514 bytes."""
    assert wire_rate_bps(1448, 1e-3) == pytest.approx(8 * 1514 / 1e-3)


def needs_kernel():
    reason = why_not()
    if reason:
        pytest.skip(reason)


def fidelity(out, *arguments):
    """The command of a report, in a process of its own; of what is said twice, the last counts."""
    command = [sys.executable, "-m", "wdmoe_env.testbed", "fidelity", "--model", "micro", "--bandwidth-hz", "10e6"]
    return subprocess.Popen(
        [*command, "--out", str(out), *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def children(pid):
    """Numbers of the processes below a process."""
    try:
        files = list(Path(f"/proc/{pid}/task").glob("*/children"))
        own = [int(one) for file in files for one in file.read_text().split()]
    except OSError:
        return []
    return [*own, *(one for child in own for one in children(child))]


def running(pids):
    """Those of some processes that have not ended."""
    states = {pid: Path(f"/proc/{pid}/stat") for pid in pids}
    found = []
    for pid, path in states.items():
        try:
            ended = path.read_text().rpartition(")")[2].split()[0] in "ZX"
        except OSError:
            continue
        found += [] if ended else [pid]
    return found


def namespace(pid):
    try:
        return os.readlink(f"/proc/{pid}/ns/net")
    except OSError:
        return ""


def until(condition, what):
    """Wait, within bounds, until something holds."""
    ends = time.monotonic() + BOUND_S
    while not condition():
        assert time.monotonic() < ends, what
        time.sleep(0.05)


def test_the_kernel_shapes_the_links(tmp_path):
    """Programs hold nothing back: that payloads take their time, and whose take less, is the doing of token buckets."""
    needs_kernel()
    run = ("--model", "tiny", "--shaping", "kernel", "--devices", "2", "--episodes", "1", "--bandwidth-hz", "2.5e6")
    arguments = (*run, "--policies", "vanilla", "vanilla-optimal", "straight-through-10", "top1")
    with fidelity(tmp_path / "out", *arguments) as process:
        said = process.communicate(timeout=BOUND_S)[0]
    assert process.returncode == 0, said
    report = json.loads((tmp_path / "out" / "fidelity.json").read_text())
    assert report["shaped_by"] == "kernel"
    for policy in report["policies"]:
        # A bucket of 2 kB passes at once in each block and way, which a few kilobytes more than payload outweigh.
        assert policy["measured_ms"][0] > 0.9 * policy["simulated_ms"][0]
        assert policy["unserved_pairs"] == 0
    took = [(policy["simulated_ms"][0], policy["measured_ms"][0]) for policy in report["policies"]]
    # On a busy machine those that are closer may change places.
    apart = [(fast, slow) for fast, slow in permutations(took, 2) if slow[0] > 1.5 * fast[0]]
    assert len(apart) == 3
    assert all(slow[1] > fast[1] for fast, slow in apart)


def test_nothing_is_left_when_a_base_station_is_killed(tmp_path):
    """Its devices end, and with them their namespaces, which have no other owner."""
    shaping = "program" if why_not() else "kernel"
    arguments = ("--shaping", shaping, "--devices", "1", "--episodes", "10000", "--policies", "top1")
    with fidelity(tmp_path / "out", *arguments) as process:
        try:
            out = tmp_path / "out"  # is there before devices are, and after all that tries out whether they can be
            until(lambda: process.poll() is not None or (out.exists() and children(process.pid)), "a device")
            below = children(process.pid)
            assert below, process.stdout.read()
            if shaping == "kernel":
                outside = namespace(os.getpid())
                until(lambda: namespace(below[0]) not in ("", outside, namespace(process.pid)), "a namespace")
                assert namespace(process.pid) != outside
        finally:
            os.kill(process.pid, signal.SIGKILL)
    until(lambda: not running(below), "the end of the devices")
