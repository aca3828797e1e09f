"""The calls of a device: what they count as and when, one by one and in a stream."""

from __future__ import annotations

import asyncio
import time

import numpy as np
import pytest
import torch
from testbed_devices import device_thread, write_inventory

from wdmoe_env.moe.runner import run_expert
from wdmoe_env.testbed.inventory import read_inventory
from wdmoe_env.testbed.link import DeviceError, DeviceLink
from wdmoe_env.testbed.weights import load_weights
from wdmoe_env.testbed.wire import SERVICE, RunReply, RunRequest, grpc, read_rows, write_rows

LONG_S = 0.2
"""Seconds of computing that no call of these tests needs."""


@pytest.fixture(scope="module")
def device():
    """A device of the first four experts of "micro"."""
    with device_thread(lambda: load_weights("micro", None, "float32", 2, 0)) as server:
        yield server


@pytest.fixture
def channel(device):
    with grpc.insecure_channel(f"127.0.0.1:{device.port}") as channel:
        yield channel


def request(device, number=0, **changes):
    """Two rows for expert 1 of block 0, at half their weight."""
    fields = {"request": number, "rows": write_rows(rows_of(device)), "digest": device.weights.digest}
    pairs = {"pair_row": [0, 1], "pair_expert": [1, 1], "pair_weight": [0.5, 0.5]}
    return RunRequest(**(fields | pairs | changes)).SerializeToString()


def rows_of(device):
    return torch.randn(2, device.weights.hidden_size, generator=torch.Generator().manual_seed(3))


def test_stretched_computing_counts_from_its_rows_on(device, channel):
    """It is not put off by what kept the program waiting, but by the numbers of a call at the same time."""
    run = channel.unary_unary(f"/{SERVICE}/Run", response_deserializer=RunReply.FromString)
    moment_s = time.monotonic() + 0.5
    calls = [run.future(request(device, not_before_s=moment_s, compute_s=LONG_S), timeout=10) for _ in range(2)]
    first, second = sorted((call.result() for call in calls), key=lambda answer: answer.began_s)
    assert first.ready_s == first.began_s == second.ready_s == moment_s
    assert second.began_s == moment_s + first.compute_s
    for answer in (first, second):
        assert 0.0 < answer.compute_s < LONG_S
        assert answer.ended_s == answer.began_s + LONG_S <= answer.sent_s  # no answer leaves before its moment
    late = run(request(device, not_before_s=moment_s, compute_s=LONG_S / 2), timeout=10)
    assert late.ready_s > moment_s  # its rows were not there then


def test_computing_that_is_longer_than_it_was_to_be_shows(device, channel):
    run = channel.unary_unary(f"/{SERVICE}/Run", response_deserializer=RunReply.FromString)
    for compute_s in (0.0, 1e-9):
        answer = run(request(device, compute_s=compute_s), timeout=10)
        assert answer.ended_s - answer.began_s >= answer.compute_s - 1e-9 > 0


def test_a_stream_answers_call_after_call_as_calls_are_answered(device, channel):
    run = channel.unary_unary(f"/{SERVICE}/Run", response_deserializer=RunReply.FromString)
    run_many = channel.stream_stream(f"/{SERVICE}/RunMany", response_deserializer=RunReply.FromString)
    answers = list(run_many(iter([request(device, number) for number in (5, 6, 7)]), timeout=10))
    assert [answer.request for answer in answers] == [5, 6, 7]
    alone = run(request(device), timeout=10)
    width = device.weights.hidden_size
    expected = 0.5 * run_expert(device.weights.modules[0], 1, rows_of(device)).detach()
    for answer in (*answers, alone):
        np.testing.assert_allclose(read_rows(answer.rows, width, torch.float32), expected, atol=1e-6)


def test_what_a_call_is_refused_for_ends_a_stream(device, channel):
    run_many = channel.stream_stream(f"/{SERVICE}/RunMany")
    for wrong, code in (
        (b"\xff" * 9, "INVALID_ARGUMENT"),
        (request(device, digest=b"other"), "FAILED_PRECONDITION"),
        (request(device, pair_expert=[1, 7]), "INVALID_ARGUMENT"),
    ):
        answers = run_many(iter([request(device), wrong, request(device)]), timeout=10)
        assert next(answers)
        with pytest.raises(grpc.RpcError) as refused:
            next(answers)
        assert refused.value.code().name == code
        assert "\n" not in refused.value.details()


def test_a_link_keeps_its_stream_until_it_fails(tmp_path):
    """Calls at once are answered too, a late answer is nobody's, and a device that ends does not wait for streams."""

    async def calls(device, end):
        inventory = read_inventory(write_inventory(tmp_path / "hosts.toml", [f"127.0.0.1:{device.port}"]))
        link = DeviceLink(inventory.devices[0], inventory)
        link.connect()
        try:
            both = await asyncio.gather(*(link.run(request(device, number), 10.0) for number in (1, 2)))
            assert [RunReply.FromString(answer).request for answer in both] == [1, 2]
            with pytest.raises(DeviceError, match="d0 did not answer in time") as late:
                await link.run(request(device, 3, compute_s=LONG_S), 0.01)
            assert late.value.outcome == "late"
            assert RunReply.FromString(await link.run(request(device, 4), 10.0)).request == 4
            end()
            with pytest.raises(DeviceError) as gone:
                await link.run(request(device, 5), 10.0)
            assert gone.value.outcome == "gone"
        finally:
            await link.close()

    with device_thread(lambda: load_weights("micro", None, "float32", 2, 0)) as server:
        asyncio.run(calls(server, server.end))
