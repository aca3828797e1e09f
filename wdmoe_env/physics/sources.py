"""Kinds of channels by name: ``ChannelConfig.source`` to a source of gains."""

from __future__ import annotations

from collections.abc import Callable

from wdmoe_env.config import ChannelConfig, DeviceConfig
from wdmoe_env.named import NamedFactories
from wdmoe_env.physics.gains import GainSource
from wdmoe_env.physics.recorded import RecordedGains
from wdmoe_env.physics.recording_file import read_recording
from wdmoe_env.physics.statistical import StatisticalGains
from wdmoe_env.reading import shown_path

Factory = Callable[[str, ChannelConfig, DeviceConfig, int], GainSource]
"""Argument (what follows the colon, or nothing), radio, devices and number of blocks to a source.

It may be called for one block first, to find mistakes before a model is loaded.
"""


def gain_source(channel: ChannelConfig, devices: DeviceConfig, num_blocks: int) -> GainSource:
    """The source of gains that a radio names.

    Args:
        channel: the radio; ``source`` is ``"KIND"`` or ``"KIND:ARGUMENT"``.
        devices: the mobile devices.
        num_blocks: blocks I of an episode.

    Raises:
        ValueError: no such kind, or an argument that it does not take.
        OSError, ImportError: a file that cannot be read, or a missing extra.
    """
    factory, argument = _SOURCES.find(channel.source)
    return factory(argument, channel, devices, num_blocks)


def register_source(kind: str, factory: Factory | str) -> None:
    """Add a kind of channel, so that ``channel="KIND:ARGUMENT"`` names it; a kind of your own is replaced.

    Register in the module that worker processes import too, such as that of ``gym.make("module:WDMoE-v0")``.

    Args:
        kind: its name, without a colon.
        factory: makes the source, or its entry point ``"module:function"``, imported when first asked for.

    Raises:
        ValueError: a name with a colon, or one that the package keeps for itself.
    """
    _SOURCES.register(kind, factory)


def _statistical(argument: str, channel: ChannelConfig, devices: DeviceConfig, num_blocks: int) -> GainSource:
    return StatisticalGains(channel, devices, num_blocks)


def _trace(argument: str, channel: ChannelConfig, devices: DeviceConfig, num_blocks: int) -> GainSource:
    """Of the radio, powers, noise and bandwidth hold; the rest is in the recording."""
    recording = read_recording(argument)
    if recording.num_devices != devices.count:
        raise ValueError(
            f"{shown_path(argument)}: expected gains of {devices.count} devices, got {recording.num_devices}"
        )
    try:
        return RecordedGains(recording, num_blocks)
    except ValueError as error:
        raise ValueError(f"{shown_path(argument)}: {error}") from None


# Two are entry points since they need torch and an extra, which physics may not import.
_SOURCES: NamedFactories[Factory] = NamedFactories(
    "channel source",
    {
        "statistical": _statistical,
        "sionna": "wdmoe_env.radio.sionna:SionnaGains",
        "trace": _trace,
        "testbed": "wdmoe_env.testbed.rates:RateGains",
    },
    bare=("statistical",),
)
