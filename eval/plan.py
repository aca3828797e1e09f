"""What an evaluation is: policies, environment, and how many episodes all of them run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from wdmoe_env.checks import check_choice, check_integer
from wdmoe_env.config import EnvConfig
from wdmoe_env.evaluation import REFERENCE, check_decision

MOST_EPISODES = 100_000
"""Of an evaluation: the resamples that its intervals come from take about 50 kB of memory for each episode."""


RESAMPLED = ("windows", "documents")
"""What intervals draw anew."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunConfig:
    """What results of any kind follow from; the files that it names apart.

    Attributes:
        policies: names and files, as ``make_policy`` takes them; ``vanilla``, the reference, is put first
            where it is missing.
        environment: the environment, with both decisions in the action.
        seed: of episodes, policies and resamples.
        batch_size: windows in one forward pass. A batched pass rounds differently from a single one.
        files: what to load for policies that are not found by their names: the absolute path of a file, or the name of
            a policy that ships. A policy that is missing here is taken as named.
    """

    FIRST: ClassVar[str] = REFERENCE
    """The policy that always runs."""

    policies: tuple[str, ...]
    environment: EnvConfig
    seed: int = 7
    batch_size: int = 64
    files: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check every field, and put the reference in."""
        policies = tuple(dict.fromkeys(self.policies))
        object.__setattr__(self, "policies", policies if self.FIRST in policies else (self.FIRST, *policies))
        check_integer("batch_size", self.batch_size, at_least=1)
        if self.batch_size > MOST_EPISODES:
            raise ValueError(f"batch_size must be at most {MOST_EPISODES:,}, got {self.batch_size}")
        check_integer("seed", self.seed, at_least=0)
        if not isinstance(self.files, Mapping) or not all(isinstance(path, str) for path in self.files.values()):
            raise ValueError(f"files must be a mapping of policies to their paths, got {self.files!r}")
        check_decision(self.environment)
        if not isinstance(self.environment.reward, str):
            raise ValueError("reward must be a name in an evaluation, whose configuration is saved; got a function")

    def located(self, policy: str) -> str:
        """What ``make_policy`` takes for a policy, from whatever folder."""
        return self.files.get(policy, policy)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The inverse of ``to_dict``; other keys are ignored.

        Raises:
            ValueError, TypeError, KeyError: the policies or the environment are missing, or a field is wrong.
        """
        given = {field.name: values[field.name] for field in fields(cls) if field.name in values}
        policies, environment = tuple(given.pop("policies")), EnvConfig.make(given.pop("environment"))
        return cls(policies=policies, environment=environment, **given)

    def to_dict(self) -> dict[str, Any]:
        """Plain nested dict, ready for JSON."""
        plain = {field.name: getattr(self, field.name) for field in fields(self)}
        lists = {name: list(value) for name, value in plain.items() if isinstance(value, tuple)}
        return plain | lists | {"environment": self.environment.to_dict(), "files": dict(self.files)}


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationConfig(RunConfig):
    """An evaluation on windows of text.

    Attributes:
        episodes: how many windows, each with a channel of its own.
        domains: kinds of text that the windows come from; none for all.
        resample: what the intervals draw anew: "windows", or "documents", whose windows are alike.
    """

    environment: EnvConfig = field(default_factory=lambda: EnvConfig(split="test"))
    episodes: int = 256
    domains: tuple[str, ...] = ()
    resample: str = "windows"

    def __post_init__(self) -> None:
        """Check every field, and put the reference in."""
        RunConfig.__post_init__(self)
        check_integer("episodes", self.episodes, at_least=1)
        if self.episodes > MOST_EPISODES:
            need = f"their intervals would take {50e-6 * self.episodes:,.0f} GB of memory"
            raise ValueError(f"episodes must be at most {MOST_EPISODES:,}, got {self.episodes}: {need}")
        object.__setattr__(self, "domains", tuple(self.domains))
        check_choice("resample", self.resample, RESAMPLED)


def windows_of(text: Sequence[str], domains: Sequence[str]) -> NDArray[np.int64]:
    """Indices of the windows that belong to some kinds of text; all where none is named.

    Args:
        text: the kind of each window.
        domains: wanted ones.

    Raises:
        ValueError: no window is of such a kind.
    """
    unknown = sorted(set(domains) - set(text))
    if unknown:
        raise ValueError(f"expected domains among {', '.join(sorted(set(text)))}, got {unknown[0]!r}")
    return np.flatnonzero(np.isin(text, domains or list(set(text))))
