"""The command line of `wdmoe_env.moe.memory`: its counts are bounded, and its mistakes are one sentence."""

from __future__ import annotations

import pytest

from wdmoe_env.moe.memory import MOST_DEVICES, main, memory_of


@pytest.mark.parametrize("devices", [0, -1, MOST_DEVICES + 1, 100_000_000, 10**30])
def test_a_number_of_devices_that_cannot_be_is_one_sentence(capsys, devices):
    assert main(["mixtral-8x7b", "--devices", str(devices)]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("python -m wdmoe_env.moe.memory: devices must be ")
    assert str(devices) in captured.err
    assert captured.err.count("\n") == 1


def test_a_model_that_is_none_is_one_sentence(capsys, tmp_path):
    assert main([str(tmp_path)]) == 2
    captured = capsys.readouterr()
    assert f"expected a transformers model in {tmp_path}" in captured.err
    assert captured.err.count("\n") == 1


def test_the_most_devices_hold_what_few_do():
    few, many = (memory_of("mixtral-8x7b", devices=devices) for devices in (8, 4096))
    assert sum(many.devices) == sum(few.devices)
    assert len(many.devices) == 4096
