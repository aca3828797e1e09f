"""Measurements of an evaluation, a row per unit and policy, and their CSV."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from eval.members import Member
from eval.plan import RunConfig
from eval.tables import csv_text
from wdmoe_env.evaluation import Episodes, Measurements
from wdmoe_env.metrics import result_metrics

SIMULATED = "simulated_latency_ms"
"""What a testbed's latency is compared with; there only where latency was measured."""

WALL_CLOCK = frozenset({"decision_ms"})
"""What is not equal again when an evaluation is replayed."""


@dataclass(frozen=True, slots=True)
class Results(ABC):
    """What every policy measured on the same n units, such as episodes.

    Attributes:
        config: what was evaluated.
        sha256: hashes of what the configuration only names, see ``eval.provenance``.
        members: place of each policy in its family.
        measurements: for each policy the metrics, each (n,).
    """

    UNIT: ClassVar[tuple[str, ...]]
    """Columns that say which unit a row is about."""
    config: RunConfig
    sha256: dict[str, str]
    members: tuple[Member, ...]
    measurements: dict[str, Measurements]

    @property
    def clusters(self) -> NDArray[np.int64] | None:
        """(n,) number of what each unit is resampled with; ``None`` where each is by itself."""
        return None

    @abstractmethod
    def units(self) -> list[tuple[object, ...]]:
        """Of each unit the values of ``UNIT``."""

    @classmethod
    @abstractmethod
    def metrics(cls) -> tuple[str, ...]:
        """Columns that were measured."""

    @classmethod
    def columns(cls) -> tuple[str, ...]:
        """Columns of the CSV."""
        return ("policy", *cls.UNIT, *cls.metrics())

    def rows(self) -> list[dict[str, str]]:
        """The CSV's rows, floats written so that they read back exactly."""
        described = [dict(zip(self.UNIT, map(str, unit), strict=True)) for unit in self.units()]
        return [
            {"policy": policy, **row, **{name: repr(values[name][n].item()) for name in self.metrics()}}
            for policy, values in self.measurements.items()
            for n, row in enumerate(described)
        ]

    def csv(self) -> str:
        """Text of the CSV."""
        return csv_text(self.columns(), self.rows())


@dataclass(frozen=True, slots=True)
class EpisodeResults(Results):
    """What an evaluation on windows of text measured.

    Attributes:
        episodes: what every policy ran.
        domains: n names, the kind of text of each episode.
        documents: (n,) number of the document of each episode, where these are resampled.
        measurements: for each policy the metrics of ``wdmoe_env.evaluate``, each (n,), and what ``eval.drops`` counts.
    """

    UNIT = ("episode", "window", "domain", "seed")

    episodes: Episodes
    domains: tuple[str, ...]
    documents: NDArray[np.int64] | None = None

    @property
    def clusters(self) -> NDArray[np.int64] | None:
        """The documents, where these are resampled."""
        return self.documents

    @classmethod
    def metrics(cls) -> tuple[str, ...]:
        """Those of the table of metrics, and what the clock on the wall says."""
        return (*(metric.name for metric in result_metrics()), *WALL_CLOCK)

    def units(self) -> list[tuple[object, ...]]:
        """Number, window, kind of text and seed of each episode."""
        numbers = range(len(self.episodes))
        return list(zip(numbers, self.episodes.windows, self.domains, self.episodes.seeds, strict=True))
