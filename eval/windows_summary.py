"""Everything that follows from measurements on windows of text: the statistics of ``results.json``."""

from __future__ import annotations

from eval.breakdown import breakdowns
from eval.matched import matched_quality
from eval.profiles import performance_profiles
from eval.results import EpisodeResults
from eval.study import Study, setting_summaries
from eval.summary import Summary, summarize


def statistics(results: EpisodeResults) -> Summary:
    """Statistics of every policy, of every setting over its training seeds, and of families against each other."""
    study = Study(results)
    return {
        "policies": summarize(results),
        "settings": setting_summaries(study),
        "matched_quality": matched_quality(study),
        "profiles": performance_profiles(study),
        "breakdowns": breakdowns(results),
    }
