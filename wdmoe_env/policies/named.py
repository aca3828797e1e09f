"""What may stand for a policy: a name, a file, a rule of one's own, or an object that acts; and the name it goes by."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from wdmoe_env.policies.policy import Policy, Rule, RulePolicy
from wdmoe_env.policies.registry import make_policy

PolicySpec = str | Path | Rule | Policy
"""A name, a file, a function from a block to a selection and shares, or an object with ``predict``."""


def named(policies: Iterable[PolicySpec] | Mapping[str, PolicySpec]) -> dict[str, PolicySpec]:
    """The name of each policy and what stands for it.

    Args:
        policies: a list of names, files and functions, or a mapping from names to these and to objects with
            ``predict``.

    Raises:
        ValueError: two policies of one name.
        TypeError: something that is no policy.
    """
    if isinstance(policies, (str, Path)) or not isinstance(policies, Iterable):
        raise TypeError(f"expected a list of policies, or a mapping from names to policies, got {policies!r}")
    found: dict[str, PolicySpec] = {}
    pairs = policies.items() if isinstance(policies, Mapping) else [(_name(one), one) for one in policies]
    for name, one in pairs:
        _check_policy(name, one)
        if found.setdefault(name, one) != one:
            raise ValueError(f"expected a name for each policy, got two of the name {name!r}: name them in a mapping")
    return found


def policy_of(spec: PolicySpec, env: Any, seed: int = 0) -> Policy:
    """The policy that something stands for.

    Args:
        spec: a name, a file, a function or an object with ``predict``.
        env: single or batched environment that it will act in.
        seed: of the policy's own randomness, for a name.

    Raises:
        ValueError: see ``make_policy``.
    """
    if isinstance(spec, (str, Path)):
        return make_policy(spec, env, seed)
    return spec if hasattr(spec, "predict") else RulePolicy(spec, getattr(env, "unwrapped", env).codec)


def _name(policy: Any) -> str:
    if isinstance(policy, (str, Path)):
        return str(policy)
    if callable(policy) and isinstance(getattr(policy, "__name__", None), str):
        return str(policy.__name__)
    raise TypeError(
        f"expected a name, a file or a function in a list of policies, got {policy!r}: name it in a mapping"
    )


def _check_policy(name: Any, policy: Any) -> None:
    if not isinstance(name, str):
        raise TypeError(f"expected text as the name of a policy, got {name!r}")
    if not (isinstance(policy, (str, Path)) or hasattr(policy, "predict") or callable(policy)):
        raise TypeError(
            f"expected a name, a file, a function or an object with predict as policy {name}, got {policy!r}"
        )
