"""The best decision by exhaustion as a rule, for small instances: the ceiling of every policy's WLR."""

from __future__ import annotations

from typing import Any

from wdmoe_env import policies
from wdmoe_env.observations import Block
from wdmoe_env.optimize.oracle import exhaustive_oracle
from wdmoe_env.physics.latency import Bool, Float
from wdmoe_env.policies.policy import Policy, RulePolicy
from wdmoe_env.policies.rules import problem_of

ORACLE = "oracle"
MOST_TOKENS = 8


def make_policy(spec: str, env: Any, seed: int = 0) -> Policy:
    """What ``make_policy`` gives, and the oracle.

    Raises:
        ValueError: what ``make_policy`` raises, or the oracle on windows of more than ``MOST_TOKENS`` tokens.
    """
    if spec != ORACLE:
        return policies.make_policy(spec, env, seed)
    codec = getattr(env, "unwrapped", env).codec
    num_tokens = codec.sizes.num_tokens
    if num_tokens > MOST_TOKENS:
        raise ValueError(
            f"the oracle tries every selection: num_tokens must be at most {MOST_TOKENS}, got {num_tokens}"
        )
    return RulePolicy(oracle, codec)


def oracle(block: Block) -> tuple[Bool, Float]:
    """The selection of routed experts and the shares of greatest WLR (8) in each block."""
    solution = exhaustive_oracle(problem_of(block))
    return solution.selection, solution.shares
