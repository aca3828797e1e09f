"""The source that replays recorded gains: ``channel="trace:gains.csv"``."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from wdmoe_env.config import ChannelConfig, DeviceConfig
from wdmoe_env.physics.gains import Gains
from wdmoe_env.physics.recording import Recording
from wdmoe_env.physics.recording_file import read_recording


class RecordedGains:
    """Replays a recording: block i of an episode is step i after a start drawn from the generator.

    A start is any step after which its recorded episode goes on for all blocks; each is as likely as the others,
    and a recording of exactly I steps always starts at its first.

    Args:
        recording: the gains.
        num_blocks: blocks I of an episode.

    Raises:
        ValueError: no recorded episode is long enough.
    """

    def __init__(self, recording: Recording, num_blocks: int) -> None:
        self._recording = recording
        self._starts = recording.starts(num_blocks)
        self._blocks = np.arange(num_blocks)[:, None]
        if not self._starts.size:
            longest = recording.lengths.max()
            raise ValueError(f"expected an episode of {num_blocks} steps, one for each block, got {longest} at most")

    def sample(self, generators: Sequence[np.random.Generator]) -> Gains:
        """Draw N episodes; see ``GainSource``. Each generator advances by one draw."""
        starts = [self._starts[generator.integers(len(self._starts))] for generator in generators]
        steps, recording = self._blocks + np.array(starts), self._recording
        return Gains(recording.gain[steps], recording.uplink_gain[steps], recording.distance_m[steps])


def recorded_gains(path: str, channel: ChannelConfig, devices: DeviceConfig, num_blocks: int) -> RecordedGains:
    """The source ``"trace:PATH"``; of the radio, powers, noise and bandwidth hold, the rest is in the recording.

    Args:
        path: of a recording.
        channel: the radio.
        devices: the mobile devices.
        num_blocks: blocks I of an episode.

    Raises:
        FileNotFoundError: no such file.
        ValueError: no recording, one of other devices, or one that is too short.
    """
    recording = read_recording(path)
    if recording.num_devices != devices.count:
        raise ValueError(f"{path}: expected gains of {devices.count} devices, got {recording.num_devices}")
    try:
        return RecordedGains(recording, num_blocks)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
