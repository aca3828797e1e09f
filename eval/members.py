"""The place of policies in tables: short names, and families of one method at several settings and training seeds.

A rule's family is its name and its setting the number behind the colon. A learned policy's family is what trained it,
and on which set of devices where that is not the paper's; its setting is the reward that it was trained on, and its
seed that of the training.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from wdmoe_env.policies import policy_names
from wdmoe_env.policies.registry import policy_card

FILE_SUFFIXES = (".safetensors", ".json")


def short_names(policies: Sequence[str]) -> dict[str, str]:
    """A name for each policy: rules keep theirs, files go by the last parts of their path that tell them apart.

    A file named ``policy``, as training names all of them, goes by its folder.
    """
    parts = {policy: _parts(policy) for policy in policies}
    names = {}
    for policy, own in parts.items():
        others = [theirs for other, theirs in parts.items() if other != policy]
        lengths = range(1, len(own) + 1)
        length = next((n for n in lengths if all(own[-n:] != theirs[-n:] for theirs in others)), len(own))
        names[policy] = "/".join(own[-length:])
    return names


def is_file(policy: str) -> bool:
    """Whether a policy is a file and not a rule, by its name alone."""
    path = PurePath(policy)
    return path.suffix in FILE_SUFFIXES or len(path.parts) > 1


def _parts(policy: str) -> tuple[str, ...]:
    if not is_file(policy):
        return (policy,)
    path = PurePath(policy)
    parts = path.with_suffix("").parts if path.suffix in FILE_SUFFIXES else path.parts
    return parts[:-1] if parts[-1] == "policy" and len(parts) > 1 else parts


def point_label(setting: dict[str, Any], swept: bool) -> str:
    """The name of a setting's point in a picture; of a family whose line the legend names, the setting alone."""
    return setting["setting"].removeprefix("quality ") or setting["name"] if swept else setting["name"]


# What trained a policy whose card, of before families, does not say.
DEFAULT_FAMILY = "ppo"
MOST_NAME_LENGTH = 64
WEIGHTED_REWARDS = {
    "latency_quality": "",
    "latency_divergence": ", by divergence",
    "serving": ", of requests",
    "serving_divergence": ", of requests, by divergence",
}
"""Rewards that weigh quality, and how a setting says which."""


@dataclass(frozen=True, slots=True)
class Member:
    """The place of a policy in its family.

    Attributes:
        policy: name or file.
        family: method.
        setting: of the method, ``""`` where it has none.
        value: the setting as a number, by which a family is ordered.
        seed: of its training, 0 for a rule.
        learned: whether it is a file of weights.
    """

    policy: str
    family: str
    setting: str
    value: float | None
    seed: int
    learned: bool


@dataclass(frozen=True, slots=True)
class Setting:
    """One method at one setting: a row of the leaderboard.

    Attributes:
        family: method.
        setting: of the method.
        value: the setting as a number.
        learned: whether its policies are files of weights.
        policies: S of them, one a training seed.
        seeds: S.
    """

    family: str
    setting: str
    value: float | None
    learned: bool
    policies: tuple[str, ...]
    seeds: tuple[int, ...]

    @property
    def name(self) -> str:
        """As tables and pictures write it; a rule's is what ``make_policy`` takes."""
        if not self.setting:
            return self.family
        return f"{self.family} {self.setting}" if self.learned else f"{self.family}:{self.setting}"


def member(policy: str) -> Member:
    """The family, setting and seed of a policy.

    Raises:
        ValueError: a card says something else than these.
    """
    card = policy_card(policy)
    if card is None:
        family, _, number = policy.partition(":")
        return Member(policy, family, number, float(number) if number else None, 0, False)
    arguments = _field(policy, card, "arguments", dict, {})
    family = _field(policy, card, "family", str, DEFAULT_FAMILY)
    reward = _field(policy, arguments, "reward", str, "")
    seed = _field(policy, arguments, "seed", int, 0)
    weight = float(_field(policy, arguments, "quality_weight", (int, float), 0.0))
    if family in policy_names():
        family = f"{family} (learned)"
    devices = _field(policy, arguments, "devices", str, "paper")
    family += "" if devices == "paper" else f" on {devices}"
    if max(len(family), len(reward)) > MOST_NAME_LENGTH:
        raise ValueError(
            f"expected names of at most {MOST_NAME_LENGTH} letters in the card of {policy}, got longer ones"
        )
    apart = ", own shares" if arguments.get("env_id") == "WDMoE-v0" else ""
    without = _field(policy, arguments, "without_domains", str, "")
    apart += f", without {without}"[:MOST_NAME_LENGTH] if without else ""
    if reward not in WEIGHTED_REWARDS:
        return Member(policy, family, reward + apart, None, seed, True)
    return Member(policy, family, f"quality {weight:g}{WEIGHTED_REWARDS[reward]}{apart}", weight, seed, True)


def _field(policy: str, values: dict[str, Any], name: str, kind: Any, default: Any) -> Any:
    value = values.get(name, default)
    if not isinstance(value, kind):
        raise ValueError(f"expected another type of {name} in the card of {policy}, got {type(value).__name__}")
    return value


def settings_of(members: Iterable[Member]) -> list[Setting]:
    """Settings, families in order of appearance and each by rising value, seeds rising.

    A second policy of the same family, setting and seed is no further seed: it stands as a setting of its own, under
    the name of its file.
    """
    found = list(members)
    names = short_names([one.policy for one in found])
    grouped: dict[tuple[str, str], dict[int, Member]] = {}
    for one in found:
        seeds = grouped.setdefault((one.family, one.setting), {})
        if one.seed in seeds:
            label = f"{one.setting} ({names[one.policy]})".strip()
            seeds = grouped.setdefault((one.family, label), {})
        seeds[one.seed] = one
    settings = [_setting(label, list(seeds.values())) for (_, label), seeds in grouped.items()]
    families = list(dict.fromkeys(setting.family for setting in settings))
    return sorted(settings, key=lambda one: (families.index(one.family), one.value is not None, one.value or 0.0))


def _setting(label: str, members: list[Member]) -> Setting:
    first, by_seed = members[0], sorted(members, key=lambda one: one.seed)
    policies, seeds = tuple(one.policy for one in by_seed), tuple(one.seed for one in by_seed)
    return Setting(first.family, label, first.value, first.learned, policies, seeds)
