"""Settings: unknown keywords, ranges, nesting, and the round trip through JSON."""

from __future__ import annotations

import dataclasses
import json

import pytest

from wdmoe_env.config import ChannelConfig, DeploymentConfig, DeviceConfig, EnvConfig


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
        ({"split": "validation"}, "split must be one of train, test, suite, got 'validation'"),
        ({"decision": "joined"}, "did you mean 'joint'"),
        ({"num_tokens": 0}, "num_tokens must be a whole number of at least 1, got 0"),
        ({"num_tokens": True}, "num_tokens must be a whole number"),
        ({"num_tokens": 8.0}, "num_tokens must be a whole number"),
        ({"min_share": 0.0}, "min_share must be a finite number above 0 and at most 0.125, got 0.0"),
        ({"min_share": 0.2}, "at most 0.125"),
        ({"quality_weight": float("nan")}, "quality_weight must be a finite number"),
        ({"channel": {"carrier_hz": -1.0}}, "carrier_hz must be a finite number above 0"),
        ({"channel": {"bandwidth_hz": float("inf")}}, "bandwidth_hz must be a finite number"),
        ({"channel": {"path_loss": "umi"}}, "path_loss must be one of umi_los, umi_nlos"),
        ({"channel": {"fading": "ricean"}}, "did you mean 'rician'"),
        ({"channel": {"nakagami_m": 0.75}}, "nakagami_m must be a multiple of 0.5, got 0.75"),
        ({"channel": {"nakagami_m": 0.0}}, "nakagami_m must be a finite number at least 0.5"),
        ({"channel": {"shadowing_std_db": -1.0}}, "shadowing_std_db must be a finite number at least 0"),
        ({"channel": {"block_interval_s": -0.1}}, "block_interval_s must be a finite number at least 0"),
        ({"devices": {"count": 0}}, "count must be a whole number of at least 1"),
        ({"devices": {"profiles": []}}, "profiles must be a tuple of device profile names"),
        ({"devices": {"utilization": 1.5}}, "utilization must be a finite number above 0 and at most 1"),
        ({"devices": {"distance_range_m": (200.0, 20.0)}}, "distance_range_m must be"),
        ({"devices": {"distance_range_m": (0.0, 20.0)}}, "distance_range_m must be"),
        ({"devices": {"distances_m": (10.0, 20.0)}}, "distances_m must be a tuple of 8 numbers"),
        ({"devices": {"count": 2, "distances_m": (10.0, -20.0)}}, "distances_m must be a finite number above 0"),
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


def test_configs_are_frozen():
    for config, name in ((EnvConfig(), "model"), (ChannelConfig(), "fading"), (DeviceConfig(), "count")):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(config, name, None)


def test_deployment_sizes_are_mixtrals():
    deployment = DeploymentConfig()
    assert deployment.payload_bits == 65_536
    # 6 x 4096 x 14336 for three matrices, multiply and add, and 5 x 14336 for the activation.
    assert deployment.expert_flops == 352_321_536 + 71_680
