"""Gains recorded elsewhere, step by step, and the source that replays them: ``channel="trace:gains.csv"``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from wdmoe_env.physics.gains import Gains
from wdmoe_env.physics.latency import Bool, Float

WEAKEST_GAIN_DB = -300.0
"""No link is as weak; a file that holds such a gain mostly means that there was no signal."""
WEAKEST_GAIN = 1e-30
FARTHEST_M = 1e9
"""Farther than the Moon, in m."""

EXPECTED = {
    "gain": f"above {WEAKEST_GAIN:g} and at most 1, which is 0 dB",
    "gain_db": f"above {WEAKEST_GAIN_DB:g} and at most 0",
    "distance_m": f"of 0 to {FARTHEST_M:g}, or nan",
}
"""The range of each quantity, in words; that of the uplink is the downlink's."""

# A number that measurements and simulators have no other reason to give is -999, -9999, 1e30 or the like.
_MOST_ORDINARY = 300.0


def check_range(name: str, values: Float, place: Callable[[int], str]) -> None:
    """Refuse values that are out of the range of a quantity; the first is named, with what it mostly means.

    Args:
        name: of the quantity: one of ``EXPECTED``, or ``uplink_`` before it.
        values: of any shape.
        place: from a position within the flattened values to where it stands, for the message.

    Raises:
        ValueError: one is out of range.
    """
    quantity = name.removeprefix("uplink_")
    wrong = np.flatnonzero(~_within(quantity, values))
    if wrong.size:
        value = float(values.flat[wrong[0]])
        hint = _hint(quantity, value)
        raise ValueError(f"expected {name} {EXPECTED[quantity]}, got {value:g} in {place(int(wrong[0]))}{hint}")


def _within(quantity: str, values: Float) -> Bool:
    """Whether each value is in the range of its quantity, of the shape of the values."""
    if quantity == "gain":
        return (values > WEAKEST_GAIN) & (values <= 1.0)
    if quantity == "gain_db":
        return (values > WEAKEST_GAIN_DB) & (values <= 0.0)
    return ((values >= 0.0) & (values <= FARTHEST_M)) | np.isnan(values)


def _hint(quantity: str, value: float) -> str:
    ordinary = abs(value) < _MOST_ORDINARY
    if quantity != "distance_m" and (not ordinary or abs(value) <= WEAKEST_GAIN):
        return "; such a value mostly means 'no signal': put in the gain that you take for the least"
    if quantity == "distance_m" and not ordinary:
        return "; such a value mostly means 'not known', which is nan"
    if quantity == "gain_db":
        return "; a loss in dB has the other sign"
    return f"; gains in dB have the name {quantity}_db" if quantity == "gain" and value < 0.0 else ""


@dataclass(frozen=True, slots=True)
class Recording:
    """Recorded episodes of gains, one after the other.

    Attributes:
        gain: (T, U) linear power gain of the downlink in each step, above ``WEAKEST_GAIN`` and at most 1.
        uplink_gain: (T, U) of the uplink.
        distance_m: (T, U) distance from the base station, at most ``FARTHEST_M``, NaN where it is not known.
        lengths: (E,) steps of each episode; their sum is T.

    Raises:
        ValueError: shapes that do not fit, or values out of range.
    """

    gain: Float
    uplink_gain: Float
    distance_m: Float
    lengths: NDArray[np.int64]

    def __post_init__(self) -> None:
        """Check shapes and values."""
        shape = self.gain.shape
        if self.gain.ndim != 2 or not self.gain.size or self.lengths.sum() != len(self.gain):
            raise ValueError(f"expected gains of at least one step and one device, got shape {shape}")
        for name in ("gain", "uplink_gain", "distance_m"):
            found = getattr(self, name).shape
            if found != shape:
                raise ValueError(f"expected {name} of the shape of the gains, {shape}, got {found}")
            check_range(name, getattr(self, name), self._place)

    @property
    def num_devices(self) -> int:
        """U."""
        return self.gain.shape[1]

    def steps_left(self) -> NDArray[np.int64]:
        """Steps (T,) for which the recorded episode of each step goes on, that step included."""
        left: NDArray[np.int64] = np.repeat(np.cumsum(self.lengths), self.lengths) - np.arange(len(self.gain))
        return left

    def _place(self, position: int) -> str:
        return "step {} of device {}".format(*divmod(position, self.num_devices))


class RecordedGains:
    """Replays a recording: block i of an episode is step i after a start drawn from the generator.

    A start is any step after which its recorded episode goes on for all blocks; each is as likely as the others,
    and a recording of exactly I steps always starts at its first.

    Args:
        recording: the gains.
        num_blocks: blocks I of a pass, which is an episode.
        passes: how many passes follow each other; see ``longer``.

    Raises:
        ValueError: no recorded episode is long enough.
    """

    def __init__(self, recording: Recording, num_blocks: int, passes: int = 1) -> None:
        self._recording, self._num_blocks = recording, num_blocks
        left = recording.steps_left()
        self._starts = np.flatnonzero(left >= num_blocks)
        if not self._starts.size:
            longest = recording.lengths.max()
            raise ValueError(f"expected an episode of {num_blocks} steps, one for each block, got {longest} at most")
        self._whole_passes = left[self._starts] // num_blocks * num_blocks
        self._blocks = np.arange(passes * num_blocks)[:, None]

    def longer(self, passes: int) -> RecordedGains:
        """The same recording over several passes; the first one is an episode of this source, draw for draw.

        Where the recorded episode has no further whole pass, the passes begin again from the start that was drawn.
        """
        return RecordedGains(self._recording, self._num_blocks, passes)

    def sample(self, generators: Sequence[np.random.Generator]) -> Gains:
        """Draw N episodes; see ``GainSource``. Each generator advances by one draw."""
        drawn = np.array([generator.integers(len(self._starts)) for generator in generators])
        steps, recording = self._starts[drawn] + self._blocks % self._whole_passes[drawn], self._recording
        return Gains(recording.gain[steps], recording.uplink_gain[steps], recording.distance_m[steps])
