"""The two kinds of evaluation, windows of text and the suite: everything that tells their folders apart."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eval import plots
from eval.plan import EvaluationConfig, RunConfig
from eval.report import markdown_report, terminal_table
from eval.results import EpisodeResults, Results
from eval.runner import Evaluation
from eval.suite import SuiteConfig, SuiteEvaluation, SuiteResults
from eval.suite_report import suite_report, suite_terminal
from eval.suite_summary import suite_json, summarize_suite
from eval.summary import Summary, results_json, summarize


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of evaluation.

    Attributes:
        stem: name of its CSV and JSON.
        config: what it is told.
        evaluation: loads and runs it.
        results: what it gives.
        summarize: from results to the statistics of every policy.
        json: from results and the command to the content of the JSON.
        terminal: from that to what the terminal shows.
        report: from that to the text of ``report.md``.
        quality: what the picture draws against latency.
    """

    stem: str
    config: type[RunConfig]
    evaluation: Callable[[Any], Evaluation | SuiteEvaluation]
    results: type[Results]
    summarize: Callable[[Any], list[Summary]]
    json: Callable[[Any, str], Summary]
    terminal: Callable[[Summary], str]
    report: Callable[[Summary], str]
    quality: plots.Quality

    @property
    def files(self) -> tuple[str, ...]:
        """What a results folder holds."""
        return (f"{self.stem}.csv", f"{self.stem}.json", "report.md", "pareto.png")

    def draw(self, summary: Summary, path: Path) -> None:
        """Draw the picture."""
        plots.plot_pareto(summary["policies"], path, self.quality)


EPISODES = Kind(
    stem="results",
    config=EvaluationConfig,
    evaluation=Evaluation,
    results=EpisodeResults,
    summarize=summarize,
    json=results_json,
    terminal=terminal_table,
    report=markdown_report,
    quality=plots.ADDED_NLL,
)
SUITE = Kind(
    stem="suite",
    config=SuiteConfig,
    evaluation=SuiteEvaluation,
    results=SuiteResults,
    summarize=summarize_suite,
    json=suite_json,
    terminal=suite_terminal,
    report=suite_report,
    quality=plots.SUITE_ACCURACY,
)
KINDS = (EPISODES, SUITE)
