"""The two kinds of evaluation, windows of text and the suite: everything that tells their folders apart."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import IO, Any

from eval import plots
from eval.plan import EvaluationConfig, RunConfig
from eval.profile_plot import plot_profiles
from eval.provenance import how_made
from eval.report import markdown_report, terminal_table
from eval.results import EpisodeResults, Results
from eval.runner import Evaluation
from eval.suite import SuiteConfig, SuiteEvaluation, SuiteResults
from eval.suite_report import suite_report, suite_terminal
from eval.suite_summary import suite_statistics
from eval.summary import Summary
from eval.windows_summary import statistics

LEADERBOARD = "leaderboard.csv"
REPORT = "report.md"
PAGE = "report.html"
"""What a folder may hold besides: ``--report`` puts it there."""


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of evaluation.

    Attributes:
        stem: name of its CSV and JSON.
        config: what it is told.
        evaluation: loads and runs it.
        results: what it gives.
        statistics: from results to what the JSON says of them.
        terminal: from that to what the terminal shows.
        report: from that to the text of ``report.md``.
        pictures: what draws each picture of the folder from that, as a PNG into a file.
    """

    stem: str
    config: type[RunConfig]
    evaluation: Callable[[Any], Evaluation | SuiteEvaluation]
    results: type[Results]
    statistics: Callable[[Any], Summary]
    terminal: Callable[[Summary], str]
    report: Callable[[Summary], str]
    pictures: Mapping[str, Callable[[Summary, IO[bytes]], None]]

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


EPISODES = Kind(
    stem="results",
    config=EvaluationConfig,
    evaluation=Evaluation,
    results=EpisodeResults,
    statistics=statistics,
    terminal=terminal_table,
    report=markdown_report,
    pictures={
        "pareto.png": lambda summary, file: plots.plot_pareto(summary, file, plots.ADDED_NLL),
        "profiles.png": plot_profiles,
    },
)
SUITE = Kind(
    stem="suite",
    config=SuiteConfig,
    evaluation=SuiteEvaluation,
    results=SuiteResults,
    statistics=suite_statistics,
    terminal=suite_terminal,
    report=suite_report,
    pictures={"pareto.png": lambda summary, file: plots.plot_pareto(summary, file, plots.SUITE_ACCURACY)},
)
KINDS = (EPISODES, SUITE)
