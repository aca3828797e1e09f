"""What all episodes of a configuration share where requests are served, and how an episode begins."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from wdmoe_env.config import DeviceConfig, EnvConfig
from wdmoe_env.moe.zoo import load_model
from wdmoe_env.observations import Sizes
from wdmoe_env.physics.channel import ChannelTrace
from wdmoe_env.physics.heat import initial_heat, later_heat
from wdmoe_env.physics.latency import Float
from wdmoe_env.serving.arrivals import Draws
from wdmoe_env.serving.cache import SlotCache
from wdmoe_env.serving.capacity import Capacity
from wdmoe_env.serving.cell import Cell
from wdmoe_env.serving.fits import check_memory, check_serves
from wdmoe_env.serving.texts import RequestTexts, check_requests, own_routing
from wdmoe_env.serving_config import ServingConfig
from wdmoe_env.simulator import Simulator


@dataclass(slots=True, eq=False)
class Episode:
    """One cell's requests, text and channel.

    Attributes:
        cell: queue, slots and clock.
        trace: the channel, one episode at X time steps.
        step_s: time between two steps of the channel.
        capacity_hz: requests a second that own routing with optimal shares sustains on it.
        said: (R, G) tokens that the model said, -1 before; ``None`` where the document's are fed.
        devices: the mobile devices.
        heat: (U,) of them; ``None`` where none slows down.
        energy_j: what devices and radio took so far, in J, where it is counted.
    """

    cell: Cell
    trace: ChannelTrace
    step_s: float
    capacity_hz: float
    said: NDArray[np.int64] | None
    devices: DeviceConfig
    heat: Float | None
    energy_j: float = 0.0

    def cool(self, seconds: float) -> None:
        """Let the devices wait for some seconds."""
        if self.heat is not None and seconds > 0.0:
            self.heat = later_heat(self.devices, self.heat, np.zeros_like(self.heat), np.array(seconds))

    @property
    def now(self) -> int:
        """Step of the channel at the clock. After the last step it runs backwards, and so on.

        Reversed in time, fading and motion follow the same laws, and the gains never jump.
        """
        last = len(self.trace.full_band_snr) - 1
        if not last or not self.step_s:
            return 0
        step = int(self.cell.clock_s / self.step_s) % (2 * last)
        return min(step, 2 * last - step)


class ServingSimulator:
    """Model, text, radio, devices and requests of a configuration.

    Args:
        config: the configuration; ``serving`` says how requests come.

    Attributes:
        config: as given.
        serving: its part that is about requests.
        source: windows that requests take their text from.
        texts: those that are long enough.
        sizes: of the environment.
        world: what all episodes share.
        channel: of an episode, longer than one pass.
        draws: of the requests.
        runner: runs the experts; ``None`` is the model's own.
        service: makes what a pass says of who runs its experts.

    Raises:
        ValueError: settings that do not fit the model, requests longer than its context, or more slots than memory.
    """

    def __init__(self, config: EnvConfig) -> None:
        serving = config.serving or ServingConfig()
        self.config, self.serving = config, serving
        Draws(serving, 1).trace  # noqa: B018 (a file that does not fit is said before the model is loaded)
        model = load_model(config.model, config.device, config.dtype)
        check_requests(config, serving, model.context_length)
        check_serves(model, serving.longest)
        check_memory(model, serving.slots, serving.chunk, serving.longest)
        base = Simulator(replace(config, serving=None, num_tokens=serving.longest))
        self._base = base  # it closes the runner when it goes
        self.source, self.runner, self.service = base.source, base.runner, base.service
        self.texts = RequestTexts(base.source)
        self.sizes: Sizes = replace(base.sizes, num_tokens=serving.num_rows)
        self.world = replace(base.world, config=config, sizes=self.sizes)
        self.channel = base.channel.longer()
        self.draws = Draws(serving, len(self.texts))
        self._capacity = Capacity(self.world, serving, self.draws, own_routing(base.source.model, self.texts))

    def __reduce__(self) -> tuple[type[ServingSimulator], tuple[EnvConfig]]:
        """Rebuild from the configuration: the model is named, never copied."""
        return ServingSimulator, (self.config,)

    def cache(self, count: int) -> SlotCache:
        """Room for the keys and values of ``count`` cells.

        Raises:
            ValueError: they are more than the memory of the machine.
        """
        serving = self.serving
        check_memory(self.source.model, serving.slots, serving.chunk, serving.longest, count)
        return SlotCache(count * serving.slots, serving.longest + serving.chunk)

    def begin(self, generator: np.random.Generator) -> Episode:
        """Draw an episode: its requests, then its channel.

        Args:
            generator: of the episode; it advances alike whatever the load is.
        """
        requests, trace = self.draws.draw(generator), self.channel.sample([generator])
        capacity_hz = self._capacity.of(trace.full_band_snr[:, 0])
        cell = Cell(self.draws.at_rate(requests, capacity_hz), self.serving)
        shape = (self.serving.requests, self.serving.answer_tokens[1])  # of every episode alike
        said = np.full(shape, -1, dtype=np.int64) if self.serving.generate else None
        step_s = self.config.channel.block_interval_s
        heat = initial_heat(self.config.devices, 1)
        return Episode(cell, trace, step_s, capacity_hz, said, self.config.devices, None if heat is None else heat[0])
