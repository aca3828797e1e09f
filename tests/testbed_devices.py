"""Devices for tests: servers on threads of this process, or processes of their own; all on loopback."""

from __future__ import annotations

import asyncio
import threading
import time
from contextlib import ExitStack, contextmanager
from queue import Queue

import gymnasium as gym
import numpy as np

from wdmoe_env.testbed.device import DeviceServer, DeviceSettings
from wdmoe_env.testbed.inventory import inventory_text
from wdmoe_env.testbed.weights import load_weights


@contextmanager
def device_thread(load, **settings):
    """A device on a thread: yields its server, ready."""
    server, started = DeviceServer(DeviceSettings(**settings), load), Queue()

    def serve():
        try:
            asyncio.run(server.serve(started.put))
        except BaseException as error:
            started.put(error)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    found = started.get(timeout=60)
    if isinstance(found, BaseException):
        raise found
    try:
        yield server
    finally:
        server.end()
        thread.join(timeout=20)
        assert not thread.is_alive()


@contextmanager
def threaded_testbed(folder, model, devices, dtype="float32", **settings):
    """A testbed of devices on threads: yields the path of its inventory, and the servers."""
    with ExitStack() as stack:
        servers = [
            stack.enter_context(
                device_thread(lambda number=number: load_weights(str(model), None, dtype, devices, number))
            )
            for number in range(devices)
        ]
        hosts = [{"name": f"d{number}", "address": f"127.0.0.1:{one.port}"} for number, one in enumerate(servers)]
        path = folder / f"hosts-{time.monotonic_ns()}.toml"
        path.write_text(inventory_text({"model": str(model), "dtype": dtype, **settings}, hosts))
        yield path, servers


def write_inventory(path, addresses, **settings):
    """An inventory of devices that hold "micro"."""
    hosts = [{"name": f"d{number}", "address": address} for number, address in enumerate(addresses)]
    for name in ("downlink_trace", "uplink_trace"):
        for host, trace in zip(hosts, settings.pop(name, [None] * len(hosts)), strict=True):
            host[name] = trace
    path.write_text(inventory_text({"model": "micro", "deadline_ms": 300.0, **settings}, hosts))
    return path


@contextmanager
def environment(inventory, **settings):
    """The environment of windows of 8 tokens on an inventory."""
    env = gym.make("wdmoe_env:WDMoE-Testbed-v0", inventory=inventory, num_tokens=8, **settings)
    try:
        yield env
    finally:
        env.close()


def run_episode(env, before_block=lambda block: None, seed=0):
    """Infos of an episode of two devices under the own routing and equal shares."""
    observation, _ = env.reset(seed=seed)
    infos, ended = [], False
    while not ended:
        before_block(len(infos))
        selection = observation["routed"] > 0
        action = env.unwrapped.encode_action(selection, np.full(2, 0.5))
        observation, _, ended, _, info = env.step(action)
        infos.append(info)
    assert np.isfinite(infos[-1]["nll"])
    return infos
