"""N episodes in lock-step: the only place where the model and the physics meet.

A rollout is given explicit texts, their channels, and something that begins the model's passes over them. It knows
nothing of where they come from: an environment draws windows of its split, a caller brings texts, and each pass of a
generation is an episode too. The single environment is N = 1.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from wdmoe_env.actions import Plan
from wdmoe_env.config import EnvConfig
from wdmoe_env.episodes import checked_nll, mean_over_tokens
from wdmoe_env.metrics import BlockResult, EpisodeResult
from wdmoe_env.moe.finite import check_finite
from wdmoe_env.moe.hook import BlockInput
from wdmoe_env.moe.measuring import MeasuringRunner
from wdmoe_env.moe.split import SplitModel, this_thread
from wdmoe_env.observations import Block, Conditions, Sizes
from wdmoe_env.optimize.bandwidth import solve_min_max
from wdmoe_env.optimize.pricing import device_prices, pair_prices, token_prices
from wdmoe_env.physics import latency
from wdmoe_env.physics.channel import ChannelTrace
from wdmoe_env.physics.energy import Powers, block_energy_j
from wdmoe_env.physics.heat import busy_s, initial_heat, later_heat, slowed, speed_factor
from wdmoe_env.physics.latency import BlockLinks, Bool, Float, Load
from wdmoe_env.physics.outages import experts_present, next_best
from wdmoe_env.rollout.clocked import clocked, pace_of
from wdmoe_env.rollout.passes import Begin
from wdmoe_env.text.windows import TokenWindows

Scalar = TypeVar("Scalar", bound=np.generic)

PER_SECOND = np.array([1e-3])
"""The price of a millisecond at which prices are seconds."""


@dataclass(frozen=True, slots=True)
class World:
    """What all episodes of a configuration share.

    Attributes:
        config: the configuration.
        model: the split model.
        sizes: of the environment.
        placement: (I, E, U) 1 where a device holds an expert.
        payload_s: L / B of equation (5), seconds.
        compute_s: (U,) seconds of one expert on one token.
        weights_s: (U,) seconds of reading the weights of one expert; ``None`` where reading counts nothing.
        powers: of devices and radio; ``None`` where energy is not counted.
        clock: the runner, where it measures latency; ``None`` where it is simulated.
    """

    config: EnvConfig
    model: SplitModel
    sizes: Sizes
    placement: Float
    payload_s: float
    compute_s: Float
    weights_s: Float | None = None
    powers: Powers | None = None
    clock: MeasuringRunner | None = None


class Rollout:
    """N episodes under way, in lock-step.

    Picklable and deep-copyable in mid-episode, where ``begin`` and ``reference_nll`` are: the passes begin again and
    run with the recorded selections, which is deterministic. The same happens where another thread steps than the one
    before, since a paused forward pass can go on only in the thread that started it. That costs the blocks that have
    run, once for each change.

    Args:
        world: what all episodes of the configuration share.
        texts: N windows.
        trace: the channels of all blocks.
        begin: begins the model's passes over the texts.
        reference_nll: gives the NLL (N,) of the model's own routing on the texts; ``None`` where there is none.
        windows: (N,) index of each text within its split; 0 to N - 1 for texts that belong to none.
        reference_token_nll: gives the NLL (N, J) of each token under the own routing; ``None`` where no one asks.
        heat: (N, U) of the devices at the start; ``None`` is that of an episode, see ``wdmoe_env.physics.heat``.

    Attributes:
        block: what a policy may see now; after the last block all probabilities are 0.
        done: whether the last block has run, or the passes are closed.
        blocks_done: blocks that have run, or begun to.
        heat: (N, U) of the devices now; ``None`` where they do not slow down.
    """

    def __init__(
        self,
        world: World,
        texts: TokenWindows,
        trace: ChannelTrace,
        begin: Begin,
        reference_nll: Callable[[], Float] | None = None,
        windows: NDArray[np.int64] | None = None,
        reference_token_nll: Callable[[], Float] | None = None,
        heat: Float | None = None,
    ) -> None:
        self.world, self.texts, self.trace = world, texts, trace
        self.windows = np.arange(len(texts)) if windows is None else windows
        self.token_mask = texts.mask
        self._begin, self._reference_nll, self._reference_token_nll = begin, reference_nll, reference_token_nll
        self._num_tokens = texts.mask.sum(axis=-1)
        self._view = View.of(world, texts.mask, trace)
        self._token_terms = world.config.has_token_terms
        self._selections: list[Bool] = []
        self._bits: list[NDArray[np.int64] | None] = []
        self.blocks_done = 0
        self._latency_s = np.zeros(len(texts))
        self.heat = initial_heat(world.config.devices, len(texts)) if heat is None else heat
        self._thread: object = this_thread.mark
        self._start()

    def _start(self) -> None:
        self._passes = self._begin()
        self.done = not self._passes.blocks
        self.block = self._view.block(self._passes.blocks, self.heat)

    def step(self, plan: Plan) -> BlockResult:
        """Run the block's experts under a decision and go on to the next block.

        Args:
            plan: what runs; every token has an expert, padding has none.

        Raises:
            FloatingPointError: the model's next gates or hidden states are not finite; the episodes are over then.
        """
        if self._thread is not this_thread.mark:
            self._passes.close()  # its own thread ends it
            decided_on = self.block
            try:
                self._run_again()
            finally:
                self.block = decided_on  # also where that was interrupted: the next decision is on it
        selection = plan.selection
        own = np.array_equal(selection, self.block.routed)
        config = self.world.config
        overhead_s = 1e-3 * config.devices.overhead_ms
        result = measure(plan, own, self._num_tokens, self._token_terms, overhead_s)
        if self.world.powers is not None:
            result = with_energy(result, plan, self.world.powers, self._num_tokens)
        if self.heat is not None:
            self.heat = self._view.later_heat(self.heat, self.block, plan.load, result.block_latency_s)
        clock = self.world.clock
        if clock is not None:
            clock.announce(pace_of(plan, result, config.channel.bandwidth_hz, overhead_s))
        self._selections.append(selection.copy())  # info hands the original out
        self._bits.append(plan.bits)
        self.blocks_done += 1
        try:
            self._advance(selection, own, plan.bits)
        except FloatingPointError:
            self.close()
            raise
        if clock is not None:
            result = clocked(plan, result, clock.measured(), int(self._num_tokens[0]))
            self._selections[-1] = result.selection.copy()  # a copy of this episode has no clock to go by
        elif config.runner != "local":
            result = result._replace(unserved_pairs=self._passes.unserved_pairs())
        self._latency_s = self._latency_s + result.block_latency_s
        return result

    def finish(self) -> EpisodeResult:
        """Score the texts after the last block.

        Raises:
            FloatingPointError: the model's scores of the text are not finite.
            RuntimeError: the passes score no text, as those of a generation.
        """
        scores = self._passes.scores()
        if scores is None:
            raise RuntimeError("expected passes that score a text, got passes of a text that is being generated")
        mask, correct = self.token_mask, scores.correct
        token_nll = checked_nll(self.world.model, scores.nll, mask)
        divergence = None if scores.divergence is None else np.where(mask, scores.divergence, 0.0)
        return EpisodeResult(
            latency_s=self._latency_s,
            nll=mean_over_tokens(token_nll, mask),
            token_nll=token_nll,
            correct=correct,
            next_token_accuracy=mean_over_tokens(correct & mask, mask),
            reference_nll=None if self._reference_nll is None else self._reference_nll(),
            reference_token_nll=None if self._reference_token_nll is None else self._reference_token_nll(),
            token_divergence=divergence,
            divergence=None if divergence is None else mean_over_tokens(divergence, mask),
        )

    def close(self) -> None:
        """End the paused passes."""
        self.done = True
        self._passes.close()

    def _advance(self, selection: Bool, own: bool, bits: NDArray[np.int64] | None) -> None:
        # The model's own routing needs no new weights; on another device the rows would have to come from there.
        all_there = self.block.available is None or bool(self.block.available.all())
        unchanged = own and all_there and self.world.model.device.type == "cpu"
        chosen = None if unchanged else torch.from_numpy(selection.reshape(-1, selection.shape[-1]))
        if bits is None:
            self._passes.resume(chosen)
        else:
            self._passes.resume(chosen, self._message_bits(bits))
        self.done = not self._passes.blocks
        self.block = self._view.block(self._passes.blocks, self.heat)

    def _message_bits(self, bits: NDArray[np.int64]) -> torch.Tensor | int:
        """Bits of messages as passes take them: (N * J, U), or 16 where nothing is rounded."""
        if (bits == 16).all():
            return 16
        sizes = self.world.sizes
        whole = np.broadcast_to(bits, (len(bits), sizes.num_tokens, sizes.num_devices))
        return torch.from_numpy(np.array(whole).reshape(-1, sizes.num_devices))

    def __getstate__(self) -> dict[str, Any]:
        """Everything but the paused passes and what follows from them."""
        return {name: value for name, value in self.__dict__.items() if name not in ("_passes", "_thread", "block")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Begin the passes again, and run them up to where they were."""
        self.__dict__.update(state)
        self._run_again()

    def _run_again(self) -> None:
        """Run the passes on this thread, from the first block up to where they were."""
        self._thread = None  # set at the end: where this is interrupted, the next step runs it again
        self._start()
        for selection, bits in zip(self._selections, self._bits, strict=True):
            self._advance(selection, np.array_equal(selection, self.block.routed), bits)
        self._thread = this_thread.mark


def measure(
    plan: Plan, own: bool, num_tokens: NDArray[np.int64], prices: bool = False, overhead_s: float = 0.0
) -> BlockResult:
    """Physics of what runs in a block.

    Args:
        plan: what runs.
        own: whether that is what the model itself would use.
        num_tokens: (N,) tokens of each episode, which are one at least.
        prices: whether the price of each pair is wanted.
        overhead_s: what a call to a device takes beside radio and compute, seconds.
    """
    block = plan.block
    true = block.hidden_conditions or block
    links = true.links
    selection, load, shares = plan.selection, plan.load, plan.shares
    device_latency = latency.device_latency_s(links, load, shares)
    own_load = load if own and plan.bits is None else latency.device_load(block.routed, links)
    vanilla_latency = latency.sum_over_tokens_s(links, own_load, true.unit_latency_s)
    if overhead_s:  # of a call to each device that serves a token
        device_latency = device_latency + overhead_s * (load.tokens > 0)
        vanilla_latency = vanilla_latency + overhead_s * (own_load.tokens > 0)
    block_latency = device_latency.max(axis=-1)  # equation (7)
    weights = latency.gate_weights(block.gate_probs, block.routed)
    device_weight = latency.device_weight_served(weights, selection, links.placement)
    served = device_weight.sum(axis=-1)
    vanilla_block_latency = vanilla_latency.max(axis=-1)
    result = BlockResult(
        selection=selection,
        shares=shares,
        tokens=load.tokens if plan.tokens is None else plan.tokens,
        message_bits=None if plan.bits is None else mean_message_bits(plan, plan.bits),
        device_latency_s=device_latency,
        block_latency_s=block_latency,
        vanilla_latency_s=vanilla_block_latency,
        latency_ratio=latency.latency_ratio(block_latency, vanilla_block_latency),
        gate_weight_served=served,
        gate_weight_kept=served / num_tokens,  # the weights of a token's own routing sum to 1
        # Where every device is away, nothing is served and no time passes: the ratio is 0.
        wlr=latency.wlr_per_ms(served, np.where(block_latency > 0.0, block_latency, np.inf)),
        wlr_device=latency.wlr_device_per_ms(device_weight, device_latency),
        repaired_tokens=plan.repaired_tokens,
        replaced_pairs=plan.replaced_pairs,
        unserved_tokens=plan.unserved_tokens,
    )
    return _with_prices(result, plan) if prices else result


def mean_message_bits(plan: Plan, bits: NDArray[np.int64]) -> Float:
    """Mean bits (N,) of an element over the messages of a plan.

    Args:
        plan: what runs.
        bits: (N, J, U), or with 1 in place of J or U.
    """
    sent = np.minimum(latency.experts_per_device(plan.selection, plan.block.links.placement), 1.0)
    return (sent * bits).sum(axis=(1, 2)) / np.maximum(sent.sum(axis=(1, 2)), 1.0)


def with_energy(result: BlockResult, plan: Plan, powers: Powers, num_tokens: NDArray[np.int64]) -> BlockResult:
    """The result with the energy of the block.

    Args:
        result: what the block led to.
        plan: what ran.
        powers: of devices and radio.
        num_tokens: (N,) tokens of each episode.
    """
    of_devices, of_radio = block_energy_j(
        powers, plan.block.conditions.links, plan.load, plan.shares, result.block_latency_s
    )
    both = (of_devices + of_radio).sum(axis=-1) / num_tokens
    return result._replace(device_energy_j=of_devices, radio_energy_j=of_radio, energy_per_token_j=both)


def _with_prices(result: BlockResult, plan: Plan) -> BlockResult:
    """With the prices of pairs and of tokens in seconds, at the optimal shares of what runs, 0 at padding."""
    links, min_share, mask = plan.block.conditions.links, plan.min_share, plan.block.token_mask
    prices = device_prices(links, plan.load, solve_min_max(links, plan.load, min_share), PER_SECOND, min_share)
    if plan.tokens is not None:  # a token costs by the size of its message, here the mean one of its device
        sent = plan.tokens > 0
        size = np.divide(plan.load.tokens, plan.tokens, out=np.ones_like(plan.tokens), where=sent)
        prices = replace(prices, token=prices.token * size)
    return result._replace(
        pair_price_s=pair_prices(prices, plan.selection, links) * mask[..., None],
        token_price_s=token_prices(prices, plan.selection, links),
    )


@dataclass(frozen=True, slots=True)
class Radio:
    """What the channel of N episodes comes to.

    Attributes:
        spectral_efficiency: (I, N, 2, U) bit/s/Hz at equal shares.
        conditions: of each of the I blocks.
    """

    spectral_efficiency: Float
    conditions: list[Conditions]

    @classmethod
    def of(cls, world: World, full_band_snr: Float) -> Radio:
        """Links of N episodes in every block, and what equal shares give on them.

        Args:
            world: what all episodes share.
            full_band_snr: (I, N, 2, U) gamma / B, downlink then uplink.
        """
        batch, devices = full_band_snr.shape[1], len(world.compute_s)
        payload, compute = np.full(batch, world.payload_s), np.broadcast_to(world.compute_s, (batch, devices))
        weights = None if world.weights_s is None else np.broadcast_to(world.weights_s, (batch, devices))
        equal = latency.equal_shares(batch, devices)
        efficiency = latency.spectral_efficiency(full_band_snr, equal)
        unit_latency_s = latency.both_ways_s(efficiency, payload, equal)
        blocks = zip(full_band_snr, world.placement, unit_latency_s, strict=True)
        conditions = [
            Conditions(BlockLinks(snr, payload, compute, placement, weights), unit) for snr, placement, unit in blocks
        ]
        return cls(efficiency, conditions)


@dataclass(frozen=True, slots=True)
class View:
    """How paused passes become a block.

    Attributes:
        world: what all episodes share.
        token_mask: (N, J) True where there is a token.
        padded: whether the mask is False anywhere.
        radio: of the N episodes, as it is.
        seen: as it is known; ``None`` where that is the same.
        available: (I, N, U) True where the device is there; ``None`` where none can be away.
    """

    world: World
    token_mask: Bool
    padded: bool
    radio: Radio
    seen: Radio | None = None
    available: Bool | None = None

    @classmethod
    def of(cls, world: World, token_mask: Bool, trace: ChannelTrace) -> View:
        """The view of N episodes.

        Args:
            world: what all episodes share.
            token_mask: (N, J) True where there is a token.
            trace: the channels of the N episodes in all blocks.
        """
        radio, known = Radio.of(world, trace.full_band_snr), trace.observed_snr
        seen = None if known is None else Radio.of(world, known)
        return cls(world, token_mask, not token_mask.all(), radio, seen, trace.available)

    def block(self, passes: Sequence[BlockInput], heat: Float | None = None) -> Block:
        """The paused block; after the end, where there is none, all probabilities are 0.

        Args:
            passes: where each pass is paused, in the order of the episodes.
            heat: (N, U) of the devices; ``None`` where they do not slow down.

        Raises:
            FloatingPointError: gate probabilities or hidden states of a token are not finite.
        """
        sizes, batch = self.world.sizes, len(self.token_mask)
        gate_probs = self._rows(passes, "gate_probs", sizes.num_experts, np.float64)
        routed = self._rows(passes, "routed", sizes.num_experts, np.bool_)
        seen = self.world.config.observe_hidden_states
        hidden = self._rows(passes, "hidden_states", sizes.hidden_size, np.float32) if seen else None
        if self.padded:
            padding = ~self.token_mask
            gate_probs[padding], routed[padding] = 0.0, False
            if hidden is not None:
                hidden[padding] = 0.0
        index = passes[0].index if passes else sizes.num_blocks
        # Hidden states that no one sees show in the gates that they lead to.
        if not (np.isfinite(gate_probs).all() and (hidden is None or np.isfinite(hidden).all())):
            self._refuse(index, gate_probs, hidden)
        at = min(index, sizes.num_blocks - 1)
        available = None if self.available is None else self.available[at]
        if self.world.clock is not None:
            available = self.world.clock.available()[None]
        if available is not None:  # the model's own routing is then that among the experts that are there
            routed, _ = next_best(routed, gate_probs, experts_present(available, self.world.placement[at]))
        radio = (self.seen if self.world.clock is None else self._measured(at)) or self.radio
        known, true = radio.conditions[at], self.radio.conditions[at]
        if heat is not None:
            known, true = self._slowed(known, true, heat)
        return Block(
            gate_probs=gate_probs,
            routed=routed,
            token_mask=self.token_mask,
            links=known.links,
            spectral_efficiency=radio.spectral_efficiency[at],
            unit_latency_s=known.unit_latency_s,
            index=np.full(batch, index / sizes.num_blocks),
            hidden_states=hidden,
            available=available,
            hidden_conditions=None if known is true else true,
        )

    def _slowed(self, known: Conditions, true: Conditions, heat: Float) -> tuple[Conditions, Conditions]:
        """What is known and what is true, with the devices as fast as their heat lets them be, which they can tell."""
        factor = speed_factor(self.world.config.devices, heat)
        slow = replace(true, links=slowed(true.links, factor))
        return (slow if known is true else replace(known, links=slowed(known.links, factor))), slow

    def _measured(self, at: int) -> Radio | None:
        """The radio as it is known in a block: by the clock, where a testbed observes what it measured last."""
        measured = None if self.world.clock is None else self.world.clock.observed_snr()
        if measured is None:
            return self.seen
        snr = np.where(np.isnan(measured), self.radio.conditions[at].links.full_band_snr, measured)
        return Radio.of(self.world, np.broadcast_to(snr, (len(self.world.placement), *snr.shape)))

    def later_heat(self, heat: Float | None, block: Block, load: Load, block_latency_s: Float) -> Float | None:
        """Heat (N, U) of the devices after a block; ``None`` where they do not slow down.

        Args:
            heat: (N, U) before it.
            block: that has run.
            load: of what has run.
            block_latency_s: (N,) how long the block took, in s.
        """
        if heat is None:
            return None
        busy = busy_s(block.links, load)
        return later_heat(self.world.config.devices, heat, busy, block_latency_s[:, None] - busy)

    def _refuse(self, index: int, gate_probs: Float, hidden: NDArray[np.float32] | None) -> None:
        """Say which numbers are not finite."""
        where = f"in block {index + 1} of {self.world.sizes.num_blocks}"
        check_finite(self.world.model.model, f"gate probabilities {where}", gate_probs)
        if hidden is not None:
            check_finite(self.world.model.model, f"hidden states {where}", hidden)

    def _rows(self, passes: Sequence[BlockInput], name: str, width: int, dtype: type[Scalar]) -> NDArray[Scalar]:
        """A tensor of every pass as one array (N, J, width) of its own memory; zeros after the end."""
        shape = (*self.token_mask.shape, width)
        if not passes:
            return np.zeros(shape, dtype=dtype)
        parts = []
        for at in passes:
            tensor = getattr(at, name)
            parts.append((tensor if tensor.dtype == torch.bool else tensor.float()).numpy(force=True))
        return np.concatenate(parts, dtype=dtype).reshape(shape)
