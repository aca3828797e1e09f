"""Settings: unknown keywords, ranges, nesting, and the round trip through JSON."""

from __future__ import annotations

import dataclasses
import json
import math
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from wdmoe_env.config import CHANNEL_RANGES, DEVICE_RANGES, ChannelConfig, DeploymentConfig, DeviceConfig, EnvConfig


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"num_token": 8}, "unexpected keyword argument 'num_token'; the nearest known are num_tokens"),
        (
            {"channel": {"pathloss": "umi_los"}},
            r"unexpected keyword argument 'channel\.pathloss'; the nearest known are path_loss",
        ),
        ({"devices": {"cont": 4}}, r"unexpected keyword argument 'devices\.cont'; the nearest known are count"),
    ],
)
def test_unknown_keyword_names_the_nearest(keywords, message):
    with pytest.raises(TypeError, match=message):
        EnvConfig.make(**keywords)


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"split": "validation"}, "split must be one of train, test, shifted, suite, got 'validation'"),
        ({"decision": "joined"}, "did you mean 'joint'"),
        ({"num_tokens": 0}, "num_tokens must be a whole number of at least 1, got 0"),
        ({"num_tokens": True}, "num_tokens must be a whole number"),
        ({"num_tokens": 8.0}, "num_tokens must be a whole number"),
        ({"min_share": 0.0}, "min_share must be a finite number at least 1e-12 and at most 0.125, got 0.0"),
        ({"min_share": 0.2}, "at most 0.125"),
        ({"quality_weight": float("nan")}, "quality_weight must be a finite number"),
        ({"channel": {"carrier_hz": -1.0}}, r"carrier_hz must be a finite number at least 1e\+06 and at most 3e\+12"),
        ({"channel": {"bandwidth_hz": float("inf")}}, "bandwidth_hz must be a finite number"),
        ({"channel": {"path_loss": "umi"}}, "path_loss must be one of umi_los, umi_nlos"),
        ({"channel": {"fading": "ricean"}}, "did you mean 'rician'"),
        ({"channel": {"nakagami_m": 0.75}}, "nakagami_m must be a multiple of 0.5, got 0.75"),
        ({"channel": {"nakagami_m": 0.0}}, "nakagami_m must be a finite number at least 0.5"),
        ({"channel": {"shadowing_std_db": -1.0}}, "shadowing_std_db must be a finite number at least 0"),
        ({"channel": {"block_interval_s": -0.1}}, "block_interval_s must be a finite number at least 0"),
        ({"devices": {"count": 0}}, "count must be a whole number of at least 1"),
        ({"devices": {"profiles": []}}, "profiles must be a tuple of device profile names"),
        ({"devices": {"utilization": 1.5}}, "utilization must be a finite number at least 1e-06 and at most 1"),
        ({"devices": {"memory_efficiency": 0.0}}, "memory_efficiency must be a finite number at least 1e-06"),
        ({"devices": {"compute_model": "roof"}}, "compute_model must be one of flops, roofline, got 'roof'"),
        ({"devices": "board"}, "devices must be one of paper, boards, got 'board'; did you mean 'boards'"),
        ({"deployment": {"weight_bits": 0}}, "weight_bits must be a finite number at least 0.5 and at most 64, got 0"),
        ({"devices": {"distance_range_m": (200.0, 20.0)}}, "distance_range_m must be"),
        ({"devices": {"distance_range_m": (0.0, 20.0)}}, "distance_range_m must be"),
        ({"devices": {"distances_m": (10.0, 20.0)}}, "distances_m must be a tuple of 8 numbers"),
        ({"devices": {"count": 2, "distances_m": (10.0, -20.0)}}, "distances_m must be a finite number at least 0.001"),
        ({"devices": {"mobility_memory": 1.01}}, "mobility_memory must be a finite number at least 0 and at most 1"),
        ({"deployment": {"hidden_size": 0}}, "hidden_size must be a whole number of at least 1"),
    ],
)
def test_a_value_out_of_range_is_one_sentence(keywords, message):
    with pytest.raises(ValueError, match=message):
        EnvConfig.make(**keywords)


@pytest.mark.parametrize(
    "keywords",
    [{"channel": 3}, {"devices": None}, {"deployment": "mixtral"}, {"model": object()}],
)
def test_a_value_of_the_wrong_kind_is_a_type_error(keywords):
    with pytest.raises(TypeError, match=rf"{next(iter(keywords))} must be a"):
        EnvConfig.make(**keywords)


def test_config_may_be_a_dataclass_a_dict_or_keywords():
    keywords = EnvConfig.make(num_tokens=16, channel={"fading": "none"})
    assert keywords == EnvConfig(num_tokens=16, channel=ChannelConfig(fading="none"))
    assert EnvConfig.make(keywords) == keywords
    assert EnvConfig.make(keywords.to_dict()) == keywords
    assert EnvConfig.make(keywords, num_tokens=4) == dataclasses.replace(keywords, num_tokens=4)
    assert EnvConfig.make({"num_tokens": 16}, channel=ChannelConfig(fading="none")) == keywords
    with pytest.raises(TypeError, match="config must be an EnvConfig or its dict, got int"):
        EnvConfig.make(3)


@pytest.mark.parametrize(
    "config",
    [
        EnvConfig(),
        EnvConfig(
            decision="selection",
            placement=((0, 1), (1, 0)),
            channel=ChannelConfig(fading="nakagami", nakagami_m=1.5, shadowing_std_db=3.0),
            devices=DeviceConfig(count=2, profiles=("jetson-tx2",), distances_m=(30.0, 60.0)),
            deployment="model",
        ),
    ],
)
def test_round_trip_through_json_hash_included(config):
    again = EnvConfig.make(json.loads(json.dumps(config.to_dict())))
    assert again == config
    assert hash(again) == hash(config)
    assert isinstance(again.channel, ChannelConfig)


def test_named_sets_of_devices_go_through_a_dict_and_json():
    for name, model in (("paper", "flops"), ("boards", "roofline")):
        config = EnvConfig.make(devices=name)
        assert config.devices == DeviceConfig(compute_model=model)
        assert EnvConfig.make(json.loads(json.dumps(config.to_dict()))) == config
    assert EnvConfig.make(devices="paper") == EnvConfig()


def test_a_config_from_before_the_roofline_loads():
    old = EnvConfig().to_dict()
    later = {"devices": ("compute_model", "memory_efficiency"), "deployment": ("weight_bits", "num_blocks")}
    for part, names in later.items():
        for name in names:
            del old[part][name]
    assert EnvConfig.make(old) == EnvConfig()


def test_configs_are_frozen():
    for config, name in ((EnvConfig(), "model"), (ChannelConfig(), "fading"), (DeviceConfig(), "count")):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(config, name, None)


def test_deployment_sizes_are_mixtrals():
    deployment = DeploymentConfig()
    assert deployment.payload_bits == 65_536
    # 6 x 4096 x 14336 for three matrices, multiply and add, and 5 x 14336 for the activation.
    assert deployment.expert_flops == 352_321_536 + 71_680
    assert deployment.expert_weight_bytes == 352_321_536
    assert DeploymentConfig(weight_bits=4.5).expert_weight_bytes == 352_321_536 * 4.5 / 16


def one_line(keywords, error, message):
    """The error of a configuration, which is one sentence."""
    with pytest.raises(error, match=message) as caught:
        EnvConfig.make(**keywords)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


# What people hand over, and what Python's own would be.
ORDINARY = [
    ({"num_tokens": np.int64(8)}, {"num_tokens": 8}),
    ({"num_tokens": np.uint8(8)}, {"num_tokens": 8}),
    ({"num_tokens": np.array(8)}, {"num_tokens": 8}),
    ({"quality_weight": np.float32(0.5)}, {"quality_weight": 0.5}),
    ({"min_share": np.float64(0.01)}, {"min_share": 0.01}),
    ({"observe_hidden_states": np.bool_(True)}, {"observe_hidden_states": True}),
    ({"model": Path("models/mine")}, {"model": "models/mine"}),
    ({"model": np.str_("micro")}, {"model": "micro"}),
    ({"split": Path("items.jsonl")}, {"split": "items.jsonl"}),
    ({"decision": np.str_("selection")}, {"decision": "selection"}),
    ({"channel": np.str_("trace:a.csv")}, {"channel": "trace:a.csv"}),
    ({"placement": np.arange(8)}, {"placement": (0, 1, 2, 3, 4, 5, 6, 7)}),
    ({"placement": list(range(8))}, {"placement": (0, 1, 2, 3, 4, 5, 6, 7)}),
    ({"placement": range(8)}, {"placement": (0, 1, 2, 3, 4, 5, 6, 7)}),
    ({"placement": np.array([[0, 1], [1, 0]], dtype=np.int8)}, {"placement": ((0, 1), (1, 0))}),
    ({"placement": [np.array([0, 1]), (1, np.int32(0))]}, {"placement": ((0, 1), (1, 0))}),
    ({"channel": {"rician_k_db": np.float32(3)}}, {"channel": {"rician_k_db": 3.0}}),
    ({"channel": {"nakagami_m": np.int16(2)}}, {"channel": {"nakagami_m": 2}}),
    ({"channel": {"shadowing_std_db": np.array(4.0)}}, {"channel": {"shadowing_std_db": 4.0}}),
    ({"channel": {"bandwidth_hz": np.longdouble(2e7)}}, {"channel": {"bandwidth_hz": 2e7}}),
    ({"channel": {"fading": np.array("none")}}, {"channel": {"fading": "none"}}),
    ({"devices": {"distances_m": np.linspace(20, 90, 8)}}, {"devices": {"distances_m": tuple(range(20, 91, 10))}}),
    ({"devices": {"distances_m": [np.float32(20)] * 8}}, {"devices": {"distances_m": (20.0,) * 8}}),
    ({"devices": {"distance_range_m": np.array([5, 50])}}, {"devices": {"distance_range_m": (5, 50)}}),
    ({"devices": {"count": np.int32(3)}}, {"devices": {"count": 3}}),
    (
        {"devices": {"profiles": np.array(["jetson-tx2", "jetson-nano"])}},
        {"devices": {"profiles": ["jetson-tx2", "jetson-nano"]}},
    ),
    ({"deployment": {"hidden_size": np.uint16(64)}}, {"deployment": {"hidden_size": 64}}),
]


def plain_all_through(value):
    """Whether a value is made of Python's own numbers, strings and tuples alone."""
    if isinstance(value, dict):
        return all(map(plain_all_through, value.values()))
    if isinstance(value, tuple):
        return type(value) is tuple and all(map(plain_all_through, value))
    return value is None or type(value) in (bool, int, float, str)


@pytest.mark.parametrize(("given", "own"), ORDINARY)
def test_numbers_choices_and_tuples_of_any_kind_become_pythons_own(given, own):
    config, expected = EnvConfig.make(**given), EnvConfig.make(**own)
    assert config == expected
    assert hash(config) == hash(expected)
    assert plain_all_through(config.to_dict())
    assert EnvConfig.make(json.loads(json.dumps(config.to_dict()))) == config


def test_a_dataclass_alone_is_plain_too():
    assert DeviceConfig(count=2, distances_m=[30, np.float32(60)]) == DeviceConfig(count=2, distances_m=(30, 60.0))
    assert plain_all_through(dataclasses.asdict(ChannelConfig(carrier_hz=np.float64(2e9), fading=np.str_("none"))))


@pytest.mark.parametrize(
    ("keywords", "error", "message"),
    [
        ({"num_tokens": np.float64(8)}, ValueError, "num_tokens must be a whole number"),
        ({"num_tokens": np.bool_(True)}, ValueError, "num_tokens must be a whole number"),
        ({"num_tokens": np.array([8])}, ValueError, r"num_tokens must be a whole number .* got array\(\[8\]\)"),
        ({"num_tokens": 8 + 0j}, ValueError, "num_tokens must be a whole number"),
        ({"quality_weight": np.complex64(1)}, ValueError, "quality_weight must be a finite number"),
        ({"quality_weight": np.ma.masked}, ValueError, "quality_weight must be a finite number.* got masked"),
        ({"quality_weight": np.array(1.0, dtype=object)}, ValueError, "quality_weight must be a finite number"),
        ({"quality_weight": Fraction(1, 2)}, ValueError, "quality_weight must be a finite number"),
        ({"quality_weight": 10**400}, ValueError, "quality_weight must be a finite number"),
        ({"quality_weight": np.datetime64("2026-01-01")}, ValueError, "quality_weight must be a finite number"),
        ({"quality_weight": np.full((40, 40), 0.5)}, ValueError, "quality_weight must be a finite number"),
        ({"observe_hidden_states": np.int64(1)}, TypeError, "observe_hidden_states must be a bool, got 1"),
        ({"decision": np.array(["joint"])}, ValueError, r"decision must be one of joint, .* got array\(\['joint'\]"),
        ({"decision": None}, ValueError, "decision must be one of joint, selection, bandwidth, got None"),
        ({"dtype": np.array(["float32"] * 3)}, ValueError, "dtype must be one of float32"),
        ({"split": np.array(["train"])}, ValueError, "split must be one of train"),
        ({"deployment": np.array(["model"])}, TypeError, "deployment must be a DeploymentConfig"),
        ({"channel": {1: 2}}, TypeError, "channel must have names of fields as its keys, got 1"),
        ({"devices": {None: 2}}, TypeError, "devices must have names of fields as its keys, got None"),
        ({"config": {("a", 1): 2}}, TypeError, "config must have names of fields as its keys"),
        ({"channel": {"fading": ["none"]}}, ValueError, "fading must be one of rayleigh"),
        ({"placement": ((0, 1), (1,))}, ValueError, "placement must have rows of one length, got rows of 1 to 2"),
        ({"placement": [[0, 1], 1]}, ValueError, "placement must be a tuple of device numbers"),
        ({"placement": np.zeros(8)}, ValueError, "placement must be a tuple of device numbers"),
        ({"placement": np.zeros((2, 2, 2), dtype=int)}, ValueError, "placement must be a tuple of device numbers"),
        ({"placement": np.ma.array([0, 1], mask=[0, 1])}, ValueError, "placement must be .* got masked_array"),
        ({"placement": np.array([True, False])}, ValueError, "placement must be a tuple of device numbers"),
        ({"placement": "01234567"}, ValueError, "placement must be a tuple of device numbers"),
        ({"devices": {"distances_m": np.ma.array([9.0] * 8, mask=[1] * 8)}}, ValueError, "distances_m .* masked_array"),
        ({"devices": {"distances_m": np.full(8, 9j)}}, ValueError, "distances_m must be a finite number"),
        ({"devices": {"distances_m": np.full((8, 1), 9.0)}}, ValueError, "distances_m must be a finite number"),
        ({"devices": {"distances_m": {20.0, 30.0}}}, ValueError, "distances_m must be a tuple of 8 numbers"),
        ({"devices": {"distance_range_m": 20.0}}, ValueError, "distance_range_m must be a tuple of 2 numbers"),
        ({"devices": {"profiles": "jetson-tx2"}}, ValueError, "profiles must be a tuple of device profile names"),
        ({"devices": {"profiles": np.arange(3)}}, ValueError, "profiles must be a tuple of device profile names"),
        ({"devices": {"count": 10**5000}}, ValueError, "count must be a whole number of at most 1000000"),
    ],
)
def test_what_is_no_number_choice_or_tuple_is_refused_by_name(keywords, error, message):
    one_line(keywords, error, message)


ENV_RANGES = {"quality_weight": (0.0, 1e12), "min_share": (1e-12, 1 / 8)}
RANGES = [
    *(("channel", name, *ends) for name, ends in CHANNEL_RANGES.items()),
    *(("devices", name, *ends) for name, ends in DEVICE_RANGES.items()),
    *(("devices", name, 1e-3, 1e9) for name in ("distance_range_m", "distances_m")),
    *((None, name, *ends) for name, ends in ENV_RANGES.items()),
    ("devices", "count", 1, 10**6),
    ("deployment", "hidden_size", 1, 2**20),
    ("deployment", "intermediate_size", 1, 2**24),
    ("deployment", "weight_bits", 0.5, 64.0),
    ("deployment", "num_blocks", 1, 10_000),
]


@pytest.mark.parametrize(("part", "name", "least", "most"), RANGES)
def test_a_range_holds_its_ends_and_nothing_beyond(part, name, least, most):
    def keywords(value):
        value = (value, value) if name.startswith("distance") else value
        return {part: {name: value, **({"count": 2} if name == "distances_m" else {})}} if part else {name: value}

    for value in (least, most):
        if name != "count" or value == 1:  # more devices leave less than the least share to each
            EnvConfig.make(**keywords(value))
    whole = isinstance(most, int)
    below, above = (least - 1, most + 1) if whole else (math.nextafter(least, -1e9), math.nextafter(most, math.inf))
    for value in (below, above, math.inf, -math.inf, math.nan, 5e-324 if least > 0 else -1e308, 1e308):
        one_line(keywords(value), ValueError, f"{name} must be a")
