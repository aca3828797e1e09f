"""What all episodes of a configuration share, and how episodes of its split begin."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wdmoe_env.config import DeploymentConfig, EnvConfig
from wdmoe_env.deploy.auto import auto_placement
from wdmoe_env.deploy.fit import check_memory
from wdmoe_env.episodes import load_episodes, tensors_of
from wdmoe_env.moe.hook import under
from wdmoe_env.moe.link import link_runner
from wdmoe_env.moe.lockstep import LockStep
from wdmoe_env.moe.measuring import MeasuringRunner
from wdmoe_env.moe.runner import Service, make_runner
from wdmoe_env.observations import Sizes
from wdmoe_env.physics.channel import Channel, ChannelTrace, check_channel
from wdmoe_env.physics.compute import device_profiles, device_times_s
from wdmoe_env.physics.energy import Powers
from wdmoe_env.physics.latency import Float
from wdmoe_env.rollout.rollout import Rollout, View, World
from wdmoe_env.text.windows import TokenWindows


class Simulator:
    """Model, text, radio and devices of a configuration.

    Args:
        config: the configuration.

    Raises:
        ValueError: settings that do not fit the model, such as a placement of other sizes.
    """

    def __init__(self, config: EnvConfig) -> None:
        self.config = config
        device_profiles(config.devices)  # refuses a name that is unknown
        powers = Powers.of(config.devices, config.channel) if config.has_energy else None
        check_channel(config.channel, config.devices)  # before the model, which may take minutes
        runner = make_runner(config.runner)
        self._clock = runner if isinstance(runner, MeasuringRunner) else None
        experts = "local" if self._clock is None else "meta"  # where latency is measured, the devices hold them
        self.source = load_episodes(config.model, config.num_tokens, config.split, config.device, config.dtype, experts)
        model = self.source.model
        self.sizes = Sizes(
            config.num_tokens, model.num_experts, config.devices.count, model.num_blocks, model.hidden_size
        )
        self.channel = Channel(config.channel, config.devices, model.num_blocks)
        deployment = config.deployment
        if not isinstance(deployment, DeploymentConfig):
            deployment = DeploymentConfig(model.hidden_size, model.intermediate_size)
        compute_s, weights_s = device_times_s(config.devices, deployment)
        self.deployment, self.link_bits = deployment, deployment.link_bits
        placement = placement_matrix(self._placement(), self.sizes)
        if weights_s is not None:
            check_memory(placement, config.devices, deployment)
        self._open(runner, placement)
        self.world = World(
            config=config,
            model=model,
            sizes=self.sizes,
            placement=placement,
            payload_s=deployment.payload_bits / config.channel.bandwidth_hz,
            compute_s=compute_s,
            weights_s=weights_s,
            powers=powers,
            clock=self._clock,
        )

    def _open(self, runner: Any, placement: Any) -> None:
        """Open what runs the experts where it is not the model alone; it closes when the simulator is gone."""
        config = self.config
        own = None if config.runner == "local" else runner
        self.runner = link_runner(own, placement, self.link_bits, config.decide_bits is not None)
        if self.runner is not None:
            self.runner.open(self.source.model)
            weakref.finalize(self, self.runner.close)
        if self._clock is not None:
            self._clock.check_placement(placement)

    def _placement(self) -> Any:
        """The configured placement, or the one that ``"auto"`` comes to."""
        config = self.config
        if config.placement != "auto":
            return config.placement
        return auto_placement(
            config.model,
            config.num_tokens,
            config.device,
            config.dtype,
            config.channel,
            config.devices,
            self.deployment,
        )

    def __reduce__(self) -> tuple[type[Simulator], tuple[EnvConfig]]:
        """Rebuild from the configuration: the model is named, never copied."""
        return Simulator, (self.config,)

    def start(self, generators: Sequence[np.random.Generator], windows: NDArray[np.int64] | None = None) -> Rollout:
        """Begin N episodes.

        Args:
            generators: N of them; episode n depends on the n-th alone.
            windows: (N,) indices of windows, in place of drawn ones.

        Raises:
            ValueError: an index outside the split's windows.
        """
        chosen, trace = self.draw(generators, windows)
        texts = self.source.windows.rows(chosen)
        if not self.config.has_token_terms:
            begin, reference_token_nll = partial(self.begin, texts), None
        else:
            begin = partial(self.begin, texts, windows=chosen)
            reference_token_nll = partial(self.reference_token_nll, chosen)
        reference_nll = partial(self.reference_nll, chosen)
        return Rollout(self.world, texts, trace, begin, reference_nll, chosen, reference_token_nll)

    def begin(self, texts: TokenWindows, windows: NDArray[np.int64] | None = None) -> LockStep:
        """Begin the model's passes over N texts; they are paused at their first block.

        Args:
            texts: N windows.
            windows: (N,) their indices within the split, where the predictions are to be compared with those of the
                own routing; ``None`` where they are not.
        """
        with self._own_experts():
            own_rows = None if windows is None else self.source.own_predictions.rows(windows)
        return LockStep(self.source.model, *tensors_of(texts), self.runner, own_rows, self.link_bits)

    def service(self, episodes: int) -> Service:
        """Who runs the experts of a pass over N episodes, and what its link rounds to."""
        return Service(self.runner, tuple(range(episodes)), self.link_bits)

    def reference_token_nll(self, windows: NDArray[np.int64]) -> Float:
        """NLL (N, J) in nats of each token, 0 at padding, under the own routing on windows (N,) of the split."""
        with self._own_experts():
            return self.source.own_predictions.token_nll(windows)

    def reference_nll(self, windows: NDArray[np.int64]) -> Float:
        """NLL (N,) in nats per token of the model's own routing on windows (N,) of the split."""
        with self._own_experts():
            return self.source.reference_nll(windows)

    def _own_experts(self) -> AbstractContextManager[None]:
        """A context in which the own routing runs on the devices, where the model has no experts of its own."""
        return nullcontext() if self._clock is None else under(None, Service(self._clock, (0,)))

    def draw(
        self, generators: Sequence[np.random.Generator], windows: NDArray[np.int64] | None = None
    ) -> tuple[NDArray[np.int64], ChannelTrace]:
        """Draw N episodes, each from its own generator: their windows (N,), and the channels of all blocks.

        Args:
            generators: N of them; episode n depends on the n-th alone.
            windows: (N,) indices of windows, in place of drawn ones.

        Raises:
            ValueError: an index outside the split's windows.
        """
        count = len(self.source.windows)
        # Drawn also where windows are named, so that the channel does not depend on it.
        drawn = np.array([generator.integers(count) for generator in generators])
        if windows is not None:
            drawn = np.asarray(windows)
            whole = drawn.shape == (len(generators),) and np.issubdtype(drawn.dtype, np.integer)
            if not whole or (drawn < 0).any() or (drawn >= count).any():
                raise ValueError(f"expected {len(generators)} window indices in [0, {count}), got {windows}")
        return drawn, self.channel.sample(generators)

    def view(self, windows: NDArray[np.int64], trace: ChannelTrace) -> View:
        """How paused passes over windows (N,) on their channels become a block."""
        return View.of(self.world, self.source.windows.mask[windows], trace)


def placement_matrix(placement: Any, sizes: Sizes) -> Float:
    """(I, E, U) matrix of 0 and 1: device u holds expert e of block i.

    Args:
        placement: device of each expert, E numbers or I rows of E; ``None`` spreads the experts evenly in order.
        sizes: I, E and U.

    Raises:
        ValueError: wrong sizes, a device that does not exist, or a device without any expert.
    """
    blocks, experts, devices = sizes.num_blocks, sizes.num_experts, sizes.num_devices
    if placement is None:
        placement = [expert * devices // experts for expert in range(experts)]
    table = np.asarray(placement)
    if table.shape not in ((experts,), (blocks, experts)):
        raise ValueError(f"placement must have shape ({experts},) or ({blocks}, {experts}), got {table.shape}")
    if (table < 0).any() or (table >= devices).any():
        raise ValueError(f"placement must name devices 0 to {devices - 1}, got {table.min()} to {table.max()}")
    idle = np.setdiff1d(np.arange(devices), table)
    if idle.size:
        raise ValueError(
            f"placement must give every device an expert: {devices} devices, {experts} experts, "
            f"and device {idle[0]} holds none"
        )
    return np.eye(devices)[np.broadcast_to(table, (blocks, experts))]
