"""N episodes in lock-step: the only place where the model and the physics meet.

``Simulator`` holds what all episodes of a configuration share. ``Rollout`` is N episodes under way: one
forward pass over N windows, paused at the same MoE block. The single environment is N = 1.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from wdmoe_env.actions import Plan
from wdmoe_env.config import DeploymentConfig, EnvConfig
from wdmoe_env.episodes import checked_nll, load_episodes, mean_over_tokens
from wdmoe_env.metrics import BlockResult, EpisodeResult
from wdmoe_env.moe.lockstep import LockStep
from wdmoe_env.moe.runner import make_runner
from wdmoe_env.moe.split import this_thread
from wdmoe_env.observations import Sizes
from wdmoe_env.physics import latency, metric
from wdmoe_env.physics.channel import Channel, ChannelTrace, check_channel
from wdmoe_env.physics.compute import device_flops
from wdmoe_env.physics.latency import Bool, Float
from wdmoe_env.view import Radio, View


class Simulator:
    """Model, text, radio and devices of a configuration.

    Args:
        config: the configuration.

    Raises:
        ValueError: settings that do not fit the model, such as a placement of other sizes.
    """

    def __init__(self, config: EnvConfig) -> None:
        self.config = config
        flops = device_flops(config.devices)
        check_channel(config.channel, config.devices)  # before the model, which may take minutes
        runner = make_runner(config.runner)
        self.source = load_episodes(config.model, config.num_tokens, config.split, config.device, config.dtype)
        model = self.source.model
        self.sizes = Sizes(
            config.num_tokens, model.num_experts, config.devices.count, model.num_blocks, model.hidden_size
        )
        self.placement = placement_matrix(config.placement, self.sizes)
        self.channel = Channel(config.channel, config.devices, model.num_blocks)
        deployment = config.deployment
        if not isinstance(deployment, DeploymentConfig):
            deployment = DeploymentConfig(model.hidden_size, model.intermediate_size)
        self.runner = None if config.runner == "local" else runner
        if self.runner is not None:
            self.runner.open(model)
            weakref.finalize(self, self.runner.close)
        self._payload_s = deployment.payload_bits / config.channel.bandwidth_hz
        self._compute_s = deployment.expert_flops / flops

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
        return Rollout(self, *self.draw(generators, windows))

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
        radio = Radio.of(trace, self._payload_s, self._compute_s, self.placement)
        mask = self.source.windows.mask[windows]
        return View(self.source.model, self.sizes, mask, not mask.all(), radio, self.config.observe_hidden_states)


class Rollout:
    """N episodes under way, in lock-step.

    Picklable and deep-copyable in mid-episode: the forward pass is run again with the recorded selections,
    which is deterministic. The same happens where another thread steps than the one before, since a paused forward
    pass can go on only in the thread that started it. That costs the blocks that have run, once for each change.

    Args:
        simulator: the configuration's simulator.
        windows: (N,) window indices.
        trace: the channels of all blocks.

    Attributes:
        block: what a policy may see now; after the last block all probabilities are 0.
        done: whether the last block has run.
    """

    def __init__(self, simulator: Simulator, windows: NDArray[np.int64], trace: ChannelTrace) -> None:
        self.simulator = simulator
        self.windows = windows
        self.trace = trace
        self.token_mask = simulator.source.windows.mask[windows]
        self._num_tokens = self.token_mask.sum(axis=-1)
        self._view = simulator.view(windows, trace)
        self._selections: list[Bool] = []
        self._latency_s = np.zeros(len(windows))
        self._thread: object = this_thread()
        self._begin()

    def _begin(self) -> None:
        source = self.simulator.source
        self._forward = LockStep(source.model, *source.tokens(self.windows), runner=self.simulator.runner)
        self._look()

    def _look(self) -> None:
        """See where the passes are now; the episodes are over where that is of no use."""
        try:
            self.block = self._view.block(self._forward.blocks)
        except FloatingPointError:
            self._forward.close()
            raise

    @property
    def done(self) -> bool:
        """Whether the last block has run."""
        return not self._forward.blocks

    @property
    def blocks_done(self) -> int:
        """Blocks that have run, or begun to."""
        return len(self._selections)

    def step(self, plan: Plan) -> BlockResult:
        """Run the block's experts under a decision and go on to the next block.

        Args:
            plan: what runs; every token has an expert, padding has none.

        Raises:
            FloatingPointError: the model's next gates or hidden states are not finite; the episodes are over then.
        """
        if self._thread is not this_thread():
            self._forward.close()  # its own thread ends it
            self._run_again()
        selection = plan.selection
        own = np.array_equal(selection, self.block.routed)
        result = self._measure(plan, own)
        self._latency_s = self._latency_s + result.block_latency_s
        self._selections.append(selection.copy())  # info hands the original out
        self._advance(selection, own)
        if self.simulator.runner is not None:
            result = replace(result, unserved_pairs=self._forward.unserved_pairs())
        return result

    def finish(self) -> EpisodeResult:
        """Score the text after the last block.

        Raises:
            FloatingPointError: the model's scores of the text are not finite.
        """
        token_nll, correct = self._scores()
        return EpisodeResult(
            latency_s=self._latency_s,
            nll=mean_over_tokens(token_nll, self.token_mask),
            token_nll=token_nll,
            next_token_accuracy=mean_over_tokens(correct & self.token_mask, self.token_mask),
            reference_nll=self.simulator.source.reference_nll(self.windows),
        )

    def _scores(self) -> tuple[Float, Bool]:
        """NLL in nats, 0 at padding, and whether the best guess was right; both (N, J)."""
        token_nll, correct = self._forward.scores()
        return checked_nll(self.simulator.source.model, token_nll, self.token_mask), correct

    def close(self) -> None:
        """End the paused forward pass."""
        self._forward.close()

    def _measure(self, plan: Plan, own: bool) -> BlockResult:
        """Physics of what runs; ``own`` says that it is what the model itself would use."""
        block, links = self.block, self.block.links
        selection, load, shares = plan.selection, plan.load, plan.shares
        device_latency = latency.device_latency_s(links, load, shares)
        block_latency = latency.block_latency_s(device_latency)
        own_load = load if own else latency.device_load(block.routed, links.placement)
        vanilla_latency = latency.sum_over_tokens_s(links, own_load, block.unit_latency_s)
        device_weight = metric.device_weight_served(block.weights, selection, links.placement)
        served = device_weight.sum(axis=-1)
        return BlockResult(
            selection=selection,
            shares=shares,
            tokens=load.tokens,
            device_latency_s=device_latency,
            block_latency_s=block_latency,
            vanilla_latency_s=latency.block_latency_s(vanilla_latency),
            gate_weight_served=served,
            gate_weight_kept=served / self._num_tokens,  # the weights of a token's own routing sum to 1
            wlr=metric.wlr_per_ms(served, block_latency),
            wlr_device=metric.wlr_device_per_ms(device_weight, device_latency),
            repaired_tokens=plan.repaired_tokens,
        )

    def _advance(self, selection: Bool, own: bool) -> None:
        # The model's own routing needs no new weights; on another device the rows would have to come from there.
        unchanged = own and self.simulator.source.model.device.type == "cpu"
        self._forward.resume(None if unchanged else torch.from_numpy(selection.reshape(-1, selection.shape[-1])))
        self._look()

    def __getstate__(self) -> dict[str, Any]:
        """Everything but the paused forward pass and what follows from it."""
        return {name: value for name, value in self.__dict__.items() if name not in ("_forward", "_thread", "block")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Run the forward pass again up to where it was."""
        self.__dict__.update(state)
        self._run_again()

    def _run_again(self) -> None:
        """Run the forward pass on this thread, from the first block up to where it was."""
        self._thread = None  # no thread's until it is there, so that the next step mends an interrupted one
        self._begin()
        for selection in self._selections:
            self._advance(selection, np.array_equal(selection, self.block.routed))
        self._thread = this_thread()


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
