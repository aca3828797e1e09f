"""N episodes in lock-step: the only place where the model and the physics meet.

``Simulator`` holds what all episodes of a configuration share. ``Rollout`` is N episodes under way: one
forward pass over N windows, paused at the same MoE block. The single environment is N = 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from wdmoe_env.config import DeploymentConfig, EnvConfig
from wdmoe_env.episodes import load_episodes, mean_over_tokens
from wdmoe_env.moe.split import BlockInput
from wdmoe_env.observations import Block, Sizes
from wdmoe_env.physics import latency, metric
from wdmoe_env.physics.channel import Channel, ChannelTrace
from wdmoe_env.physics.compute import device_flops
from wdmoe_env.physics.latency import BlockLinks, Bool, Float


@dataclass(frozen=True, slots=True)
class BlockResult:
    """What one decision led to in one block.

    Attributes:
        selection: (N, J, E) that ran.
        shares: (N, U) bandwidth shares that were used.
        tokens: (N, U) tokens that each device served.
        device_latency_s: (N, U).
        block_latency_s: (N,).
        vanilla_latency_s: (N,) of the model's own routing at equal shares on the same block.
        gate_weight_served: (N,) W.
        gate_weight_kept: (N,) W over that of the model's own routing.
        wlr: (N,) 1/ms, block form.
        wlr_device: (N,) 1/ms, device form.
    """

    selection: Bool
    shares: Float
    tokens: Float
    device_latency_s: Float
    block_latency_s: Float
    vanilla_latency_s: Float
    gate_weight_served: Float
    gate_weight_kept: Float
    wlr: Float
    wlr_device: Float


@dataclass(frozen=True, slots=True)
class EpisodeResult:
    """What N whole episodes came to.

    Attributes:
        latency_s: (N,) sum over blocks.
        nll: (N,) nats per token.
        token_nll: (N, J) nats, 0 at padding.
        next_token_accuracy: (N,) share of tokens whose most probable successor was right.
        reference_nll: (N,) NLL of the model's own routing on the same windows.
    """

    latency_s: Float
    nll: Float
    token_nll: Float
    next_token_accuracy: Float
    reference_nll: Float


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
        self.source = load_episodes(config.model, config.num_tokens, config.split, config.device)
        model = self.source.model
        self.sizes = Sizes(
            config.num_tokens, model.num_experts, config.devices.count, model.num_blocks, model.hidden_size
        )
        self.placement = placement_matrix(config.placement, self.sizes)
        self.channel = Channel(config.channel, config.devices, model.num_blocks)
        deployment = config.deployment
        if not isinstance(deployment, DeploymentConfig):
            deployment = DeploymentConfig(model.hidden_size, model.intermediate_size)
        self._payload_s = deployment.payload_bits / config.channel.bandwidth_hz
        self._compute_s = deployment.expert_flops / flops

    def __reduce__(self) -> tuple[type[Simulator], tuple[EnvConfig]]:
        """Rebuild from the configuration: the model is named, never copied."""
        return Simulator, (self.config,)

    def start(self, generators: Sequence[np.random.Generator], windows: NDArray[np.int64] | None = None) -> Rollout:
        """Begin N episodes, each drawn from its own generator.

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
        return Rollout(self, drawn, self.channel.sample(generators))

    def links(self, trace: ChannelTrace, block: int) -> BlockLinks:
        """Radio, compute and placement of N episodes in one block; the last block's after the end."""
        block = min(block, self.sizes.num_blocks - 1)
        snr = trace.full_band_snr[block]
        batch = len(snr)
        return BlockLinks(
            full_band_snr=snr,
            payload_s=np.full(batch, self._payload_s),
            compute_s=np.broadcast_to(self._compute_s, (batch, self.sizes.num_devices)),
            placement=self.placement[block],
        )


class Rollout:
    """N episodes under way, in lock-step.

    Picklable and deep-copyable in mid-episode: the forward pass is run again with the recorded selections,
    which is deterministic.

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
        self._selections: list[Bool] = []
        self._latency_s = np.zeros(len(windows))
        self._begin()

    def _begin(self) -> None:
        self._forward = self.simulator.source.model.forward(*self.simulator.source.tokens(self.windows))
        self.block = self._view(self._forward.block)

    @property
    def done(self) -> bool:
        """Whether the last block has run."""
        return self._forward.block is None

    def step(self, selection: Bool, shares: Float) -> BlockResult:
        """Run the block's experts under a decision and go on to the next block.

        Args:
            selection: (N, J, E); every token has an expert, padding has none.
            shares: (N, U), sums of 1.
        """
        result = self._measure(selection, shares)
        self._latency_s = self._latency_s + result.block_latency_s
        self._advance(selection)
        return result

    def finish(self) -> EpisodeResult:
        """Score the text after the last block."""
        source = self.simulator.source
        token_nll, correct = source.score(self._forward.result.logits, self.windows)
        return EpisodeResult(
            latency_s=self._latency_s,
            nll=mean_over_tokens(token_nll, self.token_mask),
            token_nll=token_nll,
            next_token_accuracy=mean_over_tokens(correct, self.token_mask),
            reference_nll=source.reference_nll(self.windows),
        )

    def close(self) -> None:
        """End the paused forward pass."""
        self._forward.close()

    def _measure(self, selection: Bool, shares: Float) -> BlockResult:
        block, links = self.block, self.block.links
        weights = block.weights
        load = latency.device_load(selection, links.placement)
        device_latency = latency.device_latency_s(links, load, shares)
        block_latency = latency.block_latency_s(device_latency)
        own_load = latency.device_load(block.routed, links.placement)
        equal = latency.equal_shares(*shares.shape)
        served = metric.weight_served(weights, selection)
        return BlockResult(
            selection=selection,
            shares=shares,
            tokens=load.tokens,
            device_latency_s=device_latency,
            block_latency_s=block_latency,
            vanilla_latency_s=latency.block_latency_s(latency.device_latency_s(links, own_load, equal)),
            gate_weight_served=served,
            gate_weight_kept=served / metric.weight_served(weights, block.routed),
            wlr=metric.wlr_per_ms(served, block_latency),
            wlr_device=metric.wlr_device_per_ms(weights, selection, links.placement, device_latency),
        )

    def _advance(self, selection: Bool) -> None:
        rows = torch.from_numpy(selection.reshape(-1, selection.shape[-1]))
        self._selections.append(selection.copy())  # info hands the original out
        self.block = self._view(self._forward.resume(rows.to(self.simulator.source.model.device)))

    def _view(self, at: BlockInput | None) -> Block:
        """The paused block as a policy may see it."""
        sizes, mask = self.simulator.sizes, self.token_mask
        shape = (len(self.windows), sizes.num_tokens)
        index = sizes.num_blocks if at is None else at.index
        observe_hidden = self.simulator.config.observe_hidden_states
        hidden = np.zeros((*shape, sizes.hidden_size), dtype=np.float32) if observe_hidden else None
        probs = np.zeros((*shape, sizes.num_experts))
        if at is not None:
            probs = at.gate_probs.double().cpu().numpy().reshape(probs.shape) * mask[..., None]
            if hidden is not None:
                hidden = at.hidden_states.float().cpu().numpy().reshape(hidden.shape) * mask[..., None]
        routed = np.zeros(probs.shape, dtype=bool)
        if at is not None:
            routed = at.routed.cpu().numpy().reshape(probs.shape) & mask[..., None]
        return Block(
            gate_probs=probs,
            routed=routed,
            token_mask=mask,
            links=self.simulator.links(self.trace, index),
            index=np.full(shape[0], index / sizes.num_blocks),
            hidden_states=hidden,
        )

    def __getstate__(self) -> dict[str, Any]:
        """Everything but the paused forward pass and what follows from it."""
        return {name: value for name, value in self.__dict__.items() if name not in ("_forward", "block")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Run the forward pass again up to where it was."""
        self.__dict__.update(state)
        selections, self._selections = self._selections, []
        self._begin()
        for selection in selections:
            self._advance(selection)


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
