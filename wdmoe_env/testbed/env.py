"""``WDMoE-Testbed-v0``: the environment of ``WDMoE-v0`` with experts on other hosts and latency by the clock."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from wdmoe_env.config import DeviceConfig, EnvConfig
from wdmoe_env.env import WDMoEEnv
from wdmoe_env.testbed.inventory import Inventory, read_inventory
from wdmoe_env.vector_env import WDMoEVectorEnv

RUNNER = "testbed"


def config_of(inventory: Any = None, config: EnvConfig | Mapping[str, Any] | None = None, **keywords: Any) -> EnvConfig:
    """The configuration of an environment on a testbed: what the inventory says, under what is said beside it.

    Args:
        inventory: path of the inventory; ``None`` where the runner of ``config`` names it.
        config: the configuration or its dict.
        **keywords: fields of ``EnvConfig``.

    Raises:
        ValueError: no inventory, one that cannot be read, or that does not fit the settings.
        OSError: the inventory cannot be read.
        TypeError: an unknown keyword.
    """
    given = EnvConfig.make(config, **keywords)
    if inventory is None and given.runner.partition(":")[0] == RUNNER:
        inventory = given.runner.partition(":")[2]
    if not inventory:
        raise ValueError("expected the path of an inventory, as inventory='hosts.toml', got none")
    hosts = read_inventory(inventory)
    said = set(keywords) | (set(config) if isinstance(config, Mapping) else set())
    whole = isinstance(config, EnvConfig)
    changes = {} if whole else {name: value for name, value in _defaults(hosts, given).items() if name not in said}
    path = hosts.path.absolute()
    made = EnvConfig.make(given, **changes, runner=f"{RUNNER}:{path}")
    if made.devices.count != len(hosts.devices):
        raise ValueError(f"expected {len(hosts.devices)} devices, as in {path.name}, got {made.devices.count}")
    return made


def _defaults(hosts: Inventory, given: EnvConfig) -> dict[str, Any]:
    """What an inventory says of the environment's fields."""
    found: dict[str, Any] = {"model": hosts.model, "dtype": hosts.dtype, "placement": hosts.placement()}
    profiles = tuple(device.profile for device in hosts.devices)
    names = profiles if all(profiles) else given.devices.profiles
    if given.devices == DeviceConfig():
        found["devices"] = DeviceConfig(count=len(hosts.devices), profiles=names)  # type: ignore[arg-type]
    if hosts.links != "paced" and given.channel.source == "statistical":
        source = f"{RUNNER}:{hosts.path.absolute()}"
        found["channel"] = {**{f: getattr(given.channel, f) for f in given.channel.__slots__}, "source": source}
    return {name: value for name, value in found.items() if value is not None}


class WDMoETestbedEnv(WDMoEEnv):
    """``WDMoEEnv`` on a testbed: the experts run on the hosts of an inventory, and latency is measured by the clock.

    Actions, observations, rewards and info are those of ``WDMoEEnv``, with these differences:

    - ``block_latency_ms``, ``device_latency_ms``, ``latency_ms`` and the rewards that are made of them are measured:
      the same seed gives the same texts, channels and outputs, and other latencies. ``info["simulated_latency_ms"]``
      is what the simulator says of the same block; ``vanilla_latency_ms`` is the simulator's.
    - A pair that its device did not serve in time counts as not chosen: ``selection``, ``load`` and the weights are of
      what came, and ``info["unserved_pairs"]`` counts the rest.

    Args:
        inventory: path of the inventory, see ``wdmoe_env.testbed.inventory``. It also says the model, the type of its
            weights, the devices and their profiles, unless a keyword does.
        config: the configuration or its dict.
        render_mode: as of ``WDMoEEnv``.
        **keywords: fields of ``EnvConfig``.

    Raises:
        ValueError, TypeError: a setting is wrong, or the devices do not hold what they should.
        ConnectionError: a device is not there.
    """

    def __init__(
        self,
        inventory: Any = None,
        config: EnvConfig | Mapping[str, Any] | None = None,
        render_mode: str | None = None,
        **keywords: Any,
    ) -> None:
        super().__init__(config_of(inventory, config, **keywords), render_mode)


class WDMoETestbedVectorEnv(WDMoEVectorEnv):
    """``WDMoETestbedEnv`` in Gymnasium's batched protocol, of one environment: the clock measures one at a time.

    Args:
        num_envs: 1.
        inventory: as of ``WDMoETestbedEnv``.
        config: the configuration or its dict.
        **keywords: those of ``WDMoEVectorEnv``.

    Raises:
        ValueError: more than one environment; ``vectorization_mode="sync"`` makes several, which take turns.
    """

    def __init__(
        self,
        num_envs: int = 1,
        inventory: Any = None,
        config: EnvConfig | Mapping[str, Any] | None = None,
        **keywords: Any,
    ) -> None:
        self._cohorts = []
        if num_envs != 1:
            raise ValueError(f"expected num_envs=1 where latency is measured, got {num_envs}")
        own = {"autoreset_mode", "render_mode", "max_episode_steps"}
        of_config = {name: value for name, value in keywords.items() if name not in own}
        made = config_of(inventory, config, **of_config)
        super().__init__(1, config=made, **{name: keywords[name] for name in own & keywords.keys()})
