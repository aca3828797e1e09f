"""Names to policies: a rule such as ``wdmoe:0.9``, a learned policy that ships, or the file of another."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from wdmoe_env.bits import BitsPart
from wdmoe_env.checks import nearest, shown
from wdmoe_env.policies import channel_gate, related, rules, similar
from wdmoe_env.policies.bits import BitsPolicy
from wdmoe_env.policies.policy import Policy, Rule, RulePolicy
from wdmoe_env.policies.queue import LoadPrice, QueuePolicy, QueuePrice, QueueThreshold


@dataclass(frozen=True, slots=True)
class Entry:
    """A named rule.

    Attributes:
        build: from codec, parameter and seed to a policy.
        parameter: what a number behind a colon means, or ``None`` where none is taken.
    """

    build: Callable[[Any, float | None, int], Policy]
    parameter: str | None = None


def _rule(function: Any) -> Entry:
    return Entry(lambda codec, parameter, seed: RulePolicy(function, codec))


def _tuned(function: Any, keyword: str) -> Entry:
    def build(codec: Any, parameter: float | None, seed: int) -> Policy:
        return RulePolicy(function if parameter is None else partial(function, **{keyword: parameter}), codec)

    return Entry(build, parameter=keyword)


def _queue(rule: Any, keyword: str) -> Entry:
    def build(codec: Any, parameter: float | None, seed: int) -> Policy:
        return QueuePolicy(rule() if parameter is None else rule(parameter), codec)

    return Entry(build, parameter=keyword)


def _gate(codec: Any, parameter: float | None, seed: int) -> Policy:
    rule = channel_gate.channel_gate_rule(channel_gate.DEFAULT_ODDS if parameter is None else parameter)
    return RulePolicy(rule, codec)


def _sized(make: Any, keyword: str) -> Entry:
    """A rule that is made for the sizes of its environment."""

    def build(codec: Any, parameter: float | None, seed: int) -> Policy:
        return RulePolicy(
            make(None if codec is None else codec.sizes, **({} if parameter is None else {keyword: parameter})), codec
        )

    return Entry(build, parameter=keyword)


def _with_bits(codec: Any, parameter: float | None, seed: int) -> Policy:
    """The price of bits; where the action decides none, every message has what the link has: the plain price."""
    for part in getattr(codec, "parts", ()):
        if isinstance(part, BitsPart):
            return BitsPolicy(codec, part, parameter)
    return _tuned(rules.marginal_price, "price_per_ms").build(codec, parameter, seed)


ENTRIES: dict[str, Entry] = {
    "vanilla": _rule(rules.vanilla),
    "vanilla-optimal": _rule(rules.vanilla_optimal),
    "top1": _rule(rules.top1),
    "random": Entry(lambda codec, parameter, seed: RulePolicy(rules.RandomRule(seed), codec)),
    "greedy": _rule(rules.greedy),
    "wdmoe": _tuned(rules.wdmoe, "threshold"),
    "wdmoe-selection": _tuned(rules.wdmoe_selection, "threshold"),
    "wdmoe-bandwidth": _rule(rules.vanilla_optimal),
    "wdmoe-history": Entry(lambda codec, parameter, seed: rules.HistoryPolicy(codec, parameter), "threshold"),
    "marginal-price": _tuned(rules.marginal_price, "price_per_ms"),
    "marginal-price-bits": Entry(_with_bits, "price_per_ms"),
    "fractional": _rule(rules.fractional),
    "queue-price": _queue(QueuePrice, "price_per_ms"),
    "wdmoe-queue": _queue(QueueThreshold, "threshold"),
    "load-price": _queue(LoadPrice, "price_per_ms"),
    "top-p": _tuned(related.top_p, "probability"),
    "adaptive-k": _tuned(related.adaptive_k, "effective_share"),
    "drop-device": _tuned(related.drop_device, "slowness"),
    "des": _tuned(related.des, "relevance"),
    "sift": _sized(similar.sift_rule, "damage"),
    "channel-gate": Entry(_gate, "odds"),
}


TRAINED = Path(__file__).parents[1] / "assets" / "policies"


def policy_names() -> tuple[str, ...]:
    """Names of the rules."""
    return tuple(ENTRIES)


def trained_names() -> tuple[str, ...]:
    """Names of the learned policies that ship."""
    return tuple(sorted(path.stem for path in TRAINED.glob("*.safetensors")))


def weights_file(spec: str | Path) -> Path | None:
    """The weights of a learned policy: one that ships, or a file; ``None`` for a rule. A ``Path`` is always a file."""
    if isinstance(spec, Path):
        return spec
    if spec in trained_names():
        return TRAINED / f"{spec}.safetensors"
    name = spec.partition(":")[0]
    written = spec.endswith((".safetensors", ".json")) or os.sep in spec or os.path.exists(spec)
    return Path(spec) if name not in ENTRIES and written else None


def policy_card(policy: str | Path) -> dict[str, Any] | None:
    """The card of a learned policy, ``None`` for a rule and where there is no file.

    Args:
        policy: as ``make_policy`` takes it.

    Raises:
        ValueError: the file is not the JSON of a policy.
    """
    from wdmoe_env.policies.policy_file import read_card  # only here: torch takes seconds to import

    file = weights_file(policy)
    card = file.with_suffix(".json") if file and file.name else None
    return read_card(card) if card and card.is_file() else None


def reads_hidden_states(policy: str | Path) -> bool:
    """Whether a policy reads hidden states, which the environment then must observe.

    Args:
        policy: as ``make_policy`` takes it.

    Raises:
        ValueError: the file is not the JSON of a policy.
    """
    size = (policy_card(policy) or {}).get("hidden_size", 0)
    return isinstance(size, int) and size > 0


def named_rule(name: str) -> Rule:
    """The rule of a name, as a function of a block, for what imitates it.

    Raises:
        ValueError: not the name of a rule, or a rule that keeps a state.
    """
    policy = ENTRIES[name].build(None, None, 0) if name in ENTRIES else None
    if not isinstance(policy, RulePolicy):
        raise ValueError(f"expected the name of a rule to imitate, such as fractional, got {name!r}")
    return policy.rule


def make_policy(spec: str | Path, env: Any, seed: int = 0) -> Policy:
    """The policy of a name, of a name with a parameter, or of a file.

    Args:
        spec: ``"vanilla"``, ``"wdmoe:0.9"``, a name of ``trained_names()``, or the path of a learned policy; a
            ``Path`` is always taken for one.
        env: single or batched environment that it will act in.
        seed: of the policy's own randomness.

    Raises:
        ValueError: an unknown name (the message names the nearest ones), a wrong parameter, or a file that is no policy
            or does not fit the environment.
        TypeError: ``spec`` is neither a string nor a ``Path``.
    """
    if not isinstance(spec, (str, Path)):
        raise TypeError(f"a policy is a name, or the path of a file, got {shown(spec)}")
    codec = getattr(env, "unwrapped", env).codec
    file = weights_file(spec)
    if file is not None:
        from wdmoe_env.policies.learned import load_policy

        return load_policy(str(file), codec)
    name, colon, text = str(spec).partition(":")
    if name not in ENTRIES:
        known = (*policy_names(), *trained_names())
        raise ValueError(f"unknown policy {name!r}; the nearest known are {nearest(name, known)}")
    return ENTRIES[name].build(codec, _parameter(name, text) if colon else None, seed)


def _parameter(name: str, text: str) -> float:
    meaning = ENTRIES[name].parameter
    if meaning is None:
        raise ValueError(f"policy {name!r} takes no parameter, got {text!r}")
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not (math.isfinite(number) and number >= 0):
        raise ValueError(f"policy {name!r} takes a number of at least 0 as its {meaning}, got {text!r}")
    return number
