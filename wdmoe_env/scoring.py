"""Texts that a caller brings, scored under a policy: log-probabilities beside the latency of the same pass.

An environment draws windows from a split. Here they come from outside, of any length, and every window is one pass
through the split model on a channel of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property, partial
from typing import Any

import numpy as np
from gymnasium.utils.seeding import np_random
from numpy.typing import NDArray

from wdmoe_env.actions import BandwidthPart, Decided, ExpertsPart
from wdmoe_env.config import EnvConfig
from wdmoe_env.episodes import check_tokens
from wdmoe_env.observations import Block, encode_observation
from wdmoe_env.physics.channel import Channel, ChannelTrace
from wdmoe_env.physics.latency import Bool, Float
from wdmoe_env.policies.policy import State
from wdmoe_env.process import DecisionProcess
from wdmoe_env.rollout.rollout import Rollout
from wdmoe_env.text.continuations import Continuation, continuation_windows
from wdmoe_env.text.windows import TokenWindows

SHORTEST_WINDOW = 32
"""Windows that may be short are padded to this length or to a power of two above it, so that few lengths occur."""

TOKENS_AT_ONCE = 8192
"""Tokens of a batch where no number of windows is given: 64 windows of 128."""

PolicyMaker = Callable[[Any], Any]
"""From an environment, or anything with its ``codec``, to what has Stable-Baselines3's ``predict``."""

Terms = dict[str, Float]
"""Terms of the reward, each (blocks, N); without ``added_nll``, which needs a reference."""


@dataclass(frozen=True, slots=True)
class WindowScores:
    """What n windows came to.

    Attributes:
        logprob: (n,) of the continuation after its context, nats.
        greedy: (n,) whether each of its tokens was the model's most probable one.
        latency_ms: (n,) equation (7) summed over blocks.
        vanilla_latency_ms: (n,) of the model's own routing at equal shares on the same channel; NaN without reference.
        wlr: (n,) equation (8) in its block form, mean over blocks, 1/ms.
    """

    logprob: Float
    greedy: Bool
    latency_ms: Float
    vanilla_latency_ms: Float
    wlr: Float


class Scorer:
    """A policy on a model and a radio, ready for texts.

    Args:
        make_policy: called once for each length of windows; ``None`` is the model's own routing at equal shares.
        config: the environment; its ``num_tokens`` is the length of the longest window. Its split is not used.
        reference: whether to run every window a second time with the model's own routing at equal shares.
        one_length: whether all windows are padded to the longest one, for a policy to which padding may matter: rules
            decide alike, a network that sees where in the window a token stands does not.

    Attributes:
        config: as given.
        model: the split model.
        player: from a length that ``padded`` gives to the player of such windows.

    Raises:
        ValueError, TypeError: a setting is wrong, or the policy does not fit.
    """

    def __init__(
        self, make_policy: PolicyMaker | None, config: EnvConfig, reference: bool = True, one_length: bool = False
    ) -> None:
        self.config = config
        self._make_policy, self._reference, self._one_length = make_policy, reference, one_length
        self.player = cache(self._player)
        self.model = self.player(self.padded(1)).process.simulator.source.model
        most = self.model.context_length
        if config.num_tokens > most:
            raise ValueError(f"num_tokens must be at most {most}, the context of the model, got {config.num_tokens}")

    @cached_property
    def channel(self) -> Channel:
        """The channel over the passes of a text that is generated, see ``Channel.longer``."""
        return self.player(self.padded(1)).process.simulator.channel.longer()

    def padded(self, length: int) -> int:
        """The length J of the windows that texts of some length are padded to."""
        longest = self.config.num_tokens
        return longest if self._one_length else min(longest, max(SHORTEST_WINDOW, 1 << (length - 1).bit_length()))

    def batches(
        self, continuations: Sequence[Continuation], seeds: Sequence[int], batch_size: int | None = None
    ) -> Iterator[tuple[NDArray[np.int64], WindowScores]]:
        """Score continuations, the longest first: yields the rows (n,) of each batch, and its scores.

        Args:
            continuations: M of them, none longer than the longest window.
            seeds: M seeds of the devices, shadowing and fading of each; as an environment's.
            batch_size: windows at once; ``None`` takes as many as hold ``TOKENS_AT_ONCE`` tokens.

        Raises:
            ValueError: a token that the model does not know; before the first pass.
        """
        for one in continuations:
            check_tokens(self.model, np.array(one.context + one.tokens))
        lengths = np.array([one.length for one in continuations])
        order = np.argsort(-lengths, kind="stable")
        while order.size:
            num_tokens = self.padded(int(lengths[order[0]]))
            rows = order[: batch_size or max(1, TOKENS_AT_ONCE // num_tokens)]
            order = order[len(rows) :]
            yield rows, self._score([continuations[row] for row in rows], [seeds[row] for row in rows], num_tokens)

    def _score(self, continuations: Sequence[Continuation], seeds: Sequence[int], num_tokens: int) -> WindowScores:
        player = self.player(num_tokens)
        windows, scored = continuation_windows(continuations, num_tokens)
        trace = player.process.simulator.channel.sample([channel_generator(seed) for seed in seeds])
        rollout = player.rollout(windows, trace)
        terms = player.play(rollout)
        episode = rollout.finish()
        return WindowScores(
            logprob=-(episode.token_nll * scored).sum(axis=-1),
            greedy=np.asarray((episode.correct | ~scored).all(axis=-1)),
            latency_ms=terms["block_latency_ms"].sum(axis=0),
            vanilla_latency_ms=self._vanilla_latency_ms(player, terms, windows, trace),
            wlr=terms["wlr"].mean(axis=0),
        )

    def _vanilla_latency_ms(self, player: Player, terms: Terms, windows: TokenWindows, trace: ChannelTrace) -> Float:
        if not self._reference:
            return np.full(len(windows), np.nan)
        if player.policy is not None:
            terms = replace(player, policy=None).play(player.rollout(windows, trace))
        return terms["block_latency_ms"].sum(axis=0)

    def _player(self, num_tokens: int) -> Player:
        process = DecisionProcess(replace(self.config, num_tokens=num_tokens, split="test"))
        return Player(process, self._make_policy and self._make_policy(process))


@dataclass(slots=True)
class Memory:
    """What a policy keeps from block to block, and from pass to pass of a text that is generated.

    Attributes:
        state: as ``predict`` returned it; ``None`` before the first block.
        begun: whether the first block has been decided.
    """

    state: State = None
    begun: bool = False


@dataclass(frozen=True, slots=True)
class Player:
    """A policy for windows of one length, and the process that carries its decisions out.

    Attributes:
        process: of that length.
        policy: what has ``predict``; ``None`` is the model's own routing at equal shares.
    """

    process: DecisionProcess
    policy: Any

    def rollout(self, windows: TokenWindows, trace: ChannelTrace) -> Rollout:
        """Begin episodes of windows from outside. They have no reference, since no reward is made of them.

        Args:
            windows: N of them.
            trace: the channels of the N episodes in all blocks.
        """
        simulator = self.process.simulator
        return Rollout(simulator.world, windows, trace, partial(simulator.begin, windows))

    def play(self, rollout: Rollout, memory: Memory | None = None) -> Terms:
        """Decide every block of a rollout.

        Args:
            rollout: that has just begun.
            memory: of the policy, where the rollout goes on with what it has decided on before; it is written there.
        """
        memory = Memory() if memory is None else memory
        decide = _vanilla if self.policy is None else self._decisions(len(rollout.texts), memory)
        terms = []
        while not rollout.done:
            terms.append(self.process.run(rollout, decide(rollout.block))["reward_terms"])
        return {name: np.stack([block[name] for block in terms]) for name in terms[0]}

    def _decisions(self, count: int, memory: Memory) -> Callable[[Block], Decided]:
        """The policy's decisions on episodes that begin now, or go on."""

        def decide(block: Block) -> Decided:
            seen, start = encode_observation(block), np.full(count, not memory.begun)
            actions, memory.state = self.policy.predict(
                seen, state=memory.state, episode_start=start, deterministic=True
            )
            memory.begun = True
            return self.process.codec.decode(actions, (count,))

        return decide


def _vanilla(block: Block) -> Decided:
    batch, devices = block.unit_latency_s.shape
    return {ExpertsPart.name: block.routed, BandwidthPart.name: np.full((batch, devices), 1.0 / devices)}


def channel_generator(seed: int) -> np.random.Generator:
    """The generator of an environment's seed, after its window was drawn: the same channel here and there."""
    generator, _ = np_random(int(seed))
    generator.integers(2**31)
    return generator
