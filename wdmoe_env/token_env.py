"""``WDMoE-Token-v0``: each token is an agent that chooses among sets of its experts, and has a reward of its own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from wdmoe_env.actions import Decided, ExpertsPart
from wdmoe_env.checks import check_number
from wdmoe_env.config import ActionType, DecisionKind, EnvConfig
from wdmoe_env.env import WDMoEEnv
from wdmoe_env.metrics import REWARD_TERMS
from wdmoe_env.observations import Block, Sizes
from wdmoe_env.physics.latency import Float
from wdmoe_env.policies.tokens import CHOICES, MOST, TokenCodec, num_token_features, selection_of, token_features
from wdmoe_env.process import DecisionProcess, Info, Observer, Seen, Transition, without_requests
from wdmoe_env.rollout.rollout import Rollout
from wdmoe_env.vector_env import WDMoEVectorEnv

TOKEN_REWARD = "token_reward"
"""Key of ``info`` under which the reward of each token stands, (J,)."""


@dataclass(frozen=True, slots=True)
class TokenConfig(EnvConfig):
    """Everything that defines a token environment: the fields of ``EnvConfig``, and these.

    Attributes:
        decision: ``"selection"``, which the tokens decide; the shares are solved.
        reward: ``"latency_divergence"`` or ``"latency_quality"``: what loss of quality a token pays for.
        action_type: ``"discrete"``: a choice of each token.
        token_terms: always on.
        credit_decay: what a token pays of the loss of the token after it, the square of that of the next, and so on; 0
            to 1.

    Raises:
        ValueError: a field is out of its range.
        TypeError: a field of another type.
    """

    _ACTION_TYPES: ClassVar[tuple[str, ...]] = ("discrete",)
    _REWARDS: ClassVar[tuple[str, ...]] = ("latency_divergence", "latency_quality")

    decision: DecisionKind = "selection"
    reward: Any = "latency_divergence"
    action_type: ActionType = "discrete"
    token_terms: bool = True
    credit_decay: float = 0.8

    def __post_init__(self) -> None:
        """Check every field, and make it Python's own."""
        EnvConfig.__post_init__(self)
        if self.decision != "selection" or not self.token_terms:
            raise ValueError("expected decision='selection' and token_terms=True, which the tokens need, got others")
        if self.reward not in self._REWARDS:
            raise ValueError(f"reward must be one of {', '.join(self._REWARDS)}, got {self.reward!r}")
        object.__setattr__(
            self, "credit_decay", check_number("credit_decay", self.credit_decay, at_least=0.0, at_most=1.0)
        )


class TokenProcess(DecisionProcess):
    """The decision process whose decision is a choice of each token.

    Args:
        config: the configuration.
    """

    config: TokenConfig

    def _faces(self, sizes: Sizes) -> tuple[Any, spaces.Space[Any], Observer]:
        numbers = sizes.num_tokens * num_token_features(sizes, self.config.observe_hidden_states)
        return TokenCodec(sizes), spaces.Box(-MOST, MOST, (numbers,), dtype=np.float32), self._features

    def _features(self, block: Block) -> NDArray[np.float32]:
        """What the tokens see now, (N, J x F); see ``wdmoe_env.policies.tokens.token_features``."""
        features = token_features(block, self.simulator.sizes.num_blocks)
        return features.reshape(len(features), -1)

    def step(self, rollout: Rollout, decided: Decided, seen: Seen | None = None, observed: bool = True) -> Transition:
        """Run a block under the choices decided; ``info`` has the reward of each token.

        Args:
            rollout: N episodes that have not ended.
            decided: the choices (N, J).
            seen: is told of the block.
            observed: whether the next observation is wanted.
        """
        selection = selection_of(rollout.block, decided[CHOICES])
        transition = super().step(rollout, {ExpertsPart.name: selection}, seen, observed)
        transition.info[TOKEN_REWARD] = self.token_reward(transition.info, rollout.token_mask)
        return transition

    def token_reward(self, info: Info, mask: NDArray[np.bool_]) -> Float:
        """Reward (N, J) of each token in a block, 0 at padding.

        A token pays for its pairs, at their marginal price over the latency of the own routing at equal shares, times
        the number of tokens: the mean over the tokens is -t / t_vanilla. After the last block it pays for its loss q[j]
        of quality and for that of later tokens, which its hidden state was part of:
        ``quality_weight`` x sum over k of ``credit_decay`` ** k x q[j + k].

        Args:
            info: of the block.
            mask: (N, J) True where there is a token.
        """
        terms, config = info[REWARD_TERMS], self.config
        count = mask.sum(axis=-1, keepdims=True)
        vanilla_ms = terms["vanilla_latency_ms"]
        # Where every device is away, nothing runs and nothing waits.
        reward = -count * terms["token_price_ms"] / np.where(vanilla_ms > 0.0, vanilla_ms, np.inf)[:, None]
        if "token_nll" not in info:
            return np.where(mask, reward, 0.0)
        loss = terms["token_divergence"]
        if config.reward == "latency_quality":
            loss = info["token_nll"] - terms["reference_token_nll"]
        return np.where(mask, reward - config.quality_weight * decayed(loss, config.credit_decay), 0.0)


def decayed(loss: Float, decay: float) -> Float:
    """The loss (N, J) in nats of each token and, times ``decay`` for each token in between, of those after it."""
    credit = np.zeros_like(loss)
    total = np.zeros(len(loss))
    for token in range(loss.shape[1] - 1, -1, -1):
        total = loss[:, token] + decay * total
        credit[:, token] = total
    return credit


class TokenFace:
    """What the environments whose action is a choice of each token have in common, single and batched."""

    codec: Any

    def _process_of(self, config: EnvConfig | Mapping[str, Any] | None, keywords: Mapping[str, Any]) -> Any:
        return TokenProcess(without_requests(TokenConfig.make(config, **keywords)))

    def encode_action(self, choices: Any) -> Any:
        """Action of choices (..., J); see ``TokenCodec.encode``."""
        return self.codec.encode(choices)

    def decode_action(self, action: Any) -> Any:
        """Choices (..., J) of an action; see ``TokenCodec.decode``."""
        return self.codec.decode(action, self.codec.batch_of(action))[CHOICES]


class WDMoETokenEnv(TokenFace, WDMoEEnv):  # type: ignore[misc]
    """Tokens as agents: each chooses among four sets of its experts.

    The process, the channels, the texts and the info are those of ``WDMoEEnv``. The action is a choice of each token,
    ``MultiDiscrete([4] * J)``: 0 its own routing, 1 its best expert alone, 2 the best and the third, 3 the second
    alone. The shares are solved. The observation is one flat float32 ``Box``: the F numbers of each token, one token
    after the other, scaled to about one. ``wdmoe_env.policies.tokens.token_features`` has the entries, and
    ``observe_hidden_states=True`` adds the hidden state. ``info["token_reward"]`` (J,) holds a reward for each token,
    see ``TokenProcess.token_reward``.

    This is the joint face, with one scalar reward. ``wdmoe_env.integrations.pettingzoo`` has the tokens as agents of
    PettingZoo's parallel API, ``wdmoe_env.integrations.token_vec`` as N x J environments of Stable-Baselines3.

    Args:
        config: a ``TokenConfig``, its dict, or nothing.
        render_mode: as of ``WDMoEEnv``.
        **keywords: fields of ``TokenConfig``.
    """


class WDMoETokenVectorEnv(TokenFace, WDMoEVectorEnv):  # type: ignore[misc]
    """N token environments of one configuration; see ``WDMoETokenEnv`` and ``WDMoEVectorEnv``."""
