"""A testbed whose devices fail: the pass goes on, the device comes back, and what is wrong is one sentence.

Devices are processes of their own, three for all tests, and servers on threads where a device is to change. No test
looks at how long something took.
"""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from copy import deepcopy

import gymnasium as gym
import numpy as np
import pytest
import torch
from testbed_devices import device_thread, environment, run_episode, threaded_testbed, write_inventory

from wdmoe_env.moe.zoo import load_model
from wdmoe_env.testbed.local import device_arguments, local_devices
from wdmoe_env.testbed.station import testbed_runner as runner_of
from wdmoe_env.testbed.weights import load_weights
from wdmoe_env.testbed.wire import SERVICE, RunRequest, TensorMessage, grpc

GRACE_MS = 300.0


@pytest.fixture(autouse=True)
def _impatient(monkeypatch):
    """No waiting for devices that are not there at the start."""
    monkeypatch.setattr("wdmoe_env.testbed.station.GONE_S", 0.2)


def until_back(runner, seconds=60):
    """Wait, within bounds, until every device is there."""
    ends = time.monotonic() + seconds
    while not runner.available().all():
        assert time.monotonic() < ends, [link.away for link in runner.links]
        time.sleep(0.05)


def test_a_device_that_dies_is_dropped_and_comes_back(device_processes, tmp_path):
    """SIGKILL while it waits for its rows; another process in its place is found without a restart of anything."""
    inventory = write_inventory(
        tmp_path / "hosts.toml", [device.address for device in device_processes], time_scale=200
    )
    with environment(inventory) as env:
        runner = env.unwrapped.simulator.runner

        def kill(block):
            if block == 1:  # the first block's rows are still on the air then
                threading.Timer(0.05, device_processes[1].process.kill).start()

        infos = run_episode(env, kill)
        assert infos[0]["unserved_pairs"] == 0
        assert infos[1]["unserved_pairs"] > 0
        assert (infos[1]["selection"][:, 4:] == 0).all()  # what it was to serve counts as not chosen
        assert infos[1]["load"].tolist()[1] == 0
        observation, _ = env.reset(seed=1)
        assert observation["availability"].tolist() == [1.0, 0.0]
        assert not observation["routed"][:, 4:].any()
        device_processes[1].process.wait()
        device_processes[1].start_again(time.monotonic() + 60)
        until_back(runner)
        assert runner.links[1].losses == 1
        assert not any(info["unserved_pairs"] for info in run_episode(env))


def test_a_device_that_stands_still_misses_the_deadline(device_processes, tmp_path):
    inventory = write_inventory(tmp_path / "hosts.toml", [device.address for device in device_processes])
    records = []
    with environment(inventory) as env:
        runner = env.unwrapped.simulator.runner
        runner.listeners.append(records.append)

        def stop(block):
            if block == 1:
                os.kill(device_processes[0].process.pid, signal.SIGSTOP)

        try:
            infos = run_episode(env, stop)
        finally:
            os.kill(device_processes[0].process.pid, signal.SIGCONT)
        late = [device.outcome for record in records for device in record.devices]
        assert "late" in late
        assert infos[1]["unserved_pairs"] > 0
        assert infos[1]["block_latency_ms"] >= GRACE_MS
        until_back(runner)
        assert not any(info["unserved_pairs"] for info in run_episode(env))


def test_a_link_that_is_cut_is_found_again(device_processes, tmp_path):
    """Through a relay that stops passing bytes on, without a word to either end."""
    with relay(device_processes[1].address) as (address, link):
        inventory = write_inventory(tmp_path / "hosts.toml", [device_processes[0].address, address])
        with environment(inventory) as env:
            runner = env.unwrapped.simulator.runner
            infos = run_episode(env, lambda block: link.update(cut=block >= 1))
            assert infos[0]["unserved_pairs"] == 0
            assert infos[1]["unserved_pairs"] > 0
            link["cut"] = False
            until_back(runner)
            assert not any(info["unserved_pairs"] for info in run_episode(env))


@contextmanager
def relay(target):
    """A port that passes bytes on to an address, until ``cut`` is set; a new connection passes again."""
    host, _, port = target.rpartition(":")
    link, sockets = {"cut": False}, []
    server = socket.create_server(("127.0.0.1", 0))

    def pump(source, sink):
        with suppress(OSError):
            while data := source.recv(65536):
                while link["cut"]:
                    time.sleep(0.01)
                sink.sendall(data)

    def accept():
        with suppress(OSError):
            while True:
                pair = [server.accept()[0], socket.create_connection((host, int(port)))]
                sockets.extend(pair)
                for ends in (pair, pair[::-1]):
                    threading.Thread(target=pump, args=ends, daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield f"127.0.0.1:{server.getsockname()[1]}", link
    finally:
        link["cut"] = False
        server.shutdown(socket.SHUT_RDWR)
        for one in (server, *sockets):
            one.close()


def test_garbage_does_no_harm(device_processes, tmp_path):
    """Bytes of another protocol, messages that are none, and calls that ask for what is not there."""
    host, _, port = device_processes[0].address.rpartition(":")
    for junk in (b"GET / HTTP/1.1\r\n\r\n", os.urandom(4096), b"\x00" * 100):
        with socket.create_connection((host, int(port)), timeout=10) as connection:
            connection.sendall(junk)
    inventory = write_inventory(tmp_path / "hosts.toml", [device.address for device in device_processes])
    with environment(inventory) as env:
        link = env.unwrapped.simulator.runner.links[0]
        digest, width = link.digest, link.description.hidden_size

        def row(**changes):
            fields = {"data": np.ones(width, dtype="<f4").tobytes(), "dtype": "float32", "shape": (1, width)}
            return TensorMessage(**(fields | changes))

        pair = {"pair_row": [0], "pair_expert": [0], "pair_weight": [1.0]}
        wrong = [
            (os.urandom(64), "INVALID_ARGUMENT"),
            (RunRequest(rows=row(), digest=b"other").SerializeToString(), "FAILED_PRECONDITION"),
            *(
                (RunRequest(digest=digest, **request).SerializeToString(), "INVALID_ARGUMENT")
                for request in (
                    {"rows": row(shape=(2**31, width))},
                    {"rows": row(shape=(1, width + 1))},
                    {"rows": row(data=b"")},
                    {"rows": row(dtype="object")},
                    {"rows": row(data=np.full(width, np.nan, dtype="<f4").tobytes())},
                    {"rows": row(), "block": 99, **pair},
                    {"rows": row(), **(pair | {"pair_expert": [7]})},
                    {"rows": row(), **(pair | {"pair_row": [5]})},
                    {"rows": row(), **(pair | {"pair_weight": []})},
                    {"rows": row(), **(pair | {"pair_weight": [float("inf")]})},
                    {"rows": row(), "not_before_s": 1e12},
                    {"rows": row(), "compute_s": 1e9},
                    {"rows": row(), "reply_filler_bytes": 2**40},
                )
            ),
        ]
        with grpc.insecure_channel(device_processes[0].address) as channel:
            call = channel.unary_unary(f"/{SERVICE}/Run")
            for message, code in wrong:
                with pytest.raises(grpc.RpcError) as refused:
                    call(message, timeout=10)
                assert refused.value.code().name == code
                assert "\n" not in refused.value.details()
        assert not any(info["unserved_pairs"] for info in run_episode(env))


def test_two_base_stations_share_the_devices(device_processes, tmp_path):
    """Their clocks, their texts and their links are their own."""
    addresses = [device.address for device in device_processes]
    paths = [write_inventory(tmp_path / f"{name}.toml", addresses) for name in "ab"]

    def run(path):
        with environment(path) as env:
            return [run_episode(env, seed=seed) for seed in range(2)]

    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(run, paths)
    for one, other in zip(first, second, strict=True):
        assert not any(info["unserved_pairs"] for info in (*one, *other))
        np.testing.assert_allclose(one[-1]["nll"], other[-1]["nll"], rtol=1e-6)


def test_health_is_told_by_the_standard_service(device_processes):
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    with grpc.insecure_channel(device_processes[0].address) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        for name in ("", SERVICE):
            answer = health.Check(health_pb2.HealthCheckRequest(service=name), timeout=10)
            assert answer.status == health_pb2.HealthCheckResponse.SERVING


@pytest.fixture(scope="module")
def stranger(tmp_path_factory):
    """A process that holds "micro" with one matrix changed, behind TLS: its address, and the folder of credentials."""
    pytest.importorskip("cryptography")
    from wdmoe_env.testbed.security import make_certificates

    folder = tmp_path_factory.mktemp("stranger")
    for name in ("ours", "theirs"):
        make_certificates(folder / name, {"d0": "127.0.0.1"})
    model = deepcopy(load_model("micro").model)
    with torch.no_grad():
        model.model.layers[1].mlp.experts.down_proj[4].mul_(1.5)
    model.save_pretrained(folder / "model")
    tls = ("--tls", str(folder / "ours" / "d0"))
    with local_devices([device_arguments(str(folder / "model"), "float32", 1, 0, more=tls)]) as processes:
        yield processes[0].address, folder


def test_certificates_of_another_authority_are_refused(stranger, tmp_path):
    address, folder = stranger
    assert (folder / "ours" / "d0" / "key.pem").stat().st_mode & 0o077 == 0
    for name, tls in (("theirs", str(folder / "theirs" / "station")), ("none", None)):
        inventory = write_inventory(tmp_path / f"{name}.toml", [address], tls=tls)
        with pytest.raises(ConnectionError, match=r"d0 at 127\.0\.0\.1:\d+ is not there"):
            runner_of(str(inventory)).open(load_model("micro", experts="meta"))


def test_other_weights_are_refused(stranger, tmp_path):
    address, folder = stranger
    inventory = write_inventory(tmp_path / "hosts.toml", [address], tls=str(folder / "ours" / "station"))
    with pytest.raises(ValueError, match="d0 holds other weights of expert 4 of block 1"):
        gym.make("wdmoe_env:WDMoE-Testbed-v0", inventory=inventory, num_tokens=8)


def changed(load, scale=1.5):
    """Weights that are not those of the checkpoint, under a digest of their own."""

    def make():
        import hashlib
        from dataclasses import replace

        weights = load()
        with torch.no_grad():
            weights.modules[1].down_proj.mul_(scale)
        digests = list(weights.digests)
        digests[1] = {expert: hashlib.sha256(digest).digest() for expert, digest in digests[1].items()}
        return replace(weights, digests=tuple(digests))

    return make


def micro(device, devices=2):
    return lambda: load_weights("micro", None, "float32", devices, device)


def test_a_device_that_comes_back_with_other_weights_stays_away(tmp_path):
    with device_thread(micro(0)) as first:
        with device_thread(micro(1)) as second:
            port = second.port
            inventory = write_inventory(tmp_path / "hosts.toml", [f"127.0.0.1:{one.port}" for one in (first, second)])
            env = gym.make("wdmoe_env:WDMoE-Testbed-v0", inventory=inventory, num_tokens=8)
            assert not any(info["unserved_pairs"] for info in run_episode(env))
        with device_thread(changed(micro(1)), address=f"127.0.0.1:{port}"):
            infos = run_episode(env)
            assert (
                sum(info["unserved_pairs"] for info in infos) > 0 or not env.unwrapped.simulator.runner.available()[1]
            )
            ends, link = time.monotonic() + 30, env.unwrapped.simulator.runner.links[1]
            while "other weights" not in link.away and time.monotonic() < ends:
                time.sleep(0.05)
            assert link.away == "d1 holds other weights than it should"
        env.close()


def test_an_expert_that_nobody_holds_is_one_sentence(device_processes, tmp_path):
    inventory = write_inventory(tmp_path / "hosts.toml", [device_processes[0].address])
    with pytest.raises(ValueError, match="a device for every expert; none holds expert 4 of block 0"):
        gym.make("wdmoe_env:WDMoE-Testbed-v0", inventory=inventory, num_tokens=8)


def test_a_device_that_is_not_there_is_one_sentence(tmp_path):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
    with device_thread(micro(0)) as one:
        inventory = write_inventory(tmp_path / "hosts.toml", [f"127.0.0.1:{one.port}", f"127.0.0.1:{port}"])
        with pytest.raises(ConnectionError, match=f"d1 at 127.0.0.1:{port} is not there"):
            gym.make("wdmoe_env:WDMoE-Testbed-v0", inventory=inventory, num_tokens=8)


def test_other_types_and_placements_are_one_sentence(tmp_path):
    with threaded_testbed(tmp_path, "micro", 2) as (inventory, _):
        with pytest.raises(ConnectionError, match="expected d0 to hold weights in bfloat16, got float32"):
            gym.make("wdmoe_env:WDMoE-Testbed-v0", inventory=inventory, num_tokens=8, dtype="bfloat16")
        with pytest.raises(ValueError, match="expected d1 to hold expert 0 of block 0, as placed; it does not"):
            gym.make("wdmoe_env:WDMoE-Testbed-v0", inventory=inventory, num_tokens=8, placement=[1, 0] * 4)
        with pytest.raises(ValueError, match="expected num_envs=1 where latency is measured, got 3"):
            gym.make_vec("wdmoe_env:WDMoE-Testbed-v0", num_envs=3, inventory=inventory)
        batch = {"model": "micro", "num_tokens": 8, "devices": {"count": 2}, "runner": f"testbed:{inventory}"}
        env = gym.make_vec("wdmoe_env:WDMoE-v0", num_envs=2, **batch)
        env.reset(seed=0)
        with pytest.raises(ValueError, match="expected one episode at a time where latency is measured, got 2"):
            env.step(env.action_space.sample())
        env.close()


def test_a_message_beyond_the_bound_is_one_sentence(device_processes, tmp_path):
    """The bound is 1 MiB: eight tokens of 65,536 elements at 16 bits are as much by themselves."""
    inventory = write_inventory(tmp_path / "hosts.toml", [device.address for device in device_processes])
    beyond = r"at most 1,048,576 bytes, the bound of d\d, got \d[\d,]*: start it with"
    wide = {"deployment": {"hidden_size": 65_536}}
    with environment(inventory, **wide) as env, pytest.raises(ValueError, match=beyond):
        run_episode(env)
    with environment(inventory) as env:
        assert not any(info["unserved_pairs"] for info in run_episode(env))
    with grpc.insecure_channel(device_processes[0].address) as channel, pytest.raises(grpc.RpcError) as refused:
        channel.unary_unary(f"/{SERVICE}/Run")(bytes(2**20 + 1), timeout=10)
    assert refused.value.code().name == "RESOURCE_EXHAUSTED"


def test_many_blocks_with_a_device_that_comes_and_goes(tmp_path):
    """No pass is lost; ``python -m wdmoe_env.testbed soak`` runs a thousand blocks with processes."""
    runner, served = None, []
    with device_thread(micro(0)) as steady:
        port = 0
        for turn in range(3):
            with device_thread(micro(1), address=f"127.0.0.1:{port}") as other:
                port = other.port
                if runner is None:
                    addresses = [f"127.0.0.1:{one.port}" for one in (steady, other)]
                    env = gym.make(
                        "wdmoe_env:WDMoE-Testbed-v0",
                        inventory=write_inventory(tmp_path / "hosts.toml", addresses),
                        num_tokens=8,
                    )
                    runner = env.unwrapped.simulator.runner
                until_back(runner)
                served.append(run_episode(env, seed=turn))
            served.append(run_episode(env, seed=turn))
        env.close()
    for whole, part in zip(served[::2], served[1::2], strict=True):
        assert not any(info["unserved_pairs"] for info in whole)
        assert (part[-1]["load"][1], whole[-1]["load"][1] > 0) == (0, True)
