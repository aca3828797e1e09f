"""``placement="auto"``: the routing of windows of the train split, typical links, and the search over placements."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch

from wdmoe_env.config import ChannelConfig, DeploymentConfig, DeviceConfig, Dtype, EnvConfig
from wdmoe_env.deploy.fit import experts_that_fit, usable_memory_bytes
from wdmoe_env.deploy.problem import PlacementProblem, Table
from wdmoe_env.deploy.search import exchange, greedy
from wdmoe_env.episodes import load_episodes, tensors_of
from wdmoe_env.moe.hook import BlockInput
from wdmoe_env.moe.split import SplitModel, neutral_modes
from wdmoe_env.physics.channel import Channel
from wdmoe_env.physics.compute import device_times_s
from wdmoe_env.physics.latency import Bool, Float
from wdmoe_env.text.windows import TokenWindows

WINDOWS = 32
"""Of the train split, evenly over it: what ``placement="auto"`` is fitted to."""

CHANNELS = 256
"""Episodes whose links are averaged to typical ones."""


def measured_routing(model: SplitModel, windows: TokenWindows) -> Bool:
    """The model's own choice (I, S, J, E) on S windows, none at padding.

    Args:
        model: the split model.
        windows: S windows of J tokens.
    """
    token_ids, mask, _ = tensors_of(windows)
    found: list[Bool] = []

    def look(at: BlockInput) -> None:
        found.append(at.routed.numpy(force=True).reshape(*windows.mask.shape, -1) & windows.mask[..., None])

    with neutral_modes(model.device.type), torch.no_grad():
        model.logits_under(look, token_ids, mask)
    return np.stack(found)


def typical_snr(channel: ChannelConfig, devices: DeviceConfig) -> Float:
    """Ratio gamma / B (2, U), downlink then uplink: the mean in dB over episodes of the generators 0, 1, 2, ...

    Devices that an episode places at random are alike in the long run, and get the same.

    Args:
        channel: the radio.
        devices: the mobile devices.

    Raises:
        ValueError, OSError: what the source of gains raises.
    """
    generators = [np.random.default_rng(seed) for seed in range(CHANNELS)]
    logs = np.log(Channel(channel, devices, 1).sample(generators).full_band_snr).mean(axis=(0, 1))
    if channel.source == "statistical" and devices.distances_m is None:
        logs = np.repeat(logs.mean(axis=-1, keepdims=True), devices.count, axis=-1)
    return np.exp(logs)


def spread_windows(windows: TokenWindows, count: int) -> TokenWindows:
    """``count`` windows at even steps, or all where there are fewer."""
    index = np.linspace(0, len(windows) - 1, min(count, len(windows))).round().astype(np.int64)
    return windows.rows(index)


def placement_problem(
    config: EnvConfig, split: str = "train", windows: int = WINDOWS, memory_bytes: Float | None = None
) -> PlacementProblem:
    """The problem of where a configuration's experts should be.

    Args:
        config: its placement and split are not read.
        split: whose windows tell the routing.
        windows: how many of them.
        memory_bytes: (U,) what experts may fill of each device's memory; by default that of its profile where weights
            are read (``compute_model="roofline"``), and any amount elsewhere.

    Raises:
        ValueError: there is not room for all experts; or what the settings raise.
    """
    source = load_episodes(config.model, config.num_tokens, split, config.device, config.dtype)
    model, deployment, devices = source.model, config.deployment, config.devices
    if not isinstance(deployment, DeploymentConfig):
        deployment = DeploymentConfig(model.hidden_size, model.intermediate_size)
    compute_s, weights_s = device_times_s(devices, deployment)
    if memory_bytes is None and weights_s is not None:
        memory_bytes = usable_memory_bytes(devices)
    capacity = np.full(devices.count, model.num_blocks * model.num_experts)
    if memory_bytes is not None:
        capacity = experts_that_fit(memory_bytes, deployment, model.num_blocks)
    return PlacementProblem(
        routed=measured_routing(model, spread_windows(source.windows, windows)),
        full_band_snr=typical_snr(config.channel, devices),
        payload_s=deployment.payload_bits / config.channel.bandwidth_hz,
        compute_s=compute_s,
        weights_s=weights_s,
        capacity=capacity,
    )


@lru_cache(maxsize=16)
def auto_placement(
    model: str,
    num_tokens: int,
    device: str,
    dtype: Dtype,
    channel: ChannelConfig,
    devices: DeviceConfig,
    deployment: DeploymentConfig,
) -> tuple[tuple[int, ...], ...]:
    """The placement of ``placement="auto"``, I rows of E; worked out once in a process.

    Args:
        model: its name or path.
        num_tokens: J.
        device: torch device of the model.
        dtype: type of its weights.
        channel: the radio.
        devices: the mobile devices.
        deployment: widths and bits.

    Raises:
        ValueError: there is not room for all experts.
    """
    config = EnvConfig(
        model=model, num_tokens=num_tokens, device=device, dtype=dtype, channel=channel, devices=devices,
        deployment=deployment, min_share=1e-12,
    )  # fmt: skip
    problem = placement_problem(config)
    return as_rows(exchange(problem, greedy(problem)))


def as_rows(table: Table) -> tuple[tuple[int, ...], ...]:
    """A table (I, E) as ``EnvConfig.placement`` holds it."""
    return tuple(tuple(int(device) for device in row) for row in table)
