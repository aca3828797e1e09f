"""The two kinds of evaluation, windows of text and the suite: everything that tells their results folders apart."""

from __future__ import annotations

import io
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import IO, Any, ClassVar

from eval import plots, report
from eval.plan import EvaluationConfig, RunConfig
from eval.provenance import how_made
from eval.results import EpisodeResults, Results
from eval.runner import Evaluation
from eval.statistics import Summary
from eval.suite import SuiteConfig, SuiteEvaluation, SuiteResults
from eval.summary import statistics, suite_statistics

LEADERBOARD = "leaderboard.csv"
REPORT = "report.md"
PAGE = "report.html"
"""What a folder may hold besides: ``--report`` puts it there."""


class Kind(ABC):
    """A kind of evaluation.

    Attributes:
        stem: name of its CSV and JSON.
        pictures: names of its pictures.
        config: what it is told.
        results: what it gives.
    """

    stem: ClassVar[str]
    pictures: ClassVar[tuple[str, ...]]
    config: ClassVar[type[RunConfig]]
    results: ClassVar[type[Results]]

    @abstractmethod
    def evaluation(self, config: Any) -> Evaluation | SuiteEvaluation:
        """The evaluation of a configuration, loaded and checked."""

    @abstractmethod
    def statistics(self, results: Any) -> Summary:
        """What the JSON says of results."""

    @abstractmethod
    def terminal(self, summary: Summary) -> str:
        """What the terminal shows of the JSON."""

    @abstractmethod
    def report(self, summary: Summary) -> str:
        """The text of ``report.md``."""

    @abstractmethod
    def draw(self, summary: Summary) -> dict[str, bytes]:
        """The PNG of each of ``pictures``."""

    @property
    def files(self) -> tuple[str, ...]:
        """What a results folder holds."""
        return (f"{self.stem}.csv", f"{self.stem}.json", LEADERBOARD, REPORT, *self.pictures)

    def json(self, results: Results, command: str) -> Summary:
        """The content of the JSON.

        Args:
            results: what was measured.
            command: what made it, for the reader.
        """
        return {**how_made(results, command), **self.statistics(results)}


class Windows(Kind):
    """An evaluation on windows of text."""

    stem = "results"
    pictures = ("pareto.png", "profiles.png")
    config = EvaluationConfig
    results = EpisodeResults

    def evaluation(self, config: EvaluationConfig) -> Evaluation:
        """The evaluation of a configuration, loaded and checked."""
        return Evaluation(config)

    def statistics(self, results: EpisodeResults) -> Summary:
        """What ``results.json`` says of results."""
        return statistics(results)

    def terminal(self, summary: Summary) -> str:
        """A row per policy."""
        return report.terminal_table(summary)

    def report(self, summary: Summary) -> str:
        """The text of ``report.md``."""
        return report.markdown_report(summary)

    def draw(self, summary: Summary) -> dict[str, bytes]:
        """Latency against added NLL, and performance profiles."""
        drawn = (_png(plots.plot_windows_pareto, summary), _png(plots.plot_profiles, summary))
        return dict(zip(self.pictures, drawn, strict=True))


class Suite(Kind):
    """An evaluation on the multiple-choice suite."""

    stem = "suite"
    pictures = ("pareto.png",)
    config = SuiteConfig
    results = SuiteResults

    def evaluation(self, config: SuiteConfig) -> SuiteEvaluation:
        """The evaluation of a configuration, loaded and checked."""
        return SuiteEvaluation(config)

    def statistics(self, results: SuiteResults) -> Summary:
        """What ``suite.json`` says of results."""
        return suite_statistics(results)

    def terminal(self, summary: Summary) -> str:
        """A row per policy, then accuracies by format and by domain."""
        return report.suite_terminal(summary)

    def report(self, summary: Summary) -> str:
        """The text of ``report.md``."""
        return report.suite_report(summary)

    def draw(self, summary: Summary) -> dict[str, bytes]:
        """Latency against accuracy."""
        return {self.pictures[0]: _png(plots.plot_suite_pareto, summary)}


def _png(draw: Callable[[Summary, IO[bytes]], None], summary: Summary) -> bytes:
    content = io.BytesIO()
    draw(summary, content)
    return content.getvalue()


WINDOWS, SUITE = Windows(), Suite()
KINDS = (WINDOWS, SUITE)
